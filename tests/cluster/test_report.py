"""Telling the cluster, against a simulated API in simulated time: what is written, how often, and what is said."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from nftsync.cluster.backoff import ApiError
from nftsync.cluster.outbox import BURST, DENIED, DISAGREE, LONGEST, QUIET, SETTLE, SLOW, TICK, Reporter
from nftsync.objects.names import Name, ObjectRef
from nftsync.objects.nft import Condition, Nft, RouterStatus, parse_nft
from nftsync.report.events import EventReason, Notice
from tests.labtools import PATIENCE
from tests.report.views import standing

NFT = Name("arbf-operators", "nft")
GOOD = standing()
STATUS = "/apis/nft.acnodal.com/v1alpha1/namespaces/arbf-operators/nfts/nft/status"
GONE = ApiError(f'PATCH {STATUS}: 404 Not Found: nfts.nft.acnodal.com "nft" not found', 404)
FORBIDDEN = ApiError(f"PATCH {STATUS}: 403 Forbidden: user nftsync cannot patch", 403)
INVALID = ApiError(f"PATCH {STATUS}: 422 Unprocessable Entity: status.routers: Invalid value", 422)
CONFLICT = ApiError(f"PATCH {STATUS}: 409 Conflict", 409)
BROKEN = ApiError(f"PATCH {STATUS}: 500 Internal Server Error", 500)
TIMEOUT = ApiError(f"PATCH {STATUS}: no answer in time")
UNAUTHORIZED = ApiError(f"PATCH {STATUS}: 401 Unauthorized", 401)

Fails = Callable[[str, str], ApiError | None]


@dataclass(frozen=True)
class Asked:
    """A request that reached the API. at: simulated seconds."""

    at: float
    method: str
    path: str
    query: dict[str, str]
    body: Any
    content_type: str

    @property
    def about_status(self) -> bool:
        return self.path == STATUS


@dataclass
class Cluster:
    """One Nft resource with server-side apply as far as its status needs it, and a list of Events.

    An item of a list belongs to the managers that applied it last with the same content. An item
    that no manager applies any more is removed.

    lag: seconds until a watch has told of a change.
    fails: by method and path, the answer in place of the usual one.
    """

    now: float = 1000.0
    lag: float = 0.0
    fails: Fails = lambda _method, _path: None
    asked: list[Asked] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    exists: bool = True
    generation: int = 1
    versions: int = 0

    def __post_init__(self) -> None:
        self._owners: dict[tuple[str, str], set[str]] = {}
        self._history: list[tuple[float, Nft | None]] = []
        self.changed()

    # --- what a Reporter asks of an Api -------------------------------------------------------------------

    def request(self, method: str, path: str, query: dict[str, str] | None, body: Any, content_type: str) -> Any:
        body = json.loads(json.dumps(body))
        asked = Asked(self.now, method, path, query or {}, body, content_type)
        self.asked.append(asked)
        fault = self.fails(method, path)
        if fault is not None:
            raise fault
        if asked.about_status:
            if not self.exists:
                raise GONE
            assert content_type == "application/apply-patch+yaml"
            assert asked.query["force"] == "true"
            self.apply(asked.query["fieldManager"], body["status"])
        return {}

    # --- the resource -------------------------------------------------------------------------------------

    def apply(self, manager: str, applied: dict[str, Any]) -> None:
        before = deepcopy(self.status)
        mine: set[tuple[str, str]] = set()
        for name, value in applied.items():
            if not isinstance(value, list):
                self.status[name] = value
                continue
            key = {"conditions": "type", "routers": "name"}[name]
            items = self.status.setdefault(name, [])
            assert len({each[key] for each in value}) == len(value), "the server refuses a list with duplicates"
            for each in value:
                mine.add((name, each[key]))
                held = next((item for item in items if item[key] == each[key]), None)
                if held == each:
                    self._owners[name, each[key]].add(manager)
                    continue
                if held is not None:
                    items.remove(held)
                items.append(each)
                self._owners[name, each[key]] = {manager}
        for owned, managers in list(self._owners.items()):
            if owned not in mine and manager in managers:
                managers.discard(manager)
                if not managers:
                    key = {"conditions": "type", "routers": "name"}[owned[0]]
                    self.status[owned[0]] = [each for each in self.status[owned[0]] if each[key] != owned[1]]
                    del self._owners[owned]
        if before != self.status:
            self.changed()

    def changed(self) -> None:
        """The resource is another one: remember what watches will tell."""
        self.versions += 1
        raw = {
            "metadata": {"namespace": NFT.namespace, "name": NFT.name, "uid": "u", "generation": self.generation},
            "spec": {"public_nic": "enp1s0"},
            "status": deepcopy(self.status),
        }
        self._history.append((self.now, parse_nft(raw, None) if self.exists else None))

    def seen(self) -> Nft | None:
        """The resource as a router's watch has told it by now."""
        return next(
            nft for at, nft in reversed(self._history) if at <= self.now - self.lag or at == self._history[0][0]
        )

    # --- for the tests ------------------------------------------------------------------------------------

    @property
    def writes(self) -> list[Asked]:
        return [each for each in self.asked if each.about_status]

    @property
    def events(self) -> list[Asked]:
        return [each for each in self.asked if not each.about_status]

    def conditions(self) -> dict[str, str]:
        return {each["type"]: each["status"] for each in self.status.get("conditions", ())}

    def router(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(each for each in self.status["routers"] if each["name"] == name)
        return found


class Counts:
    """An observer that counts."""

    def __init__(self) -> None:
        self.results: dict[str, int] = {}

    def wrote_status(self, result: str) -> None:
        self._count(f"status {result}")

    def sent_event(self, result: str) -> None:
        self._count(f"event {result}")

    def _count(self, what: str) -> None:
        self.results[what] = self.results.get(what, 0) + 1


class World:
    """Routers and their cluster. Each Reporter's step() is called when its thread would call it."""

    def __init__(self, cluster: Cluster, *routers: str) -> None:
        self.cluster = cluster
        self.counts = Counts()
        self.reporters: dict[str, Reporter] = {}
        self._due: dict[str, float] = {}
        for router in routers:
            self.join(router)

    def join(self, router: str) -> None:
        self.reporters[router] = Reporter(
            self.cluster,  # type: ignore[arg-type]  # all that a Reporter uses of an Api
            NFT,
            router,
            self.cluster.seen,
            self.counts,  # type: ignore[arg-type]  # all that a Reporter uses of an Observer
            clock=lambda: self.cluster.now,
            utc=lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.cluster.now),
        )
        self._due[router] = self.cluster.now

    def report(self, router: str = "edge1", **fields: Any) -> None:
        self.reporters[router].status(status(router, **fields))

    def tell(self, *news: Notice, router: str = "edge1") -> None:
        self.reporters[router].tell(news)

    def end(self, router: str = "edge1") -> None:
        """This router's daemon is stopped: what its thread does last, done here."""
        reporter = self.reporters.pop(router)
        del self._due[router]
        reporter.stop(farewell=True)
        reporter.run()

    def run(self, seconds: float) -> None:
        """Let this much time pass."""
        end, turns = self.cluster.now + seconds, 0
        while True:
            for router, reporter in self.reporters.items():
                if reporter._wake.is_set() or self._due[router] <= self.cluster.now:
                    reporter._wake.clear()
                    wait = reporter.step()
                    assert 0 < wait <= TICK
                    self._due[router] = self.cluster.now + wait
                    turns += 1
            assert turns < 1000 + 100 * seconds, "the loop spins"
            following = min(self._due.values(), default=end + 1)
            if following > end:
                self.cluster.now = end
                return
            self.cluster.now = max(following, self.cluster.now + 1e-6)


def status(router: str = "edge1", conditions: tuple[Condition, ...] = GOOD, **fields: Any) -> RouterStatus:
    own = RouterStatus(router, "1.0", 1, "aa" * 16, "2026-01-01T00:00:00Z", 3, 5, 0, conditions)
    return replace(own, **fields)


def news(number: int = 0, message: str = "opened 192.0.2.1 tcp 80") -> Notice:
    return Notice(ObjectRef("Service", f"shop/s{number}", f"uid-{number}"), EventReason.OPENED, message)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def world(cluster: Cluster) -> World:
    """One router that has written its status, and a memory of requests that begins now."""
    made = World(cluster, "edge1")
    made.report()
    made.run(30)
    assert len(cluster.writes) == 1
    cluster.asked.clear()
    made.counts.results.clear()
    return made


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


# --- what is written ----------------------------------------------------------------------------------


def test_the_first_status_is_written_soon_after_the_start_and_by_server_side_apply(cluster: Cluster) -> None:
    world = World(cluster, "edge1")
    world.report()
    world.run(SETTLE / 2)
    assert cluster.asked == [], "a restart is no news"
    world.run(SETTLE)
    [write] = cluster.writes
    assert (write.method, write.content_type) == ("PATCH", "application/apply-patch+yaml")
    assert write.query == {"fieldManager": "nftsync-edge1", "force": "true"}
    assert write.body["apiVersion"] == "nft.acnodal.com/v1alpha1"
    assert write.body["kind"] == "Nft"
    assert cluster.conditions() == {
        "Ready": "True", "Running": "True", "PoolsGuarded": "True", "PublicInterfaces": "True",
        "RateShaping": "True", "LocalChainValid": "True",
        "Confirmed": "True", "Stale": "False", "RoutersAgree": "True",
    }  # fmt: skip
    assert {key: cluster.status[key] for key in ("services", "pinholes", "rejected")} == {
        "services": 3,
        "pinholes": 5,
        "rejected": 0,
    }


def test_before_the_first_sync_and_without_a_resource_nothing_is_written(cluster: Cluster) -> None:
    world = World(cluster, "edge1")
    world.run(60)
    cluster.exists = False
    cluster.changed()
    world.report()
    world.run(60)
    assert cluster.asked == []


def test_five_idle_minutes_are_silent(world: World, cluster: Cluster) -> None:
    for _ in range(5):
        world.run(60)
        world.report(last_change="2026-01-01T00:16:00Z")  # a resync: the same ruleset, whoever worked it out when
        world.tell()
    assert cluster.asked == []
    assert cluster.versions == 2, "the resource as it was made, and one write"


def test_a_thousand_changes_in_ten_seconds_are_few_writes_and_bounded_events(world: World, cluster: Cluster) -> None:
    for number in range(1000):
        world.report(pinholes=number, hash=f"{number:032x}", last_change="2026-01-01T00:17:00Z")
        world.tell(news(number))
        world.run(0.01)
    assert len(cluster.writes) <= 1 + 10 / QUIET
    assert len(cluster.events) <= 25 + 5 * 10
    world.run(QUIET)
    assert len(cluster.writes) <= 2 + 10 / QUIET
    assert cluster.router("edge1")["pinholes"] == 999, "the last one stands at the end"
    world.run(600)
    assert len(cluster.events) == 1000
    per_second = [sum(1 for each in cluster.events if second <= each.at < second + 1) for second in range(1000, 1700)]
    assert max(per_second) <= 30


@pytest.mark.parametrize("seconds", [0.05, 4.0, 29.0])
def test_figures_that_change_for_an_hour_are_twenty_writes_and_two_a_minute(
    world: World, cluster: Cluster, seconds: float
) -> None:
    for number in range(int(3600 / seconds)):
        world.report(pinholes=number % 2, hash=f"{number % 2:032x}")
        world.run(seconds)
    assert len(cluster.writes) <= BURST + 3600 / SLOW
    world.report(pinholes=7)
    world.run(SLOW + QUIET)
    assert cluster.router("edge1")["pinholes"] == 7, "the last one stands at the end"


def test_a_condition_that_turns_does_not_wait_for_figures_that_change_all_the_time(
    world: World, cluster: Cluster
) -> None:
    for number in range(36_000):
        world.report(pinholes=number)
        world.run(0.1)
    lost = (Condition("Ready", holds=False, reason="NotSynced"), *GOOD[1:])
    assert GOOD[0].type == "Ready"
    world.report(pinholes=1, conditions=lost)
    world.run(2 * QUIET)
    assert cluster.conditions()["Ready"] == "False"


def test_a_condition_that_turns_all_the_time_is_bounded_as_well(world: World, cluster: Cluster) -> None:
    for number in range(3600):
        ready = Condition("Ready", holds=bool(number % 2), reason="x")
        world.report(pinholes=number, conditions=(ready, *GOOD[1:]))
        world.run(1)
    assert len(cluster.writes) <= BURST + 3600 / SLOW


@pytest.mark.parametrize("after", [0.0, 8.0, 40.0])
def test_who_keeps_changing_the_status_back_gets_ever_rarer_writes(
    world: World, cluster: Cluster, after: float
) -> None:
    """However long he takes for it, so that what we wrote is seen in between."""
    meddled = 0
    for _ in range(8000):
        if len(cluster.writes) >= meddled and (not cluster.writes or cluster.now - cluster.writes[-1].at >= after):
            cluster.apply("meddler", {"routers": [{"name": "edge1", "hash": f"{len(cluster.writes)}"}]})
            meddled = len(cluster.writes) + 1
        world.run(0.5)
    times = [each.at for each in cluster.writes]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps == sorted(gaps), "never more often than before"
    assert 8 <= len(times) <= 24
    assert all(LONGEST <= gap <= LONGEST + after + 2 * TICK for gap in gaps[-5:])


def test_a_change_of_our_own_is_written_at_once_although_somebody_meddles(world: World, cluster: Cluster) -> None:
    cluster.status["routers"][0]["hash"] = "meddled"
    cluster.changed()
    world.run(TICK)
    assert len(cluster.writes) == 1
    world.report(pinholes=77)
    world.run(2 * QUIET)
    assert cluster.router("edge1")["pinholes"] == 77


def test_a_time_that_somebody_cleared_is_written_again(world: World, cluster: Cluster) -> None:
    """An empty one would be refused by the schema for ever."""
    del cluster.status["routers"][0]["lastChange"], cluster.status["conditions"][0]["lastTransitionTime"]
    cluster.changed()
    world.run(TICK)
    [write] = cluster.writes
    assert write.body["status"]["routers"][0]["lastChange"]
    assert all(each["lastTransitionTime"] for each in write.body["status"]["conditions"])


def test_a_condition_keeps_its_time_over_a_restart(world: World, cluster: Cluster) -> None:
    before = deepcopy(cluster.status)
    restarted = World(cluster, "edge1")
    restarted.report(last_change="2026-01-01T09:09:09Z")
    restarted.run(60)
    assert cluster.status == before
    assert cluster.asked == []
    restarted.report(conditions=standing("no kernel"))
    restarted.run(QUIET)
    stamps = {each["type"]: each["lastTransitionTime"] for each in cluster.router("edge1")["conditions"]}
    stood = {each["type"]: each["lastTransitionTime"] for each in before["routers"][0]["conditions"]}
    assert {kind for kind in stamps if stamps[kind] != stood[kind]} == {"Ready"}


def test_the_resource_made_anew_gets_its_status_again(world: World, cluster: Cluster) -> None:
    """Also where it is gone before its watch has told so."""
    cluster.lag = 4.0
    cluster.exists, cluster.status = False, {}
    cluster.changed()
    world.report(pinholes=6)
    world.run(10)
    assert world.counts.results.get("status failed", 0) >= 1
    cluster.exists = True
    cluster.changed()
    world.run(cluster.lag + TICK)
    assert cluster.router("edge1")["pinholes"] == 6


# --- the end ------------------------------------------------------------------------------------------


def stands(conditions: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {
        each["type"]: (each["status"], each["reason"]) for each in conditions if each["type"] in ("Ready", "Running")
    }


STOPPED = {"Ready": ("False", "Stopped"), "Running": ("False", "Stopped")}
RUNS = {"Ready": ("True", "Synced"), "Running": ("True", "Running")}


def test_a_router_that_is_stopped_says_so_at_once_and_keeps_what_is_about_its_ruleset(
    world: World, cluster: Cluster
) -> None:
    world.report(pinholes=6)
    world.run(1)
    before = deepcopy(cluster.router("edge1"))
    cluster.asked.clear()
    world.end()
    assert len(cluster.asked) == 1, "though the status was written a second before"
    after = cluster.router("edge1")
    assert stands(after["conditions"]) == stands(cluster.status["conditions"]) == STOPPED
    kept, keeps = ([each for each in entry["conditions"] if each["type"] not in STOPPED] for entry in (before, after))
    assert kept == keeps != []
    assert {**before, "conditions": ()} == {**after, "conditions": ()}
    world.join("edge1")
    world.report(pinholes=6)
    world.run(TICK)
    assert stands(cluster.router("edge1")["conditions"]) == stands(cluster.status["conditions"]) == RUNS


def test_the_other_routers_leave_what_a_stopped_one_said(cluster: Cluster) -> None:
    world = World(cluster, "edge1", "edge2")
    for router in world.reporters:
        world.report(router)
    world.run(30)
    cluster.asked.clear()
    world.end()
    world.run(600)
    assert len(cluster.asked) == 1
    assert stands(cluster.router("edge2")["conditions"]) == RUNS
    ready = next(each for each in cluster.status["conditions"] if each["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "Stopped")
    assert ready["message"].startswith("edge1: ")


def test_what_was_written_just_before_the_end_is_taken_back_though_no_watch_has_told_of_it(cluster: Cluster) -> None:
    cluster.lag = 10.0
    world = World(cluster, "edge1")
    world.report()
    world.run(SETTLE + 0.1)
    assert stands(cluster.router("edge1")["conditions"]) == RUNS
    world.end()
    assert stands(cluster.router("edge1")["conditions"]) == STOPPED


def test_who_is_stopped_again_at_once_says_so_though_what_was_seen_last_says_it_already(cluster: Cluster) -> None:
    world = World(cluster, "edge1")
    world.report()
    world.run(SETTLE + 0.1)
    world.end()
    cluster.now += 20.0
    cluster.lag = 10.0
    world.join("edge1")
    world.report()
    world.run(SETTLE + 0.1)
    assert stands(cluster.router("edge1")["conditions"]) == RUNS
    world.end()
    assert stands(cluster.router("edge1")["conditions"]) == STOPPED


def test_who_never_said_that_he_runs_says_nothing_at_the_end(cluster: Cluster) -> None:
    for synced in (False, True):
        world = World(cluster, "edge1")
        if synced:
            world.report()
        world.end()
    assert cluster.asked == []


def test_at_the_end_nothing_is_written_into_a_resource_that_is_gone(world: World, cluster: Cluster) -> None:
    cluster.exists = False
    cluster.changed()
    world.end()
    assert cluster.asked == []


def test_a_reporter_that_is_only_stopped_says_nothing(world: World, cluster: Cluster) -> None:
    """As at a reload: another one goes on in its place."""
    world.reporters["edge1"].stop()
    world.reporters["edge1"].run()
    assert cluster.asked == []


def test_the_end_is_not_put_off_by_a_server_that_refuses(
    world: World, cluster: Cluster, warnings: Callable[[], list[str]]
) -> None:
    cluster.fails = lambda _method, _path: BROKEN
    world.end()
    assert len(cluster.asked) == 1
    assert warnings() == []


# --- faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "longest", "advice"),
    [
        (FORBIDDEN, DENIED, "run nftsync bootstrap"),
        (GONE, DENIED, "is too old: run nftsync bootstrap"),
        (INVALID, 60.0, "Invalid value"),
    ],
    ids=["forbidden", "no subresource", "invalid"],
)
def test_a_status_that_is_refused_is_said_once_and_tried_later_and_events_still_go(
    world: World, warnings: Callable[[], list[str]], fault: ApiError, longest: float, advice: str
) -> None:
    cluster = world.cluster
    cluster.fails = lambda _, path: fault if path == STATUS else None
    for number in range(60):
        world.report(pinholes=number + 100)
        world.tell(news(number))
        world.run(60)
    assert len(warnings()) == 1
    assert advice in warnings()[0]
    assert warnings()[0].endswith(". The firewall is not affected")
    assert 3600 / longest * 0.8 <= len(cluster.writes) <= 3600 / longest * 2 + 10
    assert len(cluster.events) == 60
    cluster.fails = lambda _method, _path: None
    world.run(longest + TICK)
    assert cluster.router("edge1")["pinholes"] == 159
    cluster.fails = lambda _, path: fault if path == STATUS else None
    world.report(pinholes=1)
    world.run(60)
    assert len(warnings()) == 2, "it is said again when it had worked in between"


def test_a_resource_that_was_just_deleted_is_nothing_to_complain_of(
    world: World, cluster: Cluster, warnings: Callable[[], list[str]]
) -> None:
    cluster.fails = lambda _, path: GONE if path == STATUS else None
    world.report(pinholes=8)
    world.run(QUIET + 1)
    assert len(cluster.writes) >= 1
    assert warnings() == []
    cluster.fails = lambda _method, _path: None
    world.run(TICK + QUIET)
    assert cluster.router("edge1")["pinholes"] == 8, "no five minutes later"


def test_events_that_are_forbidden_are_forgotten_and_tried_again_after_minutes(
    world: World, cluster: Cluster, warnings: Callable[[], list[str]]
) -> None:
    cluster.fails = lambda _, path: None if path == STATUS else ApiError(f"POST {path}: 403 Forbidden", 403)
    world.tell(*map(news, range(20)))
    world.run(60)
    assert len(cluster.events) == 1
    assert world.counts.results == {"event failed": 1, "event dropped": 20}
    for number in range(60):
        world.report(pinholes=number)
        world.tell(news(number))
        world.run(60)
    assert len(cluster.events) <= 1 + 3600 / (0.8 * DENIED)
    assert len(cluster.writes) == 60, "the status does not suffer"
    assert len(warnings()) == 1
    assert "run nftsync bootstrap" in warnings()[0]
    cluster.fails = lambda _method, _path: None
    world.run(DENIED)
    cluster.asked.clear()
    world.tell(news(99))
    world.run(1)
    assert len(cluster.events) == 1


@pytest.mark.parametrize("fault", [CONFLICT, BROKEN, TIMEOUT], ids=["409", "500", "time-out"])
def test_a_write_that_was_lost_is_tried_again_with_the_latest_content(
    world: World, cluster: Cluster, fault: ApiError
) -> None:
    cluster.fails = lambda _method, _path: fault
    world.report(pinholes=6)
    world.run(1)
    assert len(cluster.writes) == 1
    world.report(pinholes=7)
    world.run(1)
    cluster.fails = lambda _method, _path: None
    world.run(15)
    assert cluster.router("edge1")["pinholes"] == 7
    assert [each.body["status"]["pinholes"] for each in cluster.writes][-1] == 7
    assert [each.body["status"]["pinholes"] for each in cluster.writes].count(7) >= 1
    asked = len(cluster.asked)
    world.run(300)
    assert len(cluster.asked) == asked


def test_an_api_server_that_is_away_is_asked_ever_more_rarely_and_no_event_is_lost(
    world: World, cluster: Cluster, warnings: Callable[[], list[str]]
) -> None:
    cluster.fails = lambda method, path: ApiError(f"{method} {path}: Connection refused")
    world.report(pinholes=6)
    world.tell(*map(news, range(20)))
    world.run(1800)
    assert len(cluster.writes) <= 70
    assert len(cluster.events) <= 70
    assert len(warnings()) == 2, "one for the status, one for the Events"
    cluster.fails = lambda _method, _path: None
    cluster.asked.clear()
    world.run(120)
    assert cluster.router("edge1")["pinholes"] == 6
    assert [each.body["regarding"]["name"] for each in cluster.events] == [f"s{number}" for number in range(20)]
    assert "event dropped" not in world.counts.results


def test_a_server_that_says_when_to_come_back_is_obeyed(world: World, cluster: Cluster) -> None:
    cluster.fails = lambda method, path: ApiError(f"{method} {path}: 429", 429, retry_after=25.0)
    world.report(pinholes=6)
    world.tell(news())
    world.run(24)
    assert len(cluster.writes) == 1
    assert len(cluster.events) == 1


def test_what_is_refused_for_its_credentials_is_sent_with_the_next_ones(world: World, cluster: Cluster) -> None:
    """An Api reads the kubeconfig again after a 401: see test_watch."""
    refused = list[str]()

    def fails(_method: str, path: str) -> ApiError | None:
        refused.append(path)
        return UNAUTHORIZED if refused.count(path) == 1 else None

    cluster.fails = fails
    world.report(pinholes=6)
    world.tell(news())
    world.run(15)
    assert len(set(refused)) >= 2, "the status and an Event"
    assert cluster.router("edge1")["pinholes"] == 6
    assert [each.method for each in cluster.events][-1] == "POST"
    assert world.counts.results["event sent"] == 1


def test_events_that_the_server_never_takes_are_said_once_whatever_they_are_called(
    world: World, cluster: Cluster, warnings: Callable[[], list[str]]
) -> None:
    """The server's answer names each by itself."""
    names = iter(range(1000))
    cluster.fails = (
        lambda _, path: None if path == STATUS else ApiError(f'422: Event "s.{next(names)}" is invalid', 422)
    )
    world.tell(*map(news, range(20)))
    world.run(60)
    assert len(cluster.events) == 20
    assert world.counts.results == {"event failed": 20, "event dropped": 20}
    assert len(warnings()) == 1


def test_events_that_the_server_never_takes_make_nothing_else_wait_longer(world: World, cluster: Cluster) -> None:
    answers = iter([*(ApiError("422", 422) for _ in range(8)), ApiError("503", 503)])
    cluster.fails = lambda _, path: None if path == STATUS else next(answers, None)
    world.tell(*map(news, range(9)))
    world.run(4)
    assert world.counts.results["event sent"] == 1


@pytest.mark.parametrize(
    "ending",
    [
        ApiError("403 Forbidden: 'because it is being terminated'; grant it", 403),
        ApiError("404 Not Found: 'namespaces \"gone\" not found'; install its CustomResourceDefinition", 404),
        ApiError("403 Forbidden: 'admission webhook \"a.example.com\" denied the request: no'; grant it", 403),
        ApiError("403 Forbidden: 'events is forbidden: ValidatingAdmissionPolicy 'a' denied request: no'; grant", 403),
        ApiError("403 Forbidden: 'events \"x\" is forbidden: exceeded quota: few, requested: 1'; grant it", 403),
    ],
    ids=["ends", "is gone", "webhook", "policy", "quota"],
)
def test_an_event_in_a_namespace_that_ends_is_gone_or_takes_none_costs_the_others_nothing_and_is_no_news(
    world: World, cluster: Cluster, caplog: pytest.LogCaptureFixture, ending: ApiError
) -> None:
    world.tell(Notice(ObjectRef("Service", "gone/x", "u"), EventReason.CLOSED, "closed"), news(1))
    cluster.fails = lambda _, path: ending if "/namespaces/gone/" in path else None
    world.run(1)
    assert world.counts.results == {"event failed": 1, "event dropped": 1, "event sent": 1}
    assert caplog.text == ""


@pytest.mark.parametrize("code", [404, 409])
def test_an_event_that_is_gone_is_made_anew(world: World, cluster: Cluster, code: int) -> None:
    world.tell(news())
    world.run(10)
    cluster.fails = lambda method, path: ApiError("gone", code) if method == "PATCH" and path != STATUS else None
    world.tell(news())
    world.run(10)
    assert [each.method for each in cluster.events] == ["POST", "PATCH", "POST"]
    assert cluster.events[0].body["metadata"]["name"] != cluster.events[2].body["metadata"]["name"]


# --- several routers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [0.0, 0.05, 2.0, 7.0])
def test_routers_that_write_into_one_resource_keep_each_others_entries_and_fall_silent(
    cluster: Cluster, lag: float
) -> None:
    cluster.lag = lag
    world = World(cluster, "edge1", "edge2", "edge3")
    for router, found in (("edge1", 3), ("edge2", 4), ("edge3", 4)):
        world.report(router, services=found, conditions=standing(nic_missing=router == "edge2"))
    world.run(60)
    assert {each["name"] for each in cluster.status["routers"]} == {"edge1", "edge2", "edge3"}
    assert cluster.status["services"] == 4
    assert cluster.conditions()["RateShaping"] == "False"
    asked = len(cluster.asked)
    world.run(600)
    assert len(cluster.asked) == asked
    assert asked <= 30


@pytest.mark.parametrize("lag", [0.05, 2.0])
def test_the_figures_on_top_are_right_where_all_routers_write_at_once(cluster: Cluster, lag: float) -> None:
    """Each of them sees the others' entries as they were before.

    The last router to see that the sum is wrong corrects it.
    """
    cluster.lag = lag
    world = World(cluster, "edge1", "edge2")
    for router in world.reporters:
        world.report(router, services=5, pinholes=9, rejected=2)
    world.run(60)
    assert [cluster.status[key] for key in ("services", "pinholes", "rejected")] == [5, 9, 2]
    cluster.generation = 2
    cluster.changed()
    for router in world.reporters:
        world.report(router, services=0, pinholes=0, generation=2)
    world.run(60)
    assert [cluster.status[key] for key in ("services", "pinholes", "rejected")] == [0, 0, 0]
    assert {each["observedGeneration"] for each in cluster.status["conditions"]} == {2}, "kubectl wait asks for it"


def test_hashes_that_differ_show_after_a_minute_and_not_before_and_go_again(cluster: Cluster) -> None:
    world = World(cluster, "edge1", "edge2")
    for router in world.reporters:
        world.report(router)
    world.run(30)
    assert cluster.conditions()["RoutersAgree"] == "True"
    world.report("edge2", hash="bb" * 16)
    world.run(DISAGREE - 1)
    assert cluster.conditions()["RoutersAgree"] == "True", "a router may be behind for a while"
    world.run(1 + 2 * TICK)
    assert cluster.conditions()["RoutersAgree"] == "False"
    shown = next(each for each in cluster.status["conditions"] if each["type"] == "RoutersAgree")
    assert shown["message"] == "rulesets differ: edge1 aaaaaaaa, edge2 bbbbbbbb"
    asked = len(cluster.asked)
    world.run(300)
    assert len(cluster.asked) == asked
    world.report("edge1", hash="bb" * 16)
    world.run(QUIET + TICK)
    assert cluster.conditions()["RoutersAgree"] == "True"


def test_a_difference_that_comes_and_goes_within_a_minute_never_shows(cluster: Cluster) -> None:
    world = World(cluster, "edge1", "edge2")
    for number in range(20):
        world.report("edge1", hash=f"{number:032}")
        world.run(20)
        world.report("edge2", hash=f"{number:032}")
        world.run(20)
        assert cluster.conditions()["RoutersAgree"] == "True"


def test_routers_that_follow_a_cluster_which_changes_all_the_time_agree(cluster: Cluster) -> None:
    world = World(cluster, "edge1", "edge2")
    for number in range(36_000):
        world.report("edge1", hash=f"{number % 2:032x}", pinholes=number % 2)
        world.report("edge2", hash=f"{number % 7 % 2:032x}", pinholes=number % 2)
        world.run(0.1)
        assert cluster.conditions().get("RoutersAgree", "True") == "True"


def test_a_router_that_stays_behind_shows_although_the_cluster_changes_all_the_time(cluster: Cluster) -> None:
    world = World(cluster, "edge1", "edge2")
    world.report("edge2", hash="bb" * 16)
    for number in range(1500):
        world.report("edge1", hash=f"{number % 2:032x}", pinholes=number % 2)
        world.run(0.1)
    assert cluster.conditions()["RoutersAgree"] == "False"


def test_a_router_that_is_started_later_does_not_contradict(cluster: Cluster) -> None:
    """It has not watched the minute that the others have."""
    world = World(cluster, "edge1", "edge2")
    world.report("edge1")
    world.report("edge2", hash="bb" * 16)
    world.run(45)
    world.join("edge2")
    world.report("edge2", hash="bb" * 16)
    shown = []
    for _ in range(120):
        world.run(1)
        shown.append(cluster.conditions()["RoutersAgree"])
    assert shown == sorted(shown, reverse=True), "True at first, then False for good"
    assert shown[-1] == "False"
    assert len(cluster.writes) == 3, "one for each router, and one that says so"


def test_routers_whose_long_names_begin_alike_are_two_field_managers(cluster: Cluster) -> None:
    """One manager's entry would be taken away with the other's write."""
    names = [f"{'edge.' * 40}{number}" for number in (1, 2)]
    world = World(cluster, *names)
    for name in names:
        world.report(name)
    world.run(60)
    assert len({each.query["fieldManager"] for each in cluster.writes}) == 2
    assert all(len(each.query["fieldManager"]) <= 128 for each in cluster.writes)
    assert len(cluster.status["routers"]) == 2


# --- threads ------------------------------------------------------------------------------------------


class Blocking:
    """An API whose server accepts a request and never answers."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.answer = threading.Event()
        self.requests = 0

    def request(self, *_: object) -> None:
        self.requests += 1
        self.asked.set()
        self.answer.wait(10 * PATIENCE)


def test_telling_never_waits_for_the_server_and_stop_ends_the_thread(cluster: Cluster) -> None:
    api = Blocking()
    reporter = Reporter(api, NFT, "edge1", cluster.seen, Counts(), clock=lambda: 1e6 + time.monotonic())  # type: ignore[arg-type]
    thread = threading.Thread(target=reporter.run, daemon=True)
    thread.start()
    try:
        reporter.tell([news()])
        assert api.asked.wait(PATIENCE), "a request is on its way"
        for number in range(1000):
            reporter.status(status(pinholes=number))
            reporter.tell([news(number)])
        assert not api.answer.is_set()
        assert api.requests == 1, "all of that while the server kept the thread waiting"
    finally:
        reporter.stop()
        api.answer.set()
        thread.join(PATIENCE)
    assert not thread.is_alive()
