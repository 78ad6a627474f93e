"""The running daemon's answers to `nftsync status`, `explain`, `diff`, `top` and `confirm`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice

from nftsync import __version__
from nftsync.cluster.source import Source
from nftsync.daemon.control import Answer, Question
from nftsync.daemon.publish import Publisher
from nftsync.daemon.reconcile import Reconciler
from nftsync.kernel import counters
from nftsync.kernel.netlink import DumpError
from nftsync.plan.result import SyncResult
from nftsync.plan.snapshot import Origin
from nftsync.report.explain import View, explain
from nftsync.ruleset.text import render

_REJECTIONS = 1000  # at most in one answer


@dataclass(frozen=True, slots=True)
class Daemon:
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


def answer(daemon: Daemon, question: Question) -> Answer:
    """Answer one question. Raises ValueError with a sentence if the question is not valid."""
    command = question.get("command")
    known: Mapping[object, Callable[[Daemon, Question], Answer]] = {
        "status": _status, "ruleset": _ruleset, "owners": _owners, "explain": _explain, "confirm": _confirm,
    }  # fmt: skip
    if not isinstance(command, str) or command not in known:
        raise ValueError(f"the daemon ({__version__}) does not know this command: restart it after an upgrade")
    return known[command](daemon, question)


def _status(daemon: Daemon, _: Question) -> Answer:
    last, settings, s = daemon.last, daemon.last.settings, daemon.last.snapshot
    pools = last.guard.pools
    return {
        "router": s.config.router_name if s else "",
        "version": __version__,
        "running_seconds": round(daemon.running, 1),
        "sync": {
            "result": last.outcome,
            "message": last.message,
            "last_success_seconds": None if daemon.synced is None else round(daemon.synced, 1),
            "hash": last.hash,
        },
        "boot_failure": daemon.boot_failure,
        "watches": dict(daemon.source.watches()),
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
        "stale": daemon.publisher.stale(daemon.source, last),
        "rejections": [
            {"object": str(each.object), "reason": each.reason, "message": each.message}
            for each in islice(last.rejections, _REJECTIONS)
        ],
        "rejected": len(last.rejections),
        "changes": [
            {"time": time, "about": str(news.about or ""), "topic": news.topic, "message": news.message}
            for time, news in daemon.publisher.recent
        ],
    }


def _ruleset(daemon: Daemon, _: Question) -> Answer:
    wanted = daemon.last.wanted
    if wanted is None and not daemon.last.filters:
        return {"text": ""}  # the kernel holds no tables of ours and needs none
    if wanted is None:
        raise ValueError(f"nftsync does not know yet which rules the kernel should hold: {daemon.last.message}")
    return {"text": render(wanted)}


def _confirm(daemon: Daemon, _: Question) -> Answer:
    confirmed = daemon.reconciler.confirm()
    return {"confirmed": confirmed, "text": str(daemon.reconciler.confirming)}


def _owners(daemon: Daemon, _: Question) -> Answer:
    return {"owners": {key: str(pinhole.service) for key, pinhole in daemon.last.pinholes.items()}}


def _explain(daemon: Daemon, question: Question) -> Answer:
    words = question.get("words")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("`explain` takes a list of words")
    services = {service.name: service for service in daemon.source.inputs.services.objects()}
    if daemon.last.snapshot is None or daemon.last.snapshot.services is not Origin.LISTED:
        services = {service.name: service for service in daemon.last.index.services}
    found = explain(View(daemon.last, services, cache(daemon.reconciler.routed), _drops()), words)
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
