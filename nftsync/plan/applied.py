"""What the kernel accepted last: to compare with, and to go back to what a Service had."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256

from nftsync.config import Caps
from nftsync.objects.names import Name
from nftsync.objects.ratelimit import RateLimitError, parse_statement
from nftsync.objects.service import Port, Service
from nftsync.plan.changes import fingerprint
from nftsync.policy.guard import Guard
from nftsync.policy.pinholes import Pinhole
from nftsync.policy.quota import seniority, within
from nftsync.ruleset.elements import open_keys, open_limits, ruleset
from nftsync.ruleset.tables import SHAPER, Ruleset, Settings, Table
from nftsync.ruleset.text import render
from nftsync.ruleset.transaction import transaction


@dataclass(slots=True)
class Applied:
    """tables is None while that is not known. settings: None before the first time.  rules: as they were read back.

    fingerprint: of the pinholes.
    """

    tables: Mapping[str, Table] | None = None
    pinholes: dict[str, Pinhole] = field(default_factory=dict)
    settings: Settings | None = None
    rules: str = ""
    fingerprint: int = 0

    @classmethod
    def of(cls, tables: Mapping[str, Table], pinholes: dict[str, Pinhole], settings: Settings, rules: str) -> Applied:
        return cls(tables, pinholes, settings, rules, fingerprint(pinholes.values()))

    def replace(self, before: Mapping[str, Pinhole], after: Mapping[str, Pinhole]) -> None:
        """These pinholes were accepted in the place of those."""
        for key in before:
            del self.pinholes[key]
        self.pinholes.update(after)
        self.fingerprint += fingerprint(after.values()) - fingerprint(before.values())

    def held(self, standing: Ruleset, wanted: Mapping[str, Pinhole]) -> Mapping[str, Pinhole]:
        """The pinholes that were open before; after a start, those of the wanted ones that the kernel has, with its limits."""
        if self.settings is not None:
            return self.pinholes
        keys, limits = open_keys(standing), open_limits(standing)
        shaped = SHAPER in standing.tables
        held = {key: hole for key, hole in wanted.items() if key in keys}
        return {key: limited_by(hole, limits.get(key, "")) for key, hole in held.items()} if shaped else held

    def standing(self, found: Ruleset, rules: str, *, meddled: bool) -> Ruleset:
        """What was found, with our own rules if they are those that the kernel accepted.

        meddled: somebody has changed our tables. It may have been just before `rules` were read back as ours.
        """
        return found if meddled or self.tables is None or rules != self.rules else ours_as(found, self.tables)

    def drifted(self, standing: Ruleset) -> bool:
        """Whether the kernel holds something other than what it accepted."""
        if self.tables is None or self.settings is None:
            return False
        return transaction(standing, ruleset(self.pinholes.values(), self.settings)) != ""


def limited_by(hole: Pinhole, statement: str) -> Pinhole:
    """A pinhole with the limit that a statement says, "" for none; one that is not ours says nothing."""
    if statement == (hole.limit.statement if hole.limit else ""):
        return hole
    try:
        return replace(hole, limit=parse_statement(statement) if statement else None)
    except RateLimitError:
        return hole


def ours_as(found: Ruleset, known: Mapping[str, Table]) -> Ruleset:
    """What was found, with the rules that it is known to have; as it was found if that can't be."""
    if found.tables.keys() != known.keys():
        return found
    tables = {family: replace(table, flags=found.tables[family].flags) for family, table in known.items()}
    return Ruleset(tables, found.elements)


def takes(found: Mapping[str, Table], shown: Mapping[str, Table]) -> bool:
    """Whether tables hold the elements that were found just as they are."""
    return all(found[family].sets.get(name) == declared for family, table in shown.items() for name, declared in table.sets.items())


def digest(rules: str, shown: Mapping[str, Table]) -> str:
    """What tells, after a restart or a reboot too, whether the rules that the kernel has are still those of these tables."""
    return sha256(f"{rules}\n{render(Ruleset(shown))}".encode()).hexdigest()


def adopted(
    services: Collection[Service], guard: Guard, caps: Caps, opened: Callable[[], Iterable[str]]
) -> Mapping[Name, Service]:
    """After a start: who is in, which only matters over a cap. Of each Service it is the part that the kernel has open.

    opened: gives the keys of the pinholes that are open. Each speaks for the oldest that asks for it.
    """
    if within(caps, services):
        return {}
    opened_at = defaultdict[str, set[str]](set)
    for key in opened():
        at, _, port = key.partition(" . ")
        opened_at[at].add(port)
    unclaimed = defaultdict[str, set[str]](set, {at: set(ports) for at, ports in opened_at.items()})
    found = {}
    for service in sorted(services, key=seniority):
        part, ports = service, set(map(_port, service.ports))
        legal = [address for address in service.addresses if guard.admits(address)]
        if any(ports - opened_at[str(address)] for address in legal):  # not all of it is open
            speaking = tuple(address for address in legal if unclaimed[str(address)] & ports)
            ports = ports.intersection(*(opened_at[str(address)] for address in speaking))
            part = replace(service, addresses=speaking, ports=tuple(each for each in service.ports if _port(each) in ports))
        if any(unclaimed[str(address)] & ports for address in part.addresses):
            found[service.name] = part
            for address in part.addresses:
                unclaimed[str(address)] -= ports
    return found


def _port(port: Port) -> str:
    """As in a pinhole's key."""
    return f"{port.protocol} . {port.number}"
