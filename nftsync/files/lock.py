"""One nftsync at a time: a process that changes our tables holds a lock. Source: flock(2)."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nftsync.files.ownership import give_to_owner
from nftsync.objects.names import NftsyncError

LOCK = "lock"

log = logging.getLogger(__name__)


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
    except OSError as fault:
        log.warning("%s: %s; nftsync runs without a lock and cannot notice a second nftsync", path, fault.strerror)
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{path}: another nftsync is running. Stop it first: systemctl stop nftsync") from None
        yield
    finally:
        os.close(descriptor)


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
