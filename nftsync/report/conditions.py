"""The status of an Nft resource: conditions of each router, and a summary for all of them.

Every router writes its own entry in status.routers, and the summary in status.conditions. All routers
compute the same summary from the entries. Source: api-conventions.md of Kubernetes (conditions).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from nftsync.config import PoolMode
from nftsync.objects.names import Reason
from nftsync.objects.nft import AGREE, SUMMED, Condition, Confirmation, Figures, RouterStatus, shorten
from nftsync.plan.result import Outcome, SyncResult
from nftsync.policy.public import PublicSide
from nftsync.ruleset.settings import Settings


def conditions(result: SyncResult, stale: Mapping[str, str]) -> tuple[Condition, ...]:
    """The conditions of one router, most important first.

    stale: by source, why the last good settings, pools or Services are in use.
    """
    side = result.settings.side if result.settings else PublicSide()
    waits = result.message if result.outcome in (Outcome.WAITING, Outcome.FAILED) else side.absence
    chain = next((refusal.message for refusal in result.rejections if refusal.reason is Reason.INVALID_LOCAL_CHAIN), "")
    confirmed = result.confirming.state not in (Confirmation.WAITING, Confirmation.ROLLED_BACK)
    old = "; ".join(f"{source}: {why}" for source, why in sorted(stale.items()))
    pools = (
        "addresses are checked against MetalLB's pools"
        if result.guard.pools
        else f"no address is opened: {result.guard.no_pool or 'no pool of MetalLB counts'}"
    )
    return (
        _condition(
            "Ready",
            waits,
            ("Synced", "NicMissing" if waits == side.absence else "NotSynced"),
            "the kernel has the rules that the cluster asks for",
        ),
        Condition("Running", True, "Running", "nftsync runs"),
        _condition(
            "PoolsGuarded", _unguarded(result), ("Guarded" if result.guard.pools else "NoPools", "Unguarded"), pools
        ),
        _public(side, known=result.settings is not None),
        _condition("RateShaping", _unshaped(result.settings), ("Attached", "NotAttached"), "rate limits are in force"),
        _condition("LocalChainValid", chain, ("Valid", "Refused"), "the local chain is in force"),
        Condition("Confirmed", confirmed, result.confirming.state, shorten(str(result.confirming))),
        Condition(
            "Stale",
            bool(old),
            "LastGoodHolds" if old else "UpToDate",
            shorten(old or "settings, pools and Services are as in the cluster"),
        ),
    )


def _unguarded(result: SyncResult) -> str:
    """The reason why no pools limit the addresses to open; "" if they do."""
    if not result.pools_known:
        return "MetalLB's configuration is not read yet" if result.settings else "nothing is applied yet"
    if result.guard.guarded:
        return ""
    ignored = result.config.address_policy.pool_mode is PoolMode.IGNORED
    return f'pools = "{PoolMode.IGNORED}"' if ignored else "no MetalLB configuration was seen"


def _unshaped(settings: Settings | None) -> str:
    """The reason why no rate limit is in force; "" if they are."""
    if settings is None:
        return "nothing is applied yet"
    if not settings.enable_rateshape:
        return "enable_rateshape is false"
    if settings.limits_refused:
        return "the kernel refuses the rate limits; the earlier ones stay"
    return "" if settings.devices else settings.side.absence or "no public interface can carry them"


def _public(side: PublicSide, *, known: bool) -> Condition:
    """The interfaces that count as public, and what you may have forgotten."""
    wrong = "; ".join(filter(None, (side.absence, *side.warnings)))
    message = "; ".join(filter(None, (side.absence or f"public: {side}", *side.warnings)))
    return Condition(
        "PublicInterfaces",
        known and not wrong,
        ("NicMissing" if side.absence else "Doubtful" if wrong else "Known") if known else "NotSynced",
        shorten(message if known else "nothing is applied yet"),
    )


def stopped(router: RouterStatus) -> RouterStatus:
    """The entry of a router after its daemon has ended."""
    message = "nftsync was stopped; its last ruleset stays"
    ends = {kind: Condition(kind, False, "Stopped", message) for kind in ("Ready", "Running")}
    return replace(router, conditions=tuple(ends.get(condition.type, condition) for condition in router.conditions))


def _condition(kind: str, why_not: str, reasons: tuple[str, str], good: str) -> Condition:
    return Condition(kind, not why_not, reasons[bool(why_not)], shorten(why_not or good))


def summary(routers: Sequence[RouterStatus], *, disagree: bool) -> tuple[Condition, ...]:
    """The summary for all routers. disagree: True if their hashes have differed for long."""
    written = {condition.type for router in routers for condition in router.conditions}
    kinds = [kind for kind in SUMMED if kind in written]  # ignore foreign condition types in an entry
    hashes = ", ".join(f"{router.name} {router.hash[:8]}" for router in routers)
    message = shorten(f"rulesets differ: {hashes}") if disagree else "the routers' rulesets are the same"
    agreement = Condition(AGREE, not disagree, "Differ" if disagree else "Agree", message)
    return (*(_summed(kind, routers) for kind in kinds), agreement)


def _summed(kind: str, routers: Sequence[RouterStatus]) -> Condition:
    """The bad conditions of all routers as one; else the condition of the first router."""
    bad = kind == "Stale"  # the only condition that is bad if true
    conditions = [(router.name, condition) for router in routers if (condition := router.condition(kind))]
    wrong = [(name, condition) for name, condition in conditions if condition.holds is bad]
    if not wrong:
        return replace(conditions[0][1], since="")
    message = shorten("; ".join(f"{name}: {condition.message}" for name, condition in wrong))
    return Condition(kind, bad, wrong[0][1].reason, message)


def stamped(conditions: Iterable[Condition], before: Iterable[Condition], now: str) -> tuple[Condition, ...]:
    """Conditions with the time of their last change; an unchanged one keeps the time of `before`."""
    since = {(condition.type, condition.holds): condition.since for condition in before}
    return tuple(
        replace(condition, since=since.get((condition.type, condition.holds)) or now) for condition in conditions
    )


def describe(router: RouterStatus, together: Sequence[Condition], routers: Sequence[RouterStatus]) -> dict[str, object]:
    """The status fields that one router applies. routers: all of them, for the figures at the top."""
    figures = Figures.of(routers)
    return {
        "services": figures.services,
        "pinholes": figures.pinholes,
        "rejected": figures.rejected,
        "conditions": [_described(condition, figures.generation) for condition in together],
        "routers": [
            {
                "name": router.name,
                "version": router.version,
                "observedGeneration": router.generation,
                **({"hash": router.hash, "lastChange": router.last_change} if router.hash else {}),
                "services": router.services,
                "pinholes": router.pinholes,
                "rejected": router.rejected,
                "conditions": [_described(condition, router.generation) for condition in router.conditions],
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
