"""The caches of MetalLB's kinds in one namespace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nftsync.cluster.cache import Inbox, nobody
from nftsync.objects.metallb import AddressPool, Advertisement, ConfigMap, Peer, parse_advertisement, parse_peer, parse_pool
from nftsync.objects.metallb_v0 import parse_config_map
from nftsync.policy.pools import MetalLBObjects


@dataclass(frozen=True, slots=True)
class MetalLB:
    """What is read of MetalLB in one namespace."""

    pools: Inbox[AddressPool]
    advertisements: Inbox[Advertisement]
    peers: Inbox[Peer]
    config_maps: Inbox[ConfigMap]

    @classmethod
    def empty(cls, wake: Callable[[], None] = nobody, clock: Callable[[], float] = time.monotonic) -> MetalLB:
        """See Inbox for `wake` and `clock`."""
        return cls(
            Inbox(parse_pool, wake, clock),
            Inbox(parse_advertisement, wake, clock),
            Inbox(parse_peer, wake, clock),
            Inbox(parse_config_map, wake, clock),
        )

    @property
    def inboxes(self) -> tuple[Inbox[Any], ...]:
        return self.pools, self.advertisements, self.peers, self.config_maps

    @property
    def synced(self) -> bool:
        """Whether every kind was listed once, or is not there."""
        return all(inbox.synced.is_set() for inbox in self.inboxes)

    def take(self) -> list[float]:
        """When the changes since the last take were received, the earliest of each kind (monotonic seconds)."""
        changes = (inbox.take() for inbox in self.inboxes)
        return [each.since for each in changes if each.objects]

    def objects(self) -> MetalLBObjects:
        """What is there now."""
        return MetalLBObjects(
            tuple(self.pools.objects()),
            tuple(self.advertisements.objects()),
            tuple(self.peers.objects()),
            tuple(self.config_maps.objects()),
            self.advertisements.readable,
            self.peers.readable,
        )
