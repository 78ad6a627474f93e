"""What the kernel has counted at the elements and rules of our tables, through netlink, in any thread.

Not by libnftables: listing 10,000 elements takes it six times as long and 20 MB. Nothing here shares anything with
the Kernel that changes the tables. Source: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

from nftsync.netlink import DumpError, attribute, attributes, complete, messages
from nftsync.ruleset import FILTER, NAME, OPERATOR_SVC, SHAPER
from nftsync.traffic import Count, Element, Reading, Rule

_NETLINK_NETFILTER = 12
_NFTABLES = 10 << 8  # NFNL_SUBSYS_NFTABLES
_GET_RULES, _GET_ELEMENTS = _NFTABLES | 7, _NFTABLES | 13
_FAMILIES = {FILTER: 1, SHAPER: 5}  # NFPROTO_INET, NFPROTO_NETDEV
_HEADER = 4  # bytes of struct nfgenmsg
_GENERATION = slice(2, 4)  # of the ruleset, in struct nfgenmsg: every transaction has another one

_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS = 1, 2, 3, 4
_SET_TABLE, _SET_NAME, _SET_ELEMENTS = 1, 2, 3
_KEY, _FLAGS, _EXPRESSION, _KEY_END, _EXPRESSIONS = 1, 3, 7, 10, 11  # of an element
_INTERVAL_END = 1  # a flag
_NAME, _DATA = 1, 2  # of an expression
_LOOKUP_SET = 1
_BYTES, _PACKETS = 1, 2  # of a counter

_U32, _U64, _PORT = struct.Struct(">I"), struct.Struct(">Q"), struct.Struct(">H")
_PROTOCOLS = {number: name for name, number in (("tcp", 6), ("udp", 17), ("sctp", 132))}

_COUNTING = {FILTER: ("services", "sources"), SHAPER: ("dropped",)}
_OTHERS = {FILTER: ("pools4", "pools6"), SHAPER: ("limited4", "limited6", "limited4-packets", "limited6-packets")}


def read() -> Reading:
    """Everything at once, from this thread's network namespace. What is not there counts nothing. Raises DumpError."""
    counts: dict[str, dict[Element, Count]] = {}
    sizes = {}
    for family, stems in _COUNTING.items():
        for name, version in ((f"{stem}{version}", version) for stem in stems for version in (4, 6)):
            counts[name] = dict(_counted(family, name, version))
            sizes[name] = len(counts[name])
    for family, names in _OTHERS.items():
        for name in names:
            sizes[name] = sum(1 for each in _elements(family, name) if not (family == FILTER and _ends_interval(*each)))
    return Reading(counts, sizes, dict(_closed()))


def _counted(family: str, name: str, version: int) -> Iterator[tuple[Element, Count]]:
    """The elements of a set of "address . protocol . port", or of that with a source, and their counters."""
    width = 4 if version == 4 else 16
    domain = socket.AF_INET if version == 4 else socket.AF_INET6
    for content, *element in _elements(family, name):
        key, end, count = b"", b"", Count(0, 0)
        for kind, first, last in attributes(content, *element):
            if kind == _KEY:
                key = content[first + 4 : last]
            elif kind == _KEY_END:
                end = content[first + 4 : last]
            elif kind == _EXPRESSION:
                count = _counter(content, first, last) or count
            elif kind == _EXPRESSIONS:
                several = (_counter(content, *inner[1:]) for inner in attributes(content, first, last))
                count = next(filter(None, several), count)
        if len(key) < width + 8:  # somebody's set of another type has taken our set's name
            continue
        address = socket.inet_ntop(domain, key[:width])
        if "." in address and version == 6:  # Python does not end IPv6 addresses in IPv4 notation
            address = str(ip_address(address))
        protocol = _PROTOCOLS.get(key[width], key[width])
        pinhole = f"{address} . {protocol} . {_PORT.unpack_from(key, width + 4)[0]}"
        yield (pinhole, key[width + 8 :] + end[width + 8 :]), count


def _elements(family: str, name: str) -> Iterator[tuple[bytes, int, int]]:
    """The elements of a set: a message, and from where to where in it the element's attributes go."""
    for content in _dump(_GET_ELEMENTS, family, attribute(_SET_TABLE, _word(NAME)) + attribute(_SET_NAME, _word(name))):
        for kind, start, end in attributes(content, _HEADER, len(content)):
            if kind == _SET_ELEMENTS:
                for _, first, last in attributes(content, start, end):
                    yield content, first, last


def _ends_interval(content: bytes, start: int, end: int) -> bool:
    """Whether an element of a set of ranges only says where one ends."""
    flags = (_U32.unpack_from(content, at)[0] for kind, at, _ in attributes(content, start, end) if kind == _FLAGS)
    return any(each & _INTERVAL_END for each in flags)


def _counter(content: bytes, start: int, end: int) -> Count | None:
    """The value of an expression; None if it is no counter."""
    packets = octets = None
    for kind, first, last in attributes(content, start, end):
        if kind == _NAME and content[first:last] != b"counter\0":
            return None
        if kind == _DATA:
            for what, at, _ in attributes(content, first, last):
                if what == _BYTES:
                    octets = _U64.unpack_from(content, at)[0]
                elif what == _PACKETS:
                    packets = _U64.unpack_from(content, at)[0]
    return None if packets is None or octets is None else Count(packets, octets)


def _closed() -> Iterator[tuple[Rule, Count]]:
    """What the rules counted that look into pools4 or pools6."""
    asked = attribute(_RULE_TABLE, _word(NAME)) + attribute(_RULE_CHAIN, _word(OPERATOR_SVC))
    for content in _dump(_GET_RULES, FILTER, asked):
        handle = 0
        for kind, start, end in attributes(content, _HEADER, len(content)):
            if kind == _RULE_HANDLE:
                handle = _U64.unpack_from(content, start)[0]
            elif kind == _RULE_EXPRESSIONS:
                expressions = [each[1:] for each in attributes(content, start, end)]
                looked = {_looked_up(content, *each) for each in expressions} & {"pools4", "pools6"}
                count = next(filter(None, (_counter(content, *each) for each in expressions)), None)
                if looked and count:
                    yield (looked.pop(), handle), count


def _looked_up(content: bytes, start: int, end: int) -> str:
    """The name of the set that a look-up expression looks into, or ""."""
    name = b""
    for kind, first, last in attributes(content, start, end):
        if kind == _NAME and content[first:last] != b"lookup\0":
            return ""
        if kind == _DATA:
            name = next((content[at : to - 1] for what, at, to in attributes(content, first, last) if what == _LOOKUP_SET), b"")
    return name.decode("ascii", "replace")


def _dump(kind: int, family: str, asked: bytes) -> list[bytes]:
    """All messages of one answer, and none for what does not exist. Raises DumpError."""
    body = struct.pack(">BBH", _FAMILIES[family], 0, 0) + asked

    def whole() -> list[bytes]:
        found = list(messages(_NETLINK_NETFILTER, kind, body))
        if len({content[_GENERATION] for content in found}) > 1:  # the kernel sets no flag where it dumps elements
            raise DumpError(errno.EINTR)
        return found

    try:
        return complete(whole)
    except DumpError as fault:
        if fault.number == errno.ENOENT:
            return []
        raise


def _word(text: str) -> bytes:
    return text.encode() + b"\0"
