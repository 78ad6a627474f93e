"""The kernel through netlink: dumps of objects as bytes, and nf_tables in them.

The callers read few fields of many objects. libnftables and pyroute2 build an object for every
field: for 10,000 elements libnftables takes 4 times as long and pyroute2 16 times. libnftables also
restarts without end while another program keeps changing any table.
Source: netlink(7), netlink(3), linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from typing import NamedTuple, Self, TypeVar

from nftsync.objects.names import NftsyncError
from nftsync.ruleset.model import INET, NAME, NETDEV

T = TypeVar("T")
Span = tuple[int, int, int]  # an attribute's type, and the start and end of its value
Fields = Mapping[int, bytes]  # the values of attributes, by type

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_REQUEST, _ACK, _DUMP, _INTERRUPTED = 0x1, 0x4, 0x300, 0x10  # flags
_ERROR, _DONE = 2, 3  # types of messages
_TYPE = 0x3FFF  # without the flags that an attribute's type carries
_TIMEOUT = 5.0  # seconds to wait for each part of the kernel's answer

PROTOCOL = 12  # NETLINK_NETFILTER
HEADER = 4  # bytes of struct nfgenmsg; the first is the family
FAMILIES = {INET: 1, NETDEV: 5}  # NFPROTO_INET, NFPROTO_NETDEV

_NFTABLES = 10 << 8  # NFNL_SUBSYS_NFTABLES
GET_TABLES, GET_CHAINS, GET_RULES, GET_SETS, GET_ELEMENTS = (_NFTABLES | kind for kind in (1, 4, 7, 10, 13))
NEW_GENERATION, GET_GENERATION = _NFTABLES | 15, _NFTABLES | 16
GET_OBJECTS, GET_FLOWTABLES = _NFTABLES | 19, _NFTABLES | 23

RULE_CHAIN, RULE_EXPRESSIONS = 2, 4
KEY, VALUE, FLAGS, EXPRESSION, KEY_END, EXPRESSIONS = 1, 2, 3, 7, 10, 11  # of an element; only maps have values
_INTERVAL_END = 1  # a flag: this element only marks the end of a range
LOOKUP_SET = 1  # of a look-up's data

_NAME, _DATA = 1, 2  # of an expression
_TABLE = 1  # names the table, in every request and message
_SET, _ELEMENTS = 2, 3  # of a message about elements
_GENERATION_NUMBER = 1  # in a message about a generation
_GENERATION = slice(2, 4)  # of the ruleset, in struct nfgenmsg: each transaction changes it
_ATTEMPTS = 100  # to read one generation of a few objects, however busy others are
_ATTEMPTS_MANY = 20  # the same for elements, because each attempt takes long
_ATTEMPTS_MIX = 5  # the same, before a mix of several generations will do


class DumpError(NftsyncError):
    """The kernel refused a dump.

    number: errno(3); EINTR if a change during the dump left gaps; None if the kernel did not answer in time.
    """

    def __init__(self, number: int | None) -> None:
        self.number = number or errno.ETIMEDOUT
        super().__init__(f"the kernel's tables can't be read: {os.strerror(self.number)}")


def complete(read: Callable[[], T], attempts: int = _ATTEMPTS_MANY) -> T:
    """Call `read` until no change interrupts it (DumpError with EINTR), at most `attempts` times."""
    for _ in range(attempts - 1):
        try:
            return read()
        except DumpError as error:
            if error.number != errno.EINTR:
                raise
    return read()


class Netlink:
    """A socket of the network namespace that opened it, for one thread at a time. Raises DumpError.

    protocol: such as socket.NETLINK_ROUTE.
    """

    def __init__(self, protocol: int) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise DumpError(error.errno) from error
        self._socket.settimeout(_TIMEOUT)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def messages(self, kind: int, body: bytes, *, dump: bool = True) -> Iterator[bytes]:
        """The kernel's answer to a request: each message without its header, in order. Raises DumpError.

        kind: the request's type.  body: the bytes after its header.  dump: True to list all objects.
        """
        self._sequence += 1
        flags = _REQUEST | (_DUMP if dump else _ACK)
        interrupted = False
        try:
            self._socket.sendto(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body, (0, 0))
            while True:
                for answer, marks, sequence, content in split(self._socket.recv(65536)):
                    if sequence != self._sequence:  # the answer to an earlier, abandoned request
                        continue
                    interrupted = interrupted or bool(marks & _INTERRUPTED)
                    if answer in (_ERROR, _DONE):
                        number = -struct.unpack_from("=i", content)[0] if content else 0
                        if number > 0 or interrupted:
                            raise DumpError(number or errno.EINTR)
                        return
                    yield content
        except OSError as error:
            raise DumpError(error.errno) from error


def split(received: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and content of each received message."""
    start = 0
    while start < len(received):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(received, start)
        yield kind, flags, sequence, received[start + _HEADER.size : start + length]
        start += length + 3 & ~3


def attributes(content: bytes, start: int, end: int) -> Iterator[Span]:
    """The attributes between two places of a message."""
    unpack = _ATTRIBUTE.unpack_from
    while start < end:
        length, kind = unpack(content, start)
        yield kind & _TYPE, start + 4, start + length
        start += length + 3 & ~3


def fields(content: bytes, start: int = 0, end: int | None = None) -> Fields:
    """The values of the attributes in a message, or between two places of it."""
    end = len(content) if end is None else end
    return {kind: content[first:last] for kind, first, last in attributes(content, start, end)}


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute, ready to send. Its value can hold attributes."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


# --- nf_tables ----------------------------------------------------------------------------------------


class Element(NamedTuple):
    """An element of a set. Its key is empty if it stands for all other elements.

    end: the key at the end of a range in a concatenation, or empty.
    ends_interval: True if the element only marks the end of a range.
    statements: name and data of each.
    """

    key: bytes
    end: bytes
    ends_interval: bool
    statements: list[tuple[bytes, bytes]]


def name(kind: int, text: str) -> bytes:
    """A name as an attribute, ready to send."""
    return attribute(kind, text.encode() + b"\0")


def text(value: bytes) -> str:
    """A received name."""
    return value.rstrip(b"\0").decode("utf-8", "backslashreplace")


def address(value: bytes) -> str:
    """An address in our notation."""
    notation = socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)
    # inet_ntop(3) ends some IPv6 addresses in IPv4 notation, Python does not.
    return str(ip_address(notation)) if "." in notation and len(value) > 4 else notation


OURS = name(_TABLE, NAME)  # the start of every message about our table or a part of it


def dump(kernel: Netlink, kind: int, family: str, inside: bytes = b"", *, whole: bool = True) -> list[bytes]:
    """All messages about one kind of object in our table; none without the table. Raises DumpError.

    inside: attributes that select a part of the table.
    whole: read one generation. Otherwise a mix of generations will do while others change nf_tables.
    The mix contains every object that existed all the time, unless others change objects beside it.
    """
    request = struct.pack(">BBH", FAMILIES[family], 0, 0) + OURS + inside
    many = _ATTEMPTS_MANY if whole else _ATTEMPTS_MIX
    attempts = many if kind == GET_ELEMENTS else _ATTEMPTS
    try:
        return complete(lambda: _answer(kernel, kind, request, whole=True), attempts)
    except DumpError as error:
        if whole or error.number != errno.EINTR:
            raise
        return _answer(kernel, kind, request, whole=False)


def _answer(kernel: Netlink, kind: int, request: bytes, *, whole: bool) -> list[bytes]:
    """The messages of one dump; none if the object does not exist.

    Raises DumpError; with EINTR if `whole` is asked for and the messages span generations.
    """
    try:
        messages = list(kernel.messages(kind, request))
    except DumpError as error:
        if error.number == errno.ENOENT:
            return []
        raise
    # The kernel sets no flag in a dump of elements.
    if whole and len({content[_GENERATION] for content in messages}) > 1:
        raise DumpError(errno.EINTR)
    # Chains and tables include foreign ones.
    return [content for content in messages if content.startswith(OURS, HEADER)]


def generation(kernel: Netlink) -> int:
    """The number of transactions in this network namespace, by any program. Raises DumpError."""
    (content,) = kernel.messages(GET_GENERATION, bytes(HEADER), dump=False)
    return int.from_bytes(fields(content, HEADER)[_GENERATION_NUMBER])


def places(kernel: Netlink, family: str, set_name: str, *, whole: bool = True) -> Iterator[tuple[bytes, Span]]:
    """The elements of our set: a message, and the element's place in it. whole: see dump(). Raises DumpError."""
    for content in dump(kernel, GET_ELEMENTS, family, name(_SET, set_name), whole=whole):
        for kind, start, end in attributes(content, HEADER, len(content)):
            if kind == _ELEMENTS:
                yield from ((content, element) for element in attributes(content, start, end))


def elements(kernel: Netlink, family: str, set_name: str, *, whole: bool = True) -> Iterator[Element]:
    """The elements of our set. whole: see dump(). Raises DumpError."""
    for content, (_, start, stop) in places(kernel, family, set_name, whole=whole):
        key, end, ends_interval, statements = b"", b"", False, []
        for kind, first, last in attributes(content, start, stop):
            if kind == KEY:
                key = content[first + 4 : last]
            elif kind == KEY_END:
                end = content[first + 4 : last]
            elif kind == FLAGS:
                ends_interval = bool(content[last - 1] & _INTERVAL_END)
            elif kind == EXPRESSION:
                statements.append(expression(content, first, last))
            elif kind == EXPRESSIONS:
                statements.extend(expressions(content, first, last))
        yield Element(key, end, ends_interval, statements)


def expressions(content: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Name and data of each expression in a message, or between two places of it."""
    for _, *place in attributes(content, start, len(content) if end is None else end):
        yield expression(content, *place)


def expression(content: bytes, start: int = 0, end: int | None = None) -> tuple[bytes, bytes]:
    """Name and data of an expression."""
    called, data = b"", b""
    for kind, first, last in attributes(content, start, len(content) if end is None else end):
        if kind == _NAME:
            called = content[first : last - 1]
        elif kind == _DATA:
            data = content[first:last]
    return called, data
