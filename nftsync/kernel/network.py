"""This machine's network as a sync needs it: the public NIC, the router's addresses, its BGP peers, and the ingress qdisc."""

from __future__ import annotations

import logging

from nftsync.kernel.interfaces import LinkError, Links
from nftsync.objects.address import Address, Local
from nftsync.plan.snapshot import Interfaces

_PEERS = 10_000  # that are remembered; more are no peers but somebody who tries port 179

log = logging.getLogger(__name__)


class Network:
    """What was seen at the last look. One thread owns it.

    local, peers: what a process before this one saw; they hold until this one has looked, and where it can't.
    """

    def __init__(self, links: Links, local: Local | None, peers: frozenset[Address]) -> None:
        self._links = links
        self._local = local
        self._peers = peers
        self._index: int | None = None
        self._missed: str | None = None  # the NIC that was not there

    def look(self, nic: str | None) -> Interfaces:
        """What is there now; what the kernel does not tell is as it was before."""
        self._look_for(nic)
        try:
            self._local = self._links.local()
            met = self._peers | self._links.bgp_peers()  # one whose session is down is a peer all the same
            self._peers = met if len(met) <= _PEERS else self._links.bgp_peers()
        except LinkError as error:
            log.warning("%s; what was known before holds", error)
        return Interfaces(self._index, self._local, self._peers)

    def _look_for(self, nic: str | None) -> None:
        try:
            index = self._links.index(nic) if nic else None
        except LinkError as error:
            log.warning("%s; what was known before holds", error)
            return
        missed = nic if index is None else None
        if missed and missed != self._missed:
            log.warning("there is no interface %s: until there is, every one counts as public, no rate limit is in force", missed)
        elif self._missed and not missed:
            log.info("the interface %s is there: it alone counts as public", nic)
        self._missed, self._index = missed, index or 0

    def settle(self, *, shaped: bool, ours: int | None) -> int | None:
        """Give the public NIC an ingress qdisc if its limits need one, and take ours away where none is needed any more.

        ours: index of the NIC that has one of ours, None for none; returns it as it is then. One of others is left alone.
        """
        wanted = self._index if shaped else None
        try:
            if ours is not None and ours != wanted:
                if self._links.ingress_kind(ours) == "ingress":
                    self._links.remove_ingress(ours)
                ours = None
            if wanted and self._links.ingress_kind(wanted) is None:
                self._links.add_ingress(wanted)
                ours = wanted
        except LinkError as error:
            log.warning("public NIC: %s", error)
        return ours

    def routed(self, address: Address) -> bool:
        """Whether packets to an address leave the router, and not through the public NIC."""
        way = self._links.way_to(address)
        return way is not None and way != self._index
