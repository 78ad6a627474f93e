"""What fills the inboxes: a Kubernetes API or a folder of manifests, each with threads of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from nftsync.api import Api
from nftsync.config import Config
from nftsync.inbox import Inbox
from nftsync.manifests import Manifests
from nftsync.metrics import Metrics
from nftsync.nftresource import Nft, parse_nft
from nftsync.objects import Service, parse_service
from nftsync.reconcile import Inputs
from nftsync.watch import SERVICES, Cause, Resource, State, Watcher, nfts

log = logging.getLogger(__name__)

Clock = Callable[[], float]
_JOIN = 2.0  # seconds that a thread gets to end; it is a daemon thread, so the process never hangs on it


class Source(Protocol):
    """Fills two inboxes until it is stopped."""

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
        services = Inbox[Service](parse_service, wake, clock)
        resources = Inbox[Nft](parse_nft, wake, clock)
        self._inputs = Inputs(services, resources)
        self._stop = threading.Event()
        self._api = Api(chosen.kubeconfig)
        self._api.connect()
        self._threads = []
        report = WatchReport(metrics)
        for resource, inbox in ((SERVICES, services), (nfts(chosen.nft.namespace, chosen.nft.name), resources)):
            watcher = Watcher(self._api, resource, inbox, self._stop, report, clock=clock)
            self._threads.append(threading.Thread(target=watcher.run, name=f"watch-{resource.kind}", daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def inputs(self) -> Inputs:
        return self._inputs

    @property
    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        self._stop.set()
        self._api.close()
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
        manifests = Manifests(paths, chosen.nft, services, resources)
        manifests.read()
        self._inputs = Inputs(services, resources, lambda: manifests.rejections)
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
