"""The status of an Nft resource in the cluster: an entry for each router, and a summary of all.

Everybody with the right to write it can write anything into it.
Source: api-conventions.md of Kubernetes (conditions).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from nftsync.objects.names import Malformed, mapping, sequence

_LONGEST = 512  # characters of a message
_MANY = 64  # the most routers, and the most conditions of each, that nftsync reads
AGREE = "RoutersAgree"
SUMMED = ("Ready", "Running", "PoolsGuarded", "RateShaping", "LocalChainValid", "Confirmed", "Stale")


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that holds or does not.

    since: RFC 3339, time of the last change of `holds`; "" before anybody has written it.
    """

    type: str
    holds: bool
    reason: str
    message: str = ""
    since: str = ""


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """One router. hash: identifies the common part of the rulesets of a cluster's routers."""

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
        return next((condition for condition in self.conditions if condition.type == kind), None)


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of all routers together. generation: the last one that all of them have taken."""

    services: int = 0
    pinholes: int = 0
    rejected: int = 0
    generation: int = 0

    @classmethod
    def of(cls, routers: Sequence[RouterStatus]) -> Figures:
        """routers: at least one."""
        return cls(
            max(router.services for router in routers),
            max(router.pinholes for router in routers),
            max(router.rejected for router in routers),
            min(router.generation for router in routers),
        )


@dataclass(frozen=True, slots=True)
class NftStatus:
    """The whole status."""

    routers: tuple[RouterStatus, ...] = ()
    conditions: tuple[Condition, ...] = ()
    figures: Figures = field(default_factory=Figures)

    @property
    def disagree(self) -> bool:
        """Whether a router has reported that rulesets differ."""
        return next((not condition.holds for condition in self.conditions if condition.type == AGREE), False)


class Confirmation(StrEnum):
    """The state of the settings that the Nft resource asks for."""

    NOT_NEEDED = "NotNeeded"  # they cannot lock anybody out, or confirm_seconds is 0
    CONFIRMED = "Confirmed"
    WAITING = "Waiting"
    ROLLED_BACK = "RolledBack"


def parse_status(raw: object) -> NftStatus:
    """The status from its API form, without entries that are not ours."""
    try:
        status = mapping(raw, "status")
        routers = map(_router, sequence(status.get("routers"), "status.routers")[:_MANY])
        return NftStatus(
            tuple(sorted(filter(None, routers), key=lambda router: router.name)),
            _conditions(status),
            _figures(status),
        )
    except Malformed:
        return NftStatus()


def _figures(status: Mapping[str, object]) -> Figures:
    """generation: from the routers' own conditions, not from those of others."""
    own = (condition for condition in _raw_conditions(status) if condition.get("type") in (*SUMMED, AGREE))
    return Figures(
        _number(status, "services"),
        _number(status, "pinholes"),
        _number(status, "rejected"),
        min((_number(condition, "observedGeneration") for condition in own), default=0),
    )


def _router(raw: object) -> RouterStatus | None:
    try:
        entry = mapping(raw, "an entry of status.routers")
        conditions = _conditions(entry)
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


def _conditions(entry: Mapping[str, object]) -> tuple[Condition, ...]:
    return tuple(
        Condition(
            _text(condition, "type"),
            condition.get("status") == "True",
            _text(condition, "reason"),
            _text(condition, "message"),
            _text(condition, "lastTransitionTime"),
        )
        for condition in _raw_conditions(entry)
    )


def _raw_conditions(entry: Mapping[str, object]) -> list[Mapping[str, object]]:
    conditions = sequence(entry.get("conditions"), "conditions")[:_MANY]
    return [mapping(condition, "a condition") for condition in conditions]


def _text(entry: Mapping[str, object], key: str) -> str:
    value = entry.get(key)
    return shorten(value) if isinstance(value, str) else ""


def _number(entry: Mapping[str, object], key: str) -> int:
    value = entry.get(key)
    return value if type(value) is int and 0 <= value < 1 << 63 else 0


def shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
