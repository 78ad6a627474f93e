"""The status of an Nft resource: how each router is doing, and what holds for all of them together.

Every router writes its own entry of status.routers and, because somebody has to, the summary in status.conditions, which any
router works out to the same from the entries of all. Source: api-conventions.md of Kubernetes (conditions).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from nftsync.objects.service import Malformed, mapping, sequence

_LONGEST = 512  # characters of a message
_MANY = 64  # routers, and conditions of each, that are read
_AGREE = "RoutersAgree"
_SUMMED = ("Ready", "Running", "PoolsGuarded", "RateShaping", "LocalChainValid", "Confirmed", "Stale")


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that holds or does not. since: RFC 3339, when `holds` last changed; "" while nobody has written it."""

    type: str
    holds: bool
    reason: str
    message: str = ""
    since: str = ""


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """One router. hash: identifies what the routers of a cluster have in common of their rulesets."""

    name: str
    version: str = ""
    generation: int = 0
    hash: str = ""
    last_change: str = ""
    services: int = 0
    pinholes: int = 0
    rejected: int = 0
    conditions: tuple[Condition, ...] = ()

    def condition(self, kind: str) -> Condition | None:
        return next((each for each in self.conditions if each.type == kind), None)


@dataclass(frozen=True, slots=True)
class Figures:
    """What stands on top, of all routers. generation: the one that all of them have taken up."""

    services: int = 0
    pinholes: int = 0
    rejected: int = 0
    generation: int = 0

    @classmethod
    def of(cls, routers: Sequence[RouterStatus]) -> Figures:
        """routers: at least one."""
        return cls(
            max(each.services for each in routers),
            max(each.pinholes for each in routers),
            max(each.rejected for each in routers),
            min(each.generation for each in routers),
        )


@dataclass(frozen=True, slots=True)
class NftStatus:
    """What stands in the cluster."""

    routers: tuple[RouterStatus, ...] = ()
    conditions: tuple[Condition, ...] = ()
    figures: Figures = field(default_factory=Figures)

    def condition(self, kind: str) -> Condition | None:
        return next((each for each in self.conditions if each.type == kind), None)

    @property
    def disagree(self) -> bool:
        """Whether some router has said that rulesets differ."""
        agreement = self.condition(_AGREE)
        return agreement is not None and not agreement.holds


class Confirmation(StrEnum):
    """How it stands with the settings that the Nft resource asks for."""

    NOT_NEEDED = "NotNeeded"  # they cut off nobody, or nobody wants to be asked (confirm_seconds = 0)
    CONFIRMED = "Confirmed"
    WAITING = "Waiting"
    ROLLED_BACK = "RolledBack"


@dataclass(frozen=True, slots=True)
class Standing:
    """What conditions are worked out from. Each text is why something does not hold, "" if it does.

    stale: by source, why the last good settings, pools or Services hold instead of the present ones.
    no_pools: whether addresses are guarded, and no pool lets any pass.
    confirmation: how it stands with the settings, also in words.
    """

    not_ready: str = ""
    unguarded: str = ""
    unshaped: str = ""
    local_chain: str = ""
    stale: tuple[tuple[str, str], ...] = ()
    no_pools: bool = False
    confirmation: tuple[Confirmation, str] = (Confirmation.NOT_NEEDED, "the settings cut off nobody")

    def conditions(self) -> tuple[Condition, ...]:
        """In the order in which people ask."""
        return (
            _condition("Ready", self.not_ready, ("Synced", "NotSynced"), "the kernel holds what the cluster asks for"),
            Condition("Running", True, "Running", "nftsync runs"),
            self._guarded(),
            _condition("RateShaping", self.unshaped, ("Attached", "NotAttached"), "rate limits are in force"),
            _condition("LocalChainValid", self.local_chain, ("Valid", "Refused"), "the local chain is in force"),
            self._confirmed(),
            Condition("Stale", bool(self.stale), "LastGoodHolds" if self.stale else "UpToDate", _shorten(self._stale())),
        )

    def _guarded(self) -> Condition:
        if self.no_pools:
            return Condition("PoolsGuarded", True, "NoPools", "no pool of MetalLB's counts, so no address is opened")
        guarded = "addresses are checked against MetalLB's pools"
        return _condition("PoolsGuarded", self.unguarded, ("Guarded", "Unguarded"), guarded)

    def _confirmed(self) -> Condition:
        state, message = self.confirmation
        return Condition("Confirmed", state not in (Confirmation.WAITING, Confirmation.ROLLED_BACK), state, _shorten(message))

    def _stale(self) -> str:
        return "; ".join(f"{source}: {why}" for source, why in self.stale) or "everything is as it stands in the cluster"


def stopped(router: RouterStatus) -> RouterStatus:
    """The same router when its daemon has ended."""
    ends = {kind: Condition(kind, False, "Stopped", "nftsync was stopped; its last ruleset stays") for kind in ("Ready", "Running")}
    return replace(router, conditions=tuple(ends.get(each.type, each) for each in router.conditions))


def _condition(kind: str, why_not: str, reasons: tuple[str, str], good: str) -> Condition:
    return Condition(kind, not why_not, reasons[bool(why_not)], _shorten(why_not or good))


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def summary(routers: Sequence[RouterStatus], *, disagree: bool) -> tuple[Condition, ...]:
    """What holds for all. disagree: whether their hashes have differed for long."""
    written = {each.type for router in routers for each in router.conditions}
    kinds = [kind for kind in _SUMMED if kind in written]  # whoever writes others into an entry gets them into no summary
    hashes = ", ".join(f"{router.name} {router.hash[:8]}" for router in routers)
    message = _shorten(f"rulesets differ: {hashes}") if disagree else "the routers' rulesets are the same"
    agreement = Condition(_AGREE, not disagree, "Differ" if disagree else "Agree", message)
    return (*(_summed(kind, routers) for kind in kinds), agreement)


def _summed(kind: str, routers: Sequence[RouterStatus]) -> Condition:
    """The condition of the first router where it is bad, or of the first one if it is good everywhere."""
    bad = kind == "Stale"  # the one that is bad if it holds
    found = [(router.name, each) for router in routers if (each := router.condition(kind))]
    wrong = [(name, each) for name, each in found if each.holds is bad]
    if not wrong:
        return replace(found[0][1], since="")
    return Condition(kind, bad, wrong[0][1].reason, _shorten("; ".join(f"{name}: {each.message}" for name, each in wrong)))


def stamped(conditions: Iterable[Condition], before: Iterable[Condition], now: str) -> tuple[Condition, ...]:
    """Conditions with the time of their last change: that of `before` where it says the same."""
    held = {each.type: each for each in before}
    return tuple(
        replace(each, since=held[each.type].since or now)
        if each.type in held and held[each.type].holds is each.holds
        else replace(each, since=now)
        for each in conditions
    )


# --- to and from the API ------------------------------------------------------------------------------


def describe(router: RouterStatus, together: Sequence[Condition], routers: Sequence[RouterStatus]) -> dict[str, object]:
    """The fields of the status that one router applies. routers: all of them, for the figures that stand on top."""
    figures = Figures.of(routers)
    return {
        "services": figures.services,
        "pinholes": figures.pinholes,
        "rejected": figures.rejected,
        "conditions": [_described(each, figures.generation) for each in together],
        "routers": [
            {
                "name": router.name,
                "version": router.version,
                "observedGeneration": router.generation,
                **({"hash": router.hash, "lastChange": router.last_change} if router.hash else {}),
                "services": router.services,
                "pinholes": router.pinholes,
                "rejected": router.rejected,
                "conditions": [_described(each, router.generation) for each in router.conditions],
            }
        ],
    }


def _described(condition: Condition, generation: int) -> dict[str, object]:
    return {
        "type": condition.type,
        "status": str(condition.holds),
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": condition.since,
        "observedGeneration": generation,
    }


def parse_status(raw: object) -> NftStatus:
    """What stands in an Nft resource's status. Whoever may write it may write anything: what is no entry of ours is passed over."""
    try:
        status = mapping(raw, "status")
        routers = sequence(status.get("routers"), "status.routers")[:_MANY]
        return NftStatus(
            tuple(sorted((found for each in routers if (found := _router(each))), key=lambda router: router.name)),
            _conditions(status.get("conditions")),
            _figures(status),
        )
    except Malformed:
        return NftStatus()


def _figures(status: Mapping[str, object]) -> Figures:
    """generation: as the conditions say that routers write, not those of others."""
    conditions = (mapping(each, "a condition") for each in sequence(status.get("conditions"), "conditions")[:_MANY])
    observed = [_number(each, "observedGeneration") for each in conditions if each.get("type") in (*_SUMMED, _AGREE)]
    return Figures(
        _number(status, "services"), _number(status, "pinholes"), _number(status, "rejected"), min(observed, default=0)
    )


def _router(raw: object) -> RouterStatus | None:
    try:
        entry = mapping(raw, "an entry of status.routers")
        conditions = _conditions(entry.get("conditions"))
    except Malformed:
        return None
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        return None
    return RouterStatus(
        name,
        _text(entry, "version"),
        _number(entry, "observedGeneration"),
        _text(entry, "hash"),
        _text(entry, "lastChange"),
        _number(entry, "services"),
        _number(entry, "pinholes"),
        _number(entry, "rejected"),
        conditions,
    )


def _conditions(raw: object) -> tuple[Condition, ...]:
    conditions = (mapping(each, "a condition") for each in sequence(raw, "conditions")[:_MANY])
    return tuple(
        Condition(_text(each, "type"), each.get("status") == "True", _text(each, "reason"), _text(each, "message"),
                  _text(each, "lastTransitionTime"))
        for each in conditions
    )  # fmt: skip


def _text(entry: Mapping[str, object], key: str) -> str:
    value = entry.get(key)
    return _shorten(value) if isinstance(value, str) else ""


def _number(entry: Mapping[str, object], key: str) -> int:
    value = entry.get(key)
    return value if type(value) is int and 0 <= value < 1 << 63 else 0
