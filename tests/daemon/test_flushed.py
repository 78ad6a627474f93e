"""The daemon puts removed rules back with their pinholes.

It does so even if this process has not yet heard everything of its cluster.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faultycluster import METALLB, FaultyCluster
from tests.faultyserver import refusal
from tests.lab.lab import PUBLIC
from tests.labtools import SERVICE4, SERVICE6, eventually, needs_root, nft, rules, service
from tests.process import CLOSED, INVALID_NFT, OPEN, POOL, WEB, ClusterDaemon, cluster_daemon, flow, systemctl_start
from tests.reboot import early_boot, power_off, remembers

pytestmark = needs_root

FRIENDS = service("friends", "172.30.254.2", sources=["203.0.113.0/24"])
SLOW = service("slow", "172.30.254.3", limit="1/week burst 3 packets")
OUTAGES: dict[str, Callable[[FaultyCluster], None]] = {
    "the server refuses": FaultyCluster.refuse,
    "the server hangs": FaultyCluster.hang,
    "it denies everything": lambda cluster: cluster.always(refusal(403)),
    "the Nft is missing": lambda cluster: cluster.remove(nft()),
    "the Nft is invalid": lambda cluster: cluster.put(INVALID_NFT),
    "the kind Nft is not installed": lambda cluster: cluster.uninstall("Nft"),
    "Services are listed and the Nft is not": lambda cluster: cluster.hang("Nft"),
    "the Nft is listed and Services are not": lambda cluster: cluster.hang("Service"),
    "MetalLB's kinds hang": lambda cluster: cluster.hang(*METALLB),
}
DAMAGES = (
    "flush ruleset",
    "delete table inet nftsync",
    "delete table netdev nftsync",
    "flush chain inet nftsync operator-svc",
    "flush chain inet nftsync forward; flush set inet nftsync services4",
    "add table inet nftsync { flags dormant; }",
)
PARTS = (DAMAGES[2], DAMAGES[4])


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ClusterDaemon]:
    with cluster_daemon(tmp_path, nft(), POOL, WEB, FRIENDS, SLOW) as made:
        yield made


# --- what came before ---------------------------------------------------------------------------------


def stopped(daemon: ClusterDaemon) -> None:
    assert daemon.start().stop() == 0


def killed(daemon: ClusterDaemon) -> None:
    daemon.start()
    assert remembers(daemon)
    daemon.kill()


def flushed_meanwhile(daemon: ClusterDaemon) -> None:
    killed(daemon)
    daemon.lab.router.nft("flush ruleset")


def rebooted(daemon: ClusterDaemon) -> None:
    power_off(daemon.start())
    early_boot(daemon)


def rebooted_without_the_boot_unit(daemon: ClusterDaemon) -> None:
    power_off(daemon.start())


HISTORIES = {
    each.__name__: each for each in (stopped, killed, flushed_meanwhile, rebooted, rebooted_without_the_boot_unit)
}


# --- the proofs ---------------------------------------------------------------------------------------


def as_asked_for(daemon: ClusterDaemon) -> None:
    lab = daemon.lab
    assert lab.arrives("udp", SERVICE4, 80)
    assert lab.arrives("udp", SERVICE6, 80)
    assert lab.arrives("tcp", "172.30.254.2", 80, source="203.0.113.9")
    assert lab.arrives("tcp", str(PUBLIC[0]), 22)
    as_closed(daemon)


def as_closed(daemon: ClusterDaemon) -> None:
    assert not daemon.lab.arrives("udp", SERVICE4, 81)
    assert not daemon.lab.arrives("tcp", "172.30.254.2", 80)
    assert not daemon.lab.arrives("tcp", str(PUBLIC[0]), 23)


def put_back(daemon: ClusterDaemon, damage: str, good: str) -> None:
    """Do the damage, twice."""
    for _ in range(2):
        daemon.lab.router.run(["nft", damage])
        assert eventually(lambda: rules(daemon.lab) == good), f"{damage}: {rules(daemon.lab)}\n{daemon.log()}"


@pytest.mark.parametrize(("history", "outage", "damage"), [
    *((history, "the server refuses", "flush ruleset") for history in HISTORIES),
    *((history, "MetalLB's kinds hang", "flush ruleset") for history in HISTORIES),
    *((history, "the Nft is missing", "flush ruleset") for history in ("rebooted", "rebooted_without_the_boot_unit")),
    *(("killed", outage, "flush ruleset") for outage in list(OUTAGES)[1:-1]),
    *(("rebooted", "the server refuses", damage) for damage in DAMAGES if damage not in (DAMAGES[0], *PARTS)),
    *(("rebooted", "the server refuses", damage) for damage in PARTS),
])  # fmt: skip
def test_what_the_daemon_remembers_is_put_back(daemon: ClusterDaemon, history: str, outage: str, damage: str) -> None:
    daemon.start()
    good = rules(daemon.lab)
    daemon.stop()
    HISTORIES[history](daemon)
    OUTAGES[outage](daemon.cluster)
    daemon.start(ready=False)
    assert eventually(lambda: rules(daemon.lab) == good), f"{rules(daemon.lab)}\n{daemon.log()}"
    as_asked_for(daemon)
    put_back(daemon, damage, good)
    as_asked_for(daemon)


@pytest.mark.parametrize(("outage", "damage"), [
    ("MetalLB's kinds hang", "flush ruleset"),
    *(("the server refuses", damage) for damage in (*DAMAGES[:2], *DAMAGES[4:])),
    *((outage, "flush ruleset") for outage in list(OUTAGES)[1:-1]),
])  # fmt: skip
def test_the_base_of_early_boot_is_put_back(daemon: ClusterDaemon, outage: str, damage: str) -> None:
    early_boot(daemon)
    OUTAGES[outage](daemon.cluster)
    daemon.waiting()
    if outage == "the Nft is listed and Services are not":
        assert eventually(lambda: "172.30.254.0/24" in rules(daemon.lab)), "the pools are listed after the first sync"
    good = rules(daemon.lab)
    assert "chain operator-svc" in good
    put_back(daemon, damage, good)
    assert daemon.lab.arrives("tcp", str(PUBLIC[0]), 22)
    assert not daemon.lab.arrives("udp", SERVICE4, 80)
    as_closed(daemon)


@pytest.mark.parametrize("outage", ["the server refuses", "MetalLB's kinds hang", "the Nft is missing"])
def test_what_a_process_found_is_put_back_though_no_disk_ever_took_it(daemon: ClusterDaemon, outage: str) -> None:
    """As after a first sync whose process was killed before it could write anything down."""
    daemon.state.write_text("a file stands where the folder should")
    daemon.start()
    good = rules(daemon.lab)
    daemon.kill()
    OUTAGES[outage](daemon.cluster)
    daemon.waiting()
    assert rules(daemon.lab) == good
    daemon.lab.router.nft("flush ruleset")
    assert eventually(
        lambda: daemon.lab.arrives("udp", SERVICE4, 80) and not daemon.lab.arrives("tcp", SERVICE4, 81)
    ), daemon.log()
    as_asked_for(daemon)


def test_once_the_server_answers_again_what_it_says_holds_also_after_a_flush(daemon: ClusterDaemon) -> None:
    killed(daemon)
    daemon.cluster.refuse()
    daemon.waiting()
    daemon.lab.router.nft("flush ruleset")
    daemon.remove(FRIENDS)
    daemon.cluster.listen()
    assert eventually(lambda: not daemon.lab.arrives("tcp", "172.30.254.2", 80, source="203.0.113.9"), 30), daemon.log()
    assert daemon.lab.arrives("udp", SERVICE4, 80)
    as_closed(daemon)


# --- what was lost ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rebooted", [False, True], ids=["since the boot", "before the boot"])
@pytest.mark.parametrize(("start", "outage"), [
    ("systemctl start", "the server refuses"), ("nftsync run", "MetalLB's kinds hang"),
    ("systemctl start", "the Nft is missing"),
])  # fmt: skip
def test_a_router_that_lost_its_state_keeps_the_pinholes_that_stand(
    daemon: ClusterDaemon, start: str, outage: str, rebooted: bool  # noqa: FBT001
) -> None:  # fmt: skip
    killed(daemon)
    shutil.rmtree(daemon.state)
    if rebooted:
        shutil.rmtree(daemon.runtime)
    OUTAGES[outage](daemon.cluster)
    with flow(daemon.lab, *OPEN, *CLOSED, passing=len(OPEN)) as flowing:
        (systemctl_start if start == "systemctl start" else ClusterDaemon.waiting)(daemon)
        before = daemon.syncs()
        daemon.local_chain.write_text("chain local-chain {\n\tudp dport 4444 accept\n}\n")  # something to look at again
        assert eventually(lambda: daemon.syncs() > before), daemon.log()
        found = flowing.end()
    assert found.arrived() == set(OPEN)
    assert not set(found.lost()) & set(OPEN)
    as_asked_for(daemon)


def test_what_was_switched_off_stays_off_after_a_restart_and_a_flush_without_the_server(daemon: ClusterDaemon) -> None:
    daemon.start()
    daemon.put(nft(enable_ssh=False))
    assert eventually(lambda: not daemon.lab.arrives("tcp", str(PUBLIC[0]), 22)), daemon.log()
    daemon.kill()
    daemon.cluster.refuse()
    daemon.remembering()
    daemon.lab.router.nft("flush ruleset")
    assert eventually(lambda: not daemon.lab.arrives("udp", SERVICE4, 81)), daemon.log()
    assert not daemon.lab.arrives("tcp", str(PUBLIC[0]), 22)
    assert daemon.lab.arrives("udp", SERVICE4, 80)


def test_a_reload_while_the_server_is_away_touches_no_pinhole(daemon: ClusterDaemon) -> None:
    stopped(daemon)
    daemon.cluster.refuse()
    daemon.remembering()
    good = rules(daemon.lab)
    with flow(daemon.lab, *OPEN, passing=len(OPEN)) as flowing:
        before = daemon.syncs()
        daemon.signal(signal.SIGHUP)
        assert eventually(lambda: "configuration reloaded" in daemon.log() and daemon.syncs() > before), daemon.log()
        found = flowing.end()
    assert found.lost() == {}
    assert rules(daemon.lab) == good
    assert daemon.status()["pinholes"] == 4
