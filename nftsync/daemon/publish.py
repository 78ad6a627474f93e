"""Tell people about the router.

The result of a sync becomes metrics, log lines, the Nft's status and Events.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
from itertools import islice

from nftsync import __version__
from nftsync.cluster.backoff import RestartCause
from nftsync.cluster.outbox import utc_now
from nftsync.cluster.source import Source
from nftsync.cluster.watch import MassDeletion, WatchState
from nftsync.exporter.metrics import Metrics
from nftsync.objects.names import KINDS, NFT, SERVICE, ObjectRef, Reason, Rejection, Resource
from nftsync.objects.nft import RouterStatus
from nftsync.plan.result import Outcome, SyncResult
from nftsync.policy.public import PublicSide
from nftsync.report.conditions import conditions
from nftsync.report.damper import ROUTER, Damper, Key
from nftsync.report.events import EventReason, Notice, of_changes, of_confirmation, of_rejections, states

RECENT = 20  # pieces of news that `nftsync status` shows
LINES = 200  # log lines for one sync at most; one more line counts the rest

log = logging.getLogger(__name__)

_STALE = {SERVICE.name: "services", NFT.name: "settings"}  # all other kinds serve "pools"
_REASONS = {
    Reason.INVALID_SETTINGS: "settings",
    Reason.MISSING_SETTINGS: "settings",
    Reason.INVALID_POOLS: "pools",
    Reason.MISSING_POOLS: "pools",
}


class Publisher:
    """Remembers the published state and publishes differences from it. clock: monotonic seconds."""

    def __init__(
        self, metrics: Metrics, utc: Callable[[], datetime] = utc_now, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._utc = utc
        self._clock = clock
        self._damper = Damper()
        self._last = SyncResult(Outcome.WAITING)
        self._rejected = 0  # objects with at least one rejection
        self._guarding = ""  # the last line about the guard of addresses
        self._side: PublicSide | None = None  # as told last
        self._changed = ""  # time of the last change of the hash
        self.stale_before: dict[str, str] = {}  # as published last
        self._shown = self.stale_before  # in the metrics
        self.recent: deque[tuple[str, Notice]] = deque(maxlen=RECENT)  # with times, RFC 3339

    def publish(self, source: Source, result: SyncResult) -> None:
        """Publish a result. Never waits for the network."""
        metrics, last = self._metrics, self._last
        metrics.services.set(len(result.index.services))
        metrics.pinholes.set(len(result.pinholes))
        if result.drift:
            metrics.drift_repairs.inc()
        if result.rejections is not last.rejections:
            metrics.count_rejections(result.rejections)
            self._rejected = len({rejection.object for rejection in result.rejections})
        self.stale_before = self.stale(source, result)
        self._log_result(result)
        if result.snapshot is not last.snapshot:
            metrics.show_settings(result.settings)
            self._tell_guard(result)
            self._tell_side(result)
        news = sorted(self._news(result), key=lambda notice: not notice.warning)  # warnings first: you must act on them
        if result.hash != last.hash:
            self._changed = self._time()
        self._last = result
        now = self._clock()
        self._tell(source, list(filter(None, (self._damper.let(notice, now) for notice in news))))
        source.report(self._status(result, self._router))

    def sum_up(self, source: Source) -> None:
        """Tell about objects that change without end, as far as it is time. Call it every second."""
        self._metrics.flapping.set(self._damper.flapping)
        if news := self._damper.summaries(self._clock(), self._states):
            self._tell(source, news)

    def _tell(self, source: Source, news: list[Notice]) -> None:
        _log(news, self._router)
        self.recent.extend((self._time(), notice) for notice in news)
        source.tell(news)

    def _states(self, objects: Collection[ObjectRef]) -> dict[Key, str]:
        last, side = self._last, self._side
        rules = f"{last.outcome}: {last.message}" if last.message else last.outcome
        parts = {"rules": rules, "failure": rules, "pools": self._guarding}
        parts["interfaces"] = "; ".join(filter(None, (side.absence, *side.warnings, f"public: {side}"))) if side else ""
        return states(objects, last) | {(ROUTER.kind, part): said for part, said in parts.items()}

    @property
    def _router(self) -> str:
        return self._last.snapshot.config.router_name if self._last.snapshot else ""

    def _time(self) -> str:
        return self._utc().strftime("%Y-%m-%dT%H:%M:%SZ")

    def _line(self, part: str, level: int, message: str) -> None:
        """Log a line about a part of the router."""
        notice = Notice(ObjectRef(ROUTER.kind, part), EventReason.ROUTER, message, warning=level > logging.INFO)
        if said := self._damper.let(notice, self._clock()):
            log.log(level, "%s", said.message)

    def _log_result(self, result: SyncResult) -> None:
        """Log one line about the router as a whole; none if the sync changed nothing."""
        said = result.outcome, result.message
        level = logging.WARNING if result.drift else logging.INFO
        if result.outcome is Outcome.FAILED:
            self._line("failure", logging.ERROR, result.message)
        elif result.outcome is Outcome.APPLIED and result.message:
            self._line("rules", level, result.message)
        elif result.outcome is Outcome.WAITING and said != (self._last.outcome, self._last.message):
            self._line("rules", level, f"waiting: {result.message}")

    def _tell_guard(self, result: SyncResult) -> None:
        """Show the guard of addresses. Log one line when it changes: pools, no pools, or no guard."""
        guard = result.guard
        self._metrics.pools_guarded.set(
            guard.guarded if result.pools_known else float("nan")
        )  # NaN: neither yes nor no
        said = "addresses are checked against MetalLB's pools"
        if not guard.guarded:
            said = "addresses are not checked: no MetalLB configuration counts, so a Service may have any address"
        elif not guard.pools:
            said = f"no address is opened: {guard.no_pool or 'no pool of MetalLB counts'}"
        if result.pools_known and said != self._guarding:
            self._guarding = said
            self._line("pools", logging.INFO if guard.guarded and guard.pools else logging.WARNING, said)

    def _tell_side(self, result: SyncResult) -> None:
        """Log each new fact about the public interfaces once."""
        side, before = result.snapshot.interfaces.side if result.snapshot else None, self._side
        if side is None or side is before:
            return
        self._side = side
        known = {*before.warnings, before.absence} if before else set()
        for fact in sorted({*side.warnings, side.absence} - known - {""}):
            self._line("interfaces", logging.WARNING, fact)
        if side.named and (before is None or before.names != side.names or (before.absence and not side.absence)):
            self._line("interfaces", logging.INFO, f"these interfaces count as public: {side}")

    def _news(self, result: SyncResult) -> Iterator[Notice]:
        """Changes, repairs, new settings that can lock you out (later: whether you confirmed them), rejections."""
        last = self._last
        yield from of_changes(result.changes)
        if result.drift and result.nft is not None:
            yield Notice(result.nft.ref, EventReason.DRIFT_REPAIRED, result.message, warning=True)
        now, before = result.confirming, last.confirming
        if now.cut and (now.state, str(now)) != (before.state, str(before)):
            yield of_confirmation(result.nft.ref if result.nft else None, now.state, str(now))
        if result.rejections is not last.rejections:
            yield from of_rejections(last.rejections, result.rejections)

    def _status(self, result: SyncResult, router: str) -> RouterStatus:
        return RouterStatus(
            router,
            __version__,
            result.nft.generation if result.nft else 0,
            result.hash,
            self._changed,
            len(result.index.services),
            len(result.pinholes),
            self._rejected,
            conditions(result, self.stale_before),
        )

    def stale(self, source: Source, result: SyncResult) -> dict[str, str]:
        """The reason for each input that is not up to date: "services", "settings" or "pools"."""
        stale = result.remembered
        for kind, why in source.stale().items():
            what = _STALE.get(kind, "pools")
            stale[what] = "; ".join(filter(None, (stale.get(what), why)))
        for rejection in reversed(result.rejections):  # the first one of each input counts
            if what := _outdated(rejection):
                stale[what] = rejection.message
        if stale != self._shown:
            self._shown = stale
            self._metrics.show_stale(dict.fromkeys(stale, True))
        return stale


def _outdated(rejection: Rejection) -> str:
    """The input that is not up to date because of a rejection; "" if none is."""
    kind = rejection.object.kind
    if rejection.reason in (Reason.UNKNOWN_KIND, Reason.UNKNOWN_FIELD) and kind in KINDS and kind != SERVICE.name:
        return _STALE.get(kind, "pools")
    return _REASONS.get(rejection.reason, "")


def _log(news: Iterable[Notice], router: str) -> None:
    lines = (notice for notice in news if notice.topic is not EventReason.DRIFT_REPAIRED)  # _log_result() logs repairs
    for notice in islice(lines, LINES):
        level = logging.WARNING if notice.warning else logging.INFO
        log.log(level, "%s: %s", notice.about, notice.message, extra={"fields": _fields(notice, router)})
    if more := sum(1 for _ in lines):
        log.info("… and %d more changes", more)


def _fields(notice: Notice, router: str) -> dict[str, str]:
    """Fields for searches in the journal."""
    about = notice.about
    if about is None:
        return {"router": router}
    namespace, slash, name = about.name.partition("/")
    place = {"namespace": namespace, "name": name} if slash and about.kind != "File" else {"name": about.name}
    return {"kind": about.kind, **place, "topic": notice.topic, "router": router}


class MetricsObserver:
    """Counts the events of a source. It implements cluster.watch.Observer."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.requested = metrics.count_api_request

    def watching(self, resource: Resource, state: WatchState) -> None:
        for possible in WatchState:
            self._metrics.watch_state.labels(resource.kind, possible).set(possible is state)

    def restarted(self, resource: Resource, cause: RestartCause) -> None:
        self._metrics.watch_restarts.labels(resource.kind, cause).inc()

    def contact(self, resource: Resource) -> None:
        self._metrics.last_contact.labels(resource.kind).set_to_current_time()

    def skipped(self, resource: Resource, _message: str) -> None:
        self._metrics.skipped.labels(resource.kind).inc()

    def mass_deletion(self, _resource: Resource, deletion: MassDeletion, _message: str) -> None:
        self._metrics.list_doubts.labels(deletion).inc()

    def wrote_status(self, result: str) -> None:
        self._metrics.status_writes.labels(result).inc()

    def sent_event(self, result: str) -> None:
        self._metrics.events.labels(result).inc()
