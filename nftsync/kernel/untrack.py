"""Forget the tracked connections of addresses that now bypass connection tracking.

An entry would outlive its connection's packets. If the addresses are tracked again later, the kernel
would judge by the entry's old TCP window and call good packets invalid.
Source: linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.
"""

import errno
import logging
import struct
import threading
from bisect import bisect_right
from collections.abc import Iterator

from nftsync.kernel.netlink import HEADER, PROTOCOL, DumpError, Netlink, attributes
from nftsync.objects.address import AddressSet

_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # of NFNL_SUBSYS_CTNETLINK
_FAMILIES = {4: 2, 6: 10}  # AF_INET, AF_INET6
_ORIGINAL, _ID, _ZONE = 1, 12, 18
# A tuple behind the headers of itself, its IP part and its source. The kernel writes no other order.
_ENDS = {4: struct.Struct("4s4x4s"), 6: struct.Struct("16s4x16s")}
_HEADERS = 12

log = logging.getLogger(__name__)


def forget_soon(addresses: AddressSet) -> threading.Thread:
    """Delete the entries in a thread of its own: there can be a million."""
    thread = threading.Thread(target=_forget, args=(addresses,), name="untrack", daemon=True)
    thread.start()
    return thread


def _forget(addresses: AddressSet) -> None:
    try:
        forget(addresses)
    except DumpError as error:
        log.warning("connection tracking keeps old entries of the pools until they expire: %s", error)


def forget(addresses: AddressSet) -> None:
    """Delete every entry with one of these addresses, in this thread's network namespace. Raises DumpError."""
    with Netlink(PROTOCOL) as reader, Netlink(PROTOCOL) as writer:
        for version in _FAMILIES:
            for entry in _entries(reader, version, addresses):
                _delete(writer, entry)


def _entries(kernel: Netlink, version: int, addresses: AddressSet) -> Iterator[bytes]:
    """The requests that delete these entries."""
    ranges = [(part.first.packed, part.last.packed) for part in addresses.ranges if part.version == version]
    family, ends = struct.pack(">BBH", _FAMILIES[version], 0, 0), _ENDS[version].unpack_from
    for content in kernel.messages(_GET, family) if ranges else ():
        (length,) = struct.unpack_from("=H", content, HEADER)
        reply = HEADER + (length + 3 & ~3)
        pairs = ends(content, HEADER + _HEADERS) + ends(content, reply + _HEADERS)  # NAT makes them differ
        if any(_held(address, ranges) for address in pairs):
            yield family + b"".join(
                content[start - 4 : end + 3 & ~3]
                for kind, start, end in attributes(content, HEADER, len(content))
                if kind in (_ORIGINAL, _ID, _ZONE)
            )


def _held(address: bytes, ranges: list[tuple[bytes, bytes]]) -> bool:
    """Whether a range contains the address. ranges: sorted."""
    before = bisect_right(ranges, address, key=lambda part: part[0])
    return before > 0 and address <= ranges[before - 1][1]


def _delete(kernel: Netlink, entry: bytes) -> None:
    try:
        for _ in kernel.messages(_DELETE, entry, dump=False):
            pass
    except DumpError as error:
        if error.number != errno.ENOENT:  # it has ended by itself
            raise
