"""Notice other programs that change our tables.

nf_tables sends each listener a message about every transaction and the task that committed it.

Source: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h, netlink(7).
"""

import errno
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from nftsync.kernel import netlink
from nftsync.kernel.netlink import FAMILIES, HEADER, OURS, PROTOCOL, DumpError, Netlink, fields, split, text

_GROUP = 7  # NFNLGRP_NFTABLES
_SOL_NETLINK, _ADD_MEMBERSHIP, _SO_RCVBUFFORCE = 270, 1, 33
_BUFFER = 8 << 20  # bytes: a transaction of 50,000 elements
_PID, _PROGRAM = 2, 3  # attributes of a generation
_CHECK = 1.0  # seconds until a stopped listener notices
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 0.5  # seconds between two repairs, while others keep changing our tables
_QUIET = 10.0  # seconds without a foreign commit that end such a series

SOMEBODY = "somebody else"  # if the kernel does not name the task

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Commit:
    """The task behind a transaction: its id and the name that it gives itself. str() is for people."""

    pid: int
    program: str

    def __str__(self) -> str:
        return f"{self.program!a} (pid {self.pid})"


def identity() -> int | None:
    """The id of this thread in the kernel's messages about commits; None if the kernel gives none."""
    try:
        with Netlink(PROTOCOL) as kernel:
            (answer,) = kernel.messages(netlink.GET_GENERATION, bytes(HEADER), dump=False)
    except DumpError:
        return None
    commit = _commit(answer)
    return commit.pid if commit else None


def listen(told: Callable[[Commit | None], None], own: int | None, stop: threading.Event) -> None:
    """Call `told` for every transaction that changed our tables, unless the task `own` committed it.

    Call it with None if the kernel dropped messages. Blocks until `stop`: give it a thread of its own.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, PROTOCOL) as kernel:
            kernel.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            kernel.settimeout(_CHECK)
            kernel.bind((0, 0))
            kernel.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)
            _listen(kernel, told, own, stop)
    except OSError as error:
        log.warning("the kernel does not report foreign changes (%s): the next resync will find them", error.strerror)
        stop.wait()


def _listen(
    kernel: socket.socket, told: Callable[[Commit | None], None], own: int | None, stop: threading.Event
) -> None:
    ours = False  # True if this transaction concerns our tables
    while not stop.is_set():
        try:
            received = kernel.recv(_BUFFER)
        except TimeoutError:
            continue
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            told(None)
            continue
        for kind, _, _, content in split(received):
            if kind != netlink.NEW_GENERATION:
                ours = ours or (content.startswith(OURS, HEADER) and content[0] in FAMILIES.values())
                continue
            commit = _commit(content)
            if ours and (commit is None or commit.pid != own):
                told(commit)
            ours = False


def _commit(content: bytes) -> Commit | None:
    """The task that committed, from a message about a generation."""
    generation = fields(content, HEADER)
    return Commit(int.from_bytes(generation[_PID]), text(generation.get(_PROGRAM, b""))) if _PID in generation else None


class ForeignChanges:
    """Changes that other programs made to our tables since the last repair.

    Thread-safe: the listener's thread calls tell().
    wake: called after each change.  clock: monotonic seconds.
    """

    def __init__(self, wake: Callable[[], None], clock: Callable[[], float]) -> None:
        self._wake = wake
        self._clock = clock
        self._who = ""
        self._repaired = float("-inf")
        self._pause = 0.0

    def tell(self, commit: Commit | None) -> None:
        self._who = str(commit or self._who or SOMEBODY)
        self._wake()

    @property
    def due(self) -> float:
        """The time of the next repair, by the clock; inf if there is nothing to repair."""
        return self._repaired + self._pause if self._who else float("inf")

    def take(self) -> str:
        """The program that changed our tables, for people; "" if there was none.

        Each repair in a series waits a little longer than the one before.
        """
        who = self._who
        if who:
            self._who, now = "", self._clock()
            going_on = now - self._repaired < _QUIET
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE) if going_on else _FIRST_PAUSE
            self._repaired = now
        return who
