"""Memory that was needed for a moment only."""

from __future__ import annotations

import ctypes
import gc

_LIBC = ctypes.CDLL(None)


def give_back() -> None:
    """Give back to the system what nobody needs any more.

    An error inside pyroute2 refers to itself and to all that its callers knew, which only Python's collector finds; and of the
    ten megabytes and more that libnftables needs for a large ruleset, malloc(3) keeps what was freed.
    """
    gc.collect()
    _LIBC.malloc_trim(0)


def settle_in() -> None:
    """As give_back(), once, at the end of the start: what is there by then is there to stay, and not looked through again."""
    give_back()
    gc.freeze()
