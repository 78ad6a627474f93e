"""One nftsync at a time: whoever changes our tables holds a lock. Source: flock(2)."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nftsync.files.ownership import give_to_owner

LOCK = "lock"

log = logging.getLogger(__name__)


class LockedError(Exception):
    """Another nftsync is at work; the message says what to do."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the kernel lets go of it when the process ends, however it does. Raises LockedError.

    Where the folder can't be written nothing is held, and that is said: a full disk does not keep a firewall from working.
    """
    path = folder / LOCK
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = _open(path)
    except OSError as fault:
        log.warning("%s: %s; a second nftsync would not be noticed", path, fault.strerror)
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{path}: another nftsync is at work here: systemctl stop nftsync") from None
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """The lock's file, made if need be; then it belongs to whom the folder does, so that root's lock keeps no daemon out."""
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
