"""This machine's network for a sync: the public NIC, its ingress qdisc, addresses and BGP peers."""

from __future__ import annotations

import logging

from nftsync.kernel.interfaces import LinkError, Links
from nftsync.objects.address import Address, Local
from nftsync.plan.snapshot import Interfaces

_PEERS = 10_000  # to remember; a larger number is an attack on port 179

log = logging.getLogger(__name__)


class Network:
    """The network as of the last look. One thread owns it.

    local, peers: from an earlier process; they hold until a look succeeds.
    """

    def __init__(self, links: Links, local: Local | None, peers: frozenset[Address]) -> None:
        self._links = links
        self._local = local
        self._peers = peers
        self._index: int | None = None
        self._missed: str | None = None  # the NIC that does not exist

    def look(self, nic: str | None) -> Interfaces:
        """The network now. If the kernel refuses a part, the previous values hold."""
        self._look_for(nic)
        try:
            self._local = self._links.local()
            met = self._peers | self._links.bgp_peers()  # a peer stays one while its session is down
            self._peers = met if len(met) <= _PEERS else self._links.bgp_peers()
        except LinkError as error:
            log.warning("%s; the previous values hold", error)
        return Interfaces(self._index, self._local, self._peers)

    def _look_for(self, nic: str | None) -> None:
        try:
            index = self._links.index(nic) if nic else None
        except LinkError as error:
            log.warning("%s; the previous values hold", error)
            return
        missed = nic if index is None else None
        if missed and missed != self._missed:
            log.warning(
                "there is no interface %s: until it exists, every interface counts as public and no rate limit applies", missed
            )
        elif self._missed and not missed:
            log.info("the interface %s exists; only it counts as public now", nic)
        self._missed, self._index = missed, index or 0

    def settle(self, *, shaped: bool, ours: int | None) -> int | None:
        """Give the public NIC an ingress qdisc if its limits need one; remove our qdisc from other NICs.

        ours: index of the NIC that has our qdisc, or None. Returns the new index.
        Foreign qdiscs stay untouched.
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
        """True if the router sends packets for an address on, and not through the public NIC."""
        way = self._links.way_to(address)
        return way is not None and way != self._index
