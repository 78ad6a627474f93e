"""The control socket: commands call the daemon through a unix socket that only root can reach.

A connection carries one JSON object each way. The daemon's loop answers between two syncs, so an
answer never mixes the states of two syncs. Source: unix(7).
"""

import errno
import json
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingMixIn, UnixStreamServer
from typing import Any

from nftsync.objects.names import NftsyncError

SOCKET = "control.sock"
PATIENCE = 10.0  # seconds that each side waits for the other one
_LONGEST_REQUEST = 64 * 1024  # bytes
_BACKLOG = 128  # connections that wait for accept()
_AT_ONCE = 32  # conversations
_WAIT = 2.0  # seconds that a connection waits for a free place among them
_PAUSE = 0.1  # seconds until the next try, without a file or a thread for a connection
_NEVER = 3600.0  # seconds between two looks whether close() was called: it wakes the server up anyway
_ADVICE: Mapping[type[Exception], str] = {
    FileNotFoundError: "the daemon does not run: start it with `systemctl start nftsync`",
    ConnectionRefusedError: "the daemon does not run: start it with `systemctl start nftsync`",
    PermissionError: "only root can ask the daemon: use sudo",
    BlockingIOError: "the daemon is busy with other commands: try again",
}

log = logging.getLogger(__name__)

Request = dict[str, Any]
Answer = dict[str, Any]


class ControlError(NftsyncError):
    """The command could not ask the daemon. The message tells you the next step."""


class RequestQueue:
    """Hands requests from any thread to the loop's thread. wake: called for each new request."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: queue.SimpleQueue[tuple[Request, Future[Answer]]] = queue.SimpleQueue()

    def call(self, request: Request) -> Answer:
        """Wait for the answer. Raises TimeoutError if the loop does not answer within PATIENCE."""
        future: Future[Answer] = Future()
        self._waiting.put((request, future))
        self._wake()
        try:
            return future.result(PATIENCE)
        except TimeoutError:
            if future.cancel():  # the caller will ask again: a late `confirm` must not take effect
                raise
            return future.result(PATIENCE)

    def answer(self, answer: Callable[[Request], Answer]) -> None:
        """Answer the requests that wait now. Those that come meanwhile must not hold up the loop."""
        for _ in range(self._waiting.qsize()):
            request, future = self._waiting.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(answer(request))
            except ValueError as error:  # the request is not valid
                future.set_result({"error": str(error)})
            except Exception:  # a request must never stop the daemon
                log.exception("the daemon could not answer a question; this is a bug, please report this traceback")
                future.set_result({"error": "the daemon could not answer; this is a bug: its log has the traceback"})


class Server(ThreadingMixIn, UnixStreamServer):
    """Listens in a folder until close(). Raises ControlError if it can't or another daemon does."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = _BACKLOG

    def __init__(self, folder: Path, call: Callable[[Request], Answer]) -> None:
        self._path = folder / SOCKET
        self._call = call
        self._places = threading.Semaphore(_AT_ONCE)
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            if _alive(self._path):
                raise ControlError(
                    f"{self._path}: another nftsync uses this socket: stop it or set another `runtime` folder"
                )
            self._path.unlink(missing_ok=True)
            super().__init__(str(self._path), BaseRequestHandler)
        except OSError as error:
            raise ControlError(f"{self._path}: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self.serve_forever, args=(_NEVER,), name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes the server up
        self.shutdown()
        self.server_close()
        with suppress(OSError):
            self._path.unlink()
        self._thread.join()

    def server_bind(self) -> None:
        """Create the socket for our user alone: bind() takes the mode of the descriptor."""
        os.fchmod(self.fileno(), 0o600)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Wait a moment while the process has too many open files."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_PAUSE)
            raise

    def process_request(self, connection: Any, address: Any) -> None:
        """Start a thread for a connection. Hang up while the process has too many threads."""
        try:
            super().process_request(connection, address)
        except RuntimeError:
            self.shutdown_request(connection)
            time.sleep(_PAUSE)

    def finish_request(self, connection: Any, _: Any) -> None:
        """Answer a connection, in its own thread."""
        with suppress(OSError):
            connection.settimeout(PATIENCE)
            if not self._places.acquire(timeout=_WAIT):
                connection.sendall(b'{"error": "the daemon is busy with other commands: try again"}\n')
                return
            try:
                connection.sendall(json.dumps(self._answer(connection)).encode() + b"\n")
            finally:
                self._places.release()

    def _answer(self, connection: socket.socket) -> Answer:
        try:
            request = json.loads(_line(connection, _LONGEST_REQUEST))
            if not isinstance(request, dict):
                raise ValueError("send a JSON object")
            return self._call(request)
        except (ValueError, RecursionError) as error:
            return {"error": f"the request is not valid: {error}"}
        except TimeoutError:
            return {"error": "the daemon is busy: try again"}


def call(folder: Path, request: Request) -> Answer:
    """Ask the daemon that runs on this machine. Raises ControlError."""
    path = folder / SOCKET
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(2 * PATIENCE)
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(_line(connection, None))
    except (OSError, ValueError) as error:
        raise ControlError(f"{path}: {_ADVICE.get(type(error), error)}") from error
    if not isinstance(answer, dict) or "error" in answer:
        raise ControlError(str(answer.get("error") if isinstance(answer, dict) else answer))
    return answer


def _line(connection: socket.socket, longest: int | None) -> bytes:
    """Read up to the first line break. Raises ValueError if it does not come."""
    content = bytearray()
    while not content.endswith(b"\n"):
        piece = connection.recv(65536)
        content += piece
        if not piece or (longest is not None and len(content) > longest):
            raise ValueError("it is too long" if piece else "the other side closed the connection")
    return bytes(content)


def _alive(path: Path) -> bool:
    """True if a process listens, even if its backlog is full. A dead one's socket refuses. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        code = connection.connect_ex(str(path))
    if code not in (0, errno.EAGAIN, errno.ENOENT, errno.ECONNREFUSED):
        raise OSError(code, os.strerror(code))
    return code in (0, errno.EAGAIN)
