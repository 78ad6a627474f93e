"""One sync: from what the inputs hold now to what the kernel holds now, and what came of it.

Two ways, one result. When only Services changed, their pinholes' elements are compared and sent. Otherwise (the first
time, a resync, other settings, a NIC that came or went, a failure before) everything is computed anew, the kernel is
read back, and the difference is sent. "Applied" is recorded only after the kernel has accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b

from nftsync.applied import Applied, adopted, digest, ours_as
from nftsync.changes import changes_between, summary
from nftsync.config import Config
from nftsync.confirm import Confirming
from nftsync.desired import Desired, Pinhole
from nftsync.guard import Enforcement, Guard
from nftsync.guarding import Guarding
from nftsync.ingress import Ingress
from nftsync.inputs import Inputs
from nftsync.kernel import Kernel, KernelError
from nftsync.links import LinkError, Links
from nftsync.localchainfile import LocalChainFile
from nftsync.nftresource import Nft, NftSpec
from nftsync.objects import Address, Name, ObjectRef, Reason, Rejection
from nftsync.quarantine import LimitsRefusedError, apply_the_rest
from nftsync.result import Outcome, SyncResult
from nftsync.ruleset import Ruleset, Settings, Table, elements, flags_for, open_keys, render, ruleset, tables
from nftsync.store import Store
from nftsync.transaction import transaction


class Reconciler:
    """Brings the kernel from what it has to what it should have. One thread owns it.

    desired: what the Services that were taken so far ask for.  quarantined: those that the kernel does not take, and what it says.
    """

    def __init__(self, config: Config, inputs: Inputs, kernel: Kernel, links: Links, store: Store) -> None:
        self._kernel = kernel
        self._links = links
        self._ingress = Ingress(links, store)
        self._applied = Applied()
        self.quarantined: Mapping[Name, Rejection] = {}
        self._nft: Nft | None = None
        self._asked = store.state.spec  # the last good settings: they stay when the resource is refused or deleted
        self._spec: NftSpec | None = None  # those in force
        self.confirming = Confirming(store.state.spec)
        self._confirmed = False  # since the last sync
        self._guarding = Guarding(links, store.state)
        self._local_chain = LocalChainFile(config.local_chain, store.state.local_chain)
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
            self._nft = None  # its settings stay until the new inputs have told of others
        store.save(self.store.state)
        self._config, self._inputs, self._ingress.store = config, inputs, store
        self._local_chain.path = config.local_chain
        self._whole = True

    @property
    def settings(self) -> Settings | None:
        """The settings that are in force; None before the first successful sync."""
        return self._applied.settings

    @property
    def nft(self) -> Nft | None:
        """The Nft resource as it was last seen."""
        return self._nft

    @property
    def hash(self) -> str:
        """Of what routers of one cluster have in common of their rulesets: not their NIC, not their local chain."""
        of = (self._applied.fingerprint, self._spec, self.guard)
        if of != self._hashed:
            spec = replace(self._spec, public_nic="") if self._spec else None
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

    @property
    def store(self) -> Store:
        """What outlives the process."""
        return self._ingress.store

    def opened(self) -> Mapping[str, Pinhole]:
        """A copy of the pinholes that the kernel has accepted, for any thread: dict.copy() runs no Python code."""
        return self._applied.pinholes.copy()

    def routed(self, address: Address) -> bool:
        """Whether packets to an address leave the router, and not through the public NIC."""
        way = self._links.way_to(address)
        return way is not None and way != self._ingress.index

    @property
    def wakes_in(self) -> float:
        """Seconds until a sync is worth it though nothing has changed."""
        return 0.0 if self._confirmed else min(self._guarding.pools.doubted, self.confirming.waits)

    def confirm(self) -> bool:
        """Let settings that wait for it hold for good; returns whether any did."""
        self._confirmed = self.confirming.confirm()
        return self._confirmed

    def local_chain_changed(self) -> bool:
        """Whether the local chain's file has a version that no sync has looked at."""
        return self._local_chain.changed()

    def links_changed(self) -> bool:
        """Whether the public NIC came, went, or is another one than at the last whole sync, or addresses changed that matter."""
        settings = self._applied.settings
        try:
            return settings is not None and (
                self._ingress.differs(settings.public_nic)
                or self._guarding.look(self._config.boundary) != self._guarding.guard
            )
        except LinkError:
            return True  # the sync that follows says why

    def rejections(self) -> tuple[Rejection, ...]:
        """Everything that is refused now: files, settings, local chain, Services. The same tuple while nothing changed."""
        unreadable = tuple(self._inputs.rejections())
        settings = (self._config, self._inputs.synced, self._nft, self._spec, self._local_chain.fault)
        objects = (self._guarding.pools.rejections, self.desired, self.desired.rejections_changed, self.quarantined)
        causes = (unreadable, settings, objects)
        if causes != self._causes:
            self._causes = causes
            self._rejections = (*unreadable, *self._refused())
        return self._rejections

    def _refused(self) -> Iterator[Rejection]:
        if self._nft is not None:
            yield from self._nft.rejections
        elif self._inputs.synced:
            stays = "the last good settings stay" if self._spec else "nothing is applied until there is one"
            ref = ObjectRef("Nft", str(self._config.nft))
            yield Rejection(ref, Reason.MISSING_SETTINGS, f"there is no such resource; {stays}")
        if self._local_chain.fault:
            ref = ObjectRef("File", str(self._config.local_chain))
            yield Rejection(ref, Reason.INVALID_LOCAL_CHAIN, f"{self._local_chain.fault}; the last good chain stays")
        if self._config.boundary.enforcement is not Enforcement.IGNORED:
            yield from self._guarding.pools.rejections
        yield from self.desired.rejections()
        yield from self.quarantined.values()

    def sync(self, *, whole: bool = False, resync: bool = False, meddler: str = "") -> SyncResult:
        """Bring the kernel up to date. Never raises KernelError: a refusal is a result, and the last ruleset stays.

        whole: recompute everything and read the kernel back.  resync: that too, and what differs from what was applied
        counts as drift.  meddler: whose it probably is.
        """
        if not self._inputs.synced:
            return SyncResult(Outcome.WAITING, "the first lists are not complete", listed=False)
        try:
            changed, since = self._take(whole=whole or resync)
        except (KernelError, LinkError) as fault:
            return self._failed(fault)
        if self._spec is None:
            return SyncResult(Outcome.WAITING, f"there is no usable Nft resource {self._config.nft}")
        if self._guarding.waits(self._config.boundary):
            return SyncResult(Outcome.WAITING, "MetalLB's configuration is not read yet", listed=False)
        if resync:
            self._local_chain.look_again()
        try:
            whole = whole or resync or self._whole
            if whole:
                result = self._sync_whole(self._spec, resync=resync, meddler=meddler)
            else:
                result = self._sync_changed(self._spec, changed)
        except (KernelError, LinkError) as fault:
            failed = self._failed(fault)
            result = self._sync_without_new_local_chain(self._spec) or failed
        return replace(result, since=since)

    def _failed(self, fault: KernelError | LinkError) -> SyncResult:
        self._whole = True
        self._applied.tables = None
        stays = "" if isinstance(fault, LimitsRefusedError) else "the last ruleset stays: "
        return SyncResult(Outcome.FAILED, f"{stays}{fault}")

    def _sync_without_new_local_chain(self, spec: NftSpec) -> SyncResult | None:
        """After a refusal: whether it was the local chain's fault shows when the last good one is taken. None if it was not."""
        if not self._local_chain.withdraw():
            return None
        try:
            return self._sync_whole(spec, resync=False)
        except (KernelError, LinkError):
            self._local_chain.look_again()
            return None

    def _take(self, *, whole: bool) -> tuple[set[str], float | None]:
        """Take the inputs' changes; returns the keys of the pinholes that may differ, and since when.

        whole: a whole sync follows, which computes the pinholes anew, so there is no need to do it here.
        """
        nfts, services = self._inputs.nfts.take(), self._inputs.services.take()
        sinces = [each.since for each in (nfts, services) if each.objects]
        if nfts.objects:
            self._nft = nfts.objects.get(self._config.nft)
            if self._nft is not None and self._nft.spec is not None:
                self._asked = self._nft.spec
        self._take_settings()
        if self._spec is not None:
            sinces.extend(self._take_pools(self._spec, whole=whole))
        self._whole |= not services.objects.keys().isdisjoint(self.quarantined)
        changed: set[str] = set()
        if self._spec is None or not (whole or self._whole):
            for name, service in services.objects.items():
                changed.update(self.desired.put(name, service))
        return changed, min(sinces, default=None)

    def _take_settings(self) -> None:
        self._confirmed = False
        if self._asked is None:
            return
        asked = replace(self._asked, public_nic=self._config.public_nic or self._asked.public_nic)
        spec = self.confirming.take(asked, self._config.confirm_seconds)
        self._whole |= self._spec != spec
        self._spec = spec
        if self.store.state.spec != self.confirming.settled:  # on a full disk, not with every event
            self.store.save(replace(self.store.state, spec=self.confirming.settled))

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
            self.store.save(replace(self.store.state, metallb=guarding.pools.known, former=guarding.former))
        return sinces

    def _opened(self) -> Iterable[str]:
        """Keys of the pinholes that the kernel has, those of the daemon before us too. Raises KernelError."""
        return self._applied.pinholes if self._applied.settings else open_keys(self._kernel.read().ruleset)

    def _settings(self, spec: NftSpec, standing: Mapping[str, Table]) -> Settings:
        self._local_chain.refresh(lambda body: self._rehearse(spec, body))
        index = self._ingress.look(spec.public_nic)
        attached = spec.enable_rateshape and index is not None
        return Settings.of(
            spec,
            public_nic=spec.public_nic,
            attached=attached,
            local_chain=self._local_chain.body,
            bgp_peers=self._config.bgp_peers,
            cluster=self._guarding.cluster,
            flags=flags_for(standing, self._kernel.flags if self._config.own_tables else frozenset()),
        )

    def _rehearse(self, spec: NftSpec, body: str) -> None:
        """Let nft judge a local chain inside our tables, without the NIC that may be missing. Raises KernelError."""
        settings = Settings.of(spec, public_nic=self._config.public_nic, attached=False, local_chain=body)
        self._kernel.check(render(Ruleset(tables(replace(settings, enable_rateshape=False))), name="nftsync-rehearsal"))

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
        found = self._kernel.read()
        settings = self._settings(spec, found.ruleset.tables)
        self.desired = self._from_scratch()
        standing = self._applied.standing(found.ruleset, found.rules, meddled=bool(meddler))
        if not self._applied.settings and self.store.state.rules == digest(found.rules, tables(settings)):
            standing = ours_as(found.ruleset, tables(settings))  # as the process before us left it, or the boot unit
        drift = resync and settings == self._applied.settings and self._applied.drifted(standing)
        wanted = ruleset(self.desired.pinholes.values(), settings)
        text = transaction(standing, wanted)
        held = self._applied.held(standing, self.desired.pinholes)
        pinholes = self._apply(text, standing, wanted, held)
        rules = self._kernel.rules() if text else found.rules
        changes = changes_between(held, pinholes)
        message = summary(changes)
        if drift:
            message = f"{meddler or 'somebody else'} had changed our tables: repaired; {message}"
        elif standing.tables != wanted.tables:
            message = f"rules renewed; {message}"
        self._applied = Applied.of(wanted.tables, pinholes, settings, rules)
        self._whole = False
        self._local_chain.accepted()
        self._ingress.settle(settings.device)
        self.store.save(replace(self.store.state, local_chain=settings.local_chain, rules=digest(rules, wanted.tables)))
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
