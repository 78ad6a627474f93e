"""The result of a sync: the source of the status, Events, metrics, the log and all answers."""

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

    WAITING = "waiting"  # a list is incomplete, or there are no settings: the memory counts
    UNCHANGED = "unchanged"
    APPLIED = "applied"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SyncResult:
    """The actions of one sync, and the state after it.

    message: for people, "" if there is nothing to say.  changes: by Service.
    since: when the earliest of its events arrived (monotonic seconds), None without an event.
    drift: whether others had changed the kernel's tables.

    snapshot: the inputs of the plan, None before the first one.
    settings: the kernel's settings, None before it accepted any.
    pinholes: the open pinholes, by key.  index: their owners and the waiting Services. The next sync
    changes both in place.
    nft: the last seen version of the resource.
    rejections: all present rejections, the same tuple while nothing changed.
    filters: whether tables of ours filter.
    hash: identifies the common part of the rulesets of one cluster's routers.
    as_of: last time at which the cluster asked for the remembered rules, RFC 3339, "" for never.
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
        """Whether every list that the sync needs was complete."""
        return self.snapshot is not None and not self.snapshot.missing

    @property
    def remembered(self) -> dict[str, str]:
        """The inputs that come from the memory until their list is complete; each with its age."""
        s = self.snapshot
        if s is None:
            return {}
        origins = {"services": s.services, "settings": s.spec.origin, "pools": s.pools.origin}
        said = f"remembered since {self.as_of}" if self.as_of else "remembered since an unknown time"
        return {what: said for what, origin in origins.items() if origin is Origin.REMEMBERED}

    @property
    def pools_known(self) -> bool:
        """Whether nftsync knows the pools (listed or remembered), or ignores them."""
        return self.snapshot is not None and self.snapshot.pools.origin is not Origin.UNKNOWN

    @property
    def config(self) -> Config:
        """The configuration of the plan; the defaults before the first one."""
        return self.snapshot.config if self.snapshot else Config()

    @property
    def local(self) -> Local:
        """The router's own addresses and networks, as far as they are known."""
        return (self.snapshot and self.snapshot.interfaces.local) or Local()

    @property
    def guard(self) -> Guard:
        """The guard that judges addresses."""
        return self.snapshot.guard if self.snapshot else UNGUARDED

    @property
    def wanted(self) -> Ruleset | None:
        """The wanted ruleset; None while unknown."""
        if self.snapshot is None or self.settings is None:
            return None
        return wanted_ruleset(self.snapshot, self.index.pinholes.values(), self.settings)
