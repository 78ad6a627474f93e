"""The changes of a sync, by Service, for the log and Events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from nftsync.objects.names import ObjectRef
from nftsync.policy.pinholes import Pinhole


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
    """A number that identifies a set of pinholes, independent of order.

    The fingerprints of disjoint parts add up to the fingerprint of the whole.
    """
    return sum(
        int.from_bytes(blake2b(f"{each.key} {each.sources} {each.limit}".encode(), digest_size=16).digest()) for each in pinholes
    )


def summary(changes: Iterable[Change]) -> str:
    """One line with the numbers of opened, closed and changed pinholes."""
    counts = {"opened": 0, "closed": 0, "changed": 0}
    for change in changes:
        for verb, pinholes in (("opened", change.opened), ("closed", change.closed), ("changed", change.altered)):
            counts[verb] += len(pinholes)
    return "pinholes: " + (", ".join(f"{count} {verb}" for verb, count in counts.items() if count) or "none changed")
