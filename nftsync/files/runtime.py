"""The files in /run: the mark of the last run, the mark of a failed boot unit, and the lock.

The marks are valid until the next boot. Source of the lock: flock(2).
"""

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nftsync.files.sealed import give_to_owner, read_sealed, replace_sealed
from nftsync.objects.names import NftsyncError
from nftsync.plan.memory import BootFacts, boot_facts_record, parse_boot_facts

FILE = "since-boot"
LOCK = "lock"
_FORM = 1
# What systemd/boot-fallback writes.
_FAILURE = re.compile(r"result=([a-z-]{1,32}) status=([A-Za-z0-9]{1,32}) loaded=(rules|base|nothing)\n")

log = logging.getLogger(__name__)


class BootMark:
    """The mark that nftsync has run since the boot and left these rules.

    facts: as last written; None at the first run since boot, or if the file is not usable.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._failed = False
        self.facts: BootFacts | None = None
        try:
            self.facts = parse_boot_facts(read_sealed(self._path, _FORM))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            log.warning("%s can't be used: %s; this run counts as the first one since boot", self._path, error)

    def write(self, facts: BootFacts) -> None:
        """Write the mark. Log a failure once: the next run then counts as the first one since boot."""
        if facts == self.facts and not self._failed:
            return
        self.facts = facts
        try:
            replace_sealed(self._path, boot_facts_record(facts), _FORM)
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.warning("%s: %s; the next start counts as the first one since boot", self._path, error.strerror)
            self._failed = True


@dataclass(frozen=True, slots=True)
class BootFailure:
    """A failure of nftsync-boot.service.

    result, status: systemd's $SERVICE_RESULT and $EXIT_STATUS (systemd.exec(5)).
    loaded: a key of _SENTENCES.
    """

    result: str = "unknown"
    status: str = "unknown"
    loaded: str = "unknown"

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
    try:
        with open(runtime.with_name(f"{runtime.name}-boot-failed"), "rb", buffering=0, opener=_carefully) as file:
            match = _FAILURE.fullmatch((file.read(256) or b"").decode("ascii", errors="replace"))
    except FileNotFoundError:
        return None
    except OSError:
        match = None
    return BootFailure(*match.groups()) if match else BootFailure()


def _carefully(path: str, flags: int) -> int:
    """Open a file, but follow no link, and wait for no writer of a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


class LockedError(NftsyncError):
    """Another nftsync is at work. The message tells the reader how to stop it."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. The kernel releases it when the process ends. Raises LockedError.

    If the folder is not writable, log a warning and go on without a lock: a full disk must not stop a firewall.
    """
    path = folder / LOCK
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = _open(path)
    except OSError as error:
        log.warning("%s: %s; nftsync runs without a lock and cannot notice a second nftsync", path, error.strerror)
        yield
        return
    with os.fdopen(descriptor, "rb"):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{path}: another nftsync is running. Stop it first: systemctl stop nftsync") from None
        yield


def _open(path: Path) -> int:
    """Open the lock's file, or create it for the folder's owner, so that the daemon can open it too."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    try:
        give_to_owner(descriptor, path.parent)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
