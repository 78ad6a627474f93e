"""Keep one kind of Kubernetes object up to date in a cache: list, then watch, for ever.

    list (pages of 500) ──▶ watch from the list's version ──▶ watch again from the last version seen …
      ▲                        │ 410, malformed line, or an hour gone by
      └────────────────────────┘

A fault never empties the cache: the next complete list finds the deleted objects. If a fault ends
a watch that had lasted, the watcher tries again at once; after any other fault, the wait grows.
The watcher treats a resourceVersion as opaque and only hands it back.
Source: Kubernetes, "API Concepts", "Efficient detection of changes".
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, Protocol

from nftsync.cluster.api import PAGE, Api, MalformedAnswerError, TooLargeError, list_objects, parse_json
from nftsync.cluster.backoff import ApiError, Backoff, RestartCause
from nftsync.cluster.cache import ObjectCache, Relist
from nftsync.objects.names import Malformed, Name, Resource, quote
from nftsync.report.events import Bucket

log = logging.getLogger(__name__)

JOIN = 2.0  # seconds for a thread to end; it is a daemon thread, so the process never hangs on it
_MANY = 10  # so many objects can go at once without a second look
_STALE = 10.0  # seconds without a watch after which the known objects can be old
SMALL_PAGE = 20  # fits for objects of any size: etcd's limit is 1.5 MB


class WatchState(StrEnum):
    """The present activity of a Watcher."""

    LISTING = "listing"
    WATCHING = "watching"
    WAITING = "waiting"
    ABSENT = "absent"  # the cluster does not serve an optional kind, or forbids to read it


class MassDeletion(StrEnum):
    """The stages of a list that suddenly lacks most of the known objects."""

    RAISED = "raised"
    CONFIRMED = "confirmed"  # a second list also lacks them
    REFUTED = "refuted"


class Observer(Protocol):
    """Counts the traffic with the cluster. Every thread of a source calls it."""

    def requested(self, verb: str, status: int | None) -> None:
        """The server answered a request. verb: HTTP's, or "WATCH".  status: None without an answer."""

    def watching(self, resource: Resource, state: WatchState) -> None:
        """The state changed."""

    def restarted(self, resource: Resource, cause: RestartCause) -> None:
        """A list or a watch ended."""

    def contact(self, resource: Resource) -> None:
        """The server sent a page, accepted a watch, or sent an event."""

    def skipped(self, resource: Resource, message: str) -> None:
        """The watcher skipped an object because its name is not readable."""

    def mass_deletion(self, resource: Resource, deletion: MassDeletion, message: str) -> None:
        """A list suddenly lacks most of the known objects, or a second list decided about it."""

    def wrote_status(self, result: str) -> None:
        """The Nft's status is "written" or "failed"."""

    def sent_event(self, result: str) -> None:
        """An Event is "sent", "dropped" or "failed"."""


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
    backoff: Backoff = field(default_factory=Backoff)


class EndedAtOnceError(ApiError):
    """The server accepted a watch and ended it at once."""

    _cause = RestartCause.ENDED_AT_ONCE


class Watcher:
    """Keeps `cache` equal to the server's objects of `resource`.

    stop: ends run(). Set it and call Api.close() to end a request under way at once.
    tell: called for each stage of a mass deletion, with a message.  clock: monotonic seconds.
    """

    def __init__(  # noqa: PLR0913 tests inject the timing, randomness and clock
        self,
        api: Api,
        resource: Resource,
        cache: ObjectCache[Any],
        stop: threading.Event,
        observer: Observer,
        *,
        tell: Callable[[MassDeletion, str], None] = lambda _deletion, _message: None,
        timing: Timing | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self.resource = self._served = resource
        self._cache = cache
        self._stop = stop
        self._observer = observer
        self._tell = tell
        self._timing = timing or Timing()
        self._rng = rng or random.Random()  # noqa: S311 jitter is no secret
        self._clock = clock
        self._version: str | None = None  # None: a list must come first
        self._relist_at = 0.0
        self._watching_since = float("inf")
        self._waiting_since = float("inf")
        self._page = PAGE
        self._complaint = ""
        self._lines = Bucket.of_object()  # in the log: a server can fail and return without end
        self._recovering = False
        self._missing: AbstractSet[Name] = frozenset()  # from the last list, while that is suspect
        self._suspicion = ""  # why that list is suspect
        self.state = WatchState.LISTING
        self.thread = threading.Thread(target=self.run, name=f"watch-{resource.kind}", daemon=True)

    def stop(self) -> None:
        """Let run() end, and those of the other watchers with the same `stop` and Api."""
        self._stop.set()
        self._api.close()

    def run(self) -> None:
        """List and watch until `stop` is set. It runs in `thread`, which you start."""
        retrying = self._timing.backoff.retrying(self._stop, self._rng)
        while not self._stop.is_set():
            retrying(self._turn)

    @property
    def stale(self) -> str:
        """The reason why the known objects can be old, "" if they are up to date."""
        if self._clock() - self._waiting_since > _STALE:
            return "the API server does not answer properly"
        return self._suspicion

    def _turn(self) -> None:
        """List if it is time for it, and watch. Raises ApiError if the next try must wait.

        It need not wait if the watch had lasted, or if the version that was seen last has expired.
        """
        if self._stop.is_set():
            return
        self._watching_since = float("inf")
        goes_on = self._version is not None and self._clock() < self._relist_at
        try:
            if not goes_on:
                self._list()
            self._watch()
        except ApiError as error:
            if self._stop.is_set():
                return
            lasted = self._lasted()
            if not self._failed(error, at_once=lasted or (goes_on and error.is_expired)):
                raise
        else:
            return
        if not lasted:
            self._turn()  # list in the same try: if that fails too, the wait must still grow

    def _failed(self, error: ApiError, *, at_once: bool) -> bool:
        """Note a failure. Returns `at_once` if the next try need not wait."""
        if error.is_expired or isinstance(error, MalformedAnswerError):
            self._version = None
        if isinstance(error, TooLargeError) and self.state is WatchState.LISTING:
            self._page = SMALL_PAGE
        if self.resource.optional and error.status in (403, 404):
            self._go_without(error)
            return False
        self._observer.restarted(self.resource, error.cause)
        if (at_once or str(error) != self._complaint) and self._lines.take(self._clock()):  # not with each failed try
            self._complaint = str(error)
            self._recovering = True
            log.warning("%s: %s", self.resource.kind, error)
        if not at_once:
            self._enter(WatchState.WAITING)
        return at_once

    def _go_without(self, error: ApiError) -> None:
        """The cluster does not serve the kind, or forbids to read it: keep the known objects."""
        # A removed kind deletes its objects first. A 404 without that: the server is starting.
        if self._version is None or error.status == 404:  # else it may be listed and not watched
            self._cache.unreadable()
        self._version = None
        complaint = f"absent: {error.status}"  # the server's own words differ for a list and a watch
        if complaint != self._complaint and self._lines.take(self._clock()):
            self._complaint = complaint
            level, message = (logging.INFO, "not installed") if error.status == 404 else (logging.WARNING, str(error))
            log.log(level, "%s: %s", self.resource.kind, message)
        self._enter(WatchState.ABSENT)

    def _enter(self, state: WatchState) -> None:
        self.state = state
        if state is WatchState.WAITING:
            self._waiting_since = min(self._waiting_since, self._clock())
        elif state is not WatchState.LISTING:  # the start of a list is no success yet
            self._waiting_since = float("inf")
        self._observer.watching(self.resource, state)

    def _lasted(self) -> bool:
        return self._clock() - self._watching_since >= self._timing.lasting

    def _list(self) -> None:
        self._enter(WatchState.LISTING)
        self._version = None
        version, relist = self._take_list()
        while relist.is_suspect:  # a server that has lost its data answers like any other
            self._stop.wait(self._timing.second_look)
            version, relist = self._take_list(lacked=relist.gone)
        self._version = version
        self._relist_at = self._clock() + self._rng.uniform(*self._timing.relist)

    def _take_list(self, lacked: AbstractSet[Name] = frozenset()) -> tuple[str, Relist]:
        """Take a list into the cache. Returns its resourceVersion, and the Relist.

        It is suspect if it lacks most of the known objects, unless the list before also lacked them.
        lacked: the objects that the list before lacked.
        """

        def is_suspect(gone: AbstractSet[Name], known: int) -> bool:
            return self.resource.guarded and _most(len(gone), known) and _most(len(gone - lacked), len(gone))

        with self._cache.relist(is_suspect=is_suspect) as relist:
            self._served, version = list_objects(
                self._api, self.resource, partial(self._hand_over, relist.put), page=self._page, answered=self._answered
            )
        self._follow_mass_deletion(relist)
        return version, relist

    def _follow_mass_deletion(self, relist: Relist) -> None:
        """Report the start of a mass deletion, and its outcome after a second list."""
        missing, objects = len(self._missing), f"objects of the kind {self.resource.kind}"
        again = len(self._missing - relist.gone)
        self._missing = relist.gone if relist.is_suspect else frozenset()
        if relist.is_suspect:
            deletion = MassDeletion.RAISED
            message = (
                f"{len(relist.gone)} of {relist.known} {objects} are missing from the list: "
                "they stay open until a second list confirms it"
            )
        elif 2 * again < missing:
            deletion = MassDeletion.CONFIRMED
            message = f"a second list also lacks {missing - again} of the {missing} missing {objects}"
        elif missing:
            deletion = MassDeletion.REFUTED
            message = f"a second list has {again} of the {missing} missing {objects} again"
        else:
            return
        log.warning("%s", message)
        self._suspicion = message if relist.is_suspect else ""
        self._observer.mass_deletion(self.resource, deletion, message)
        self._tell(deletion, message)

    def _answered(self) -> None:
        if self._stop.is_set():
            raise ApiError("shutting down")  # a quiet return would make the list complete
        self._observer.contact(self.resource)

    def _watch(self) -> None:
        seconds = min(self._rng.uniform(*self._timing.watch), self._relist_at - self._clock())
        query = {
            **dict(self._served.query),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version or "",
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        with self._api.stream(self._served.path, query) as lines:
            self._watching_since = self._clock()
            self._enter(WatchState.WATCHING)
            self._observer.contact(self.resource)
            if self._recovering:
                log.info("%s: watching again", self.resource.kind)
                self._recovering = False
            for line in lines:
                self._take_event(line)
                self._observer.contact(self.resource)
                if self._stop.is_set() or self._clock() >= self._relist_at:  # despite timeoutSeconds
                    break
        if self._clock() >= self._relist_at:
            self._observer.restarted(self.resource, RestartCause.RELIST_DUE)
        elif self._lasted():
            self._complaint = ""
            self._observer.restarted(self.resource, RestartCause.ENDED)
        else:
            raise EndedAtOnceError(f"GET {self._served.path}: the server accepts the watch but ends it at once")

    def _take_event(self, line: bytes) -> None:
        """Take one line of a watch. Raises ApiError if the line ends this watch."""
        what = f"GET {self._served.path}: a line of the watch"
        match event := parse_json(line, what):
            case {"type": "ADDED" | "MODIFIED", "object": dict(subject)}:
                self._hand_over(self._cache.put, subject)
            case {"type": "DELETED", "object": dict(subject)}:
                self._hand_over(self._cache.delete, subject)
            case {"type": "BOOKMARK", "object": dict(subject)}:
                pass
            case {"type": "ERROR", "object": dict(status)}:
                self._version = None  # the cache can lack changes
                code, message = status.get("code"), quote(status.get("message"), 300)
                text = f"GET {self._served.path}: the server ended the watch: {quote(code)}: {message}"
                raise ApiError(text, code if type(code) is int else None)
            case {"object": dict()}:
                raise MalformedAnswerError(f"{what} has the type {quote(event.get('type'))}, which no watch event has")
            case _:
                raise MalformedAnswerError(f"{what} is not an event with an object")
        match subject:
            case {"metadata": {"resourceVersion": str(version)}} if version:
                self._version = version

    def _hand_over(self, put: Callable[[object], None], item: object) -> None:
        try:
            put(item)
        except Malformed as error:
            self._observer.skipped(self.resource, str(error))
            if self._lines.take(self._clock()):
                log.warning("nftsync ignores a %s: %s", self.resource.kind, error)


def _most(gone: int, known: int) -> bool:
    """True for so many missing objects that a fault of the server is more likely than intent."""
    return gone > _MANY and 2 * gone > known
