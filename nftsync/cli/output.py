"""The output of commands: stdout, stderr and the exit status."""

import io
import os
import sys
from collections.abc import Iterator, Sequence
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


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines with aligned columns; the last column has no width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()


def printable(text: str) -> str:
    """Foreign text without the control characters that a terminal would obey."""
    return ascii(text)[1:-1]
