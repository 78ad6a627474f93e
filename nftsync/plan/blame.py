"""Finds the cause of a refused transaction: a Service, the local chain, or the limits.

One refused line aborts the whole transaction, and nft names the refused lines. So nftsync writes
the transaction again and puts each Service's commands on lines of their own. The next try leaves
out the causes that nft named.
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
from nftsync.ruleset.tables import INET, LOCAL_CHAIN, NAME, NETDEV, Elements, Ruleset, Table, pinhole_key
from nftsync.ruleset.text import transaction


class Part(StrEnum):
    """The subject of a line that belongs to no Service."""

    TABLES = "tables"
    LOCAL_CHAIN = "local chain"
    LIMITS = "limits"


Subject = Name | Part
Complaint = tuple[int, str]  # the number of a line, from 0, and nft's message about it


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a transaction, and its subject."""

    text: str
    subject: Subject


def lines_of(plan: Plan, before: Mapping[str, Pinhole], after: Mapping[str, Pinhole]) -> list[Line]:
    """The plan's transaction, line by line.

    before: the open pinholes, by key.  after: the wanted pinholes, by key.
    """
    common, services = _taken_apart(plan.current, plan.wanted, before, after)
    lines = []
    for family in sorted(plan.current.tables.keys() | plan.wanted.tables.keys()):
        if family == NETDEV and plan.settings.limits_refused:
            continue
        part = Part.LIMITS if family == NETDEV else Part.TABLES
        # A table of another owner refuses this line as well, so its refusal blames no Service.
        if family in plan.wanted.tables:
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
    """body: number of lines of the local chain."""
    left = 0
    for line in text.splitlines():
        yield Line(line, Part.LOCAL_CHAIN if left else part)
        left = body if line == f"\tchain {LOCAL_CHAIN} {{" and not left else max(0, left - 1)


@dataclass(slots=True)
class _Change:
    """The present and the wanted elements of one Service, by family and set."""

    before: dict[str, Elements] = field(default_factory=dict)
    after: dict[str, Elements] = field(default_factory=dict)


def _taken_apart(
    current: Ruleset, wanted: Ruleset, before: Mapping[str, Pinhole], after: Mapping[str, Pinhole]
) -> tuple[dict[str, Elements], dict[Name, _Change]]:
    """The elements that no Service changes, and the change of each Service."""
    common: dict[str, Elements] = {}
    changes = defaultdict[Name, _Change](_Change)
    for family, name in ((family, name) for family, table in wanted.tables.items() for name in table.sets):
        old_elements, new_elements = (each.elements.get(family, {}).get(name, {}) for each in (current, wanted))
        kept = common.setdefault(family, {}).setdefault(name, {})
        for element in old_elements.keys() | new_elements.keys():
            key = pinhole_key(name, element) or ""
            old, new = before.get(key), after.get(key)
            owner = new or old
            if owner is None:  # no Service owns the element
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
    """The verdicts after the kernel has complained; the same verdicts if nftsync finds no cause.

    Only the local chain holds the operator's own text. So nftsync blames it for a complaint that
    names no line, or a line of the tables.
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
    if Part.LIMITS in blamed:  # then every Service's limit fails, too
        return replace(verdicts, limits=blamed[Part.LIMITS])
    return verdicts.of_services(services) if services else verdicts
