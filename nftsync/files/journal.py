"""The Memory on disk: an append-only journal, compacted by rename.

Each line is one record: its number, a checksum of number and content, and the content (see plan.memory).
A crash or a power cut tears off the end at most; the records before it count.
A damaged record in the middle makes the file useless: the loss is unknown.

The journal records each change before the kernel gets it. A process that is killed between the two
leaves a journal that knows every closed Service. A sync to the disk follows every few seconds.
"""

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
from nftsync.plan.closed import NOTHING_CLOSES, Closing
from nftsync.plan.memory import Facts, Memory, closing_records, facts_record, replay, service_record

FILE = "memory.journal"
SYNC = 5.0  # shortest time in seconds between two waits for the disk
RETRY = 5.0  # seconds until the next try after the disk failed
GRACE = 0.01  # seconds that a change of the kernel waits for its record
PATIENCE = 5.0  # seconds that the end of the process waits for the disk
SLACK = 1 << 20  # bytes: compact a journal that has doubled and grown by more than this

_HEAD = "# nftsync memory 1"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Batch:
    """Records to write. whole: replace the file with them.

    services: of each Service the last two versions, oldest first. The kernel can still have the
    one before the last (see Memory.superseded).
    """

    services: dict[Name, tuple[Service | None, ...]] = field(default_factory=dict)
    facts: Facts | None = None
    closing: Closing = NOTHING_CLOSES
    whole: bool = False

    def __bool__(self) -> bool:
        return bool(self.services or self.facts or self.closing or self.whole)

    def add(self, later: "_Batch") -> None:
        if later.whole:
            self.services, self.closing, self.whole = later.services, later.closing, True
        else:
            self.closing = self.closing.then(later.closing)
            for name, versions in later.services.items():
                self.services[name] = (*self.services.get(name, ()), *versions)[-2:]
        self.facts = later.facts or self.facts

    def lines(self) -> Iterator[str]:
        yield from closing_records(self.closing)  # first: a torn end loses no closed endpoint of a written Service
        if self.facts is not None:
            yield facts_record(self.facts)
        for name, versions in self.services.items():
            yield from (service_record(name, service) for service in versions)


def _batch(
    services: Mapping[Name, Service | None], facts: Facts | None, closing: Closing, *, whole: bool = False
) -> _Batch:
    versions: dict[Name, tuple[Service | None, ...]] = {name: (service,) for name, service in services.items()}
    return _Batch(versions, facts, closing, whole)


class Journal:
    """Keeps the Memory of one state directory. The loop calls it; its own thread waits for the disk.

    kept: True if the disk is up to date.  clock: monotonic seconds.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = folder / FILE
        self._clock = clock
        self._lock = threading.Condition()
        self._thread: threading.Thread | None = None
        self._syncer: threading.Thread | None = None
        self._pending = _Batch()
        self._writing = self._ending = False
        self._late = False  # a wait for the disk timed out: do not wait again until the disk answers
        self._number = 0  # of the last record in the file
        self._size = self._compact_size = 0  # bytes up to that record; bytes of the same content after compaction
        self._torn = False  # bytes follow the last valid record
        self._whole = True  # the next write must replace the file
        self._unsynced = False
        self._told = False  # the log already has a warning about the disk
        self.kept = True

    def load(self) -> Memory:
        """The Memory as last accepted. If the file is not usable, log a warning and start empty."""
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
            log.warning("%s: a crash tore off its end; the records before it count", self._path)
        needed = len(memory.services) + len(set(memory.closed.values())) + 1
        self._compact_size = self._size * needed // (self._number + 1)
        self._whole = False
        return memory

    def _records(self) -> Iterator[str]:
        """The content of each record up to the torn end. Raises OSError; ValueError with a sentence."""
        head, *lines = read_text(self._path, errors="replace").split("\n")
        if head.partition(" by ")[0] != _HEAD or not lines:
            raise ValueError("it is not a journal of this version")
        self._size, end = len(head) + 1, lines.pop()
        for line in lines:
            number, record = _opened(line)
            if number is None:
                self._torn = True
                continue
            if self._torn or number != self._number + 1:
                raise ValueError(f"it is damaged before record {number}")
            self._number = number
            self._size += len(line) + 1
            yield record
        self._torn = self._torn or end != ""  # a record ends with its line

    def remember(
        self,
        services: Mapping[Name, Service | None],
        facts: Facts | None = None,
        closing: Closing = NOTHING_CLOSES,
    ) -> None:
        """Begin to write, and wait up to GRACE for it, unless the disk does not answer."""
        batch = _batch(services, facts, closing)
        if not batch:
            return
        with self._lock:
            if self._whole and not (self._pending.whole or self._writing):
                return  # there is no file to append to: the caller will call replace()
            self._add(batch)
            if self.kept and not self._late:
                # The disk has answered if it has taken everything or has failed.
                self._late = not self._lock.wait_for(
                    lambda: not (self.kept and (self._pending or self._writing)), GRACE
                )

    def replace(self, memory: Memory) -> None:
        """Replace the file with the whole Memory."""
        with self._lock:
            self._add(_batch(memory.services, memory.facts, Closing(dict(memory.closed)), whole=True))

    @property
    def wants_all(self) -> bool:
        """True if the file needs replacing: it is missing, damaged, or has grown too much."""
        if self._writing or self._pending.whole:
            return False
        return self._whole or self._size > 2 * self._compact_size + SLACK

    def finish(self) -> None:
        """Wait up to PATIENCE until the disk has everything."""
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

    # --- the thread that waits for the disk -----------------------------------------------------------------

    def _run(self) -> None:
        synced = float("-inf")
        while True:
            with self._lock:
                due = synced + SYNC - self._clock() if self._unsynced else None
                self._lock.wait_for(lambda: self._pending or self._ending, due)
                if self._ending and not (self._pending or self._unsynced):
                    return
                batch, self._pending = self._pending, _Batch()
                self._writing, ending = bool(batch), self._ending
            try:
                self._write(batch)
            except OSError as error:
                with self._lock:
                    batch.add(self._pending)
                    self._pending = batch
                self._tell(error)
                if ending:
                    return
                with self._lock:
                    self._lock.wait_for(lambda: self._ending, RETRY)
            else:
                self._tell(None)
                if self._unsynced and (ending or self._clock() >= synced + SYNC):
                    synced = self._clock()
                    self._sync(wait=ending)

    def _tell(self, error: OSError | None) -> None:
        """Wake the waiting thread: the disk has answered."""
        if error is not None and not self._told:
            log.warning(
                "%s: %s; after a restart or a reboot, nftsync would use older pinholes", self._path, error.strerror
            )
        with self._lock:
            self._writing = self._late = False
            self._told, self.kept = error is not None, error is None
            self._lock.notify_all()

    def _write(self, batch: _Batch) -> None:
        """Write a batch. Raises OSError; then no record of the batch counts as written."""
        if batch.whole:
            self._replace(batch)
        elif batch:
            self._append(batch)

    def _sync(self, *, wait: bool) -> None:
        """Wait for the disk, or let a thread of its own wait: a record must not wait for the ones before it."""
        if wait:
            self._unsynced = False
            self._fsync()
        elif self._syncer is None or not self._syncer.is_alive():
            self._unsynced = False
            self._syncer = threading.Thread(target=self._fsync, name="journal-sync", daemon=True)
            self._syncer.start()

    def _fsync(self) -> None:
        try:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            log.warning("%s: %s; after a reboot, nftsync would use older pinholes", self._path, error.strerror)
            with self._lock:
                self._whole, self.kept = True, False  # the kernel drops the data that it could not write

    def _append(self, batch: _Batch) -> None:
        content = "".join(_sealed(batch.lines(), self._number)).encode()
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            self._whole = error.errno in (errno.ENOENT, errno.ELOOP)  # somebody removed it or replaced it by a link
            raise
        with os.fdopen(descriptor, "ab", buffering=0):
            if self._torn:
                os.ftruncate(descriptor, self._size)
            elif os.fstat(descriptor).st_size != self._size:
                self._whole = True
                raise OSError(errno.ESTALE, "another program has changed it")
            self._torn = True  # until all of it is written
            try:
                written = 0
                while written < len(content):
                    written += os.write(descriptor, content[written:])
            except OSError:
                os.ftruncate(descriptor, self._size)
                raise
            self._torn = False
        self._number += content.count(b"\n")
        self._size, self._unsynced = self._size + len(content), True

    def _replace(self, batch: _Batch) -> None:
        content = f"{_HEAD} by version {__version__}\n" + "".join(_sealed(batch.lines(), 0))
        replace_text(self._path, content)
        forget_version_1(self._path.parent)
        self._number = content.count("\n") - 1
        self._size = self._compact_size = len(content)
        self._torn = self._whole = self._unsynced = False


def _sealed(records: Iterable[str], number: int) -> Iterator[str]:
    for place, record in enumerate(records, start=number + 1):
        yield f"{place} {_checksum(place, record)} {record}\n"


def _opened(line: str) -> tuple[int | None, str]:
    """Number and content of a record; the number is None if the line is not a whole record."""
    number, _, rest = line.partition(" ")
    checksum, _, record = rest.partition(" ")
    if not (line.isascii() and number.isdecimal()) or len(number) > 15 or checksum != _checksum(int(number), record):
        return None, ""
    return int(number), record


def _checksum(number: int, record: str) -> str:
    return hashlib.blake2b(f"{number} {record}".encode(), digest_size=8).hexdigest()
