"""An API server that answers from memory: Services in pages of 500, one Nft resource, and watches that stay silent.

A process of its own: `python -m tests.bench.server COUNT` prints its port, and serves until its input ends.
"""

from __future__ import annotations

import gzip
import json
import sys
import threading
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from nftsync.cluster.api import PAGE
from tests.bench.measure import nft_resource, service

GZIP_LEVEL = 4  # k8s.io/apiserver, defaultGzipContentEncodingLevel


def _page(items: list[dict[str, Any]], token: str) -> bytes:
    document = {
        "kind": "List",
        "apiVersion": "v1",
        "metadata": {"resourceVersion": "200000", "continue": token},
        "items": items,
    }
    return gzip.compress(json.dumps(document, separators=(",", ":")).encode(), GZIP_LEVEL)


def _pages(count: int) -> dict[str, bytes]:
    """By the token that asks for them; "" asks for the first."""
    pages = {}
    for start in range(0, count, PAGE):
        end = min(start + PAGE, count)
        pages[str(start or "")] = _page(
            [service(number) for number in range(start, end)], str(end) if end < count else ""
        )
    return pages


class Server(ThreadingHTTPServer):
    """On a free port of 127.0.0.1."""

    daemon_threads = True

    def __init__(self, count: int) -> None:
        self.services = _pages(count)
        super().__init__(("127.0.0.1", 0), _Handler)

    @cached_property
    def nfts(self) -> bytes:
        return _page([nft_resource()], "")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # as Go's servers do: otherwise each page waits 40 ms for an acknowledgement
    server: Server

    def do_GET(self) -> None:  # noqa: N802 http.server's name
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        if "watch" in query:
            self._stay_silent()
        elif url.path == "/api/v1/services":
            self._answer(self.server.services[query.get("continue", [""])[0]])
        else:
            self._answer(self.server.nfts)

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stay_silent(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.rfile.read(1)  # until the client goes
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


def main(count: int) -> None:
    server = Server(count)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]))
