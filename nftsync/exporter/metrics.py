"""What nftsync reports to Prometheus, and the HTTP endpoint: /metrics, /healthz, /readyz."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client import Counter as PromCounter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import MetricsHandler

from nftsync import __version__
from nftsync.kernel.netlink import DumpError
from nftsync.kernel.routes import Reachability
from nftsync.objects.service import Reason, Rejection
from nftsync.policy.pinholes import Pinhole
from nftsync.report.traffic import CAP, Reading, Traffic
from nftsync.ruleset.tables import Settings

_T = TypeVar("_T")

# From a tenth of a millisecond, which an element takes, to the seconds of a full load.
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


_OUTCOMES = ("waiting", "unchanged", "applied", "failed")  # as reconcile.Outcome has them
_STALE = ("settings", "pools", "services")
_READ_AGAIN = 1.0  # seconds that what was read of the kernel serves every scrape
_ROUTES_AGAIN = 30.0  # seconds between looks at the routes


class EndpointError(Exception):
    """The endpoint's address can't be used."""


class Metrics:
    """The metrics of one daemon, in a registry of their own. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        self.show_stale({})

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


class KernelCollector:
    """What the kernel has counted, read when somebody scrapes, in that scrape's thread. Register it with a registry.

    read, judge: called in the scraping thread; they raise DumpError. judge: compares what is open with the kernel's routes, None
    if that can't be done.  pinholes: those that are open, by key, as an object that nobody changes any more.
    cap: how many Services have series of their own; 0 for none. It can be changed.
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
        self._clock = clock
        self._lock = threading.Lock()
        self._traffic = Traffic(cap)
        self._sizes: Mapping[str, int] = {}
        self._reachability: Reachability | None = None
        self._errors = 0
        self._read_at = self._judged_at = float("-inf")

    @property
    def cap(self) -> int:
        return self._traffic.cap

    @cap.setter
    def cap(self, cap: int) -> None:
        with self._lock:
            self._traffic.cap = cap

    def prime(self) -> None:
        """Begin to count now, not with the first scrape. Costs as much as a scrape."""
        with self._lock:
            self._refresh()
            self._read_at = float("-inf")  # the first scrape sees what was opened since

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        with self._lock:
            self._refresh()
            if self._clock() - self._judged_at >= _ROUTES_AGAIN:
                self._judged_at = self._clock()
                self._reachability = self._attempt(lambda: self._judge(self._pinholes()))
            families = [*_by_service(self._traffic), *self._whole()]
        yield from families

    def _refresh(self) -> None:
        if self._clock() - self._read_at < _READ_AGAIN:
            return
        self._read_at = self._clock()
        reading = self._attempt(self._read)
        if reading is not None:
            self._traffic.take(reading, self._pinholes())
            self._sizes = reading.sizes

    def _attempt(self, asked: Callable[[], _T]) -> _T | None:
        try:
            return asked()
        except DumpError:  # what was read before is shown once more
            self._errors += 1
            return None

    def _whole(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """What is not of one Service."""
        errors = CounterMetricFamily("nftsync_kernel_read_errors", "Times that a scrape could not read the kernel's counters.")
        errors.add_metric([], self._errors)
        yield errors
        elements = GaugeMetricFamily("nftsync_kernel_elements", "Elements in the kernel.", labels=["set"])
        for name, size in self._sizes.items():
            elements.add_metric([name], size)
        yield elements
        closed = CounterMetricFamily(
            "nftsync_closed_port_drops", "Packets to addresses of the cluster dropped for want of a pinhole.", labels=["family"]
        )
        for name, family in (("pools4", "ipv4"), ("pools6", "ipv6")):
            closed.add_metric([family], self._traffic.closed[name].packets)
        yield closed
        if self._reachability is not None:
            yield GaugeMetricFamily(
                "nftsync_addresses_open_without_route",
                "Addresses with a pinhole to which no route leads but the default one.",
                value=self._reachability.open_without_route,
            )
            if self._reachability.routes_without_pinhole is not None:
                yield GaugeMetricFamily(
                    "nftsync_routes_without_pinhole",
                    "Host routes to addresses of the pools that no pinhole uses.",
                    value=self._reachability.routes_without_pinhole,
                )


def _by_service(traffic: Traffic) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    labels = ["namespace", "service"]
    packets = CounterMetricFamily("nftsync_service_packets", "Packets that pinholes of the Service let pass.", labels=labels)
    octets = CounterMetricFamily("nftsync_service_bytes", "Bytes that pinholes of the Service let pass.", labels=labels)
    drops = CounterMetricFamily(
        "nftsync_service_rate_limit_drops", "Packets to the Service dropped by its rate limit.", labels=labels
    )
    for name, total in sorted(traffic.totals.items()):
        packets.add_metric(name, total.passed.packets)
        octets.add_metric(name, total.passed.octets)
        if total.dropped is not None:
            drops.add_metric(name, total.dropped.packets)
    yield from (packets, octets, drops)
    dropped = CounterMetricFamily("nftsync_series_dropped", "Services left out of nftsync_service_… because there are too many.")
    dropped.add_metric([], traffic.dropped)
    yield dropped
    left_out = "Services that are left out of nftsync_service_… now."
    yield GaugeMetricFamily("nftsync_services_without_series", left_out, value=len(traffic.left_out))


class Endpoint:
    """Serves the metrics and the two health checks until closed.

    healthy: whether the loop is alive.  ready: whether the kernel holds what it should.
    """

    def __init__(self, address: tuple[str, int], metrics: Metrics, healthy: Callable[[], bool], ready: Callable[[], bool]) -> None:
        checks = {"/healthz": healthy, "/readyz": ready}
        metrics.ready.set_function(lambda: float(ready()))
        metrics.healthy.set_function(lambda: float(healthy()))
        metrics_page = MetricsHandler.factory(metrics.registry)

        class Handler(metrics_page):  # type: ignore[misc, valid-type]  # a class made by prometheus_client
            def do_GET(self) -> None:  # noqa: N802  # http.server's name
                path = self.path.partition("?")[0]
                if path in checks:
                    good = checks[path]()
                    self._answer(200 if good else 503, b"ok\n" if good else b"not yet\n")
                elif path == "/metrics":
                    super().do_GET()
                else:
                    self.send_error(404)

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """A scrape is not worth a line."""

        host, port = address
        try:
            self._server = _Server(host, port, Handler)
        except OSError as fault:
            raise EndpointError(f"the metrics endpoint can't listen on {host} port {port}: {fault.strerror}") from fault
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is listened on; interesting where port 0 was asked for."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[MetricsHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        """HTTPServer's own asks DNS for the host's name, and waits for it where there is none."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
