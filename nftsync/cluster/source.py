"""Fill the caches that a sync reads, from a Kubernetes API or from files in its place.

In a cluster, a thread watches each kind of object, and one more thread sends the reports.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from nftsync.cluster.api import Api
from nftsync.cluster.cache import Inputs, MetalLBCaches, ObjectCache
from nftsync.cluster.kubeconfig import allowed
from nftsync.cluster.manifests import Manifests
from nftsync.cluster.outbox import Reporter
from nftsync.cluster.watch import JOIN, MassDeletion, Observer, Watcher
from nftsync.config import Config
from nftsync.objects.names import (
    NFT,
    SERVICES,
    STATE,
    Name,
    Resource,
    metallb,
)
from nftsync.objects.nft import Nft
from nftsync.objects.service import Service
from nftsync.report.events import EventReason, Notice

Clock = Callable[[], float]
_REPORT_TIMEOUT = 10.0  # seconds until the server must answer to a status or an Event
_INTRODUCTION = 5.0  # seconds to wait for the Nft resource, the subject of a mass deletion's Event


class ClusterSource:
    """Lists and watches a Kubernetes API. Raises KubeconfigError if the kubeconfig is not usable.

    remembered: the Services that were last accepted.
    wake: called after every change, from the threads that watch.
    """

    def __init__(
        self,
        config: Config,
        remembered: Mapping[Name, Service],
        observer: Observer,
        wake: Callable[[], None],
        clock: Clock,
    ) -> None:
        unsafe = allowed(unsafe=config.unsafe_kubeconfig)
        self._api = partial(Api, config.kubeconfig, allowed=unsafe, count=observer.requested)
        api = self._api()
        api.connect()
        inputs = Inputs.empty(wake, clock, remembered)
        self.inputs = replace(inputs, metallb=self.metallb, fresh=lambda: not self.stale())
        self._metallb_at = ("", "")  # the namespace, and the ConfigMap's name; none is watched yet
        self._empty_metallb = partial(MetalLBCaches.empty, wake, clock)
        self._metallb = self._empty_metallb()
        self._observer = observer
        self._clock = clock
        watched = ((SERVICES, inputs.services), (NFT.watched(*config.nft), inputs.nfts))
        self._watchers = self._watch(api, watched)  # MetalLB's follow these two
        self._reports = self._api(read_timeout=_REPORT_TIMEOUT)
        self._reporter = Reporter(self._reports, config.nft, config.router_name, self._nft, observer, clock=clock)
        self.tell = self._reporter.tell
        self.report = self._reporter.status
        self._reporting = threading.Thread(target=self._reporter.run, name="report", daemon=True)
        self._reporting.start()

    def metallb(self, namespace: str, config_map: str) -> MetalLBCaches:
        """MetalLB's objects of a namespace. config_map: see names.metallb().

        The first call begins to watch this namespace, and ends the watches of another one.
        """
        if (namespace, config_map) != self._metallb_at:
            for watcher in self._watchers[2:]:
                watcher.stop()
            self._metallb_at = namespace, config_map
            self._metallb = self._empty_metallb(config_map)
            watched = zip(metallb(namespace, config_map), self._metallb.caches, strict=True)
            self._watchers[2:] = self._watch(self._api(), watched)
        return self._metallb

    def _watch(self, api: Api, watched: Iterable[tuple[Resource, ObjectCache[Any]]]) -> list[Watcher]:
        stop = threading.Event()  # the watchers stop together
        watchers = [
            Watcher(api, resource, cache, stop, self._observer, tell=self._tell_of_mass_deletion, clock=self._clock)
            for resource, cache in watched
        ]
        for watcher in watchers:
            watcher.thread.start()
        return watchers

    def _nft(self) -> Nft | None:
        return next(iter(self.inputs.nfts.objects()), None)

    @property
    def alive(self) -> bool:
        """True while every thread runs. A thread that crashed left its traceback on stderr."""
        return self._reporting.is_alive() and all(watcher.thread.is_alive() for watcher in self._watchers)

    def watches(self) -> Mapping[str, str]:
        """Kind → state of its watch."""
        return {watcher.resource.kind: watcher.state for watcher in self._watchers}

    def stale(self) -> Mapping[str, str]:
        """Kind → reason why its known objects can be old. A ConfigurationState decides nothing."""
        reasons = {watcher.resource.kind: watcher.stale for watcher in self._watchers}
        return {kind: reason for kind, reason in reasons.items() if reason and kind != STATE.name}

    def _tell_of_mass_deletion(self, deletion: MassDeletion, message: str) -> None:
        self.inputs.nfts.synced.wait(_INTRODUCTION)
        nft = self._nft()
        if nft is not None:
            warning = deletion is not MassDeletion.REFUTED
            self._reporter.tell([Notice(nft.ref, EventReason.LIST_DOUBTED, message, warning)])

    def stop(self, *, farewell: bool = False) -> None:
        """End all threads. farewell: first report the end of this daemon, and wait for it a moment."""
        self._reporter.stop(farewell=farewell)
        if farewell:
            self._reporting.join(JOIN)
        for watcher in self._watchers:
            watcher.stop()
        self._reports.close()
        for thread in (self._reporting, *(watcher.thread for watcher in self._watchers)):
            thread.join(JOIN)


Source = ClusterSource | Manifests  # fills caches until it is stopped
