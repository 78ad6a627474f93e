"""Whose fault it is that the kernel refuses a transaction: a Service's, the local chain's, or the limits'.

One line that is refused aborts the whole transaction, and nft names the lines that are. So the transaction is written once more,
each Service's commands on lines of their own, and what the kernel complains of is left out of the next try.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from nftsync.objects.names import Name
from nftsync.plan.plan import Plan
from nftsync.plan.snapshot import Verdicts
from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.elements import pinhole_key
from nftsync.ruleset.tables import INET, LOCAL_CHAIN, NAME, NETDEV, Elements, Ruleset, Table
from nftsync.ruleset.transaction import transaction


class Part(StrEnum):
    """What a line of a transaction is about, if it is not a Service."""

    TABLES = "tables"
    LOCAL_CHAIN = "local chain"
    LIMITS = "limits"


Subject = Name | Part
Complaint = tuple[int, str]  # the number of a line, from 0, and what nft says of it


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a transaction, and what it is about."""

    text: str
    subject: Subject


def lines_of(plan: Plan, before: Mapping[str, Pinhole], after: Mapping[str, Pinhole]) -> list[Line]:
    """The plan's transaction, line by line. before, after: the pinholes that were open, and those that should be, by key."""
    common, services = _taken_apart(plan.current, plan.wanted, before, after)
    lines = []
    for family in sorted(plan.current.tables.keys() | plan.wanted.tables.keys()):
        if family == NETDEV and plan.settings.limits_refused:
            continue
        part = Part.LIMITS if family == NETDEV else Part.TABLES
        if family in plan.wanted.tables:  # a table that others own refuses this too, and no Service is blamed for that
            lines.append(Line(f"add table {family} {NAME}{_flags(plan.wanted.tables[family])}", part))
        text = transaction(_of(family, plan.current), _of(family, Ruleset(plan.wanted.tables, common)))
        lines.extend(_lines(text, part, plan.settings.local_chain.count("\n")))
    for name in sorted(services):
        lines.extend(Line(text, name) for text in _commands(plan.wanted, services[name]))
    return lines


def _flags(table: Table) -> str:
    return f" {{ flags {','.join(sorted(table.flags))}; }}" if table.flags else ""


def _of(family: str, ruleset: Ruleset) -> Ruleset:
    return Ruleset(
        {each: table for each, table in ruleset.tables.items() if each == family},
        {each: sets for each, sets in ruleset.elements.items() if each == family},
    )


def _lines(text: str, part: Part, body: int) -> Iterator[Line]:
    """body: how many lines the local chain has."""
    left = 0
    for line in text.splitlines():
        yield Line(line, Part.LOCAL_CHAIN if left else part)
        left = body if line == f"\tchain {LOCAL_CHAIN} {{" and not left else max(0, left - 1)


@dataclass(slots=True)
class _Change:
    """What differs for one Service: its elements as they are and as they should be, by family and set."""

    before: dict[str, Elements] = field(default_factory=dict)
    after: dict[str, Elements] = field(default_factory=dict)


def _taken_apart(
    current: Ruleset, wanted: Ruleset, before: Mapping[str, Pinhole], after: Mapping[str, Pinhole]
) -> tuple[dict[str, Elements], dict[Name, _Change]]:
    """The elements that stand before any Service's are changed, and what differs for each Service."""
    common: dict[str, Elements] = {}
    changes = defaultdict[Name, _Change](_Change)
    for family, name in ((family, name) for family, table in wanted.tables.items() for name in table.sets):
        old_elements, new_elements = (each.elements.get(family, {}).get(name, {}) for each in (current, wanted))
        kept = common.setdefault(family, {}).setdefault(name, {})
        for element in old_elements.keys() | new_elements.keys():
            key = pinhole_key(name, element) or ""
            old, new = before.get(key), after.get(key)
            owner = new or old
            if owner is None:  # no Service's
                if element in new_elements:
                    kept[element] = new_elements[element]
                continue
            change = changes[owner.service]
            if element in old_elements and (old is None or old.service == owner.service):
                kept[element] = old_elements[element]
                change.before.setdefault(family, {}).setdefault(name, {})[element] = old_elements[element]
            if element in new_elements:
                change.after.setdefault(family, {}).setdefault(name, {})[element] = new_elements[element]
    return common, changes


def _commands(wanted: Ruleset, change: _Change) -> list[str]:
    return transaction(Ruleset(wanted.tables, change.before), Ruleset(wanted.tables, change.after)).splitlines()


def learn(verdicts: Verdicts, plan: Plan, lines: Sequence[Line], complaints: Sequence[Complaint]) -> Verdicts:
    """What is known after the kernel has complained; the same verdicts if it is nobody's fault.

    A complaint that names no line, or one of the tables, can only be the local chain's fault, which is verbatim the operator's.
    """
    blamed: dict[Subject, str] = {}
    for number, message in reversed(complaints):
        blamed[lines[number].subject if number < len(lines) else Part.TABLES] = message
    services = {subject: message for subject, message in blamed.items() if isinstance(subject, Name)}
    chain = blamed.get(Part.LOCAL_CHAIN, "" if services or Part.LIMITS in blamed else blamed.get(Part.TABLES, ""))
    loaded = plan.current.tables.get(INET) is None or (
        plan.current.tables[INET].chains.get(LOCAL_CHAIN) != plan.wanted.tables[INET].chains[LOCAL_CHAIN]
    )
    if chain and loaded and plan.local_chain.body:
        verdicts = replace(verdicts, local_chains={**verdicts.local_chains, plan.local_chain.body: chain})
    elif Part.TABLES in blamed:
        return verdicts
    if Part.LIMITS in blamed:  # which makes every Service's limit wrong
        return replace(verdicts, limits=blamed[Part.LIMITS])
    return verdicts.of_services(services) if services else verdicts
