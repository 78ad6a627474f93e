"""After a restart without the API server everything shows what is in force, that it is remembered, and since when."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faultycluster import METALLB, FaultyCluster
from tests.lab.lab import Probe
from tests.labtools import PUBLIC_NIC, SERVICE4, eventually, needs_root, nft, service
from tests.process import POOL, WEB, ClusterDaemon, cluster_daemon
from tests.reboot import boot, power_off, remembers
from tests.support import ROOT

pytestmark = needs_root

FRIENDS = service("friends", "172.30.254.2", sources=["203.0.113.0/24"])
SLOW = service("slow", "172.30.254.3", ports=[("UDP", 53)], limit="1/week burst 3 packets")
ALERTS = ROOT / "packaging/monitoring/nftsync-alerts.yaml"
SINCE = re.compile(r"\bsince (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)\b")
SENT = 7  # packets to WEB before the restart


@dataclass
class Restarted:
    """A daemon that was started again while its API server was away.

    before: its status before that.  stale: the sources of which it can't know anything new.
    stopped: when it ended, as texts sort.
    """

    daemon: ClusterDaemon
    before: dict[str, Any]
    stale: set[str]
    stopped: str


def terminated(daemon: ClusterDaemon) -> None:
    assert daemon.stop() == 0


def killed(daemon: ClusterDaemon) -> None:
    assert remembers(daemon)
    daemon.kill()


def rebooted(daemon: ClusterDaemon) -> None:
    power_off(daemon)
    boot(daemon)


ALL = {"services", "settings", "pools"}
Case = tuple[Callable[[ClusterDaemon], None], Callable[[FaultyCluster], None], set[str]]
CASES: dict[str, Case] = {
    "terminated, the server refuses": (terminated, FaultyCluster.refuse, ALL),
    "killed, the server hangs": (killed, FaultyCluster.hang, ALL),
    "terminated, MetalLB's kinds hang": (terminated, lambda cluster: cluster.hang(*METALLB), {"pools"}),
    "rebooted, the server refuses": (rebooted, FaultyCluster.refuse, ALL),
}


EXPLAINED = {
    (f"{SERVICE4}:80/udp",): ("passes", "open", "default/web"),
    ("default/web",): ("passes", "open", "default/web"),
    ("203.0.113.9", "172.30.254.2:80"): ("passes", "open", "default/friends"),
    ("192.0.2.9", "172.30.254.2:80"): ("dropped", "refused_source", "default/friends"),
    ("172.30.254.3:53/udp",): ("limited", "open", "default/slow"),
    (f"{SERVICE4}:81",): ("dropped", "no_such_port", "default/web"),
    ("172.30.254.77:80",): ("dropped", "no_such_address", None),
}


def explained(daemon: ClusterDaemon, words: tuple[str, ...]) -> tuple[str, str, str | None]:
    found = daemon.explain(*words)
    return found["verdict"], found["reason"], found["service"]


@pytest.fixture(scope="module", params=CASES)
def restarted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    """For tests that change nothing."""
    end, outage, stale = CASES[request.param]
    with cluster_daemon(tmp_path_factory.mktemp("restarted"), nft(), POOL, WEB, FRIENDS, SLOW) as daemon:
        daemon.start()
        before = daemon.status()
        assert {words: explained(daemon, words) for words in EXPLAINED} == EXPLAINED
        outage(daemon.cluster)
        end(daemon)
        stopped = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        time.sleep(1.1)  # so that a time stamp tells the daemon before from this one
        daemon.waiting()
        daemon.lab.deliver([Probe("udp", SERVICE4, 80)] * SENT)
        yield Restarted(daemon, before, stale, stopped)


def remembered_since(text: str, restarted: Restarted) -> bool:
    """Whether a text says that something is remembered, and since when: that was before the restart."""
    found = SINCE.findall(text)
    return "remembered" in text and bool(found) and all(each <= restarted.stopped for each in found)


def test_it_was_as_it_should_be_before(restarted: Restarted) -> None:
    before = restarted.before
    assert (before["services"], before["pinholes"], before["rejected"], before["stale"]) == (3, 4, 0, {})
    assert before["pools"] == {"guarded": True, "names": ["services"]}
    assert before["public_nic"] == {"name": PUBLIC_NIC, "attached": True, "missing": False, "rate_shaping": True}


def test_the_status_shows_what_is_in_force(restarted: Restarted) -> None:
    shown, before = restarted.daemon.status(), restarted.before
    same = ("services", "pinholes", "pools", "public_nic", "settings")
    assert {key: shown[key] for key in same} == {key: before[key] for key in same}
    assert shown["sync"]["hash"] == before["sync"]["hash"]


def test_nothing_is_refused_of_what_is_remembered(restarted: Restarted) -> None:
    shown = restarted.daemon.status()
    assert (shown["rejected"], shown["rejections"]) == (0, [])


def test_the_status_says_that_it_is_remembered_and_since_when(restarted: Restarted) -> None:
    daemon = restarted.daemon
    assert eventually(lambda: set(daemon.status()["stale"]) == restarted.stale), daemon.status()["stale"]
    for why in daemon.status()["stale"].values():
        assert remembered_since(why, restarted), why
    lines = [line for line in daemon.command("status").stdout.splitlines() if line.startswith("stale: ")]
    assert len(lines) == len(restarted.stale)
    assert all(remembered_since(line, restarted) for line in lines)


def test_systemd_is_told_that_it_is_remembered(restarted: Restarted) -> None:
    assert eventually(lambda: "remembered" in restarted.daemon.systemd_status), restarted.daemon.systemd_status


def test_diff_shows_no_difference(restarted: Restarted) -> None:
    done = restarted.daemon.command("diff")
    assert (done.returncode, done.stdout) == (0, "")


def test_explain_tells_what_is_in_force_and_that_it_is_remembered(restarted: Restarted) -> None:
    daemon = restarted.daemon
    assert {words: explained(daemon, words) for words in EXPLAINED} == EXPLAINED
    for words in EXPLAINED if "services" in restarted.stale else ():
        lines = daemon.explain(*words)["lines"]
        assert remembered_since(" ".join(lines), restarted), lines


def test_the_metrics_show_what_is_in_force_and_of_what_nothing_new_is_known(restarted: Restarted) -> None:
    daemon = restarted.daemon
    in_force = ("services", "pinholes", "pools_guarded", "nic_attached", "rateshape_wanted")
    shown = {name: daemon.metric(f"nftsync_{name}") for name in in_force}
    assert shown == {"services": 3, "pinholes": 4, "pools_guarded": 1, "nic_attached": 1, "rateshape_wanted": 1}
    # One reading of the kernel serves every scrape for a second.
    assert eventually(lambda: daemon.metric("nftsync_service_packets_total", {"service": "web"}) == SENT)

    def stale() -> set[str]:
        return {each for each in ALL if daemon.metric("nftsync_config_stale", {"source": each}) == 1}

    assert eventually(lambda: stale() == restarted.stale), stale()


def firing(page: str, folder: Path) -> set[str]:
    """The shipped alerts that fire when a metrics page has been the same for an hour."""
    series = [
        {
            "series": f'{name}{{{f"{labels}," if labels else ""}job="nftsync", instance="router1"}}',
            "values": f"{float(value):g}x90",
        }
        for name, labels, value in re.findall(r"^(nftsync_\w+)(?:\{(.*)\})? (\S+)$", page, re.MULTILINE)
        if "_timestamp_" not in name and value != "NaN"
    ]
    expected = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "60m", "exp_samples": []}
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [expected]}
    path = folder / "test.yaml"
    path.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert "parse error" not in done.stdout + done.stderr, done.stdout
    got = (done.stdout + done.stderr).partition("got:")[2]
    return set(re.findall(r'alertname=\\*"(\w+)\\*"', got))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="the package prometheus is not installed")
def test_the_alerts_tell_of_old_sources_and_not_of_an_open_router(restarted: Restarted, tmp_path: Path) -> None:
    daemon = restarted.daemon
    found = firing(daemon.get("/metrics").body, tmp_path)
    assert found.isdisjoint({"NftsyncUnguarded", "NftsyncNicNotAttached", "NftsyncRejections", "NftsyncSyncFailing"})
    assert eventually(lambda: "NftsyncStale" in firing(daemon.get("/metrics").body, tmp_path))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="the package prometheus is not installed")
def test_an_alert_that_should_fire_is_seen_here(tmp_path: Path) -> None:
    page = 'nftsync_config_stale{source="pools"} 1.0\nnftsync_pools_guarded 0.0\nnftsync_ready 1.0\n'
    assert firing(page, tmp_path) == {"NftsyncStale", "NftsyncUnguarded", "NftsyncAbsent"}
    assert firing("nftsync_pools_guarded 1.0\n", tmp_path) == {"NftsyncAbsent"}


def test_when_the_server_answers_again_nothing_is_remembered_any_more(tmp_path: Path) -> None:
    with cluster_daemon(tmp_path, nft(), POOL, WEB) as daemon:
        daemon.start()
        before = daemon.status()
        assert daemon.stop() == 0
        daemon.cluster.refuse()
        daemon.remembering()
        daemon.cluster.listen()
        assert eventually(lambda: daemon.get("/readyz").status == 200, 30), daemon.log()
        after = daemon.status()
        assert after["stale"] == {}
        assert (after["services"], after["pinholes"], after["pools"]) == (
            before["services"],
            before["pinholes"],
            before["pools"],
        )
        assert after["sync"]["hash"] == before["sync"]["hash"]
        assert "remembered" not in daemon.command("status").stdout
