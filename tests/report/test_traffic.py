"""Totals by Service: how they grow, and that they are what real packets did."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftsync.config import Filters
from nftsync.kernel import counters, netlink, routes
from nftsync.kernel.netlink import DumpError
from nftsync.kernel.nft import Kernel
from nftsync.objects.address import AddressSet, parse_range
from nftsync.objects.names import Name
from nftsync.objects.service import parse_service
from nftsync.policy.pinholes import Pinhole, PinholeIndex
from nftsync.report.traffic import NOTHING, Count, Reachability, Reading, Routes, Traffic
from nftsync.ruleset.limits import FRAGMENT_SETS
from nftsync.ruleset.model import INET, NETDEV, OPERATOR_TC, Chain, Ruleset, Table
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset, tables
from nftsync.ruleset.text import render, transaction
from tests.lab.lab import Lab, Namespace, Probe
from tests.labtools import (
    PUBLIC_NIC,
    SERVICE4,
    SERVICE6,
    TCP80,
    Firewall,
    Raw,
    eventually,
    flooded,
    needs_root,
    service,
)
from tests.support import Netns, absent, side

WEB, DNS, MAIL = (Name("shop", name) for name in ("web", "dns", "mail"))
KEY = "192.0.2.1 . tcp . 80"


def hole(key: str = KEY, owner: Name = WEB) -> Pinhole:
    return Pinhole(key, 6 if ":" in key else 4, None, None, owner)


def holes(*owners: Name) -> dict[str, Pinhole]:
    """One pinhole for each Service."""
    return {
        each.key: each for each in (hole(f"192.0.2.{n} . tcp . 80", owner) for n, owner in enumerate(owners, start=1))
    }


def reading(packets: int | None, key: str = KEY, name: str = "services4") -> Reading:
    """One element, or none, of which every packet has 10 bytes."""
    return Reading({name: {} if packets is None else {(key, b""): Count(packets, packets * 10)}})


# --- totals --------------------------------------------------------------------------------------------


def test_counting_begins_with_the_first_reading() -> None:
    traffic = Traffic()
    traffic.take(reading(100), holes(WEB))
    assert traffic.totals[WEB].passed == NOTHING
    traffic.take(reading(103), holes(WEB))
    assert traffic.totals[WEB].passed == Count(3, 30)


@pytest.mark.parametrize(
    ("values", "total"),
    [
        ([0, 5, 9], 9),
        ([0, 5, 5, 5], 5),
        ([0, 5, 2], 7),  # the element was replaced
        ([0, 5, None, 2], 7),  # it was gone for a while
        ([0, 5, None, 7], 12),
        ([0, 5, 0, 3], 8),
        ([None, 4], 4),  # it came after counting began
        ([0, 5, None, None], 5),
    ],
)
def test_a_total_never_falls_whatever_happens_to_the_element(values: list[int | None], total: int) -> None:
    traffic = Traffic()
    for value in values:
        traffic.take(reading(value), holes(WEB))
    assert traffic.totals[WEB].passed == Count(total, total * 10)


def test_packets_dropped_as_invalid_are_a_total_that_new_rules_do_not_set_back() -> None:
    traffic = Traffic()
    for rule, packets in ((1, 5), (1, 7), (2, 0), (2, 3)):
        traffic.take(Reading(invalid={("global", rule): Count(packets, packets * 10)}), {})
    assert traffic.invalid == Count(5, 50)


@given(st.lists(st.none() | st.integers(0, 50), min_size=1, max_size=30))
def test_a_total_is_everything_that_was_seen_to_be_counted(values: list[int | None]) -> None:
    traffic, expected, held = Traffic(), 0, values[0]
    for value in values:
        before = traffic.totals[WEB].passed.packets if WEB in traffic.totals else 0
        traffic.take(reading(value), holes(WEB))
        if value is not None:
            expected += value - held if held is not None and value >= held else value
        held = value
        assert before <= traffic.totals[WEB].passed.packets == expected


def test_every_element_of_every_pinhole_of_a_service_counts_for_it_and_nobody_else() -> None:
    pinholes = {
        KEY: hole(),
        "2001:db8::1 . tcp . 80": hole("2001:db8::1 . tcp . 80"),
        "192.0.2.9 . udp . 53": hole("192.0.2.9 . udp . 53", DNS),
    }
    traffic = Traffic()
    traffic.take(Reading(), pinholes)
    traffic.take(
        Reading(
            {
                "services6": {("2001:db8::1 . tcp . 80", b""): Count(1, 10)},
                "sources4": {(KEY, b"a"): Count(2, 20), (KEY, b"b"): Count(4, 40)},
                "services4": {
                    ("192.0.2.9 . udp . 53", b""): Count(8, 80),
                    ("198.51.100.1 . tcp . 1", b""): Count(99, 990),
                },
            }
        ),
        pinholes,
    )
    assert {name: total.passed for name, total in traffic.totals.items()} == {WEB: Count(7, 70), DNS: Count(8, 80)}


def test_drops_are_a_total_of_their_own_that_only_limited_services_have() -> None:
    traffic = Traffic()
    traffic.take(reading(2, name="dropped4"), holes(WEB, DNS))
    assert (traffic.totals[WEB].dropped, traffic.totals[DNS].dropped) == (NOTHING, None)
    traffic.take(reading(5, name="dropped4"), holes(WEB, DNS))
    traffic.take(reading(1, name="dropped4"), holes(WEB, DNS))
    assert traffic.totals[WEB].dropped == Count(4, 40)
    assert traffic.totals[WEB].passed == NOTHING


def test_drops_of_answers_are_a_total_of_their_own_and_those_of_redirected_packets_are_not() -> None:
    traffic = Traffic()
    for packets in (2, 5):
        names = ("dropped4", "dropped-dnat4", "dropped-egress4")
        traffic.take(Reading({name: {(KEY, b""): Count(packets, packets)} for name in names}), holes(WEB))
    assert (traffic.totals[WEB].dropped, traffic.totals[WEB].dropped_egress) == (Count(6, 6), Count(3, 3))


def test_drops_at_closed_ports_survive_a_refill_of_the_chain() -> None:
    traffic = Traffic()
    for packets, handle in ((100, 7), (104, 7), (3, 7), (105, 9)):
        traffic.take(Reading(closed={("pools4", handle): Count(packets, packets)}), {})
    traffic.take(Reading(), {})  # enable_dropall is off for a while
    traffic.take(Reading(closed={("pools4", 11): Count(2, 2), ("closed6", 12): Count(1, 1)}), {})
    assert traffic.closed == {4: Count(114, 114), 6: Count(1, 1)}


def test_drops_of_fragments_are_a_total_of_each_family() -> None:
    traffic = Traffic()
    for packets, handle in ((100, 7), (104, 7), (3, 9)):
        counts = {("fragments4", handle): Count(packets, 1), ("fragments4-packets", handle + 1): Count(packets, 1)}
        traffic.take(Reading(fragments={**counts, ("fragments6", 3): Count(5, 5)}), {})
    assert {version: count.packets for version, count in traffic.fragments.items()} == {4: 14, 6: 0}


# --- the cap -------------------------------------------------------------------------------------------


def test_over_the_cap_those_who_are_shown_stay_and_the_others_are_counted() -> None:
    traffic = Traffic(cap=2)
    traffic.take(Reading(), holes(WEB))
    traffic.take(reading(5), holes(WEB, MAIL, DNS))
    assert traffic.totals[WEB].passed.packets == 5
    assert set(traffic.totals) == {WEB, DNS}
    assert (traffic.left_out, traffic.dropped) == ({MAIL}, 1)
    traffic.take(reading(5), holes(WEB, MAIL, DNS))
    assert traffic.dropped == 1, "once for each Service that is left out"


def test_who_goes_makes_room_and_begins_anew_when_it_comes_back() -> None:
    traffic = Traffic(cap=1)
    traffic.take(reading(0), holes(WEB, MAIL))
    traffic.take(reading(0), holes(WEB))
    traffic.take(reading(5), holes(MAIL))
    assert (set(traffic.totals), traffic.left_out) == ({MAIL}, set())
    assert traffic.totals[MAIL].passed.packets == 5
    traffic.take(reading(9), holes(WEB))
    assert traffic.totals[WEB].passed.packets == 4


def test_a_cap_of_zero_shows_nobody_and_leaves_nobody_out() -> None:
    traffic = Traffic(cap=0)
    traffic.take(reading(1), holes(WEB, DNS))
    traffic.take(reading(2), holes(WEB, DNS))
    assert (traffic.totals, traffic.left_out, traffic.dropped) == ({}, set(), 0)


def test_a_cap_that_is_lowered_or_raised_holds_from_the_next_reading_on() -> None:
    traffic = Traffic()
    traffic.take(Reading(), holes(WEB, DNS, MAIL))
    traffic.cap = 1
    traffic.take(Reading(), holes(WEB, DNS, MAIL))
    assert (len(traffic.totals), traffic.dropped) == (1, 2)
    traffic.cap = 3
    traffic.take(Reading(), holes(WEB, DNS, MAIL))
    assert (len(traffic.totals), traffic.left_out) == (3, set())


# --- what the kernel counts ----------------------------------------------------------------------------

SHAPED = Settings(
    side(PUBLIC_NIC),
    enable_rateshape=True,
    cluster=AddressSet.of(parse_range(each) for each in ("172.30.254.0/24", "2001:db8:254::/64")),
)
UNHOOKED = replace(SHAPED, side=absent("pub0"))
UNSHAPED = replace(SHAPED, enable_rateshape=False)
BYTES4, PACKETS4 = "172.30.254.11", "172.30.254.12"
SLOW_BYTES = service("slow-bytes", BYTES4, limit="4 kbytes/week burst 1 kbytes")
SLOW_PACKETS = service(
    "slow-packets", PACKETS4, SERVICE6, limit="1/week burst 4 packets", sources=["0.0.0.0/0", "::/0"]
)
FREE = service("free", SERVICE4, ports=[*TCP80, ("UDP", 53)])


def pinholes_of(*services: Raw) -> Mapping[str, Pinhole]:
    return PinholeIndex([each for each in (parse_service(raw, None) for raw in services) if each], Filters()).pinholes


class Counted:
    """Our tables in a lab, and what is counted there."""

    def __init__(self, lab: Lab, *services: Raw) -> None:
        self.lab = lab
        self.traffic = Traffic()
        self.firewall = Firewall(lab)
        self.change(SHAPED, *services)
        self.read()

    def change(self, settings: Settings, *services: Raw) -> None:
        self.pinholes = pinholes_of(*services)
        self.firewall.change(ruleset(self.pinholes.values(), settings))

    def read(self) -> None:
        self.traffic.take(self.lab.router.call(counters.read), self.pinholes)

    def send(self, address: str, times: int) -> int:
        return len(self.lab.deliver([Probe("tcp", address, 80, length=1024)] * times))

    def passed(self, name: str) -> Count:
        self.read()
        return self.traffic.totals[Name("default", name)].passed

    def dropped(self, name: str) -> Count | None:
        self.read()
        return self.traffic.totals[Name("default", name)].dropped


@needs_root
def test_packets_that_pass_and_those_that_the_limit_drops_are_counted_by_service(lab: Lab) -> None:
    counted = Counted(lab, FREE, SLOW_BYTES, SLOW_PACKETS)
    assert counted.send(SERVICE4, 7) == 7
    assert counted.send(BYTES4, 20) == 5
    assert counted.send(PACKETS4, 20) == 4
    assert counted.send(SERVICE6, 20) == 4
    assert counted.passed("free") == Count(7, 7 * 1024)
    assert counted.passed("slow-bytes") == Count(5, 5 * 1024)
    assert counted.passed("slow-packets") == Count(8, 8 * 1024)
    assert (counted.dropped("free"), counted.dropped("slow-bytes")) == (None, Count(15, 15 * 1024))
    assert counted.dropped("slow-packets") == Count(32, 32 * 1024), "of both families"


@needs_root
def test_totals_go_on_when_elements_chains_and_tables_are_replaced(lab: Lab) -> None:
    counted = Counted(lab, FREE, SLOW_PACKETS)
    counted.send(SERVICE4, 3)
    counted.send(PACKETS4, 10)
    counted.send("172.30.254.99", 5)
    counted.read()
    # Another limit and other sources are other elements; a local chain refills chains.
    other = service("slow-packets", PACKETS4, limit="1/week burst 2 packets", sources=["0.0.0.0/1", "192.0.0.0/2"])
    counted.change(replace(SHAPED, enable_dropall=False), FREE, other)
    counted.change(replace(SHAPED, local_chain="\t\tudp dport 9 drop\n"), FREE, other)
    assert counted.send(PACKETS4, 10) == 2
    counted.send("172.30.254.99", 6)
    assert (counted.passed("slow-packets").packets, counted.dropped("slow-packets")) == (6, Count(14, 14 * 1024))
    assert counted.traffic.closed[4].packets == 11
    lab.router.nft("delete table inet nftsync\ndelete table netdev nftsync")
    counted.read()
    counted.firewall.holds = Ruleset()
    counted.change(SHAPED, FREE, other)
    counted.send(SERVICE4, 4)
    assert counted.passed("free").packets == 7


@needs_root
def test_a_flood_is_held_to_its_rate_and_what_is_over_it_is_counted(lab: Lab) -> None:
    counted = Counted(lab, service("fast", SERVICE4, ports=[("UDP", 80)], limit="1 mbytes/second burst 64 kbytes"))
    flood = flooded(lambda: lab.flood(SERVICE4, 80, seconds=1.0, settle=1.5), 2**20, 0.1)
    dropped = counted.dropped("fast")
    assert dropped is not None
    assert dropped.packets > flood.arrived_packets > 0
    passed = counted.passed("fast")
    assert passed.packets + dropped.packets >= flood.sent_packets
    assert passed.octets == passed.packets * 1400


@needs_root
@pytest.mark.parametrize(
    ("address", "gone", "version"),
    [("172.30.254.99", "198.51.100.8", 4), ("2001:db8:254::99", "2001:db8:113::8", 6)],
)
def test_packets_to_closed_ports_of_the_cluster_are_counted_by_family(
    lab: Lab, address: str, gone: str, version: int
) -> None:
    counted = Counted(lab, FREE)
    assert counted.send(address, 6) == 0
    assert counted.send("198.51.100.9", 6) == 0, "nobody's address"
    counted.read()
    assert counted.traffic.closed == {4: NOTHING, 6: NOTHING} | {version: Count(6, 6 * 1024)}
    lab.router.nft(f"add element inet nftsync closed{version} {{ {gone} . tcp . 80 }}")
    lab.route(gone)
    assert counted.send(gone, 5) == 0
    counted.read()
    assert counted.traffic.closed[version] == Count(11, 11 * 1024), "an endpoint that has left the pools counts, too"


def of_the_version_before(shown: Ruleset) -> Ruleset:
    """Without the sets that count what limits drop."""
    sets = {name: each for name, each in shown.tables[NETDEV].sets.items() if not name.startswith("dropped")}
    rules = "".join(
        f"\t\t{word} daddr . meta l4proto . th dport @limited{version}{suffix} drop\n"
        for version, word in ((4, "ip"), (6, "ip6"))
        for suffix in ("", "-packets")
    )
    chains = {**shown.tables[NETDEV].chains, OPERATOR_TC: Chain(rules)}
    limited = {name: members for name, members in shown.elements[NETDEV].items() if not name.startswith("dropped")}
    return Ruleset({**shown.tables, NETDEV: Table(sets, chains)}, {INET: shown.elements[INET], NETDEV: limited})


@needs_root
def test_tables_of_the_version_before_are_changed_in_place_and_keep_buckets_and_counters(lab: Lab) -> None:
    wanted = ruleset(pinholes_of(FREE, SLOW_BYTES, SLOW_PACKETS).values(), SHAPED)
    lab.router.nft(render(of_the_version_before(wanted)))
    counted = Counted.__new__(Counted)
    counted.lab, counted.traffic, counted.firewall = lab, Traffic(), Firewall(lab)
    assert (counted.send(SERVICE4, 7), counted.send(BYTES4, 20), counted.send(PACKETS4, 20)) == (7, 5, 4)
    text = transaction(counted.firewall.holds, wanted)
    shaper = [line for line in text.splitlines() if line.startswith(("add", "delete", "flush")) and " netdev " in line]
    keys = ", ".join(sorted(f"{each} . tcp . 80" for each in (BYTES4, PACKETS4)))
    assert not [line for line in shaper if line.startswith("delete ")]
    assert f"add element netdev nftsync dropped4 {{ {keys} }}" in shaper
    assert not [line for line in shaper if "element netdev nftsync limited" in line]
    counted.change(SHAPED, FREE, SLOW_BYTES, SLOW_PACKETS)
    counted.read()
    assert (counted.send(BYTES4, 20), counted.send(PACKETS4, 20)) == (0, 0), "a bucket is full again"
    assert counted.dropped("slow-bytes") == Count(20, 20 * 1024)
    assert lab.router.call(counters.read).counts["services4"][f"{SERVICE4} . tcp . 80", b""].packets == 7
    assert transaction(Ruleset(wanted.tables, counted.firewall.kernel.read().ruleset.elements), wanted) == ""


# --- reading -------------------------------------------------------------------------------------------


def test_every_element_is_read_under_its_pinhole_s_key(netns: Netns) -> None:
    raw = [
        service(
            f"s{number}", f"192.0.2.{number}", f"2001:db8::{number}", f"::192.0.2.{number}",
            ports=[("TCP", 80), ("UDP", 65535), ("SCTP", 1)], limit=limit, sources=sources,
        )
        for number, (limit, sources) in enumerate(
            [(None, []), ("5/second", ["10.0.0.0/8", "198.51.100.7/32", "::/0"]), ("1 kbytes/second", [])], start=1
        )
    ]  # fmt: skip
    shown = ruleset(pinholes_of(*raw).values(), UNHOOKED)
    netns.nft(render(shown))
    found = netns.run(counters.read)
    expected = {name: members for sets in shown.elements.values() for name, members in sets.items()}
    assert found.sizes == {name: len(expected.get(name, ())) for table in shown.tables.values() for name in table.sets}
    assert found.counts.keys() == {name for name in found.sizes if name.startswith(("services", "sources", "dropped"))}
    for name, members in found.counts.items():
        assert len(members) == len(expected.get(name, ()))
        assert {key for key, _ in members} == {" . ".join(key.split(" . ")[:3]) for key in expected.get(name, ())}
        assert set(members.values()) <= {NOTHING}
    assert {name: count for (name, _), count in found.closed.items()} == dict.fromkeys(
        ("closed4", "closed6", "pools4", "pools6"), NOTHING
    )
    assert {name: count for (name, _), count in found.fragments.items()} == dict.fromkeys(FRAGMENT_SETS, NOTHING)
    assert [(name, count) for (name, _), count in found.invalid.items()] == [("global", NOTHING)]


def test_counters_are_read_beside_another_statement_and_strange_elements_do_no_harm(netns: Netns) -> None:
    limit = "limit rate over 1/second burst 5 packets"
    netns.nft(render(Ruleset(tables(UNHOOKED))))
    netns.nft(
        f"add element inet nftsync services4 {{ {KEY} counter packets 7 bytes 700 }}\n"
        "add element inet nftsync services6 { 2001:db8::1 . icmp . 1 }\n"
        "add element inet nftsync sources4 { 192.0.2.0-192.0.2.9 . tcp . 1-1000 . 10.0.0.1-10.0.0.6 }\n"
        "flush chain inet nftsync operator-svc\nflush chain inet nftsync from-inside\n"
        "delete set inet nftsync sources6\n"
        "flush chain netdev nftsync operator-tc\ndelete set netdev nftsync dropped4\n"
        "delete set netdev nftsync dropped6\n"
        "add set netdev nftsync dropped4 { type ipv4_addr . inet_service; flags interval; }\n"
        "add element netdev nftsync dropped4 { 192.0.2.1 . 80, * }\n"
        f"add set netdev nftsync dropped6 {{ type ipv6_addr . inet_proto . inet_service; {limit} counter; }}\n"
        f"add element netdev nftsync dropped6 {{ 2001:db8::1 . tcp . 1 {limit} counter packets 3 bytes 9 }}\n"
    )
    found = netns.run(counters.read)
    assert found.counts["services4"] == {(KEY, b""): Count(7, 700)}
    assert set(found.counts["services6"]) == {("2001:db8::1 . 1 . 1", b"")}
    assert (len(found.counts["sources4"]), found.counts["sources6"], found.closed) == (1, {}, {})
    assert found.counts["dropped4"] == {}
    assert found.counts["dropped6"] == {("2001:db8::1 . tcp . 1", b""): Count(3, 9)}


def test_without_our_tables_nothing_is_counted(netns: Netns) -> None:
    found = netns.run(counters.read)
    assert not any(found.counts.values())
    assert not any(found.sizes.values())
    assert found.closed == {}


@needs_root
def test_a_reading_is_whole_or_there_is_none_while_elements_come_and_go() -> None:
    """Else an element that was missed once would be counted again from zero."""
    namespace, stop, changes = Namespace(), threading.Event(), 0
    kernel = namespace.call(Kernel)
    kept = {f"10.1.{n // 250}.{n % 250 + 1} . tcp . 80" for n in range(5000)}
    kernel.apply(render(Ruleset(tables(UNSHAPED), {INET: {"services4": dict.fromkeys(kept, "")}})))

    def change() -> None:
        nonlocal changes
        while not stop.is_set():
            for verb in ("add", "delete"):
                kernel.apply(f"{verb} element inet nftsync services4 {{ 192.0.2.1 . tcp . 1 }}")
                changes += 1
                stop.wait(0.02)

    whole = 0

    def is_read_whole() -> bool:
        nonlocal whole
        with suppress(DumpError):
            found = namespace.call(counters.read).counts["services4"]
            whole += 1
            assert {key for key, _ in found} >= kept
        return whole > 10 and changes > 20

    thread = threading.Thread(target=change)
    thread.start()
    try:
        assert eventually(is_read_whole), (whole, changes)
    finally:
        stop.set()
        thread.join()
        namespace.close()


def test_a_dump_that_is_always_interrupted_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def interrupted(*arguments: object, **_: object) -> Iterator[bytes]:
        asked.append(arguments)
        yield from ()
        raise DumpError(errno.EINTR)

    monkeypatch.setattr(netlink.Netlink, "messages", interrupted)
    for read in (counters.read, routes.read):
        asked.clear()
        with pytest.raises(DumpError, match=r"^the kernel's tables can't be read: Interrupted system call$"):
            read()
        assert 1 < len(asked) < 50


def test_what_the_kernel_refuses_is_one_error(netns: Netns) -> None:
    asked = b"\1\0\0\0" + netlink.name(1, "nowhere") + netlink.name(2, "x")  # NFT_MSG_GETSETELEM
    with pytest.raises(DumpError) as refused:
        list(netns.run(netlink.Netlink, 12).messages(10 << 8 | 13, asked))
    assert refused.value.number == errno.ENOENT


# --- routes --------------------------------------------------------------------------------------------

LEGAL = AddressSet.of(parse_range(each) for each in ("192.0.2.0/24", "2001:db8::/32"))


def opened(*addresses: str) -> dict[str, Pinhole]:
    return {each.key: each for each in (hole(f"{address} . tcp . 80") for address in addresses)}


@pytest.fixture
def routed(netns: Netns) -> Netns:
    netns.add_nics("pub0", "pub1")
    for command in (
        "link set lo up", "link set pub0 up", "link set pub1 up", "address add 198.51.100.1/24 dev pub0",
        "route add default via 198.51.100.2", "-6 route add default dev pub0",
        "route add 192.0.2.1/32 via 198.51.100.3", "route add 192.0.2.2/32 via 198.51.100.3",
        "route add blackhole 192.0.2.128/25", "route add 192.0.2.200/32 via 198.51.100.3 table 77",
        "route add 192.0.2.64/26 nexthop via 198.51.100.3 nexthop via 198.51.100.4",
        "route add 203.0.113.1/32 via 198.51.100.3", "-6 route add 2001:db8::1/128 dev pub0",
    ):  # fmt: skip
        netns.command("ip", *command.split())
    return netns


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("192.0.2.1", True),
        ("192.0.2.65", True),
        ("192.0.2.3", False),  # only by the default route
        ("192.0.2.129", False),  # only by a black hole
        ("192.0.2.200", True),  # more specific than the black hole, and in another table
        ("2001:db8::1", True),
        ("2001:db8::2", False),
    ],
)
def test_an_open_address_has_a_route_if_one_leads_on_that_is_not_the_default(
    routed: Netns,
    address: str,
    reached: bool,  # noqa: FBT001
) -> None:
    found = routed.run(routes.reachability, opened(address), None)
    assert found == Reachability(0 if reached else 1, None)


def test_host_routes_inside_the_pools_that_no_pinhole_uses_are_counted(routed: Netns) -> None:
    assert routed.run(routes.reachability, {}, LEGAL) == Reachability(0, 4)
    assert routed.run(routes.reachability, opened("192.0.2.1", "2001:db8::1"), LEGAL) == Reachability(0, 2)
    nobody = {KEY: replace(hole(), sources=())}
    assert routed.run(routes.reachability, nobody, LEGAL) == Reachability(0, 4), "it is open to nobody"


def test_of_too_many_routes_nothing_is_said(routed: Netns) -> None:
    found = routed.run(routes.read)
    assert found is not None
    count = sum(map(len, found.found.values()))
    assert routed.run(routes.read, count + 10) is not None
    assert routed.run(routes.read, 3) is None
    assert routed.run(routes.reachability, {}, LEGAL, 3) is None


@given(
    st.lists(st.tuples(st.integers(0, 32), st.integers(0, 2**32 - 1), st.booleans()), max_size=8),
    st.integers(0, 2**32 - 1),
)
def test_the_most_specific_route_decides(entries: list[tuple[int, int, bool]], address: int) -> None:
    found, expected = Routes(), dict[int, bool]()
    for length, network, forwards in entries:
        masked = network >> 32 - length << 32 - length
        found.add(4, length, masked, forwards=forwards)
        if length and address >> 32 - length == network >> 32 - length:
            expected[length] = expected.get(length, False) or forwards
    assert found.reach(4, address) == (expected[max(expected)] if expected else False)
