"""Children of the tests start with the default signals, however you start the tests.

A script that runs `make test &` starts it with SIGINT and SIGQUIT ignored, nohup(1) with SIGHUP
ignored. Every child inherits that. No child inherits a handler: execve(2) sets the default instead.
"""

from __future__ import annotations

import signal
from types import FrameType

# Python itself ignores these, and subprocess gives its children the default.
_PYTHONS = {signal.SIGPIPE, signal.SIGXFSZ}


def give_children_default_signals() -> None:
    """Make children start with the default signals. This process still ignores the same signals."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _PYTHONS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _ignore)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    pass
