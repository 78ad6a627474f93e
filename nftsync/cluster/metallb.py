"""The caches of MetalLB's kinds in one namespace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nftsync.cluster.cache import ObjectCache, nobody
from nftsync.objects.metallb import AddressPool, Advertisement, ConfigMap, Peer, parse_advertisement, parse_peer, parse_pool
from nftsync.objects.metallb_v0 import parse_config_map
from nftsync.policy.guard import MetalLBObjects


@dataclass(frozen=True, slots=True)
class MetalLBCaches:
    """MetalLB's objects in one namespace."""

    pools: ObjectCache[AddressPool]
    advertisements: ObjectCache[Advertisement]
    peers: ObjectCache[Peer]
    config_maps: ObjectCache[ConfigMap]

    @classmethod
    def empty(cls, wake: Callable[[], None] = nobody, clock: Callable[[], float] = time.monotonic) -> MetalLBCaches:
        """Empty caches. See ObjectCache for `wake` and `clock`."""
        return cls(
            ObjectCache(parse_pool, wake, clock),
            ObjectCache(parse_advertisement, wake, clock),
            ObjectCache(parse_peer, wake, clock),
            ObjectCache(parse_config_map, wake, clock),
        )

    @property
    def caches(self) -> tuple[ObjectCache[Any], ...]:
        return self.pools, self.advertisements, self.peers, self.config_maps

    @property
    def synced(self) -> bool:
        """True if each kind had a complete list, or the cluster does not serve it."""
        return all(cache.synced.is_set() for cache in self.caches)

    def drain(self) -> list[float]:
        """The times of the changes since the last drain, the earliest of each kind.

        The unit is monotonic seconds.
        """
        changes = (cache.drain() for cache in self.caches)
        return [each.since for each in changes if each.objects]

    def objects(self) -> MetalLBObjects:
        """All present objects."""
        return MetalLBObjects(
            tuple(self.pools.objects()),
            tuple(self.advertisements.objects()),
            tuple(self.peers.objects()),
            tuple(self.config_maps.objects()),
            self.advertisements.readable,
            self.peers.readable,
        )
