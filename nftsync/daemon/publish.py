"""Publish the result of a sync: metrics, log lines, the Nft's status and Events."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import islice

from nftsync import __version__
from nftsync.cluster.outbox import utc_now
from nftsync.cluster.source import Source
from nftsync.exporter.metrics import Metrics
from nftsync.objects.kinds import NFT, SERVICE
from nftsync.objects.names import ObjectRef, Reason, Rejection
from nftsync.objects.status import Confirmation, RouterStatus
from nftsync.plan.result import Outcome, SyncResult
from nftsync.report.conditions import conditions
from nftsync.report.events import EventReason, Notice, of_changes, of_confirmation, of_rejections

RECENT = 20  # pieces of news that `nftsync status` shows
LINES = 200  # log lines for one sync at most; one more line counts the rest

log = logging.getLogger(__name__)

_STALE = {SERVICE.name: "services", NFT.name: "settings"}  # all other kinds serve "pools"
_SETTINGS = (Reason.INVALID_SETTINGS, Reason.MISSING_SETTINGS)


class Publisher:
    """Remembers the published state and publishes differences from it."""

    def __init__(self, metrics: Metrics, utc: Callable[[], datetime] = utc_now) -> None:
        self._metrics = metrics
        self._utc = utc
        self._rejections: tuple[Rejection, ...] = ()
        self._rejected = 0  # objects with at least one rejection
        self._guarding = ""  # the last line about the guard of addresses
        self._waiting = ""
        self._confirmation: tuple[Confirmation, str] | None = None
        self._hash, self._changed = "", ""
        self.recent: deque[tuple[str, Notice]] = deque(maxlen=RECENT)  # with times, RFC 3339

    def publish(self, source: Source, result: SyncResult) -> None:
        """Publish a result. Never waits for the network."""
        metrics = self._metrics
        metrics.services.set(len(result.index.services))
        metrics.pinholes.set(len(result.pinholes))
        if result.drift:
            metrics.drift_repairs.inc()
        metrics.show_settings(result.settings)
        self._tell_result(result)
        self._tell_guard(result)
        news = [*self._news(result), *self._news_of_settings(result)]
        news.extend(self._news_of_rejections(result.rejections))
        news.sort(key=lambda each: not each.warning)  # warnings first: you must act on them
        router = result.snapshot.config.router_name if result.snapshot else ""
        self._log(news, router)
        self.recent.extend((self._now(), each) for each in news)
        source.tell(news)
        source.report(self._status(source, result, router))

    def _tell_result(self, result: SyncResult) -> None:
        """Log one line about the router as a whole; none if the sync changed nothing."""
        waiting, self._waiting = self._waiting, ""
        if result.outcome is Outcome.FAILED:
            log.error("%s", result.message)
        elif result.outcome is Outcome.APPLIED and result.message:
            (log.warning if result.drift else log.info)("%s", result.message)
        elif result.outcome is Outcome.WAITING:
            self._waiting = result.message
            if result.message != waiting:
                log.log(logging.WARNING if result.drift else logging.INFO, "waiting: %s", result.message)

    def _tell_guard(self, result: SyncResult) -> None:
        """Log one line when the guard of addresses changes: pools, no pools, or no guard."""
        guard = result.guard
        if not result.pools_known:
            self._metrics.pools_guarded.set(float("nan"))  # neither yes nor no
            return
        self._metrics.pools_guarded.set(guard.guarded)
        level, said = logging.INFO, "addresses are checked against MetalLB's pools"
        if not guard.guarded:
            level = logging.WARNING
            said = "addresses are not checked: no MetalLB configuration counts, so a Service may have any address"
        elif not guard.pools:
            level, said = logging.WARNING, "no address is opened: no pool of MetalLB counts"
        if said != self._guarding:
            self._guarding = said
            log.log(level, "%s", said)

    def _news(self, result: SyncResult) -> Iterable[Notice]:
        yield from of_changes(result.changes)
        if result.drift and result.nft is not None:
            yield Notice(result.nft.ref, EventReason.DRIFT_REPAIRED, result.message, warning=True)

    def _news_of_settings(self, result: SyncResult) -> Iterable[Notice]:
        """A warning if new settings can lock you out, and later if you confirmed them in time."""
        told = result.confirming.state, str(result.confirming)
        if told != self._confirmation and result.confirming.cut:
            yield of_confirmation(result.nft.ref if result.nft else None, *told)
        self._confirmation = told

    def _news_of_rejections(self, rejections: tuple[Rejection, ...]) -> Iterable[Notice]:
        if rejections is not self._rejections:
            self._metrics.count_rejections(rejections)
            self._rejected = len({rejection.object for rejection in rejections})
            yield from of_rejections(self._rejections, rejections)
            self._rejections = rejections

    def _log(self, news: list[Notice], router: str) -> None:
        # _tell_result() logs repairs
        lines = (each for each in news if each.topic is not EventReason.DRIFT_REPAIRED)
        for each in islice(lines, LINES):
            level = logging.WARNING if each.warning else logging.INFO
            log.log(level, "%s: %s", each.about, each.message, extra={"fields": _fields(each, router)})
        if more := sum(1 for _ in lines):
            log.info("… and %d more changes", more)

    def _now(self) -> str:
        return self._utc().strftime("%Y-%m-%dT%H:%M:%SZ")

    # --- the status ---------------------------------------------------------------------------------------

    def _status(self, source: Source, result: SyncResult, router: str) -> RouterStatus:
        if result.hash != self._hash:
            self._hash, self._changed = result.hash, self._now()
        return RouterStatus(
            router,
            __version__,
            result.nft.generation if result.nft else 0,
            result.hash,
            self._changed,
            len(result.index.services),
            len(result.pinholes),
            self._rejected,
            conditions(result, self.stale(source, result)),
        )

    def stale(self, source: Source, result: SyncResult) -> dict[str, str]:
        """The reason for each input that is not up to date: "services", "settings" or "pools"."""
        found = result.remembered
        for kind, why in source.stale().items():
            of = _STALE.get(kind, "pools")
            found[of] = "; ".join(filter(None, (found.get(of), why)))
        for of, reasons in (("settings", _SETTINGS), ("pools", (Reason.INVALID_POOLS,))):
            if messages := [each.message for each in self._rejections if each.reason in reasons]:
                found[of] = messages[0]
        self._metrics.show_stale(dict.fromkeys(found, True))
        return found


def _fields(news: Notice, router: str) -> dict[str, str]:
    """Fields for searches in the journal."""
    about: ObjectRef | None = news.about
    if about is None:
        return {"router": router}
    namespace, slash, name = about.name.partition("/")
    place = {"namespace": namespace, "name": name} if slash and about.kind != "File" else {"name": about.name}
    return {"kind": about.kind, **place, "topic": news.topic, "router": router}
