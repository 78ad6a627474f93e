"""What `explain` says of a packet is what a real kernel does with it: for generated Services, settings and packets."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from nftsync.config import AddressPolicy, Filters, PoolMode
from nftsync.objects.address import Address, Local, parse_range
from nftsync.objects.metallb import MetalLBConfig, Pool
from nftsync.objects.nft import parse_nft
from nftsync.objects.service import Service, parse_service
from nftsync.report.explain import explain_packet, explain_service
from nftsync.report.explanation import Explanation, Verdict, View
from nftsync.report.query import PacketQuery, parse_query
from nftsync.ruleset.model import OPERATOR_SVC
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset
from tests.lab.lab import CLIENT, CLUSTER, NODE, PUBLIC, SERVICES, Lab, Probe, Protocol
from tests.labtools import PUBLIC_NIC, TCP80, Firewall, Raw, needs_root, nft, service
from tests.report.views import result_of
from tests.support import absent, side

pytestmark = needs_root

TRANSPORTS: tuple[Protocol, ...] = ("tcp", "udp", "sctp")
KIND: dict[str, Protocol] = {each: each for each in TRANSPORTS}
ADDRESSES = (
    *(f"172.30.254.{number}" for number in range(1, 6)),
    *(f"2001:db8:254::{number}" for number in range(1, 5)),
)
BESIDE = ("172.30.254.99", "2001:db8:254::99", "172.30.254.200")  # routed to the node; no Service has them
STRAY = ("10.9.9.9", "2001:db8:9::9")  # routed to the node; in wide pools alone
UNROUTED = ("172.31.9.9", "2001:db8:dead::9")
PEERS = ("172.30.254.200",)
PORTS = (22, 53, 80, 179, 443, 65535)
SOURCES = ("203.0.113.7", "192.0.2.7", "2001:db8:113::7", "2001:db8:999::7", *map(str, CLIENT))
RANGES = (
    "203.0.113.0/24", "203.0.113.4/30", "192.0.2.7/32", "198.51.100.0/24", "2001:db8:113::/48", "::/0", "0.0.0.0/0",
    "nonsense",
)  # fmt: skip
POOLS = (
    "172.30.254.0/24", "172.30.254.2-172.30.254.3", "172.30.0.0/16", "0.0.0.0/0", "2001:db8:254::/64",
    "2001:db8::/32", "::/0",
)  # fmt: skip
CONNECTED = ("172.30.250.0/24", "2001:db8:250::/64")  # on the cluster's side
ROUTED = tuple(map(ip_network, (*SERVICES, *CONNECTED, *STRAY)))
OWN: frozenset[Address] = frozenset((*PUBLIC, *CLUSTER))
LOCAL = Local(OWN, frozenset(ip_network((str(own), 24 if own.version == 4 else 64), strict=False) for own in OWN))
NEVER_USED = "ip saddr 233.252.0.1 drop\n"  # a local chain that is not empty and decides nothing here


@pytest.fixture(scope="module")
def router() -> Iterator[tuple[Lab, Firewall]]:
    with Lab() as made:
        for stray in STRAY:
            made.route(stray)
        yield made, Firewall(made)


@dataclass(frozen=True)
class World:
    """What one seed gives."""

    view: View
    settings: Settings
    probes: Sequence[Probe]

    def load(self, lab: Lab, firewall: Firewall) -> None:
        lab.router.nft("flush ruleset")
        firewall.holds = firewall.kernel.read().ruleset
        firewall.change(ruleset(self.view.result.pinholes.values(), self.settings))


def generated(seed: int) -> World:
    draw = random.Random(seed)
    services = [each for raw in _services(draw) if (each := parse_service(raw, None))]
    address_policy, pools = _pools(draw)
    few = frozenset({"default", "other"})
    filters = Filters(
        namespaces=few if draw.random() < 0.2 else frozenset(),
        exclude_namespaces=frozenset({"shunned"}) if draw.random() < 0.5 else frozenset(),
        load_balancer_classes=draw.choice(
            [frozenset(), frozenset(), frozenset({""}), frozenset({"", "example.com/x"})]
        ),
    )
    result = result_of(services, None, filters=filters, address_policy=address_policy, pools=pools, local=LOCAL)
    switches = {name: draw.random() < 0.7 for name in ("enable_bgp", "enable_ssh", "enable_rateshape")}
    peers = [
        ip_network(each) for each in ("203.0.113.0/24", "192.0.2.7/32", "2001:db8:113::/48") if draw.random() < 0.5
    ]
    settings = Settings.of(
        parse_nft(nft(PUBLIC_NIC, **switches, enable_dropall=draw.random() < 0.85), None).spec,
        (side if draw.random() < 0.8 else absent)(PUBLIC_NIC),
        local_chain=draw.choice(["", "", NEVER_USED]),
        bgp_peers=tuple(peers) if draw.random() < 0.5 else (),
        cluster=result.guard.cluster,
        stateless=draw.random() < 0.3,
    )
    view = View(replace(result, settings=settings), {each.name: each for each in services}, _routed)
    return World(view, settings, [*_probes(draw), *_at_claims(draw, services)])


def _services(draw: random.Random) -> Iterator[Raw]:
    for number in range(draw.randrange(2, 14)):
        narrowed = draw.sample(RANGES, draw.randrange(1, 3)) if draw.random() < 0.4 else []
        ports = [
            (protocol, port) for protocol in ("TCP", "UDP", "SCTP") for port in draw.sample(PORTS, draw.randrange(3))
        ]
        raw = service(
            f"s{number}",
            *draw.sample([*ADDRESSES, *ADDRESSES, *STRAY, *UNROUTED, *PEERS, *map(str, OWN)], draw.randrange(4)),
            ports=draw.choice([ports, ports, TCP80, [("TCP", 0)]]),
            sources=narrowed,
            limit=draw.choice([None, None, "100 mbytes/second", "100000/second burst 10000 packets", "fast"]),
            type=draw.choice(["LoadBalancer"] * 6 + ["ClusterIP"]),
            loadBalancerClass=draw.choice(["", "", "example.com/x"]),
        )
        raw["metadata"]["namespace"] = draw.choice(["default", "default", "other", "shunned"])
        raw["metadata"]["creationTimestamp"] = f"2024-01-{draw.randrange(1, 28):02}T00:00:00Z"
        yield raw


def _pools(draw: random.Random) -> tuple[AddressPolicy, MetalLBConfig | None]:
    allowed = draw.choice([(), (), ("172.30.0.0/16", "2001:db8::/32"), ("172.30.254.0/30",)])
    address_policy = AddressPolicy(
        PoolMode(draw.choice(list(PoolMode))), draw.random() < 0.3, tuple(map(ip_network, allowed))
    )
    pools = [
        Pool(
            f"p{number}",
            "IPAddressPool",
            tuple(map(parse_range, draw.sample(POOLS, draw.randrange(1, 5)))),
            draw.random() < 0.7,
        )
        for number in range(draw.randrange(1, 3))
    ]
    known = MetalLBConfig(tuple(pools), frozenset(map(ip_address, PEERS))) if draw.random() < 0.85 else None
    return address_policy, known


def _routed(address: Address) -> bool:
    return any(address in network for network in ROUTED)


def _probes(draw: random.Random) -> Iterator[Probe]:
    targets = [*ADDRESSES * 3, *BESIDE, *STRAY, *UNROUTED, *map(str, (*NODE, *OWN, *PUBLIC, *PUBLIC))]
    for _ in range(90):
        port = draw.choice([*PORTS * 3, draw.randrange(1, 65536)])
        yield _probe(draw, draw.choice(TRANSPORTS), draw.choice(targets), port)


def _at_claims(draw: random.Random, services: Sequence[Service]) -> Iterator[Probe]:
    """At what Services ask for, whether they get it or not."""
    asked = [(port, str(address)) for each in services for address in each.addresses for port in each.ports]
    for (protocol, port), address in draw.sample(asked, min(40, len(asked))):
        yield _probe(draw, KIND[protocol], address, port)


def _probe(draw: random.Random, protocol: Protocol, destination: str, port: int) -> Probe:
    sources = [each for each in SOURCES if (":" in each) == (":" in destination)]
    return Probe(protocol, destination, port, source=draw.choice(sources))


def query(probe: Probe, *, source: bool = True) -> PacketQuery:
    """As somebody would ask for it on the command line."""
    target = f"[{probe.destination}]" if ":" in probe.destination else probe.destination
    words = [probe.source or ""] if source else []
    asked = parse_query([*words, f"{target}:{probe.port}/{probe.protocol}"])
    assert isinstance(asked, PacketQuery)
    return asked


def counted(lab: Lab) -> int:
    """The packets that the rules of the pools and of closed endpoints have counted and dropped."""
    listed = json.loads(lab.router.run(["nft", "-j", "list", "chain", "inet", "nftsync", OPERATOR_SVC]).stdout)
    return sum(part["counter"]["packets"] for each in listed["nftables"] for part in _parts(each) if "counter" in part)


def _parts(each: Raw) -> list[Any]:
    return list(each.get("rule", {}).get("expr", ()))


OPEN = {Verdict.PASSES, Verdict.LIMITED}


def test_every_packet_goes_the_way_that_its_explanation_tells(router: tuple[Lab, Firewall]) -> None:
    lab, firewall = router
    seen: Counter[tuple[Verdict, str]] = Counter()
    depending: Counter[bool] = Counter()
    for seed in range(40):
        world = generated(seed)
        world.load(lab, firewall)
        arrived = {id(probe) for probe in lab.deliver(world.probes)}
        told = [(probe, id(probe) in arrived, explain_packet(world.view, query(probe))) for probe in world.probes]
        surprises = [f"{probe}: {found.text()}" for probe, passed, found in told if passed != (found.verdict in OPEN)]
        assert surprises == [], f"seed {seed}"
        dropped = [
            probe
            for probe, _, found in told
            if ("@pools" in found.rule or "@closed" in found.rule) and _routed(ip_address(probe.destination))
        ]
        assert counted(lab) == len(dropped), f"seed {seed}"
        for probe, passed, _ in told:
            whichever = explain_packet(world.view, query(probe, source=False))
            assert whichever.verdict is Verdict.DEPENDS or passed == (
                whichever.verdict in OPEN
            ), f"seed {seed}: {probe}"
            depending[passed] += whichever.verdict is Verdict.DEPENDS
        seen.update((found.verdict, found.reason) for _, _, found in told)
    assert sum(seen.values()) > 4000
    assert {reason for _, reason in seen} >= {
        "open", "no_such_address", "outside_pools", "reserved_address", "refused_source", "other_class",
        "filtered_namespace",
        "invalid", "no_such_port", "nic_missing", "no_route", "everything_passes", "router_port",
    }  # fmt: skip
    assert min(seen[Verdict.PASSES, "open"], seen[Verdict.LIMITED, "open"], seen[Verdict.PASSES, "router_port"]) > 50
    assert min(seen[Verdict.DROPPED, "refused_source"], seen[Verdict.DROPPED, "router_port"]) > 50
    assert min(depending[True], depending[False]) > 20


def test_a_service_that_is_explained_as_open_or_closed_is(router: tuple[Lab, Firewall]) -> None:
    """From a source in its ranges, each part that is said to be open takes packets, and no other does."""
    lab, firewall = router
    counts: Counter[bool] = Counter()
    for seed in range(100, 115):
        world = generated(seed)
        world.load(lab, firewall)
        expected = dict(_expected(world))
        arrived = set(lab.deliver(expected))
        assert {probe for probe, opened in expected.items() if opened} == arrived, f"seed {seed}"
        counts.update(expected.values())
    assert min(counts[True], counts[False]) > 50


def _expected(world: World) -> Iterator[tuple[Probe, bool]]:
    """For each address and port that a Service asks for and no other, a packet, and whether it is said to be open."""
    for each in world.view.services.values():
        found: Explanation = explain_service(world.view, each.name)
        lines = iter(found.lines[1:])
        for address in each.addresses:
            source = CLIENT[address.version == 6]
            within = [one for one in each.sources or () if one.version == address.version]
            if within and not any(source in one for one in within):
                source = within[0][-1]
            for protocol, port in each.ports:
                line = next(lines)
                opened = (
                    re.match("Service [^ ]+ opens [^ ]+ [a-z]+ [0-9]+ to (?!nobody)|everything passes", line)
                    is not None
                )
                if address not in OWN and "belongs to the older" not in line:
                    yield Probe(KIND[protocol], str(address), port, source=str(source)), opened


def test_a_limited_packet_passes_up_to_its_limit(router: tuple[Lab, Firewall]) -> None:
    lab, firewall = router
    parsed = parse_service(service("slow", ADDRESSES[0], limit="1/week burst 3 packets"), None)
    assert parsed
    settings = Settings(side(PUBLIC_NIC), enable_rateshape=True)
    view = View(result_of([parsed], settings, local=LOCAL), {parsed.name: parsed}, _routed, lambda _: 5)
    world = World(view, settings, [Probe("tcp", ADDRESSES[0], 80, source=SOURCES[0])] * 8)
    world.load(lab, firewall)
    assert len(lab.deliver(world.probes)) == 3
    assert explain_packet(view, query(world.probes[0])).verdict is Verdict.LIMITED
