"""The Memory on disk: an append-only journal, compacted by rename.

Each line is one record: its number, a checksum of number and content, and the content (see plan.memory). A crash or a power cut
tears off the end at most: what came before counts. A record that is damaged in the middle makes the file useless, since nobody
knows what is missing.

What the kernel is about to take is written before it does: so a process that is killed between the two leaves a journal that
knows at least of every Service that was closed. It is synced to the disk every few seconds.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nftsync import __version__
from nftsync.files.memory_v1 import forget_version_1, read_version_1
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

    def __bool__(self) -> bool:
        return bool(self.services or self.facts or self.whole)

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
        self._thread: threading.Thread | None = None
        self._pending = _Batch()
        self._writing = self._ending = False
        self._late = False  # a change has waited in vain for its record: the next ones do not, before the disk answers
        self._number = 0  # of the last record in the file
        self._size = self._compact_size = 0  # bytes up to its end; bytes of a file that holds the same without its history
        self._torn = False  # something stands behind that end
        self._whole = True  # what is written next has to replace the file
        self._unsynced = False
        self._told = False  # of a disk that takes nothing
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
            self.kept = False
            return Memory()
        if self._torn:
            log.warning("%s: its end was torn off by a crash; what came before counts", self._path)
        self._compact_size = self._size * (len(memory.services) + 1) // (self._number + 1)
        self._whole = False
        return memory

    def _records(self) -> Iterator[str]:
        """The content of each record up to the torn end. Raises OSError; ValueError with a sentence."""
        head, *lines = read_text(self._path, errors="replace").split("\n")
        if f"{head.partition(' by ')[0]}\n" != _HEAD or not lines:
            raise ValueError("it is no journal, or one of another version")
        self._size, cut_short = len(head) + 1, lines.pop() != ""  # a record ends with its line
        for line in lines:
            number, record = _opened(line)
            if number is None:
                self._torn = True
            elif self._torn or number != self._number + 1:
                raise ValueError(f"it is damaged before record {number}")
            else:
                self._number = number
                self._size += len(line) + 1
                yield record
        self._torn = self._torn or cut_short

    # --- writing ------------------------------------------------------------------------------------------

    def remember(self, services: Mapping[Name, Service | None], facts: Facts | None = None) -> None:
        """Begin to write, and wait a moment for it, unless the disk does not answer."""
        if not services and facts is None:
            return
        with self._lock:
            if self._whole and not (self._pending.whole or self._writing):
                return  # there is no file to append to: replace() comes
            self._add(_Batch(dict(services), facts))
            if self.kept and not self._late:
                self._late = not self._lock.wait_for(self._answered, GRACE)

    def replace(self, memory: Memory) -> None:
        """Write all of it, in the place of what there is."""
        with self._lock:
            self._add(_Batch(dict(memory.services), memory.facts, whole=True))

    @property
    def wants_all(self) -> bool:
        """Whether the file has to be replaced: it is not there, damaged, or has grown by too much."""
        under_way = self._writing or self._pending.whole
        return not under_way and (self._whole or self._size > 2 * self._compact_size + SLACK)

    def finish(self) -> None:
        """Wait a while for the disk to have everything."""
        with self._lock:
            self._ending = True
            self._lock.notify_all()
        if self._thread:
            self._thread.join(PATIENCE)

    def _add(self, batch: _Batch) -> None:
        self._pending.add(batch)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
            self._thread.start()
        self._lock.notify_all()

    def _answered(self) -> bool:
        """Whether the disk has taken everything, or has refused something."""
        return not (self.kept and (self._pending or self._writing))

    # --- the thread that waits for the disk -----------------------------------------------------------------

    def _run(self) -> None:
        synced = float("-inf")
        while True:
            with self._lock:
                while not (self._pending or self._ending or (self._unsynced and self._clock() >= synced + SYNC)):
                    self._lock.wait(synced + SYNC - self._clock() if self._unsynced else None)
                if self._ending and not (self._pending or self._unsynced):
                    return
                batch, self._pending = self._pending, _Batch()
                self._writing, ending = bool(batch), self._ending
            try:
                self._write(batch)
                self._tell(None)
                if self._unsynced and (ending or self._clock() >= synced + SYNC):
                    self._sync()
                    synced = self._clock()
            except OSError as error:
                with self._lock:
                    if self._writing:  # nothing of it is written
                        batch.add(self._pending)
                        self._pending = batch
                self._tell(error)
                if ending:
                    return
                with self._lock:
                    self._lock.wait_for(lambda: self._ending, RETRY)

    def _tell(self, error: OSError | None) -> None:
        """Tell who waits that the disk has answered."""
        if error is not None and not self._told:
            log.warning("%s: %s; after a restart or a reboot older pinholes count", self._path, error.strerror)
        with self._lock:
            self._writing = self._late = False
            self._told, self.kept = error is not None, error is None
            self._lock.notify_all()

    def _write(self, batch: _Batch) -> None:
        """Raises OSError; then nothing of the batch counts as written."""
        if batch.whole:
            self._replace(batch)
        elif batch:
            self._append(batch)

    def _sync(self) -> None:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError:
            self._whole = True  # the kernel forgets what it could not write
            raise
        finally:
            self._unsynced = False
            os.close(descriptor)

    def _append(self, batch: _Batch) -> None:
        content = "".join(_sealed(batch.lines(), self._number)).encode()
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            self._whole = error.errno in (errno.ENOENT, errno.ELOOP)  # somebody took it away, or put a link in its place
            raise
        try:
            if self._torn:
                os.ftruncate(descriptor, self._size)
            elif os.fstat(descriptor).st_size != self._size:
                self._whole = True
                raise OSError(errno.ESTALE, "somebody has changed it")
            self._torn = True  # until all of it is written
            try:
                written = 0
                while written < len(content):
                    written += os.write(descriptor, content[written:])
            except OSError:
                os.ftruncate(descriptor, self._size)
                raise
            self._torn = False
        finally:
            os.close(descriptor)
        self._number += content.count(b"\n")
        self._size, self._unsynced = self._size + len(content), True

    def _replace(self, batch: _Batch) -> None:
        content = f"{_HEAD.rstrip()} by version {__version__}\n" + "".join(_sealed(batch.lines(), 0))
        replace_text(self._path, content)
        forget_version_1(self._path.parent)
        self._number = content.count("\n") - 1
        self._size = self._compact_size = len(content)
        self._torn = self._whole = self._unsynced = False


def _sealed(records: Iterable[str], number: int) -> Iterator[str]:
    for place, record in enumerate(records, start=number + 1):
        yield f"{place} {_checksum(place, record)} {record}\n"


def _opened(line: str) -> tuple[int | None, str]:
    """Number and content of a record; None for what is no whole record."""
    number, _, rest = line.partition(" ")
    checksum, _, record = rest.partition(" ")
    if not (line.isascii() and number.isdecimal()) or len(number) > 15 or checksum != _checksum(int(number), record):
        return None, ""
    return int(number), record


def _checksum(number: int, record: str) -> str:
    return hashlib.blake2b(f"{number} {record}".encode(), digest_size=8).hexdigest()
