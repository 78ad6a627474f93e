"""This process and its manager: process signals, messages to systemd, unused memory.

Sources: signal(7), sd_notify(3).
"""

import ctypes
import gc
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

_LIBC = ctypes.CDLL(None)

log = logging.getLogger(__name__)


@contextmanager
def process_signals(receive: Callable[[int], None], stop: threading.Event) -> Iterator[None]:
    """Call `receive` for each signal that stops or reloads the daemon, until it sets `stop`.

    A thread waits for them, since a handler could interrupt the owner of a lock that it needs.
    The thread waits without a time-out: signal.sigtimedwait() reports signals that nobody sent if
    its time runs out while the process is stopped (SIGSTOP, SIGCONT).
    """
    numbers = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def listen() -> None:
        while not stop.is_set():
            receive(signal.sigwait(numbers))

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        if not stop.is_set():
            signal.pthread_kill(thread.ident or 0, signal.SIGTERM)
        thread.join()
        for number in signal.sigpending() & numbers:  # a second signal to stop has no effect
            signal.sigwait({number})
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Systemd:
    """The service manager behind $NOTIFY_SOCKET, if there is one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._ready = False
        self._status = ""
        self._failed = False

    def ready(self, status: str) -> None:
        """Say that the start or a reload is over.

        status: a sentence for `systemctl status`; sent again when it differs.
        """
        status = " ".join(status.split())  # systemd would read a second line as another message
        if self._ready and status == self._status:
            return
        if self._tell(f"STATUS={status}" if self._ready else f"READY=1\nSTATUS={status}"):
            self._ready, self._status = True, status

    def alive(self) -> None:
        """Say that the loop turns."""
        self._tell("WATCHDOG=1")

    def reloading(self) -> None:
        """Say that a reload began. It lasts until ready()."""
        self._ready = False
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, message: str) -> bool:
        """Send a message. False if systemd did not get it. Never waits: the firewall goes first."""
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.sendto(message.encode(), socket.MSG_DONTWAIT, self._address)
        except OSError as error:
            if not self._failed:
                log.warning("nftsync can't reach systemd: %s; the firewall is not affected", error.strerror)
            self._failed = True
        else:
            self._failed = False
        return not self._failed


def give_back() -> None:
    """Return unused memory to the system.

    Errors inside pyroute2 refer to themselves and to the variables of their callers. Only Python's
    collector finds such cycles. libnftables needs ten megabytes and more for a large ruleset, and
    malloc(3) keeps them after free(3).
    """
    gc.collect()
    _LIBC.malloc_trim(0)


def settle_in() -> None:
    """Call it once, at the end of the start.

    The objects of that moment live as long as the process: the collector skips them from now on.
    """
    give_back()
    gc.freeze()
