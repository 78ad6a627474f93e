"""The router's network interfaces through rtnetlink: the public NIC, ingress qdiscs, addresses, BGP peers.

This module wraps pyroute2's errors as LinkError. Source: rtnetlink(7), sock_diag(7), tc(8).
"""

from __future__ import annotations

import errno
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address, ip_network

from pyroute2 import DiagSocket, IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK

from nftsync.objects.address import Address, Local, Network

INGRESS_KINDS = ("ingress", "clsact")  # either one offers the ingress hook; a NIC can have one of them
_CHECK = 1.0  # seconds until a stopped listener notices
_BGP = 179
_ESTABLISHED = 1 << 1  # TCP_ESTABLISHED as a mask of states
# The kernel lacks sock_diag or inet_diag, or a sandbox prevents loading them.
_NO_DIAG = (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENOENT)


class LinkError(Exception):
    """The kernel refused to describe a network interface or to change it."""


class Links:
    """Network interfaces of this network namespace. One thread owns a Links. Changes need CAP_NET_ADMIN."""

    def __init__(self) -> None:
        self._netlink = IPRoute()

    def close(self) -> None:
        self._netlink.close()

    def index(self, name: str) -> int | None:
        """The interface's index; None while there is no such interface."""
        with _wrapped(f"look for the interface {name}"):
            found = self._netlink.link_lookup(ifname=name)
            return int(found[0]) if found else None

    def ingress_kind(self, index: int) -> str | None:
        """The interface's qdisc of INGRESS_KINDS; None without one."""
        with _wrapped("list queueing disciplines"):
            kinds = [qdisc.get_attr("TCA_KIND") for qdisc in self._netlink.get_qdiscs(index=index) if qdisc["index"] == index]
        return next((str(kind) for kind in kinds if kind in INGRESS_KINDS), None)

    def add_ingress(self, index: int) -> None:
        """Give the interface an ingress qdisc. Raises LinkError."""
        with _wrapped("add an ingress qdisc"):
            self._netlink.tc("add", "ingress", index)

    def remove_ingress(self, index: int) -> None:
        """Remove the interface's ingress qdisc. Raises LinkError."""
        with _wrapped("remove an ingress qdisc"):
            self._netlink.tc("del", "ingress", index)

    def local(self) -> Local:
        """The router's addresses now. Raises LinkError."""
        addresses, networks = set[Address](), set[Network]()
        with _wrapped("list addresses"):
            for message in self._netlink.get_addr():
                peer = message.get_attr("IFA_ADDRESS")
                own = message.get_attr("IFA_LOCAL") or peer
                broadcast = message.get_attr("IFA_BROADCAST")
                addresses.update(ip_address(each) for each in (own, broadcast) if each)
                networks.update(ip_network((each, message["prefixlen"]), strict=False) for each in (own, peer) if each)
        addresses.update(map(_everybodys, (network for network in networks if network.num_addresses > 2)))
        return Local(frozenset(addresses), frozenset(networks))

    def way_to(self, address: Address) -> int | None:
        """The index of the interface that leads to an address; None without a route."""
        try:
            routes = self._netlink.route("get", dst=str(address))
            return next((int(index) for route in routes if (index := route.get_attr("RTA_OIF"))), None)
        except (NetlinkError, OSError):  # unreachable, prohibited, or the kernel lacks the family
            return None

    def bgp_peers(self) -> frozenset[Address]:
        """The BGP peers of this machine now: the other ends of TCP connections from or to port 179.

        Empty if the kernel does not support the query. Raises LinkError.
        """
        found = set()
        with _wrapped("list TCP connections"):
            try:
                with DiagSocket() as sockets:
                    sockets.bind()
                    for family in (socket.AF_INET, socket.AF_INET6):
                        for each in sockets.get_sock_stats(family=family, states=_ESTABLISHED):
                            if _BGP in (each["idiag_sport"], each["idiag_dport"]):
                                found.add(_unmapped(ip_address(each["idiag_dst"])))
            except (NetlinkError, OSError) as fault:
                if _number(fault) not in _NO_DIAG:
                    raise
        return frozenset(found)


def _number(fault: NetlinkError | OSError) -> int | None:
    """The error's errno."""
    return fault.code if isinstance(fault, NetlinkError) else fault.errno


def _everybodys(network: Network) -> Address:
    """The extra address that a router answers to: broadcast (RFC 919), subnet-router anycast (RFC 4291)."""
    return network.broadcast_address if network.version == 4 else network.network_address


def local_now() -> Local:
    """This machine's addresses now. Raises LinkError."""
    links = Links()
    try:
        return links.local()
    finally:
        links.close()


def _unmapped(address: Address) -> Address:
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


@contextmanager
def _wrapped(doing: str) -> Iterator[None]:
    try:
        yield
    except (NetlinkError, OSError) as fault:
        raise LinkError(f"the kernel refused to {doing}: {fault}") from fault


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
