"""What is read of MetalLB, and the last good configuration of it.

A configuration that was good once stays in force while a later one is invalid, and for good if MetalLB's objects vanish: then
the addresses that were the cluster's still are, and no others. So does each part of it that can't be read at the moment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nftsync.objects.address import Address
from nftsync.objects.metallb import AddressPool, Advertisement, ConfigMap, MetalLBConfig, Peer, configuration
from nftsync.objects.names import Rejection

GRACE_PERIOD = 0.3  # seconds without another change until pools that are gone are gone
MAX_GRACE_PERIOD = 0.6  # seconds until they are, whatever else changes


@dataclass(frozen=True, slots=True)
class MetalLBObjects:
    """MetalLB's objects at one moment. advertisements_readable, peers_readable: whether the lists of these kinds can be had."""

    pools: tuple[AddressPool, ...] = ()
    advertisements: tuple[Advertisement, ...] = ()
    peers: tuple[Peer, ...] = ()
    config_maps: tuple[ConfigMap, ...] = ()
    advertisements_readable: bool = True
    peers_readable: bool = True

    @property
    def speakers(self) -> frozenset[Address]:
        """The addresses of the BGPPeers, also while there is no pool."""
        return frozenset(peer.address for peer in self.peers if peer.address is not None)

    def configuration(self, known: MetalLBConfig | None) -> tuple[MetalLBConfig | None, tuple[Rejection, ...]]:
        """See metallb.configuration(). known: the last good one, which what can't be read is taken from.

        A ConfigMap that an upgrade of MetalLB has left behind does not come to power again.
        """
        replaced = known is not None and known.of_pool_objects
        config_maps = () if replaced else self.config_maps
        found, rejections = configuration(self.pools, self.advertisements, self.peers, config_maps)
        if found is not None and known is not None and found.of_pool_objects:
            found = self._completed(found, known)
        return found, rejections

    def _completed(self, found: MetalLBConfig, known: MetalLBConfig) -> MetalLBConfig:
        if not self.advertisements_readable:
            announced = {pool.source for pool in known.pools if pool.advertised}
            pools = tuple(replace(pool, advertised=pool.advertised or pool.source in announced) for pool in found.pools)
            found = replace(found, pools=pools)
        return found if self.peers_readable else replace(found, peers=found.peers | known.peers)


def _contents(configuration: MetalLBConfig) -> set[object]:
    """What each object that can go by itself adds to a configuration."""
    pools = ((pool.source, advertised) for pool in configuration.pools for advertised in (False, pool.advertised))
    return {*pools, *configuration.peers}


def judge(metallb: MetalLBObjects, known: MetalLBConfig | None) -> tuple[MetalLBConfig | None, tuple[Rejection, ...]]:
    """What MetalLB's objects say now, None if nothing good, and what is wrong with it and what holds instead."""
    found, rejections = metallb.configuration(known)
    stays = "; the last good pools stay" if known else "; no pools are known"
    return found, tuple(replace(each, message=each.message + stays) for each in rejections)


class PoolTracker:
    """Remembers the last good configuration.

    known: None if none was ever seen.  speakers: the present BGPPeers' addresses.
    deadline: when it shows whether what is gone was all that goes, in the clock's seconds; inf if nothing is missing.
    rejections: what is wrong with the present one; a new tuple whenever it was looked at.
    """

    def __init__(self, known: MetalLBConfig | None) -> None:
        self.known = known
        self.rejections: tuple[Rejection, ...] = ()
        self.speakers: frozenset[Address] = frozenset()
        self.deadline = float("inf")
        self._missing_since: float | None = None
        self._looked: MetalLBObjects | None = None

    def look(self, objects: MetalLBObjects, now: float) -> None:
        """Take up what MetalLB's complete lists say. now: the clock's seconds."""
        new = objects != self._looked
        if not new and self._missing_since is None:
            return
        self._looked = objects
        self.speakers = objects.speakers
        found, self.rejections = judge(objects, self.known)
        if not self._is_suspect(found, now, new=new):
            self.known = found or self.known

    def relist(self) -> None:
        """The lists are not complete any more: what comes is judged anew."""
        self._missing_since, self.deadline = None, float("inf")

    def _is_suspect(self, found: MetalLBConfig | None, now: float, *, new: bool) -> bool:
        """Whether something is gone, and soon all may be: where the kinds are removed, their objects go one by one."""
        if found is None or self.known is None or not _contents(self.known) - _contents(found):
            self.relist()
            return False
        if self._missing_since is None:
            self._missing_since, new = now, True
        if new:
            self.deadline = min(now + GRACE_PERIOD, self._missing_since + MAX_GRACE_PERIOD)
        if now < self.deadline:
            return True
        self.relist()
        return False
