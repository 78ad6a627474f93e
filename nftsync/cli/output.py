"""Where commands say something: stdout, stderr and the exit status."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

FAILED, WRONG = 1, 2  # what was asked for failed; it was asked for wrongly


def open_output() -> None:
    """nft's text is UTF-8 on every terminal; a process that was started without stdout gets one that goes nowhere."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # for as long as the process lives
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def discard_output() -> None:
    """Nothing is left to be written when Python flushes stdout at the end."""
    with suppress(OSError), open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123  # the device has no folder
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def fail(status: int, message: str) -> int:
    print(f"nftsync: {message}", file=sys.stderr)
    return status
