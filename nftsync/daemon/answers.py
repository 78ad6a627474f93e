"""Answer `nftsync status`, `explain`, `diff`, `top` and `confirm` from the last result of a sync."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice

from nftsync import __version__
from nftsync.cluster.source import Source
from nftsync.daemon.control import Answer, Request
from nftsync.daemon.observe import Observer
from nftsync.daemon.publish import Publisher
from nftsync.kernel import counters, others
from nftsync.kernel.netlink import DumpError
from nftsync.objects.names import OF_POOLS, Rejection
from nftsync.objects.nft import describe_spec
from nftsync.plan.memory import describe_pools
from nftsync.plan.result import SyncResult
from nftsync.plan.snapshot import Origin
from nftsync.policy.public import PublicSide
from nftsync.report.answer import explain
from nftsync.report.explanation import View as Asked
from nftsync.report.others import OtherTables
from nftsync.report.traffic import Reading
from nftsync.ruleset.text import render

_REJECTIONS = 1000  # at most in one answer
_OTHERS_RULES, _OTHERS_SECONDS = 5000, 0.2  # the most to read of other programs' tables for one answer


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
        "cluster": _cluster,
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
        "rejections": list(map(_rejection, islice(last.rejections, _REJECTIONS))),
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


def _cluster(view: View, _: Request) -> Answer:
    """Settings and pools, for a command that can't reach the API server."""
    s = view.last.snapshot
    if s is None or s.pools.origin is Origin.UNKNOWN:
        raise ValueError("nftsync does not know the pools yet")
    of_pools = (rejection for rejection in view.last.rejections if rejection.reason in OF_POOLS)
    return {
        "spec": None if s.spec.value is None else describe_spec(s.spec.value),
        "pools": None if s.pools.value is None else describe_pools(s.pools.value),
        "rejections": list(map(_rejection, islice(of_pools, _REJECTIONS))),
    }


def _rejection(rejection: Rejection) -> Answer:
    return {"object": str(rejection.object), "reason": rejection.reason, "message": rejection.message}


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
