"""Read the routes of this machine through netlink, in any thread. Source: rtnetlink(7)."""

import socket
import struct
import sys
from collections.abc import Mapping

from nftsync.kernel.netlink import DumpError, Netlink, attribute, complete, fields
from nftsync.objects.address import AddressSet
from nftsync.policy.pinholes import Pinhole
from nftsync.report.traffic import Reachability, Routes, judge

MOST_ROUTES = 50_000  # to read; a router with the full Internet table has a million
_GET_ROUTES = 26  # RTM_GETROUTE
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_DESTINATION, _DEVICE, _TABLE = 1, 4, 15  # RTA_DST, RTA_OIF, RTA_TABLE
_LOCAL_TABLE = 255
_UNICAST = 1  # RTN_UNICAST: neither local nor a blackhole
_CLONED = 0x200  # RTM_F_CLONED: a cached result, not a route


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


def device(kernel: Netlink, address: bytes) -> int | None:
    """The index of the interface that leads to an address; None without a route."""
    family, bits = socket.AF_INET if len(address) == 4 else socket.AF_INET6, 8 * len(address)
    request = _ROUTE.pack(family, bits, *[0] * 7) + attribute(_DESTINATION, address)
    try:
        (route,) = kernel.messages(_GET_ROUTES, request, dump=False)
    except DumpError:  # unreachable or prohibited
        return None
    found = fields(route, _ROUTE.size).get(_DEVICE)
    return None if found is None else int.from_bytes(found, sys.byteorder)


def _read(kernel: Netlink, most: int) -> Routes | None:
    routes, seen = Routes(), 0
    for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
        for content in kernel.messages(_GET_ROUTES, _ROUTE.pack(family, *[0] * 8)):
            _, length, _, _, table, _, _, kind, flags = _ROUTE.unpack_from(content)
            route = fields(content, _ROUTE.size)
            table = struct.unpack("=I", route[_TABLE])[0] if _TABLE in route else table
            if table == _LOCAL_TABLE or flags & _CLONED:
                continue
            seen += 1
            if seen > most:
                return None
            routes.add(version, length, int.from_bytes(route.get(_DESTINATION, b"")), forwards=kind == _UNICAST)
    return routes
