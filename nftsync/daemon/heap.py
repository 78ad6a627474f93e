"""Return unused memory to the system."""

from __future__ import annotations

import ctypes
import gc

_LIBC = ctypes.CDLL(None)


def give_back() -> None:
    """Return unused memory to the system.

    Errors inside pyroute2 refer to themselves and to the variables of their callers. Only Python's
    collector finds such cycles. libnftables needs ten megabytes and more for a large ruleset, and
    malloc(3) keeps them after free(3).
    """
    gc.collect()
    _LIBC.malloc_trim(0)


def settle_in() -> None:
    """Call it once, at the end of the start.

    The objects of that moment live as long as the process: the collector skips them from now on.
    """
    give_back()
    gc.freeze()
