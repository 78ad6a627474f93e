"""Keeps the guard up to date: with MetalLB's pools, the router's own addresses and its BGP peers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address

from nftsync.config import Boundary, Enforcement
from nftsync.files.store import State
from nftsync.kernel.interfaces import LinkError, Links, Local
from nftsync.objects.address import Address, AddressSet, Range
from nftsync.policy.guard import UNGUARDED, Guard
from nftsync.policy.pools import Pools

_PEERS = 10_000  # that are remembered; more are no peers but somebody who tries port 179

log = logging.getLogger(__name__)


class Guarding:
    """guard: what judges addresses now.  pools: the last good ones.  former: addresses that had pinholes before the guard
    refused them.
    """

    def __init__(self, links: Links, state: State) -> None:
        self._links = links
        self._local: Local | None = None
        self._peers: frozenset[Address] = frozenset()
        self.pools = Pools(state.metallb, time.monotonic)
        self.guard = UNGUARDED
        self.former = state.former

    @property
    def own(self) -> frozenset[Address]:
        return self._local.addresses if self._local else frozenset()

    @property
    def cluster(self) -> AddressSet:
        """The addresses that are to be cut off where they have no pinhole; those that left the pools were the cluster's, too."""
        return self.guard.cluster | AddressSet.of(Range(each, each) for each in self.former)

    def look(self, boundary: Boundary) -> Guard:
        """The guard as pools, addresses and peers are now. Raises LinkError before the router's addresses were ever seen."""
        local = self._local
        try:
            local = self._local = self._links.local()
            self._meet(self._links.bgp_peers())
        except LinkError as fault:
            if local is None:
                raise
            log.warning("%s; what was known before holds", fault)
        reserved = local.addresses | self._peers | self.pools.speakers
        return Guard.of(boundary, self.pools.known, reserved, local.networks)

    def _meet(self, peers: frozenset[Address]) -> None:
        """A peer whose session is down is one all the same."""
        met = self._peers | peers
        self._peers = met if len(met) <= _PEERS else peers

    def renew(self, boundary: Boundary, opened: Callable[[], Iterable[str]]) -> bool:
        """Judge by what is known now; returns whether that is otherwise than before. opened: keys of pinholes that were open.

        Raises what look() and `opened` raise; then all is as before.
        """
        guard = self.look(boundary)
        if guard == self.guard:
            return False
        addresses = {ip_address(key.partition(" ")[0]) for key in opened()}
        self.guard = guard
        self.former = frozenset(each for each in self.former | addresses if not guard.admits(each))
        return True

    def waits(self, boundary: Boundary) -> bool:
        """Whether nothing can be judged yet."""
        return boundary.enforcement is not Enforcement.IGNORED and not self.pools.looked
