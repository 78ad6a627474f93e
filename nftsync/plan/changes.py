"""What a sync changed, Service by Service: what logs and Events tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from nftsync.objects.names import ObjectRef
from nftsync.policy.pinholes import Pinhole


@dataclass(frozen=True, slots=True)
class Change:
    """What changed for one Service. Each part holds pinholes as they are now, `closed` as they were.

    altered: other sources, another limit, or another owner.
    """

    service: ObjectRef
    opened: tuple[Pinhole, ...] = ()
    closed: tuple[Pinhole, ...] = ()
    altered: tuple[Pinhole, ...] = ()
    limit_changed: bool = False


def changes_between(before: Mapping[str, Pinhole], after: Mapping[str, Pinhole]) -> tuple[Change, ...]:
    """What differs, by Service, ordered by its name. Both by key; what is in neither concerns nobody."""
    services: dict[ObjectRef, tuple[list[Pinhole], list[Pinhole], list[Pinhole]]] = {}
    relimited = set()
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        pinhole = new or old
        assert pinhole is not None
        opened, closed, altered = services.setdefault(pinhole.ref, ([], [], []))
        (opened if old is None else closed if new is None else altered).append(pinhole)
        if old is not None and new is not None and old.limit != new.limit:
            relimited.add(pinhole.ref)
    return tuple(
        Change(ref, tuple(opened), tuple(closed), tuple(altered), ref in relimited)
        for ref, (opened, closed, altered) in sorted(services.items(), key=lambda item: item[0].name)
    )


def fingerprint(pinholes: Iterable[Pinhole]) -> int:
    """Of a set of pinholes, whatever its order: those of parts add up to that of the whole."""
    return sum(
        int.from_bytes(blake2b(f"{each.key} {each.sources} {each.limit}".encode(), digest_size=16).digest()) for each in pinholes
    )


def summary(changes: Iterable[Change]) -> str:
    """One line about all of them."""
    counts = {"opened": 0, "closed": 0, "changed": 0}
    for change in changes:
        for verb, pinholes in (("opened", change.opened), ("closed", change.closed), ("changed", change.altered)):
            counts[verb] += len(pinholes)
    return "pinholes: " + (", ".join(f"{count} {verb}" for verb, count in counts.items() if count) or "none changed")
