"""The latest state of one kind of object, and which of them changed: where an input's thread meets the loop.

Not a queue of events: a burst of a thousand changes to one Service is one dirty name. Objects are parsed on the way in, on
the input's thread, and only what was parsed is kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from nftsync.objects.names import Name, identify


class Identified(Protocol):
    """A parsed object that knows which object of its name it is."""

    @property
    def uid(self) -> str: ...


T = TypeVar("T", bound=Identified)


def nobody() -> None:
    """Waits for no change."""


@dataclass(frozen=True, slots=True)
class Changes(Generic[T]):
    """What changed since the last drain. since: when the earliest of it was received, in the clock's seconds."""

    objects: dict[Name, T | None]
    since: float


class ObjectCache(Generic[T]):
    """One kind's objects, thread-safe.

    parse: from an API object and its last parsed version to its new one; None if it is not ours.
    wake: called after every change, from the input's thread.  clock: monotonic seconds.  fresh: keep the newest even of objects
    that compare equal; they are no change, and what does not compare wakes nobody.  remembered: what there was when the process
    before this one ended; the first list is held against it, and each object's last parsed version is one of these at first.
    """

    def __init__(
        self,
        parse: Callable[[object, T | None], T | None],
        wake: Callable[[], None] = nobody,
        clock: Callable[[], float] = time.monotonic,
        *,
        fresh: bool = False,
        remembered: Mapping[Name, T] = MappingProxyType({}),
    ) -> None:
        self._parse = parse
        self._wake = wake
        self._clock = clock
        self._fresh = fresh
        self._remembered = dict(remembered)
        self._lock = threading.Lock()
        self._objects: dict[Name, T] = {}
        self._dirty: set[Name] = set()
        self._since = 0.0
        self.synced = threading.Event()  # set once the first complete list is here, or can't be had
        self.readable = False  # whether what is here is complete, as far as anybody knows

    def put(self, raw: object) -> None:
        """An object was added or modified. Raises Malformed if not even its name can be read."""
        name, _ = identify(raw)
        self._store(name, raw)
        self._tell()

    def delete(self, raw: object) -> None:
        """An object was deleted; a late message about a former bearer of the name changes nothing."""
        name, uid = identify(raw)
        with self._lock:
            held = self._objects.get(name)
            if held is not None and held.uid == uid:
                self._drop(name)
        self._tell()

    @contextmanager
    def relist(self, *, is_suspect: Callable[[AbstractSet[Name], int], bool] = lambda _gone, _known: False) -> Iterator[Relist]:
        """Replace everything by a complete list: what it does not name is gone. An exception leaves the rest untouched.

        is_suspect: asked what would go, and how many were known before the list; if it says so, nothing does. A suspect first list
        is not complete: what it lacks is in the kernel alone.
        """
        with self._lock:
            relist = Relist(self._store, len(self._objects.keys() | self._remembered.keys()))
        yield relist
        with self._lock:
            relist.gone = (self._objects.keys() | self._remembered.keys()) - relist.names
            relist.is_suspect = is_suspect(relist.gone, relist.known)
            if not relist.is_suspect:
                self._remembered = {}
                for name in relist.gone:
                    self._drop(name)
        if self.synced.is_set() or not relist.is_suspect:
            self._complete(readable=True)

    def unreadable(self) -> None:
        """There is nobody to tell what is there: nobody needs to wait for it, and what was there stays."""
        self._complete(readable=False)

    def drain(self) -> Changes[T]:
        """What changed since the last drain, each name with its latest state."""
        with self._lock:
            dirty, self._dirty = self._dirty, set()
            return Changes({name: self._objects.get(name) for name in dirty}, self._since)

    def objects(self) -> list[T]:
        """All that are there now."""
        with self._lock:
            return list(self._objects.values())

    def _complete(self, *, readable: bool) -> None:
        news = not self.synced.is_set() or readable != self.readable
        self.readable = readable
        self.synced.set()
        if news:
            self._wake()
        else:
            self._tell()

    def _tell(self) -> None:
        """Wake the loop if there is something to drain."""
        if self._dirty:
            self._wake()

    def _store(self, name: Name, raw: object) -> None:
        with self._lock:
            before = self._objects.get(name)
            parsed = self._parse(raw, before or self._remembered.get(name))
            if parsed is None:
                self._drop(name)
            elif parsed != before:
                self._objects[name] = parsed
                self._mark(name)
            elif self._fresh:
                self._objects[name] = parsed

    def _drop(self, name: Name) -> None:
        if self._objects.pop(name, None) is not None:
            self._mark(name)

    def _mark(self, name: Name) -> None:
        if not self._dirty:
            self._since = self._clock()
        self._dirty.add(name)


class Relist:
    """A list that is coming in, page by page. known: how many objects were, before it.  names: the objects it held so far.

    gone, is_suspect: what it lacked at its end, and whether that waits for a second list.
    """

    def __init__(self, store: Callable[[Name, object], None], known: int) -> None:
        self._store = store
        self.known = known
        self.names: set[Name] = set()
        self.gone: AbstractSet[Name] = frozenset()
        self.is_suspect = False

    def put(self, raw: object) -> None:
        """One object of the list. Raises Malformed if not even its name can be read."""
        name, _ = identify(raw)
        self.names.add(name)
        self._store(name, raw)
