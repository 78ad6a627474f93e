"""The result of a sync: the source of the status, Events, metrics, the log and all answers."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b

from nftsync.config import Config, Filters, PoolMode
from nftsync.objects.address import AddressSet, Local
from nftsync.objects.names import ObjectRef, Reason, Rejection
from nftsync.objects.nft import Nft
from nftsync.plan.closed import Cut
from nftsync.plan.plan import ChainInUse, wanted_ruleset
from nftsync.plan.snapshot import Origin, Snapshot
from nftsync.policy.confirm import Confirming
from nftsync.policy.guard import UNGUARDED, Guard
from nftsync.policy.pinholes import Pinhole, PinholeIndex
from nftsync.ruleset.limits import Bound, limits_at
from nftsync.ruleset.model import Ruleset, Table
from nftsync.ruleset.settings import Settings


@dataclass(frozen=True, slots=True)
class Change:
    """The changed pinholes of one Service.

    opened: new pinholes.  closed: removed pinholes, as they were.
    altered: pinholes with other sources, another limit, or another owner, as they are now.
    """

    service: ObjectRef
    opened: tuple[Pinhole, ...] = ()
    closed: tuple[Pinhole, ...] = ()
    altered: tuple[Pinhole, ...] = ()
    limit_changed: bool = False


def changes_between(before: Mapping[str, Pinhole], after: Mapping[str, Pinhole]) -> tuple[Change, ...]:
    """The changes from `before` to `after`, ordered by Service name. Both map keys to pinholes."""
    pairs: dict[ObjectRef, list[tuple[Pinhole | None, Pinhole | None]]] = defaultdict(list)
    for key in sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key)):
        pairs[(after.get(key) or before[key]).ref].append((before.get(key), after.get(key)))
    return tuple(
        Change(
            service,
            opened=tuple(new for old, new in changed if new and not old),
            closed=tuple(old for old, new in changed if old and not new),
            altered=tuple(new for old, new in changed if old and new),
            limit_changed=any(
                old and new and (old.limit, old.limit_egress) != (new.limit, new.limit_egress) for old, new in changed
            ),
        )
        for service, changed in sorted(pairs.items(), key=lambda item: item[0].name)
    )


def fingerprint(pinholes: Iterable[Pinhole]) -> int:
    """A number that identifies a set of pinholes, independent of order.

    The fingerprints of disjoint parts add up to the fingerprint of the whole.
    """
    texts = (f"{pinhole.key} {pinhole.sources} {pinhole.limit}{pinhole.limit_egress or ''}" for pinhole in pinholes)
    return sum(int.from_bytes(blake2b(text.encode(), digest_size=16).digest()) for text in texts)


def summary(changes: Collection[Change]) -> str:
    """One line with the numbers of opened, closed and changed pinholes."""
    counts = {
        "opened": sum(len(change.opened) for change in changes),
        "closed": sum(len(change.closed) for change in changes),
        "changed": sum(len(change.altered) for change in changes),
    }
    return "pinholes: " + (", ".join(f"{count} {verb}" for verb, count in counts.items() if count) or "none changed")


@dataclass(slots=True)
class Applied:
    """The accepted tables, pinholes and settings.

    tables: None while unknown.  settings: None before the first transaction.
    fingerprint: of the pinholes.  limits: of the pinholes, by address.
    """

    tables: Mapping[str, Table] | None = None
    pinholes: dict[str, Pinhole] = field(default_factory=dict)
    settings: Settings | None = None
    fingerprint: int = 0
    limits: dict[str, Counter[Bound]] = field(default_factory=dict)

    @classmethod
    def of(cls, tables: Mapping[str, Table], pinholes: dict[str, Pinhole], settings: Settings) -> "Applied":
        holes = pinholes.values()
        return cls(tables, pinholes, settings, fingerprint(holes), limits_at(holes))

    def limits_beside(self, before: Mapping[str, Pinhole], after: Mapping[str, Pinhole]) -> dict[str, Counter[Bound]]:
        """The limits of the other pinholes at the same addresses, if `after` takes the place of `before`."""
        own, nothing = limits_at(before.values()), Counter[Bound]()
        addresses = {hole.address for hole in (*before.values(), *after.values())}
        return {address: self.limits[address] - own.get(address, nothing) for address in addresses & self.limits.keys()}

    def replace(self, before: Mapping[str, Pinhole], after: Mapping[str, Pinhole]) -> None:
        """Record that the kernel accepted the pinholes `after` in place of `before`."""
        added = limits_at(after.values())
        for address, others in self.limits_beside(before, after).items():
            self.limits[address] = others + added.pop(address, Counter())
            if not self.limits[address]:
                del self.limits[address]
        self.limits.update(added)
        for key in before:
            del self.pinholes[key]
        self.pinholes.update(after)
        self.fingerprint += fingerprint(after.values()) - fingerprint(before.values())


def refused(
    s: Snapshot, nft: Nft | None, chain: ChainInUse, pools: Iterable[Rejection], index: PinholeIndex
) -> Iterator[Rejection]:
    """nft: the last seen version of the resource.  pools: the rejections of MetalLB's objects."""
    config = s.config
    if nft is not None:
        yield from nft.rejections
    elif s.spec.listed:
        stays = "the last good settings stay" if s.spec.value else "nftsync applies nothing until you create one"
        yield Rejection(
            ObjectRef("Nft", str(config.nft)), Reason.MISSING_SETTINGS, f"there is no such resource; {stays}"
        )
    if chain.error:
        yield Rejection(
            ObjectRef("File", str(config.local_chain)), Reason.INVALID_LOCAL_CHAIN, f"{chain.error}; {chain.instead}"
        )
    if config.address_policy.pool_mode is not PoolMode.IGNORED:
        yield from pools
    for rejection in index.rejections():
        # While the pools are unknown, nobody knows whether an address is outside of them.
        if s.pools.origin is not Origin.UNKNOWN or rejection.reason is not Reason.OUTSIDE_POOLS:
            yield rejection


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
    untracked: addresses that bypass connection tracking since this sync.

    snapshot: the inputs of the plan, None before the first one.
    settings: the kernel's settings, None before it accepted any.
    pinholes: the open pinholes, by key.  closed: the closed endpoints, by key, with the time of their
    closing.  index: the pinholes' owners and the waiting Services. The next sync changes all three in place.
    cut: connections to end in conntrack.
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
    untracked: AddressSet = field(default_factory=AddressSet)
    snapshot: Snapshot | None = None
    settings: Settings | None = None
    pinholes: Mapping[str, Pinhole] = field(default_factory=dict)
    closed: Mapping[str, int] = field(default_factory=dict)
    index: PinholeIndex = field(default_factory=lambda: PinholeIndex((), Filters()))
    cut: Cut = field(default_factory=dict)
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
        origins = {"services": s.services, "settings": s.spec.origin, "pools": s.pools.origin} if s else {}
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
        return (
            wanted_ruleset(self.snapshot, self.index.pinholes.values(), self.closed, self.settings)
            if self.snapshot and self.settings
            else None
        )
