"""The ruleset that the kernel accepted last, in a file: what a router begins with after a reboot."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from nftsync.ruleset import FILTER, SHAPER, Ruleset, render
from nftsync.sealed import read_sealed, replace_sealed

FORMAT = 1
INTERVAL = 5.0  # seconds at least between two writes
_BETWEEN = "# --- what needs the public NIC to be there ---\n"

log = logging.getLogger(__name__)


def describe(shown: Ruleset) -> str:
    """As text: the table that filters, then the one that shapes, which can fail by itself."""
    parts = (Ruleset({family: shown.tables[family]}, shown.elements) for family in (FILTER, SHAPER) if family in shown.tables)
    return _BETWEEN.join(map(render, parts))


def load(folder: Path) -> tuple[str, str]:
    """The text of both tables, "" for one that there was not. Raises OSError; ValueError with a sentence."""
    filtering, _, shaping = read_sealed(_file(folder), FORMAT).partition(_BETWEEN)
    return filtering, shaping


class LastGood:
    """Keeps the file up to date, not with every change: a reboot within seconds of one loads what was right before it.

    kept: whether the disk has what it should.  clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = False
        self._written = float("-inf")
        self.kept = True

    def changed(self) -> None:
        self._changed = True

    @property
    def due(self) -> float:
        """When it is to be written, by the clock; inf if nothing has changed."""
        return self._written + INTERVAL if self._changed else float("inf")

    def write(self, folder: Path, shown: Ruleset) -> None:
        """A disk that is full or read-only is reported, tried again, and harms nothing else."""
        self._changed, self._written, kept = False, self._clock(), self.kept
        try:
            replace_sealed(_file(folder), describe(shown), FORMAT)
            self.kept = True
        except OSError as fault:
            self.kept, self._changed = False, True
            if kept:
                log.warning("%s: %s; after a reboot an older ruleset is loaded", _file(folder), fault.strerror)


def _file(folder: Path) -> Path:
    return folder / "ruleset.nft"
