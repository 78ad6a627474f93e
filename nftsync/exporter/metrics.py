"""The metrics for Prometheus: the daemon's own, and the kernel's counters, read at each scrape."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from prometheus_client import CollectorRegistry, Gauge, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client import Counter as PromCounter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from nftsync import __version__
from nftsync.objects.names import Reason, Rejection
from nftsync.policy.pinholes import Pinhole
from nftsync.report.traffic import CAP, Reachability, Reading, Traffic
from nftsync.ruleset.settings import Settings

# One element takes 0.1 ms, a full load takes seconds.
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_READ_AGAIN = 1.0  # seconds during which all scrapes share one reading
_ROUTES_AGAIN = 30.0  # seconds between two readings of the routes
_SERVICE = ["namespace", "service"]


class Metrics:
    """The metrics of one daemon, in their own registry. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        counter = partial(PromCounter, namespace="nftsync", registry=self.registry)
        gauge = partial(Gauge, namespace="nftsync", registry=self.registry)
        histogram = partial(Histogram, namespace="nftsync", registry=self.registry, buckets=_SECONDS)
        self.syncs = counter("syncs", "Syncs by result.", ["result"])
        self.sync_duration = histogram("sync_duration_seconds", "Duration of a sync.")
        self.event_to_kernel = histogram(
            "event_to_kernel_seconds", "Time from an event of the cluster until the kernel has accepted its rules."
        )
        self.last_success = gauge("last_success_timestamp_seconds", "Time of the last successful sync.")
        self.watch_state = gauge("watch_state", "1 for the current state of a resource's watch.", ["resource", "state"])
        self.watch_restarts = counter("watch_restarts", "Restarts of watches by cause.", ["resource", "cause"])
        self.last_contact = gauge(
            "last_contact_timestamp_seconds", "Time of the API server's last message.", ["resource"]
        )
        self.skipped = counter(
            "objects_skipped", "Objects that nftsync skipped because their name is not valid.", ["resource"]
        )
        self.list_doubts = counter("list_doubts", "Lists that suddenly lacked most Services, by outcome.", ["doubt"])
        self.state_kept = gauge(
            "state_kept", "1 if the disk has the state for a restart or a reboot, 0 if writing failed."
        )
        self.services = gauge("services", "Services that nftsync handles.")
        self.pinholes = gauge("pinholes", "Pinholes that should be open.")
        self.pools_guarded = gauge(
            "pools_guarded", "1 if MetalLB's pools limit the addresses to open, 0 if they do not."
        )
        self.rejections = gauge("rejections", "Refused objects, or refused parts of objects.", ["reason"])
        self.flapping = gauge("flapping_objects", "Objects that change so often that the log only sums them up.")
        self.drift_repairs = counter("drift_repairs", "Repairs after another program changed our tables.")
        self.status_writes = counter("status_writes", "Writes of the Nft's status by result.", ["result"])
        self.events = counter("events", "Kubernetes Events by result.", ["result"])
        self.nic_attached = gauge("nic_attached", "1 while the public NIC has the rate limits.")
        self.rateshape_wanted = gauge(
            "rateshape_wanted", "1 if the settings in force ask for rate limits (enable_rateshape)."
        )
        self.stale = gauge(
            "config_stale", "1 while nftsync uses the last good input instead of the current one.", ["source"]
        )
        self.api_requests = counter(
            "api_requests",
            'Requests to the API server by the answer\'s code; "error" if there was no answer.',
            ["verb", "code"],
        )
        self.boot_failed = gauge(
            "boot_failed",
            "1 for the rules that stand in after the boot unit failed; all 0 if it did not fail.",
            ["loaded"],
        )
        self.ready = gauge("ready", "1 if the kernel has the right rules, as in /readyz.")
        self.healthy = gauge("healthy", "1 if the daemon's loop is alive, as in /healthz.")
        gauge("build_info", "Always 1; the label names the version.", ["version"]).labels(__version__).set(1)
        # Create the known series with 0: an alert can't see the first increase of a missing series.
        self.count_rejections(())
        for outcome in ("waiting", "unchanged", "applied", "failed"):  # the values of result.Outcome
            self.syncs.labels(outcome)
        self.state_kept.set(1)  # no write has failed yet
        self.show_boot_failure("")
        self.show_stale({})

    def show_boot_failure(self, loaded: str) -> None:
        """loaded: the replacement rules after a failed boot; "" without a failure."""
        for rules in ("rules", "base", "nothing", "unknown"):
            self.boot_failed.labels(rules).set(rules == loaded)

    def show_settings(self, settings: Settings | None) -> None:
        """Show the rate limits of the settings in force. settings: None while there are none."""
        self.rateshape_wanted.set(settings is not None and settings.enable_rateshape)
        self.nic_attached.set(settings is not None and bool(settings.devices))

    def show_stale(self, stale: Mapping[str, bool]) -> None:
        """stale: True by source ("settings", "pools", "services") if the last good input is in use.

        Missing sources are not stale.
        """
        for source in ("settings", "pools", "services"):
            self.stale.labels(source).set(stale.get(source, False))

    def count_api_request(self, verb: str, status: int | None) -> None:
        """verb: the HTTP method, or "WATCH".  status: of the answer; None without an answer."""
        self.api_requests.labels(verb, "error" if status is None else str(status)).inc()

    def count_rejections(self, rejections: Iterable[Rejection]) -> None:
        """Show the number of rejections by reason."""
        by_reason = Counter(rejection.reason for rejection in rejections)
        for reason in Reason:
            self.rejections.labels(reason).set(by_reason[reason])


class ReadError(Exception):
    """The kernel's counters are not readable at the moment."""


class KernelCollector:
    """Collects the kernel's counters in the thread of each scrape. Register it with a registry.

    read, judge: run in the scraping thread; they raise ReadError.
    judge: compares the open pinholes with the kernel's routes; None if it can't.
    pinholes: the open ones, by key, in an object that does not change any more.
    cap: how many Services have their own series; 0 for none. You can change it.
    """

    def __init__(
        self,
        pinholes: Callable[[], Mapping[str, Pinhole]],
        read: Callable[[], Reading],
        judge: Callable[[Mapping[str, Pinhole]], Reachability | None],
        cap: int = CAP,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pinholes = pinholes
        self._read = read
        self._judge = judge
        self.cap = cap
        self._clock = clock
        self._lock = threading.Lock()
        self._traffic = Traffic()
        self._sizes: Mapping[str, int] = {}
        self._reachability: Reachability | None = None
        self._errors = 0
        self._read_at = self._judged_at = float("-inf")

    def prime(self) -> None:
        """Begin to count now instead of at the first scrape. Costs as much as a scrape."""
        with self._lock, self._count_errors():  # the first scrape reads again: it must see later pinholes
            self._count()

    def collect(self) -> Sequence[Metric]:
        with self._lock:
            now = self._clock()
            if now - self._read_at >= _READ_AGAIN:
                self._read_at = now
                with self._count_errors():
                    self._count()
            if now - self._judged_at >= _ROUTES_AGAIN:
                self._judged_at, self._reachability = now, None
                with self._count_errors():
                    self._reachability = self._judge(self._pinholes())
            return self._families()

    def _count(self) -> None:
        reading = self._read()
        self._traffic.cap = self.cap
        self._traffic.take(reading, self._pinholes())
        self._sizes = reading.sizes

    @contextmanager
    def _count_errors(self) -> Iterator[None]:
        """If the kernel is not readable, the previous reading stays."""
        try:
            yield
        except ReadError:
            self._errors += 1

    def _families(self) -> list[Metric]:
        services, routes = sorted(self._traffic.totals.items()), self._reachability
        families: list[Metric] = [
            _labelled(
                CounterMetricFamily(
                    "nftsync_service_packets", "Packets that the Service's pinholes accepted.", labels=_SERVICE
                ),
                ((name, total.passed.packets) for name, total in services),
            ),
            _labelled(
                CounterMetricFamily(
                    "nftsync_service_bytes", "Bytes that the Service's pinholes accepted.", labels=_SERVICE
                ),
                ((name, total.passed.octets) for name, total in services),
            ),
            _labelled(
                CounterMetricFamily(
                    "nftsync_service_rate_limit_drops",
                    "Packets to the Service that its rate limit dropped.",
                    labels=_SERVICE,
                ),
                ((name, total.dropped.packets) for name, total in services if total.dropped is not None),
            ),
            _labelled(
                CounterMetricFamily(
                    "nftsync_service_egress_limit_drops",
                    "Packets from the Service that its egress limit dropped.",
                    labels=_SERVICE,
                ),
                ((name, total.dropped_egress.packets) for name, total in services if total.dropped_egress is not None),
            ),
            CounterMetricFamily(
                "nftsync_series_dropped",
                "Services left out of nftsync_service_… because there are too many.",
                self._traffic.dropped,
            ),
            GaugeMetricFamily(
                "nftsync_services_without_series",
                "Services without nftsync_service_… series now.",
                len(self._traffic.left_out),
            ),
            CounterMetricFamily(
                "nftsync_kernel_read_errors", "Scrapes that could not read the kernel's counters.", self._errors
            ),
            _labelled(
                GaugeMetricFamily("nftsync_kernel_elements", "Elements in the kernel.", labels=["set"]),
                (([name], size) for name, size in self._sizes.items()),
            ),
            _labelled(
                CounterMetricFamily(
                    "nftsync_closed_port_drops",
                    "Packets to closed ports of the cluster: no pinhole matched.",
                    labels=["family"],
                ),
                (([f"ipv{version}"], count.packets) for version, count in self._traffic.closed.items()),
            ),
            CounterMetricFamily(
                "nftsync_invalid_drops",
                "Packets dropped because connection tracking calls them invalid.",
                self._traffic.invalid.packets,
            ),
        ]
        families.append(
            _labelled(
                CounterMetricFamily(
                    "nftsync_fragment_limit_drops",
                    "Later fragments that the limit of their address dropped.",
                    labels=["family"],
                ),
                (([f"ipv{version}"], count.packets) for version, count in self._traffic.fragments.items()),
            )
        )
        if routes is not None:
            text = "Addresses with a pinhole but without a route, except the default route."
            families.append(GaugeMetricFamily("nftsync_addresses_open_without_route", text, routes.open_without_route))
        if routes is not None and routes.routes_without_pinhole is not None:
            text = "Host routes to pool addresses without a pinhole."
            families.append(GaugeMetricFamily("nftsync_routes_without_pinhole", text, routes.routes_without_pinhole))
        return families


def _labelled(
    family: CounterMetricFamily | GaugeMetricFamily, samples: Iterable[tuple[Sequence[str], float]]
) -> Metric:
    """The family with these samples: each has its labels' values and a number."""
    for labels, value in samples:
        family.add_metric(labels, value)
    return family
