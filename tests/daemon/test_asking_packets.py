"""What `nftsync explain` says beside one running daemon, whose Services change, is what becomes of real packets."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from tests.daemon.test_asking import (
    FRIEND,
    FRIENDS,
    POOL,
    POOL4,
    POOL6,
    STRANGER,
    UNROUTED,
    Asked,
    created,
    in_namespace,
)
from tests.lab.lab import CLIENT, CLUSTER, PUBLIC, Lab, Probe, Protocol
from tests.labtools import Raw, eventually, needs_root, nft, service, write

pytestmark = needs_root

TRANSPORTS: tuple[Protocol, ...] = ("tcp", "udp", "sctp")
PORTS = (22, 53, 80, 179, 443)
ADDRESSES = (
    *(f"172.30.254.{number}" for number in range(1, 6)),
    *(f"2001:db8:254::{number}" for number in range(1, 5)),
)
STRAY = ("10.9.9.9", "2001:db8:9::9")  # routed to the node, and in no pool
BESIDE = ("172.30.254.99", "2001:db8:254::99")  # routed to the node, and no Service has them
STRANGER6 = "2001:db8:999::7"
SOURCES = (FRIEND, STRANGER, "2001:db8:113::7", STRANGER6, *map(str, CLIENT))
NONSENSE = "nonsense"
RANGES = (*FRIENDS, "192.0.2.7/32", "198.51.100.0/24", "::/0", NONSENSE)
LIMITS = (None, None, "100000/second burst 10000 packets", "fast")  # one that nobody here exceeds, and one that is none
SETTINGS: tuple[Mapping[str, bool], ...] = (
    {}, {"enable_rateshape": False}, {"enable_bgp": False, "enable_ssh": False}, {"enable_dropall": False},
)  # fmt: skip
OPEN = {"passes", "limited"}


@dataclass(frozen=True)
class World:
    """What one seed gives."""

    services: tuple[Raw, ...]
    settings: Mapping[str, bool]
    probes: tuple[Probe, ...]

    @property
    def manifests(self) -> str:
        pool = {**POOL, "spec": {"addresses": [POOL4, POOL6, f"{CLUSTER[0]}/32", f"{UNROUTED}/32"]}}
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": [nft(**self.settings), pool, *self.services]})


def generated(seed: int) -> World:
    draw = random.Random(seed)
    services = tuple(_services(draw, seed))
    anywhere = [*ADDRESSES * 3, *BESIDE, *STRAY, UNROUTED, *map(str, (*PUBLIC, *CLUSTER))]
    probes = [_probe(draw, draw.choice(anywhere), draw.choice(PORTS), draw.choice(TRANSPORTS)) for _ in range(60)]
    claims = [claim for each in services for claim in _claims(each)]
    probes += [_probe(draw, *claim) for claim in draw.sample(claims, min(60, len(claims)))]
    return World(services, SETTINGS[seed % len(SETTINGS)], tuple(probes))


def _services(draw: random.Random, seed: int) -> Iterator[Raw]:
    """Their names are those of no other seed: a bad annotation would keep the limit that was there before."""
    for number in range(12):
        raw = service(
            f"s{seed}-{number}",
            *draw.sample([*ADDRESSES * 3, *STRAY, UNROUTED, str(CLUSTER[0])], draw.randrange(4)),
            ports=[(kind.upper(), port) for kind in TRANSPORTS for port in draw.sample(PORTS, draw.randrange(1, 3))],
            sources=draw.sample(RANGES, draw.randrange(1, 3)) if draw.random() < 0.4 else [],
            limit=draw.choice(LIMITS),
            loadBalancerClass=draw.choice(["", "", "", "", "example.com/other"]),
        )
        raw = in_namespace(raw, draw.choice(["default", "other", "other", "shunned"]))
        yield created(raw, f"2024-01-{draw.randrange(1, 28):02}T00:00:00Z")


def _claims(raw: Raw) -> Iterator[tuple[str, int, Protocol]]:
    """What a Service asks for, whether it gets it or not."""
    for entry in raw["status"]["loadBalancer"]["ingress"]:
        for port in raw["spec"]["ports"]:
            yield entry["ip"], port["port"], port["protocol"].lower()


def _probe(draw: random.Random, destination: str, port: int, protocol: Protocol) -> Probe:
    version = ip_address(destination).version
    return Probe(
        protocol,
        destination,
        port,
        source=draw.choice([each for each in SOURCES if ip_address(each).version == version]),
    )


def _admitted(raw: Raw, destination: str) -> str:
    """Somebody whom a Service lets in, if it lets in anybody of this family."""
    version = ip_address(destination).version
    networks = [ip_network(each) for each in raw["spec"]["loadBalancerSourceRanges"] if each != NONSENSE]
    sources = (str(each[min(7, each.num_addresses - 1)]) for each in networks if each.version == version)
    return next(sources, STRANGER if version == 4 else STRANGER6)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """One that goes from one world to the next."""
    with Lab() as lab, Asked(lab, tmp_path_factory.mktemp("worlds"), interval=600) as made:
        for stray in STRAY:
            lab.route(stray)
        made.put(nft())
        yield made.start()


def enter(daemon: Asked, seed: int) -> World:
    """Let the daemon have this world's manifests, and return when the kernel holds what they ask for."""
    world = generated(seed)
    write(daemon.path(nft()), world.manifests)
    assert eventually(lambda: not daemon.command("diff", "--manifests", str(daemon.manifests)).returncode), daemon.log()
    return world


def explained(daemon: Asked, probe: Probe) -> dict[str, Any]:
    host = f"[{probe.destination}]" if ":" in probe.destination else probe.destination
    return daemon.explain(str(probe.source), f"{host}:{probe.port}/{probe.protocol}")


def test_hundreds_of_packets_go_the_way_that_the_daemon_tells_while_its_services_change(daemon: Asked) -> None:
    seen: Counter[tuple[str, str]] = Counter()
    for seed in range(6):
        world = enter(daemon, seed)
        arrived = {id(probe) for probe in daemon.lab.deliver(world.probes)}
        for probe in world.probes:
            found = explained(daemon, probe)
            assert (found["verdict"] in OPEN) == (id(probe) in arrived), f"seed {seed}: {probe}: {found['text']}"
            seen[found["verdict"], found["reason"]] += 1
    assert sum(seen.values()) > 600
    assert {reason for _, reason in seen} >= {
        "open", "no_such_address", "no_such_port", "outside_pools", "refused_source", "other_class",
        "filtered_namespace",
        "invalid", "no_route", "everything_passes", "router_port",
    }  # fmt: skip
    assert min(seen["passes", "open"], seen["limited", "open"], seen["dropped", "refused_source"]) > 20


def test_a_service_is_told_to_be_open_as_far_as_packets_pass_because_of_it(daemon: Asked) -> None:
    verdicts: Counter[str] = Counter()
    reasons = set()
    for seed in range(6, 14):
        world = enter(daemon, seed)
        probes = {
            id(raw): [
                Probe(protocol, address, port, source=_admitted(raw, address))
                for address, port, protocol in _claims(raw)
            ]
            for raw in world.services
        }
        arrived = {id(probe) for probe in daemon.lab.deliver(probe for each in probes.values() for probe in each)}
        dropall = world.settings.get("enable_dropall", True)
        for raw in world.services:
            name = f"{raw['metadata']['namespace']}/{raw['metadata']['name']}"
            found = daemon.explain(name)
            own = [
                id(probe) in arrived and (not dropall or explained(daemon, probe)["service"] == name)
                for probe in probes[id(raw)]
            ]
            told = OPEN if own and all(own) else {"depends"} if any(own) else {"dropped"}
            assert found["verdict"] in told, f"seed {seed}: {own}: {found['text']}"
            verdicts[found["verdict"]] += 1
            reasons.add(found["reason"])
    assert min(verdicts[each] for each in ("passes", "limited", "depends", "dropped")) > 2, verdicts
    assert reasons >= {
        "open", "lost_to_older", "no_address_yet", "other_class", "filtered_namespace", "invalid", "everything_passes",
    }  # fmt: skip
