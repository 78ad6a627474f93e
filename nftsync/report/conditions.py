"""The status of an Nft resource: how each router is doing, and what holds for all of them together.

Every router writes its own entry of status.routers and, because somebody has to, the summary in status.conditions, which any
router works out to the same from the entries of all. Source: api-conventions.md of Kubernetes (conditions).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nftsync.objects.status import AGREE, SUMMED, Condition, Confirmation, Figures, RouterStatus, shorten


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
            Condition("Stale", bool(self.stale), "LastGoodHolds" if self.stale else "UpToDate", shorten(self._stale())),
        )

    def _guarded(self) -> Condition:
        if self.no_pools:
            return Condition("PoolsGuarded", True, "NoPools", "no pool of MetalLB's counts, so no address is opened")
        guarded = "addresses are checked against MetalLB's pools"
        return _condition("PoolsGuarded", self.unguarded, ("Guarded", "Unguarded"), guarded)

    def _confirmed(self) -> Condition:
        state, message = self.confirmation
        return Condition("Confirmed", state not in (Confirmation.WAITING, Confirmation.ROLLED_BACK), state, shorten(message))

    def _stale(self) -> str:
        return "; ".join(f"{source}: {why}" for source, why in self.stale) or "everything is as it stands in the cluster"


def stopped(router: RouterStatus) -> RouterStatus:
    """The same router when its daemon has ended."""
    ends = {kind: Condition(kind, False, "Stopped", "nftsync was stopped; its last ruleset stays") for kind in ("Ready", "Running")}
    return replace(router, conditions=tuple(ends.get(each.type, each) for each in router.conditions))


def _condition(kind: str, why_not: str, reasons: tuple[str, str], good: str) -> Condition:
    return Condition(kind, not why_not, reasons[bool(why_not)], shorten(why_not or good))


def summary(routers: Sequence[RouterStatus], *, disagree: bool) -> tuple[Condition, ...]:
    """What holds for all. disagree: whether their hashes have differed for long."""
    written = {each.type for router in routers for each in router.conditions}
    kinds = [kind for kind in SUMMED if kind in written]  # whoever writes others into an entry gets them into no summary
    hashes = ", ".join(f"{router.name} {router.hash[:8]}" for router in routers)
    message = shorten(f"rulesets differ: {hashes}") if disagree else "the routers' rulesets are the same"
    agreement = Condition(AGREE, not disagree, "Differ" if disagree else "Agree", message)
    return (*(_summed(kind, routers) for kind in kinds), agreement)


def _summed(kind: str, routers: Sequence[RouterStatus]) -> Condition:
    """The condition of the first router where it is bad, or of the first one if it is good everywhere."""
    bad = kind == "Stale"  # the one that is bad if it holds
    found = [(router.name, each) for router in routers if (each := router.condition(kind))]
    wrong = [(name, each) for name, each in found if each.holds is bad]
    if not wrong:
        return replace(found[0][1], since="")
    return Condition(kind, bad, wrong[0][1].reason, shorten("; ".join(f"{name}: {each.message}" for name, each in wrong)))


def stamped(conditions: Iterable[Condition], before: Iterable[Condition], now: str) -> tuple[Condition, ...]:
    """Conditions with the time of their last change: that of `before` where it says the same."""
    held = {each.type: each for each in before}
    return tuple(
        replace(each, since=held[each.type].since or now)
        if each.type in held and held[each.type].holds is each.holds
        else replace(each, since=now)
        for each in conditions
    )


# --- to the API ---------------------------------------------------------------------------------------


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
