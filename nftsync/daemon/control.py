"""Questions to the running daemon: a unix socket that only root can reach, one JSON object each way per connection.

The daemon's loop answers between two syncs, so what it says is of one moment. Source: unix(7).
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
PATIENCE = 10.0  # seconds until somebody who does not speak, or does not answer, is given up
_LONGEST_QUESTION = 64 * 1024  # bytes
_BACKLOG = 128  # connections that wait to be accepted
_AT_ONCE = 32  # conversations
_WAIT = 2.0  # seconds for a place among them
_PAUSE = 0.1  # seconds after a connection that could not be accepted

log = logging.getLogger(__name__)

Question = dict[str, Any]
Answer = dict[str, Any]


class ControlError(Exception):
    """The daemon could not be asked; the message says what to do."""


class Questions:
    """Hands questions from any thread to the one that can answer. wake: called when there is one."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: queue.SimpleQueue[tuple[Question, Future[Answer]]] = queue.SimpleQueue()

    def ask(self, question: Question) -> Answer:
        """Raises TimeoutError if nobody answers in time."""
        future: Future[Answer] = Future()
        self._waiting.put((question, future))
        self._wake()
        try:
            return future.result(PATIENCE)
        except TimeoutError:
            if future.cancel():  # nothing is confirmed later, behind the back of who was told to ask again
                raise
            return future.result(PATIENCE)

    def answer(self, answer: Callable[[Question], Answer]) -> None:
        """Answer all that wait."""
        for question, future in self._pending():
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(answer(question))
            except ValueError as fault:  # what was asked makes no sense
                future.set_result({"error": str(fault)})
            except Exception:  # the firewall does not end because of a question
                log.exception("a question could not be answered, which is a bug")
                future.set_result({"error": "that could not be answered, which is a bug: the daemon's log has its traceback"})

    def _pending(self) -> Iterator[tuple[Question, Future[Answer]]]:
        with suppress(queue.Empty):
            while True:
                yield self._waiting.get_nowait()


class Server:
    """Listens in a folder until closed. Raises ControlError if it can't, or if another daemon does already."""

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
            except OSError:  # closed; or there are too many open files, which passes
                self._closed.wait(_PAUSE)
                continue
            try:
                threading.Thread(target=self._converse, args=(connection,), daemon=True).start()
            except RuntimeError:  # there are too many threads, which passes, too
                connection.close()
                self._closed.wait(_PAUSE)

    def _converse(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(PATIENCE)
            if not self._places.acquire(timeout=_WAIT):
                connection.sendall(b'{"error": "too many ask at once: ask again"}\n')
                return
            try:
                self._hear_and_answer(connection)
            finally:
                self._places.release()

    def _hear_and_answer(self, connection: socket.socket) -> None:
        try:
            question = json.loads(_line(connection, _LONGEST_QUESTION))
            if not isinstance(question, dict):
                raise ValueError("a question is a JSON object")
            answer = self._ask(question)
        except (ValueError, RecursionError) as fault:
            answer = {"error": f"that is no question: {fault}"}
        except TimeoutError:
            answer = {"error": "the daemon is busy: ask again"}
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
        raise ControlError(f"{path}: no nftsync runs here: systemctl start nftsync") from None
    except PermissionError:
        raise ControlError(f"{path}: only root may ask") from None
    except BlockingIOError:
        raise ControlError(f"{path}: too many ask at once: ask again") from None
    except (OSError, ValueError) as fault:
        raise ControlError(f"{path}: {fault}") from fault
    if not isinstance(answer, dict) or "error" in answer:
        raise ControlError(str(answer.get("error") if isinstance(answer, dict) else answer))
    return answer


def _line(connection: socket.socket, longest: int | None) -> bytes:
    """All up to the first line break. Raises ValueError if it does not come."""
    content = bytearray()
    while not content.endswith(b"\n"):
        piece = connection.recv(65536)
        content += piece
        if not piece or (longest is not None and len(content) > longest):
            raise ValueError("it has no end" if piece else "the other side hung up")
    return bytes(content)


def _listener(path: Path) -> socket.socket:
    """A listening socket that only our user may connect to. Raises OSError; ControlError if somebody answers there."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if _alive(path):
        raise ControlError(f"{path}: another nftsync answers there")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)  # bind() gives the file this mode: there is no moment with another one
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _alive(path: Path) -> bool:
    """Whether somebody answers at a socket; one that was left behind by a process that was killed refuses. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except (BlockingIOError, TimeoutError):  # so many ask that we would have to wait
            return True
        return True
