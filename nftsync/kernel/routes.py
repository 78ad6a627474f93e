"""Read the routes of this machine through netlink, in any thread.

Source: rtnetlink(7), linux/rtnetlink.h.
"""

import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from ipaddress import ip_network
from itertools import islice
from typing import NamedTuple

from nftsync.kernel.netlink import DumpError, Fields, Netlink, attribute, complete, fields
from nftsync.objects.address import Address, AddressSet, Range
from nftsync.policy.pinholes import Pinhole
from nftsync.policy.public import Uplink
from nftsync.report.traffic import Reachability, Routes, judge

MOST_ROUTES = 50_000  # to read; a router with the full Internet table has a million
_VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}
_GET_ROUTES = 26  # RTM_GETROUTE
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_DESTINATION, _DEVICE, _HOPS, _TABLE = 1, 4, 9, 15  # RTA_DST, RTA_OIF, RTA_MULTIPATH, RTA_TABLE
_HOP = struct.Struct("=HBBi")  # struct rtnexthop; the last is the interface
_LOCAL_TABLE = 255
_UNICAST = 1  # RTN_UNICAST: neither local nor a blackhole
_CLONED = 0x200  # RTM_F_CLONED: a cached result, not a route
_ROUTING = {186: "BGP", 12: "BIRD"}  # RTPROT_*: routing daemons that install routes


class _Route(NamedTuple):
    """A route of another table than the local one. length: of its prefix.  protocol: who installed it."""

    length: int
    protocol: int
    forwards: bool
    values: Fields

    @property
    def destination(self) -> bytes:
        """Its network number; empty for a default route."""
        return self.values.get(_DESTINATION, b"")

    def devices(self) -> Iterator[int]:
        """The index of its interface, or those of its next hops."""
        if _DEVICE in self.values:
            yield _integer(self.values[_DEVICE])
        hops, at = self.values.get(_HOPS, b""), 0
        while at + _HOP.size <= len(hops):
            length, _, _, index = _HOP.unpack_from(hops, at)
            yield index
            at += max(length + 3 & ~3, _HOP.size)


def reachability(
    pinholes: Mapping[str, Pinhole], legal: AddressSet | None, most: int = MOST_ROUTES
) -> Reachability | None:
    """Compare the open pinholes with the routes of this thread's network namespace.

    None if there are more than `most` routes. Raises DumpError.
    """
    routes = read(most)
    return None if routes is None else judge(routes, pinholes, legal)


def read(most: int = MOST_ROUTES) -> Routes | None:
    """The routes of this thread's network namespace, without local ones.

    None if there are more than `most`. Raises DumpError.
    """
    with Netlink(socket.NETLINK_ROUTE) as kernel:
        return complete(lambda: _read(kernel, most))


def uplinks(legal: AddressSet | None) -> frozenset[Uplink]:
    """The interfaces with a default route, or with a route of a routing daemon out of the pools.

    Each interface with one such route at most of each kind.  legal: None while no pools are known;
    then only default routes count.  Raises DumpError.
    """
    found: dict[tuple[int, bool], Uplink] = {}
    for family in _VERSIONS:
        # A socket for each family, because the kernel does not end a dump that is not read to its end.
        with Netlink(socket.NETLINK_ROUTE) as kernel:
            found = complete(partial(_uplinks, kernel, family, legal)) | found
    return frozenset(found.values())


def device(address: Address, kernel: Netlink) -> int | None:
    """The index of the interface that leads to an address; None without a route."""
    family = next(family for family, version in _VERSIONS.items() if version == address.version)
    request = _ROUTE.pack(family, address.max_prefixlen, *[0] * 7) + attribute(_DESTINATION, address.packed)
    try:
        (route,) = kernel.messages(_GET_ROUTES, request, dump=False)
    except DumpError:  # unreachable or prohibited, or the kernel lacks the family
        return None
    found = fields(route, _ROUTE.size).get(_DEVICE)
    return None if found is None else _integer(found)


def _read(kernel: Netlink, most: int) -> Routes | None:
    routes, seen = Routes(), 0
    for family, version in _VERSIONS.items():
        for route in _routes(kernel, family):
            seen += 1
            if seen > most:
                return None
            routes.add(version, route.length, int.from_bytes(route.destination), forwards=route.forwards)
    return routes


def _uplinks(kernel: Netlink, family: int, legal: AddressSet | None) -> dict[tuple[int, bool], Uplink]:
    """The first uplink by interface, and by whether its route is a default route: these come first in a dump."""
    found: dict[tuple[int, bool], Uplink] = {}
    for route in islice(_routes(kernel, family), MOST_ROUTES):
        what, daemon = "a default route", _ROUTING.get(route.protocol)
        if route.length:
            if daemon is None or legal is None:
                continue
            network = ip_network((route.destination, route.length))
            if legal.covers(Range.of(network)):
                continue
            what = f"a route to {network} by {daemon}"
        for index in route.devices() if route.forwards else ():
            found.setdefault((index, not route.length), Uplink(index, what))
    return found


def _routes(kernel: Netlink, family: int) -> Iterator[_Route]:
    for content in kernel.messages(_GET_ROUTES, _ROUTE.pack(family, *[0] * 8)):
        _, length, _, _, table, protocol, _, kind, flags = _ROUTE.unpack_from(content)
        values = fields(content, _ROUTE.size)
        table = _integer(values[_TABLE]) if _TABLE in values else table
        if table != _LOCAL_TABLE and not flags & _CLONED:
            yield _Route(length, protocol, kind == _UNICAST, values)


def _integer(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)
