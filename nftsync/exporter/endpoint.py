"""The HTTP endpoint: /metrics, /healthz, /readyz."""

import socket
import threading
from collections.abc import Callable
from socketserver import ThreadingTCPServer

from prometheus_client.exposition import MetricsHandler

from nftsync.exporter.metrics import Metrics
from nftsync.objects.names import NftsyncError


class EndpointError(NftsyncError):
    """The endpoint can't listen on its address."""


class Endpoint:
    """Serves the metrics and the two health checks until closed.

    healthy: True if the loop is alive.  ready: True if the kernel has the right rules.
    """

    def __init__(
        self, address: tuple[str, int], metrics: Metrics, healthy: Callable[[], bool], ready: Callable[[], bool]
    ) -> None:
        checks = {"/healthz": healthy, "/readyz": ready}
        metrics.ready.set_function(ready)
        metrics.healthy.set_function(healthy)

        class Handler(MetricsHandler):  # type: ignore[misc]  # prometheus_client has no types for mypy
            registry = metrics.registry

            def do_GET(self) -> None:  # noqa: N802  # http.server's name
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    super().do_GET()
                elif path in checks:
                    status, body = (200, b"ok\n") if checks[path]() else (503, b"not yet\n")
                    self.send_response(status)
                    self.send_header("Content-Type", "text/plain; charset=utf-8")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                else:
                    self.send_error(404)

        host, port = address
        try:
            self._server = (_IPv6Server if ":" in host else _Server)(address, Handler)
        except OSError as error:
            raise EndpointError(f"the metrics endpoint can't listen on {host} port {port}: {error.strerror}") from error
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


class _Server(ThreadingTCPServer):
    """No HTTPServer: that one looks up the host's name and waits for DNS."""

    allow_reuse_address = True
    daemon_threads = True


class _IPv6Server(_Server):
    address_family = socket.AF_INET6
