"""This machine's network: the public NIC, its ingress qdisc, addresses and BGP peers.

Links wraps pyroute2's errors as LinkError. Source: rtnetlink(7), sock_diag(7), tc(8).
"""

import errno
import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from pyroute2 import DiagSocket, IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK

from nftsync.objects.address import Address, Local, unmapped
from nftsync.objects.names import NftsyncError
from nftsync.plan.snapshot import Interfaces

INGRESS_KINDS = ("ingress", "clsact")  # either one offers the ingress hook; a NIC can have one of them
_CHECK = 1.0  # seconds until a stopped listener notices
_BGP = 179
_PEERS = 10_000  # to remember; a larger number is an attack on port 179
_ESTABLISHED = 1 << 1  # TCP_ESTABLISHED as a mask of states
# The kernel lacks sock_diag or inet_diag, or a sandbox prevents loading them.
_NO_DIAG = (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENOENT)

log = logging.getLogger(__name__)


class LinkError(NftsyncError):
    """The kernel refused to describe a network interface or to change it."""


@contextmanager
def _wrapped(doing: str) -> Iterator[None]:
    try:
        yield
    except (NetlinkError, OSError) as error:
        raise LinkError(f"the kernel refused to {doing}: {error}") from error


class Links:
    """Network interfaces of this network namespace. One thread owns a Links. Changes need CAP_NET_ADMIN."""

    def __init__(self) -> None:
        self._netlink = IPRoute()

    def close(self) -> None:
        self._netlink.close()

    def index(self, name: str) -> int | None:
        """The interface's index; None while there is no such interface."""
        with _wrapped(f"look for the interface {name}"):
            indices = self._netlink.link_lookup(ifname=name) or ()  # None if the clock jumped meanwhile
            return next(map(int, indices), None)

    @_wrapped("list queueing disciplines")
    def ingress_kind(self, index: int) -> str | None:
        """The interface's qdisc of INGRESS_KINDS; None without one."""
        qdiscs = self._netlink.get_qdiscs(index=index)
        kinds = {qdisc.get_attr("TCA_KIND") for qdisc in qdiscs if qdisc["index"] == index}
        return next((kind for kind in INGRESS_KINDS if kind in kinds), None)

    @_wrapped("add an ingress qdisc")
    def add_ingress(self, index: int) -> None:
        """Give the interface an ingress qdisc. Raises LinkError."""
        self._netlink.tc("add", "ingress", index)

    @_wrapped("remove an ingress qdisc")
    def remove_ingress(self, index: int) -> None:
        """Remove the interface's ingress qdisc. Raises LinkError."""
        self._netlink.tc("del", "ingress", index)

    @_wrapped("list addresses")
    def local(self) -> Local:
        """The router's addresses now. Raises LinkError."""
        addresses, networks = set[Address](), set[IPv4Network | IPv6Network]()
        for message in self._netlink.get_addr():
            peer = message.get_attr("IFA_ADDRESS")
            own = message.get_attr("IFA_LOCAL") or peer
            broadcast = message.get_attr("IFA_BROADCAST")
            addresses.update(ip_address(address) for address in (own, broadcast) if address)
            networks.update(
                ip_network((address, message["prefixlen"]), strict=False) for address in (own, peer) if address
            )
        addresses.update(  # it also answers to broadcast (RFC 919) and subnet-router anycast (RFC 4291)
            network.broadcast_address if network.version == 4 else network.network_address
            for network in networks
            if network.num_addresses > 2
        )
        return Local(frozenset(addresses), frozenset(networks))

    def way_to(self, address: Address) -> int | None:
        """The index of the interface that leads to an address; None without a route."""
        try:
            routes = self._netlink.route("get", dst=str(address))
            return next((int(index) for route in routes if (index := route.get_attr("RTA_OIF"))), None)
        except (NetlinkError, OSError):  # unreachable, prohibited, or the kernel lacks the family
            return None

    @_wrapped("list TCP connections")
    def bgp_peers(self) -> frozenset[Address]:
        """The BGP peers of this machine now: the other ends of TCP connections from or to port 179.

        Empty if the kernel does not support the query. Raises LinkError.
        """
        try:
            with DiagSocket() as sockets:
                sockets.bind()
                return frozenset(
                    unmapped(ip_address(session["idiag_dst"]))
                    for family in (socket.AF_INET, socket.AF_INET6)
                    for session in sockets.get_sock_stats(family=family, states=_ESTABLISHED)
                    if _BGP in (session["idiag_sport"], session["idiag_dport"])
                )
        except (NetlinkError, OSError) as error:
            if (error.code if isinstance(error, NetlinkError) else error.errno) not in _NO_DIAG:
                raise
            return frozenset()


def local_now() -> Local:
    """This machine's addresses now. Raises LinkError."""
    with closing(Links()) as links:
        return links.local()


class Network:
    """The network as of the last look. One thread owns it.

    local, peers: from an earlier process; they hold until a look succeeds.
    """

    def __init__(self, links: Links, local: Local | None, peers: frozenset[Address]) -> None:
        self._links = links
        self._seen = Interfaces(None, local, peers)
        self._missed: str | None = None  # the NIC that does not exist

    def look(self, nic: str | None) -> Interfaces:
        """The network now. If the kernel refuses a part, the previous values hold."""
        self._look_for(nic)
        try:
            self._seen = replace(self._seen, local=self._links.local())
            peers = self._links.bgp_peers()
            met = self._seen.peers | peers  # a peer stays one while its session is down
            self._seen = replace(self._seen, peers=met if len(met) <= _PEERS else peers)
        except LinkError as error:
            log.warning("%s; the previous values hold", error)
        return self._seen

    def _look_for(self, nic: str | None) -> None:
        try:
            index = self._links.index(nic) if nic else None
        except LinkError as error:
            log.warning("%s; the previous values hold", error)
            return
        missed = nic if index is None else None
        if missed and missed != self._missed:
            log.warning(
                "there is no interface %s: until it exists, every interface counts as public and no rate limit applies",
                missed,
            )
        elif self._missed and not missed:
            log.info("the interface %s exists; only it counts as public now", nic)
        self._missed, self._seen = missed, replace(self._seen, index=index or 0)

    def settle(self, *, shaped: bool, ours: int | None) -> int | None:
        """Give the public NIC an ingress qdisc if its limits need one; remove our qdisc from other NICs.

        ours: index of the NIC that has our qdisc, or None. Returns the new index.
        Foreign qdiscs stay untouched.
        """
        wanted = self._seen.index if shaped else None
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
        return way is not None and way != self._seen.index


def listen(wake: Callable[[], None], stop: threading.Event) -> None:
    """Call `wake` whenever an interface or an address appears, changes or goes, until `stop`.

    Blocks: give it a thread of its own.
    """
    while not stop.is_set():
        try:
            _listen(wake, stop)
        except (NetlinkError, OSError):  # ENOBUFS: the socket lost messages, so the caller looks again
            wake()
            stop.wait(_CHECK)


def _listen(wake: Callable[[], None], stop: threading.Event) -> None:
    with IPRoute() as netlink:
        netlink.bind(groups=RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR)
        poll = select.poll()  # select() takes no descriptor above 1023
        poll.register(netlink.fileno(), select.POLLIN)
        while not stop.is_set():
            if poll.poll(1000 * _CHECK):
                for _ in netlink.get():
                    pass
                wake()
