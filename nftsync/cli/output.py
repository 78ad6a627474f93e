"""The output of commands: stdout, stderr and the exit status."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

FAILED, WRONG = 1, 2  # the command failed; the command line or an input is wrong


def open_output() -> None:
    """Write UTF-8 on every terminal, as nft does. A process without stdout gets /dev/null."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # for as long as the process lives
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def discard_output() -> None:
    """Discard the buffered output, so that Python's last flush cannot fail."""
    with suppress(OSError), open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123  # the device has no folder
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def fail(status: int, message: str) -> int:
    """Print a message on stderr. Returns the exit status `status`."""
    print(f"nftsync: {message}", file=sys.stderr)
    return status
