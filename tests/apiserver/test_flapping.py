"""A controller that changes a Service's status without end costs nobody else anything.

MetalLB 0.15.3 does so for a PreferDualStack Service in a cluster of one family.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nftsync.cluster.outbox import BURST, SLOW
from nftsync.report.events import OBJECT
from tests.apiserver.client import Client
from tests.apiserver.harness import NFTS, ApiServer, eventually
from tests.apiserver.router import SERVICES, Router, fresh_router
from tests.lab.lab import Lab

EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
STAYS, COMES_AND_GOES, OTHER = "172.30.254.1", "172.30.254.2", "172.30.254.3"
CHANGES = 600


class Flapping:
    """Somebody who changes a Service's status as fast as the server takes it.

    changes: so many so far.
    """

    def __init__(self, server: ApiServer, name: str) -> None:
        self._admin: Client = server.admin
        self._path = f"{SERVICES}/{name}/status"
        self.changes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._write(STAYS, COMES_AND_GOES)
            self._write(STAYS)

    def _write(self, *addresses: str) -> None:
        ingress = [{"ip": address} for address in addresses]
        self._admin.patch(self._path, {"status": {"loadBalancer": {"ingress": ingress}}})
        self.changes += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        yield
        self._stop.set()
        self._thread.join()


@pytest.fixture
def router(cluster: tuple[Lab, ApiServer], tmp_path: Path) -> Iterator[Router]:
    with fresh_router(*cluster, tmp_path) as running:
        running.server.admin.delete(EVENTS)
        yield running


def lines(router: Router, name: str) -> list[str]:
    return [line for line in router.log.read_text(encoding="utf-8").splitlines() if f"name={name}" in line]


def told(router: Router, name: str) -> int:
    """How often Events tell something about a Service."""
    items: list[dict[str, Any]] = router.server.admin.get(EVENTS)["items"]
    return sum((each.get("series") or {}).get("count", 1) for each in items if each["regarding"]["name"] == name)


def written(router: Router) -> float:
    return router.metric('nftsync_status_writes_total{result="written"}')


def syncs(router: Router) -> float:
    counted = re.findall(r"^nftsync_syncs_total\{.*\} (\S+)$", router.page("/metrics"), re.MULTILINE)
    return sum(map(float, counted))


def test_a_status_that_changes_without_end_is_followed_and_told_in_sums_while_others_open_and_close(
    router: Router,
) -> None:
    router.add("flaps", STAYS)
    (burst, interval), began = OBJECT, time.monotonic()
    router.start()
    router.opens(STAYS)
    flapping, before = Flapping(router.server, "flaps"), syncs(router)
    with flapping.running():
        for port in range(8000, 8020):
            router.add(f"other{port}", OTHER, port)
            router.opens(OTHER, port)
            assert router.lab.arrives("tcp", STAYS, 80), "the part that stays is open all the time"
            router.server.admin.delete(f"{SERVICES}/other{port}")
            router.closes(OTHER, port)
        eventually(lambda: flapping.changes >= CHANGES, "the server takes no changes", 120)
        # Two changes within 50 ms can be none for the kernel.
        eventually(lambda: router.metric("nftsync_flapping_objects") == 1, "notices are held back", 120)
        assert syncs(router) - before > burst, "else nothing was followed"
        assert not router.lab.arrives("tcp", STAYS, 81)
    changes = flapping.changes
    assert changes >= CHANGES
    most = burst + 2 + (time.monotonic() - began) / interval  # a busy machine takes minutes
    assert len(lines(router, "flaps")) <= most, f"for {changes} changes"
    for port in range(8000, 8020):
        assert [line.split()[4] for line in lines(router, f"other{port}")] == ["opened", "closed"]
    assert written(router) <= BURST + (time.monotonic() - began) / SLOW

    router.closes(COMES_AND_GOES)
    assert router.lab.arrives("tcp", STAYS, 80)
    assert router.metric("nftsync_pinholes") == 1
    eventually(lambda: "has settled" in lines(router, "flaps")[-1], "the final state is told", 120)
    assert f"; now: open: {STAYS} tcp 80" in lines(router, "flaps")[-1]
    assert len(lines(router, "flaps")) <= most + 1
    eventually(lambda: told(router, "flaps") >= len(lines(router, "flaps")), "each line has its Event")
    assert told(router, "flaps") <= most + 1
    eventually(
        lambda: router.server.admin.get(f"{NFTS}/nft")["status"]["pinholes"] == 1, "the status is up to date", 60
    )
