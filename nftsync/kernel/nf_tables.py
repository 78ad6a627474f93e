"""The kernel's nf_tables through netlink: the common part of reading tables, counters and commits.

libnftables takes four times as long to list 10,000 elements. It also restarts without end
while another program keeps changing any table.
Source: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

from nftsync.kernel.netlink import DumpError, Netlink, Span, attribute, attributes, complete
from nftsync.ruleset.tables import INET, NAME, NETDEV

PROTOCOL = 12  # NETLINK_NETFILTER
HEADER = 4  # bytes of struct nfgenmsg; the first is the family
FAMILIES = {INET: 1, NETDEV: 5}  # NFPROTO_INET, NFPROTO_NETDEV

_NFTABLES = 10 << 8  # NFNL_SUBSYS_NFTABLES
GET_TABLES, GET_CHAINS, GET_RULES, GET_SETS, GET_ELEMENTS = (_NFTABLES | kind for kind in (1, 4, 7, 10, 13))
NEW_GENERATION, GET_GENERATION = _NFTABLES | 15, _NFTABLES | 16
GET_OBJECTS, GET_FLOWTABLES = _NFTABLES | 19, _NFTABLES | 23

RULE_CHAIN, RULE_EXPRESSIONS = 2, 4
KEY, FLAGS, EXPRESSION, KEY_END, EXPRESSIONS = 1, 3, 7, 10, 11  # of an element
INTERVAL_END = 1  # a flag: this element only marks the end of a range
LOOKUP_SET = 1  # of a look-up's data
PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}

_NAME, _DATA = 1, 2  # of an expression
_TABLE = 1  # names the table, in every request and message
_SET, _ELEMENTS = 2, 3  # of a message about elements
_GENERATION_NUMBER = 1  # in a message about a generation
_GENERATION = slice(2, 4)  # of the ruleset, in struct nfgenmsg: each transaction changes it
_ATTEMPTS = 5  # to read one generation, before a mix of several will do


def name(kind: int, text: str) -> bytes:
    """A name as an attribute, ready to send."""
    return attribute(kind, text.encode() + b"\0")


def text(value: bytes) -> str:
    """A received name."""
    return value.rstrip(b"\0").decode("utf-8", "backslashreplace")


def address(value: bytes) -> str:
    """An address in our notation."""
    shown = socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)
    # inet_ntop(3) ends some IPv6 addresses in IPv4 notation, Python does not.
    return str(ip_address(shown)) if "." in shown and len(value) > 4 else shown


OURS = name(_TABLE, NAME)  # the start of every message about our table or a part of it


def dump(kernel: Netlink, kind: int, family: str, inside: bytes = b"") -> list[bytes]:
    """All messages about one kind of object in our table, from one generation; none without the table.

    inside: attributes that select a part of the table.  Raises DumpError.
    """
    asked = _asked(family, inside)
    return complete(lambda: _answer(kernel, kind, asked, whole=True))


def generation(kernel: Netlink) -> int:
    """The number of transactions in this network namespace, by any program. Raises DumpError."""
    (content,) = kernel.messages(GET_GENERATION, bytes(HEADER), dump=False)
    found = {kind: content[start:end] for kind, start, end in attributes(content, HEADER, len(content))}
    return int.from_bytes(found[_GENERATION_NUMBER])


def elements(kernel: Netlink, family: str, set_name: str, *, whole: bool = True) -> Iterator[tuple[bytes, Span]]:
    """The elements of our set: a message, and the element's place in it. Raises DumpError.

    whole: read one generation. Otherwise a mix of generations will do while others change nf_tables.
    The mix contains every element that existed all the time, unless others change this same set.
    """
    asked = _asked(family, name(_SET, set_name))
    for content in _elements(kernel, asked, whole=whole):
        for kind, start, end in attributes(content, HEADER, len(content)):
            if kind == _ELEMENTS:
                yield from ((content, element) for element in attributes(content, start, end))


def expression(content: bytes, start: int, end: int) -> tuple[bytes, int, int]:
    """The name of an expression, and the start and end of its data in the message."""
    called, first, last = b"", end, end
    for kind, at, to in attributes(content, start, end):
        if kind == _NAME:
            called = content[at : to - 1]
        elif kind == _DATA:
            first, last = at, to
    return called, first, last


def _elements(kernel: Netlink, asked: bytes, *, whole: bool) -> list[bytes]:
    if whole:
        return complete(lambda: _answer(kernel, GET_ELEMENTS, asked, whole=True))
    try:
        return complete(lambda: _answer(kernel, GET_ELEMENTS, asked, whole=True), _ATTEMPTS)
    except DumpError as fault:
        if fault.number != errno.EINTR:
            raise
        return _answer(kernel, GET_ELEMENTS, asked, whole=False)


def _asked(family: str, inside: bytes) -> bytes:
    return struct.pack(">BBH", FAMILIES[family], 0, 0) + OURS + inside


def _answer(kernel: Netlink, kind: int, asked: bytes, *, whole: bool) -> list[bytes]:
    """The messages of one dump; none if the object does not exist.

    Raises DumpError; with EINTR if `whole` is asked for and the messages span generations.
    """
    try:
        found = list(kernel.messages(kind, asked))
    except DumpError as fault:
        if fault.number == errno.ENOENT:
            return []
        raise
    if whole and len({content[_GENERATION] for content in found}) > 1:  # the kernel sets no flag in a dump of elements
        raise DumpError(errno.EINTR)
    return [content for content in found if content.startswith(OURS, HEADER)]  # a dump of chains and tables includes foreign ones
