"""What is told of a sync: its lines in the log, its news and its status, of a real sync on a kernel of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nftsync.cluster.manifests import Manifests
from nftsync.config import AddressPolicy, PoolMode
from nftsync.daemon.publish import LINES, RECENT, Publisher
from nftsync.daemon.reconcile import NOT_FILTERING
from nftsync.exporter.metrics import Metrics
from nftsync.objects.nft import Condition, RouterStatus
from nftsync.plan.result import Outcome, SyncResult
from nftsync.report.events import EventReason, Notice
from tests.lab.namespace import Namespace
from tests.labtools import PUBLIC_NIC, SERVICE4, Raw, needs_root, nft, service
from tests.router import Router, config_in

pytestmark = needs_root

WEB = service("web", SERVICE4)
WEB_FIELDS = {"kind": "Service", "namespace": "default", "name": "web", "router": "edge1"}
POOL = {
    "apiVersion": "metallb.io/v1beta1",
    "kind": "IPAddressPool",
    "metadata": {"namespace": "metallb-system", "name": "services", "uid": "uid-pool"},
    "spec": {"addresses": ["172.30.254.0/24"]},
}


@dataclass
class Hearer(Manifests):
    """A source that remembers what it is to pass on. old: by kind, why what is known of it may be old."""

    old: dict[str, str] = field(default_factory=dict)
    news: list[Notice] = field(default_factory=list)
    statuses: list[RouterStatus] = field(default_factory=list)

    def stale(self) -> Mapping[str, str]:
        return self.old

    def tell(self, news: Sequence[Notice]) -> None:
        self.news.extend(news)

    def report(self, status: RouterStatus) -> None:
        self.statuses.append(status)


class Told(Router):
    """A router in a namespace without NICs, and a publisher with a clock of its own, which tells of each sync."""

    def __init__(self, namespace: Namespace, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        super().__init__(namespace, config_in(folder, router_name="edge1"), listed=False)
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.metrics = Metrics()
        self.pace = timedelta(minutes=1)  # the time between two syncs
        self.publisher = Publisher(self.metrics, lambda: self.now, lambda: self.now.timestamp())
        self.source = Hearer()
        self._log = caplog

    def begin(self, *services: Raw) -> None:
        """The first sync, of which nothing is remembered afterwards."""
        self.lists(nft(), *services, POOL)
        assert self.sync().outcome is Outcome.APPLIED
        self.forget()

    def forget(self) -> None:
        self._log.clear()
        self.source.news.clear()
        self.source.statuses.clear()
        self.publisher.recent.clear()

    def sync(self, *, resync: bool = False, changed_by: str = "") -> SyncResult:
        """One sync some time after the one before, and what it means for everybody else."""
        self.now += self.pace
        result = super().sync(resync=resync, changed_by=changed_by)
        self.tell(result)
        return result

    def tell(self, result: SyncResult) -> None:
        self.publish(self.publisher, self.source, result)

    def rest(self, seconds: int) -> None:
        """Let time pass without a change."""
        for _ in range(seconds):
            self.now += timedelta(seconds=1)
            self.publisher.sum_up(self.source)

    def stale(self) -> dict[str, str]:
        """What is used though it is not the present one, after the last sync."""
        return self.publisher.stale(self.source, self._result)

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Level and text of what the publisher has logged."""
        return [(each.levelname, each.getMessage()) for each in self._records]

    @property
    def stories(self) -> list[tuple[str, dict[str, str]]]:
        """Text and fields of the lines about an object."""
        return [(each.getMessage(), each.fields) for each in self._records if hasattr(each, "fields")]

    @property
    def _records(self) -> list[logging.LogRecord]:
        return [each for each in self._log.records if each.name == "nftsync.daemon.publish"]

    @property
    def topics(self) -> list[str]:
        return [each.topic for each in self.source.news]

    def condition(self, kind: str) -> Condition:
        """As the last status has it."""
        found = self.source.statuses[-1].condition(kind)
        assert found
        return found

    def metric(self, name: str, **labels: str) -> float | None:
        value: float | None = self.metrics.registry.get_sample_value(f"nftsync_{name}", labels)
        return value


@pytest.fixture
def router(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Told]:
    caplog.set_level(logging.INFO)
    namespace = Namespace()
    try:
        with Told(namespace, tmp_path, caplog) as made:
            yield made
    finally:
        namespace.close()


# --- changes ------------------------------------------------------------------------------------------


def test_each_change_is_one_line_with_its_fields_and_one_piece_of_news(router: Told) -> None:
    router.begin()
    router.put(WEB)
    router.put(service("other", "172.30.254.2"))
    router.sync()
    router.put(service("web", SERVICE4, limit="10 mbytes/second"))
    router.sync()
    router.delete(WEB)
    router.sync()
    assert router.stories == [
        ("Service default/other: opened 172.30.254.2 tcp 80", {**WEB_FIELDS, "name": "other", "topic": "Opened"}),
        ("Service default/web: opened 172.30.254.1 tcp 80", {**WEB_FIELDS, "topic": "Opened"}),
        (
            "Service default/web: changed 172.30.254.1 tcp 80, each limited to 10 mbytes/second",
            {**WEB_FIELDS, "topic": "LimitChanged"},
        ),
        ("Service default/web: closed 172.30.254.1 tcp 80", {**WEB_FIELDS, "topic": "Closed"}),
    ]
    assert router.lines == [("INFO", text) for text, _ in router.stories], "and no other line"
    assert [f"{each.about}: {each.message}" for each in router.source.news] == [text for text, _ in router.stories]


def test_a_file_has_no_namespace_in_its_fields(router: Told) -> None:
    router.begin(WEB)
    router.local_chain.write_text("nonsense here\n")
    router.sync()
    [(text, fields)] = router.stories
    assert text.startswith(f"File {router.local_chain}: rejected: invalid_local_chain: ")
    assert fields == {
        "kind": "File", "name": str(router.local_chain), "topic": "LocalChainRefused", "router": "edge1",
    }  # fmt: skip
    assert (router.condition("LocalChainValid").holds, router.condition("LocalChainValid").reason) == (False, "Refused")


def test_a_thousand_changes_at_once_are_two_hundred_lines_and_the_number_of_the_others(router: Told) -> None:
    """The cap is the log's alone: each Service's owner hears of it."""
    crowd = (
        service(f"s{number}", f"172.30.254.{number // 5}", ports=[("TCP", 1 + number % 5)]) for number in range(1000)
    )
    router.lists(nft(), *crowd)
    router.sync()
    assert len(router.stories) == LINES == 200
    assert router.lines[-1] == ("INFO", "… and 800 more changes")
    assert router.topics == [EventReason.OPENED] * 1000


def test_as_many_changes_as_may_be_logged_are_logged_without_a_line_about_others(router: Told) -> None:
    router.lists(nft(), *(service(f"s{number}", f"172.30.254.{number}") for number in range(LINES)))
    router.sync()
    assert len(router.stories) == LINES
    assert not [text for _, text in router.lines if "more changes" in text]


# --- objects that change without end ------------------------------------------------------------------

OTHER = service("other", "172.30.254.2")
FLAPS = {
    "an address comes and goes": (service("web", SERVICE4, "172.30.254.3"), WEB),
    "another port": (service("web", SERVICE4, ports=[("TCP", 81)]), WEB),
    "a limit that is refused": (service("web", SERVICE4, limit="fast"), WEB),
    "an address outside of the pools": (service("web", "203.0.113.9"), WEB),
    "other sources": (
        service("web", SERVICE4, sources=["192.0.2.0/24"]),
        service("web", SERVICE4, sources=["198.51.100.0/24"]),
    ),
}


@pytest.mark.parametrize(("first", "second"), FLAPS.values(), ids=FLAPS)
def test_a_service_that_changes_without_end_makes_few_lines_and_few_news(router: Told, first: Raw, second: Raw) -> None:
    router.begin(WEB)
    router.pace = timedelta(seconds=0.1)
    for _ in range(150):
        for version in (first, second):
            router.put(version)
            router.sync()
    assert 20 <= len(router.lines) <= 25 + 1, "the first rejection is urgent"
    assert len(router.source.news) == len(router.lines)
    router.put(OTHER)
    router.sync()
    assert router.lines[-1] == ("INFO", "Service default/other: opened 172.30.254.2 tcp 80")
    told = len(router.lines)
    assert router.metric("flapping_objects") == 0
    router.rest(20)
    assert (len(router.lines), router.metric("flapping_objects")) == (told, 1)
    router.rest(600)
    assert len(router.lines) == told + 1
    assert "Service default/web: has settled: " in router.lines[-1][1]
    assert "; now: open: 172.30.254.1 tcp 80" in router.lines[-1][1]
    assert router.source.news[-1].topic is EventReason.SETTLED
    assert router.metric("flapping_objects") == 0


def test_a_service_that_settles_rejected_is_told_as_rejected_at_once_and_at_the_end(router: Told) -> None:
    router.begin(WEB)
    router.pace = timedelta(seconds=0.1)
    for _ in range(100):
        for version in (service("web", SERVICE4, ports=[("TCP", 81)]), WEB):
            router.put(version)
            router.sync()
    router.forget()
    router.put(service("web", "203.0.113.9"))
    router.sync()
    assert [level for level, text in router.lines if "rejected: outside_pools" in text] == ["WARNING"]
    router.rest(60)
    [*_, (_, final)] = router.lines
    assert "; now: closed; rejected: outside_pools: 203.0.113.9 is outside of MetalLB's usable pools" in final


def test_settings_pools_and_rules_that_change_without_end_make_few_lines(router: Told) -> None:
    router.begin(WEB)
    router.pace = timedelta(seconds=0.1)
    other = {**POOL, "spec": {"addresses": ["172.30.253.0/24"]}}
    for _ in range(100):
        for pool, ssh in ((other, False), (POOL, True)):
            router.put(pool, nft(enable_ssh=ssh))
            router.sync()
    names = ("Service default/web", "Nft arbf-operators/nft", "the rules")
    assert len(router.lines) <= 28 * len(names)
    router.rest(60)
    finals = [text for _, text in router.lines if "has settled" in text]
    assert {text.partition(": has")[0] for text in finals} >= {"Service default/web", "Router rules"}


def test_failures_that_come_without_end_make_few_lines_and_the_first_one_is_told_at_once(router: Told) -> None:
    router.begin(WEB)
    for _ in range(100):
        router.now += timedelta(seconds=0.1)
        router.tell(SyncResult(Outcome.FAILED, "the last ruleset stays: no"))
        router.tell(SyncResult(Outcome.APPLIED, "rules renewed"))
    assert router.lines[0] == ("ERROR", "the last ruleset stays: no")
    assert len(router.lines) <= 2 * 25
    router.rest(60)
    assert [text.partition("; now")[2] for _, text in router.lines[-2:]] == [": applied: rules renewed"] * 2


def test_an_interface_that_comes_and_goes_makes_few_lines_and_its_last_state_is_told(router: Told) -> None:
    router.begin(WEB)
    router.pace = timedelta(seconds=0.1)
    for _ in range(40):
        router.place.ip(f"link add {PUBLIC_NIC} type veth peer name far")
        router.sync()
        router.place.ip(f"link del {PUBLIC_NIC}")
        router.sync()
    about = [text for _, text in router.lines if PUBLIC_NIC in text or "count as public" in text]
    assert 20 <= len(about) <= 26
    router.rest(60)
    [final] = [text for _, text in router.lines if text.startswith("Router interfaces: has settled")]
    assert f"; now: {PUBLIC_NIC} is not there" in final


# --- drift, and quiet ---------------------------------------------------------------------------------


def test_drift_is_told_once(router: Told) -> None:
    router.begin(WEB)
    router.place.nft("flush set inet nftsync services4")
    assert router.sync(resync=True).drift
    router.sync(resync=True)
    repaired = "somebody else changed nftsync's tables; nftsync repaired them; pinholes: none changed"
    assert router.lines == [("WARNING", repaired)]
    [told] = router.source.news
    assert (str(told.about), told.topic, told.message, told.warning) == (
        "Nft arbf-operators/nft", EventReason.DRIFT_REPAIRED, repaired, True,
    )  # fmt: skip
    assert router.metric("drift_repairs_total") == 1


def test_of_an_idle_resync_nothing_is_logged_or_told_and_the_status_stays_the_same(router: Told) -> None:
    router.begin(WEB, service("refused", "203.0.113.9"))
    for _ in range(5):
        assert router.sync(resync=True).outcome is Outcome.UNCHANGED
    assert (router.lines, router.source.news, list(router.publisher.recent)) == ([], [], [])
    assert len(router.source.statuses) == 5
    assert len(set(router.source.statuses)) == 1


# --- waiting and failing ------------------------------------------------------------------------------


def test_what_is_waited_for_is_said_once_and_again_when_it_is_something_else(router: Told) -> None:
    for _ in range(3):
        router.sync()
    assert router.lines == [("INFO", f"waiting: {NOT_FILTERING}: the first lists are not complete")]
    router.lists(WEB)
    for _ in range(3):
        router.sync()
    waiting = [text for _, text in router.lines if text.startswith("waiting: ")][1:]
    assert waiting == [f"waiting: {NOT_FILTERING}: there is no usable Nft resource arbf-operators/nft"]
    assert (router.condition("Ready").holds, router.condition("Ready").message) == (
        False,
        waiting[0].removeprefix("waiting: "),
    )


def test_the_same_wait_after_something_else_is_said_again(router: Told) -> None:
    for result in (SyncResult(Outcome.WAITING, "x"), SyncResult(Outcome.UNCHANGED), SyncResult(Outcome.WAITING, "x")):
        router.tell(result)
    assert [text for _, text in router.lines if "waiting" in text] == ["waiting: x"] * 2


def test_a_failure_is_an_error_in_the_log_and_the_reason_why_the_router_is_not_ready(router: Told) -> None:
    router.begin(WEB)
    router.tell(SyncResult(Outcome.FAILED, "the last ruleset stays: no"))
    assert router.lines == [("ERROR", "the last ruleset stays: no")]
    assert router.condition("Ready") == Condition(
        "Ready", holds=False, reason="NotSynced", message="the last ruleset stays: no"
    )


# --- pools --------------------------------------------------------------------------------------------


def test_whether_pools_decide_is_said_when_it_changes_and_not_while_nothing_is_known(router: Told) -> None:
    router.sync()
    assert not [text for _, text in router.lines if "addresses are" in text]
    router.lists(nft(), WEB)
    for _ in range(2):
        router.sync(resync=True)
    assert router.metric("pools_guarded") == 0
    assert not router.condition("PoolsGuarded").holds
    router.put(POOL)
    for _ in range(2):
        router.sync(resync=True)
    assert router.metric("pools_guarded") == 1
    said = [line for line in router.lines if "addresses are" in line[1]]
    assert said == [
        ("WARNING", "addresses are not checked: no MetalLB configuration counts, so a Service may have any address"),
        ("INFO", "addresses are checked against MetalLB's pools"),
    ]
    assert (router.condition("PoolsGuarded").holds, router.condition("PoolsGuarded").reason) == (True, "Guarded")


def test_pools_that_are_required_and_not_known_are_told_apart_from_pools_that_are(router: Told) -> None:
    router.reload(listed=False, address_policy=AddressPolicy(pool_mode=PoolMode.REQUIRED))
    router.lists(nft(), WEB)
    router.sync()
    assert router.pinholes() == {}
    without = router.condition("PoolsGuarded")
    assert (without.holds, without.reason) == (True, "NoPools")
    assert "no address is opened" in without.message
    assert ("WARNING", "no address is opened: no pool of MetalLB counts") in router.lines
    router.put(POOL)
    router.sync()
    assert set(router.pinholes()) == {f"{SERVICE4} . tcp . 80"}
    assert router.condition("PoolsGuarded").reason == "Guarded"
    assert ("INFO", "addresses are checked against MetalLB's pools") in router.lines


def test_before_the_first_sync_nobody_says_that_there_are_no_pools(router: Told) -> None:
    """After a restart the last ruleset is in force, and so are its pools."""
    router.sync()
    assert (router.condition("PoolsGuarded").holds, router.condition("PoolsGuarded").message) == (
        False,
        "nothing is applied yet",
    )
    router.lists(nft(), WEB)
    router.sync()
    assert router.condition("PoolsGuarded").message == "no MetalLB configuration was seen"


def test_pools_that_are_ignored_are_named_as_the_reason(router: Told) -> None:
    router.reload(listed=False, address_policy=AddressPolicy(pool_mode=PoolMode.IGNORED))
    router.lists(nft(), WEB, POOL)
    router.sync()
    found = router.condition("PoolsGuarded")
    assert (found.holds, found.reason, found.message) == (False, "Unguarded", 'pools = "ignored"')


# --- rejections ---------------------------------------------------------------------------------------


def test_a_rejection_is_told_when_it_is_new_and_when_it_is_gone(router: Told) -> None:
    router.begin(WEB)
    router.put(service("web", SERVICE4, limit="fast"))
    router.sync()
    router.sync(resync=True)
    router.put(WEB)
    router.sync()
    router.sync(resync=True)
    of_rejections = [(text, fields["topic"]) for text, fields in router.stories if "invalid_ratelimit" in text]
    assert [topic for _, topic in of_rejections] == ["Rejected", "Accepted"]
    assert of_rejections[0][0].startswith("Service default/web: rejected: invalid_ratelimit: ")
    assert of_rejections[1][0].startswith("Service default/web: no longer rejected: invalid_ratelimit: ")
    warned = [each for each in router.source.news if each.warning]
    assert [each.topic for each in warned] == [EventReason.REJECTED]
    assert [line[0] for line in router.lines if "invalid_ratelimit" in line[1]] == ["WARNING", "INFO"]


def test_a_rejection_whose_object_is_gone_is_told_as_gone(router: Told) -> None:
    stray = service("stray", "203.0.113.9")
    router.begin(WEB, stray)
    assert router.metric("rejections", reason="outside_pools") == 1
    router.delete(stray)
    router.sync()
    assert router.topics == [EventReason.ACCEPTED]
    assert router.metric("rejections", reason="outside_pools") == 0


def test_the_status_counts_objects_that_are_refused_not_reasons(router: Told) -> None:
    router.begin(WEB)
    router.put(service("stray", "203.0.113.9", "203.0.113.10", limit="fast"))
    router.sync()
    assert len(router.rejections()) == 3
    assert router.source.statuses[-1].rejected == 1


# --- what is stale ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "source"),
    [("Service", "services"), ("Nft", "settings"), ("IPAddressPool", "pools"), ("ConfigMap", "pools")],
)
def test_what_can_not_be_watched_is_stale_by_what_it_is_for(router: Told, kind: str, source: str) -> None:
    router.begin(WEB)
    router.source.old[kind] = "no answer"
    assert router.stale() == {source: "no answer"}
    assert {each: router.metric("config_stale", source=each) for each in ("services", "settings", "pools")} == {
        "services": 0, "settings": 0, "pools": 0, source: 1,
    }  # fmt: skip
    router.sync()
    assert (router.condition("Stale").holds, router.condition("Stale").message) == (True, f"{source}: no answer")
    router.source.old.clear()
    assert router.stale() == {}
    assert router.metric("config_stale", source=source) == 0


def test_what_is_refused_makes_its_last_good_version_stale(router: Told) -> None:
    router.begin(WEB)
    router.put({**nft(), "spec": {"public_nic": "lo"}})
    router.put({**POOL, "spec": {"addresses": ["nonsense"]}})
    router.sync()
    stale = router.stale()
    assert stale.keys() == {"settings", "pools"}
    assert "the last good settings stay" in stale["settings"]
    assert "the last good pools stay" in stale["pools"]
    assert router.topics == [EventReason.SETTINGS_REFUSED, EventReason.POOLS_REFUSED]
    assert router.condition("Stale").reason == "LastGoodHolds"


def test_settings_whose_resource_is_gone_are_stale(router: Told) -> None:
    router.begin(WEB)
    router.delete(nft())
    router.sync()
    assert router.stale() == {"settings": "there is no such resource; the last good settings stay"}


# --- what is remembered -------------------------------------------------------------------------------


def test_the_last_twenty_pieces_of_news_are_remembered_with_their_times(router: Told) -> None:
    router.begin()
    for number in range(RECENT + 5):
        router.put(service(f"s{number}", f"172.30.254.{number}"))
        router.sync()
    assert len(router.publisher.recent) == RECENT == 20
    times, news = zip(*router.publisher.recent, strict=True)
    assert [str(each.about) for each in news] == [f"Service default/s{number}" for number in range(5, RECENT + 5)]
    assert times == tuple(f"2026-01-01T00:{number + 2:02}:00Z" for number in range(5, RECENT + 5))


def test_the_time_of_the_last_change_moves_with_the_hash_alone(router: Told) -> None:
    """Not with a resync, a refusal, or what only this router has: its local chain."""
    router.begin(WEB)
    router.sync()
    first = router.source.statuses[-1]
    assert first.last_change == "2026-01-01T00:01:00Z", "that of the first sync"
    router.sync(resync=True)
    router.put(service("stray", "203.0.113.9"))
    router.local_chain.write_text("chain local-chain {\n\tudp dport 1111 accept\n}\n")
    router.sync()
    same = router.source.statuses[-1]
    assert same.rejected == 1
    assert (same.hash, same.last_change) == (first.hash, first.last_change)
    router.put(service("more", "172.30.254.2"))
    router.sync()
    other = router.source.statuses[-1]
    assert other.hash != first.hash
    assert other.last_change == "2026-01-01T00:05:00Z"


def test_the_status_says_what_the_router_does(router: Told) -> None:
    router.begin(service("web", SERVICE4, ports=[("TCP", 80), ("UDP", 53)]), service("stray", "203.0.113.9"))
    router.sync(resync=True)
    found = router.source.statuses[-1]
    assert (found.name, found.services, found.pinholes, found.rejected) == ("edge1", 2, 2, 1)
    assert router.metric("services") == 2
    assert router.metric("pinholes") == 2
    assert (
        router.condition("RateShaping").message
        == f"{PUBLIC_NIC} is not there: every interface counts as public, and no ingress limit is in force"
    )
    router.put(nft(enable_rateshape=False))
    router.sync()
    assert router.condition("RateShaping").message == "enable_rateshape is false"
