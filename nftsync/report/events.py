"""Notices of what happened, and their way to the cluster as Events.

Each notice becomes a log line, and an Event on its object. Limits keep the router from flooding the API
server. A full queue drops normal Events first, then the oldest warnings. All Events share one token
bucket; report.damper bounds the notices about each object. A repeated notice raises a count.
Source: events.k8s.io/v1, KEP-383.
"""

import secrets
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from itertools import count
from operator import itemgetter

from nftsync.objects.names import KINDS, NFT, SERVICE, ObjectRef, Reason, Rejection, some
from nftsync.objects.nft import Confirmation
from nftsync.plan.result import Change, SyncResult
from nftsync.policy.pinholes import Pinhole

_NAMED = 8  # the most addresses, and ports of each, that a sentence names


class EventReason(StrEnum):
    """The topic of a notice. The list is fixed: Events use it as their reason."""

    OPENED = "Opened"
    CLOSED = "Closed"
    CHANGED = "Changed"
    LIMIT_CHANGED = "LimitChanged"
    REJECTED = "Rejected"
    ACCEPTED = "Accepted"
    SETTINGS_REFUSED = "SettingsRefused"
    LOCAL_CHAIN_REFUSED = "LocalChainRefused"
    POOLS_REFUSED = "PoolsRefused"
    DRIFT_REPAIRED = "DriftRepaired"
    LIST_DOUBTED = "ListDoubted"
    MANAGEMENT_CUT = "ManagementCut"
    CONFIRMATION_AWAITED = "ConfirmationAwaited"
    SETTINGS_CONFIRMED = "SettingsConfirmed"
    SETTINGS_ROLLED_BACK = "SettingsRolledBack"
    FLAPPING = "Flapping"
    SETTLED = "Settled"
    ROUTER = "Router"  # the router as a whole: log lines only


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that happened.

    about: its object; None for the whole router.  refusal: the reason of a rejection.
    """

    about: ObjectRef | None
    topic: EventReason
    message: str
    warning: bool = False
    refusal: Reason | None = None


_REFUSALS = {
    Reason.INVALID_SETTINGS: EventReason.SETTINGS_REFUSED,
    Reason.MISSING_SETTINGS: EventReason.SETTINGS_REFUSED,
    Reason.INVALID_LOCAL_CHAIN: EventReason.LOCAL_CHAIN_REFUSED,
    Reason.INVALID_POOLS: EventReason.POOLS_REFUSED,
    Reason.REFUSED_BY_METALLB: EventReason.POOLS_REFUSED,
}
_CONFIRMATIONS = {
    Confirmation.NOT_NEEDED: EventReason.MANAGEMENT_CUT,
    Confirmation.WAITING: EventReason.CONFIRMATION_AWAITED,
    Confirmation.CONFIRMED: EventReason.SETTINGS_CONFIRMED,
    Confirmation.ROLLED_BACK: EventReason.SETTINGS_ROLLED_BACK,
}


def of_confirmation(nft: ObjectRef | None, state: Confirmation, message: str) -> Notice:
    """A notice about settings that can lock you out of the router, and their confirmation."""
    return Notice(nft, _CONFIRMATIONS[state], message, warning=state is not Confirmation.CONFIRMED)


def of_changes(changes: Iterable[Change]) -> Iterator[Notice]:
    """One notice for each Service and kind of change."""
    for change in changes:
        if change.opened:
            yield Notice(
                change.service, EventReason.OPENED, f"opened {_pinholes(change.opened)}{_limit(change.opened)}"
            )
        if change.closed:
            yield Notice(change.service, EventReason.CLOSED, f"closed {_pinholes(change.closed)}")
        if change.limit_changed:
            limit = _limit(change.altered) or ", not limited any more"
            yield Notice(change.service, EventReason.LIMIT_CHANGED, f"changed {_pinholes(change.altered)}{limit}")
        elif change.altered:
            yield Notice(
                change.service,
                EventReason.CHANGED,
                f"changed {_pinholes(change.altered)}: {_sources(change.altered[0])}",
            )


def of_rejections(before: Iterable[Rejection], after: Iterable[Rejection]) -> Iterator[Notice]:
    """One notice for each new or withdrawn rejection."""
    old, new = (  # rejections with the same key make one notice
        {(refused.object, refused.reason, refused.part or refused.message): refused for refused in rejections}
        for rejections in (before, after)
    )
    for rejection in (new[key] for key in new if key not in old):
        reason = _REFUSALS.get(rejection.reason, EventReason.REJECTED)
        message = f"rejected: {rejection.reason}: {rejection.message}"
        yield Notice(rejection.object, reason, message, warning=True, refusal=rejection.reason)
    for rejection in (old[key] for key in old if key not in new):
        message = f"no longer rejected: {rejection.reason}: {rejection.message}"
        yield Notice(rejection.object, EventReason.ACCEPTED, message)


def states(objects: Iterable[ObjectRef], result: SyncResult) -> dict[tuple[str, str], str]:
    """The present state of each object in words, by its kind and name."""
    opened, refused = defaultdict[str, list[Pinhole]](list), defaultdict[tuple[str, str], list[str]](list)
    for pinhole in result.pinholes.values():
        opened[str(pinhole.service)].append(pinhole)
    for rejection in result.rejections:
        refused[rejection.object.kind, rejection.object.name].append(f"{rejection.reason}: {rejection.message}")
    said = {}
    for key in ((about.kind, about.name) for about in objects if about.kind in KINDS or about.kind == "File"):
        pinholes = opened.get(key[1], ()) if key[0] == SERVICE.name else ()
        parts = [f"open: {_pinholes(pinholes)}"] if pinholes else ["closed"] * (key[0] == SERVICE.name)
        parts += [f"rejected: {some(refused[key], _NAMED, '; ')}"] if key in refused else []
        said[key] = "; ".join(parts) or "not rejected"
    return said


def _pinholes(pinholes: Sequence[Pinhole]) -> str:
    """ "192.0.2.1 tcp 80, tcp 443; 2001:db8::1 tcp 80", shortened."""
    ports: dict[str, list[str]] = {}
    for pinhole in pinholes:
        address, protocol, port = pinhole.key.split(" . ")
        ports.setdefault(address, []).append(f"{protocol} {port}")
    return some((f"{address} {some(texts, _NAMED)}" for address, texts in ports.items()), _NAMED, "; ")


def _limit(pinholes: Sequence[Pinhole]) -> str:
    inwards, outwards = pinholes[0].limit, pinholes[0].limit_egress
    said = [f"to {inwards}"] if inwards else []
    said += [f"to {outwards} outwards"] if outwards else []
    return f", each limited {' and '.join(said)}" if said else ""


def _sources(pinhole: Pinhole) -> str:
    if pinhole.sources is None:
        return "open to everybody"
    return f"open to {some(pinhole.sources, _NAMED)}" if pinhole.sources else "open to nobody of this address family"


CONTROLLER = f"{NFT.group}/nftsync"
_ACTIONS = {EventReason.OPENED: "Open", EventReason.CLOSED: "Close", EventReason.DRIFT_REPAIRED: "Repair"}
_NOTE = 1024  # bytes, the API's limit
_INSTANCE = 128  # the same
_NAME = 253 - len(".") - 16  # bytes of the object's name in the name of an Event
_SERIES = 360.0  # seconds until the same notice makes a new Event
OBJECT = 25, 300.0  # notices about an object: so many at once, then one in so many seconds
_KNOWN = 4096  # series to remember


@dataclass(slots=True)
class Bucket:
    """A token bucket: `burst` at once, then one per `interval` seconds."""

    burst: float
    interval: float
    level: float
    filled: float

    @classmethod
    def full(cls, burst: float, interval: float) -> "Bucket":
        return cls(burst, interval, burst, 0.0)

    @classmethod
    def of_object(cls) -> "Bucket":
        """For the notices about one object, or the log lines about one matter."""
        return cls.full(*OBJECT)

    def take(self, now: float, *, keep: float = 0) -> bool:
        """Take a token, if at least `keep` stay."""
        self.level = min(self.burst, self.level + (now - self.filled) / self.interval)
        self.filled = now
        if self.level < 1 + keep:
            return False
        self.level -= 1
        return True

    def wait(self) -> float:
        """Seconds until the next token, as of the last take()."""
        return max(0.0, (1 - self.level) * self.interval)


@dataclass(frozen=True, slots=True)
class Request:
    """A request to send: method, path, body and its content type."""

    method: str
    path: str
    body: dict[str, object]
    content_type: str = "application/json"


@dataclass(slots=True)
class _Series:
    """A notice and its Event. count: how often the cluster has heard it.  last: when."""

    notice: Notice
    path: str = ""
    count: int = 0
    last: float = 0.0


class EventQueue:
    """Notices on their way to the cluster. Not thread-safe.

    instance: this router's name.  utc: the time of day.  dropped: number of notices that were never sent.

    The notice in transit has left the queue: newer ones cannot push it out, and a retry costs no token.
    """

    def __init__(self, instance: str, utc: Callable[[], datetime], *, length: int = 1000) -> None:
        self._instance = _cut(instance, _INSTANCE)
        self._utc = utc
        self._length = length
        self._numbers = count()
        self._warnings: deque[tuple[int, Notice]] = deque()  # each with its number
        self._others: deque[tuple[int, Notice]] = deque()
        self._sending: _Series | None = None
        self._all = Bucket.full(25, 0.2)
        self._series = lru_cache(_KNOWN)(_Series)  # of a notice
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._warnings) + len(self._others) + (self._sending is not None)

    def put(self, notice: Notice) -> None:
        """Queue a notice if an Event can refer to its object; ignore other notices."""
        if notice.about is None or notice.about.kind not in KINDS or not notice.about.uid:
            return
        (self._warnings if notice.warning else self._others).append((next(self._numbers), notice))
        if len(self._warnings) + len(self._others) > self._length:
            (self._others or self._warnings).popleft()
            self.dropped += 1

    def next(self, now: float) -> Request | float:
        """The next request, or the seconds to wait for it. It stays the same until sent() or drop()."""
        if self._sending is None and (self._warnings or self._others):
            queue = min(filter(None, (self._warnings, self._others)), key=itemgetter(0))
            _, notice = queue[0]
            if not self._all.take(now):
                return self._all.wait()
            self._sending = self._series(notice)
            queue.popleft()
        return float("inf") if self._sending is None else self._request(self._sending, now)

    def sent(self, now: float) -> None:
        """The server has accepted the last request of next()."""
        assert self._sending is not None
        self._sending.count += 1
        self._sending.last = now
        self._sending = None

    def begin_anew(self) -> None:
        """The Event that the last request counts up is gone: make a new one with the next request."""
        assert self._sending is not None
        self._sending.count = 0

    def drop(self) -> None:
        """The server will never accept the last request of next()."""
        self.begin_anew()
        self._sending = None
        self.dropped += 1

    def clear(self) -> None:
        """Drop all notices: the server accepts none."""
        self.dropped += len(self)
        self._warnings.clear()
        self._others.clear()
        self._sending = None

    def _request(self, series: _Series, now: float) -> Request:
        notice, about = series.notice, series.notice.about
        assert about is not None
        time = self._utc().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if series.count > 0 and now - series.last < _SERIES:
            counted = {"count": series.count + 1, "lastObservedTime": time}
            return Request("PATCH", series.path, {"series": counted}, "application/merge-patch+json")
        namespace, name = about.name.split("/")
        event = f"{name[:_NAME].rstrip('.-')}.{secrets.token_hex(8)}"
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        series.path = f"{path}/{event}"
        series.count = 0
        return Request(
            "POST",
            path,
            {
                "apiVersion": "events.k8s.io/v1",
                "kind": "Event",
                "metadata": {"name": event, "namespace": namespace},
                "eventTime": time,
                "reportingController": CONTROLLER,
                "reportingInstance": self._instance,
                "action": _ACTIONS.get(notice.topic, "Evaluate"),
                "reason": notice.topic,
                "type": "Warning" if notice.warning else "Normal",
                "note": _cut(f"{notice.message} (router {self._instance})", _NOTE),
                "regarding": {
                    "apiVersion": KINDS[about.kind].api_version,
                    "kind": about.kind,
                    "namespace": namespace,
                    "name": name,
                    "uid": about.uid,
                },
            },
        )


def _cut(text: str, length: int) -> str:
    """The text, cut to `length` bytes of UTF-8."""
    encoded = text.encode(errors="replace")
    return text if len(encoded) <= length else encoded[: length - 3].decode(errors="ignore") + "…"
