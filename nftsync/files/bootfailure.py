"""The mark that a failed boot unit leaves: why it failed, and which rules it loaded instead."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_MARK = re.compile(r"result=([a-z-]{1,32}) status=([A-Za-z0-9]{1,32}) loaded=(rules|base|nothing)\n")  # see systemd/boot-fallback


@dataclass(frozen=True, slots=True)
class BootFailure:
    """A failure of nftsync-boot.service.

    result, status: systemd's $SERVICE_RESULT and $EXIT_STATUS (systemd.exec(5)).
    loaded: a key of _SENTENCES.
    """

    result: str
    status: str
    loaded: str

    def __str__(self) -> str:
        return f"nftsync-boot.service failed ({self.result}, status {self.status}); {_SENTENCES[self.loaded]}"


_SENTENCES = {
    "rules": "the second try loaded the rules before the network was up",
    "base": "the network came up with only the base, which allows ssh",
    "nothing": "the network came up without rules",
    "unknown": "the mark does not show which rules it loaded before the network was up",
}


def read_boot_failure(runtime: Path) -> BootFailure | None:
    """The boot unit's failure; None if it has not failed since the last boot.

    runtime: the runtime folder; root writes the mark beside it.
    """
    path, flags = runtime.with_name(f"{runtime.name}-boot-failed"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return None
    except OSError:
        return BootFailure("unknown", "unknown", "unknown")
    try:
        match = _MARK.fullmatch(os.read(descriptor, 256).decode("ascii", errors="replace"))
    except OSError:
        match = None
    finally:
        os.close(descriptor)
    return BootFailure(*match.groups()) if match else BootFailure("unknown", "unknown", "unknown")
