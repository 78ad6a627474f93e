"""The connections of a closed endpoint leave conntrack, and no others do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from nftsync.config import Filters
from nftsync.kernel import conntrack
from nftsync.kernel.conntrack import Cutter, end
from nftsync.kernel.netlink import PROTOCOL, DumpError, Netlink
from nftsync.objects.service import Service, parse_service
from nftsync.plan.closed import Cut
from nftsync.policy.pinholes import Pinhole, PinholeIndex
from tests.lab.lab import CLIENT, PUBLIC, Lab, Probe
from tests.lab.probe import PEER_MAC
from tests.labtools import SERVICE4, SERVICE6, eventually, needs_root, service

pytestmark = needs_root

TRACKING = "table inet tracking { chain forward { type filter hook forward priority 0; ct state new accept; }; }"
ADDRESSES = pytest.mark.parametrize("address", [SERVICE4, SERVICE6], ids=["IPv4", "IPv6"])
EVERY_PROTOCOL = pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A router that tracks connections and lets everything pass. Client and node never answer."""
    with Lab() as made:
        made.router.nft(TRACKING)
        for host in (made.client, made.node):
            host.nft("table inet deaf { chain prerouting { type filter hook prerouting priority -300; drop; }; }")
        yield made


def own(address: str) -> str:
    """The client's address of the same family."""
    return str(CLIENT[":" in address])


def exploded(address: str) -> str:
    """An address as conntrack's file writes it."""
    return address if "." in address else ":".join(f"{int(part or '0', 16):04x}" for part in _parts(address))


def _parts(address: str) -> list[str]:
    head, _, tail = address.partition("::")
    left, right = head.split(":"), tail.split(":") if tail else []
    return left + ["0"] * (8 - len(left) - len(right)) + right


def tracked(lab: Lab) -> set[tuple[str, ...]]:
    """Each connection that conntrack's own file lists: protocol, source, destination and ports of its first packet."""
    text = lab.router.call(Path("/proc/thread-self/net/nf_conntrack").read_text)
    found = set[tuple[str, ...]]()
    for words in map(str.split, text.splitlines()):
        values: dict[str, str] = {}
        for key, equals, value in (word.partition("=") for word in words):
            if equals:
                values.setdefault(key, value)
        if "dport" in values:
            found.add((words[2], values["src"], values["dst"], values["sport"], values["dport"]))
    return found


def entry(probe: Probe, sender: str) -> tuple[str, ...]:
    ends = map(exploded, (probe.source or sender, probe.destination))
    return (probe.protocol, *ends, str(probe.sport), str(probe.port))


@EVERY_PROTOCOL
@ADDRESSES
def test_the_connections_of_a_closed_endpoint_end_and_no_others(lab: Lab, address: str, protocol: str) -> None:
    other = f"{address[:-1]}2"
    ends = [Probe(protocol, address, 80, sport=sport) for sport in (4001, 4002)]  # type: ignore[arg-type]
    stay = [
        Probe(protocol, address, 81, sport=4001),  # type: ignore[arg-type]
        Probe(protocol, other, 80, sport=4001),  # type: ignore[arg-type]
        *(Probe(each, address, 80, sport=4001) for each in ("tcp", "udp", "sctp") if each != protocol),  # type: ignore[arg-type]
        Probe("icmp", address, 1, sport=80),
    ]
    assert lab.deliver(ends + stay) == ends + stay
    assert {entry(each, own(address)) for each in ends + stay[:-1]} <= tracked(lab)
    key, idle = f"{address} . {protocol} . 80", f"{address} . {protocol} . 79"
    assert lab.router.call(end, {key: (), idle: ()}) == {idle}
    assert tracked(lab) & {entry(each, own(address)) for each in ends + stay} == {
        entry(each, own(address)) for each in stay[:-1]
    }
    assert lab.router.call(end, {key: ()}) == {key}


@EVERY_PROTOCOL
@ADDRESSES
def test_a_connection_ends_too_if_conntrack_has_seen_the_server_first(lab: Lab, address: str, protocol: str) -> None:
    first = Probe(protocol, own(address), 4001, source=address, sport=80)  # type: ignore[arg-type]
    stays = Probe(protocol, own(address), 4001, source=address, sport=81)  # type: ignore[arg-type]
    assert lab.deliver([first, stays], "node") == [first, stays]
    lab.router.call(end, {f"{address} . {protocol} . 80": ()})
    assert tracked(lab) == {entry(stays, "")}


@ADDRESSES
def test_a_connection_that_the_router_translates_to_the_endpoint_ends_too(lab: Lab, address: str) -> None:
    version, router = (6, str(PUBLIC[1])) if ":" in address else (4, str(PUBLIC[0]))
    to = f"[{address}]" if version == 6 else address
    family = f"ip{'6' if version == 6 else ''}"
    lab.router.nft(
        f"table {family} nat {{ chain prerouting {{ type nat hook prerouting priority -100; "
        f"udp dport 8080 dnat to {to}:80; udp dport 8081 dnat to {to}:81; }}; }}"
    )
    probes = [Probe("udp", router, 8080, sport=4001), Probe("udp", router, 8081, sport=4001)]
    assert lab.deliver(probes) == probes
    assert tracked(lab) == {entry(each, own(address)) for each in probes}
    lab.router.call(end, {f"{address} . udp . 80": ()})
    assert tracked(lab) == {entry(probes[1], own(address))}


@ADDRESSES
def test_of_a_narrowed_endpoint_the_connections_of_its_sources_stay(lab: Lab, address: str) -> None:
    stays, ends = (f"{own(address)[:-1]}{last}" for last in "78")
    lab.router.ip(*(f"neighbour add {each} lladdr {PEER_MAC} nud permanent dev public0" for each in (stays, ends)))
    first = [Probe("udp", address, 53, source=each, sport=4001) for each in (stays, ends)]
    spoken = [Probe("udp", each, 4002, source=address, sport=53) for each in (stays, ends)]
    assert lab.deliver(first) == first
    assert lab.deliver(spoken, "node") == spoken
    assert len(tracked(lab)) == 4
    lab.router.call(end, {f"{address} . udp . 53": (ip_network(stays),)})
    assert tracked(lab) == {entry(first[0], ""), entry(spoken[0], "")}


@pytest.mark.parametrize("number", [1, 3, 30])
@ADDRESSES
def test_any_number_of_addresses_and_ports_ends_at_once(lab: Lab, address: str, number: int) -> None:
    every = [
        Probe("udp", f"{address[:-1]}{last}", port, sport=4001) for last in range(1, number + 1) for port in (53, 54)
    ]
    stays = Probe("udp", f"{address[:-1]}1", 55, sport=4001)
    assert lab.deliver([*every, stays]) == [*every, stays]
    assert lab.router.call(end, {f"{each.destination} . udp . {each.port}": () for each in every}) == set()
    assert tracked(lab) == {entry(stays, own(address))}


@ADDRESSES
def test_a_kernel_that_ignores_the_filter_loses_no_other_connection(
    lab: Lab, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack, "_filters", lambda *_: [b""])
    probes = [Probe("udp", address, 53, sport=4001), Probe("udp", address, 54, sport=4001)]
    assert lab.deliver(probes) == probes
    lab.router.call(end, {f"{address} . udp . 53": ()})
    assert tracked(lab) == {entry(probes[1], own(address))}


@ADDRESSES
def test_connections_of_a_zone_end_too(lab: Lab, address: str) -> None:
    lab.router.nft(
        "table inet zones { chain prerouting { type filter hook prerouting priority -300; ct zone set 7; }; }"
    )
    probe = Probe("udp", address, 53, sport=4001)
    assert lab.deliver([probe]) == [probe]
    assert len(tracked(lab)) == 1
    lab.router.call(end, {f"{address} . udp . 53": ()})
    assert tracked(lab) == set()


def test_the_kernel_sends_only_the_connections_of_the_endpoint(lab: Lab) -> None:
    probes = [Probe("udp", SERVICE4, port, sport=4001) for port in range(1, 201)]
    assert len(lab.deliver(probes)) == 200
    asked = list(conntrack._filters(4, [conntrack._Endpoint.of(f"{SERVICE4} . udp . 53")]))
    listed = [lab.router.call(_listed, request) for request in asked]
    assert listed == [0, 1], "of the first packets' sources none, of the answers' sources one"


def _listed(request: bytes) -> int:
    with Netlink(PROTOCOL) as kernel:
        return len(list(kernel.messages(conntrack._GET, bytes([2, 0, 0, 0]) + request)))


def test_the_thread_deletes_and_tells_what_had_no_connection(lab: Lab) -> None:
    probe = Probe("udp", SERVICE4, 53, sport=4001)
    assert lab.deliver([probe]) == [probe]
    cutter, stop = Cutter(), threading.Event()
    thread = threading.Thread(target=lab.router.call, args=[cutter.run, stop])
    thread.start()
    try:
        cutter.take({f"{SERVICE4} . udp . 53": (), f"{SERVICE6} . udp . 53": ()})
        assert eventually(lambda: cutter.take_idle() == {f"{SERVICE6} . udp . 53"})
        assert tracked(lab) == set()
        assert cutter.take_idle() == set()
    finally:
        stop.set()
        thread.join()


def test_endpoints_that_close_without_end_fill_no_memory_until_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "MAX", 4)
    monkeypatch.setattr(conntrack, "end", lambda cut, _public: frozenset(cut))
    monkeypatch.setattr(conntrack, "_REST", 0)
    cutter, stop = Cutter(), threading.Event()
    thread = threading.Thread(target=cutter.run, args=[stop])
    thread.start()
    try:
        for port in range(1, 41):
            key = f"{SERVICE4} . udp . {port}"
            cutter.take({key: ()})
            assert eventually(lambda key=key: key in cutter._idle)  # type: ignore[misc]
        assert len(cutter.take_idle()) <= 4 + 1
    finally:
        stop.set()
        thread.join()


def test_without_conntrack_one_line_says_so_and_the_thread_tries_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = list[float]()

    def refuse(*_: object) -> frozenset[str]:
        tries.append(time.monotonic())
        raise DumpError(1)

    monkeypatch.setattr(conntrack, "end", refuse)
    monkeypatch.setattr(conntrack, "_RETRY", 0.01)
    cutter, stop = Cutter(), threading.Event()
    thread = threading.Thread(target=cutter.run, args=[stop])
    thread.start()
    try:
        cutter.take({f"{SERVICE4} . udp . 53": ()})
        assert eventually(lambda: len(tries) > 2)
        assert cutter.take_idle() == set()
        assert [each for each in caplog.messages if "conntrack" in each] == caplog.messages
        assert len(caplog.messages) == 1
    finally:
        stop.set()
        thread.join()


def test_the_connections_of_an_endpoint_that_opens_again_before_the_next_try_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key, other = f"{SERVICE4} . udp . 53", f"{SERVICE6} . udp . 53"
    opened, tries = dict[str, Pinhole](), list[Cut]()

    def refuse_once(cut: Cut, _: object) -> frozenset[str]:
        tries.append(cut)
        opened.update(PinholeIndex([_service()], Filters()).pinholes)
        if len(tries) == 1:
            raise DumpError(1)
        return frozenset()

    monkeypatch.setattr(conntrack, "end", refuse_once)
    monkeypatch.setattr(conntrack, "_RETRY", 0.01)
    cutter, stop = Cutter(opened.copy), threading.Event()
    thread = threading.Thread(target=cutter.run, args=[stop])
    cutter.take({key: (), other: ()})
    thread.start()
    try:
        assert eventually(lambda: len(tries) == 2)
        assert tries == [{key: (), other: ()}, {other: ()}]
    finally:
        stop.set()
        thread.join()


def test_endpoints_that_close_without_end_take_a_fifth_of_the_time_for_searches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a router with a million connections, a search takes long."""
    now, rests, searches = [0.0], list[float](), list[Cut]()

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            rests.append(timeout)
            now[0] += timeout
            cutter.take({f"{SERVICE4} . tcp . {len(rests)}": (), f"{SERVICE4} . tcp . {1000 + len(rests)}": ()})
            if now[0] > 60:
                self.set()
            return self.is_set()

    def search(cut: Cut, _: object) -> frozenset[str]:
        searches.append(cut)
        now[0] += 0.5
        return frozenset(cut)

    monkeypatch.setattr(conntrack, "end", search)
    cutter = Cutter(clock=lambda: now[0])
    cutter.take({f"{SERVICE4} . tcp . 9": ()})
    cutter.run(Stop())
    assert set(rests) == {2.0}
    assert len(searches) == 25, "60 s, of which each search and its rest take 2.5"
    assert searches[0] == {f"{SERVICE4} . tcp . 9": ()}, "the first one does not wait"


def test_the_endpoints_that_wait_for_a_search_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "MAX", 3)
    cutter = Cutter()
    for number in range(1, 10):
        cutter.take({f"{SERVICE4} . tcp . {number}": ()})
    assert list(cutter._waiting) == [f"{SERVICE4} . tcp . {number}" for number in (7, 8, 9)]


def _service() -> Service:
    parsed = parse_service(service("dns", SERVICE4, ports=[("UDP", 53)]), None)
    assert parsed
    return parsed
