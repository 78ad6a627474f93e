"""The ruleset that the kernel accepted last, in a file: what a router begins with after a reboot. And whose pinholes it has."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from nftsync.files.sealed import read_sealed, replace_sealed
from nftsync.objects.names import Name
from nftsync.objects.ratelimit import parse_ratelimit
from nftsync.objects.service import Opened
from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.elements import ruleset
from nftsync.ruleset.tables import FILTER, SHAPER, Ruleset, Settings
from nftsync.ruleset.text import render

FORMAT = 1
INTERVAL = 5.0  # seconds at least between two writes
PATIENCE = 5.0  # seconds that the end of the process waits for a disk
_BETWEEN = "# --- what needs the public NIC to be there ---\n"

log = logging.getLogger(__name__)


def describe(shown: Ruleset) -> str:
    """As text: the table that filters, then the one that shapes, which can fail by itself."""
    parts = (Ruleset({family: shown.tables[family]}, shown.elements) for family in (FILTER, SHAPER) if family in shown.tables)
    return _BETWEEN.join(map(render, parts))


def services(folder: Path) -> Opened:
    """What is known of Services when the process starts; nothing where there is no file that can be used."""
    names, limits = set(), {}
    try:
        for line in read_sealed(_services(folder), FORMAT).splitlines():
            name, uid, limit = line.split(" ", 2)
            service = Name(*name.split("/"))
            names.add(service)
            if limit:
                limits[service, uid] = parse_ratelimit(limit)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError) as fault:
        log.warning("%s can't be used and is ignored: %s", _services(folder), fault)
        return Opened()
    return Opened(frozenset(names), limits)


def load(folder: Path) -> tuple[str, str]:
    """The text of both tables, "" for one that there was not. Raises OSError; ValueError with a sentence."""
    filtering, _, shaping = read_sealed(_file(folder), FORMAT).partition(_BETWEEN)
    return filtering, shaping


class LastGood:
    """Keeps the files up to date, not with every change: a reboot within seconds of one loads what was right before it.

    kept: whether the disk has what it should.  clock: monotonic seconds. One thread owns it; a disk is waited for in another.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = False
        self._written = float("-inf")
        self._writer: threading.Thread | None = None
        self.kept = True

    def changed(self) -> None:
        self._changed = True

    @property
    def due(self) -> float:
        """When it is to be written, by the clock; inf if nothing has changed, or what has is being written."""
        writing = self._writer is not None and self._writer.is_alive()
        return self._written + INTERVAL if self._changed and not writing else float("inf")

    def write(self, folder: Path, pinholes: Iterable[Pinhole], settings: Settings) -> None:
        """Begin to write what the kernel accepted. A disk that is full or read-only is told, tried again, and harms nothing else.

        The public NIC is written down as if it was there, by its name alone: after the next boot it may have another index.
        """
        self._changed, self._written = False, self._clock()
        opened = list(pinholes)
        texts = {
            _file(folder): describe(ruleset(opened, replace(settings, index=None))),
            _services(folder): "\n".join(sorted({f"{hole.service} {hole.uid} {hole.limit or ''}" for hole in opened})),
        }
        self._writer = threading.Thread(target=self._write, args=(texts,), name="last good", daemon=True)
        self._writer.start()

    def finish(self, write: Callable[[], None]) -> None:
        """At the end: if something has changed since, let `write` call write() once more, and wait a while for the disk."""
        self._wait()
        if self._changed:
            write()
            self._wait()

    def _wait(self) -> None:
        if self._writer:
            self._writer.join(PATIENCE)

    def _write(self, texts: Mapping[Path, str]) -> None:
        kept = self.kept
        try:
            for path, text in texts.items():
                replace_sealed(path, text, FORMAT)
            self.kept = True
        except OSError as fault:
            self.kept, self._changed = False, True
            if kept:
                log.warning("%s: %s; after a reboot an older ruleset is loaded", path, fault.strerror)


def _file(folder: Path) -> Path:
    return folder / "ruleset.nft"


def _services(folder: Path) -> Path:
    return folder / "services"
