"""Keeps the settings up to date: what the Nft resource, the configuration, the local chain's file and the public NIC add up to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from nftsync.config import Config
from nftsync.daemon.guarding import Guarding
from nftsync.files.localchainfile import LocalChainFile
from nftsync.files.store import Store
from nftsync.kernel.interfaces import Links
from nftsync.kernel.nft import Kernel, KernelError
from nftsync.kernel.qdisc import Ingress
from nftsync.objects.names import ObjectRef, Reason, Rejection
from nftsync.objects.nft import Nft, NftSpec
from nftsync.policy.confirm import Confirming
from nftsync.ruleset.tables import FILTER, Ruleset, Settings, Table, flags_for, tables
from nftsync.ruleset.text import render


class InForce:
    """The settings in force.

    nft: the resource as it was last seen.  spec: what of it is in force; None before there ever was one.
    """

    def __init__(self, config: Config, kernel: Kernel, links: Links, store: Store) -> None:
        self._config = config
        self._kernel = kernel
        self.confirming = Confirming(store.state.spec, store.state.rolled_back)
        self.ingress = Ingress(links)
        self._store = store
        self.local_chain = LocalChainFile(config.local_chain, store.state.local_chain)
        self.nft: Nft | None = None
        self.spec: NftSpec | None = None
        self._asked = store.state.rolled_back or store.state.spec  # of the last good resource, which may be gone

    def configure(self, config: Config, store: Store) -> None:
        """Take another configuration and store; the state stays what it is."""
        store.save(self.store.state)
        self._config, self._store = config, store
        self.local_chain.path = config.local_chain

    @property
    def store(self) -> Store:
        """What outlives the process."""
        return self._store

    def see(self, nft: Nft | None) -> None:
        """Take up the resource as it is now; None if there is none."""
        self.nft = nft
        if nft is not None and nft.spec is not None:
            self._asked = nft.spec

    def renew(self) -> bool:
        """Decide which settings are in force now; returns whether they are others than before."""
        if self._asked is None:
            return False
        before, confirming = self.spec, self.confirming
        asked = replace(self._asked, public_nic=self._config.public_nic or self._asked.public_nic)
        self.spec = confirming.take(asked, self._config.confirm_seconds)
        state = self.store.state
        if (state.spec, state.rolled_back) != (confirming.settled, confirming.rolled_back):  # on a full disk, not with every event
            self.store.save(replace(state, spec=confirming.settled, rolled_back=confirming.rolled_back))
        return self.spec != before

    def settings(self, spec: NftSpec, standing: Mapping[str, Table], guarding: Guarding) -> Settings:
        """What tables are made from now. standing: those that are there. Raises LinkError."""
        self.local_chain.refresh(self._rehearse)
        return Settings.of(
            spec,
            public_nic=spec.public_nic,
            index=self.ingress.look(spec.public_nic) or 0,
            local_chain=self.local_chain.body,
            bgp_peers=self._config.bgp_peers,
            cluster=guarding.cluster,
            flags=flags_for(standing, self._kernel.flags if self._config.own_tables else frozenset()),
        )

    def withdraw(self) -> bool:
        """After a refusal: whether another local chain is in use now, so that it is worth another try."""
        try:
            standing = self._kernel.read_tables().ruleset.tables
        except KernelError:
            return False
        return self.local_chain.withdraw(self._rehearse, shut=standing.get(FILTER, Table()).filters)

    def _rehearse(self, body: str) -> str:
        """Let nft judge a local chain inside our tables, without the NIC that may be missing; returns what it has against it."""
        settings = Settings.of(self.spec, public_nic=self._config.public_nic, local_chain=body)
        try:
            self._kernel.check(render(Ruleset(tables(replace(settings, enable_rateshape=False))), name="nftsync-rehearsal"))
        except KernelError as fault:
            return str(fault) or "the kernel refuses it"
        return ""

    def accepted(self, settings: Settings, rules: str) -> None:
        """The kernel has taken them. rules: see State."""
        self.local_chain.accepted()
        ours = self.ingress.settle(settings.device, self.store.state.ingress)
        self.store.save(replace(self.store.state, ingress=ours, local_chain=self.local_chain.last_good, rules=rules))

    def refused(self, *, synced: bool) -> Iterator[Rejection]:
        """What is wrong with the resource and the local chain. synced: whether the resource would have been seen."""
        if self.nft is not None:
            yield from self.nft.rejections
        elif synced:
            stays = "the last good settings stay" if self.spec else "nothing is applied until there is one"
            ref = ObjectRef("Nft", str(self._config.nft))
            yield Rejection(ref, Reason.MISSING_SETTINGS, f"there is no such resource; {stays}")
        if self.local_chain.fault:
            ref = ObjectRef("File", str(self._config.local_chain))
            yield Rejection(ref, Reason.INVALID_LOCAL_CHAIN, f"{self.local_chain.fault}; {self.local_chain.instead}")
