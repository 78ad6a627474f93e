"""Metrics of the traffic between the daemon and the cluster."""

from __future__ import annotations

from nftsync.cluster.watchstate import MassDeletion, RestartCause, WatchState
from nftsync.exporter.metrics import Metrics
from nftsync.objects.names import Resource


class MetricsObserver:
    """Counts the events of a source. It implements cluster.source.Observer."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.requested = metrics.count_api_request

    def watching(self, resource: Resource, state: WatchState) -> None:
        for each in WatchState:
            self._metrics.watch_state.labels(resource.kind, each).set(each is state)

    def restarted(self, resource: Resource, cause: RestartCause) -> None:
        self._metrics.watch_restarts.labels(resource.kind, cause).inc()

    def contact(self, resource: Resource) -> None:
        self._metrics.last_contact.labels(resource.kind).set_to_current_time()

    def skipped(self, resource: Resource, _message: str) -> None:
        self._metrics.skipped.labels(resource.kind).inc()

    def mass_deletion(self, _resource: Resource, deletion: MassDeletion, _message: str) -> None:
        self._metrics.list_doubts.labels(deletion).inc()

    def wrote_status(self, result: str) -> None:
        self._metrics.status_writes.labels(result).inc()

    def sent_event(self, result: str) -> None:
        self._metrics.events.labels(result).inc()
