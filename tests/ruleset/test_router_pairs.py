"""Two routers, one for each direction: what passes with tracked pools, and with stateless ones."""

from __future__ import annotations

import itertools
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nftsync.config import Filters
from nftsync.kernel import counters
from nftsync.kernel.nft import Kernel
from nftsync.objects.address import AddressSet, parse_range
from nftsync.objects.nft import Nics
from nftsync.objects.service import parse_service
from nftsync.policy.pinholes import PinholeIndex
from nftsync.policy.public import PublicSide
from nftsync.ruleset.model import Ruleset
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset
from nftsync.ruleset.text import transaction
from tests.lab.lab import SERVICES, TcpServer
from tests.lab.namespace import Namespace
from tests.lab.pair import CLIENT, HOST, LAN, NODE, Pair
from tests.labtools import Raw, answers, needs_root, service

pytestmark = needs_root

WEB = ("172.30.254.1", "2001:db8:254::1")
NARROW = ("172.30.254.2", "2001:db8:254::2")  # open to others than the client
EMPTY = ("172.30.254.99", "2001:db8:254::99")  # routed to the node, without a pinhole
PORTS = (("TCP", 80), ("UDP", 80), ("SCTP", 80))
OPEN = service("web", *WEB, ports=PORTS)
OTHERS = service("narrow", *NARROW, ports=PORTS, sources=["192.0.2.0/24", "2001:db8:999::/48"])
BOTH = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
SOON = 0.6  # seconds: packets over veth pairs take a thousandth of it
ERRORS = {
    0: {"fragmentation needed": (3, 4), "port unreachable": (3, 3), "time exceeded": (11, 0), "parameter": (12, 0)},
    1: {"packet too big": (2, 0), "port unreachable": (1, 4), "time exceeded": (3, 0), "parameter": (4, 0)},
}
EVERY_ERROR = [(family, name) for family, names in ERRORS.items() for name in names]


class Firewalls:
    """Our tables in both routers, changed in place."""

    def __init__(self, pair: Pair) -> None:
        self.kernels = [router.call(Kernel) for router in pair.routers]
        index = pair.routers[0].call(socket.if_nametoindex, "public0")
        self._side = replace(PublicSide.unseen(Nics(("public0",))), indices=frozenset({index}))
        self.holds = Ruleset()

    def load(
        self,
        *services: Raw,
        stateless: bool,
        local_chain: str = "",
        pools: Sequence[str] = SERVICES,
        dropall: bool = True,
    ) -> None:
        parsed = [each for raw in services if (each := parse_service(raw, None))]
        pinholes = PinholeIndex(parsed, Filters()).pinholes.values()
        settings = Settings(
            self._side,
            enable_dropall=dropall,
            local_chain=local_chain,
            cluster=AddressSet.of(map(parse_range, pools)),
            stateless=stateless,
        )
        after = ruleset(pinholes, settings)
        for kernel in self.kernels:
            kernel.apply(transaction(self.holds, after))
        self.holds = after


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Pair, Firewalls]]:
    with Pair() as made:
        made.node.ip(*(f"address add {address} dev lo" for address in (*WEB, *NARROW, *EMPTY)))
        yield made, Firewalls(made)


@pytest.fixture
def pair(shared: tuple[Pair, Firewalls]) -> Pair:
    """Each test starts without rules and tracked connections; each direction has its own router."""
    pair, firewalls = shared
    for router in pair.routers:
        router.nft("flush ruleset")
    pair.node.nft("flush ruleset")
    firewalls.holds = Ruleset()
    pair.inwards(0)
    pair.outwards(1)
    return pair


@pytest.fixture
def firewalls(shared: tuple[Pair, Firewalls], pair: Pair) -> Firewalls:
    return shared[1]


@pytest.fixture
def server(pair: Pair) -> Iterator[TcpServer]:
    with TcpServer(pair.node, 80) as made:
        yield made


def tracked(router: Namespace) -> int:
    """The number of connections that a router tracks."""
    return int(router.call(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text))


def invalid(router: Namespace) -> int:
    return sum(count.packets for count in router.call(counters.read).invalid.values())


def connected(origin: Namespace, address: str, port: int = 80, *, source: str = "", seconds: float = 3.0) -> bool:
    """Whether a connection opens and its bytes come back."""
    try:
        with opened(origin, address, port, source=source, seconds=seconds) as connection:
            return answers(connection, seconds)
    except TimeoutError:
        return False


def opened(origin: Namespace, address: str, port: int = 80, *, source: str = "", seconds: float = 3.0) -> socket.socket:
    bound = (source, 0) if source else None
    return origin.call(socket.create_connection, (address, port), seconds, bound)


def datagram(origin: Namespace, address: str, source: str = "", port: int = 0) -> socket.socket:
    """A UDP socket that sends to an address."""
    made = origin.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((source, port))
    return made


def received(ear: socket.socket, seconds: float = SOON) -> bytes:
    """The next packet; b"" if none comes."""
    return ear.recv(70_000) if select.select([ear], [], [], seconds)[0] else b""


# --- an asymmetric pair -------------------------------------------------------------------------------


@BOTH
def test_a_tracked_answer_is_dropped_and_counted_if_its_connection_came_by_the_other_router(
    pair: Pair, firewalls: Firewalls, server: TcpServer, family: int
) -> None:
    firewalls.load(OPEN, stateless=False)
    assert not connected(pair.client, WEB[family], seconds=1.5)
    assert invalid(pair.routers[1]) > 0
    assert invalid(pair.routers[0]) == 0
    pair.outwards(0)
    assert connected(pair.client, WEB[family])


@BOTH
def test_a_stateless_pair_serves_connections_whichever_router_each_packet_takes_and_tracks_none(
    pair: Pair, firewalls: Firewalls, server: TcpServer, family: int
) -> None:
    firewalls.load(OPEN, stateless=True)
    before = [tracked(router) for router in pair.routers]
    with opened(pair.client, WEB[family]) as connection:
        for inwards, outwards in ((0, 1), (1, 0), (1, 1), (0, 0), (1, 0)):
            pair.inwards(inwards)
            pair.outwards(outwards)
            assert answers(connection), (inwards, outwards)
    assert connected(pair.host, WEB[family]), "an inside machine"
    assert connected(pair.routers[0], WEB[family]), "the router itself"
    assert [tracked(router) for router in pair.routers] == before


@BOTH
def test_closing_a_stateless_pinhole_ends_its_connections_in_both_directions_at_once(
    pair: Pair, firewalls: Firewalls, family: int
) -> None:
    other = service("other", EMPTY[family])
    firewalls.load(OPEN, other, stateless=True)
    listener = pair.node.call(
        socket.create_server, (WEB[family], 80), family=socket.AF_INET6 if family else socket.AF_INET
    )
    with closing(listener), opened(pair.client, WEB[family]) as client:
        server, _ = listener.accept()
        with closing(server):
            server.sendall(b"hello")
            assert received(client) == b"hello"
            firewalls.load(other, stateless=True)
            server.sendall(b"server")
            client.sendall(b"client")
            assert received(client, 1.5) == b""
            assert received(server) == b""


@BOTH
def test_source_ranges_hold_for_stateless_answers_too(pair: Pair, firewalls: Firewalls, family: int) -> None:
    firewalls.load(OPEN, OTHERS, stateless=True)
    with (
        datagram(pair.client, CLIENT[family], CLIENT[family]) as client,
        datagram(pair.node, WEB[family], WEB[family], 80) as web,
        datagram(pair.node, NARROW[family], NARROW[family], 80) as narrow,
        datagram(pair.node, WEB[family], WEB[family], 81) as closed,
    ):
        for sender, passes in ((web, True), (narrow, False), (closed, False)):
            sender.sendto(b"answer", client.getsockname()[:2])
            assert bool(received(client)) is passes
        for receiver, passes in ((web, True), (narrow, False), (closed, False)):
            client.sendto(b"question", receiver.getsockname()[:2])
            assert bool(received(receiver)) is passes


@BOTH
def test_fragments_pass_whole_where_nothing_is_tracked(pair: Pair, firewalls: Firewalls, family: int) -> None:
    firewalls.load(OPEN, stateless=True)
    content = bytes(range(256)) * 100
    with (
        datagram(pair.client, CLIENT[family], CLIENT[family]) as client,
        datagram(pair.node, WEB[family], WEB[family], 80) as web,
        datagram(pair.node, WEB[family], WEB[family], 81) as closed,
    ):
        before = [tracked(router) for router in pair.routers]
        client.sendto(content, (WEB[family], 80))
        assert received(web, 3.0) == content
        web.sendto(content, client.getsockname()[:2])
        assert received(client, 3.0) == content
        client.sendto(content, (WEB[family], 81))
        assert received(closed) == b""
        assert [tracked(router) for router in pair.routers] == before


@BOTH
def test_a_syn_flood_leaves_nothing_to_track(pair: Pair, firewalls: Firewalls, family: int) -> None:
    pair.node.nft("table inet deaf { chain input { type filter hook input priority 0; tcp dport 80 drop; }; }")
    for stateless in (True, False):
        firewalls.load(OPEN, stateless=stateless)
        before = tracked(pair.routers[0])
        for port in range(20_000, 21_000):
            with pair.client.socket(socket.AF_INET6 if family else socket.AF_INET, socket.SOCK_STREAM) as client:
                client.bind((CLIENT[family], port))
                client.setblocking(False)
                client.connect_ex((WEB[family], 80))
        assert tracked(pair.routers[0]) - before == (0 if stateless else 1000)


@BOTH
def test_a_stateless_pools_address_opens_nothing_for_a_packet_that_pretends_to_come_from_there(
    pair: Pair, firewalls: Firewalls, family: int
) -> None:
    """From outside, with a pinhole's address and port as its source, to a node, to the router, to an inside host."""
    pair.client.ip(f"address add {WEB[family]} dev lo")
    try:
        firewalls.load(OPEN, stateless=True)
        targets = ((pair.node, NODE[family]), (pair.routers[0], LAN.router[family]), (pair.host, HOST[family]))
        with datagram(pair.client, WEB[family], WEB[family], 80) as liar:
            for namespace, address in targets:
                with datagram(namespace, address, address, 5000) as ear:
                    liar.sendto(b"answer", (address, 5000))
                    assert received(ear) == b"", address
    finally:
        pair.client.ip(f"address del {WEB[family]} dev lo")


@BOTH
def test_what_is_not_of_a_pool_stays_tracked(pair: Pair, firewalls: Firewalls, family: int) -> None:
    """The node's own connections, and a Service outside of the pools."""
    pair.outwards(0)
    pools = [network for network in SERVICES if ":" in network] if family == 0 else [SERVICES[0]]
    firewalls.load(OPEN, stateless=True, pools=pools)
    with TcpServer(pair.client, 7000), TcpServer(pair.node, 80), TcpServer(pair.node, 10250):
        before = tracked(pair.routers[0])
        assert connected(pair.node, CLIENT[family], 7000)
        assert connected(pair.client, WEB[family])
        assert tracked(pair.routers[0]) == before + 2
        assert not connected(pair.client, NODE[family], 10250, seconds=1.0)


# --- connections that the cluster opens from a pool's address ----------------------------------------------


@BOTH
def test_what_the_cluster_opens_from_a_pools_address_goes_out_only_with_tracking_or_rules_of_your_own(
    pair: Pair, firewalls: Firewalls, family: int
) -> None:
    pair.outwards(0)
    word = "ip6" if family else "ip"
    own = (
        f'\t\tiifname "cluster0" {word} saddr {EMPTY[family]} tcp dport 7000 accept\n'
        f'\t\tiifname "public0" {word} daddr {EMPTY[family]} tcp sport 7000 tcp flags & (syn | ack) != syn accept\n'
    )
    with TcpServer(pair.client, 7000):
        for source in (WEB[family], EMPTY[family]):
            firewalls.load(OPEN, stateless=False)
            assert connected(pair.node, CLIENT[family], 7000, source=source)
            firewalls.load(OPEN, stateless=True)
            assert not connected(pair.node, CLIENT[family], 7000, source=source, seconds=1.0)
        firewalls.load(OPEN, stateless=True, local_chain=own)
        assert connected(pair.node, CLIENT[family], 7000, source=EMPTY[family])
        assert not connected(pair.client, EMPTY[family], seconds=1.0)
        firewalls.load(OPEN, stateless=True)
        pair.node.nft(
            "table inet nat { chain postrouting { type nat hook postrouting priority 100; "
            f"{word} saddr {SERVICES[family]} snat {word} to {NODE[family]}; }}; }}"
        )
        assert connected(pair.node, CLIENT[family], 7000, source=WEB[family]), "masqueraded to the node's address"
        with TcpServer(pair.node, 80):
            assert connected(pair.client, WEB[family])


# --- ICMP ---------------------------------------------------------------------------------------------


_serials = itertools.count(1)


def quoted(source: str, destination: str, protocol: int, sport: int, dport: int) -> bytes:
    """The packet that an ICMP error quotes: its IP header and eight more bytes, the last four of which are unique."""
    ports = struct.pack("!HHI", sport, dport, next(_serials))
    ends = ip_address(source).packed + ip_address(destination).packed
    if len(ends) == 32:
        return struct.pack("!IHBB", 6 << 28, 1000, protocol, 64) + ends + ports
    return struct.pack("!BBHHHBBH", 0x45, 0, 1000, 0, 0x4000, 64, protocol, 0) + ends + ports


def icmp(family: int, kind: tuple[int, int], rest: bytes) -> bytes:
    """An ICMP message; the kernel adds the checksum of an ICMPv6 one."""
    content = struct.pack("!BBHI", *kind, 0, 1280 if kind in ((3, 4), (2, 0)) else 0) + rest
    if family:
        return content
    value = -int.from_bytes(content + bytes(len(content) % 2), "big") % 0xFFFF
    return content[:2] + struct.pack("!H", value or 0xFFFF) + content[4:]


Sent = tuple[str, str, bytes]  # source, destination, ICMP message


def passing(origin: Namespace, target: Namespace, messages: Sequence[Sent]) -> list[bool]:
    """Of each ICMP message, whether it arrives. The last one has to: none comes after it."""
    family = ":" in messages[0][1]
    kind = (socket.AF_INET6, socket.SOCK_RAW, 58) if family else (socket.AF_INET, socket.SOCK_RAW, 1)
    heard = set[bytes]()
    with closing(target.socket(*kind)) as ear:
        for source, destination, message in messages:
            with closing(origin.socket(*kind)) as sender:
                sender.bind((source, 0))
                sender.sendto(message, (destination, 0))
        while messages[-1][2][8:] not in heard and (part := received(ear, 5.0)):
            heard.add(part[-len(messages[-1][2]) + 8 :])
        while part := received(ear, 0.05):
            heard.add(part[-len(messages[-1][2]) + 8 :])
    assert messages[-1][2][8:] in heard, "the last one"
    return [message[8:] in heard for _, _, message in messages]


@pytest.mark.parametrize("stateless", [False, True], ids=["tracked", "stateless"])
@pytest.mark.parametrize(("family", "name"), EVERY_ERROR)
def test_an_icmp_error_passes_if_the_packet_that_it_quotes_is_a_pinholes(
    pair: Pair, firewalls: Firewalls, family: int, name: str, *, stateless: bool
) -> None:
    """This router has seen no packet of these connections."""
    firewalls.load(OPEN, OTHERS, stateless=stateless)
    client, node, kind = CLIENT[family], NODE[family], ERRORS[family][name]
    web, narrow, empty = WEB[family], NARROW[family], EMPTY[family]
    inwards = [
        ("another port", web, quoted(web, client, 6, 81, 4), False),
        ("another protocol", web, quoted(web, client, 47, 80, 4), False),
        ("another address", empty, quoted(empty, client, 6, 80, 4), False),
        ("the node's", node, quoted(node, client, 6, 80, 4), False),
        ("a packet to the Service", web, quoted(client, web, 6, 4, 80), False),
        ("a packet to the Service, to a node", node, quoted(node, web, 6, 4, 80), False),
        ("of UDP", web, quoted(web, client, 17, 80, 4), True),
        ("of a Service with source ranges", narrow, quoted(narrow, client, 132, 80, 4), True),
        ("the Service's packet", web, quoted(web, client, 6, 80, 4), True),
    ]
    sent = [(client, to, icmp(family, kind, quote)) for _, to, quote, _ in inwards]
    expected = {what: passes for what, _, _, passes in inwards}
    assert dict(zip(expected, passing(pair.client, pair.node, sent), strict=True)) == expected
    outwards = [
        ("another port", web, quoted(client, web, 6, 4, 81), False),
        ("another port, from a node", node, quoted(client, web, 6, 4, 81), False),
        ("another address", empty, quoted(client, empty, 6, 4, 80), False),
        ("from a node", node, quoted(client, web, 6, 4, 80), True),
        ("from the Service", web, quoted(client, web, 17, 4, 80), True),
    ]
    sent = [(source, client, icmp(family, kind, quote)) for _, source, quote, _ in outwards]
    expected = {what: passes for what, _, _, passes in outwards}
    assert dict(zip(expected, passing(pair.node, pair.client, sent), strict=True)) == expected


@BOTH
def test_an_icmp_error_about_nothing_open_is_counted_as_invalid(pair: Pair, firewalls: Firewalls, family: int) -> None:
    firewalls.load(OPEN, stateless=False)
    client, empty, web = CLIENT[family], EMPTY[family], WEB[family]
    kind = ERRORS[family]["port unreachable"]
    sent = [
        (client, empty, icmp(family, kind, quoted(empty, client, 6, 80, 4))),
        (client, web, icmp(family, kind, quoted(web, client, 6, 80, 4))),
    ]
    assert passing(pair.client, pair.node, sent) == [False, True]
    assert invalid(pair.routers[0]) == 1


@BOTH
def test_the_router_tells_a_stateless_service_the_mtu_of_its_public_link(
    pair: Pair, firewalls: Firewalls, server: TcpServer, family: int
) -> None:
    firewalls.load(OPEN, stateless=True)
    try:
        for router in pair.routers:
            router.ip("link set public0 mtu 1400")
        with opened(pair.client, WEB[family]) as connection:
            connection.sendall(bytes(100_000))
            left = 100_000
            while left and (part := received(connection, 3.0)):
                left -= len(part)
            assert left == 0
    finally:
        for router in pair.routers:
            router.ip("link set public0 mtu 1500")


@BOTH
def test_a_ping_of_a_stateless_pool_passes_and_no_other_icmp_does(
    pair: Pair, firewalls: Firewalls, family: int
) -> None:
    firewalls.load(OPEN, stateless=True)
    request, reply = (128, 129) if family else (8, 0)
    other = 140 if family else 13  # a node information reply; a timestamp
    client, empty = CLIENT[family], EMPTY[family]
    kinds = {kind: icmp(family, (kind, 0), b"a ping of %4d bytes" % kind) for kind in (request, reply, other)}
    inwards = [(client, empty, kinds[kind]) for kind in (reply, other, request)]
    assert passing(pair.client, pair.node, inwards) == [False, False, True]
    outwards = [(empty, client, kinds[kind]) for kind in (request, other, reply)]
    assert passing(pair.node, pair.client, outwards) == [False, False, True]
