"""The daemon between a real API server and a real kernel, judged by packets."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apiserver.harness import NAMESPACE, NFTS, ApiServer, eventually
from tests.apiserver.router import NFT, SERVICES, SPEC, Router, fresh_router
from tests.lab.lab import Lab


@pytest.fixture
def router(cluster: tuple[Lab, ApiServer], tmp_path: Path) -> Iterator[Router]:
    with fresh_router(*cluster, tmp_path) as running:
        yield running


def test_services_of_a_cluster_become_what_passes_the_router(router: Router) -> None:
    router.add("before", "172.30.254.1")
    router.start()
    assert router.lab.arrives("tcp", "172.30.254.1", 80), "what was there before the daemon is open once it is ready"
    assert not router.lab.arrives("tcp", "172.30.254.2", 80)
    router.add("after", "172.30.254.2")
    router.opens("172.30.254.2")
    assert not router.lab.arrives("tcp", "172.30.254.2", 81)

    router.server.admin.patch(f"{SERVICES}/after", {"spec": {"ports": [{"port": 8080}]}})
    router.opens("172.30.254.2", 8080)
    router.server.admin.patch(f"{SERVICES}/after", {"spec": {"loadBalancerSourceRanges": ["192.0.2.0/24"]}})
    router.closes("172.30.254.2", 8080)
    router.server.admin.patch(f"{SERVICES}/before", {"spec": {"type": "ClusterIP"}})
    router.closes("172.30.254.1")
    router.server.admin.delete(f"{SERVICES}/after")
    eventually(lambda: router.metric("nftsync_services") == 0, "the Services are gone")


def test_the_shipped_rights_and_nothing_else_are_enough(router: Router) -> None:
    router.start()
    eventually(
        lambda: router.metric('nftsync_watch_state{resource="Service",state="watching"}') == 1, "Services are watched"
    )
    eventually(lambda: router.metric('nftsync_watch_state{resource="Nft",state="watching"}') == 1, "the Nft is watched")
    checked = router.run("check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "may list and watch services" in checked.stdout
    assert "public_nic enp1s0" in checked.stdout


def test_settings_are_taken_up_and_the_last_good_ones_stay_when_the_resource_goes(router: Router) -> None:
    router.start()
    public = "198.51.100.1"
    assert router.lab.arrives("tcp", public, 22)
    router.server.admin.patch(f"{NFTS}/nft", {"spec": {"enable_ssh": False}})
    router.closes(public, 22)
    router.server.admin.delete(f"{NFTS}/nft")
    eventually(lambda: router.metric('nftsync_rejections{reason="missing_settings"}') == 1, "the loss is reported")
    assert not router.lab.arrives("tcp", public, 22)
    assert router.lab.arrives("tcp", public, 179)


def test_the_last_ruleset_stays_while_the_api_server_is_away(router: Router) -> None:
    router.add("web", "172.30.254.1")
    router.start()
    router.server.kill()
    waiting = 'nftsync_watch_state{resource="Service",state="waiting"}'
    eventually(lambda: router.metric(waiting) == 1, "the loss is noticed")
    assert router.lab.arrives("tcp", "172.30.254.1", 80)
    assert not router.lab.arrives("tcp", "172.30.254.2", 80)
    router.server.restart()
    router.add("late", "172.30.254.2")
    router.opens("172.30.254.2")


def test_what_was_deleted_behind_a_compaction_is_found_by_a_new_list(router: Router) -> None:
    router.add("stays", "172.30.254.1")
    router.add("goes", "172.30.254.2")
    router.start()
    assert router.daemon
    router.daemon.send_signal(signal.SIGSTOP)
    router.server.restart()  # the daemon's watches end here, so it hears of nothing that follows
    router.server.admin.delete(f"{SERVICES}/goes")
    router.server.compact()
    router.server.restart()
    router.daemon.send_signal(signal.SIGCONT)
    router.closes("172.30.254.2")
    assert router.lab.arrives("tcp", "172.30.254.1", 80)
    expired = 'nftsync_watch_restarts_total{cause="version_expired",resource="Service"}'
    assert router.metric(expired) >= 1, "the server answered 410"


def test_a_revoked_token_stops_nothing_and_a_new_one_is_taken_from_its_file(router: Router) -> None:
    router.add("web", "172.30.254.1")
    router.start()
    router.server.revoke_token()
    router.server.restart()
    unauthorized = 'nftsync_watch_restarts_total{cause="unauthorized",resource="Service"}'
    eventually(lambda: router.metric(unauthorized) >= 1, "the server refuses the old token")
    assert router.lab.arrives("tcp", "172.30.254.1", 80)
    router.add("late", "172.30.254.2")
    token = router.server.issue_token()
    assert token != router.token.read_text(encoding="ascii").strip()
    router.token.write_text(token + "\n", encoding="ascii")
    router.opens("172.30.254.2")


def test_a_burst_of_changes_becomes_few_transactions_and_ends_in_the_truth(router: Router) -> None:
    router.start()
    applied = 'nftsync_syncs_total{result="applied"}'
    before, began = router.metric(applied), time.monotonic()
    for number in range(100):
        router.add(f"s{number}", f"172.30.254.{number + 1}")
    router.opens("172.30.254.100")
    eventually(lambda: router.metric("nftsync_pinholes") == 100, "all are open")
    # At most one transaction in 50 ms, and each of them had several changes to carry.
    assert router.metric(applied) - before <= (time.monotonic() - began) / 0.05 + 5
    for number in range(50):
        router.server.admin.delete(f"{SERVICES}/s{number}")
    eventually(lambda: router.metric("nftsync_pinholes") == 50, "half are closed")
    assert not router.lab.arrives("tcp", "172.30.254.50", 80)
    assert router.lab.arrives("tcp", "172.30.254.51", 80)


def test_a_restart_adopts_what_is_in_the_kernel(router: Router) -> None:
    router.add("web", "172.30.254.1")
    router.start()
    assert router.lab.arrives("tcp", "172.30.254.1", 80)
    router.stop()
    assert router.lab.arrives("tcp", "172.30.254.1", 80), "the rules stay"
    router.start()
    listed = router.lab.router.run(["nft", "list", "set", "inet", "nftsync", "services4"]).stdout
    counted = re.search(r"counter packets (\d+)", listed)
    assert counted is not None
    assert int(counted[1]) >= 2, "the counter went on"


def test_a_resource_in_another_namespace_does_not_count(router: Router) -> None:
    router.start()
    other = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}}
    router.server.admin.post("/api/v1/namespaces", other)
    stranger = {**NFT, "spec": {**SPEC, "enable_ssh": False}}
    router.server.admin.post(NFTS.replace(NAMESPACE, "other"), stranger)
    router.add("later", "172.30.254.1")
    router.opens("172.30.254.1")
    assert router.lab.arrives("tcp", "198.51.100.1", 22)
