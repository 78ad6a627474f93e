"""The last good ruleset, where nothing of ours stands and no cluster says what should: after a boot, or when somebody flushed it.

What can't be read or loaded is as good as absent: then a base stands that lets nothing in but ssh, if that was open.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

from nftsync.config import Config
from nftsync.files import lastgood
from nftsync.files.store import State
from nftsync.kernel.nft import Kernel, KernelError
from nftsync.ruleset.elements import ruleset
from nftsync.ruleset.localchain import by_name
from nftsync.ruleset.tables import FILTER, NAME, SHAPER, Settings, Table
from nftsync.ruleset.text import flagged, render

log = logging.getLogger(__name__)


def restore(kernel: Kernel, chosen: Config, state: Callable[[], State]) -> None:
    """Load what of the ruleset does not stand. state: what else outlived the process, read only where a base is needed.

    Raises KernelError if the kernel takes not even the base.
    """
    standing = kernel.read().ruleset.tables
    filters = standing.get(FILTER, Table()).filters
    load = partial(_load, kernel, standing.keys(), kernel.flags if chosen.own_tables else frozenset())
    try:
        filtering, shaping = lastgood.load(chosen.state)
        if not filters:
            _load_filter(load, filtering)
    except (OSError, ValueError, KernelError) as fault:
        shaping = ""
        if not filters:
            _load_base(load, chosen, state, fault)
    else:
        if not filters:
            log.info("the last good ruleset stands")
    if filters:
        log.info("a ruleset stands already: it stays")
    if shaping and not any(chain.hook for chain in standing.get(SHAPER, Table()).chains.values()):
        _load_shaper(load, shaping)


def _load(kernel: Kernel, standing: Collection[str], flags: frozenset[str], family: str, text: str) -> None:
    """Load a table in the place of what there may be of it, in one transaction."""
    gone = f"delete table {family} {NAME}\n" if family in standing else ""
    kernel.apply(gone + flagged(text, flags))


def _load_filter(load: Callable[[str, str], None], filtering: str) -> None:
    """A local chain may name interfaces that are not there before there is a network."""
    try:
        load(FILTER, filtering)
    except KernelError as fault:
        named = by_name(filtering)
        if named == filtering:
            raise
        load(FILTER, named)
        log.warning("your local chain is loaded with its interfaces by their names: %s", fault)


def _load_shaper(load: Callable[[str, str], None], shaping: str) -> None:
    """Limits are attached to a NIC, which may come later: then whoever runs this again attaches them, or the daemon."""
    try:
        load(SHAPER, shaping)
    except KernelError as fault:
        log.warning("no rate limit is in force until nftsync runs: %s", fault)


def _load_base(load: Callable[[str, str], None], chosen: Config, state: Callable[[], State], fault: Exception) -> None:
    if isinstance(fault, FileNotFoundError):
        log.warning("there is no last good ruleset yet: the base is loaded")
    else:
        log.warning("the last good ruleset of %s can't be used: %s: the base is loaded", chosen.state, fault)
    base = _base(chosen, state())
    try:
        _load_filter(load, render(ruleset((), base)))
    except KernelError as complaint:  # it can only be the local chain's fault
        log.warning("the base is loaded without your local chain: %s", complaint)
        load(FILTER, render(ruleset((), replace(base, local_chain=""))))


def _base(chosen: Config, state: State) -> Settings:
    """Nothing in but ssh, if that was open when it was known last, and what the local chain says."""
    nic = chosen.public_nic or (state.spec.public_nic if state.spec else None)
    return Settings(public_nic=nic, enable_ssh=state.spec is None or state.spec.enable_ssh, local_chain=state.local_chain)
