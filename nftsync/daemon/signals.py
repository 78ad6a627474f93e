"""Wake-ups for the loop, from other threads and from process signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Signals:
    """Flags that wake the loop, set from any thread. A hundred changes become one wake-up."""

    def __init__(self) -> None:
        self._wake = threading.Event()
        self.stop = threading.Event()
        self.inputs = threading.Event()
        self.links = threading.Event()
        self.reload = threading.Event()

    def asked(self) -> None:
        """Wake the loop without a sync: a command waits for an answer."""
        self._wake.set()

    def changed(self) -> None:
        self.inputs.set()
        self._wake.set()

    def links_changed(self) -> None:
        self.links.set()
        self._wake.set()

    def wait(self, timeout: float) -> None:
        """Wait for a wake-up, at most `timeout` seconds."""
        self._wake.wait(max(timeout, 0.0))
        self._wake.clear()

    def take(self, flag: threading.Event) -> bool:
        """Whether the flag was set since the last call. Clears it."""
        taken = flag.is_set()
        flag.clear()
        return taken

    def receive(self, number: int) -> None:
        """A process signal: TERM and INT stop, HUP reloads."""
        (self.reload if number == signal.SIGHUP else self.stop).set()
        self._wake.set()


@contextmanager
def process_signals(signals: Signals) -> Iterator[None]:
    """Turn process signals into messages.

    A thread waits for them, since a handler could interrupt the owner of a lock that it needs.
    The thread waits without a time-out: signal.sigtimedwait() reports signals that nobody sent if
    its time runs out while the process is stopped (SIGSTOP, SIGCONT).
    """
    numbers = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def listen() -> None:
        while not signals.stop.is_set():
            signals.receive(signal.sigwait(numbers))

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        if not signals.stop.is_set():
            signal.pthread_kill(thread.ident or 0, signal.SIGTERM)
        thread.join()
        for number in signal.sigpending() & numbers:  # a second signal to stop has no effect
            signal.sigwait({number})
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
