"""What the ruleset does to real packets: every probe's fate is that which an independent oracle tells."""

from __future__ import annotations

import itertools
import random
import select
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

import pytest

from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset
from tests.lab.lab import CLIENT, CLUSTER, NODE, PUBLIC, Lab, Origin, Probe, Protocol, TcpServer
from tests.labtools import PATIENCE, SERVICE4, SERVICE6, Firewall, Raw, flooded, needs_root, nft, packets, service

pytestmark = needs_root

KBYTE = 1024
INSIDE4, OUTSIDE4 = "203.0.113.7", "192.0.2.7"
INSIDE6, OUTSIDE6 = "2001:db8:113::7", "2001:db8:999::7"
NEIGHBOUR4, NEIGHBOUR6 = "172.30.254.2", "2001:db8:254::2"  # have Services too
EMPTY4, EMPTY6 = "172.30.254.99", "2001:db8:254::99"  # routed to the cluster, but no Service has them
ROUTER = (*map(str, PUBLIC), *map(str, CLUSTER))
TRANSPORTS: tuple[Protocol, ...] = ("tcp", "udp", "sctp")
KINDS: tuple[Protocol, ...] = (*TRANSPORTS, "icmp")
SWITCHES = ("enable_bgp", "enable_ssh", "enable_rateshape", "enable_dropall")


@dataclass(frozen=True)
class World:
    """Some objects, and what they mean, worked out from the objects themselves and from none of nftsync's code."""

    services: Sequence[Raw]
    switches: dict[str, bool] = field(default_factory=dict)
    local: tuple[tuple[str, int, bool], ...] = ()  # the local chain's rules: protocol, port, whether it is accepted

    @property
    def local_chain(self) -> str:
        words = {True: "accept", False: "drop"}
        return "".join(f"{protocol} dport {port} {words[accepted]}\n" for protocol, port, accepted in self.local)

    def passes(self, probe: Probe, origin: Origin = "client") -> bool:
        for protocol, port, accepted in self.local:
            if (protocol, port) == (probe.protocol, probe.port):
                return accepted
        if probe.protocol == "icmp" or origin == "node" or not self.switches.get("enable_dropall", True):
            return True
        if probe.destination in ROUTER:
            return (probe.protocol == "tcp") and (
                (probe.port == 22 and self.switches.get("enable_ssh", True))
                or (probe.port == 179 and self.switches.get("enable_bgp", True))
            )
        return any(self._opens(raw, probe) for raw in self.services)

    def _opens(self, raw: Raw, probe: Probe) -> bool:
        spec = raw["spec"]
        if spec["type"] != "LoadBalancer" or {"ip": probe.destination} not in raw["status"]["loadBalancer"]["ingress"]:
            return False
        if not any((port["protocol"].lower(), port["port"]) == (probe.protocol, probe.port) for port in spec["ports"]):
            return False
        source = ip_address(probe.source or str(CLIENT[":" in probe.destination]))
        ranges = spec["loadBalancerSourceRanges"]
        return not ranges or any(source in ip_network(each) for each in ranges)

    def load(self, firewall: Firewall) -> None:
        firewall.load(self.services, nft(**self.switches), self.local_chain)


def fates(lab: Lab, probes: Sequence[Probe], origin: Origin = "client") -> list[bool]:
    """Of each probe, whether it arrived."""
    arrived = {id(probe) for probe in lab.deliver(probes, origin)}
    return [id(probe) in arrived for probe in probes]


def surprises(lab: Lab, world: World, probes: Sequence[Probe], origin: Origin = "client") -> list[str]:
    """Every probe whose fate is not what the oracle says."""
    return [
        f"{probe} {'arrived' if arrived else 'was dropped'}"
        for probe, arrived in zip(probes, fates(lab, probes, origin), strict=True)
        if arrived != world.passes(probe, origin)
    ]


EVERY_PORT = tuple((protocol, 80) for protocol in ("TCP", "UDP", "SCTP"))
PLAIN = World(
    [
        service("web", SERVICE4, SERVICE6, ports=EVERY_PORT),
        service("dns", NEIGHBOUR4, NEIGHBOUR6, ports=[("UDP", 53), ("TCP", 53)]),
    ]
)


@pytest.mark.parametrize("destination", [SERVICE4, SERVICE6])
@pytest.mark.parametrize("protocol", TRANSPORTS)
def test_an_open_port_takes_packets_and_the_ports_beside_it_do_not(
    lab: Lab, firewall: Firewall, protocol: Protocol, destination: str
) -> None:
    PLAIN.load(firewall)
    ports = [80, 79, 81, 22, 179, 1, 65535, 8080, 30080]  # the last two: its targetPort and nodePort
    assert fates(lab, [Probe(protocol, destination, port) for port in ports]) == [True] + [False] * 8


@pytest.mark.parametrize(("address", "empty"), [(NEIGHBOUR4, EMPTY4), (NEIGHBOUR6, EMPTY6)])
def test_a_port_is_open_for_its_own_protocol_and_its_own_address_alone(
    lab: Lab, firewall: Firewall, address: str, empty: str
) -> None:
    PLAIN.load(firewall)
    assert fates(lab, [Probe(kind, address, 53) for kind in KINDS]) == [True, True, False, True]
    assert fates(lab, [Probe(kind, empty, 53) for kind in KINDS]) == [False, False, False, True]


@pytest.mark.parametrize("protocol", TRANSPORTS)
def test_a_packet_from_source_port_53_or_20_is_no_better_than_another(
    lab: Lab, firewall: Firewall, protocol: Protocol
) -> None:
    PLAIN.load(firewall)
    targets = [(SERVICE4, 81), (SERVICE6, 81), (EMPTY4, 53), *((own, port) for own in ROUTER for port in (53, 9469))]
    spoofed = [Probe(protocol, address, port, sport=sport) for address, port in targets for sport in (53, 20, 179, 22)]
    assert fates(lab, spoofed) == [False] * len(spoofed)


@pytest.mark.parametrize(
    ("ranges", "inside", "outside"),
    [
        (["203.0.113.0/24", "2001:db8:113::/48"], [INSIDE4, INSIDE6], [OUTSIDE4, OUTSIDE6, None]),
        (["203.0.113.0/24"], [INSIDE4], [OUTSIDE4, INSIDE6, OUTSIDE6]),
        (["2001:db8:113::/48"], [INSIDE6], [INSIDE4, OUTSIDE4, OUTSIDE6]),
        ([f"{INSIDE4}/32", f"{INSIDE6}/128"], [INSIDE4, INSIDE6], ["203.0.113.6", "203.0.113.8", "2001:db8:113::8"]),
        (
            ["203.0.113.0/30", "203.0.113.8/29"],
            ["203.0.113.0", "203.0.113.3", "203.0.113.15"],
            ["203.0.113.4", INSIDE4, INSIDE6],
        ),
        (["0.0.0.0/0"], [INSIDE4, OUTSIDE4], [INSIDE6, OUTSIDE6]),
        ([" 203.0.113.9/24 ", "203.0.113.0/25", "0203.0.113.0/24"], [INSIDE4], [OUTSIDE4, INSIDE6]),
        (["nonsense"], [], [INSIDE4, INSIDE6, OUTSIDE4]),
        (["nonsense", "203.0.113.0/24"], [INSIDE4], [OUTSIDE4, INSIDE6]),
    ],
)
def test_only_the_source_ranges_of_a_service_pass_and_a_bad_range_opens_nothing(
    lab: Lab, firewall: Firewall, ranges: list[str], inside: list[str], outside: list[str | None]
) -> None:
    firewall.load([service("narrow", SERVICE4, SERVICE6, ports=EVERY_PORT, sources=ranges)], nft())

    def probes(sources: Sequence[str | None]) -> list[Probe]:
        return [
            Probe(protocol, SERVICE6 if ":" in (source or "") else SERVICE4, 80, source=source)
            for source in sources
            for protocol in TRANSPORTS
        ]

    assert fates(lab, probes(inside)) == [True] * len(inside) * 3
    assert fates(lab, probes(outside)) == [False] * len(outside) * 3


def test_a_service_that_is_narrowed_and_widened_again_lets_in_who_it_names_at_every_step(
    lab: Lab, firewall: Firewall
) -> None:
    both = ["192.0.2.0/24", "203.0.113.0/24"]
    steps: tuple[list[str], ...] = ([], ["203.0.113.0/24"], ["203.0.113.0/28"], ["192.0.2.0/24"], both, [])
    for ranges in steps:
        world = World([service("web", SERVICE4, sources=ranges)])
        world.load(firewall)
        probes = [Probe("tcp", SERVICE4, 80, source=source) for source in (INSIDE4, "203.0.113.200", OUTSIDE4, None)]
        assert surprises(lab, world, probes) == [], ranges


@pytest.mark.parametrize("values", itertools.product((True, False), repeat=4))
def test_each_switch_opens_what_it_names_on_the_router_and_nothing_else(
    lab: Lab, firewall: Firewall, values: tuple[bool, ...]
) -> None:
    world = World(PLAIN.services, dict(zip(SWITCHES, values, strict=True)))
    world.load(firewall)
    router = [Probe(kind, own, port) for own in ROUTER for port in (22, 179, 53, 80, 9469) for kind in KINDS]
    through = [
        Probe(kind, address, port)
        for address in (SERVICE4, SERVICE6, EMPTY4)
        for port in (22, 80, 179)
        for kind in KINDS
    ]
    assert surprises(lab, world, router + through) == []


def test_by_default_ssh_and_bgp_of_the_router_are_open_and_everything_is_dropped_else(
    lab: Lab, firewall: Firewall
) -> None:
    firewall.load([], nft())
    own = [Probe("tcp", str(PUBLIC[0]), port) for port in (22, 179, 80)] + [Probe("udp", str(PUBLIC[0]), 22)]
    assert fates(lab, own) == [True, True, False, False]


def test_the_cluster_side_may_begin_whatever_it_likes_and_gets_its_answers(lab: Lab, firewall: Firewall) -> None:
    PLAIN.load(firewall)
    probes = [
        Probe(protocol, str(destination), port)
        for protocol in KINDS
        for destination in (*CLIENT, *PUBLIC, *CLUSTER)
        for port in (22, 53, 80, 9469)
    ]
    assert surprises(lab, PLAIN, probes, "node") == []
    with (
        TcpServer(lab.client, 7000),
        lab.node.call(socket.create_connection, (str(CLIENT[0]), 7000), 3.0) as connection,
    ):
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"


def test_an_answer_passes_only_while_somebody_inside_has_asked(lab: Lab, firewall: Firewall) -> None:
    PLAIN.load(firewall)
    answer = Probe("udp", str(NODE[0]), 4000, sport=53)
    assert not lab.arrives("udp", str(NODE[0]), 4000, sport=53)
    assert lab.arrives("udp", str(CLIENT[0]), 53, sport=4000, origin="node")
    assert lab.deliver([answer]) == [answer]
    assert not lab.arrives("udp", str(NODE[0]), 4001, sport=53)


@pytest.mark.parametrize("nodes_own", [str(NODE[0]), str(NODE[1])])
def test_the_nodes_own_ports_are_closed_from_outside(lab: Lab, firewall: Firewall, nodes_own: str) -> None:
    PLAIN.load(firewall)
    probes = [
        Probe(protocol, nodes_own, port)
        for protocol in TRANSPORTS
        for port in (22, 53, 80, 6443, 8080, 10250, 30053, 30080)
    ]
    assert fates(lab, probes) == [False] * len(probes)


def test_the_local_chain_comes_first_for_packets_to_the_router_and_through_it(lab: Lab, firewall: Firewall) -> None:
    local = (("tcp", 80, False), ("udp", 7, True), ("tcp", 22, False), ("tcp", 9469, True))
    world = World(PLAIN.services, {}, local)
    world.load(firewall)
    addresses = (SERVICE4, SERVICE6, EMPTY4, *map(str, PUBLIC))
    probes = [
        Probe(protocol, address, port)
        for protocol in TRANSPORTS
        for address in addresses
        for port in (7, 22, 80, 179, 9469)
    ]
    assert surprises(lab, world, probes) == []
    assert fates(lab, [
        Probe("tcp", SERVICE4, 80), Probe("udp", str(PUBLIC[0]), 7), Probe("tcp", str(PUBLIC[0]), 22),
    ]) == [
        False, True, False,
    ]  # fmt: skip
    PLAIN.load(firewall)
    assert surprises(lab, PLAIN, probes) == []


def test_without_a_known_public_nic_every_side_counts_as_public(lab: Lab, firewall: Firewall) -> None:
    firewall.change(ruleset([], Settings()))
    assert not lab.arrives("tcp", SERVICE4, 80)
    assert not lab.arrives("tcp", str(CLIENT[0]), 80, origin="node")
    assert lab.arrives("tcp", str(PUBLIC[0]), 22)


def test_a_service_counts_the_packets_that_it_let_in(lab: Lab, firewall: Firewall) -> None:
    firewall.load([service("web", SERVICE4), service("own", NEIGHBOUR4, sources=["198.51.100.0/24"])], nft())
    lab.deliver(
        [Probe("tcp", SERVICE4, 80)] * 7 + [Probe("tcp", SERVICE4, 81)] * 5 + [Probe("tcp", NEIGHBOUR4, 80)] * 3
    )
    assert packets(lab, "services4", f"{SERVICE4} . tcp . 80") == 7
    assert "counter packets 3 " in lab.router.run(["nft", "list", "set", "inet", "nftsync", "sources4"]).stdout


# --- limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [SERVICE4, SERVICE6])
@pytest.mark.parametrize("protocol", TRANSPORTS)
def test_a_limit_in_bytes_lets_its_rate_and_burst_pass(
    lab: Lab, firewall: Firewall, protocol: Protocol, address: str
) -> None:
    firewall.load([service("slow", address, ports=EVERY_PORT, limit="10 kbytes/hour burst 5 kbytes")], nft())
    assert len(lab.deliver([Probe(protocol, address, 80, length=KBYTE)] * 40)) == 15


@pytest.mark.parametrize("address", [SERVICE4, SERVICE6])
@pytest.mark.parametrize("protocol", TRANSPORTS)
def test_a_limit_in_packets_lets_its_burst_pass_whatever_their_length(
    lab: Lab, firewall: Firewall, protocol: Protocol, address: str
) -> None:
    firewall.load([service("slow", address, ports=EVERY_PORT, limit="1/week burst 9 packets")], nft())
    mixed = [Probe(protocol, address, 80, length=length) for length in (100, 1400)] * 20
    assert len(lab.deliver(mixed)) == 9


def test_each_port_address_and_protocol_has_a_bucket_of_its_own(lab: Lab, firewall: Firewall) -> None:
    ports = [("TCP", 80), ("TCP", 81), ("UDP", 80)]
    firewall.load([
        service("bytes", SERVICE4, SERVICE6, ports=ports, limit="4 kbytes/week burst 1 kbytes"),
        service("packets", NEIGHBOUR4, NEIGHBOUR6, ports=ports, limit="1/week burst 3 packets"),
        service("free", "172.30.254.3"),
    ], nft())  # fmt: skip
    expected = {SERVICE4: 5, SERVICE6: 5, NEIGHBOUR4: 3, NEIGHBOUR6: 3}
    keys: tuple[tuple[Protocol, int], ...] = (("tcp", 80), ("tcp", 81), ("udp", 80))
    for address, count in expected.items():
        for protocol, port in keys:
            assert len(lab.deliver([Probe(protocol, address, port, length=KBYTE)] * 20)) == count, (
                address,
                protocol,
                port,
            )
    assert len(lab.deliver([Probe("tcp", "172.30.254.3", 80, length=KBYTE)] * 20)) == 20


def test_limits_do_nothing_without_enable_rateshape(lab: Lab, firewall: Firewall) -> None:
    slow = service("slow", SERVICE4, limit="1/week burst 3 packets")
    firewall.load([slow], nft(enable_rateshape=False))
    assert len(lab.deliver([Probe("tcp", SERVICE4, 80)] * 20)) == 20
    firewall.load([slow], nft())
    assert len(lab.deliver([Probe("tcp", SERVICE4, 80)] * 20)) == 3
    firewall.load([slow], nft(enable_rateshape=False))
    assert len(lab.deliver([Probe("tcp", SERVICE4, 80)] * 20)) == 20


def test_a_limit_holds_for_what_comes_from_outside_and_not_for_the_answers(lab: Lab, firewall: Firewall) -> None:
    firewall.load([service("slow", SERVICE4, limit="1/week burst 3 packets")], nft())
    answers = [Probe("tcp", str(CLIENT[0]), 5000, source=SERVICE4, sport=80)] * 20
    assert len(lab.deliver(answers, "node")) == 20


def test_a_flood_is_held_to_its_rate_over_time(lab: Lab, firewall: Firewall) -> None:
    firewall.load([service("slow", SERVICE4, ports=[("UDP", 80)], limit="1 mbytes/second burst 64 kbytes")], nft())
    flood = flooded(lambda: lab.flood(SERVICE4, 80, seconds=1.0), KBYTE * KBYTE, 0.1)
    assert flood.sent_packets > 2 * flood.arrived_packets


# --- connections --------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [SERVICE4, SERVICE6])
def test_a_connection_stays_while_other_services_and_settings_change(
    lab: Lab, firewall: Firewall, address: str
) -> None:
    web = service("web", address)
    firewall.load([web], nft())
    changes: list[tuple[list[Raw], Raw, str]] = [
        ([web, service("new", NEIGHBOUR4)], nft(), ""),
        ([web, service("new", NEIGHBOUR4, limit="1/second burst 5 packets")], nft(), ""),
        ([web], nft(enable_rateshape=False), ""),
        ([web], nft(enable_bgp=False, enable_ssh=False), "tcp dport 7 drop\n"),
        ([web], nft(), ""),
    ]
    with TcpServer(lab.node, 80), lab.tcp_connect(address, 80) as connection:
        for number, (services, resource, local_chain) in enumerate(changes):
            firewall.load(services, resource, local_chain)
            connection.sendall(b"still?%d" % number)
            assert select.select([connection], [], [], PATIENCE)[0], f"no answer after change {number}"
            assert connection.recv(100) == b"still?%d" % number


# --- generated ----------------------------------------------------------------------------------------


def generated(seed: int) -> tuple[World, list[Probe]]:
    """A world with some Services that meet each other's addresses, and probes at them and just beside them."""
    draw = random.Random(seed)
    addresses = [
        *(f"172.30.254.{number}" for number in range(1, 6)),
        *(f"2001:db8:254::{number}" for number in range(1, 6)),
    ]
    ports = [1, 22, 53, 80, 179, 443, 65535]
    ranges = [
        "203.0.113.0/24",
        "203.0.113.4/30",
        "192.0.2.7/32",
        "198.51.100.0/24",
        "2001:db8:113::/48",
        "::/0",
        "0.0.0.0/0",
    ]
    claimed: set[tuple[str, str, int]] = set()
    services = []
    for number in range(draw.randrange(1, 12)):
        held = draw.sample(addresses, draw.randrange(3))
        asked = [
            (protocol, port) for protocol in ("TCP", "UDP", "SCTP") for port in draw.sample(ports, draw.randrange(3))
        ]
        free = [each for each in asked if not any((address, *each) in claimed for address in held)]
        claimed.update((address, *each) for address in held for each in free)
        narrowed = draw.sample(ranges, draw.randrange(1, 3)) if draw.random() < 0.4 else []
        kind = "LoadBalancer" if draw.random() < 0.85 else draw.choice(["ClusterIP", "NodePort"])
        services.append(service(f"s{number}", *held, ports=free, sources=narrowed, type=kind))
    switches = {name: draw.random() < 0.7 for name in ("enable_bgp", "enable_ssh", "enable_rateshape")}
    switches["enable_dropall"] = draw.random() < 0.9
    local = tuple(
        (draw.choice(TRANSPORTS), draw.choice(ports), draw.random() < 0.5) for _ in range(draw.choice([0, 0, 1, 2]))
    )
    probes = []
    for _ in range(300):
        destination = draw.choice([*addresses, *addresses, *ROUTER, EMPTY4, EMPTY6, *map(str, NODE)])
        sources = [None, INSIDE6, OUTSIDE6] if ":" in destination else [None, INSIDE4, OUTSIDE4]
        port = draw.choice([*ports, *ports, draw.randrange(1, 65536)])
        probes.append(Probe(draw.choice(KINDS), destination, port, source=draw.choice(sources)))
    return World(services, switches, local), probes


@pytest.mark.parametrize("block", range(4))
def test_of_generated_services_and_packets_each_goes_the_way_that_the_oracle_tells(
    lab: Lab, firewall: Firewall, block: int
) -> None:
    passed = dropped = 0
    for seed in range(10 * block, 10 * block + 10):
        world, probes = generated(seed)
        world.load(firewall)  # from the world before: what is tested is the difference, too
        assert surprises(lab, world, probes) == [], f"seed {seed}"
        passing = sum(world.passes(probe) for probe in probes)
        passed, dropped = passed + passing, dropped + len(probes) - passing
    assert passed > 300
    assert dropped > 300
