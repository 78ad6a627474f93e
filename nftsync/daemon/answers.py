"""What the running daemon says of itself to those who ask: the answers behind status, explain, diff and top."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice

from nftsync import __version__
from nftsync.cluster.source import Source
from nftsync.config import Config
from nftsync.daemon.control import Answer, Question
from nftsync.daemon.publish import Publisher
from nftsync.daemon.reconcile import Reconciler
from nftsync.kernel import counters
from nftsync.kernel.netlink import DumpError
from nftsync.plan.result import SyncResult
from nftsync.report.explain import View, explain
from nftsync.ruleset.elements import ruleset
from nftsync.ruleset.tables import Ruleset
from nftsync.ruleset.text import render

_REJECTIONS = 1000  # that one answer holds


@dataclass(frozen=True, slots=True)
class Daemon:
    """Everything that an answer may be drawn from. ages: seconds since the start, and since the last sync that succeeded."""

    config: Config
    reconciler: Reconciler
    source: Source
    publisher: Publisher
    last: SyncResult
    running: float
    synced: float | None


def answer(daemon: Daemon, question: Question) -> Answer:
    """Raises ValueError with a sentence if the question makes no sense."""
    command = question.get("command")
    known: Mapping[object, Callable[[Daemon, Question], Answer]] = {
        "status": _status, "ruleset": _ruleset, "owners": _owners, "explain": _explain, "confirm": _confirm,
    }  # fmt: skip
    if not isinstance(command, str) or command not in known:
        raise ValueError(f"this nftsync ({__version__}) knows no such question: restart the daemon after an upgrade")
    return known[command](daemon, question)


def _status(daemon: Daemon, _: Question) -> Answer:
    reconciler, settings = daemon.reconciler, daemon.reconciler.settings
    rejections = reconciler.rejections()
    pools = reconciler.guard.pools
    return {
        "router": daemon.config.router_name,
        "version": __version__,
        "running_seconds": round(daemon.running, 1),
        "sync": {
            "result": daemon.last.outcome,
            "message": daemon.last.message,
            "last_success_seconds": None if daemon.synced is None else round(daemon.synced, 1),
            "hash": reconciler.hash,
        },
        "watches": dict(daemon.source.watches()),
        "public_nic": {
            "name": settings.public_nic if settings else None,
            "attached": bool(settings and settings.device),
            "missing": bool(settings and settings.nic_missing),
            "rate_shaping": bool(settings and settings.enable_rateshape),
        },
        "settings": {"confirmation": reconciler.in_force.confirming.state, "message": str(reconciler.in_force.confirming)},
        "pools": {"guarded": reconciler.guard.guarded, "names": [pool.name for pool in pools or ()]},
        "services": len(reconciler.desired.services),
        "pinholes": len(reconciler.desired.pinholes),
        "stale": daemon.publisher.stale(daemon.source),
        "rejections": [
            {"object": str(each.object), "reason": each.reason, "message": each.message}
            for each in islice(rejections, _REJECTIONS)
        ],
        "rejected": len(rejections),
        "changes": [
            {"time": time, "about": str(news.about or ""), "topic": news.topic, "message": news.message}
            for time, news in daemon.publisher.recent
        ],
    }


def _ruleset(daemon: Daemon, _: Question) -> Answer:
    settings = daemon.reconciler.settings
    shown = ruleset(daemon.reconciler.desired.pinholes.values(), settings) if settings else Ruleset()
    return {"text": render(shown)}


def _confirm(daemon: Daemon, _: Question) -> Answer:
    confirmed = daemon.reconciler.confirm()
    return {"confirmed": confirmed, "text": str(daemon.reconciler.in_force.confirming)}


def _owners(daemon: Daemon, _: Question) -> Answer:
    return {"owners": {key: str(pinhole.service) for key, pinhole in daemon.reconciler.desired.pinholes.items()}}


def _explain(daemon: Daemon, question: Question) -> Answer:
    words = question.get("words")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("what is to be explained is a list of words")
    reconciler = daemon.reconciler
    view = View(
        services={service.name: service for service in daemon.source.inputs.services.objects()},
        desired=reconciler.desired,
        guard=reconciler.guard,
        filters=daemon.config.filters,
        boundary=daemon.config.boundary,
        settings=reconciler.settings,
        waiting=daemon.last.message,
        own=reconciler.own,
        routed=cache(reconciler.routed),
        drops=_drops(),
        opened=reconciler.opened(),
        quarantined=reconciler.quarantined,
    )
    found = explain(view, words)
    return {"text": found.text(), **found.as_json()}


def _drops() -> Callable[[str], int | None]:
    """What the limit of a pinhole has dropped, as the kernel counts it. It is asked once, for all of them."""

    @cache
    def dropped() -> Mapping[str, int]:
        try:
            counts = counters.read().counts
        except DumpError:
            return {}
        return {key: count.packets for name in ("dropped4", "dropped6") for (key, _), count in counts[name].items()}

    return lambda key: dropped().get(key)
