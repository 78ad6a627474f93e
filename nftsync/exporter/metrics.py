"""What nftsync reports to Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Gauge, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client import Counter as PromCounter

from nftsync import __version__
from nftsync.objects.names import Reason, Rejection
from nftsync.ruleset.tables import Settings

# From a tenth of a millisecond, which an element takes, to the seconds of a full load.
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_OUTCOMES = ("waiting", "unchanged", "applied", "failed")  # as result.Outcome has them
_LOADED = ("rules", "base", "nothing", "unknown")
_STALE = ("settings", "pools", "services")


class Metrics:
    """The metrics of one daemon, in a registry of their own. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.syncs = counter("syncs", "Syncs by result.", "result")
        self.sync_duration = histogram("sync_duration_seconds", "Time that a sync took.")
        self.event_to_kernel = histogram(
            "event_to_kernel_seconds", "Time from receiving an event to the kernel's acceptance of what followed from it."
        )
        self.last_success = gauge("last_success_timestamp_seconds", "When a sync last succeeded.")
        self.watch_state = gauge("watch_state", "1 for the state that a resource's watch is in.", "resource", "state")
        self.watch_restarts = counter("watch_restarts", "Watches that had to be restarted, by cause.", "resource", "cause")
        self.last_contact = gauge("last_contact_timestamp_seconds", "When the API server last said something.", "resource")
        self.skipped = counter("objects_skipped", "Objects whose name could not be read.", "resource")
        self.list_doubts = counter("list_doubts", "Lists that had suddenly lost most Services, and what came of it.", "doubt")
        self.state_kept = gauge("state_kept", "1 if the disk has what a restart and a reboot need, 0 if it could not be written.")
        self.services = gauge("services", "Services that are ours.")
        self.pinholes = gauge("pinholes", "Pinholes that should be open.")
        self.pools_guarded = gauge("pools_guarded", "1 if MetalLB's pools decide which addresses may be opened, 0 if any may.")
        self.rejections = gauge("rejections", "Objects, or parts of one, that are refused.", "reason")
        self.drift_repairs = counter("drift_repairs", "Times that somebody else's change of our tables was repaired.")
        self.status_writes = counter("status_writes", "Times that the Nft's status was written, or could not be.", "result")
        self.events = counter("events", "Kubernetes Events by what became of them.", "result")
        self.nic_attached = gauge("nic_attached", "1 while the rate limits are attached to the public NIC.")
        self.rateshape_wanted = gauge("rateshape_wanted", "1 if the settings in force ask for rate limits (enable_rateshape).")
        self.stale = gauge("config_stale", "1 while the last good ones are used because the present ones can't be had.", "source")
        self.api_requests = counter(
            "api_requests", 'Requests to the API server by the answer\'s code; "error" if there was no answer.', "verb", "code"
        )
        self.boot_failed = gauge(
            "boot_failed", "1 for what was loaded instead after the boot unit failed; all 0 if it did not fail.", "loaded"
        )
        self.ready = gauge("ready", "1 if the kernel holds what it should, as /readyz says.")
        self.healthy = gauge("healthy", "1 if the daemon's loop turns, as /healthz says.")
        gauge("build_info", "Always 1; the labels tell the version.", "version").labels(__version__).set(1)
        self._begin()

    def _counter(self, name: str, what: str, *labels: str) -> PromCounter:
        return PromCounter(f"nftsync_{name}", what, labels, registry=self.registry)

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"nftsync_{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str) -> Histogram:
        return Histogram(f"nftsync_{name}", what, buckets=_SECONDS, registry=self.registry)

    def _begin(self) -> None:
        """Show what is known to have no value but 0 yet: an alert can't see the first increase of what was not there."""
        for reason in Reason:
            self.rejections.labels(reason).set(0)
        for outcome in _OUTCOMES:
            self.syncs.labels(outcome)
        self.state_kept.set(1)  # nothing was lost yet
        self.show_boot_failure("")
        self.show_stale({})

    def show_boot_failure(self, loaded: str) -> None:
        """What was loaded after the boot unit failed, one of _LOADED; "" if it did not fail."""
        for each in _LOADED:
            self.boot_failed.labels(each).set(each == loaded)

    def show_settings(self, settings: Settings | None) -> None:
        """What the settings in force say about rate limits; None while there are none."""
        self.rateshape_wanted.set(settings is not None and settings.enable_rateshape)
        self.nic_attached.set(settings is not None and settings.device is not None)

    def show_stale(self, stale: Mapping[str, bool]) -> None:
        """Whether the last good ones are used, by source: "settings", "pools", "services"; what is not named is not stale."""
        for source in _STALE:
            self.stale.labels(source).set(stale.get(source, False))

    def count_api_request(self, verb: str, status: int | None) -> None:
        """verb: HTTP's method, or "WATCH".  status: of the answer; None if there was none."""
        self.api_requests.labels(verb, "error" if status is None else str(status)).inc()

    def count_rejections(self, rejections: Iterable[Rejection]) -> None:
        """How many there are of each reason."""
        by_reason = Counter(rejection.reason for rejection in rejections)
        for reason in Reason:
            self.rejections.labels(reason).set(by_reason[reason])
