"""Nothing is refused, reported or sent as an Event because of a kind whose list is not complete."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faultycluster import METALLB
from tests.faultyserver import PAGE, refusal
from tests.labtools import SERVICE4, Raw, eventually, needs_root, nft, service
from tests.process import POOL, WEB, ClusterDaemon, cluster_daemon

pytestmark = needs_root

KINDS = ("Service", "Nft", *METALLB)
TRIES = 6  # restarts, in each of which the list becomes complete at another moment of the first sync
MANY = ", ".join(
    f"10.9.{n // 250}.{n % 250} . tcp . 80" for n in range(20_000)
)  # the first sync takes a while to read them
FAR_POOL = {**POOL, "metadata": {**POOL["metadata"], "name": "far"}, "spec": {"addresses": ["172.30.253.0/24"]}}
YOUNG, OLD = "2024-01-01T00:00:00Z", "2020-01-01T00:00:00Z"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ClusterDaemon]:
    with cluster_daemon(tmp_path, nft(), POOL, WEB) as made:
        yield made


def nothing_was_refused(daemon: ClusterDaemon) -> None:
    assert "rejected" not in daemon.log()
    assert "there is no such resource" not in daemon.log()
    warned = [
        each["message"]
        for each in daemon.cluster.events()
        if each["type"] != "Normal" and each["reason"] != "DriftRepaired"
    ]
    assert warned == []


@pytest.mark.parametrize("kind", [
    "Service", "Nft",
    "IPAddressPool",
    "ConfigMap",
])  # fmt: skip
def test_a_restart_refuses_nothing_whenever_the_list_becomes_complete(daemon: ClusterDaemon, kind: str) -> None:
    assert daemon.start().stop() == 0
    for number in range(TRIES):
        daemon.lab.router.nft(
            f"insert rule inet nftsync forward counter\nadd element inet nftsync services4 {{ {MANY} }}"
        )
        gate = daemon.cluster.hold(kind)
        daemon.start(ready=False)
        time.sleep(0.03 * number)
        gate.set()
        assert eventually(lambda: daemon.get("/readyz").status == 200), daemon.log()
        nothing_was_refused(daemon)
        assert daemon.stop() == 0
        daemon.cluster.heal()


@pytest.mark.parametrize("started", ["for the first time", "again"])
@pytest.mark.parametrize("kind", KINDS)
def test_while_a_list_is_slow_nothing_is_refused(daemon: ClusterDaemon, kind: str, started: str) -> None:
    if started == "again":
        assert daemon.start().stop() == 0
    gate = daemon.cluster.hold(kind)
    daemon.waiting()
    before = daemon.syncs()
    daemon.local_chain.write_text("chain local-chain {\n\tudp dport 4444 accept\n}\n")  # something to sync for
    assert eventually(lambda: daemon.syncs() > before)
    assert daemon.status()["rejections"] == []
    gate.set()
    assert eventually(lambda: daemon.get("/readyz").status == 200), daemon.log()
    nothing_was_refused(daemon)


@pytest.mark.parametrize("status", [403, 404, 500])
@pytest.mark.parametrize("kind", ["Service", "Nft"])
def test_a_list_that_is_denied_is_no_empty_list(daemon: ClusterDaemon, kind: str, status: int) -> None:
    assert daemon.start().stop() == 0
    daemon.cluster.always(refusal(status), kind)
    daemon.start(ready=False)
    assert eventually(lambda: daemon.metric("nftsync_watch_restarts_total", {"resource": kind}) >= 1), daemon.log()
    assert daemon.status()["rejections"] == []
    assert daemon.lab.arrives("udp", SERVICE4, 80)
    nothing_was_refused(daemon)


@pytest.mark.parametrize("started", ["for the first time", "again"])
@pytest.mark.parametrize("kind", ["Service", "IPAddressPool"])
def test_half_a_list_is_no_list(daemon: ClusterDaemon, kind: str, started: str) -> None:
    """The second half of the list comes later.

    It has the older of two Services that want the same, or a Service's pool, which the first half
    lacks.
    """
    daemon.put(FAR_POOL, service("far", "172.30.253.1"), dated("a", YOUNG), dated("b", OLD), dated("c", YOUNG))
    daemon.cluster.kinds[kind].largest_page = 1
    if started == "again":
        assert daemon.start().stop() == 0
    known = daemon.log()
    gate = daemon.cluster.hold(kind, page=PAGE)
    daemon.waiting()
    daemon.local_chain.write_text("chain local-chain {\n\tudp dport 4444 accept\n}\n")
    assert eventually(lambda: daemon.cluster.kinds[kind].count(PAGE) > 0)
    assert daemon.status()["rejections"] == [] or started == "again"
    gate.set()
    assert eventually(lambda: daemon.get("/readyz").status == 200), daemon.log()
    told = daemon.log().removeprefix(known)
    assert "outside_pools" not in told
    assert "Service default/b: rejected" not in told
    assert sorted(each["object"] for each in daemon.status()["rejections"]) == [
        "Service default/a",
        "Service default/c",
    ]


def dated(name: str, created: str) -> Raw:
    """One of several Services that want the same pinhole: the oldest gets it."""
    made = service(name, "172.30.254.8")
    return {**made, "metadata": {**made["metadata"], "creationTimestamp": created}}
