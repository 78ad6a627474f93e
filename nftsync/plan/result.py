"""What came of one sync: all that the loop, the status, Events, metrics, the log and those who ask are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from nftsync.config import Config, Filters
from nftsync.objects.address import Local
from nftsync.objects.names import Rejection
from nftsync.objects.nft import Nft
from nftsync.plan.changes import Change
from nftsync.plan.plan import wanted_ruleset
from nftsync.plan.snapshot import Origin, Snapshot
from nftsync.policy.confirm import Confirming
from nftsync.policy.guard import UNGUARDED, Guard
from nftsync.policy.pinholes import Desired, Pinhole
from nftsync.ruleset.tables import Ruleset, Settings


class Outcome(StrEnum):
    """How a sync ended."""

    WAITING = "waiting"  # a list is not complete yet, or there are no settings: what is remembered counts
    UNCHANGED = "unchanged"
    APPLIED = "applied"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What one sync did, and how things stand after it.

    message: for people, "" if there is nothing to say.  changes: what it was for each Service.  since: when the earliest of
    its events was received (monotonic seconds), None if it was not started by one.  drift: whether the kernel had been changed by
    somebody else.

    snapshot: what it was planned with, None before the first one.  settings: those that the kernel has, None before it took any.
    pinholes: those that are open, by key.  index: whose they are, and who waits; it and the pinholes change with the next sync.
    nft: the resource as it was last seen.  rejections: everything that is refused, the same tuple while nothing changed.
    filters: whether tables of ours keep the door shut.  hash: of what routers of one cluster have in common.
    as_of: when the cluster was last known to ask for what is remembered, RFC 3339, "" if nothing is.
    """

    outcome: Outcome
    message: str = ""
    changes: tuple[Change, ...] = ()
    since: float | None = None
    drift: bool = False
    snapshot: Snapshot | None = None
    settings: Settings | None = None
    pinholes: Mapping[str, Pinhole] = field(default_factory=dict)
    index: Desired = field(default_factory=lambda: Desired(Filters()))
    nft: Nft | None = None
    confirming: Confirming = field(default_factory=Confirming)
    rejections: tuple[Rejection, ...] = ()
    filters: bool = False
    hash: str = ""
    as_of: str = ""

    @property
    def listed(self) -> bool:
        """Whether every list that it needs was complete."""
        return self.snapshot is not None and not self.snapshot.missing

    @property
    def remembered(self) -> dict[str, str]:
        """What counts as it was accepted last, because the list of it is not complete yet; of each a sentence with its age."""
        s = self.snapshot
        if s is None:
            return {}
        origins = {"services": s.services, "settings": s.spec.origin, "pools": s.pools.origin}
        said = f"remembered since {self.as_of}" if self.as_of else "remembered since an unknown time"
        return {what: said for what, origin in origins.items() if origin is Origin.REMEMBERED}

    @property
    def pools_known(self) -> bool:
        """Whether it is known which pools there are, listed or remembered, or that they do not count."""
        return self.snapshot is not None and self.snapshot.pools.origin is not Origin.UNKNOWN

    @property
    def config(self) -> Config:
        """The one that it was planned with; the defaults before that."""
        return self.snapshot.config if self.snapshot else Config()

    @property
    def local(self) -> Local:
        """The router's own addresses and networks, as far as they are known."""
        return (self.snapshot and self.snapshot.interfaces.local) or Local()

    @property
    def guard(self) -> Guard:
        """What judges addresses."""
        return self.snapshot.guard if self.snapshot else UNGUARDED

    @property
    def wanted(self) -> Ruleset | None:
        """The ruleset as it should be in the kernel; None while that is not known."""
        if self.snapshot is None or self.settings is None:
            return None
        return wanted_ruleset(self.snapshot, self.index.pinholes.values(), self.settings)
