"""The filter does not depend on the public NIC: while there is none of its name, every interface counts as public."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import PUBLIC, Lab, TcpServer
from tests.labtools import SERVICE4, SERVICE6, Daemon, answers, elements, eventually, needs_root, nft, rules, service
from tests.load import traffic

pytestmark = needs_root

WEB = service("web", SERVICE4, SERVICE6, ports=[("TCP", 80), ("UDP", 80)])
OPEN = [f"{SERVICE4} 80", f"{SERVICE6} 80"]
CLOSED = [
    f"{SERVICE4} 81",
    f"{SERVICE6} 81",
    "172.30.254.200 80",
    "2001:db8:254::200 80",
    *(f"{each} 5000" for each in PUBLIC),
]
POOL = {
    "apiVersion": "metallb.io/v1beta1",
    "kind": "IPAddressPool",
    "metadata": {"namespace": "metallb-system", "name": "services", "uid": "uid-services"},
    "spec": {"addresses": ["172.30.254.0/24", "2001:db8:254::/64"]},
}
HOOKED = 'hook ingress device "public0"'
MISSING = "public0 is not there: every interface counts as public, and no ingress limit is in force"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Lab() as lab, Daemon(lab, tmp_path, interval=600) as made:
        made.put(nft(), WEB)
        yield made.start()


def renamed(lab: Lab, before: str, after: str) -> None:
    lab.router.ip(f"link set {before} name {after}")


def test_a_nic_that_gets_another_name_lets_nothing_else_in_at_any_instant(daemon: Daemon) -> None:
    lab, good = daemon.lab, rules(daemon.lab)
    with traffic(lab, [*OPEN, *CLOSED]) as running:
        assert eventually(lambda: running.through(len(OPEN)))
        for _ in range(5):
            renamed(lab, "public0", "wan0")
            assert eventually(lambda: "public0" not in rules(lab)), daemon.log()
            renamed(lab, "wan0", "public0")
            assert eventually(lambda: rules(lab) == good), daemon.log()
        tallies = running.end()
    assert all(each.arrived for each in tallies[: len(OPEN)])
    assert [each.arrived for each in tallies[len(OPEN) :]] == [0] * len(CLOSED), tallies
    assert min(each.sent for each in tallies) > 100


def test_while_no_daemon_runs_a_nic_that_gets_another_name_lets_nothing_in(daemon: Daemon) -> None:
    assert daemon.stop() == 0
    renamed(daemon.lab, "public0", "wan0")
    daemon.lab.public_nic = "wan0"
    assert not daemon.lab.arrives("tcp", SERVICE4, 81)
    assert not daemon.lab.arrives("tcp", str(PUBLIC[0]), 5000)


@pytest.mark.parametrize("running", [True, False], ids=["a daemon runs", "no daemon runs"])
def test_a_connection_that_was_cut_off_stays_so_while_the_nic_has_another_name(daemon: Daemon, running: bool) -> None:  # noqa: FBT001
    lab, other = daemon.lab, service("other", "172.30.254.2")
    daemon.put(POOL, other)
    with (
        TcpServer(lab.node, 80),
        lab.tcp_connect(SERVICE4, 80) as connection, lab.tcp_connect("172.30.254.2", 80) as neighbour,
    ):  # fmt: skip
        assert answers(connection)
        daemon.remove(WEB)
        assert eventually(lambda: f"{SERVICE4} . tcp . 80" not in elements(lab, "services4")), daemon.log()
        if not running:
            assert daemon.stop() == 0
        renamed(lab, "public0", "wan0")
        assert not answers(connection, 2.0), "TCP has sent it again by then"
        assert answers(neighbour), "what is open stays open"


def test_without_the_nic_what_is_asked_for_is_open_at_every_interface_and_nothing_else(daemon: Daemon) -> None:
    lab = daemon.lab
    assert lab.arrives("tcp", str(PUBLIC[0]), 5000, origin="node"), "the cluster's side is trusted"
    lab.unplug()
    lab.plug("wan0")
    assert eventually(lambda: "public0" not in rules(lab)), daemon.log()
    assert MISSING in daemon.log()
    assert lab.arrives("tcp", SERVICE4, 80)
    assert lab.arrives("udp", SERVICE6, 80)
    assert not lab.arrives("tcp", SERVICE4, 81)
    assert not lab.arrives("tcp", str(PUBLIC[0]), 5000)
    assert not lab.arrives("tcp", str(PUBLIC[0]), 5000, origin="node"), "it may be the public side"
    with TcpServer(lab.router, 22):
        lab.tcp_connect(str(PUBLIC[0]), 22).close()
    assert "public0 is not there: every interface counts as public" in daemon.command("status").stdout
    lab.unplug()
    lab.plug("public0")
    assert eventually(lambda: HOOKED in rules(lab)), daemon.log()
    assert lab.arrives("tcp", str(PUBLIC[0]), 5000, origin="node")
    assert not lab.arrives("tcp", str(PUBLIC[0]), 5000)
    assert "these interfaces count as public: public0" in daemon.log()


def test_a_local_chain_keeps_the_inside_open_whatever_becomes_of_the_nic(daemon: Daemon) -> None:
    lab = daemon.lab
    daemon.local_chain.write_text('chain local-chain {\n\tiifname "cluster0" ct state new accept\n}\n')
    assert eventually(lambda: "cluster0" in rules(lab))
    lab.unplug()
    lab.plug("wan0")
    assert eventually(lambda: "public0" not in rules(lab))
    assert lab.arrives("tcp", str(PUBLIC[0]), 5000, origin="node")
    assert not lab.arrives("tcp", str(PUBLIC[0]), 5000)
