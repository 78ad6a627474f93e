"""The control socket: commands ask the daemon through a unix socket that only root can reach.

A connection carries one JSON object each way. The daemon's loop answers between two syncs, so an
answer never mixes the states of two syncs. Source: unix(7).
"""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

SOCKET = "control.sock"
PATIENCE = 10.0  # seconds that each side waits for the other one
_LONGEST_QUESTION = 64 * 1024  # bytes
_BACKLOG = 128  # connections that wait for accept()
_AT_ONCE = 32  # conversations
_WAIT = 2.0  # seconds that a connection waits for a free place among them
_PAUSE = 0.1  # seconds after a failed accept()

log = logging.getLogger(__name__)

Question = dict[str, Any]
Answer = dict[str, Any]


class ControlError(Exception):
    """The command could not ask the daemon. The message tells you the next step."""


class Questions:
    """Hands questions from any thread to the loop's thread. wake: called for each new question."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: queue.SimpleQueue[tuple[Question, Future[Answer]]] = queue.SimpleQueue()

    def ask(self, question: Question) -> Answer:
        """Wait for the answer. Raises TimeoutError if the loop does not answer within PATIENCE."""
        future: Future[Answer] = Future()
        self._waiting.put((question, future))
        self._wake()
        try:
            return future.result(PATIENCE)
        except TimeoutError:
            if future.cancel():  # the caller will ask again: a late `confirm` must not take effect
                raise
            return future.result(PATIENCE)

    def answer(self, answer: Callable[[Question], Answer]) -> None:
        """Answer all waiting questions."""
        for question, future in self._pending():
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(answer(question))
            except ValueError as fault:  # the question is not valid
                future.set_result({"error": str(fault)})
            except Exception:  # a question must never stop the daemon
                log.exception("the daemon could not answer a question; this is a bug, please report this traceback")
                future.set_result({"error": "the daemon could not answer; this is a bug: its log has the traceback"})

    def _pending(self) -> Iterator[tuple[Question, Future[Answer]]]:
        with suppress(queue.Empty):
            while True:
                yield self._waiting.get_nowait()


class Server:
    """Listens in a folder until close(). Raises ControlError if it can't or another daemon does."""

    def __init__(self, folder: Path, ask: Callable[[Question], Answer]) -> None:
        self._path = folder / SOCKET
        self._ask = ask
        self._closed = threading.Event()
        self._places = threading.Semaphore(_AT_ONCE)
        try:
            self._listener = _listener(self._path)
        except OSError as fault:
            raise ControlError(f"{self._path}: {fault.strerror or fault}") from fault
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with suppress(OSError):
            self._path.unlink()
        self._thread.join()

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # close() was called, or the process has too many open files for now
                self._closed.wait(_PAUSE)
                continue
            try:
                threading.Thread(target=self._converse, args=(connection,), daemon=True).start()
            except RuntimeError:  # the process has too many threads for now
                connection.close()
                self._closed.wait(_PAUSE)

    def _converse(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(PATIENCE)
            if not self._places.acquire(timeout=_WAIT):
                connection.sendall(b'{"error": "the daemon is busy with other commands: try again"}\n')
                return
            try:
                self._hear_and_answer(connection)
            finally:
                self._places.release()

    def _hear_and_answer(self, connection: socket.socket) -> None:
        try:
            question = json.loads(_line(connection, _LONGEST_QUESTION))
            if not isinstance(question, dict):
                raise ValueError("send a JSON object")
            answer = self._ask(question)
        except (ValueError, RecursionError) as fault:
            answer = {"error": f"the request is not valid: {fault}"}
        except TimeoutError:
            answer = {"error": "the daemon is busy: try again"}
        connection.sendall(json.dumps(answer).encode() + b"\n")


def ask(folder: Path, question: Question) -> Answer:
    """Ask the daemon that runs on this machine. Raises ControlError."""
    path = folder / SOCKET
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(2 * PATIENCE)
            connection.connect(str(path))
            connection.sendall(json.dumps(question).encode() + b"\n")
            answer = json.loads(_line(connection, None))
    except (FileNotFoundError, ConnectionRefusedError):
        raise ControlError(f"{path}: the daemon does not run: start it with `systemctl start nftsync`") from None
    except PermissionError:
        raise ControlError(f"{path}: only root can ask the daemon: use sudo") from None
    except BlockingIOError:
        raise ControlError(f"{path}: the daemon is busy with other commands: try again") from None
    except (OSError, ValueError) as fault:
        raise ControlError(f"{path}: {fault}") from fault
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


def _listener(path: Path) -> socket.socket:
    """A listening socket that accepts only our user.

    Raises OSError; ControlError if another daemon answers there.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if _alive(path):
        raise ControlError(f"{path}: another nftsync uses this socket: stop it or set another `runtime` folder")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)  # bind() creates the file with this mode
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _alive(path: Path) -> bool:
    """True if a process listens. The socket of a killed process refuses. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except (BlockingIOError, TimeoutError):  # its backlog is full, so a process listens
            return True
        return True
