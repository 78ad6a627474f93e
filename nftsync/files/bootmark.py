"""The mark in /run, valid until the next boot: nftsync has run and left these rules."""

from __future__ import annotations

import logging
from pathlib import Path

from nftsync.files.sealed import read_sealed, replace_sealed
from nftsync.plan.memory import BootFacts, boot_facts_record, parse_boot_facts

FILE = "since-boot"
_FORM = 1

log = logging.getLogger(__name__)


class BootMark:
    """facts: as last written; None at the first run since boot, or if the file is not usable."""

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
