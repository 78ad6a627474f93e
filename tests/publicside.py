"""Routers that people have: what is built on a public NIC, and by which ways frames come in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.lab.lab import SERVICES, Frame, Lab, Probe, Wire
from tests.labtools import SERVICE4, SERVICE6, Daemon, Raw, nft, service
from tests.topology import links

NIC = "enp1s0"
WEB = service("web", SERVICE4, SERVICE6, ports=[("TCP", 80), ("UDP", 53)])
SLOW = service("slow", "172.30.254.3", "2001:db8:254::3", ports=[("UDP", 53)], limit="1/week burst 3 packets")
OPEN = tuple(
    probe for address in (SERVICE4, SERVICE6) for probe in (Probe("tcp", address, 80), Probe("udp", address, 53))
)
BURST = 3  # of SLOW


def closed(lab: Lab, wire: Wire) -> tuple[Probe, ...]:
    """SYNs to a Service, to a node and to the router itself, none of which anybody opened."""
    to = ((SERVICE4, SERVICE6), 22), (lab.inside.there, 10250), (wire.here, 9100)
    return tuple(Probe("tcp", str(address), port) for addresses, port in to for address in addresses)


@dataclass(frozen=True)
class Way:
    """A way into the router: the wire, the interface that has the MAC address, and the frame's tags."""

    device: str
    tags: tuple[int, ...] = ()
    wire: str = NIC


@dataclass(frozen=True)
class Row:
    """A router that people have.

    named: keys of the Nft resource.  build: commands of ip(8).  address: the interface that has the
    public address then.  ways: those of the public side.  table: the VRF's routing table.
    """

    named: Mapping[str, Any]
    build: Sequence[str]
    address: str
    ways: Sequence[Way]
    table: int = 0

    def wires(self, lab: Lab) -> dict[str, Wire]:
        second = {"wan1": lab.uplink("wan1")} if any(way.wire == "wan1" for way in self.ways) else {}
        return {NIC: lab.public, **second}


def bridged(bridge: str, *ports: str) -> list[str]:
    made = [f"link add name {bridge} type bridge", f"link set {bridge} addrgenmode none up"]
    return made + [f"link set {port} master {bridge}" for port in ports]


def child(kind: str, name: str, parent: str, option: str) -> list[str]:
    return [f"link add link {parent} name {name} type {kind} {option}", f"link set {name} addrgenmode none up"]


def vrf(*ports: str) -> list[str]:
    return [
        "link add name red type vrf table 10",
        "link set red up",
        *(f"link set {port} master red" for port in ports),
    ]


BOND = [
    "link add name bond0 type bond mode active-backup", f"link set {NIC} down", f"link set {NIC} master bond0",
    "link set bond0 addrgenmode none up",
]  # fmt: skip
TAGGED = f"{NIC}.100"
VLAN = child("vlan", TAGGED, NIC, "id 100")
MACVLAN = child("macvlan", "mv0", NIC, "mode private")
ROWS = {
    "alone": Row({"public_nic": NIC}, [], NIC, [Way(NIC)]),
    "a port of a bridge": Row({"public_nic": NIC}, bridged("br0", NIC), "br0", [Way("br0")]),
    "a port of a bridge that carries a macvlan in a bridge": Row(
        {"public_nic": NIC},
        [*bridged("br0", NIC), *child("macvlan", "mv0", "br0", "mode bridge"), *bridged("br1", "mv0")],
        "br0",
        [Way("br0"), Way("br1")],
    ),
    "the bridge is named": Row({"public_nic": "br0"}, bridged("br0", NIC), "br0", [Way("br0")]),
    "a macvlan, and a frame for its parent": Row({"public_nic": "mv0"}, MACVLAN, "mv0", [Way("mv0"), Way(NIC)]),
    "a frame for a macvlan without an address": Row({"public_nic": NIC}, MACVLAN, NIC, [Way(NIC), Way("mv0")]),
    "a macvlan on a bridge, and a frame for the bridge": Row(
        {"public_nic": "mv0"},
        [*bridged("br0", NIC), *child("macvlan", "mv0", "br0", "mode bridge")],
        "mv0",
        [Way("mv0"), Way("br0")],
    ),
    "an alternative name": Row(
        {"public_nic": "enp6s18np0"}, [f"link property add dev {NIC} altname enp6s18np0"], NIC, [Way(NIC)]
    ),
    "the alternative name of a bridge's port": Row(
        {"public_nics": ["enp6s18np0"]},
        [f"link property add dev {NIC} altname enp6s18np0", *bridged("br0", NIC)],
        "br0",
        [Way("br0")],
    ),
    "two uplinks": Row({"public_nic": NIC, "public_nics": ["wan1"]}, [], NIC, [Way(NIC), Way("wan1", wire="wan1")]),
    "two uplinks, one of them a port of a bridge": Row(
        {"public_nics": [NIC, "wan1"]}, bridged("br0", NIC), "br0", [Way("br0"), Way("wan1", wire="wan1")]
    ),
    "a bridge of both uplinks": Row(
        {"public_nic": NIC}, bridged("br0", NIC, "wan1"), "br0", [Way("br0"), Way("br0", wire="wan1")]
    ),
    "a VLAN, and an untagged frame": Row(
        {"public_nic": TAGGED}, VLAN, TAGGED, [Way(NIC, (100,)), Way(NIC), Way(NIC, (0,))]
    ),
    "a frame for a VLAN without an address": Row(
        {"public_nic": NIC}, VLAN, NIC, [Way(NIC), Way(NIC, (100,)), Way(NIC, (0,))]
    ),
    "a VLAN of a bridge": Row(
        {"public_nic": "br0.100"},
        [*bridged("br0", NIC), *child("vlan", "br0.100", "br0", "id 100")],
        "br0.100",
        [Way("br0", (100,)), Way("br0")],
    ),
    "a VLAN in a bridge": Row(
        {"public_nic": TAGGED}, [*VLAN, *bridged("br0", TAGGED)], "br0", [Way("br0", (100,)), Way(NIC)]
    ),
    "a VLAN in a VLAN": Row(
        {"public_nic": NIC},
        [*VLAN, *child("vlan", "inner0", TAGGED, "id 200")],
        NIC,
        [Way(NIC), Way(NIC, (100,)), Way(NIC, (100, 200))],
    ),
    "a port of a bond": Row({"public_nic": NIC}, BOND, "bond0", [Way("bond0")]),
    "the bond is named": Row({"public_nic": "bond0"}, BOND, "bond0", [Way("bond0")]),
    "a VLAN of a bond": Row(
        {"public_nic": "bond0.100"},
        [*BOND, *child("vlan", "bond0.100", "bond0", "id 100")],
        "bond0.100",
        [Way("bond0", (100,)), Way("bond0")],
    ),
    "a port of a VRF": Row({"public_nic": NIC}, vrf(NIC), NIC, [Way(NIC)], 10),
    "a port of the VRF that has the cluster's NIC": Row({"public_nic": NIC}, vrf(NIC, "cluster0"), NIC, [Way(NIC)], 10),
    "a VLAN in a VRF": Row(
        {"public_nic": TAGGED}, [*VLAN, *vrf(TAGGED)], TAGGED, [Way(NIC, (100,))], 10,
    ),
    "a bridge in a VRF": Row({"public_nic": NIC}, [*bridged("br0", NIC), *vrf("br0")], "br0", [Way("br0")], 10),
    "the VRF is named": Row({"public_nic": "red"}, vrf(NIC), NIC, [Way(NIC)], 10),
    "the VRF is named and has the cluster's NIC": Row(
        {"public_nic": "red", "inside_nics": ["cluster0"]}, vrf(NIC, "cluster0"), NIC, [Way(NIC)], 10
    ),
}  # fmt: skip


def kinds(row: Row) -> list[str]:
    """The kinds of links that a row builds."""
    return sorted({command.split(" type ")[1].split()[0] for command in row.build if " type " in command})


def resource(row: Row) -> Raw:
    made = nft()
    del made["spec"]["public_nic"]
    made["spec"].update(row.named)
    return made


def built(lab: Lab, row: Row) -> None:
    """Build the row's links, and bring addresses and routes where they belong."""
    lab.router.ip(*row.build)
    if row.address != NIC:
        lab.router.ip(f"address flush dev {NIC}")
    lab.public.address(row.address)
    for table in filter(None, ("main", row.table and str(row.table))):
        if any(command == "link set cluster0 master red" for command in row.build):
            lab.inside.address("cluster0")
        for gateway, network in zip(lab.inside.there, SERVICES, strict=True):
            lab.router.ip(
                f"route replace {gateway} dev cluster0 table {table}",
                f"route replace {network} via {gateway} dev cluster0 table {table}",
            )
        lab.router.ip(*(f"route replace {peer} dev {row.address} table {table}" for peer in lab.public.there))


def through(
    lab: Lab, wires: Mapping[str, Wire], ways: Sequence[Way], probes: Callable[[Wire], Sequence[Probe]]
) -> list[Any]:
    """The way and the probe of each packet that arrives."""
    macs = {link["ifname"]: link["address"] for link in links(lab)}
    arrived: list[Any] = []
    for way in ways:
        frames = [Frame(probe, macs[way.device], way.tags) for probe in probes(wires[way.wire])]
        arrived += [(way, frame.probe) for frame in lab.deliver_frames(wires[way.wire], frames)]
    return arrived


def all_pass(lab: Lab, wires: Mapping[str, Wire], ways: Sequence[Way]) -> bool:
    """Whether each probe passes by each way."""
    return len(through(lab, wires, ways, lambda wire: (*OPEN, *closed(lab, wire)))) == 10 * len(ways)


def passes_alone(lab: Lab, wires: Mapping[str, Wire], ways: Sequence[Way]) -> bool:
    """Whether each open probe passes by each way, and no closed one by any."""
    arrived = through(lab, wires, ways, lambda wire: (*OPEN, *closed(lab, wire)))
    return arrived == [(way, probe) for way in ways for probe in OPEN]


def outwards(lab: Lab, wires: Mapping[str, Wire]) -> bool:
    """Whether the node opens connections to the peer of each uplink."""
    frames = [Frame(Probe("tcp", str(peer), 443)) for wire in wires.values() for peer in wire.there]
    return lab.deliver_frames(lab.inside, frames, list(wires.values())) == frames


def limited(lab: Lab, wires: Mapping[str, Wire], ways: Sequence[Way]) -> tuple[int, int]:
    """So many packets to a limited Service arrive in IPv4 and in IPv6, of ten by each way."""
    probes = [Probe("udp", address, 53) for address in ("172.30.254.3", "2001:db8:254::3") for _ in range(10)]
    arrived = [probe.destination for _, probe in through(lab, wires, ways, lambda _: probes)]
    return arrived.count("172.30.254.3"), arrived.count("2001:db8:254::3")


def status(daemon: Daemon) -> Any:
    done = daemon.command("status", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
