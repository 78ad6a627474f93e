"""The HTTP endpoint: /metrics, /healthz, /readyz."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from prometheus_client.exposition import MetricsHandler

from nftsync.exporter.metrics import Metrics


class EndpointError(Exception):
    """The endpoint can't listen on its address."""


class Endpoint:
    """Serves the metrics and the two health checks until closed.

    healthy: True if the loop is alive.  ready: True if the kernel has the right rules.
    """

    def __init__(
        self, address: tuple[str, int], metrics: Metrics, healthy: Callable[[], bool], ready: Callable[[], bool]
    ) -> None:
        checks = {"/healthz": healthy, "/readyz": ready}
        metrics.ready.set_function(lambda: float(ready()))
        metrics.healthy.set_function(lambda: float(healthy()))
        metrics_page = MetricsHandler.factory(metrics.registry)

        class Handler(metrics_page):  # type: ignore[misc, valid-type]  # prometheus_client makes this class
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
                """Log nothing: scrapes are frequent."""

        host, port = address
        try:
            self._server = _Server(host, port, Handler)
        except OSError as fault:
            raise EndpointError(f"the metrics endpoint can't listen on {host} port {port}: {fault.strerror}") from fault
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port of the endpoint; useful if the configured port is 0."""
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
        """Bind without a DNS lookup: HTTPServer looks up the host's name and waits for it."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
