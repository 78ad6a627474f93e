"""One sync: observe, plan, apply, remember.

Nothing else changes the kernel, be it at boot, before the lists or in an outage. There is one
shortcut: if only Services changed, the sync compares and sends their elements alone. Otherwise it
computes everything again and reads the kernel back. It records changes after the kernel took them.
"""

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from nftsync.cluster.cache import Inputs
from nftsync.config import ConfigError, parse
from nftsync.daemon.observe import Changed, Observer
from nftsync.daemon.record import Record
from nftsync.kernel.nft import Kernel, KernelError
from nftsync.objects.names import Rejection
from nftsync.plan.closed import Closing, Cut, cut, is_key
from nftsync.plan.memory import BootFacts, Memory
from nftsync.plan.plan import (
    ChainInUse,
    Found,
    Left,
    Plan,
    elements_of_ours,
    learn,
    lines_of,
    plan,
    tables_digest,
    undecided_of,
    wanted_ruleset,
)
from nftsync.plan.result import Change, Outcome, SyncResult, changes_between, refused, summary
from nftsync.plan.snapshot import Known, Origin, Snapshot
from nftsync.policy.pinholes import Pinhole, PinholeIndex, pinholes_of
from nftsync.ruleset.limits import has_egress
from nftsync.ruleset.model import INET, Elements, Ruleset, Table
from nftsync.ruleset.tables import closed_keys, elements, open_keys
from nftsync.ruleset.text import transaction

TRIES = 20  # transactions of one sync at most; each one leaves out the refused parts
SOMEBODY = "somebody else"  # if the kernel does not name the program that changed our tables
NOT_FILTERING = "nothing is applied yet, this router does not filter"


class Refused(KernelError):
    """The kernel refused a part of a plan, or somebody else was faster. Plan again."""


class Reconciler:
    """Brings the kernel to the wanted ruleset. One thread owns a Reconciler.

    index: the pinholes of the Services that count.
    base: load the base if the router has no memory: at boot, before there is a network.
    """

    def __init__(self, observer: Observer, kernel: Kernel, record: Record, *, base: bool = False) -> None:
        self._observer, self._kernel, self.record, self._base = observer, kernel, record, base
        unknown, first = Origin.UNKNOWN, record.first_since_boot
        self._snapshot = Snapshot(
            observer.config, unknown, Known(None, unknown), Known(None, unknown), first_since_boot=first
        )
        self._planned: Snapshot | None = None  # the last snapshot that the kernel has accepted
        self._filtered = False  # whether our tables have ever filtered packets
        self.index = PinholeIndex((), observer.config.service_filter, caps=observer.config.caps)
        self._chain = ChainInUse("")  # of the last plan
        self._rejections: tuple[Rejection, ...] = ()
        self._causes = tuple[object, ...]()  # the values from which self._rejections were computed

    def opened(self) -> Mapping[str, Pinhole]:
        """A copy of the accepted pinholes, for any thread: dict.copy() runs no Python code."""
        return self.record.applied.pinholes.copy()

    def sync(
        self,
        *,
        whole: bool = False,
        look: bool = False,
        resync: bool = False,
        changed_by: str = "",
        idle: Collection[str] = (),
    ) -> SyncResult:
        """Bring the kernel up to date. A refusal is a result, no KernelError: the last ruleset stays.

        whole: compute everything again and read the kernel back.
        look: look at this machine's network and the local chain's file, too.
        resync: do all that; a difference between the kernel and the applied ruleset counts as drift.
        changed_by: the program that has changed our tables, "" for none.
        idle: closed endpoints of which conntrack has no connection.
        """
        observer, record, before = self._observer, self.record, self._snapshot
        whole |= resync or bool(before.verdicts.limits)  # each sync tries refused limits again
        s, services, since = observer.observe(record.memory.facts, before, look=look or whole)
        s = s.retried(before, services, again=whole)
        self._snapshot = replace(s, undecided={}) if s.complete and s.undecided else s
        part = self._planned is self._snapshot and record.applied.tables is not None and not (whole or s.undecided)
        try:
            result = (part and self._sync_part(services)) or self._sync_whole(
                resync=resync, changed_by=changed_by, idle=idle
            )
        except KernelError as error:
            record.applied.tables = None
            result = SyncResult(Outcome.FAILED, f"the last ruleset stays: {error}")
        accepted = observer.confirming if record.applied.tables is not None else None
        record.remember(self._snapshot, accepted, fresh=observer.inputs.fresh)
        return self._told(replace(result, since=since))

    def _sync_part(self, services: Changed) -> SyncResult | None:
        """Compare and send only the elements of these Services.

        None if the kernel refuses them, or other rules are needed.
        """
        keys = set[str]().union(*[self.index.put(name, service) for name, service in services.items()])
        applied, wanted = self.record.applied, self.index.pinholes
        tables, settings = applied.tables, applied.settings
        assert tables is not None
        assert settings is not None
        before = {key: applied.pinholes[key] for key in keys if key in applied.pinholes}
        after = {key: wanted[key] for key in keys if key in wanted}
        if has_egress(after.values()) and not settings.egress:  # the first one needs its rules
            return None
        beside, closing = applied.limits_beside(before, after), self.record.closing(before, after)
        old = Ruleset(tables, elements(before.values(), settings, beside, closing.forgotten))
        new = Ruleset(tables, elements(after.values(), settings, beside, closing.added))
        text = transaction(old, new)
        try:
            with self.record.attempt(self.index.take_changed(), closing=closing):
                if text:
                    self._kernel.apply(text)
        except KernelError:  # somebody changed our tables, or it refuses one of these Services
            return None
        applied.replace(before, after)
        waiting = self._snapshot.missing
        outcome = Outcome.WAITING if waiting else Outcome.APPLIED if text else Outcome.UNCHANGED
        ended = cut(closing.added, before, after) if settings.enable_dropall else {}
        return SyncResult(outcome, waiting, changes_between(before, after), cut=ended)

    def _sync_whole(self, *, resync: bool, changed_by: str, idle: Collection[str]) -> SyncResult:
        """Compute everything from scratch, compare it with the kernel, send the difference."""
        if self._planned is None:  # before generation(): a probe for the flags may change it
            self._snapshot = replace(self._snapshot, flags=self._kernel.flags)
        for _ in range(TRIES):
            generation, found = self._kernel.generation(), self._kernel.read()
            if self._planned is None:
                self._filtered |= _filters(found.ruleset)
                undecided = _undecided(self._snapshot, self.record.memory, found)
                self._snapshot = replace(self._snapshot, undecided=undecided)
            if waits := self._waits(found, changed_by):
                return SyncResult(Outcome.WAITING, waits)
            self.index = _index(self._snapshot, self._observer.inputs, self.record.memory)
            remembered = {} if self._planned else _remembered(self._snapshot, self.record.memory)
            closed, closing = dict(self.record.memory.closed), self._closing(found, remembered, idle)
            after = closed.copy()
            closing.apply(after)
            left = Left() if changed_by else self.record.left
            planned = plan(self._snapshot, self.index.pinholes.values(), after, found, left)
            self._chain = planned.local_chain
            before = _open_before(self.record, {**self.index.pinholes, **remembered}, found)
            changed = self.record.changed(self.index.admitted, limits=not self._snapshot.verdicts.limits)
            facts = self.record.facts_of(self._snapshot, self._observer.confirming)
            with suppress(Refused):
                with self.record.attempt(changed, facts, closing):
                    self._send(planned, before, generation)
                drift_by = self._drift_by(planned, closed, changed_by) if resync else ""
                ended = self._cut(planned, closing, before)
                return replace(self._accepted(planned, found, generation, before, drift_by), cut=ended)
        raise KernelError(f"the kernel refused {TRIES} transactions, each for another reason")

    def _waits(self, found: Found, changed_by: str) -> str:
        """The reason to wait instead of applying a ruleset, for people; "" to go on.

        Without settings, a sync loads only the base: at boot, or after others removed our filter or
        changed the base.
        """
        s, filters = self._snapshot, _filters(found.ruleset)
        stands = "" if filters else f"{NOT_FILTERING}: "
        if s.spec.value is None:
            shut = self._base or self._filtered  # at boot, or somebody removed our filter
            harmed = bool(changed_by) and self.record.boot.base and self._filtered
            missing = s.missing or f"there is no usable Nft resource {s.config.nft}"
            return "" if harmed or (shut and not filters) else stands + missing
        if s.interfaces.local is None:
            raise KernelError("nftsync could not read the router's own addresses")
        return "" if s.complete or self.record.memory.facts.spec or found.ruleset.tables else stands + s.missing

    def _closing(self, found: Found, remembered: Collection[str], idle: Collection[str]) -> Closing:
        """The change of the closed endpoints: all endpoints close that were open and are not wanted any more.

        Open were the accepted pinholes, and everything that is open in the kernel. After a start, these
        also close: the remembered pinholes (a reboot has emptied the kernel), and the kernel's closed
        endpoints that a lost end of the memory lacks.
        """
        record, held, wanted = self.record, found.ruleset.elements, self.index.pinholes
        opened = open_keys(held).union(record.applied.pinholes, remembered)
        if self._planned is None:
            opened |= closed_keys(held) - record.memory.closed.keys()
        closes = opened - wanted.keys() - open_keys(self._snapshot.undecided)
        return record.closing(filter(is_key, closes), wanted, idle)

    def _cut(self, planned: Plan, closing: Closing, before: Mapping[str, Pinhole]) -> Cut:
        """The connections to end: all closed ones after a start or with new rules, else the changed ones.

        Old endpoints end again and again, to learn when conntrack has none of their connections.
        """
        pinholes, record = self.index.pinholes, self.record
        if not planned.settings.enable_dropall:
            return {}
        if self._planned is None or planned.current.tables != planned.wanted.tables:
            return cut(record.memory.closed.keys() - open_keys(self._snapshot.undecided), {}, pinholes)
        return cut({*closing.added, *record.old()}, before, pinholes)

    def _send(self, planned: Plan, before: Mapping[str, Pinhole], generation: int) -> None:
        """Send the plan; after a refusal line by line, to find the lines at fault.

        Raises Refused if the kernel refused a part of it, which the verdicts name now; KernelError otherwise.
        """
        try:
            if planned.text:
                self._kernel.apply(planned.text)
        except KernelError as error:
            if self._kernel.generation() != generation:
                raise Refused from error
            lines = lines_of(planned, before, self.index.pinholes)
            complaints = self._kernel.apply_lines([line.text for line in lines])
            if not complaints:
                return
            verdicts = learn(self._snapshot.verdicts, planned, lines, complaints)
            if verdicts == self._snapshot.verdicts:
                raise KernelError(complaints[0][1]) from error
            self._snapshot = replace(self._snapshot, verdicts=verdicts)
            raise Refused from error

    def _accepted(
        self, planned: Plan, found: Found, generation: int, before: Mapping[str, Pinhole], drift_by: str
    ) -> SyncResult:
        """Record an accepted plan and describe its changes. drift_by: author of the drift, or ""."""
        s, record, pinholes = self._snapshot, self.record, dict(self.index.pinholes)
        changes = changes_between(before, pinholes)
        renewed = planned.current.tables != planned.wanted.tables
        rules = self._kernel.read_tables().rules if planned.text else found.rules
        alone = not planned.text or self._kernel.generation() == generation + 1
        devices = planned.settings.devices if s.config.ingress_qdisc else ()
        ingress = self._observer.network.settle(devices, record.boot.ingress)
        left = f"{rules} {tables_digest(planned.wanted.tables)}" if alone else ""
        record.accept(planned, pinholes, rules, BootFacts(left, ingress, base=s.spec.value is None))
        # without those with an owner
        undecided = undecided_of(s.undecided, pinholes, pools=s.pools.origin is Origin.UNKNOWN)
        self._snapshot = self._planned = replace(s, first_since_boot=False, undecided=undecided)
        self._filtered = True
        done = "rules renewed" if renewed and not s.verdicts.limits else ""
        if drift_by:
            done = f"{drift_by} changed nftsync's tables; nftsync repaired them"
        applied = planned.text and (changes or drift_by or renewed or not s.verdicts.services)  # else: refused again
        result = _result(s, changes, done, applied=bool(applied), drift=bool(drift_by))
        return replace(result, untracked=planned.untracked)

    def _drift_by(self, planned: Plan, closed: Iterable[str], changed_by: str) -> str:
        """The author if the tables differ from the accepted ones or our filter is gone, else "".

        closed: the accepted closed endpoints.
        """
        applied, s = self.record.applied, self._planned
        if not changed_by and planned.settings != applied.settings:
            return ""
        if applied.tables is None or applied.settings is None or s is None:
            drift = self._filtered and not _filters(planned.current)
        else:
            believed = wanted_ruleset(s, applied.pinholes.values(), closed, applied.settings)
            believed = replace(believed, tables=applied.tables)
            drift = not applied.settings.limits_refused and transaction(planned.current, believed) != ""
        return (changed_by or SOMEBODY) if drift else ""

    def _told(self, result: SyncResult) -> SyncResult:
        """The result with the state of everything that people may ask about."""
        observer, record, s, index = self._observer, self.record, self._snapshot, self.index
        unreadable, pools = tuple(observer.inputs.rejections()), observer.pools.rejections
        causes = (unreadable, observer.nft, s.config, s.spec, self._chain, pools, index, index.rejections_changed)
        if causes != self._causes:
            self._causes = causes
            self._rejections = (*unreadable, *refused(s, observer.nft, self._chain, pools, index))
        return replace(
            result,
            snapshot=s,
            settings=record.applied.settings,
            pinholes=record.applied.pinholes,
            closed=record.memory.closed,
            index=index,
            nft=observer.nft,
            confirming=observer.confirming,
            rejections=self._rejections,
            filters=self._filtered,
            hash=record.hash(s),
            as_of=record.memory.facts.as_of,
        )


def _index(s: Snapshot, inputs: Inputs, memory: Memory) -> PinholeIndex:
    """Compute the pinholes of all Services. Accepted versions keep their place in the quotas."""
    remembered = s.verdicts.taken(memory.services)
    services = inputs.services.objects() if s.services is Origin.LISTED else remembered.values()
    return PinholeIndex(services, s.config.service_filter, s.guard, s.config.caps, remembered, s.verdicts.services)


def _undecided(s: Snapshot, memory: Memory, found: Found) -> Mapping[str, Elements]:
    """The open pinholes that the memory lacks. They stay open until every list is complete."""
    if s.complete or (s.first_since_boot and memory.facts.spec):
        return s.undecided
    versions = (*memory.services.values(), *memory.superseded.values())
    known = {key for service in versions for key in pinholes_of(service)}
    pools = s.pools.origin is Origin.UNKNOWN
    return undecided_of(elements_of_ours(found.ruleset), known, pools=pools, earlier=s.undecided)


def _open_before(record: Record, known: Mapping[str, Pinhole], found: Found) -> Mapping[str, Pinhole]:
    """The open pinholes. After a start: the known ones that the kernel has."""
    if record.applied.settings is not None:
        return record.applied.pinholes
    keys = open_keys(found.ruleset.elements)
    return {key: hole for key, hole in known.items() if key in keys}


def _remembered(s: Snapshot, memory: Memory) -> Mapping[str, Pinhole]:
    """The remembered pinholes. The remembered configuration and pools judge them, not the present ones."""
    facts, config = memory.facts, s.config
    with suppress(ConfigError):  # of another version: the present one has to do
        config = parse(facts.config, "the remembered configuration")
    pools = Known(facts.pools, Origin.REMEMBERED if facts.pools_listed else Origin.UNKNOWN)
    guard = replace(s, config=config, pools=pools).guard
    return PinholeIndex(memory.services.values(), config.service_filter, guard).pinholes


def _filters(found: Ruleset) -> bool:
    return found.tables.get(INET, Table()).is_enforcing


def _result(s: Snapshot, changes: tuple[Change, ...], done: str, *, applied: bool, drift: bool) -> SyncResult:
    """The result of an accepted plan. done: what the sync did besides the changes."""
    outcome, tail = Outcome.APPLIED if applied else Outcome.UNCHANGED, s.missing
    if s.verdicts.limits:
        outcome, tail = Outcome.FAILED, f"pinholes are up to date, rate limits are not: {s.verdicts.limits}"
    elif s.missing:
        outcome = Outcome.WAITING
    said = summary(changes) if changes or not tail else ""
    return SyncResult(outcome, "; ".join(filter(None, (done, said, tail))), changes, drift=drift)
