"""`nftsync boot`: the last good ruleset, before there is a network and without a cluster.

Run again, it makes up for what could not be loaded the first time: limits of a NIC that came later.
"""

from __future__ import annotations

import logging
from pathlib import Path

from nftsync import config
from nftsync.config import Config, ConfigError
from nftsync.daemon.restore import restore
from nftsync.files.lock import LockedError, locked
from nftsync.files.store import Store
from nftsync.kernel.nft import Kernel

log = logging.getLogger(__name__)


def boot(path: Path | None) -> None:
    """Load what of the ruleset does not stand. path: of the configuration, None for the default place.

    Raises KernelError if the kernel takes not even the base.
    """
    chosen = _configuration(path)
    try:
        with locked(chosen.runtime):
            restore(Kernel(), chosen, lambda: Store(chosen.state).state)
    except LockedError:
        log.info("nftsync runs: the ruleset is in its care")


def _configuration(path: Path | None) -> Config:
    """A mistake in the configuration must not leave the router open."""
    try:
        return config.load(path)
    except ConfigError as fault:
        log.warning("%s; what is written down in %s is loaded", fault, Config().state)
        return Config()
