"""Bounds the notices about objects that change without end, and sums up those that it holds back."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from nftsync.objects.names import ObjectRef, Reason
from nftsync.report.events import Bucket, EventReason, Notice

NAMESPACE = 2000, 2.0  # notices about all objects of a namespace: at once, then one in so many seconds
URGENT, LAST = 200, 20  # tokens of a namespace that only warnings and summaries can use, and only summaries
CALM = 30.0  # seconds without a change, after which a flapping object counts as calm
_KNOWN = 4096  # objects, namespaces, and flapping objects to remember

_FROM_NOW_ON = " (it changes often: its next changes are told in sums)"
ROUTER = ObjectRef("Router", "")
Key = tuple[str, str]  # kind and name: an object that somebody deletes and creates again stays the same


@dataclass(slots=True)
class _Object:
    """An object that people heard of. told: the warnings among the notices, by topic and reason."""

    bucket: Bucket
    told: set[tuple[EventReason, Reason | None]] = field(default_factory=set)


@dataclass(slots=True)
class _Held:
    """Notices that were held back, about an object or about several of a namespace.

    since, last: the clock's seconds of the first and of the last one.
    """

    about: ObjectRef
    since: float
    last: float = 0.0
    count: int = 0


class Damper:
    """Bounds the notices about objects that change without end. Not thread-safe.

    Each object has a token bucket, and each namespace has one for all its objects. A notice without a
    token is held back: summaries() counts it later and tells the state of the object then. The first
    warning of each sort about an object needs only a token of the namespace.
    """

    def __init__(self) -> None:
        self._objects = lru_cache(_KNOWN)(lambda _key: _Object(Bucket.of_object()))
        self._namespaces = lru_cache(_KNOWN)(lambda _name: Bucket.full(*NAMESPACE))
        self._held: dict[Key, _Held] = {}

    @property
    def flapping(self) -> int:
        """The number of objects with notices that were held back."""
        return len(self._held)

    def let(self, notice: Notice, now: float) -> Notice | None:
        """The notice if people hear of it now, None if it is held back. now: monotonic seconds."""
        about = notice.about or ROUTER
        key, namespace = (about.kind, about.name), _namespace(about)
        known, sort = self._objects(key), (notice.topic, notice.refusal)
        urgent = notice.warning and sort not in known.told
        # The last token is for the summary: it need not wait when the object is calm again.
        if not (urgent or (key not in self._held and known.bucket.take(now, keep=1))):
            self._hold(key if len(self._held) < _KNOWN else None, about, now)
            return None
        if not self._namespaces(namespace).take(now, keep=LAST if notice.warning else URGENT):
            self._hold(None, about, now)
            return None
        if notice.warning:
            known.told.add(sort)
        return notice if urgent or known.bucket.level >= 2 else replace(notice, message=notice.message + _FROM_NOW_ON)

    def _hold(self, key: Key | None, about: ObjectRef, now: float) -> None:
        """Hold a notice back. key: None for an object that is not flapping itself."""
        if key is None:
            about = ObjectRef("Namespace", _namespace(about))
        held = self._held.setdefault(key or (about.kind, about.name), _Held(about, now))
        held.about, held.last, held.count = about, now, held.count + 1

    def summaries(self, now: float, states: Callable[[Collection[ObjectRef]], Mapping[Key, str]]) -> list[Notice]:
        """The notices that sum up what was held back, as far as they are due.

        states: for these objects, their present state in words.
        """
        due = {key: held for key, held in self._held.items() if self._is_due(key, held, now)}
        for key in due:
            del self._held[key]
        said = states([held.about for held in due.values()]) if due else {}
        return [_summary(held, said.get(key, ""), now) for key, held in due.items()]

    def _is_due(self, key: Key, held: _Held, now: float) -> bool:
        bucket, calm = self._objects(key).bucket, _is_calm(held, now)
        if not ((calm or now - held.since >= bucket.interval) and bucket.take(now, keep=0 if calm else 1)):
            return False
        if self._namespaces(_namespace(held.about)).take(now):
            return True
        bucket.level += 1
        return False


def _summary(held: _Held, state: str, now: float) -> Notice:
    calm, said = _is_calm(held, now), f"; now: {state}" if state else "; `nftsync status` shows the present state"
    how = "has settled" if calm else "changes all the time"
    message = f"{how}: {held.count} notices held back within {now - held.since:.0f} s{said}"
    return Notice(held.about, EventReason.SETTLED if calm else EventReason.FLAPPING, message, warning=not calm)


def _is_calm(held: _Held, now: float) -> bool:
    return now - held.last >= CALM


def _namespace(about: ObjectRef) -> str:
    """The namespace of an object; nothing for a part of this router."""
    return about.name.partition("/")[0] if about.kind not in ("File", ROUTER.kind) else ""
