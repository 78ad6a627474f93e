"""Connections in conntrack: delete those that a change of pinholes has ended.

After that, the next packet of a client is new, so no rule accepts it for the sake of an established
connection. Deleting a connection also ends its offload to a flowtable. The rules hold without this.

A connection from inside stays if the router translates its addresses. No rule refuses it, and it would
not survive without its entry.

Stateless pools need it: an entry outlives its packets, which conntrack no longer sees. If the pools are
tracked again later, the kernel would compare with its old TCP window and call good packets invalid.

A router can have a million connections, so the kernel filters the dump (Linux 5.8 and newer).
pyroute2's NFCTSocket filters, too, but it makes an object of every attribute.
Source: linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.
"""

import errno
import logging
import socket
import struct
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from ipaddress import ip_address
from itertools import islice
from typing import NamedTuple

from nftsync.kernel import routes
from nftsync.kernel.netlink import HEADER, PROTOCOL, DumpError, Netlink, attribute, fields
from nftsync.objects.address import AddressSet, Network, Range
from nftsync.plan.closed import MAX, Cut
from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.model import PROTOCOLS

_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # of NFNL_SUBSYS_CTNETLINK
_FAMILIES = {4: 2, 6: 10}  # AF_INET, AF_INET6
_ORIGINAL, _REPLY, _STATUS, _ID, _ZONE, _FILTER = 1, 2, 3, 12, 18, 25
_TRANSLATED = 0x30  # IPS_NAT_MASK
_NESTED = 0x8000  # a flag of a type, which the kernel demands of the filter
_IP, _PROTOCOL = 1, 2  # of a tuple
_SOURCE = 1  # of the IP part, in IPv4
_NUMBER, _SOURCE_PORT = 1, 2  # of the protocol part
_FILTERED = {_ORIGINAL: 1, _REPLY: 2}
_BY_ENDPOINT, _BY_PORT = 0b11001, 0b11000  # what a filter compares: source address, protocol, source port
# A tuple behind its first three headers: source, destination, protocol, source port. The kernel writes no other order.
_TUPLE = {4: struct.Struct(">4s4x4s8xB7xH"), 6: struct.Struct(">16s4x16s8xB7xH")}
_HEADERS = 12
_Tuple = tuple[bytes, bytes, int, int]
_FEW = 8  # endpoints to filter for, because each filter looks at every connection once
_CHECK = 1.0  # seconds until a stopped thread notices
_RETRY = 5.0  # seconds until the next try
_REST = 4  # after a search the thread rests so many times as long as that took

log = logging.getLogger(__name__)


class _Endpoint(NamedTuple):
    """A pinhole's key as in a message: address, number of the protocol, port."""

    address: bytes
    protocol: int
    port: int

    @classmethod
    def of(cls, key: str) -> "_Endpoint":
        address, protocol, port = key.split(" . ")
        number = next(number for number, name in PROTOCOLS.items() if name == protocol)
        return cls(ip_address(address).packed, number, int(port))


class Cutter:
    """Deletes connections in a thread of its own. take() and take_idle() are for other threads.

    opened: a copy of the open pinholes, for any thread. Their connections stay, even if they were to end.
    clock: monotonic seconds.
    """

    def __init__(
        self, opened: Callable[[], Mapping[str, Pinhole]] = dict, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._opened, self._clock = opened, clock
        self._lock = threading.Condition()
        self._waiting: dict[str, tuple[Network, ...]] = {}
        self._untracked = AddressSet()
        self._public: Collection[int] | None = None
        self._idle: frozenset[str] = frozenset()
        self._told = False  # the log already has a warning

    def take(
        self,
        cut: Cut,
        untracked: AddressSet = AddressSet(),  # noqa: B008  # immutable
        public: Collection[int] | None = None,
    ) -> None:
        """Delete these connections soon. untracked: delete all of these addresses, too.  public: see end()."""
        if cut or untracked.ranges:
            with self._lock:
                self._public = public
                self._wait_for(cut)
                self._untracked |= untracked
                self._lock.notify()

    def _wait_for(self, cut: Cut) -> None:
        """Keep the latest of the connections that wait: the rules drop the packets of all."""
        self._waiting.update(cut)
        for key in tuple(islice(self._waiting, max(0, len(self._waiting) - MAX))):
            del self._waiting[key]

    def take_idle(self) -> frozenset[str]:
        """The endpoints that had no connection to delete when this last looked."""
        with self._lock:
            idle, self._idle = self._idle, frozenset()
        return idle

    def run(self, stop: threading.Event) -> None:
        """Delete connections until `stop`."""
        while not stop.is_set():
            with self._lock:
                self._lock.wait_for(lambda: self._waiting or self._untracked.ranges, _CHECK)
                waiting, self._waiting = self._waiting, {}
                untracked, self._untracked = self._untracked, AddressSet()
                public = self._public
            began = self._clock()
            try:
                forget(untracked)
                still = self._still(waiting)
                idle = end(still, public) if still else frozenset()
            except DumpError as error:
                self._failed(waiting, untracked, error)
                stop.wait(_RETRY)
            else:
                with self._lock:
                    self._idle = (self._idle if len(self._idle) < MAX else frozenset()) | idle
                # An object that changes without end must not keep the kernel at searching a large table.
                stop.wait(min(_REST * (self._clock() - began), _RETRY))

    def _still(self, waiting: Cut) -> Cut:
        """The connections that must end still: meanwhile, a pinhole can have opened again."""
        opened = self._opened() if waiting else {}
        sources = {key: opened[key].sources if key in opened else allowed for key, allowed in waiting.items()}
        return {key: allowed for key, allowed in sources.items() if allowed is not None}

    def _failed(self, waiting: Cut, untracked: AddressSet, error: DumpError) -> None:
        """Keep the connections for the next try. Log only the first failure."""
        if not self._told:
            log.warning("conntrack keeps connections that should end; the rules drop their packets: %s", error)
        self._told = True
        with self._lock:
            later, self._waiting = self._waiting, {}
            self._wait_for({**waiting, **later})
            self._untracked |= untracked


def end(cut: Cut, public: Collection[int] | None = None) -> frozenset[str]:
    """Delete connections in this thread's network namespace. Returns the endpoints that had none to delete.

    public: indices of the public interfaces, None if all are public. Translated connections with hosts
    behind other interfaces stay.
    Raises DumpError.
    """
    keys = {_Endpoint.of(key): key for key in cut}
    busy = set[_Endpoint]()
    with Netlink(PROTOCOL) as reader, Netlink(PROTOCOL) as writer, Netlink(socket.NETLINK_ROUTE) as router:

        @cache
        def is_public(address: bytes) -> bool:
            device = None if public is None else routes.device(ip_address(address), router)
            return public is None or device is None or device in public

        for version in _FAMILIES:
            of_family = ((each, key) for each, key in keys.items() if len(each.address) == (4 if version == 4 else 16))
            some = {each: AddressSet.of(map(Range.of, cut[key])) for each, key in of_family}
            for endpoint, connection in _connections(reader, version, some, is_public):
                busy.add(endpoint)
                _delete(writer, connection)
    return frozenset(key for endpoint, key in keys.items() if endpoint not in busy)


def forget(addresses: AddressSet) -> None:
    """Delete every connection of these addresses in this thread's network namespace. Raises DumpError."""
    versions = {part.version for part in addresses.ranges}
    with Netlink(PROTOCOL) as reader, Netlink(PROTOCOL) as writer:
        for version in versions:
            for connection in connections_of(reader, version, addresses):
                _delete(writer, connection)


def connections_of(kernel: Netlink, version: int, addresses: AddressSet) -> Iterator[bytes]:
    """The bodies of the requests to delete these connections. Raises DumpError."""
    ranges = [(part.first.packed, part.last.packed) for part in addresses.ranges if part.version == version]
    starts = [first for first, _ in ranges]
    for content, original, answers in _listed(kernel, version, b""):
        for address in {*original[:2], *answers[:2]}:  # NAT makes them differ
            before = bisect_right(starts, address)
            if before and address <= ranges[before - 1][1]:
                yield _request(version, content)
                break


def _connections(
    kernel: Netlink,
    version: int,
    allowed: Mapping[_Endpoint, AddressSet],
    is_public: Callable[[bytes], bool],
) -> Iterator[tuple[_Endpoint, bytes]]:
    """The connections to delete: their endpoint, and the body of the request to delete them.

    The endpoint is the source of the answers. This is so after DNAT, too. If conntrack has seen the
    server first, the endpoint is the source of the first packet.
    allowed: endpoints, and the sources that may stay.  is_public: whether packets to an address leave
    by a public interface.
    """
    for filtered in _filters(version, allowed):
        for content, original, answers in _listed(kernel, version, filtered):
            for (here, _, protocol, port), there in ((answers, original[0]), (original, answers[0])):
                endpoint = _Endpoint(here, protocol, port)
                if endpoint in allowed and ip_address(there) not in allowed[endpoint]:
                    if not _is_translated(content) or is_public(there):
                        yield endpoint, _request(version, content)
                    break


def _listed(kernel: Netlink, version: int, filtered: bytes) -> Iterator[tuple[bytes, _Tuple, _Tuple]]:
    """The message about each connection, its first direction and the answers'. filtered: a filter, or empty."""
    parse = _TUPLE[version].unpack_from
    for content in kernel.messages(_GET, _family(version) + filtered):
        (length,) = struct.unpack_from("=H", content, HEADER)
        answers = parse(content, HEADER + (length + 3 & ~3) + _HEADERS)
        yield content, parse(content, HEADER + _HEADERS), answers


def _is_translated(content: bytes) -> bool:
    status = fields(content, HEADER).get(_STATUS, b"")
    return bool(int.from_bytes(status) & _TRANSLATED)


def _request(version: int, content: bytes) -> bytes:
    """The body of the request to delete a listed connection."""
    known = fields(content, HEADER)
    names = (attribute(kind, known[kind]) for kind in (_ORIGINAL, _ZONE, _ID) if kind in known)
    return _family(version) + b"".join(names)


def _family(version: int) -> bytes:
    return struct.pack(">BBH", _FAMILIES[version], 0, 0)


def _filters(version: int, endpoints: Collection[_Endpoint]) -> Iterator[bytes]:
    """The requests that list all connections of these endpoints, and few others."""
    if len(endpoints) > _FEW:
        yield b""
        return
    tuples = set[bytes]()
    for address, protocol, port in endpoints:
        ports = attribute(_NUMBER, bytes([protocol])) + attribute(_SOURCE_PORT, port.to_bytes(2))
        # Linux compares IPv6 addresses the wrong way round here: it lists all others.
        source = attribute(_IP, attribute(_SOURCE, address)) if version == 4 else b""
        tuples.add(source + attribute(_PROTOCOL, ports))
    flags = (_BY_ENDPOINT if version == 4 else _BY_PORT).to_bytes(4, sys.byteorder)
    for each in sorted(tuples):
        for kind, filtered in _FILTERED.items():
            yield attribute(kind, each) + attribute(_FILTER | _NESTED, attribute(filtered, flags))


def _delete(kernel: Netlink, connection: bytes) -> None:
    try:
        for _ in kernel.messages(_DELETE, connection, dump=False):
            pass
    except DumpError as error:
        if error.number != errno.ENOENT:  # it has ended by itself
            raise
