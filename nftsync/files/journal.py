"""The Memory on disk: an append-only journal, compacted by rename.

Each line is one record: its number, a checksum of number and content, and the content (see plan.memory). A crash or a power cut
tears off the end at most: what came before counts. A record that is damaged in the middle makes the file useless, since nobody
knows what is missing.

What the kernel is about to take is written before it does: so a process that is killed between the two leaves a journal that
knows at least of every Service that was closed. It is synced to the disk every few seconds.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nftsync import __version__
from nftsync.files.memory_v1 import read_version_1
from nftsync.files.sealed import read_text, replace_text
from nftsync.objects.names import Name
from nftsync.objects.service import Service
from nftsync.plan.memory import Facts, Memory, facts_record, replay, service_record

FILE = "memory.journal"
SYNC = 5.0  # seconds at least between two waits for the disk
RETRY = 5.0  # seconds until a disk that took nothing is asked again
GRACE = 0.01  # seconds that a change of the kernel waits for its record to be written
PATIENCE = 5.0  # seconds that the end of the process waits for the disk
SLACK = 1 << 20  # bytes: a journal that has grown by more than that, and to twice its size, is compacted

_HEAD = "# nftsync memory 1\n"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Batch:
    """What is to be written. whole: replace the file by all of it."""

    services: dict[Name, Service | None] = field(default_factory=dict)
    facts: Facts | None = None
    whole: bool = False

    def add(self, later: _Batch) -> None:
        if later.whole:
            self.services, self.whole = later.services, True
        else:
            self.services.update(later.services)
        self.facts = later.facts or self.facts

    def lines(self) -> Iterator[str]:
        if self.facts is not None:
            yield facts_record(self.facts)
        for name, service in self.services.items():
            if service is not None or not self.whole:
                yield service_record(name, service)


class Journal:
    """Keeps the Memory of one state directory. The loop's thread calls it; a thread of its own waits for the disk.

    kept: whether the disk has what it should.  clock: monotonic seconds.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = folder / FILE
        self._clock = clock
        self._lock = threading.Condition()
        self._pending = _Batch()
        self._busy = self._ending = False
        self._thread: threading.Thread | None = None
        self._number = 0  # of the last record in the file
        self._size = self._compact_size = 0
        self._whole = True  # what is written next has to replace the file
        self._unsynced = False
        self.kept = True

    # --- reading ------------------------------------------------------------------------------------------

    def load(self) -> Memory:
        """What was accepted last. A file that can't be used is as good as absent, and that is said."""
        memory = Memory()
        try:
            for record in self._records():
                replay(memory, record)
        except FileNotFoundError:
            return read_version_1(self._path.parent)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.warning("%s can't be used and is ignored: %s", self._path, error)
            self.kept, self._number, self._whole = False, 0, True
            return Memory()
        return memory

    def _records(self) -> Iterator[str]:
        """The content of each record up to the torn end. Raises OSError; ValueError with a sentence."""
        content = read_text(self._path)
        head, *lines = content.split("\n")
        if f"{head.partition(' by ')[0]}\n" != _HEAD:
            raise ValueError("it is no journal, or one of another version")
        torn = 0
        for place, line in enumerate(lines):
            number, record = _opened(line)
            if number is None:
                torn = torn or place + 1
            elif torn or number != self._number + 1:
                raise ValueError(f"it is damaged before record {number}")
            else:
                self._number = number
                yield record
        self._size = self._compact_size = len(content)
        self._whole = bool(torn and lines[torn - 1 :] != [""])  # a torn end is cut off by writing it anew
        if self._whole:
            log.warning("%s: its end was torn off by a crash; what came before counts", self._path)

    # --- writing ------------------------------------------------------------------------------------------

    def remember(self, services: Mapping[Name, Service | None], facts: Facts | None = None) -> None:
        """Begin to write, and wait a moment for it, unless the disk is busy."""
        if not services and facts is None:
            return
        with self._lock:
            if self._whole and not (self._pending.whole or self._busy):
                return  # there is no file to append to: replace() comes
            self._pending.add(_Batch(dict(services), facts))
            idle = not self._busy
            self._start()
            self._lock.notify_all()
            if idle and self.kept:
                self._lock.wait_for(lambda: not self._has_pending() and not self._busy, GRACE)

    def replace(self, memory: Memory) -> None:
        """Write all of it, in the place of what there is."""
        with self._lock:
            self._pending.add(_Batch(dict(memory.services), memory.facts, whole=True))
            self._start()
            self._lock.notify_all()

    @property
    def wants_all(self) -> bool:
        """Whether the file has to be replaced: it is not there, damaged, or has grown by too much."""
        return not self._busy and not self._pending.whole and (self._whole or self._size > 2 * self._compact_size + SLACK)

    def finish(self) -> None:
        """Wait a while for the disk to have everything."""
        with self._lock:
            self._ending = True
            self._lock.notify_all()
        if self._thread:
            self._thread.join(PATIENCE)

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
            self._thread.start()

    def _has_pending(self) -> bool:
        return bool(self._pending.services or self._pending.facts or self._pending.whole)

    def _run(self) -> None:
        synced = float("-inf")
        while True:
            with self._lock:
                self._busy = False
                self._lock.notify_all()
                while not self._has_pending() and not self._ending:
                    wait = synced + SYNC - self._clock() if self._unsynced else None
                    if wait is not None and wait <= 0:
                        break
                    self._lock.wait(wait)
                if self._ending and not self._has_pending() and not self._unsynced:
                    return
                batch, self._pending, self._busy = self._pending, _Batch(), True
                ending = self._ending
            try:
                self._write(batch, sync=ending or self._clock() >= synced + SYNC)
                if not self._unsynced:
                    synced = self._clock()
                self._told(None)
            except OSError as error:
                self._told(error)
                with self._lock:
                    batch.add(self._pending)
                    self._pending = batch
                    if ending:
                        return
                    self._lock.wait_for(lambda: self._ending, RETRY)

    def _told(self, error: OSError | None) -> None:
        if error is not None and self.kept:
            log.warning("%s: %s; after a restart or a reboot older pinholes count", self._path, error.strerror)
        self.kept = error is None

    def _write(self, batch: _Batch, *, sync: bool) -> None:
        """Raises OSError; then nothing of the batch counts as written."""
        if batch.whole:
            self._replace(batch)
        elif batch.services or batch.facts:
            self._append(batch)
        if self._unsynced and sync:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._unsynced = False

    def _append(self, batch: _Batch) -> None:
        content = "".join(_sealed(batch.lines(), self._number)).encode()
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            size = os.fstat(descriptor).st_size
            try:
                written = 0
                while written < len(content):
                    written += os.write(descriptor, content[written:])
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        self._number += content.count(b"\n")
        self._size, self._unsynced = size + len(content), True

    def _replace(self, batch: _Batch) -> None:
        content = f"{_HEAD.rstrip()} by version {__version__}\n" + "".join(_sealed(batch.lines(), 0))
        replace_text(self._path, content)
        self._number = content.count("\n") - 1
        self._size = self._compact_size = len(content)
        self._whole = self._unsynced = False


def _sealed(records: Iterable[str], number: int) -> Iterator[str]:
    for place, record in enumerate(records, start=number + 1):
        yield f"{place} {_checksum(place, record)} {record}\n"


def _opened(line: str) -> tuple[int | None, str]:
    """Number and content of a record; None for what is no whole record."""
    number, _, rest = line.partition(" ")
    checksum, _, record = rest.partition(" ")
    if not number.isdecimal() or len(number) > 15 or checksum != _checksum(int(number), record):
        return None, ""
    return int(number), record


def _checksum(number: int, record: str) -> str:
    return hashlib.blake2b(f"{number} {record}".encode(errors="replace"), digest_size=8).hexdigest()
