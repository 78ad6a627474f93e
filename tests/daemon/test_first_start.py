"""The first start on a router that forwards already: nothing is cut, and the first table comes with its pinholes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faultycluster import METALLB, FaultyCluster
from tests.faultyserver import refusal
from tests.lab.lab import TcpServer
from tests.labtools import SERVICE4, answers, eventually, needs_root, nft, service, tables
from tests.process import (
    CLOSED,
    INVALID_NFT,
    OPEN,
    POOL,
    WEB,
    WEB_KEY,
    ClusterDaemon,
    cluster_daemon,
    flow,
    systemctl_start,
    transactions,
)

pytestmark = needs_root

FORWARDING = (*OPEN, *CLOSED)
Outage = Callable[[FaultyCluster], None]
WITHOUT_SETTINGS: dict[str, Outage] = {
    "the server refuses": FaultyCluster.refuse,
    "the server hangs": FaultyCluster.hang,
    "it denies everything": lambda cluster: cluster.always(refusal(403)),
    "the list of Services is slow": lambda cluster: cluster.hang("Service"),
    "the list of the Nft is slow": lambda cluster: cluster.hang("Nft"),
    "the Nft is missing": lambda cluster: cluster.remove(nft()),
    "the Nft is invalid": lambda cluster: cluster.put(INVALID_NFT),
    "the kind Nft is not installed": lambda cluster: cluster.uninstall("Nft"),
}
WITHOUT_POOLS: dict[str, Outage] = {
    "the list of IPAddressPools is slow": lambda cluster: cluster.hang("IPAddressPool"),
    "the list of ConfigMaps is slow": lambda cluster: cluster.hang("ConfigMap"),
    "BGPPeers are broken": lambda cluster: cluster.always(refusal(500), "BGPPeer"),
}
OUTAGES = WITHOUT_SETTINGS | WITHOUT_POOLS
STARTS: dict[str, Callable[[ClusterDaemon], None]] = {
    "nftsync run": ClusterDaemon.waiting,
    "systemctl start": systemctl_start,
}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ClusterDaemon]:
    """Not started, in a router that forwards everything."""
    with cluster_daemon(tmp_path, nft(), POOL, WEB) as made:
        yield made


@pytest.mark.parametrize(("start", "outage"), [
    *(("nftsync run", outage) for outage in OUTAGES),
    *(("systemctl start", outage) for outage in OUTAGES),
])  # fmt: skip
def test_nothing_is_cut_while_something_is_not_known_yet(daemon: ClusterDaemon, start: str, outage: str) -> None:
    OUTAGES[outage](daemon.cluster)
    with flow(daemon.lab, *FORWARDING, passing=len(FORWARDING)) as flowing:
        STARTS[start](daemon)
        daemon.local_chain.write_text("chain local-chain {\n\ttcp dport 4444 accept\n}\n")  # something to look at again
        before = daemon.syncs()
        assert eventually(lambda: daemon.syncs() > before + 1), daemon.log()
        found = flowing.end()
    assert found.lost() == {}
    assert tables(daemon.lab) == set()
    assert daemon.get("/readyz").status == 503


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kind", ["Service", "Nft", *METALLB])
def test_the_first_table_comes_with_its_pinholes(daemon: ClusterDaemon, start: str, kind: str) -> None:
    gate = daemon.cluster.hold(kind)
    with transactions(daemon.lab) as committed, flow(daemon.lab, *FORWARDING, passing=len(FORWARDING)) as flowing:
        STARTS[start](daemon)
        gate.set()
        assert eventually(lambda: daemon.get("/readyz").status == 200), daemon.log()
        assert not daemon.lab.arrives("udp", SERVICE4, 81)
        found = flowing.end()
        first = committed.first("add table inet nftsync")
    assert set(found.lost()) == set(CLOSED), "what is open is never closed"
    assert all(found.shut_once(destination) for destination in CLOSED)
    assert any(line.startswith("add element inet nftsync services4") and WEB_KEY in line for line in first), first


@pytest.mark.parametrize("start", STARTS)
def test_a_first_start_that_is_interrupted_cuts_nothing_the_next_time(daemon: ClusterDaemon, start: str) -> None:
    daemon.cluster.hang("IPAddressPool")
    with flow(daemon.lab, *FORWARDING, passing=len(FORWARDING)) as flowing:
        for _ in range(2):
            STARTS[start](daemon)
            daemon.kill()
        daemon.cluster.refuse()
        STARTS[start](daemon)
        found = flowing.end()
    assert found.lost() == {}


@pytest.mark.parametrize("start", STARTS)
def test_a_connection_through_the_router_outlives_the_first_start(daemon: ClusterDaemon, start: str) -> None:
    daemon.put(service("tcp", "172.30.254.3"))
    gate = daemon.cluster.hold("BGPPeer")
    with TcpServer(daemon.lab.node, 80), daemon.lab.tcp_connect("172.30.254.3", 80) as connection:
        STARTS[start](daemon)
        assert answers(connection)
        gate.set()
        assert eventually(lambda: daemon.get("/readyz").status == 200), daemon.log()
        assert answers(connection)


@pytest.mark.parametrize("outage", ["the server refuses", "the Nft is missing", "the list of IPAddressPools is slow"])
def test_everybody_is_told_that_this_router_does_not_filter(daemon: ClusterDaemon, outage: str) -> None:
    OUTAGES[outage](daemon.cluster)
    daemon.waiting()
    shown = daemon.command("status").stdout
    assert "waiting" in shown
    assert "nothing is applied yet" in shown
    assert "this router does not filter" in shown
    assert eventually(lambda: "this router does not filter" in daemon.systemd_status), daemon.systemd_status
    found = daemon.status()
    assert found["sync"]["result"] == "waiting"
    assert found["pinholes"] == 0
    explained = daemon.explain(f"{SERVICE4}:80/udp")
    assert explained["verdict"] == "passes", explained
    assert "does not filter" in " ".join(explained["lines"])
    difference = daemon.command("diff")
    assert (difference.returncode, difference.stdout) == (0, "")
    assert daemon.metric("nftsync_ready") == 0
