"""`nftsync boot`: the last good ruleset, before there is a network and without a cluster.

What can't be read or loaded is as good as absent: then a base stands that lets nothing in but ssh, if that was open.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from nftsync import lastgood
from nftsync.config import Config
from nftsync.kernel import Kernel, KernelError
from nftsync.ruleset import Ruleset, Settings, ruleset
from nftsync.store import State, Store
from nftsync.transaction import transaction

log = logging.getLogger(__name__)


def boot(chosen: Config) -> None:
    """Load a ruleset unless one stands. Raises KernelError if the kernel takes not even the base."""
    kernel = Kernel()
    if kernel.read().ruleset.tables:
        log.info("a ruleset stands already: it stays")
        return
    try:
        filtering, shaping = lastgood.load(chosen.state)
        kernel.apply(filtering)
    except FileNotFoundError:
        log.warning("there is no last good ruleset yet: the base is loaded")
        _load_base(kernel, chosen)
    except (OSError, ValueError, KernelError) as fault:
        log.warning("the last good ruleset of %s can't be used: %s: the base is loaded", chosen.state, fault)
        _load_base(kernel, chosen)
    else:
        log.info("the last good ruleset stands")
        _load_shaper(kernel, shaping)


def _load_shaper(kernel: Kernel, shaping: str) -> None:
    """Limits are attached to a NIC, which may come later: then the daemon attaches them."""
    try:
        if shaping:
            kernel.apply(shaping)
    except KernelError as fault:
        log.warning("no rate limit is in force until nftsync runs: %s", fault)


def _load_base(kernel: Kernel, chosen: Config) -> None:
    state = Store(chosen.state).state
    base = _base(chosen, state)
    try:
        kernel.apply(transaction(Ruleset(), ruleset((), base)))
    except KernelError:  # it can only be the local chain's fault
        kernel.apply(transaction(Ruleset(), ruleset((), replace(base, local_chain=""))))


def _base(chosen: Config, state: State) -> Settings:
    """Nothing in but ssh, if that was open when it was known last, and what the local chain says."""
    nic = chosen.public_nic or (state.spec.public_nic if state.spec else None)
    return Settings(public_nic=nic, enable_ssh=state.spec is None or state.spec.enable_ssh, local_chain=state.local_chain)
