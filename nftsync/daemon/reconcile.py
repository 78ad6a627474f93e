"""One sync: from what the inputs hold now to what the kernel holds now, and what came of it.

Two ways, one result. When only Services changed, their pinholes' elements are compared and sent. Otherwise (the first
time, a resync, other settings, a NIC that came or went, a failure before) everything is computed anew, the kernel is
read back, and the difference is sent. "Applied" is recorded only after the kernel has accepted.
Until the first lists are complete, there is a third: the rules follow the settings, around the elements that stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from hashlib import blake2b

from nftsync.cluster.inputs import Inputs
from nftsync.config import Config, Enforcement
from nftsync.daemon.guarding import Guarding
from nftsync.daemon.inforce import InForce
from nftsync.daemon.quarantine import LimitsRefusedError, apply_the_rest
from nftsync.daemon.restore import restore
from nftsync.files.store import Store
from nftsync.kernel.commits import SOMEBODY
from nftsync.kernel.interfaces import LinkError, Links
from nftsync.kernel.nft import Kernel, KernelError
from nftsync.kernel.readback import Found
from nftsync.objects.address import Address
from nftsync.objects.names import Name, Rejection
from nftsync.objects.nft import NftSpec
from nftsync.plan.applied import Applied, adopted, digest, ours_as, takes
from nftsync.plan.changes import changes_between, summary
from nftsync.plan.result import Outcome, SyncResult
from nftsync.policy.guard import Guard
from nftsync.policy.pinholes import Desired, Pinhole
from nftsync.ruleset.elements import elements, open_keys, ruleset
from nftsync.ruleset.tables import FILTER, Ruleset, Settings, Table, tables
from nftsync.ruleset.transaction import transaction


class Reconciler:
    """Brings the kernel from what it has to what it should have. One thread owns it.

    in_force: the settings, as the inputs have them.  desired: what the Services that were taken so far ask for.
    quarantined: those that the kernel does not take, and what it says.
    """

    def __init__(self, config: Config, inputs: Inputs, kernel: Kernel, links: Links, store: Store) -> None:
        self._kernel = kernel
        self._links = links
        self.in_force = InForce(config, kernel, links, store)
        self._guarding = Guarding(links, store.state)
        self._applied = Applied()
        self.quarantined: Mapping[Name, Rejection] = {}
        self._confirmed = False  # since the last sync
        self._config = config
        self._inputs = inputs
        self.desired = Desired(config.filters, caps=config.caps)
        self._whole = True
        self._rejections: tuple[Rejection, ...] = ()
        self._causes: tuple[object, ...] = ()  # what they were worked out from
        self._hash = ""
        self._hashed: tuple[object, ...] = ()

    def configure(self, config: Config, inputs: Inputs, store: Store) -> None:
        """Take another configuration, inputs and store; the next sync is a whole one, the last ruleset stays until then."""
        if inputs is not self._inputs:
            self.in_force.see(None)  # its settings stay until the new inputs have told of others
        self.in_force.configure(config, store)
        self._config, self._inputs = config, inputs
        self._whole = True

    @property
    def settings(self) -> Settings | None:
        """The settings that are in force; None before the first successful sync."""
        return self._applied.settings

    @property
    def hash(self) -> str:
        """Of what routers of one cluster have in common of their rulesets: not their NIC, not their local chain."""
        of = (self._applied.fingerprint, self.in_force.spec, self.guard)
        if of != self._hashed:
            spec = replace(self.in_force.spec, public_nic="") if self.in_force.spec else None
            common = f"{self._applied.fingerprint} {spec} {self.guard.legal}"
            self._hashed, self._hash = of, blake2b(common.encode(), digest_size=16).hexdigest()
        return self._hash

    @property
    def guard(self) -> Guard:
        """What judged addresses in the last sync."""
        return self._guarding.guard

    @property
    def own(self) -> frozenset[Address]:
        """The router's addresses at the last look."""
        return self._guarding.own

    def opened(self) -> Mapping[str, Pinhole]:
        """A copy of the pinholes that the kernel has accepted, for any thread: dict.copy() runs no Python code."""
        return self._applied.pinholes.copy()

    def routed(self, address: Address) -> bool:
        """Whether packets to an address leave the router, and not through the public NIC."""
        way = self._links.way_to(address)
        return way is not None and way != self.in_force.ingress.index

    @property
    def wakes_in(self) -> float:
        """Seconds until a sync is worth it though nothing has changed."""
        looks = self._inputs.synced and self._config.boundary.enforcement is not Enforcement.IGNORED
        doubted = self._guarding.pools.doubted if looks else float("inf")
        return 0.0 if self._confirmed else min(doubted, self.in_force.confirming.waits)

    def confirm(self) -> bool:
        """Let settings that wait for it hold for good; returns whether any did."""
        self._confirmed = self.in_force.confirming.confirm()
        return self._confirmed

    def local_chain_changed(self) -> bool:
        """Whether the local chain's file has a version that no sync has looked at."""
        return self.in_force.local_chain.changed()

    def links_changed(self) -> bool:
        """Whether the public NIC came, went, or is another one than at the last whole sync, or addresses changed that matter."""
        spec = self.in_force.spec
        try:
            return spec is not None and (
                self.in_force.ingress.differs(spec.public_nic)
                or (self._inputs.synced and self._guarding.look(self._config.boundary) != self._guarding.guard)
            )
        except LinkError:
            return True  # the sync that follows says why

    def rejections(self) -> tuple[Rejection, ...]:
        """Everything that is refused now: files, settings, local chain, Services. The same tuple while nothing changed."""
        unreadable = tuple(self._inputs.rejections())
        in_force = self.in_force
        settings = (self._config, self._inputs.synced, in_force.nft, in_force.spec)
        local_chain = (in_force.local_chain.fault, in_force.local_chain.instead)
        objects = (self._guarding.pools.rejections, self.desired, self.desired.rejections_changed, self.quarantined)
        causes = (unreadable, settings, local_chain, objects)
        if causes != self._causes:
            self._causes = causes
            self._rejections = (*unreadable, *self._refused())
        return self._rejections

    def _refused(self) -> Iterator[Rejection]:
        yield from self.in_force.refused(synced=self._inputs.synced)
        if self._config.boundary.enforcement is not Enforcement.IGNORED:
            yield from self._guarding.pools.rejections
        yield from self.desired.rejections()
        yield from self.quarantined.values()

    def sync(self, *, whole: bool = False, resync: bool = False, meddler: str = "") -> SyncResult:
        """Bring the kernel up to date. Never raises KernelError: a refusal is a result, and the last ruleset stays.

        whole: recompute everything and read the kernel back.  resync: that too, and what differs from what was applied
        counts as drift.  meddler: who is known to have changed our tables, "" for nobody.
        """
        try:
            changed, since = self._take(whole=whole or resync)
        except (KernelError, LinkError) as fault:
            return self._failed(fault)
        if resync:
            self.in_force.local_chain.look_again()
        spec = self.in_force.spec
        self._whole |= whole or resync
        if missing := self._missing():
            return self._attempt(lambda: self._sync_rules(missing, meddler))
        if spec is None:
            return SyncResult(Outcome.WAITING, f"there is no usable Nft resource {self._config.nft}")
        whole_sync = partial(self._sync_whole, spec, resync=resync, meddler=meddler)
        result = self._attempt(lambda: whole_sync() if self._whole else self._sync_changed(spec, changed))
        return replace(result, since=since)

    def _missing(self) -> str:
        """What was never listed, for people; "" if everything was."""
        if not self._inputs.synced:
            return "the first lists are not complete"
        if self.in_force.spec is None:  # nor is it known where MetalLB's configuration is
            return ""
        return "MetalLB's configuration is not read yet" if self._guarding.waits(self._config.boundary) else ""

    def _attempt(self, sync: Callable[[], SyncResult]) -> SyncResult:
        """After a refusal: whether it was the local chain's fault shows when another one is taken."""
        try:
            return sync()
        except (KernelError, LinkError) as fault:
            if self.in_force.withdraw():
                again = self._attempt(sync)
                if again.outcome is not Outcome.FAILED:
                    return again
                self.in_force.local_chain.look_again()
            return self._failed(fault)

    def _failed(self, fault: KernelError | LinkError) -> SyncResult:
        self._whole = True
        self._applied.tables = None
        stays = "" if isinstance(fault, LimitsRefusedError) else "the last ruleset stays: "
        return SyncResult(Outcome.FAILED, f"{stays}{fault}")

    def _take(self, *, whole: bool) -> tuple[set[str], float | None]:
        """Take the inputs' changes; returns the keys of the pinholes that may differ, and since when.

        whole: a whole sync follows, which computes the pinholes anew, so there is no need to do it here.
        """
        self._confirmed = False
        if not self._inputs.synced:
            self._whole |= self.in_force.renew()
            return set(), None
        nfts, services = self._inputs.nfts.take(), self._inputs.services.take()
        sinces = [each.since for each in (nfts, services) if each.objects]
        if nfts.objects:
            self.in_force.see(nfts.objects.get(self._config.nft))
        self._whole |= self.in_force.renew()
        spec = self.in_force.spec
        if spec is not None:
            sinces.extend(self._take_pools(spec, whole=whole))
        self._whole |= not services.objects.keys().isdisjoint(self.quarantined)
        changed: set[str] = set()
        if spec is None or not (whole or self._whole):
            for name, service in services.objects.items():
                changed.update(self.desired.put(name, service))
        return changed, min(sinces, default=None)

    def _take_pools(self, spec: NftSpec, *, whole: bool) -> list[float]:
        """Take MetalLB's changes, and judge addresses by them from now on; returns when they were received."""
        guarding, boundary, sinces = self._guarding, self._config.boundary, []
        known = guarding.pools.known
        if boundary.enforcement is not Enforcement.IGNORED:
            sinces = guarding.pools.look(self._inputs.metallb(spec.metallb_namespace))
        if guarding.waits(boundary):
            return sinces
        if sinces or whole or self._whole or guarding.pools.known is not known:
            self._whole |= guarding.renew(boundary, self._opened)
            store = self.in_force.store
            store.save(replace(store.state, metallb=guarding.pools.known, former=guarding.former))
        return sinces

    def _opened(self) -> Iterable[str]:
        """Keys of the pinholes that the kernel has, those of the daemon before us too. Raises KernelError."""
        return self._applied.pinholes if self._applied.settings else open_keys(self._kernel.read().ruleset)

    def _sync_rules(self, missing: str, meddler: str) -> SyncResult:
        """Before everything was listed: the rules of the settings in force, around the elements that are there, or stood last."""
        waiting = SyncResult(Outcome.WAITING, missing, listed=False)
        spec, before = self.in_force.spec, self._applied
        if spec is None:
            return waiting
        if before.settings is None and FILTER not in self._kernel.read_tables().ruleset.tables:
            restore(self._kernel, self._config, lambda: self.in_force.store.state)  # somebody flushed what boot loaded
        generation, found = self._kernel.generation(), self._kernel.read_tables()
        there = found.ruleset.tables
        settings = self.in_force.settings(spec, there, self._guarding)
        shown = {family: each for family, each in tables(settings).items() if before.settings or family in there}
        unknown = not before.settings and not takes(there, shown)  # tables of another version would lose their elements
        if unknown or (not meddler and self._known(found.rules, shown)):
            return waiting
        found = self._kernel.read()
        wanted = ruleset(before.pinholes.values(), settings) if before.settings else Ruleset(shown, found.ruleset.elements)
        text = transaction(self._standing(found, shown, meddler), wanted)
        if text:
            self._kernel.apply(text)
        rules = self._accepted(settings, shown, found.rules, generation, text)
        if before.settings:
            self._applied = Applied.of(wanted.tables, before.pinholes, settings, rules)
        done = f"{meddler} had changed our tables: repaired" if meddler else "rules renewed"
        return replace(waiting, message=f"{done}; {missing}", drift=bool(meddler)) if text else waiting

    def _known(self, rules: str, wanted: Mapping[str, Table]) -> bool:
        """Whether rules are those of tables, as this process left them, or the one before it."""
        return self.in_force.store.state.rules == digest(rules, wanted)

    def _standing(self, found: Found, wanted: Mapping[str, Table], meddler: str) -> Ruleset:
        if not meddler and self._known(found.rules, wanted):
            return ours_as(found.ruleset, wanted)
        return self._applied.standing(found.ruleset, found.rules, meddled=bool(meddler))

    def _accepted(self, settings: Settings, shown: Mapping[str, Table], found: str, generation: int, text: str) -> str:
        """The kernel holds what it should; returns the rules as they are read back.

        found: the rules before it did.  generation: before they were read.  text: what was committed since. What somebody else has
        committed meanwhile is told by the kernel, but no process after this one would know.
        """
        rules = self._kernel.read_tables().rules if text else found
        alone = not text or self._kernel.generation() == generation + 1
        self.in_force.accepted(settings, digest(rules, shown) if alone else "")
        return rules

    def _sync_changed(self, spec: NftSpec, changed: set[str]) -> SyncResult:
        try:
            return self._sync_part(changed)
        except KernelError:  # our tables are not what they were, or one of these Services asks for what the kernel does not take
            return self._sync_whole(spec, resync=False)

    def _sync_part(self, changed: set[str]) -> SyncResult:
        """Only these pinholes may differ: compare and send just their elements."""
        standing, settings = self._applied.tables, self._applied.settings
        assert standing is not None, "the first sync is a whole one"
        assert settings is not None
        wanted = self.desired.pinholes
        before = {key: self._applied.pinholes[key] for key in changed if key in self._applied.pinholes}
        after = {key: wanted[key] for key in changed if key in wanted}
        text = transaction(
            Ruleset(standing, elements(before.values(), settings)),
            Ruleset(standing, elements(after.values(), settings)),
        )
        if text:
            self._kernel.apply(text)
        self._applied.replace(before, after)
        changes = changes_between(before, after)
        return SyncResult(Outcome.APPLIED if text else Outcome.UNCHANGED, changes=changes)

    def _sync_whole(self, spec: NftSpec, *, resync: bool, meddler: str = "") -> SyncResult:
        """Compute everything from scratch, compare it with what the kernel really holds, send the difference."""
        generation, found = self._kernel.generation(), self._kernel.read()
        settings = self.in_force.settings(spec, found.ruleset.tables, self._guarding)
        self.desired = self._from_scratch()
        wanted = ruleset(self.desired.pinholes.values(), settings)
        standing = self._standing(found, wanted.tables, meddler)
        drift = resync and (bool(meddler) or settings == self._applied.settings) and self._applied.drifted(standing)
        text = transaction(standing, wanted)
        held = self._applied.held(standing, self.desired.pinholes)
        pinholes = self._apply(text, standing, wanted, held)
        changes = changes_between(held, pinholes)
        message = summary(changes)
        if drift:
            message = f"{meddler or SOMEBODY} had changed our tables: repaired; {message}"
        elif standing.tables != wanted.tables:
            message = f"rules renewed; {message}"
        rules = self._accepted(settings, wanted.tables, found.rules, generation, text)
        self._applied = Applied.of(wanted.tables, pinholes, settings, rules)
        self._whole = False
        refused_again = self.quarantined and not (changes or drift or standing.tables != wanted.tables)
        return SyncResult(Outcome.APPLIED if text and not refused_again else Outcome.UNCHANGED, message, changes, drift=drift)

    def _from_scratch(self) -> Desired:
        """Whoever is in stays in; after a start, that is whom the daemon before us has let in. Raises KernelError."""
        filters, caps = self._config.filters, self._config.caps
        services = list(filter(filters.admit, self._inputs.services.objects()))
        admitted = self.desired.admitted if self._applied.settings else adopted(services, self.guard, caps, self._opened)
        return Desired.of(services, filters, self.guard, caps, admitted)

    def _apply(self, text: str, standing: Ruleset, wanted: Ruleset, held: Mapping[str, Pinhole]) -> dict[str, Pinhole]:
        """The pinholes that are open then: all that are desired, but of a Service that the kernel refuses those that were."""
        desired, self.quarantined = self.desired.pinholes, {}
        try:
            if text:
                self._kernel.apply(text)
        except KernelError:
            self.quarantined = apply_the_rest(standing, wanted, held, desired, self._kernel)
        stay = {key: hole for key, hole in held.items() if hole.service in self.quarantined}
        return stay | {key: hole for key, hole in desired.items() if hole.service not in self.quarantined}
