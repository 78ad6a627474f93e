"""What MetalLB's objects say about addresses, and the last good configuration of it.

A configuration that was good once stays in force while a later one is invalid, and for good if MetalLB's objects vanish: then
the addresses that were the cluster's still are, and no others. So does each part of it that can't be read at the moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from nftsync.objects.address import Address
from nftsync.objects.metallb import AddressPool, Advertisement, ConfigMap, Configuration, Peer, configuration
from nftsync.objects.names import Rejection

DOUBT = 0.3  # seconds without another change until pools that are gone are gone
LONGEST_DOUBT = 0.6  # seconds until they are, whatever else changes


@dataclass(frozen=True, slots=True)
class PoolObjects:
    """MetalLB's objects in one namespace, and whether all of a kind could be read."""

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

    def configuration(self, known: Configuration | None) -> tuple[Configuration | None, tuple[Rejection, ...]]:
        """See metallb.configuration(). known: the last good one, which what can't be read is taken from.

        A ConfigMap that an upgrade of MetalLB has left behind does not come to power again.
        """
        replaced = known is not None and known.of_pool_objects
        config_maps = () if replaced else self.config_maps
        found, rejections = configuration(self.pools, self.advertisements, self.peers, config_maps)
        if found is not None and known is not None and found.of_pool_objects:
            found = self._completed(found, known)
        return found, rejections

    def _completed(self, found: Configuration, known: Configuration) -> Configuration:
        if not self.advertisements_readable:
            announced = {pool.source for pool in known.pools if pool.advertised}
            pools = tuple(replace(pool, advertised=pool.advertised or pool.source in announced) for pool in found.pools)
            found = replace(found, pools=pools)
        return found if self.peers_readable else replace(found, peers=found.peers | known.peers)


class Present(Protocol):
    """Where MetalLB's objects of one namespace are had from."""

    @property
    def synced(self) -> bool:
        """Whether every kind was listed once, or is not there."""

    @property
    def readable(self) -> tuple[bool, ...]:
        """Of each kind, whether it can be read."""

    def take(self) -> list[float]:
        """When the changes since the last take were received, the earliest of each kind (monotonic seconds)."""

    def objects(self) -> PoolObjects: ...


def _contents(configuration: Configuration) -> set[object]:
    """What each object that can go by itself adds to a configuration."""
    pools = ((pool.source, advertised) for pool in configuration.pools for advertised in (False, pool.advertised))
    return {*pools, *configuration.peers}


def judge(objects: PoolObjects, known: Configuration | None) -> tuple[Configuration | None, tuple[Rejection, ...]]:
    """What MetalLB's objects say now, None if nothing good, and what is wrong with it and what holds instead."""
    found, rejections = objects.configuration(known)
    stays = "; the last good pools stay" if known else "; no pools are known"
    return found, tuple(replace(each, message=each.message + stays) for each in rejections)


class Pools:
    """Remembers the last good configuration.

    clock: monotonic seconds.  known: None if none was ever seen.  speakers: the present BGPPeers' addresses.
    rejections: what is wrong with the present one; a new tuple whenever it was looked at.
    """

    def __init__(self, known: Configuration | None, clock: Callable[[], float]) -> None:
        self.known = known
        self._clock = clock
        self._doubted_since: float | None = None
        self._doubted_until = float("inf")
        self.rejections: tuple[Rejection, ...] = ()
        self.speakers: frozenset[Address] = frozenset()
        self._looked: tuple[Present, tuple[bool, ...]] | None = None

    def look(self, metallb: Present) -> list[float]:
        """Take up what MetalLB's objects say now, if it is complete, and new; returns when the news were received."""
        if not metallb.synced:
            self._doubted_since = None  # what comes is judged anew
            return []
        sinces, looked = metallb.take(), (metallb, metallb.readable)
        if sinces or self._looked != looked or self._doubted_since is not None:
            self._looked = looked
            objects = metallb.objects()
            self.speakers = objects.speakers
            found, self.rejections = judge(objects, self.known)
            if not self._doubted(found, new=bool(sinces)):
                self.known = found or self.known
        return sinces

    def _doubted(self, found: Configuration | None, *, new: bool) -> bool:
        """Whether something is gone, and soon all may be: where the kinds are removed, their objects go one by one."""
        now = self._clock()
        if found is None or self.known is None or not _contents(self.known) - _contents(found):
            self._doubted_since = None
            return False
        if self._doubted_since is None:
            self._doubted_since, new = now, True
        if new:
            self._doubted_until = min(now + DOUBT, self._doubted_since + LONGEST_DOUBT)
        if now < self._doubted_until:
            return True
        self._doubted_since = None
        return False

    @property
    def doubted(self) -> float:
        """Seconds until it shows whether what is gone was all that goes."""
        return float("inf") if self._doubted_since is None else max(0.0, self._doubted_until - self._clock())

    @property
    def looked(self) -> bool:
        """Whether MetalLB's objects, or that there are none, were ever seen by this process."""
        return self._looked is not None
