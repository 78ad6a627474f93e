"""What came of one sync: what the loop, the status, Events, metrics and the log are told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nftsync.plan.changes import Change


class Outcome(StrEnum):
    """How a sync ended."""

    WAITING = "waiting"  # a list is not complete yet, or there are no settings: no pinhole was touched
    UNCHANGED = "unchanged"
    APPLIED = "applied"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What one sync did.

    message: for people, "" if there is nothing to say.  changes: what it was for each Service.  since: when the earliest of
    its events was received (monotonic seconds), None if it was not started by one.  drift: whether the kernel had been changed by
    somebody else.  listed: whether every list that it needs was complete.
    """

    outcome: Outcome
    message: str = ""
    changes: tuple[Change, ...] = ()
    since: float | None = None
    drift: bool = False
    listed: bool = True
