"""What is read of MetalLB, and the last good configuration of it.

A configuration that was good once stays in force while a later one is invalid, and for good if MetalLB's objects vanish: then
the addresses that were the cluster's still are, and no others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nftsync.inbox import Inbox
from nftsync.metallb import (
    AddressPool,
    Advertisement,
    ConfigMap,
    Configuration,
    Peer,
    configuration,
    parse_advertisement,
    parse_peer,
    parse_pool,
)
from nftsync.metallbconfigmap import parse_config_map
from nftsync.objects import Rejection


@dataclass(frozen=True, slots=True)
class MetalLB:
    """What is read of MetalLB in one namespace."""

    pools: Inbox[AddressPool]
    advertisements: Inbox[Advertisement]
    peers: Inbox[Peer]
    config_maps: Inbox[ConfigMap]

    @classmethod
    def empty(cls, wake: Callable[[], None], clock: Callable[[], float]) -> MetalLB:
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

    def configuration(self) -> tuple[Configuration | None, tuple[Rejection, ...]]:
        """See metallb.configuration()."""
        return configuration(
            self.pools.objects(), self.advertisements.objects(), self.peers.objects(), self.config_maps.objects()
        )


class Pools:
    """Remembers the last good configuration.

    known: None if none was ever seen.  rejections: what is wrong with the present one; a new tuple whenever it was looked at.
    """

    def __init__(self, known: Configuration | None) -> None:
        self.known = known
        self.rejections: tuple[Rejection, ...] = ()
        self._looked: MetalLB | None = None

    def look(self, metallb: MetalLB) -> list[float]:
        """Take up what MetalLB's objects say now, if it is complete, and new; returns when the news were received."""
        if not metallb.synced:
            return []
        sinces = metallb.take()
        if sinces or self._looked is not metallb:
            self._looked = metallb
            found, rejections = metallb.configuration()
            self.known = found or self.known
            stays = "; the last good pools stay" if self.known else "; no pools are known"
            self.rejections = tuple(Rejection(each.object, each.reason, each.message + stays) for each in rejections)
        return sinces

    @property
    def looked(self) -> bool:
        """Whether MetalLB's objects, or that there are none, were ever seen by this process."""
        return self._looked is not None
