"""This machine's network: the public interfaces, their ingress qdiscs, addresses and BGP peers.

Links wraps pyroute2's errors as LinkError. Source: rtnetlink(7), sock_diag(7), tc(8).
"""

import errno
import logging
import select
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import chain, repeat
from threading import Event

from pyroute2 import DiagSocket, IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK

from nftsync.kernel import routes
from nftsync.kernel.links import read_links
from nftsync.kernel.netlink import DumpError, Netlink
from nftsync.objects.address import Address, AddressSet, Local, unmapped
from nftsync.objects.names import NftsyncError
from nftsync.objects.nft import Nics
from nftsync.plan.snapshot import Interfaces
from nftsync.policy.public import Uplink, public_side
from nftsync.report.events import Bucket

INGRESS_KINDS = ("ingress", "clsact")  # either one offers the ingress hook; a NIC can have one of them
_CHECK = 1.0  # seconds until a stopped listener notices
_UPLINKS, _FIRST = 60.0, 2.0  # seconds between looks at the routes; between the first two
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
        self._names: Mapping[str, int] = {}  # the index of each interface
        self._lines = Bucket.of_object()  # in the log: an interface can come and go without end
        self.uplinks = frozenset[Uplink]()  # another thread replaces it

    def look(self, nics: Nics) -> Interfaces:
        """The network now. If the kernel refuses a part, the previous values hold."""
        try:
            links = read_links()
            self._names = {link.name: link.index for link in links}
            side = public_side(links, nics, self.uplinks, self._seen.side)
            self._seen = replace(self._seen, side=side, live=True)
        except DumpError as error:
            self._warn("the interfaces can't be read: %s; the previous ones hold", error)
        try:
            self._seen = replace(self._seen, local=self._links.local())
            peers = self._links.bgp_peers()
            met = self._seen.peers | peers  # a peer stays one while its session is down
            self._seen = replace(self._seen, peers=met if len(met) <= _PEERS else peers)
        except LinkError as error:
            self._warn("%s; the previous values hold", error)
        return self._seen

    def watch_uplinks(self, legal: Callable[[], AddressSet | None], wake: Callable[[], None], stop: Event) -> None:
        """Look for uplinks now and then, until `stop`; call `wake` if they have changed.

        legal: the addresses that the cluster may use; None while no pools are known.
        Blocks: give it a thread of its own.
        """
        pauses = chain((0.0, _FIRST), repeat(_UPLINKS))  # soon again: at the start no pools are known
        while not stop.wait(next(pauses)):
            with suppress(DumpError):
                uplinks = routes.uplinks(legal())
                if uplinks != self.uplinks:
                    self.uplinks = uplinks
                    wake()

    def settle(self, devices: Collection[str], ours: frozenset[int]) -> frozenset[int]:
        """Give interfaces with rate limits an ingress qdisc; remove our qdisc from the others.

        devices: names.  ours: indices of the interfaces that have our qdisc. Returns the new ones.
        Foreign qdiscs stay untouched.
        """
        wanted = {self._names[name] for name in devices if name in self._names}
        kept = set(ours & wanted)
        for index in sorted(ours - wanted):
            with self._warned():
                if self._links.ingress_kind(index) == "ingress":
                    self._links.remove_ingress(index)
        for index in sorted(wanted - ours):
            with self._warned():
                if self._links.ingress_kind(index) is None:
                    self._links.add_ingress(index)
                    kept.add(index)
        return frozenset(kept)

    @contextmanager
    def _warned(self) -> Iterator[None]:
        try:
            yield
        except LinkError as error:
            self._warn("public NIC: %s", error)

    def _warn(self, message: str, error: Exception) -> None:
        if self._lines.take(time.monotonic()):
            log.warning(message, error)

    def routed(self, address: Address) -> bool | None:
        """True if the router sends packets for an address on, and not through a public interface.

        None if the kernel does not tell.
        """
        try:
            with Netlink(socket.NETLINK_ROUTE) as kernel:
                way = routes.device(address, kernel)
        except DumpError:
            return None
        return way is not None and not (self._seen.side and way in self._seen.side.indices)


def listen(wake: Callable[[], None], stop: Event) -> None:
    """Call `wake` whenever an interface or an address appears, changes or goes, until `stop`.

    Blocks: give it a thread of its own.
    """
    while not stop.is_set():
        try:
            _listen(wake, stop)
        except (NetlinkError, OSError):  # ENOBUFS: the socket lost messages, so the caller looks again
            wake()
            stop.wait(_CHECK)


def _listen(wake: Callable[[], None], stop: Event) -> None:
    with IPRoute() as netlink:
        netlink.bind(groups=RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR)
        poll = select.poll()  # select() takes no descriptor above 1023
        poll.register(netlink.fileno(), select.POLLIN)
        while not stop.is_set():
            if poll.poll(1000 * _CHECK):
                for _ in netlink.get():
                    pass
                wake()
