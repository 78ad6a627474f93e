"""The public side as people name it: alternative names, missing and forgotten NICs, insides, tunnels."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos import POOL
from tests.lab.lab import PUBLIC, Frame, Lab, Probe, TcpServer, Wire
from tests.labtools import Daemon, Raw, elements, eventually, needs_root, nft
from tests.process import ClusterDaemon, cluster_daemon
from tests.publicside import (
    BURST,
    NIC,
    ROWS,
    SLOW,
    WEB,
    Way,
    all_pass,
    bridged,
    built,
    limited,
    outwards,
    passes_alone,
    resource,
    status,
)
from tests.reboot import before_the_network, boot, power_off, remembers

pytestmark = needs_root


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


def test_one_of_two_public_nics_gets_another_name_and_stays_public(tmp_path: Path) -> None:
    with Lab(NIC) as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        lab.uplink("wan1")
        daemon.put({**nft(), "spec": {"public_nics": [NIC, "wan1"]}}, POOL, WEB, SLOW)
        daemon.start()
        lab.router.ip(f"link set {NIC} name other0")
        assert eventually(lambda: status(daemon)["public_nic"]["missing"]), daemon.log()
        wires = {NIC: replace(lab.public, nic="other0")}
        assert passes_alone(lab, wires, [Way("other0")])
        assert outwards(lab, wires)
        assert limited(lab, wires, [Way("other0")]) == (BURST, BURST)
        assert f"{NIC} is called 'other0' now" in daemon.command("status").stdout
        lab.router.ip(f"link set other0 name {NIC}")
        assert eventually(lambda: not status(daemon)["public_nic"]["missing"]), daemon.log()
        assert passes_alone(lab, {NIC: lab.public}, [Way(NIC)])


def test_after_a_boot_public_nics_that_nobody_has_confirmed_are_not_public(tmp_path: Path) -> None:
    with Lab(NIC) as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        daemon.put(nft(NIC), POOL, WEB)
        daemon.start()
        assert remembers(daemon)
        daemon.configure(f"confirm_seconds = 600\n{daemon.config.read_text()}")
        daemon.signal(signal.SIGHUP)
        assert eventually(lambda: "configuration reloaded" in daemon.log())
        daemon.put(nft("cluster0"))
        assert eventually(lambda: status(daemon)["public"]["interfaces"] == ["cluster0"]), daemon.log()
        power_off(daemon)
        boot(daemon)
        wires = {NIC: lab.public}
        assert passes_alone(lab, wires, [Way(NIC)])
        assert outwards(lab, wires), "the cluster's NIC is inside"


def test_after_a_boot_limits_are_in_force_at_the_nics_that_the_configuration_names_now(tmp_path: Path) -> None:
    with Lab(NIC) as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        second = lab.uplink("wan1")
        daemon.put(nft(NIC), POOL, WEB, SLOW)
        daemon.start()
        assert remembers(daemon)
        power_off(daemon)
        daemon.extra = f'[overrides."{socket.gethostname()}"]\npublic_nics = ["{NIC}", "wan1"]\n'
        daemon.configure()
        boot(daemon)
        wires, ways = {NIC: lab.public, "wan1": second}, [Way(NIC), Way("wan1", wire="wan1")]
        assert passes_alone(lab, wires, ways)
        assert limited(lab, wires, ways) == (BURST, BURST)


def test_after_a_boot_and_before_the_daemon_the_bridge_of_an_inside_nic_opens_connections(tmp_path: Path) -> None:
    with Lab(NIC) as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        lan = lab.uplink("lan1")
        lab.router.ip(*bridged("br0", "lan1"), "address flush dev lan1")
        lan.address("br0")
        daemon.put({**nft(), "spec": {"public_nic": NIC, "inside_nics": ["cluster0", "lan1"]}}, POOL, WEB)
        daemon.start()
        out = [Frame(Probe("tcp", str(peer), 443)) for peer in lab.public.there]
        assert eventually(lambda: lab.deliver_frames(lan, out, [lab.public]) == out), daemon.log()
        assert remembers(daemon)
        power_off(daemon)
        boot(daemon)
        assert lab.deliver_frames(lan, out, [lab.public]) == out
        assert passes_alone(lab, {NIC: lab.public}, [Way(NIC)])


@pytest.mark.parametrize("bound", [True, False], ids=["to a device", "to an address"])
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.needs_kernel(kind)) for kind in ("vxlan", "gretap")]
)
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
