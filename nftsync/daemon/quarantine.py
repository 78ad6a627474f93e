"""Which Services the kernel does not take, and everything else applied.

One element that the kernel refuses aborts the whole transaction. Then what does not depend on a Service is applied first, and the
rest by Service, without those that the kernel complains of. (Trying halves of them would be simpler, but each transaction that
fails costs the kernel a grace period, 10 ms.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nftsync.kernel.nft import Kernel, KernelError
from nftsync.objects.names import Name, Reason, Rejection
from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.elements import pinhole_key
from nftsync.ruleset.tables import FILTER, SHAPER, Elements, Ruleset
from nftsync.ruleset.transaction import transaction


class LimitsRefusedError(KernelError):
    """What may pass is applied, limits could not be changed."""


@dataclass(slots=True)
class _Part:
    """What differs for one Service: its elements as they are and as they should be, by family and set."""

    before: dict[str, Elements] = field(default_factory=dict)
    after: dict[str, Elements] = field(default_factory=dict)


def apply_the_rest(
    standing: Ruleset, wanted: Ruleset, held: Mapping[str, Pinhole], pinholes: Mapping[str, Pinhole], kernel: Kernel
) -> dict[Name, Rejection]:
    """Apply all that the kernel takes; returns what it refuses, of which everything stays as it was.

    held, pinholes: those of `standing`, as far as they are known, and of `wanted`. Raises KernelError if it is no Service's fault;
    LimitsRefusedError if it is only the limits, whose NIC may have gone in this moment: then all else is applied.
    """
    try:
        return _apply_the_rest(standing, wanted, held, pinholes, kernel)
    except KernelError as fault:
        if SHAPER not in wanted.tables:
            raise
        _apply_the_rest(_filter_of(standing), _filter_of(wanted), held, pinholes, kernel)
        raise LimitsRefusedError(f"what may pass is up to date, limits are not: {fault}") from fault


def _filter_of(shown: Ruleset) -> Ruleset:
    tables = {family: table for family, table in shown.tables.items() if family == FILTER}
    return Ruleset(tables, {family: shown.elements.get(family, {}) for family in tables})


def _apply_the_rest(
    standing: Ruleset, wanted: Ruleset, held: Mapping[str, Pinhole], pinholes: Mapping[str, Pinhole], kernel: Kernel
) -> dict[Name, Rejection]:
    common, parts = _taken_apart(standing, wanted, held, pinholes)
    kernel.apply(transaction(standing, Ruleset(wanted.tables, common)))
    commands = {name: _commands(wanted, parts[name]) for name in sorted(parts)}
    refused = dict[Name, str]()
    while complaints := _complaints({name: lines for name, lines in commands.items() if name not in refused}, kernel):
        refused |= complaints
    refs = {pinhole.service: pinhole.ref for pinhole in (*held.values(), *pinholes.values())}
    message = "the kernel does not take what it asks for: {}; what was open of it before stays, and every resync tries again"
    return {name: Rejection(refs[name], Reason.QUARANTINED, message.format(fault)) for name, fault in refused.items()}


def _taken_apart(
    standing: Ruleset, wanted: Ruleset, held: Mapping[str, Pinhole], pinholes: Mapping[str, Pinhole]
) -> tuple[dict[str, Elements], dict[Name, _Part]]:
    """What differs for each Service, and the elements that stand before any of that is changed."""
    common: dict[str, Elements] = {}
    parts = defaultdict[Name, _Part](_Part)
    for family, name in ((family, name) for family, table in wanted.tables.items() for name in table.sets):
        before, after = (shown.elements.get(family, {}).get(name, {}) for shown in (standing, wanted))
        kept = common.setdefault(family, {}).setdefault(name, {})
        for element in before.keys() | after.keys():
            key = pinhole_key(name, element) or ""
            old, new = held.get(key), pinholes.get(key)
            owner = new or old
            if owner is None:  # no Service's
                if element in after:
                    kept[element] = after[element]
                continue
            part = parts[owner.service]
            if element in before and (old is None or old.service == owner.service):
                kept[element] = before[element]
                part.before.setdefault(family, {}).setdefault(name, {})[element] = before[element]
            if element in after:
                part.after.setdefault(family, {}).setdefault(name, {})[element] = after[element]
    return common, parts


def _commands(wanted: Ruleset, part: _Part) -> list[str]:
    return transaction(Ruleset(wanted.tables, part.before), Ruleset(wanted.tables, part.after)).splitlines()


def _complaints(commands: Mapping[Name, Sequence[str]], kernel: Kernel) -> dict[Name, str]:
    """Apply these together, unless the kernel complains: then nothing of it, and of whom it does."""
    whose = [(name, line) for name, lines in commands.items() for line in lines]
    complaints = kernel.apply_each([line for _, line in whose]) if whose else {}
    return {whose[index][0]: complaint for index, complaint in complaints.items()}
