"""Keep one kind of Kubernetes object up to date in a cache: list, then watch, for ever.

    list (pages of 500) ──▶ watch from the list's version ──▶ watch again from the last version seen …
      ▲                        │ 410, malformed line, or an hour gone by
      └────────────────────────┘

A fault never empties the cache: the next complete list finds the deleted objects. If a fault ends
a watch that had lasted, the watcher tries again at once; after any other fault, the wait grows.
The watcher treats a resourceVersion as opaque and only hands it back.
Source: Kubernetes, "API Concepts", "Efficient detection of changes".
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nftsync.cluster.api import Api, MalformedAnswerError, TooLargeError, parse_json
from nftsync.cluster.backoff import ApiError, Pace, attempts
from nftsync.cluster.cache import ObjectCache, Relist, nobody
from nftsync.cluster.kubeconfig import KubeconfigError
from nftsync.cluster.watchstate import MassDeletion, Observer, RestartCause, WatchState
from nftsync.objects.kinds import Resource
from nftsync.objects.names import Malformed, Name, quote

log = logging.getLogger(__name__)

PAGE = 500  # objects, as in kubectl and client-go
_MANY = 10  # so many objects can go at once without a second look
SMALL_PAGE = 20  # fits for objects of any size: etcd's limit is 1.5 MB


@dataclass(frozen=True, slots=True)
class Timing:
    """Times in seconds.

    watch, relist: drawn at random between the two.
    lasting: a watch that ends earlier counts as a failure.
    second_look: the wait between a suspect list and the next one.
    """

    watch: tuple[float, float] = (300.0, 600.0)
    relist: tuple[float, float] = (3000.0, 4200.0)
    lasting: float = 5.0
    second_look: float = 5.0
    pace: Pace = field(default_factory=Pace)


class ErrorEventError(ApiError):
    """The server ended a watch with an ERROR event: the cache can lack changes."""


class EndedAtOnceError(ApiError):
    """The server accepted a watch and ended it at once."""


class Watcher:
    """Keeps `cache` equal to the server's objects of `resource`.

    stop: ends run(). Set it and call Api.close() to end a request under way at once.
    clock: monotonic seconds.
    """

    def __init__(  # noqa: PLR0913 tests inject the timing, randomness and clock
        self,
        api: Api,
        resource: Resource,
        cache: ObjectCache[Any],
        stop: threading.Event,
        observer: Observer,
        *,
        timing: Timing | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._resource = resource
        self._cache = cache
        self._stop = stop
        self._observer = observer
        self._timing = timing or Timing()
        self._rng = rng or random.Random()  # noqa: S311 jitter is no secret
        self._clock = clock
        self._version: str | None = None  # None: a list must come first
        self._relist_at = 0.0
        self._watching_since: float | None = None
        self._page = PAGE
        self._complaint = ""
        self._recovering = False
        self._missing: AbstractSet[Name] = frozenset()  # from the last list, while that is suspect

    def run(self) -> None:
        """List and watch until `stop` is set. Run it in its own thread."""
        while not self._stop.is_set():
            for attempt in attempts(self._stop, self._timing.pace, self._rng):
                with attempt, self._consequences():
                    if self._version is None or self._clock() >= self._relist_at or not self._watch_on():
                        self._list()
                        self._watch()

    @contextmanager
    def _consequences(self) -> Iterator[None]:
        """Handle an ApiError. Raise it again, and so cause a wait, except after a lasting watch."""
        self._watching_since = None
        try:
            yield
        except ApiError as fault:
            if self._stop.is_set():
                return
            if _needs_list(fault):
                self._version = None
            if fault.status == 401:
                self._api.reload()
            if self._resource.optional and fault.status in (403, 404):
                self._go_without(fault)
                raise
            lasted = self._lasted()
            self._observer.restarted(self._resource, cause_of(fault))
            self._complain(str(fault), again=lasted)
            if not lasted:
                self._observer.watching(self._resource, WatchState.WAITING)
                raise

    def _go_without(self, fault: ApiError) -> None:
        """The cluster does not serve the kind, or forbids to read it: keep the known objects.

        A removed kind deletes its objects one by one first. A 404 without these deletions comes
        from a server that is starting.
        """
        self._version = None
        self._cache.unreadable()
        said = f"absent: {fault.status}"  # the server's own words differ for a list and a watch
        if said != self._complaint:
            self._complaint = said
            if fault.status == 404:
                log.info("%s: not installed", self._resource.kind)
            else:
                log.warning("%s: %s", self._resource.kind, fault)
        self._observer.watching(self._resource, WatchState.ABSENT)

    def _watch_on(self) -> bool:
        """Watch from the last version seen. False if that version has expired, a normal event."""
        try:
            self._watch()
        except ApiError as fault:
            if not _expired(fault):
                raise
            self._watching_since = None
            self._observer.restarted(self._resource, cause_of(fault))
            self._complain(str(fault), again=True)
            return False
        return True

    def _lasted(self) -> bool:
        return self._watching_since is not None and self._clock() - self._watching_since >= self._timing.lasting

    def _complain(self, message: str, *, again: bool = False) -> None:
        """Log a fault once, and not again with each failed try."""
        if again or message != self._complaint:
            self._complaint = message
            self._recovering = True
            log.warning("%s: %s", self._resource.kind, message)

    # --- list ---------------------------------------------------------------------------------------------

    def _list(self) -> None:
        self._observer.watching(self._resource, WatchState.LISTING)
        self._version = None
        version, relist = self._take_list()
        while relist.is_suspect:  # a server that has lost its data answers like any other
            self._stop.wait(self._timing.second_look)
            version, relist = self._take_list(lacked=relist.gone)
        self._version = version
        self._relist_at = self._clock() + self._rng.uniform(*self._timing.relist)

    def _take_list(self, lacked: AbstractSet[Name] = frozenset()) -> tuple[str, Relist]:
        """Take a list into the cache. Returns its resourceVersion, and the Relist.

        The list is suspect if it lacks most of the known objects, unless the list before also
        lacked them.
        lacked: the objects that the list before lacked.
        """

        def is_suspect(gone: AbstractSet[Name], known: int) -> bool:
            return self._resource.guarded and _most(len(gone), known) and _most(len(gone - lacked), len(gone))

        with self._cache.relist(is_suspect=is_suspect) as relist:
            put = partial(self._hand_over, relist.put)
            try:
                version = list_objects(self._api, self._resource, put, page=self._page, answered=self._answered)
            except TooLargeError:
                self._page = SMALL_PAGE
                raise
        self._tell_of_mass_deletion(relist)
        return version, relist

    def _tell_of_mass_deletion(self, relist: Relist) -> None:
        """Report the start of a mass deletion, and its outcome after a second list."""
        what, missing = f"objects of the kind {self._resource.kind}", self._missing
        self._missing = relist.gone if relist.is_suspect else frozenset()
        again = len(missing - relist.gone)
        if relist.is_suspect:
            deletion, said = MassDeletion.RAISED, f"{len(relist.gone)} of {relist.known} {what} are missing from the list: "
            said += "they stay open until a second list confirms it"
        elif not missing:
            return
        elif 2 * again < len(missing):
            deletion = MassDeletion.CONFIRMED
            said = f"a second list also lacks {len(missing) - again} of the {len(missing)} missing {what}"
        else:
            deletion, said = MassDeletion.REFUTED, f"a second list has {again} of the {len(missing)} missing {what} again"
        log.warning("%s", said)
        self._observer.mass_deletion(self._resource, deletion, said)

    def _answered(self) -> None:
        if self._stop.is_set():
            raise ApiError("shutting down")  # a quiet return would make the list complete
        self._observer.contact(self._resource)

    # --- watch --------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        remaining = self._relist_at - self._clock()
        seconds = max(1, round(min(self._rng.uniform(*self._timing.watch), remaining)))
        query = {
            **dict(self._resource.query),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version or "",
            "timeoutSeconds": str(seconds),
        }
        with self._api.stream(self._resource.path, query) as lines:
            self._watching_since = self._clock()
            self._observer.watching(self._resource, WatchState.WATCHING)
            self._observer.contact(self._resource)
            if self._recovering:
                log.info("%s: watching again", self._resource.kind)
                self._recovering = False
            self._follow(lines)
        if self._clock() >= self._relist_at:
            self._observer.restarted(self._resource, RestartCause.RELIST_DUE)
        elif self._lasted():
            self._complaint = ""
            self._observer.restarted(self._resource, RestartCause.ENDED)
        else:
            raise EndedAtOnceError(f"GET {self._resource.path}: the server accepts the watch but ends it at once")

    def _follow(self, lines: Iterator[bytes]) -> None:
        for line in lines:
            self._take_event(line)
            self._observer.contact(self._resource)
            if self._stop.is_set() or self._clock() >= self._relist_at:  # despite timeoutSeconds
                return

    def _take_event(self, line: bytes) -> None:
        """Take one line of a watch. Raises ApiError if the line ends this watch."""
        what = f"GET {self._resource.path}: a line of the watch"
        event = parse_json(line, what)
        kind = event.get("type") if isinstance(event, dict) else None
        subject = event.get("object") if isinstance(event, dict) else None
        if not isinstance(subject, dict):
            raise MalformedAnswerError(f"{what} is not an event with an object")
        if kind in ("ADDED", "MODIFIED"):
            self._hand_over(self._cache.put, subject)
        elif kind == "DELETED":
            self._hand_over(self._cache.delete, subject)
        elif kind == "ERROR":
            raise _error_event(self._resource.path, subject)
        elif kind != "BOOKMARK":
            raise MalformedAnswerError(f"{what} has the type {quote(kind)}, which no watch event has")
        metadata = subject.get("metadata")
        version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
        if isinstance(version, str) and version:
            self._version = version

    def _hand_over(self, put: Callable[[object], None], item: object) -> None:
        try:
            put(item)
        except Malformed as fault:
            self._observer.skipped(self._resource, str(fault))


def list_objects(
    api: Api, resource: Resource, put: Callable[[object], None], *, page: int = PAGE, answered: Callable[[], None] = nobody
) -> str:
    """Pass every object of a list to `put`, page by page. Returns the list's resourceVersion.

    A watch continues from this version.
    page: the number of objects in memory at once.
    answered: called for each page that arrives, before its objects go to `put`.
    Raises ApiError, and the exceptions of `put` and `answered`.
    """
    query = {**dict(resource.query), "limit": str(page)}
    version, token = _take_page(api, resource.path, query, put, answered)
    while token:
        _, token = _take_page(api, resource.path, {**query, "continue": token}, put, answered)
    return version  # the first page's: the watch repeats the changes since then


def _take_page(
    api: Api, path: str, query: dict[str, str], put: Callable[[object], None], answered: Callable[[], None]
) -> tuple[str, str]:
    """The resourceVersion, and the token for the next page; "" on the last page.

    The page does not stay in memory.
    """
    page = api.request("GET", path, query)
    answered()
    items = page.get("items") or [] if isinstance(page, dict) else None
    metadata = page.get("metadata") if isinstance(page, dict) else None
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if not isinstance(items, list) or not isinstance(metadata, dict) or not isinstance(version, str) or not version:
        raise MalformedAnswerError(f"GET {path}: the answer is not a list of objects with a resourceVersion")
    for item in items:
        put(item)
    return version, str(metadata.get("continue") or "")


def _most(gone: int, known: int) -> bool:
    """True for so many missing objects that a fault of the server is more likely than intent."""
    return gone > _MANY and 2 * gone > known


def cause_of(fault: ApiError) -> RestartCause:
    """The RestartCause of a fault."""
    by_type = (
        (KubeconfigError, RestartCause.KUBECONFIG),
        (MalformedAnswerError, RestartCause.MALFORMED),
        (EndedAtOnceError, RestartCause.ENDED_AT_ONCE),
    )
    for kind, cause in by_type:
        if isinstance(fault, kind):
            return cause
    if _expired(fault):
        return RestartCause.EXPIRED
    if fault.status is None:
        return RestartCause.UNREACHABLE
    by_status = {
        401: RestartCause.UNAUTHORIZED,
        403: RestartCause.FORBIDDEN,
        404: RestartCause.NOT_FOUND,
        429: RestartCause.THROTTLED,
    }
    return by_status.get(fault.status, RestartCause.SERVER_ERROR)


def _expired(fault: ApiError) -> bool:
    """True if the server does not have the requested version: too old, or not there yet.

    A gateway also answers 504 if its server is away, so look at the text of a 504.
    """
    return fault.status in (400, 410) or (fault.status == 504 and "resource version" in str(fault))


def _needs_list(fault: ApiError) -> bool:
    return _expired(fault) or isinstance(fault, ErrorEventError | MalformedAnswerError)


def _error_event(path: str, status: dict[str, Any]) -> ErrorEventError:
    code, message = status.get("code"), status.get("message")
    text = f"GET {path}: the server ended the watch: {quote(code)}: {quote(message, 300)}"
    return ErrorEventError(text, code if type(code) is int else None)
