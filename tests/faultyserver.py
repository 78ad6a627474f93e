"""A fake API server on loopback: it lists and watches one resource as the real one, with faults.

By default the server is right: paged lists from a snapshot, a log of events, compaction, bookmarks,
gzip, a bearer token. A test scripts a fault for a coming request of one kind. A fault is a function
of the handler. It returns DONE if it has answered the request. It returns None if the server goes
on as usual, with the changes that the fault has made.

FaultyServer serves one resource. tests/faultycluster.py puts several of them behind one address.
"""

from __future__ import annotations

import base64
import gzip
import json
import socket
import struct
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

Object = dict[str, Any]
DONE = True
Fault = Callable[["Handler"], bool | None]

LIST = "list"  # the first page of a list
PAGE = "page"  # a further page
WATCH = "watch"
OTHER = "other"  # not a GET


@dataclass(frozen=True)
class Request:
    """A request to the server. at: monotonic seconds."""

    at: float
    kind: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes


@dataclass
class FaultyServer:
    """Holds the truth: `objects`, by namespace and name.

    token: the bearer token of valid requests; None if all are valid.
    largest_page: objects in a page at most, even if the client allows more.
    standing: by kind of request, the fault for requests without a scripted one.
    listens: False if another server passes the requests on.
    """

    path: str = "/api/v1/services"
    token: str | None = None
    largest_page: int = 10_000
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    standing: dict[str, Fault] = field(default_factory=dict)
    listens: bool = True

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._version = 1000
        self._oldest = 1000
        self._log: list[tuple[int, str, Object]] = []
        self._snapshots: dict[int, list[Object]] = {}
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._watches_end = 0
        self.stopping = threading.Event()
        if self.listens:
            self.http = serve(("127.0.0.1", 0), lambda _: self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        with self._changed:
            self._changed.notify_all()
        self.http.shutdown()
        self.http.server_close()

    @property
    def port(self) -> int:
        return int(self.http.server_address[1])

    # --- for the tests -------------------------------------------------------------------------------------

    def put(self, obj: Object) -> Object:
        """Create or change an object, as it is; only its resourceVersion is set."""
        with self._changed:
            metadata = obj["metadata"]
            key = (metadata["namespace"], metadata["name"])
            self._version += 1
            stored = {**obj, "metadata": {**metadata, "resourceVersion": str(self._version)}}
            self._log.append((self._version, "MODIFIED" if key in self.objects else "ADDED", stored))
            self.objects[key] = stored
            self._changed.notify_all()
            return stored

    def delete(self, namespace: str, name: str) -> None:
        with self._changed:
            self._version += 1
            last = self.objects.pop((namespace, name))
            gone = {**last, "metadata": {**last["metadata"], "resourceVersion": str(self._version)}}
            self._log.append((self._version, "DELETED", gone))
            self._changed.notify_all()

    def bookmark(self) -> str:
        """Tell watchers the current version; returns it."""
        with self._changed:
            self._version += 1
            self._log.append((self._version, "BOOKMARK", {"metadata": {"resourceVersion": str(self._version)}}))
            self._changed.notify_all()
            return str(self._version)

    def compact(self) -> None:
        """Forget the past: a watch or list from an older version gets a 410."""
        with self._changed:
            self._version += 1
            self._oldest = self._version
            self._log.clear()
            self._snapshots.clear()

    def end_watches(self) -> None:
        """Close every watch under way, as the server does when their time is up."""
        with self._changed:
            self._watches_end += 1
            self._changed.notify_all()

    def script(self, kind: str, *faults: Fault) -> None:
        """The coming requests of this kind meet these, one each."""
        self._faults[kind].extend(faults)

    def scripted(self) -> bool:
        """Whether there are faults that no request has met yet."""
        return any(self._faults.values())

    def count(self, kind: str) -> int:
        return sum(1 for request in self.requests if request.kind == kind)

    # --- for the handlers ----------------------------------------------------------------------------------

    def next_fault(self, kind: str) -> Fault | None:
        faults = self._faults[kind]
        return faults.popleft() if faults else self.standing.get(kind)

    def page(self, limit: int, token: str) -> Object | None:
        """A page of a list; None if the token's version was compacted."""
        with self._changed:
            if token:
                version, start = json.loads(base64.b64decode(token))
            else:
                version, start = self._version, 0
                self._snapshots[version] = list(self.objects.values())
            if version not in self._snapshots:
                return None
            items = self._snapshots[version]
            end = start + min(limit or len(items), self.largest_page)
            metadata: Object = {"resourceVersion": str(version)}
            if end < len(items):
                metadata["continue"] = base64.b64encode(json.dumps([version, end]).encode()).decode()
                metadata["remainingItemCount"] = len(items) - end
            return {"kind": "ServiceList", "apiVersion": "v1", "metadata": metadata, "items": items[start:end]}

    def events(self, version: int, deadline: float, generation: int) -> list[tuple[int, str, Object]] | None:
        """Wait for events after `version`.

        Empty if the watch is over, None if they were compacted.
        """
        with self._changed:
            while True:
                if version < self._oldest:
                    return None
                news = [entry for entry in self._log if entry[0] > version]
                over = self.stopping.is_set() or generation != self._watches_end or time.monotonic() >= deadline
                if news or over:
                    return [] if over else news
                self._changed.wait(deadline - time.monotonic())

    @property
    def generation(self) -> int:
        return self._watches_end


class HttpServer(ThreadingHTTPServer):
    """Knows its connections, so that it can cut them."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 100  # connections that wait while Python is busy

    def __init__(self, address: tuple[str, int], handler: type[Handler]) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed resets its connection."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def end(self) -> None:
        """Refuse connections from now on, and cut those that there are."""
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with suppress(OSError):  # the client was faster
                connection.shutdown(socket.SHUT_RDWR)


def serve(address: tuple[str, int], world_of: Callable[[str], FaultyServer]) -> HttpServer:
    """Listen in the calling thread's network namespace.

    world_of: from a request's path to the world that answers it.
    """
    server = HttpServer(address, type("BoundHandler", (Handler,), {"world_of": staticmethod(world_of)}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


class Handler(BaseHTTPRequestHandler):
    """One connection; each of its requests meets at most one fault.

    dribble: send the watch byte by byte.  events_left: break off after so many, in the middle of a line; -1 for never.
    prelude: lines that the watch begins with.
    """

    world_of: Callable[[str], FaultyServer]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """A test's output is its assertions."""

    def do_GET(self) -> None:  # noqa: N802  # http.server's name
        query = dict(parse_qsl(urlsplit(self.path).query))
        kind = WATCH if query.get("watch") == "true" else PAGE if query.get("continue") else LIST
        self._meet(kind, query, b"")

    def do_POST(self) -> None:  # noqa: N802  # http.server's name
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._meet(OTHER, dict(parse_qsl(urlsplit(self.path).query)), body)

    do_PATCH = do_POST  # noqa: N815 http.server names it

    def _meet(self, kind: str, query: dict[str, str], body: bytes) -> None:
        path = urlsplit(self.path).path
        self.world = self.world_of(path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.world.requests.append(Request(time.monotonic(), kind, path, query, headers, body))
        self.dribble, self.events_left, self.prelude = False, -1, list[bytes]()
        try:
            if self.world.token is not None and self.headers.get("Authorization") != f"Bearer {self.world.token}":
                self.refuse(401, "Unauthorized")
                return
            fault = self.world.next_fault(kind)
            if fault is not None and fault(self) is DONE:
                return
            if kind == OTHER:
                self.answer(200, body)
            elif path != self.world.path:
                self.refuse(404, "the server could not find the requested resource")
            elif kind == WATCH:
                self._watch(query)
            else:
                self._list(query)
        except OSError:
            self.close_connection = True

    def _list(self, query: dict[str, str]) -> None:
        page = self.world.page(int(query.get("limit", 0)), query.get("continue", ""))
        if page is None:
            self.refuse(410, "The provided continue parameter is too old")
        else:
            self.answer(200, json.dumps(page).encode())

    def _watch(self, query: dict[str, str]) -> None:
        generation = self.world.generation
        deadline = time.monotonic() + float(query.get("timeoutSeconds", 3600))
        version = int(query["resourceVersion"])
        self.begin_watch()
        for line in self.prelude:
            self.chunk(line)
        while True:
            events = self.world.events(version, deadline, generation)
            if events is None:
                self.send_event("ERROR", status(410, "too old resource version"))
            if not events:
                self.end_watch()
                return
            for at, kind, obj in events:
                if self.events_left == 0:
                    self.chunk(event_line(kind, obj)[:-30])
                    self.end_watch()
                    return
                self.events_left -= 1
                self.send_event(kind, obj)
                version = at

    # --- parts of faults -----------------------------------------------------------------------------------

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        """Send an answer with a body. length: a wrong value for Content-Length."""
        zipped = "gzip" in self.headers.get("Accept-Encoding", "") and len(body) > 1000
        body = gzip.compress(body, 1) if zipped else body
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if zipped:
            self.send_header("Content-Encoding", "gzip")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, code: int, message: str, headers: dict[str, str] | None = None) -> None:
        self.answer(code, json.dumps(status(code, message)).encode(), headers)

    def begin_watch(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, content: bytes) -> None:
        pieces = [content[i : i + 1] for i in range(len(content))] if self.dribble else [content]
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    def send_event(self, kind: str, obj: Object) -> None:
        self.chunk(event_line(kind, obj))

    def end_watch(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def hang(self) -> None:
        """Keep the connection open and say nothing more."""
        self.world.stopping.wait(3600)
        self.close_connection = True

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


def status(code: int, message: str) -> Object:
    """A Status object, as errors are told."""
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


def event_line(kind: str, obj: Object) -> bytes:
    return json.dumps({"type": kind, "object": obj}, ensure_ascii=False).encode() + b"\n"


# --- faults -------------------------------------------------------------------------------------------


def refusal(code: int, message: str = "not now", **headers: str) -> Fault:
    """An error status; headers with _ for -."""

    def fault(handler: Handler) -> bool:
        handler.refuse(code, message, {name.replace("_", "-"): value for name, value in headers.items()})
        return DONE

    return fault


def body(content: bytes, *, length: int | None = None) -> Fault:
    """Status 200 with this body; with a larger `length` the connection ends before the body does."""

    def fault(handler: Handler) -> bool:
        handler.answer(200, content, length=length)
        handler.close_connection = True
        return DONE

    return fault


def never_answers(handler: Handler) -> bool:
    handler.hang()
    return DONE


def waits_for(gate: threading.Event) -> Fault:
    """The usual answer, but only after the test opens the gate."""

    def fault(handler: Handler) -> None:
        while not gate.wait(0.02) and not handler.world.stopping.is_set():
            pass

    return fault


def resets(handler: Handler) -> bool:
    handler.reset()
    return DONE


def ends_at_once(handler: Handler) -> bool:
    handler.begin_watch()
    handler.end_watch()
    return DONE


def stalls(handler: Handler) -> bool:
    """The watch is accepted, and then the other end is gone without a word."""
    handler.begin_watch()
    handler.hang()
    return DONE


def error_event(code: int, message: str = "too old resource version") -> Fault:
    def fault(handler: Handler) -> bool:
        handler.begin_watch()
        handler.send_event("ERROR", status(code, message))
        handler.end_watch()
        return DONE

    return fault


def first_says(*lines: bytes) -> Fault:
    """The watch begins with these lines, then goes on as usual."""

    def fault(handler: Handler) -> None:
        handler.prelude = list(lines)

    return fault


def repeats(handler: Handler) -> None:
    """The watch begins with events that the client knows already, twice."""
    known = int(dict(parse_qsl(urlsplit(handler.path).query))["resourceVersion"])
    objects = [obj for obj in list(handler.world.objects.values()) if int(obj["metadata"]["resourceVersion"]) <= known]
    handler.prelude = [event_line(kind, obj) for kind in ("ADDED", "MODIFIED") for obj in objects]


def dribbles(handler: Handler) -> None:
    """Every byte of the watch comes in a chunk of its own, so that no character of several bytes stays whole."""
    handler.dribble = True


def breaks_off_after(events: int) -> Fault:
    """The watch ends in the middle of a line."""

    def fault(handler: Handler) -> None:
        handler.events_left = events

    return fault


def compacts_first(handler: Handler) -> None:
    """The past is forgotten just before the server looks at the request."""
    handler.world.compact()
