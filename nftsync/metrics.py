"""What nftsync reports to Prometheus, and the HTTP endpoint: /metrics, /healthz, /readyz."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client import Counter as PromCounter
from prometheus_client.exposition import MetricsHandler

from nftsync import __version__
from nftsync.objects import Reason, Rejection

# From a tenth of a millisecond, which an element takes, to the seconds of a full load.
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class EndpointError(Exception):
    """The endpoint's address can't be used."""


class Metrics:
    """The metrics of one daemon, in a registry of their own. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.syncs = PromCounter("nftsync_syncs", "Syncs by result.", ["result"], registry=registry)
        self.sync_duration = Histogram(
            "nftsync_sync_duration_seconds", "Time that a sync took.", buckets=_SECONDS, registry=registry
        )
        self.event_to_kernel = Histogram(
            "nftsync_event_to_kernel_seconds",
            "Time from receiving an event to the kernel's acceptance of what followed from it.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.last_success = Gauge("nftsync_last_success_timestamp_seconds", "When a sync last succeeded.", registry=registry)
        self.watch_state = Gauge(
            "nftsync_watch_state", "1 for the state that a resource's watch is in.", ["resource", "state"], registry=registry
        )
        self.watch_restarts = PromCounter(
            "nftsync_watch_restarts", "Watches that had to be restarted, by cause.", ["resource", "cause"], registry=registry
        )
        self.last_contact = Gauge(
            "nftsync_last_contact_timestamp_seconds", "When the API server last said something.", ["resource"], registry=registry
        )
        self.skipped = PromCounter(
            "nftsync_objects_skipped", "Objects whose name could not be read.", ["resource"], registry=registry
        )
        self.services = Gauge("nftsync_services", "Services that are ours.", registry=registry)
        self.pinholes = Gauge("nftsync_pinholes", "Pinholes that should be open.", registry=registry)
        self.pools_guarded = Gauge(
            "nftsync_pools_guarded", "1 if MetalLB's pools decide which addresses may be opened, 0 if any may.", registry=registry
        )
        self.rejections = Gauge("nftsync_rejections", "Objects, or parts of one, that are refused.", ["reason"], registry=registry)
        self.drift_repairs = PromCounter(
            "nftsync_drift_repairs", "Times that somebody else's change of our tables was repaired.", registry=registry
        )
        self.status_writes = PromCounter(
            "nftsync_status_writes", "Times that the Nft's status was written, or could not be.", ["result"], registry=registry
        )
        self.events = PromCounter("nftsync_events", "Kubernetes Events by what became of them.", ["result"], registry=registry)
        build = Gauge("nftsync_build_info", "Always 1; the labels tell the version.", ["version"], registry=registry)
        build.labels(__version__).set(1)
        for reason in Reason:
            self.rejections.labels(reason).set(0)

    def count_rejections(self, rejections: Iterable[Rejection]) -> None:
        """How many there are of each reason."""
        by_reason = Counter(rejection.reason for rejection in rejections)
        for reason in Reason:
            self.rejections.labels(reason).set(by_reason[reason])


class Endpoint:
    """Serves the metrics and the two health checks until closed.

    healthy: whether the loop is alive.  ready: whether the kernel holds what it should.
    """

    def __init__(self, address: tuple[str, int], metrics: Metrics, healthy: Callable[[], bool], ready: Callable[[], bool]) -> None:
        checks = {"/healthz": healthy, "/readyz": ready}
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
