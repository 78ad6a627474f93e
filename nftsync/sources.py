"""What fills the inboxes: a Kubernetes API or a folder of manifests, each with threads of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from nftsync.api import Api
from nftsync.config import Config
from nftsync.inbox import Inbox
from nftsync.manifests import Manifests
from nftsync.metrics import Metrics
from nftsync.nftresource import Nft, parse_nft
from nftsync.objects import Service, parse_service
from nftsync.pools import MetalLB
from nftsync.reconcile import Inputs
from nftsync.watch import SERVICES, Cause, Resource, State, Watcher, metallb, nfts

log = logging.getLogger(__name__)

Clock = Callable[[], float]
_JOIN = 2.0  # seconds that a thread gets to end; it is a daemon thread, so the process never hangs on it


class Source(Protocol):
    """Fills inboxes until it is stopped."""

    @property
    def inputs(self) -> Inputs: ...

    @property
    def alive(self) -> bool:
        """Whether every thread is still at work; one that ended by itself has left its traceback on stderr."""

    def stop(self) -> None: ...


class ClusterSource:
    """Lists and watches a Kubernetes API. Raises KubeconfigError if it can't even try.

    wake: called after every change, from the threads that watch.
    """

    def __init__(self, chosen: Config, metrics: Metrics, wake: Callable[[], None], clock: Clock) -> None:
        self._wake = wake
        self._clock = clock
        self._report = WatchReport(metrics)
        self._api = Api(chosen.kubeconfig)
        self._api.connect()
        services = Inbox[Service](parse_service, wake, clock)
        resources = Inbox[Nft](parse_nft, wake, clock)
        self._watches = _Watches(((SERVICES, services), (nfts(chosen.nft.namespace, chosen.nft.name), resources)), self._watcher)
        self._metallb: tuple[str, MetalLB, _Watches] | None = None
        self._inputs = Inputs(services, resources, self.metallb)

    @property
    def inputs(self) -> Inputs:
        return self._inputs

    def metallb(self, namespace: str) -> MetalLB:
        """MetalLB's objects of a namespace; they are watched from the first call on, those of another one no longer."""
        if self._metallb is not None:
            watched, inboxes, watches = self._metallb
            if watched == namespace:
                return inboxes
            watches.stop()
        inboxes = MetalLB.empty(self._wake, self._clock)
        self._metallb = namespace, inboxes, _Watches(zip(metallb(namespace), inboxes.inboxes, strict=True), self._watcher)
        return inboxes

    def _watcher(self, resource: Resource, inbox: Inbox[Any], stop: threading.Event) -> Watcher:
        return Watcher(self._api, resource, inbox, stop, self._report, clock=self._clock)

    @property
    def alive(self) -> bool:
        return all(watches.alive for watches in self._all())

    def stop(self) -> None:
        for watches in self._all():
            watches.stop()
        self._api.close()
        for watches in self._all():
            watches.join()

    def _all(self) -> Iterator[_Watches]:
        yield self._watches
        if self._metallb is not None:
            yield self._metallb[2]


class _Watches:
    """Watchers, each in a thread of its own, that are stopped together."""

    def __init__(
        self,
        watched: Iterable[tuple[Resource, Inbox[Any]]],
        watcher: Callable[[Resource, Inbox[Any], threading.Event], Watcher],
    ) -> None:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=watcher(resource, inbox, self._stop).run, name=f"watch-{resource.kind}", daemon=True)
            for resource, inbox in watched
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Let the threads end, at the latest with what the server says next."""
        self._stop.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(_JOIN)


class WatchReport:
    """Tells metrics how the watches are doing."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def watching(self, resource: Resource, state: State) -> None:
        for each in State:
            self._metrics.watch_state.labels(resource.kind, each).set(each is state)

    def restarted(self, resource: Resource, cause: Cause) -> None:
        self._metrics.watch_restarts.labels(resource.kind, cause).inc()

    def contact(self, resource: Resource) -> None:
        self._metrics.last_contact.labels(resource.kind).set_to_current_time()

    def skipped(self, resource: Resource, message: str) -> None:
        self._metrics.skipped.labels(resource.kind).inc()
        log.warning("a %s was passed over: %s", resource.kind, message)


class ManifestSource:
    """Reads files and follows them. Raises ManifestError if a path is not there."""

    def __init__(self, chosen: Config, paths: Sequence[Path], wake: Callable[[], None], clock: Clock) -> None:
        services = Inbox[Service](parse_service, wake, clock)
        resources = Inbox[Nft](parse_nft, wake, clock)
        inboxes = MetalLB.empty(wake, clock)
        manifests = Manifests(paths, chosen.nft, services, resources, inboxes)
        manifests.read()
        self._inputs = Inputs(services, resources, lambda _: inboxes, lambda: manifests.rejections)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=manifests.follow, args=(self._stop,), name="manifests", daemon=True)
        self._thread.start()

    @property
    def inputs(self) -> Inputs:
        return self._inputs

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(_JOIN)
