"""The public side is a set of interfaces, whatever the router has built on its public NIC, before or after the start.

Each row is a router that people have. Frames come in by every way that a public wire offers. No
packet to a closed port passes, each open one does, limits count every packet once, and the inside
opens connections outwards.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import POOL
from tests.lab.features import needs_kernel
from tests.lab.lab import PUBLIC, SERVICES, Frame, Lab, Probe, TcpServer, Wire
from tests.labtools import SERVICE4, SERVICE6, Daemon, Raw, elements, eventually, needs_root, nft, service
from tests.process import ClusterDaemon, cluster_daemon
from tests.reboot import before_the_network, boot, power_off, remembers
from tests.topology import links

pytestmark = needs_root

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


rows = pytest.mark.parametrize(
    "row", [pytest.param(row, id=name, marks=needs_kernel(*kinds(row))) for name, row in ROWS.items()]
)


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


def in_order(daemon: Daemon, row: Row, wires: Mapping[str, Wire]) -> None:
    """All that a row promises."""
    lab = daemon.lab
    assert eventually(lambda: passes_alone(lab, wires, row.ways)), daemon.log()
    assert eventually(lambda: status(daemon)["public_nic"]["attached"]), daemon.log()
    assert not status(daemon)["public_nic"]["missing"]
    assert outwards(lab, wires), "the inside opens connections"
    assert limited(lab, wires, row.ways) == (BURST, BURST), "each packet counts once"
    assert passes_alone(lab, wires, row.ways)


@rows
def test_what_is_built_before_the_start_lets_in_what_is_open_and_nothing_else(row: Row, tmp_path: Path) -> None:
    with Lab(NIC) as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        wires = row.wires(lab)
        built(lab, row)
        assert eventually(lambda: all_pass(lab, wires, row.ways)), "without a firewall"
        daemon.put(resource(row), POOL, WEB, SLOW)
        in_order(daemon.start(), row, wires)


@rows
def test_what_is_built_while_the_daemon_runs_lets_in_what_is_open_and_nothing_else(row: Row, tmp_path: Path) -> None:
    with Lab(NIC) as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        wires = row.wires(lab)
        daemon.put(resource(row), POOL, WEB, SLOW)
        daemon.start()
        built(lab, row)
        in_order(daemon, row, wires)


@rows
def test_after_a_boot_and_before_the_daemon_what_is_open_passes_and_nothing_else(row: Row, tmp_path: Path) -> None:
    with Lab(NIC) as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        wires = row.wires(lab)
        built(lab, row)
        daemon.put(resource(row), POOL, WEB, SLOW)
        daemon.start()
        assert eventually(lambda: passes_alone(lab, wires, row.ways)), daemon.log()
        assert remembers(daemon)
        power_off(daemon)
        boot(daemon)
        assert passes_alone(lab, wires, row.ways)
        assert limited(lab, wires, row.ways) == (BURST, BURST)
        assert outwards(lab, wires)


@rows
def test_what_is_built_after_an_early_boot_lets_in_what_is_open_and_nothing_else(row: Row, tmp_path: Path) -> None:
    with Lab(NIC) as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        wires = row.wires(lab)
        built(lab, row)
        daemon.put(resource(row), POOL, WEB)
        daemon.start()
        assert eventually(lambda: passes_alone(lab, wires, row.ways)), daemon.log()
        assert remembers(daemon)
        power_off(daemon)
        with before_the_network(lab):
            for link in links(lab):
                if link["ifname"] not in ("lo", "wan1"):
                    lab.router.run(["ip", "link", "delete", link["ifname"]], check=False)
            boot(daemon, "--early")
        built(lab, row)
        assert eventually(
            lambda: passes_alone(lab, wires, row.ways)
        ), "some links take a moment until they carry packets"
        assert outwards(lab, wires)


def test_a_nic_that_leaves_its_bridge_is_public_alone_and_the_bridge_is_inside(tmp_path: Path) -> None:
    row = ROWS["a port of a bridge"]
    with Lab(NIC) as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        other = lab.uplink("lan1")
        built(lab, row)
        daemon.put(resource(row), POOL, WEB, SLOW)
        in_order(daemon.start(), row, {NIC: lab.public})
        lab.router.ip(f"link set {NIC} nomaster", "address flush dev br0", "link set lan1 master br0")
        lab.public.address(NIC)
        other.address("br0")
        alone = [Way(NIC)]
        assert eventually(lambda: passes_alone(lab, {NIC: lab.public}, alone)), daemon.log()
        frames = [Frame(Probe("tcp", str(address), 9100)) for address in other.here]
        assert eventually(lambda: lab.deliver_frames(other, frames) == frames), daemon.log()


# --- alternative names ----------------------------------------------------------------------------------


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Daemon]:
    """A virtual machine's NIC: its name is ens18, and enp6s18 is its alternative name."""
    with Lab("ens18") as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        lab.router.ip("link property add dev ens18 altname enp6s18")
        daemon.put(nft("enp6s18", enable_bgp=True), POOL, WEB, SLOW)
        yield daemon


def management(lab: Lab) -> list[Probe]:
    return [Probe("tcp", str(address), port) for address in PUBLIC for port in (22, 179)]


def as_named(daemon: Daemon) -> None:
    """Frames from outside: management and open Services pass, and nothing else."""
    lab, wires, ways = daemon.lab, {NIC: daemon.lab.public}, [Way("ens18")]
    probes = management(lab)
    assert lab.deliver(probes) == probes, "ssh and BGP from outside"
    assert passes_alone(lab, wires, ways)
    assert limited(lab, wires, ways) == (BURST, BURST)


def test_an_alternative_name_stands_for_its_interface_while_the_daemon_runs(debian: Daemon) -> None:
    as_named(debian.start())
    assert status(debian)["public_nic"]["attached"]
    with TcpServer(debian.lab.router, 22):
        debian.lab.tcp_connect(str(PUBLIC[0]), 22).close()


def test_an_alternative_name_stands_for_its_interface_after_a_boot_and_before_the_daemon(debian: Daemon) -> None:
    debian.start()
    assert remembers(debian)
    power_off(debian)
    boot(debian)
    as_named(debian)


def test_an_alternative_name_stands_for_its_interface_after_a_boot_without_a_network(debian: Daemon) -> None:
    debian.start()
    assert remembers(debian)
    power_off(debian)
    with before_the_network(debian.lab):
        boot(debian, "--early")
    debian.lab.router.ip("link property add dev ens18 altname enp6s18")
    probes = management(debian.lab)
    assert debian.lab.deliver(probes) == probes
    assert passes_alone(debian.lab, {NIC: debian.lab.public}, [Way("ens18")])


# --- what is missing or forgotten -----------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterDaemon]:
    with cluster_daemon(tmp_path, nft("eth9"), POOL, WEB) as daemon:
        yield daemon


def condition(daemon: ClusterDaemon, kind: str) -> Raw | None:
    """The router's condition in the status that the daemon has written last."""
    written = [json.loads(each.body) for each in list(daemon.cluster.rest.requests) if each.path.endswith("/status")]
    for body in reversed(written):
        for router in body.get("status", {}).get("routers", []):
            return next((each for each in router["conditions"] if each["type"] == kind), None)
    return None


def ready(daemon: ClusterDaemon) -> str:
    return str((condition(daemon, "Ready") or {}).get("status"))


def test_a_router_without_its_public_nic_is_not_ready_and_says_so_until_the_nic_is_there(
    cluster: ClusterDaemon,
) -> None:
    cluster.start(ready=False)
    lab = cluster.lab
    assert eventually(lambda: ready(cluster) == "False"), cluster.log()
    told = condition(cluster, "Ready")
    assert told
    assert "eth9" in told["message"]
    assert (condition(cluster, "RateShaping") or {})["status"] == "False"
    assert eventually(lambda: "eth9" in cluster.systemd_status), cluster.systemd_status
    assert cluster.status()["public_nic"]["missing"]
    assert not cluster.status()["public_nic"]["attached"]
    assert "eth9 is not there" in cluster.command("status").stdout
    ways = [Way("public0")]
    assert passes_alone(lab, {NIC: lab.public}, ways)
    assert not outwards(lab, {NIC: lab.public}), "every interface counts as public"
    lab.unplug()
    lab.plug("eth9")
    assert eventually(lambda: ready(cluster) == "True"), cluster.log()
    assert eventually(lambda: "eth9" not in cluster.systemd_status), cluster.systemd_status
    assert passes_alone(lab, {NIC: lab.public}, [Way("eth9")])
    assert outwards(lab, {NIC: lab.public})


def test_one_of_two_public_nics_is_missing_and_the_other_one_works(tmp_path: Path) -> None:
    with Lab(NIC) as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        daemon.put({**nft(), "spec": {"public_nics": [NIC, "eth9"]}}, POOL, WEB, SLOW)
        daemon.start(ready=False)
        wires = {NIC: lab.public}
        assert eventually(lambda: passes_alone(lab, wires, [Way(NIC)])), daemon.log()
        assert outwards(lab, wires)
        assert status(daemon)["public_nic"]["missing"]
        assert "eth9 is not there" in daemon.command("status").stdout


def test_a_nic_with_a_default_route_that_is_not_public_is_named(tmp_path: Path) -> None:
    with Lab(NIC) as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        second = lab.uplink("wan1")
        lab.router.ip(f"route add default via {second.there[0]} dev wan1")
        daemon.extra = f'[overrides."{socket.gethostname()}"]\npublic_nic = "{NIC}"\n'
        daemon.configure()
        daemon.put(nft(NIC), POOL, WEB)
        daemon.start()
        told = "wan1 has a default route, but does not count as public"
        assert eventually(lambda: told in daemon.command("status").stdout), daemon.command("status").stdout
        assert told in daemon.command("check").stdout


@pytest.mark.parametrize("daemon_of", ["bgp", "bird"])
def test_a_nic_with_a_route_out_of_the_pools_by_bgp_that_is_not_public_is_named(tmp_path: Path, daemon_of: str) -> None:
    with Lab(NIC) as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        second = lab.uplink("wan1")
        daemon.put(nft(NIC), POOL, WEB)
        daemon.start()
        assert eventually(lambda: elements(lab, "services4")), daemon.log()
        assert daemon.stop() == 0
        lab.router.ip(
            f"route add 203.0.113.0/24 via {second.there[0]} dev wan1 proto {daemon_of}",
            f"route add 172.30.254.64/26 via {lab.inside.there[0]} dev cluster0 proto {daemon_of}",
        )
        daemon.start()
        assert eventually(lambda: "wan1 has a route" in daemon.command("status").stdout), daemon.command(
            "status"
        ).stdout
        assert "cluster0 has" not in daemon.command("status").stdout, "a Service's route leads inside"


def test_a_parent_with_an_address_is_inside_and_named_in_a_warning(tmp_path: Path) -> None:
    row = ROWS["a macvlan, and a frame for its parent"]
    with Lab(NIC) as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        built(lab, row)
        lab.router.ip(f"address add 10.0.0.1/24 dev {NIC}")
        daemon.put(resource(row), POOL, WEB)
        daemon.start()
        assert eventually(lambda: passes_alone(lab, {NIC: lab.public}, [Way("mv0")])), daemon.log()
        assert f"{NIC} carries a public interface, but has an address" in daemon.command("status").stdout
        lab.router.ip(f"address del 10.0.0.1/24 dev {NIC}")
        assert eventually(lambda: passes_alone(lab, {NIC: lab.public}, row.ways)), "without its address it is public"
        assert NIC not in status(daemon)["public"]["warnings"]


# --- who counts as inside -------------------------------------------------------------------------------


def test_with_inside_nics_only_those_and_their_masters_open_connections(tmp_path: Path) -> None:
    with Lab(NIC) as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        dmz, lan = lab.uplink("dmz0"), lab.uplink("lan1")
        daemon.put({**nft(), "spec": {"public_nic": NIC, "inside_nics": ["cluster0", "lan1"]}}, POOL, WEB)
        daemon.start()
        out = [Frame(Probe("tcp", str(peer), 443)) for peer in lab.public.there]
        own = [Frame(Probe("tcp", str(address), 9100)) for address in lab.inside.here]

        def opens(wire: Wire, public: Wire = lab.public) -> bool:
            arrived = lab.deliver_frames(wire, [*out, *own], [public])
            assert arrived in ([], [*out, *own])
            return bool(arrived)

        assert passes_alone(lab, {NIC: lab.public}, [Way(NIC)])
        assert (opens(lab.inside), opens(lan), opens(dmz)) == (True, True, False)
        lab.router.ip(*bridged("br0", "lan1"), "address flush dev lan1")
        lan.address("br0")
        assert eventually(lambda: opens(lan)), "the bridge of an inside NIC is inside"
        assert not opens(dmz)
        lab.router.ip(f"link set {NIC} name other0")
        assert eventually(lambda: status(daemon)["public_nic"]["missing"])
        public = replace(lab.public, nic="other0")
        assert opens(lan, public), "the inside needs no public NIC"
        assert not opens(dmz, public)
        assert passes_alone(lab, {NIC: public}, [Way("other0")])


# --- tunnels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [True, False], ids=["to a device", "to an address"])
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=needs_kernel(kind)) for kind in ("vxlan", "gretap")])
def test_a_tunnel_over_the_public_nic_without_an_address_is_public(tmp_path: Path, kind: str, bound: bool) -> None:  # noqa: FBT001
    options = {"vxlan": "id 5 dstport 4789", "gretap": ""}[kind]
    with Lab(NIC) as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        here, there = lab.public.here[0], lab.public.there[0]
        for place, nic, local, remote in ((lab.router, NIC, here, there), (lab.client, "eth0", there, here)):
            ends = f"local {local} remote {remote}" + (f" dev {nic}" if bound else "")
            place.ip(f"link add name tun0 type {kind} {options} {ends}", "link set tun0 addrgenmode none up")
        daemon.local_chain.write_text(
            f"chain local-chain {{\n\tip saddr {there} meta l4proto {{ udp, gre }} ip daddr {here} accept\n}}\n"
        )
        tunnel = {NIC: replace(lab.public, nic="tun0", end="tun0")}
        ways = [Way("tun0")]
        assert eventually(lambda: all_pass(lab, tunnel, ways)), "without a firewall"
        daemon.put(nft(NIC), POOL, WEB)
        daemon.start()
        assert eventually(lambda: passes_alone(lab, tunnel, ways)), daemon.log()
