"""Tell people about the router.

The result of a sync becomes metrics, log lines, the Nft's status and Events. The last result answers
`nftsync status`, `explain`, `diff`, `top` and `confirm`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import islice

from nftsync import __version__
from nftsync.cluster.backoff import RestartCause
from nftsync.cluster.outbox import utc_now
from nftsync.cluster.source import Source
from nftsync.cluster.watch import MassDeletion, WatchState
from nftsync.daemon.control import Answer, Request
from nftsync.daemon.reconcile import Reconciler
from nftsync.exporter.metrics import Metrics
from nftsync.kernel import counters
from nftsync.kernel.netlink import DumpError
from nftsync.objects.names import NFT, SERVICE, ObjectRef, Reason, Rejection, Resource
from nftsync.objects.nft import Confirmation, RouterStatus
from nftsync.plan.result import Outcome, SyncResult
from nftsync.plan.snapshot import Origin
from nftsync.report import explain
from nftsync.report.conditions import conditions
from nftsync.report.events import EventReason, Notice, of_changes, of_confirmation, of_rejections
from nftsync.ruleset.text import render

RECENT = 20  # pieces of news that `nftsync status` shows
LINES = 200  # log lines for one sync at most; one more line counts the rest
_REJECTIONS = 1000  # at most in one answer

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


class MetricsObserver:
    """Counts the events of a source. It implements cluster.source.Observer."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.requested = metrics.count_api_request

    def watching(self, resource: Resource, state: WatchState) -> None:
        for each in WatchState:
            self._metrics.watch_state.labels(resource.kind, each).set(each is state)

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


# --- answers --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class View:
    """The state from which the daemon answers.

    running: seconds since the start.  synced: seconds since the last sync that succeeded.
    boot_failure: a sentence, "" for none.
    """

    reconciler: Reconciler
    source: Source
    publisher: Publisher
    last: SyncResult
    running: float
    synced: float | None
    boot_failure: str = ""


def answer(view: View, request: Request) -> Answer:
    """Answer one request. Raises ValueError with a sentence if the request is not valid."""
    command = request.get("command")
    known: Mapping[object, Callable[[View, Request], Answer]] = {
        "status": _status, "ruleset": _ruleset, "owners": _owners, "explain": _explain, "confirm": _confirm,
    }  # fmt: skip
    if not isinstance(command, str) or command not in known:
        raise ValueError(f"the daemon ({__version__}) does not know this command: restart it after an upgrade")
    return known[command](view, request)


def _status(view: View, _: Request) -> Answer:
    last, settings, s = view.last, view.last.settings, view.last.snapshot
    pools = last.guard.pools
    return {
        "router": s.config.router_name if s else "",
        "version": __version__,
        "running_seconds": round(view.running, 1),
        "sync": {
            "result": last.outcome,
            "message": last.message,
            "last_success_seconds": None if view.synced is None else round(view.synced, 1),
            "hash": last.hash,
        },
        "boot_failure": view.boot_failure,
        "watches": dict(view.source.watches()),
        "public_nic": {
            "name": settings.public_nic if settings else None,
            "attached": bool(settings and settings.device),
            "missing": bool(settings and settings.nic_missing),
            "rate_shaping": bool(settings and settings.enable_rateshape),
        },
        "settings": {"confirmation": last.confirming.state, "message": str(last.confirming)},
        "pools": {
            "guarded": last.guard.guarded if last.pools_known else None,
            "names": [pool.name for pool in pools or ()],
        },
        "services": len(last.index.services),
        "pinholes": len(last.pinholes),
        "stale": view.publisher.stale(view.source, last),
        "rejections": [
            {"object": str(each.object), "reason": each.reason, "message": each.message}
            for each in islice(last.rejections, _REJECTIONS)
        ],
        "rejected": len(last.rejections),
        "changes": [
            {"time": time, "about": str(news.about or ""), "topic": news.topic, "message": news.message}
            for time, news in view.publisher.recent
        ],
    }


def _ruleset(view: View, _: Request) -> Answer:
    wanted = view.last.wanted
    if wanted is None and not view.last.filters:
        return {"text": ""}  # the kernel holds no tables of ours and needs none
    if wanted is None:
        raise ValueError(f"nftsync does not know yet which rules the kernel should hold: {view.last.message}")
    return {"text": render(wanted)}


def _confirm(view: View, _: Request) -> Answer:
    confirmed = view.reconciler.confirm()
    return {"confirmed": confirmed, "text": str(view.reconciler.confirming)}


def _owners(view: View, _: Request) -> Answer:
    return {"owners": {key: str(pinhole.service) for key, pinhole in view.last.pinholes.items()}}


def _explain(view: View, request: Request) -> Answer:
    words = request.get("words")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("`explain` takes a list of words")
    services = {service.name: service for service in view.source.inputs.services.objects()}
    if view.last.snapshot is None or view.last.snapshot.services is not Origin.LISTED:
        services = {service.name: service for service in view.last.index.services}
    found = explain.explain(explain.View(view.last, services, cache(view.reconciler.routed), _drops()), words)
    return {"text": found.text(), **found.as_json()}


def _drops() -> Callable[[str], int | None]:
    """Packets dropped by each pinhole's rate limit. It reads the counters once, on demand."""

    @cache
    def dropped() -> Mapping[str, int]:
        try:
            counts = counters.read().counts
        except DumpError:
            return {}
        return {key: count.packets for name in ("dropped4", "dropped6") for (key, _), count in counts[name].items()}

    return lambda key: dropped().get(key)
