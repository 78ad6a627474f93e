"""Put the inputs of this moment into a Snapshot.

For each kind, the complete list counts. Until there is one, the remembered objects count.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Protocol

from nftsync.cluster.cache import Inputs, MetalLBCaches
from nftsync.config import Config, PoolMode
from nftsync.files.localchainfile import read_local_chain, stamp
from nftsync.objects.address import Address
from nftsync.objects.metallb import MetalLBConfig
from nftsync.objects.names import Name
from nftsync.objects.nft import Nft, NftSpec, Nics
from nftsync.objects.service import Service
from nftsync.plan.memory import Facts
from nftsync.plan.snapshot import Interfaces, Known, LocalChain, Origin, Snapshot
from nftsync.policy.confirm import Confirming
from nftsync.policy.guard import PoolTracker

Changed = Mapping[Name, Service | None]  # None: the Service is gone


class Network(Protocol):
    """This machine's network, as a sync needs it."""

    def look(self, nics: Nics) -> Interfaces:
        """The interfaces of this moment."""

    def settle(self, devices: Collection[str], ours: frozenset[int]) -> frozenset[int]:
        """Add or remove ingress qdiscs, as the rate limits need them.

        devices: the interfaces with limits.  ours: indices of those that have our ingress qdisc.
        Returns the indices of those that have it now.
        """

    def routed(self, address: Address) -> bool | None:
        """Whether a route to it leads elsewhere than through a public interface; None if not known."""


class Observer:
    """Takes changes from the inputs and keeps the last state of each. One thread owns an Observer.

    nft: the last version of the resource, None if there is none.
    confirming: the state of the settings in the resource: in force, waiting or rolled back.
    clock: monotonic seconds.
    """

    def __init__(
        self,
        config: Config,
        inputs: Inputs,
        network: Network,
        facts: Facts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """facts: the remembered ones."""
        self.config, self.inputs, self.network, self._clock = config, inputs, network, clock
        self.nft: Nft | None = None
        # of the last good resource, even if it is gone
        self._asked: NftSpec | None = facts.rolled_back or facts.spec
        self.confirming = Confirming.remembered(facts.spec, facts.rolled_back)
        self._confirmed = False  # since the last look
        self.pools = PoolTracker(facts.pools)
        # the caches of the last look, and whether each was readable
        self._metallb: tuple[MetalLBCaches, tuple[bool, ...]] | None = None
        self._nics: Nics | None = None  # of the last look
        self._interfaces: Interfaces | None = None
        self._chain = LocalChain()
        self._stamp: object = object()  # of the local chain's file

    def configure(self, config: Config, inputs: Inputs) -> None:
        """Take another configuration and inputs; the next observe() looks at everything again."""
        if inputs is not self.inputs:
            self.nft, self._metallb = None, None  # settings stay until the new inputs bring some
        self.config, self.inputs, self._interfaces = config, inputs, None

    def confirm(self) -> bool:
        """Confirm the settings that wait for it. Returns False if none wait."""
        before, self.confirming = self.confirming, self.confirming.confirmed()
        self._confirmed = self.confirming is not before
        return self._confirmed

    @property
    def deadline(self) -> float:
        """The time of the next sync even if no input changes, in clock seconds; inf for never."""
        return float("-inf") if self._confirmed else min(self.pools.deadline, self.confirming.deadline)

    def local_chain_changed(self) -> bool:
        """True if the local chain's file has changed since the last look."""
        return stamp(self.config.local_chain) != self._stamp

    def observe(self, facts: Facts, before: Snapshot, *, look: bool) -> tuple[Snapshot, Changed, float | None]:
        """The inputs of this moment; the Services that changed; when the earliest change arrived.

        The Snapshot is `before` itself if nothing but Services changed. Services count as changed
        only while their list is complete. The time is None without a change.
        facts: the remembered ones.  look: whether to look at this machine again, too.
        """
        self._confirmed = False
        known = Origin.REMEMBERED if facts.spec else Origin.UNKNOWN
        listed = self.inputs.services.synced.is_set()  # asked before drain(): the next call takes later changes
        spec, sinces = self._take_settings(known)
        pools, pools_sinces = self._take_pools(spec.value, facts)
        changes = self.inputs.services.drain() if listed else None
        sinces += pools_sinces
        if changes and changes.objects:
            sinces.append(changes.since)
        nics = spec.value.nics if spec.value else self.config.nics
        if look or self._interfaces is None or nics != self._nics:
            self._nics, self._interfaces = nics, self.network.look(nics)
            self._stamp = stamp(self.config.local_chain)
            self._chain = read_local_chain(self.config.local_chain)
        snapshot = replace(
            before,
            config=self.config,
            services=Origin.LISTED if listed else known,
            spec=spec,
            pools=pools,
            speakers=self.pools.speakers,
            interfaces=self._interfaces,
            local_chain=replace(self._chain, last_good=facts.local_chain),
        )
        services = changes.objects if changes else {}
        return before if snapshot == before else snapshot, services, min(sinces, default=None)

    def _take_settings(self, known: Origin) -> tuple[Known[NftSpec | None], list[float]]:
        sinces = []
        listed = self.inputs.nfts.synced.is_set()
        if listed:
            changes = self.inputs.nfts.drain()
            if changes.objects:
                self.nft = changes.objects.get(self.config.nft)
                sinces.append(changes.since)
            if self.nft is not None and self.nft.spec is not None:
                self._asked = self.nft.spec
        if self._asked is not None:
            asked = replace(self._asked, nics=self.config.nics.over(self._asked.nics))
            self.confirming = self.confirming.take(asked, self.config.confirm_seconds, self._clock())
        return Known(self.confirming.in_force, Origin.LISTED if listed else known), sinces

    def _take_pools(self, spec: NftSpec | None, facts: Facts) -> tuple[Known[MetalLBConfig | None], list[float]]:
        if self.config.address_policy.pool_mode is PoolMode.IGNORED:
            self.pools.relist()
            return Known(None, Origin.LISTED), []
        metallb = self.inputs.metallb(spec.metallb_namespace, spec.metallb_configmap) if spec else None
        if metallb is None or not metallb.synced:
            self.pools.relist()
            known = Origin.REMEMBERED if facts.pools_listed else Origin.UNKNOWN
            return Known(self.pools.known, known), []
        seen = metallb, tuple(cache.readable for cache in metallb.caches)
        sinces = metallb.drain()
        if sinces or seen != self._metallb or self.pools.deadline != float("inf"):
            self._metallb = seen
            self.pools.look(metallb.objects(), self._clock())
        return Known(self.pools.known, Origin.LISTED), sinces
