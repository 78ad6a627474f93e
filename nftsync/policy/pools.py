"""MetalLB's objects, and MetalLB's last known good configuration.

The last good configuration stays in force while a later one is invalid. It stays for good if
MetalLB's objects vanish: the cluster then keeps its addresses and gets no others. A part of it stays
in force while nftsync cannot read its kind of objects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nftsync.objects.address import Address
from nftsync.objects.metallb import AddressPool, Advertisement, ConfigMap, MetalLBConfig, Peer, configuration
from nftsync.objects.names import Rejection

GRACE_PERIOD = 0.3  # seconds without a change until nftsync believes that missing pools are deleted
MAX_GRACE_PERIOD = 0.6  # the same, in seconds since the first change


@dataclass(frozen=True, slots=True)
class MetalLBObjects:
    """MetalLB's objects at one moment.

    advertisements_readable, peers_readable: whether the server lists these kinds for nftsync.
    """

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
        """See metallb.configuration().

        known: the last good one. nftsync takes unreadable parts from it.
        An upgrade of MetalLB can leave the old ConfigMap behind. It does not count any more once
        there were pool objects.
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
    """The parts of a configuration that can vanish one by one."""
    pools = ((pool.source, advertised) for pool in configuration.pools for advertised in (False, pool.advertised))
    return {*pools, *configuration.peers}


def judge(metallb: MetalLBObjects, known: MetalLBConfig | None) -> tuple[MetalLBConfig | None, tuple[Rejection, ...]]:
    """The configuration of MetalLB's objects, None if it is not good, and its rejections.

    Each rejection says which pools hold instead.
    """
    found, rejections = metallb.configuration(known)
    stays = "; the last good pools stay" if known else "; no pools are known"
    return found, tuple(replace(each, message=each.message + stays) for each in rejections)


class PoolTracker:
    """Remembers the last good configuration.

    known: the last good configuration, None before the first one.
    speakers: addresses of the present BGPPeers.
    deadline: end of the doubt about missing objects, in the clock's seconds; inf without doubt.
    rejections: of the present configuration; a new tuple after each look.
    """

    def __init__(self, known: MetalLBConfig | None) -> None:
        self.known = known
        self.rejections: tuple[Rejection, ...] = ()
        self.speakers: frozenset[Address] = frozenset()
        self.deadline = float("inf")
        self._missing_since: float | None = None
        self._looked: MetalLBObjects | None = None

    def look(self, objects: MetalLBObjects, now: float) -> None:
        """Take MetalLB's complete lists. now: the clock's seconds."""
        new = objects != self._looked
        if not new and self._missing_since is None:
            return
        self._looked = objects
        self.speakers = objects.speakers
        found, self.rejections = judge(objects, self.known)
        if not self._is_suspect(found, now, new=new):
            self.known = found or self.known

    def relist(self) -> None:
        """End the doubt, because the lists are incomplete again."""
        self._missing_since, self.deadline = None, float("inf")

    def _is_suspect(self, found: MetalLBConfig | None, now: float, *, new: bool) -> bool:
        """Whether objects are missing, and others may follow.

        If somebody removes the kinds, the server deletes their objects one by one.
        """
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
