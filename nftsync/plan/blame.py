"""Finds the cause of a refused transaction: a Service, the local chain, or the limits.

One refused line aborts the whole transaction, and nft names the refused lines. So nftsync writes
the transaction again and puts each Service's commands on lines of their own. The next try leaves
out the causes that nft named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from nftsync.objects.names import Name
from nftsync.plan.plan import Plan
from nftsync.plan.snapshot import Verdicts
from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.tables import INET, LOCAL_CHAIN, NAME, NETDEV, pinhole_key
from nftsync.ruleset.text import add_table, commands

Subject = Name | str
Complaint = tuple[int, str]  # the number of a line, from 0, and nft's message about it


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a transaction.

    subject: the Service that it belongs to; or LOCAL_CHAIN; or its family: INET for the filter,
    NETDEV for the limits.
    """

    text: str
    subject: Subject


def lines_of(plan: Plan, before: Mapping[str, Pinhole], after: Mapping[str, Pinhole]) -> list[Line]:
    """The plan's transaction, line by line.

    before: the open pinholes, by key.  after: the wanted pinholes, by key.
    """
    left_out = NETDEV if plan.settings.limits_refused else ""
    # A table of another owner refuses these lines as well, so its refusal blames no Service.
    lines = [
        Line(add_table(f"{family} {NAME}", table.flags), family)
        for family, table in plan.wanted.tables.items()
        if family != left_out
    ]
    for command in commands(plan.current, plan.wanted):
        if command.family == left_out:
            continue
        if not command.elements:
            lines.extend(_lines(command.head, command.family, plan.settings.local_chain.count("\n")))
        elements = defaultdict[Subject, list[str]](list)
        for element in command.elements:
            key = pinhole_key(element)
            owner = after.get(key) or before.get(key)
            elements[owner.service if owner else command.family].append(element)
        lines.extend(Line(str(command._replace(elements=some)), subject) for subject, some in elements.items())
    return lines


def _lines(text: str, family: str, body: int) -> Iterator[Line]:
    """body: number of lines of the local chain."""
    left = 0
    for line in text.splitlines():
        yield Line(line, LOCAL_CHAIN if left else family)
        left = body if line == f"\tchain {LOCAL_CHAIN} {{" and not left else max(0, left - 1)


def learn(verdicts: Verdicts, plan: Plan, lines: Sequence[Line], complaints: Sequence[Complaint]) -> Verdicts:
    """The verdicts after the kernel has complained; the same verdicts if nftsync finds no cause.

    Only the local chain holds the operator's own text. So nftsync blames it for a complaint that
    names no line, or a line of the tables.
    """
    subjects = {number: line.subject for number, line in enumerate(lines)}
    blamed = {subjects.get(number, INET): message for number, message in reversed(complaints)}
    services = {subject: message for subject, message in blamed.items() if isinstance(subject, Name)}
    chain = blamed.get(LOCAL_CHAIN, "" if services or NETDEV in blamed else blamed.get(INET, ""))
    current, wanted = plan.current.tables.get(INET), plan.wanted.tables[INET]
    loaded = current is None or current.chains.get(LOCAL_CHAIN) != wanted.chains[LOCAL_CHAIN]
    if chain and loaded and plan.local_chain.body:
        verdicts = replace(verdicts, local_chains={**verdicts.local_chains, plan.local_chain.body: chain})
    elif INET in blamed:
        return verdicts
    if NETDEV in blamed:  # then every Service's limit fails, too
        return replace(verdicts, limits=blamed[NETDEV])
    return verdicts.of_services(services) if services else verdicts
