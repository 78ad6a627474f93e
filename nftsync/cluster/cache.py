"""The latest state of one kind of object, and the names that changed.

An input's thread fills a cache, and the loop drains it. A cache is not a queue of events: a
thousand changes to one Service are one dirty name. The input's thread parses each object, and the
cache keeps the parsed object only.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Generic, Protocol, Self, TypeVar

from nftsync.objects import metallb
from nftsync.objects.names import KINDS, METALLB, Name, Rejection, identify
from nftsync.objects.nft import Nft, parse_nft
from nftsync.objects.service import Service, parse_service
from nftsync.policy.guard import MetalLBObjects


class Identified(Protocol):
    """A parsed object with the uid of its Kubernetes object."""

    @property
    def uid(self) -> str: ...


T = TypeVar("T", bound=Identified)


@dataclass(frozen=True, slots=True)
class Changes(Generic[T]):
    """The changes since the last drain. since: the clock's seconds of the earliest change."""

    objects: dict[Name, T | None]
    since: float


@dataclass
class Relist:
    """A list that arrives page by page.

    known: the number of objects before this list.  names: the names in the pages so far.
    remembered: the names of the previous process's objects, until its first list ends.
    is_partial: set it if the list can lack objects that nobody deleted. Then the kind is not readable.
    gone: at the end, the known names that the list lacks.
    is_suspect: at the end, True if a second list must confirm this one.
    """

    store: Callable[[Name, object], None]
    retain: Callable[[Name], bool]
    known: int
    names: set[Name] = field(default_factory=set)
    remembered: AbstractSet[Name] = frozenset()
    is_partial: bool = False
    gone: AbstractSet[Name] = frozenset()
    is_suspect: bool = False

    def put(self, raw: object) -> None:
        """Take one object of the list. Raises Malformed if its name is not readable."""
        name, _ = identify(raw)
        self.names.add(name)
        self.store(name, raw)

    def keep(self, name: Name) -> bool:
        """Take the last version of an object in place of an unusable one. True if there is any."""
        self.names.add(name)
        return self.retain(name)


class ObjectCache(Generic[T]):
    """One kind's objects, thread-safe. Only one thread writes each object.

    parse: turns an API object and its last parsed version into its new one; None ignores it.
    wake: called after every change, from the input's thread.  clock: monotonic seconds.
    fresh: replace an object by a newer one that compares equal, without a change.
    remembered: the objects of the previous process. The first list is compared with them, and
    `parse` gets them as last parsed versions until then.
    """

    def __init__(
        self,
        parse: Callable[[object, T | None], T | None],
        wake: Callable[[], None] = lambda: None,
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
        self.synced = threading.Event()  # set after the first complete list, or if there is none
        self.readable = False  # True after a complete list, False while the kind or a part of it cannot be read

    def put(self, raw: object) -> None:
        """Take an added or modified object. Raises Malformed if its name is not readable."""
        name, _ = identify(raw)
        self._store(name, raw)
        self._tell()

    def delete(self, raw: object) -> None:
        """Forget a deleted object, but no later one of the same name. Raises Malformed as put()."""
        name, uid = identify(raw)
        with self._lock:
            known = self._objects.get(name)
            if known is not None and known.uid == uid:
                self._drop(name)
        self._tell()

    @contextmanager
    def relist(
        self, *, is_suspect: Callable[[AbstractSet[Name], int], bool] = lambda _gone, _known: False
    ) -> Iterator[Relist]:
        """Replace all objects by a complete list, and drop those that it lacks.

        An exception leaves the other objects untouched.
        is_suspect: called with the missing names and the number of known objects; True drops none.
        A suspect first list is not complete: what it lacks can still have rules in the kernel.
        """
        with self._lock:
            remembered = frozenset(self._remembered)
            relist = Relist(self._store, self._retain, len(self._objects.keys() | remembered), remembered=remembered)
        yield relist
        with self._lock:
            relist.gone = (self._objects.keys() | self._remembered.keys()) - relist.names
            relist.is_suspect = is_suspect(relist.gone, relist.known)
            if not relist.is_suspect:
                self._remembered = {}
                for name in relist.gone:
                    self._drop(name)
        if self.synced.is_set() or not relist.is_suspect:
            self._complete(readable=not relist.is_partial)

    def unreadable(self) -> None:
        """The server does not serve this kind. Count it as listed and keep the known objects."""
        self._complete(readable=False)

    def drain(self) -> Changes[T]:
        """The changes since the last drain: each changed name with its latest state."""
        with self._lock:
            dirty, self._dirty = self._dirty, set()
            return Changes({name: self._objects.get(name) for name in dirty}, self._since)

    def objects(self) -> list[T]:
        """All present objects."""
        with self._lock:
            return list(self._objects.values())

    def _complete(self, *, readable: bool) -> None:
        news = not self.synced.is_set() or readable != self.readable
        self.readable = readable
        self.synced.set()
        self._tell(anyway=news)

    def _tell(self, *, anyway: bool = False) -> None:
        if anyway or self._dirty:
            self._wake()

    def _store(self, name: Name, raw: object) -> None:
        with self._lock:
            before = self._objects.get(name)
            last = before or self._remembered.get(name)
        parsed = self._parse(raw, last)  # a reader must not wait for a large object
        with self._lock:
            if parsed is None:
                self._drop(name)
            elif parsed != before:
                self._objects[name] = parsed
                self._mark(name)
            elif self._fresh:
                self._objects[name] = parsed

    def _retain(self, name: Name) -> bool:
        with self._lock:
            if name not in self._objects and name in self._remembered:
                self._objects[name] = self._remembered[name]
                self._mark(name)
            return name in self._objects

    def _drop(self, name: Name) -> None:
        if self._objects.pop(name, None) is not None:
            self._mark(name)

    def _mark(self, name: Name) -> None:
        if not self._dirty:
            self._since = self._clock()
        self._dirty.add(name)


@dataclass(frozen=True, slots=True)
class MetalLBCaches:
    """MetalLB's objects in one namespace. config_map: see MetalLBObjects."""

    pools: ObjectCache[metallb.AddressPool]
    advertisements: ObjectCache[metallb.Advertisement]
    peers: ObjectCache[metallb.Peer]
    config_maps: ObjectCache[metallb.ConfigMap]
    former_pools: ObjectCache[metallb.AddressPool]
    states: ObjectCache[metallb.ConfigurationState]
    config_map: str = ""

    @classmethod
    def empty(
        cls,
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        config_map: str = "",
    ) -> Self:
        """Empty caches. See ObjectCache for `wake` and `clock`."""
        from nftsync.objects.metallb_v0 import parse_config_map  # it loads PyYAML

        return cls(
            ObjectCache(metallb.parse_pool, wake, clock),
            ObjectCache(metallb.parse_advertisement, wake, clock),
            ObjectCache(metallb.parse_peer, wake, clock),
            ObjectCache(parse_config_map, wake, clock),
            ObjectCache(metallb.parse_former_pool, wake, clock),
            ObjectCache(metallb.parse_state, wake, clock),
            config_map,
        )

    @property
    def caches(self) -> tuple[ObjectCache[Any], ...]:
        """In the order of METALLB."""
        return self.pools, self.advertisements, self.peers, self.config_maps, self.former_pools, self.states

    @property
    def synced(self) -> bool:
        """True if each kind that decides had a complete list, or the cluster does not serve it."""
        return all(cache.synced.is_set() for cache in self.caches if cache is not self.states)

    def drain(self) -> list[float]:
        """The earliest change of each kind since the last drain, in monotonic seconds."""
        return [changes.since for changes in map(ObjectCache.drain, self.caches) if changes.objects]

    def objects(self) -> MetalLBObjects:
        """All present objects."""
        return MetalLBObjects(
            (*self.pools.objects(), *self.former_pools.objects()),
            tuple(self.advertisements.objects()),
            tuple(self.peers.objects()),
            tuple(self.config_maps.objects()),
            tuple(self.states.objects()),
            frozenset(kind.name for kind, cache in zip(METALLB, self.caches, strict=True) if not cache.readable),
            self.config_map,
        )


@dataclass(frozen=True, slots=True)
class Inputs:
    """The caches, and the objects that no cache could take.

    metallb: returns MetalLB's caches of a namespace and a ConfigMap's name (see names.metallb); equal
    ones for the same words.
    rejections: returns the objects that no cache could take.
    fresh: returns True while the caches are up to date with the cluster.
    """

    services: ObjectCache[Service]
    nfts: ObjectCache[Nft]
    metallb: Callable[[str, str], MetalLBCaches]
    rejections: Callable[[], Iterable[Rejection]] = tuple
    fresh: Callable[[], bool] = lambda: True

    @classmethod
    def empty(
        cls,
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        remembered: Mapping[Name, Service] = MappingProxyType({}),
    ) -> Self:
        """Empty caches before any list. See ObjectCache for the arguments."""
        metallb = MetalLBCaches.empty(wake, clock)
        return cls(
            ObjectCache(parse_service, wake, clock, remembered=remembered),
            ObjectCache(parse_nft, wake, clock, fresh=True),
            lambda _, config_map: replace(metallb, config_map=config_map),
        )

    def by_kind(self) -> dict[str, ObjectCache[Any]]:
        """The caches by the kind of their objects, if every namespace has the same ones."""
        return dict(zip(KINDS, (self.services, self.nfts, *self.metallb("", "").caches), strict=True))
