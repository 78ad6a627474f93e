"""Netlink dumps: everything that the kernel has of one kind, as bytes, for those who read a few fields of very many.

libnftables and pyroute2 build an object for every field: ten to a hundred times the time and memory. Source: netlink(7),
netlink(3).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Self, TypeVar

T = TypeVar("T")
Span = tuple[int, int, int]  # an attribute's type, and from where to where its value goes

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_NUMBER = struct.Struct("=i")
_REQUEST, _ACK, _DUMP, _INTERRUPTED = 0x1, 0x4, 0x300, 0x10  # flags
_ERROR, _DONE = 2, 3  # types of messages
_TYPE = 0x3FFF  # without the flags that an attribute's type carries
_TIMEOUT = 5.0  # seconds that the kernel may take for a piece of its answer


class DumpError(Exception):
    """The kernel refused; EINTR: what was read changed meanwhile, so it may have gaps. number: errno(3)."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the kernel's tables can't be read: {os.strerror(number)}")
        self.number = number


def complete(read: Callable[[], T], attempts: int = 20) -> T:
    """Call `read` again while it finds that what it reads was changed meanwhile (DumpError with EINTR), so many times."""
    for _ in range(attempts - 1):
        try:
            return read()
        except DumpError as fault:
            if fault.number != errno.EINTR:
                raise
    return read()


class Netlink:
    """A socket of the network namespace in which it was opened, for one thread at a time. Raises DumpError."""

    def __init__(self, protocol: int) -> None:
        """protocol: such as socket.NETLINK_ROUTE."""
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as fault:
            raise _dump_error(fault) from fault
        self._socket.settimeout(_TIMEOUT)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def messages(self, kind: int, body: bytes, *, dump: bool = True) -> Iterator[bytes]:
        """What the kernel answers to a request: each message without its header, as they come. Raises DumpError.

        kind: the request's type.  body: what comes after its header.  dump: whether everything is asked for.
        """
        self._sequence += 1
        flags = _REQUEST | (_DUMP if dump else _ACK)
        interrupted = False
        try:
            self._socket.sendto(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body, (0, 0))
            while True:
                for answer, marks, sequence, content in split(self._socket.recv(65536)):
                    if sequence != self._sequence:  # of a request before, which was given up
                        continue
                    interrupted = interrupted or bool(marks & _INTERRUPTED)
                    if answer in (_ERROR, _DONE):
                        _check(content)
                        if interrupted:
                            raise DumpError(errno.EINTR)
                        return
                    yield content
        except OSError as fault:
            raise _dump_error(fault) from fault


def messages(protocol: int, kind: int, body: bytes, *, dump: bool = True) -> Iterator[bytes]:
    """One request on a socket of its own, in this thread's network namespace: see Netlink."""
    with Netlink(protocol) as kernel:
        yield from kernel.messages(kind, body, dump=dump)


def _dump_error(fault: OSError) -> DumpError:
    return DumpError(fault.errno or errno.ETIMEDOUT)


def split(received: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and content of each message in what was received."""
    start = 0
    while start < len(received):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(received, start)
        yield kind, flags, sequence, received[start + _HEADER.size : start + length]
        start += length + 3 & ~3


def _check(content: bytes) -> None:
    """Raises DumpError if the last message of an answer tells of an error."""
    number = _NUMBER.unpack_from(content)[0] if content else 0
    if number < 0:
        raise DumpError(-number)


def attributes(content: bytes, start: int, end: int) -> Iterator[Span]:
    """The attributes between two places of a message."""
    unpack = _ATTRIBUTE.unpack_from
    while start < end:
        length, kind = unpack(content, start)
        yield kind & _TYPE, start + 4, start + length
        start += length + 3 & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute to be sent."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)
