"""Notices: each one becomes a log line, and an Event on its object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from nftsync.objects.names import ObjectRef, Reason, Rejection
from nftsync.objects.status import Confirmation
from nftsync.plan.result import Change
from nftsync.policy.pinholes import Pinhole

_NAMED = 8  # the most addresses, and ports of each, that a sentence names


class EventReason(StrEnum):
    """The topic of a notice. The list is fixed: Events use it as their reason."""

    OPENED = "Opened"
    CLOSED = "Closed"
    CHANGED = "Changed"
    LIMIT_CHANGED = "LimitChanged"
    REJECTED = "Rejected"
    ACCEPTED = "Accepted"
    SETTINGS_REFUSED = "SettingsRefused"
    LOCAL_CHAIN_REFUSED = "LocalChainRefused"
    POOLS_REFUSED = "PoolsRefused"
    DRIFT_REPAIRED = "DriftRepaired"
    LIST_DOUBTED = "ListDoubted"
    MANAGEMENT_CUT = "ManagementCut"
    CONFIRMATION_AWAITED = "ConfirmationAwaited"
    SETTINGS_CONFIRMED = "SettingsConfirmed"
    SETTINGS_ROLLED_BACK = "SettingsRolledBack"


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that happened. about: its object; None for the whole router."""

    about: ObjectRef | None
    topic: EventReason
    message: str
    warning: bool = False


_TOPICS = {
    Reason.INVALID_SETTINGS: EventReason.SETTINGS_REFUSED,
    Reason.MISSING_SETTINGS: EventReason.SETTINGS_REFUSED,
    Reason.INVALID_LOCAL_CHAIN: EventReason.LOCAL_CHAIN_REFUSED,
    Reason.INVALID_POOLS: EventReason.POOLS_REFUSED,
}


_CONFIRMATIONS = {
    Confirmation.NOT_NEEDED: EventReason.MANAGEMENT_CUT,
    Confirmation.WAITING: EventReason.CONFIRMATION_AWAITED,
    Confirmation.CONFIRMED: EventReason.SETTINGS_CONFIRMED,
    Confirmation.ROLLED_BACK: EventReason.SETTINGS_ROLLED_BACK,
}


def of_confirmation(nft: ObjectRef | None, state: Confirmation, message: str) -> Notice:
    """A notice about settings that can lock you out of the router, and their confirmation."""
    return Notice(nft, _CONFIRMATIONS[state], message, warning=state is not Confirmation.CONFIRMED)


def of_changes(changes: Iterable[Change]) -> Iterator[Notice]:
    """One notice for each Service and kind of change."""
    for change in changes:
        if change.opened:
            yield Notice(change.service, EventReason.OPENED, f"opened {_pinholes(change.opened)}{_limit(change.opened)}")
        if change.closed:
            yield Notice(change.service, EventReason.CLOSED, f"closed {_pinholes(change.closed)}")
        if change.limit_changed:
            limit = _limit(change.altered) or ", not limited any more"
            yield Notice(change.service, EventReason.LIMIT_CHANGED, f"changed {_pinholes(change.altered)}{limit}")
        elif change.altered:
            yield Notice(change.service, EventReason.CHANGED, f"changed {_pinholes(change.altered)}: {_sources(change.altered[0])}")


def of_rejections(before: Iterable[Rejection], after: Iterable[Rejection]) -> Iterator[Notice]:
    """One notice for each new or withdrawn rejection."""
    held, found = ({_same(each): each for each in rejections} for rejections in (before, after))
    for same, rejection in found.items():
        if same not in held:
            topic = _TOPICS.get(rejection.reason, EventReason.REJECTED)
            yield Notice(rejection.object, topic, f"rejected: {rejection.reason}: {rejection.message}", warning=True)
    for same, rejection in held.items():
        if same not in found:
            yield Notice(rejection.object, EventReason.ACCEPTED, f"no longer rejected: {rejection.reason}: {rejection.message}")


def _same(rejection: Rejection) -> tuple[ObjectRef, Reason, str]:
    """A key: rejections with the same key make one notice."""
    return rejection.object, rejection.reason, rejection.part or rejection.message


def _pinholes(pinholes: Sequence[Pinhole]) -> str:
    """ "192.0.2.1 tcp 80, tcp 443; 2001:db8::1 tcp 80", shortened."""
    ports: dict[str, list[str]] = {}
    for pinhole in pinholes:
        address, protocol, port = pinhole.key.split(" . ")
        ports.setdefault(address, []).append(f"{protocol} {port}")
    shown = [f"{address} {', '.join(each[:_NAMED])}{_more(each)}" for address, each in ports.items()]
    return "; ".join(shown[:_NAMED]) + _more(shown)


def _more(entries: Sequence[str]) -> str:
    return f" and {len(entries) - _NAMED} more" if len(entries) > _NAMED else ""


def _limit(pinholes: Sequence[Pinhole]) -> str:
    limit = pinholes[0].limit
    return f", each limited to {limit}" if limit else ""


def _sources(pinhole: Pinhole) -> str:
    if pinhole.sources is None:
        return "open to everybody"
    shown = [str(network) for network in pinhole.sources]
    return f"open to {', '.join(shown[:_NAMED])}{_more(shown)}" if shown else "open to nobody of this address family"
