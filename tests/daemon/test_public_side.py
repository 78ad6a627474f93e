"""The public side is a set of interfaces, whatever the router has built on its public NIC, before or after the start.

Each row is a router that people have. Frames come in by every way that a public wire offers. No
packet to a closed port passes, each open one does, limits count every packet once, and the inside
opens connections outwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.chaos import POOL
from tests.lab.lab import Frame, Lab, Probe, Wire
from tests.labtools import Daemon, eventually, needs_root
from tests.publicside import (
    BURST,
    NIC,
    ROWS,
    SLOW,
    WEB,
    Row,
    Way,
    all_pass,
    built,
    kinds,
    limited,
    outwards,
    passes_alone,
    resource,
    status,
)
from tests.reboot import before_the_network, boot, power_off, remembers
from tests.topology import links

pytestmark = needs_root

rows = pytest.mark.parametrize(
    "row", [pytest.param(row, id=name, marks=pytest.mark.needs_kernel(*kinds(row))) for name, row in ROWS.items()]
)


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
