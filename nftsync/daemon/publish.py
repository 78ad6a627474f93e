"""Tell people about the router.

The result of a sync becomes metrics, log lines, the Nft's status and Events. The last result answers
`nftsync status`, `explain`, `diff`, `top` and `confirm`.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from nftsync.daemon.observe import Observer
from nftsync.exporter.metrics import Metrics
from nftsync.kernel import counters, others
from nftsync.kernel.netlink import DumpError
from nftsync.objects.names import NFT, SERVICE, Reason, Resource
from nftsync.objects.nft import RouterStatus
from nftsync.plan.result import Outcome, SyncResult
from nftsync.plan.snapshot import Origin
from nftsync.policy.public import PublicSide
from nftsync.report.answer import explain
from nftsync.report.conditions import conditions
from nftsync.report.events import EventReason, Notice, of_changes, of_confirmation, of_rejections
from nftsync.report.explanation import View as Asked
from nftsync.report.others import OtherTables
from nftsync.report.traffic import Reading
from nftsync.ruleset.text import render

RECENT = 20  # pieces of news that `nftsync status` shows
LINES = 200  # log lines for one sync at most; one more line counts the rest
_REJECTIONS = 1000  # at most in one answer
_OTHERS_RULES, _OTHERS_SECONDS = 5000, 0.2  # the most to read of other programs' tables for one answer

log = logging.getLogger(__name__)

_STALE = {SERVICE.name: "services", NFT.name: "settings"}  # all other kinds serve "pools"
_REASONS = {
    Reason.INVALID_SETTINGS: "settings",
    Reason.MISSING_SETTINGS: "settings",
    Reason.INVALID_POOLS: "pools",
}


class Publisher:
    """Remembers the published state and publishes differences from it."""

    def __init__(self, metrics: Metrics, utc: Callable[[], datetime] = utc_now) -> None:
        self._metrics = metrics
        self._utc = utc
        self._last = SyncResult(Outcome.WAITING)
        self._rejected = 0  # objects with at least one rejection
        self._guarding = ""  # the last line about the guard of addresses
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
        news = sorted(self._news(result), key=lambda notice: not notice.warning)  # warnings first: you must act on them
        now = self._utc().strftime("%Y-%m-%dT%H:%M:%SZ")
        if result.hash != last.hash:
            self._changed = now
        self._last = result
        router = result.snapshot.config.router_name if result.snapshot else ""
        _log(news, router)
        self.recent.extend((now, notice) for notice in news)
        source.tell(news)
        source.report(self._status(result, router))

    def _log_result(self, result: SyncResult) -> None:
        """Log one line about the router as a whole; none if the sync changed nothing."""
        said = result.outcome, result.message
        if result.outcome is Outcome.FAILED:
            log.error("%s", result.message)
        elif result.outcome is Outcome.APPLIED and result.message:
            (log.warning if result.drift else log.info)("%s", result.message)
        elif result.outcome is Outcome.WAITING and said != (self._last.outcome, self._last.message):
            log.log(logging.WARNING if result.drift else logging.INFO, "waiting: %s", result.message)

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
            said = "no address is opened: no pool of MetalLB counts"
        if result.pools_known and said != self._guarding:
            self._guarding = said
            log.log(logging.INFO if guard.guarded and guard.pools else logging.WARNING, "%s", said)

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
            if rejection.reason in _REASONS:
                stale[_REASONS[rejection.reason]] = rejection.message
        if stale != self._shown:
            self._shown = stale
            self._metrics.show_stale(dict.fromkeys(stale, True))
        return stale


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


# --- answers --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class View:
    """The state from which the daemon answers.

    running: seconds since the start.  synced: seconds since the last sync that succeeded.
    boot_failure: a sentence, "" for none.
    """

    observer: Observer
    publisher: Publisher
    source: Source
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
    pools, side = last.guard.pools, settings.side if settings else PublicSide()
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
            "name": ", ".join(side.named) or None,
            "attached": bool(settings and settings.devices),
            "missing": bool(side.missing),
            "rate_shaping": bool(settings and settings.enable_rateshape),
        },
        "public": {
            "interfaces": None if side.names is None else sorted(side.names - set(side.missing)),
            "inside": None if side.inside is None else sorted(side.inside),
            "missing": side.missing,
            "attached": settings.devices if settings else (),
            "absence": side.absence,
            "warnings": side.warnings,
        },
        "settings": {"confirmation": last.confirming.state, "message": str(last.confirming)},
        "pools": {
            "guarded": last.guard.guarded if last.pools_known else None,
            "names": [pool.name for pool in pools or ()],
        },
        "stateless": {
            "wanted": bool(settings and settings.stateless),
            "in_force": bool(settings and settings.is_stateless and settings.cluster.ranges),
        },
        "other_tables": list(_others().warnings()),
        "services": len(last.index.services),
        "pinholes": len(last.pinholes),
        "stale": view.publisher.stale(view.source, last),
        "rejections": [
            {"object": str(rejection.object), "reason": rejection.reason, "message": rejection.message}
            for rejection in islice(last.rejections, _REJECTIONS)
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
    confirmed = view.observer.confirm()
    return {"confirmed": confirmed, "text": str(view.observer.confirming)}


def _owners(view: View, _: Request) -> Answer:
    return {"owners": {key: str(pinhole.service) for key, pinhole in view.last.pinholes.items()}}


def _explain(view: View, request: Request) -> Answer:
    words = request.get("words")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("`explain` takes a list of words")
    services = {service.name: service for service in view.source.inputs.services.objects()}
    if view.last.snapshot is None or view.last.snapshot.services is not Origin.LISTED:
        services = {service.name: service for service in view.last.index.services}
    asked = Asked(view.last, services, cache(view.observer.network.routed), *_counts(), _others)
    explained = explain(asked, words)
    return {"text": explained.text(), **explained.as_json()}


def _counts() -> tuple[Callable[[str], int | None], Callable[[str], int | None], Callable[[], int | None]]:
    """Packets dropped by each pinhole's rate limits: those to it, and those from it. And those dropped as invalid.

    They read the counters once, on demand.
    """

    @cache
    def reading() -> Reading | None:
        try:
            return counters.read()
        except DumpError:
            return None

    @cache
    def dropped(*, egress: bool) -> Mapping[str, int]:
        counted = Counter[str]()
        for name, members in (found.counts if (found := reading()) else {}).items():
            if name.startswith("dropped") and name.startswith("dropped-egress") is egress:
                counted.update({key: count.packets for (key, _), count in members.items()})
        return counted

    def invalid() -> int | None:
        return sum(count.packets for count in found.invalid.values()) if (found := reading()) else None

    return lambda key: dropped(egress=False).get(key), lambda key: dropped(egress=True).get(key), invalid


def _others() -> OtherTables:
    """The tables of other programs. The loop waits for it, so it reads fewer rules than `nftsync check`."""
    return others.read(rules=_OTHERS_RULES, seconds=_OTHERS_SECONDS)
