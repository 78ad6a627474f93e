"""Plans a change: from a snapshot and the kernel's tables to settings, ruleset and transaction.

If the kernel refuses the transaction, the plan finds the cause: a Service, the local chain, or the
limits. One refused line aborts the whole transaction, and nft names the refused lines. So nftsync
writes the transaction again and puts each Service's commands on lines of their own. The next try
leaves out the causes that nft named.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from types import MappingProxyType

from nftsync.objects.address import AddressSet
from nftsync.objects.names import Name
from nftsync.plan.memory import BootFacts
from nftsync.plan.snapshot import LocalChain, Origin, Snapshot, Verdicts
from nftsync.policy.pinholes import Pinhole
from nftsync.policy.public import PublicSide
from nftsync.ruleset.limits import BY_ADDRESS, EGRESS_SETS, has_egress, slowest_at
from nftsync.ruleset.localchain import Body, by_name, explain_complaint
from nftsync.ruleset.model import DYNAMIC, INET, IP, LOCAL_CHAIN, NAME, NETDEV, Elements, Ruleset, Table
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import SETS, flags_for, has_pinholes, pinhole_key, ruleset
from nftsync.ruleset.text import Complaint, add_table, commands, render, transaction


@dataclass(frozen=True, slots=True)
class Found:
    """Our tables as they are in the kernel.

    ruleset: sets, hooks and elements as read. The rules of its chains are unknown, so they equal
    no rules of ours.
    rules: digest of everything but elements and counts. Equal digests mean equal rules.
    """

    ruleset: Ruleset
    rules: str


@dataclass(frozen=True, slots=True)
class Left:
    """The tables that this process, or its predecessor, left in the kernel.

    rules: their digest as read back after the transaction, "" if they are not to be trusted.
    tables: None if only their digest is known.
    """

    rules: str = ""
    tables: Mapping[str, Table] | None = None
    digest: str = ""

    @classmethod
    def by_another_process(cls, facts: BootFacts) -> "Left":
        rules, _, digest = facts.rules.partition(" ")
        return cls(rules, digest=digest)


@dataclass(frozen=True, slots=True)
class ChainInUse:
    """The local chain of a plan.

    body: None to keep the chain in the kernel.
    error: why the file's version is not in use, "" if it is.
    line, column: the place of the file's version in the file (see localchain.Body).
    """

    body: str | None
    error: str = ""
    instead: str = ""
    last_good: str = ""
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The wanted ruleset, and the transaction that leads to it.

    current: the kernel's ruleset, with our rules filled in if nobody else changed them.
    wanted: the ruleset that the kernel should hold.
    text: the transaction, "" if nothing differs.
    """

    settings: Settings
    local_chain: ChainInUse
    current: Ruleset
    wanted: Ruleset
    text: str

    @property
    def untracked(self) -> AddressSet:
        """The addresses that begin to bypass connection tracking, and some that did before."""
        now, then = (rules.elements.get(INET, {}) for rules in (self.current, self.wanted))
        same_pools = all(now.get(name, {}) == then.get(name, {}) for name in ("pools4", "pools6"))
        if not self.settings.is_stateless or (same_pools and self.current.tables == self.wanted.tables):
            return AddressSet()
        return self.settings.cluster


def plan(s: Snapshot, pinholes: Collection[Pinhole], closed: Iterable[str], found: Found, left: Left) -> Plan:
    """Pure: the same inputs give the same plan.

    pinholes: of the snapshot's Services.  closed: the closed endpoints.
    left: the tables that nftsync left in the kernel; empty if others may have changed them.
    """
    trusted = bool(left.rules) and left.rules == found.rules
    table = found.ruleset.tables.get(INET, Table())
    # The kernel's local chain can stay if the plan replaces no set of its rules.
    sets = {name: declared for name, declared in table.sets.items() if declared.flags != DYNAMIC}
    unreplaced = table.is_enforcing and sets == SETS[INET] and not table.foreign_objects
    can_stay = not s.first_since_boot and unreplaced and LOCAL_CHAIN in table.chains
    chain = choose_local_chain(s.local_chain, s.verdicts.local_chains, can_stay=can_stay)
    settings = settings_of(s, found.ruleset.tables, chain, pinholes)
    wanted, current = wanted_ruleset(s, pinholes, closed, settings), found.ruleset
    if trusted:
        as_wanted = left.tables is None and left.digest == tables_digest(wanted.tables)
        current = _with_tables(current, wanted.tables if as_wanted else left.tables or {})
    if chain.body is None:
        wanted = _with_chain_of(wanted, current)
    current = _with_meters(current, wanted, table)
    if s.verdicts.limits:
        wanted = _with_limits_of(wanted, current)
        settings = replace(settings, limits_refused=True)
    return Plan(settings, chain, current, wanted, transaction(current, wanted))


def choose_local_chain(chain: LocalChain, refused: Mapping[str, str], *, can_stay: bool) -> ChainInUse:
    """The first local chain that the kernel has not refused.

    The order: the file's chain; the last known good chain; the same with interface names in place
    of indexes; the chain in the kernel.
    can_stay: whether the kernel has a local chain of ours that can stay.
    """
    if chain.body is not None and chain.body not in refused:
        return ChainInUse(chain.body, last_good=chain.body, line=chain.line, column=chain.column)
    candidates: tuple[tuple[str | None, str], ...] = (
        (chain.last_good, "the last good chain stays"),
        (by_name(chain.last_good), "the last good chain is in force, its interfaces by name"),
        (None, "the chain in the kernel stays") if can_stay else ("", "no local chain is in force"),
    )
    body, instead = next(candidate for candidate in candidates if candidate[0] not in refused)
    return ChainInUse(body, chain.error or refused.get(chain.body or "", ""), instead, chain.last_good)


def settings_of(s: Snapshot, current: Mapping[str, Table], chain: ChainInUse, pinholes: Iterable[Pinhole]) -> Settings:
    """The settings of the wanted tables. current: the tables in the kernel."""
    undecided = s.undecided.get(INET, {})
    return Settings.of(
        s.spec.value,
        s.interfaces.side or PublicSide.unseen(s.nics),
        local_chain=chain.last_good if chain.body is None else chain.body,
        bgp_peers=s.config.bgp_peers,
        cluster=s.guard.cluster,
        stateless=s.config.stateless,
        flags=flags_for(current, s.flags if s.config.own_tables else frozenset()),
        egress=has_egress(pinholes) or any(undecided.get(name) for name in EGRESS_SETS),
    )


def wanted_ruleset(s: Snapshot, pinholes: Collection[Pinhole], closed: Iterable[str], settings: Settings) -> Ruleset:
    """The wanted ruleset: the snapshot's, with the undecided elements that stay for now."""
    if not s.undecided:
        return ruleset(pinholes, settings, closed)
    undecided = undecided_of(s.undecided, {hole.key for hole in pinholes}, pools=s.pools.origin is Origin.UNKNOWN)
    ranges = (undecided.get(INET, {}).get(f"sources{version}", {}) for version in IP)
    decided = ruleset(pinholes, settings, {*closed, *(pinhole_key(element) for some in ranges for element in some)})
    elements = {family: dict(sets) for family, sets in decided.elements.items()}
    for family, table in decided.tables.items():
        for name in table.sets.keys() & undecided.get(family, {}).keys():
            # Undecided pools replace the other ranges, because the ranges of a set must not overlap.
            present = elements[family].get(name, {}) if has_pinholes(name) else {}
            elements[family][name] = {**present, **undecided[family][name]}
    return Ruleset(decided.tables, elements)


def elements_of_ours(found: Ruleset) -> Mapping[str, Elements]:
    """The elements of the sets with our declarations.

    Elements of other sets mean something else: another version of nftsync, or others, made the sets.
    """
    return {
        family: {
            name: members
            for name, members in sets.items()
            if found.tables[family].sets.get(name) == SETS[family].get(name)
        }
        for family, sets in found.elements.items()
    }


def undecided_of(
    elements: Mapping[str, Elements],
    known: Collection[str],
    *,
    pools: bool,
    earlier: Mapping[str, Elements] = MappingProxyType({}),
) -> Mapping[str, Elements]:
    """The elements that are neither remembered nor listed.

    known: keys of pinholes.  pools: whether the pools are undecided.
    earlier: earlier undecided elements. They stay for each set that now has none.
    """
    undecided = {family: dict(sets) for family, sets in earlier.items()}
    for family, sets in elements.items():
        for name, members in sets.items():
            if name.startswith("closed"):  # the memory decides about closed endpoints
                continue
            of_address = name in BY_ADDRESS
            undecidable = has_pinholes(name) or of_address or (pools and name.startswith("pools"))
            owned = {key.partition(" ")[0] for key in known} if of_address else known
            kept = {key: said for key, said in members.items() if undecidable and pinhole_key(key) not in owned}
            if kept:
                undecided.setdefault(family, {})[name] = kept
    return undecided


def _with_chain_of(wanted: Ruleset, current: Ruleset) -> Ruleset:
    table = wanted.tables[INET]
    chains = {**table.chains, LOCAL_CHAIN: current.tables[INET].chains[LOCAL_CHAIN]}
    return replace(wanted, tables={**wanted.tables, INET: replace(table, chains=chains)})


def _with_limits_of(wanted: Ruleset, current: Ruleset) -> Ruleset:
    """Keep the present limits, because the kernel refuses the wanted ones."""
    sources = {INET: wanted, NETDEV: current} if NETDEV in current.tables else {INET: wanted}
    return Ruleset(
        {family: source.tables[family] for family, source in sources.items()},
        {family: source.elements.get(family, {}) for family, source in sources.items()},
    )


def _with_tables(found: Ruleset, known: Mapping[str, Table]) -> Ruleset:
    """The found ruleset with its known tables; unchanged if the families differ."""
    if found.tables.keys() != known.keys():
        return found
    tables = {family: replace(table, flags=found.tables[family].flags) for family, table in known.items()}
    return Ruleset(tables, found.elements)


def _with_meters(current: Ruleset, wanted: Ruleset, found: Table) -> Ruleset:
    """Count the sets of the local chain's meters only if the local chain changes: then they go.

    nft 1.1 makes a named set of a `meter`. Earlier versions make anonymous sets, which go with their
    rules.
    """
    table = current.tables.get(INET)
    if table is None:
        return current
    stays = table.chains.get(LOCAL_CHAIN) == wanted.tables[INET].chains[LOCAL_CHAIN]
    others = {name: declared for name, declared in table.sets.items() if declared.flags != DYNAMIC}
    meters = {name: declared for name, declared in found.sets.items() if declared.flags == DYNAMIC}
    sets = others if stays else {**others, **meters}
    return replace(current, tables={**current.tables, INET: replace(table, sets=sets)})


def tables_digest(tables: Mapping[str, Table]) -> str:
    """Digest of tables. Another process compares it to see whether rules come from these tables."""
    return sha256(render(Ruleset(tables)).encode()).hexdigest()


Subject = Name | str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a transaction.

    subject: its Service; or LOCAL_CHAIN; or its family: INET for the filter, NETDEV for the limits.
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
    slowest = slowest_at(after.values())
    for command in commands(plan.current, plan.wanted):
        if command.family == left_out:
            continue
        if not command.elements:
            lines.extend(_lines(command.head, command.family, plan.settings.local_chain.count("\n")))
        elements = defaultdict[Subject, list[str]](list)
        for element in command.elements:
            key = pinhole_key(element)
            owner = after.get(key) or before.get(key) or slowest.get((command.head.split()[-1], element.split()[0]))
            elements[owner.service if owner else command.family].append(element)
        lines.extend(Line(str(command._replace(elements=some)), subject) for subject, some in elements.items())
    return lines


def _lines(text: str, family: str, body: int) -> Iterator[Line]:
    """body: number of lines of the local chain."""
    left = 0
    for line in text.split("\n"):  # as nft counts them
        yield Line(line, LOCAL_CHAIN if left else family)
        left = body if line == f"\tchain {LOCAL_CHAIN} {{" and not left else max(0, left - 1)


def learn(verdicts: Verdicts, plan: Plan, lines: Sequence[Line], complaints: Sequence[Complaint]) -> Verdicts:
    """The verdicts after the kernel has complained; the same verdicts if nftsync finds no cause.

    complaints: about the lines.
    Only the local chain holds the operator's own text. So nftsync blames it for a complaint that
    names no line, or a line of the tables.
    """
    subjects = {number: line.subject for number, line in enumerate(lines)}
    blamed = {subjects.get(complaint.line, INET): complaint for complaint in reversed(complaints)}
    services = {subject: said.message for subject, said in blamed.items() if isinstance(subject, Name)}
    chain = blamed.get(LOCAL_CHAIN, None if services or NETDEV in blamed else blamed.get(INET))
    current, wanted = plan.current.tables.get(INET), plan.wanted.tables[INET]
    loaded = current is None or current.chains.get(LOCAL_CHAIN) != wanted.chains[LOCAL_CHAIN]
    if chain and loaded and plan.local_chain.body:
        said = _about_chain(plan.local_chain, lines, chain)
        verdicts = replace(verdicts, local_chains={**verdicts.local_chains, plan.local_chain.body: said})
    elif INET in blamed:
        return verdicts
    if NETDEV in blamed:  # then every Service's limit fails, too
        return replace(verdicts, limits=blamed[NETDEV].message)
    return verdicts.of_services(services) if services else verdicts


def _about_chain(chain: ChainInUse, lines: Sequence[Line], complaint: Complaint) -> str:
    first = next((number for number, line in enumerate(lines) if line.subject == LOCAL_CHAIN), len(lines))
    body = Body(chain.body or "", chain.line, chain.column)
    return explain_complaint(body, complaint._replace(line=complaint.line - first))
