"""The sources that fill the caches: a Kubernetes API, or manifests. Each has its own threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from nftsync.cluster import outbox, watchstate
from nftsync.cluster.api import Api
from nftsync.cluster.cache import Inputs, MetalLBCaches, ObjectCache
from nftsync.cluster.kubeconfig import allowed
from nftsync.cluster.manifests import Manifests
from nftsync.cluster.outbox import Reporter
from nftsync.cluster.watch import Watcher
from nftsync.cluster.watchstate import MassDeletion, RestartCause, WatchState
from nftsync.config import Config
from nftsync.objects.kinds import SERVICES, Resource, metallb, nfts
from nftsync.objects.names import Name
from nftsync.objects.nft import Nft, parse_nft
from nftsync.objects.service import Service, parse_service
from nftsync.objects.status import RouterStatus
from nftsync.report.events import EventReason, Notice

log = logging.getLogger(__name__)

Clock = Callable[[], float]
_STALE = 10.0  # seconds without a watch after which the known objects can be old
_REPORT_TIMEOUT = 10.0  # seconds until the server must answer to a status or an Event
_INTRODUCTION = 5.0  # seconds to wait for the Nft resource, the subject of a mass deletion's Event
_JOIN = 2.0  # seconds for a thread to end; it is a daemon thread, so the process never hangs on it


class Source(Protocol):
    """Fills caches until it is stopped."""

    @property
    def inputs(self) -> Inputs: ...

    @property
    def alive(self) -> bool:
        """True while every thread runs. A thread that crashed left its traceback on stderr."""

    def farewell(self) -> None:
        """Report the end of this daemon, and wait a moment for it. Call it before stop()."""

    def stop(self) -> None: ...

    def watches(self) -> Mapping[str, str]:
        """Kind → state of its watch."""

    def stale(self) -> Mapping[str, str]:
        """Kind → reason why its known objects can be old."""

    def tell(self, news: Sequence[Notice]) -> None:
        """Send Events about these notices. Never blocks."""

    def report(self, status: RouterStatus) -> None:
        """Set this router's status. Never blocks."""


class Observer(watchstate.Observer, outbox.Observer, Protocol):
    """Counts the traffic with the cluster. The threads of a source call it."""

    def requested(self, verb: str, status: int | None) -> None:
        """The server answered a request, or did not.

        verb: HTTP's method, or "WATCH".  status: of the answer; None without an answer.
        """


class ClusterSource:
    """Lists and watches a Kubernetes API. Raises KubeconfigError if the kubeconfig is not usable.

    remembered: the Services that were last accepted.
    wake: called after every change, from the threads that watch.
    """

    def __init__(
        self,
        chosen: Config,
        remembered: Mapping[Name, Service],
        observer: Observer,
        wake: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._wake = wake
        self._clock = clock
        self._report = WatchReport(observer, clock, self._tell_of_mass_deletion)
        unsafe = allowed(unsafe=chosen.unsafe_kubeconfig)
        self._api = partial(Api, chosen.kubeconfig, allowed=unsafe, count=observer.requested)
        api = self._api()
        api.connect()
        named = {name: service for name, service in remembered.items() if name.namespace}
        services = ObjectCache[Service](parse_service, wake, clock, remembered=named)
        resources = ObjectCache[Nft](parse_nft, wake, clock, fresh=True)
        watched = ((SERVICES, services), (nfts(chosen.nft.namespace, chosen.nft.name), resources))
        self._watches = _Watches(api, watched, self._report, clock)
        self._metallb: tuple[str, MetalLBCaches, _Watches] | None = None
        self._inputs = Inputs(services, resources, self.metallb, fresh=lambda: not self.stale())
        self._reports = self._api(read_timeout=_REPORT_TIMEOUT)
        self._reporter = Reporter(
            self._reports,
            chosen.nft,
            chosen.router_name,
            lambda: next(iter(resources.objects()), None),
            observer,
            clock=clock,
        )
        self._reporting = threading.Thread(target=self._reporter.run, name="report", daemon=True)
        self._reporting.start()

    @property
    def inputs(self) -> Inputs:
        return self._inputs

    def metallb(self, namespace: str) -> MetalLBCaches:
        """MetalLB's objects of a namespace.

        The first call begins to watch this namespace, and ends the watches of another one.
        """
        if self._metallb is not None:
            watched, caches, watches = self._metallb
            if watched == namespace:
                return caches
            watches.stop()
        caches = MetalLBCaches.empty(self._wake, self._clock)
        kinds = zip(metallb(namespace), caches.caches, strict=True)
        self._metallb = namespace, caches, _Watches(self._api(), kinds, self._report, self._clock)
        return caches

    @property
    def alive(self) -> bool:
        return self._reporting.is_alive() and all(watches.alive for watches in self._all())

    def watches(self) -> Mapping[str, str]:
        return self._report.states.copy()

    def stale(self) -> Mapping[str, str]:
        return self._report.stale(self._clock())

    def tell(self, news: Sequence[Notice]) -> None:
        self._reporter.tell(news)

    def _tell_of_mass_deletion(self, deletion: MassDeletion, message: str) -> None:
        self._inputs.nfts.synced.wait(_INTRODUCTION)
        for resource in self._inputs.nfts.objects():
            warning = deletion is not MassDeletion.REFUTED
            self._reporter.tell([Notice(resource.ref, EventReason.LIST_DOUBTED, message, warning)])

    def report(self, status: RouterStatus) -> None:
        self._reporter.status(status)

    def farewell(self) -> None:
        self._reporter.farewell()
        self._reporting.join(_JOIN)

    def stop(self) -> None:
        for watches in self._all():
            watches.stop()
        self._reporter.stop()
        self._reports.close()
        for watches in self._all():
            watches.join()
        self._reporting.join(_JOIN)

    def _all(self) -> Iterator[_Watches]:
        yield self._watches
        if self._metallb is not None:
            yield self._metallb[2]


class _Watches:
    """Watchers of one Api, each in its own thread, with one stop()."""

    def __init__(self, api: Api, watched: Iterable[tuple[Resource, ObjectCache[Any]]], report: WatchReport, clock: Clock) -> None:
        self._api = api
        self._stop = threading.Event()
        self._threads = []
        for resource, cache in watched:
            watcher = Watcher(api, resource, cache, self._stop, report, clock=clock)
            self._threads.append(threading.Thread(target=watcher.run, name=f"watch-{resource.kind}", daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Let the threads end; requests under way end at once."""
        self._stop.set()
        self._api.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(_JOIN)


class WatchReport:
    """Keeps the state of the watches, and passes it to an observer.

    tell: called for each mass deletion, with a message.
    """

    def __init__(self, observer: Observer, clock: Clock, tell: Callable[[MassDeletion, str], None]) -> None:
        self._observer = observer
        self._tell = tell
        self._suspect: dict[str, str] = {}  # why, by kind
        self._clock = clock
        self._waiting: dict[str, float] = {}  # since when, by kind
        self.states: dict[str, WatchState] = {}

    def stale(self, now: float) -> Mapping[str, str]:
        """Kind → reason, for each kind without a watch for a while or with a suspect list."""
        waiting = self._waiting.copy().items()
        silent = {kind: "the API server does not answer properly" for kind, since in waiting if now - since > _STALE}
        return {**self._suspect.copy(), **silent}

    def mass_deletion(self, resource: Resource, deletion: MassDeletion, message: str) -> None:
        self._observer.mass_deletion(resource, deletion, message)
        if deletion is MassDeletion.RAISED:
            self._suspect[resource.kind] = message
        else:
            self._suspect.pop(resource.kind, None)
        self._tell(deletion, message)

    def watching(self, resource: Resource, state: WatchState) -> None:
        self.states[resource.kind] = state
        if state is WatchState.WAITING:
            self._waiting.setdefault(resource.kind, self._clock())
        elif state is not WatchState.LISTING:  # the start of a list is no success yet
            self._waiting.pop(resource.kind, None)
        self._observer.watching(resource, state)

    def restarted(self, resource: Resource, cause: RestartCause) -> None:
        self._observer.restarted(resource, cause)

    def contact(self, resource: Resource) -> None:
        self._observer.contact(resource)

    def skipped(self, resource: Resource, message: str) -> None:
        self._observer.skipped(resource, message)
        log.warning("nftsync ignores a %s: %s", resource.kind, message)


class ManifestSource:
    """Reads files and follows their changes.

    remembered, wake: as for a ClusterSource.
    Raises ManifestError if there is no file or folder at a path.
    """

    def __init__(
        self, chosen: Config, paths: Sequence[Path], remembered: Mapping[Name, Service], wake: Callable[[], None], clock: Clock
    ) -> None:
        manifests = Manifests(paths, chosen.nft, Inputs.empty(wake, clock, remembered))
        manifests.read()
        self._inputs = manifests.inputs
        self._stop = threading.Event()
        self._thread = threading.Thread(target=manifests.follow, args=(self._stop, wake), name="manifests", daemon=True)
        self._thread.start()

    @property
    def inputs(self) -> Inputs:
        return self._inputs

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def watches(self) -> Mapping[str, str]:
        return {"files": WatchState.WATCHING}

    def stale(self) -> Mapping[str, str]:
        return {}

    def tell(self, news: Sequence[Notice]) -> None:
        """Files have no Events."""

    def report(self, status: RouterStatus) -> None:
        """Files have no status."""

    def farewell(self) -> None:
        """Files have no status."""

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(_JOIN)
