"""Fragments of one datagram, for tests of what later fragments do: they have no ports. RFC 791, 8200."""

from __future__ import annotations

import secrets
import socket
import struct
from itertools import pairwise

from tests.lab.lab import CLIENT, Lab
from tests.lab.probe import ETHERTYPES, MARK, Probe, Tap, packet

_UNIT = 8  # bytes: fragments begin at multiples of it
_DESTINATION_OPTIONS = 60  # the number of an IPv6 extension header
_FRAGMENT = 44


def fragments(content: bytes, first: int = 8, size: int = 1400, *, options: bool = False) -> list[bytes]:
    """The IP packets that carry an IP packet in fragments.

    first: bytes of payload in the first fragment.  size: of each later one. Both are multiples of 8.
    options: put an IPv6 extension header in front of the ports, which hides the protocol of later fragments.
    """
    version = content[0] >> 4
    header, payload = content[: 20 if version == 4 else 40], content[20 if version == 4 else 40 :]
    protocol = content[9 if version == 4 else 6]
    if options and version == 6:
        payload, protocol, first = struct.pack("!BBBB4x", protocol, 0, 1, 4) + payload, _DESTINATION_OPTIONS, first + 8
    number, cuts = secrets.randbits(16), [0, first]
    while cuts[-1] < len(payload):
        cuts.append(min(cuts[-1] + size, len(payload)))
    made = []
    for start, end in pairwise(cuts):
        part, place = payload[start:end], start // _UNIT
        more = end < len(payload)
        if version == 6:
            extension = struct.pack("!BBHI", protocol, 0, place << 3 | more, number)
            fixed = header[:4] + struct.pack("!HBB", len(extension) + len(part), _FRAGMENT, 64) + header[8:]
            made.append(fixed + extension + part)
        else:
            fixed = header[:2] + struct.pack("!HHH", 20 + len(part), number, more << 13 | place) + header[8:10]
            made.append(fixed + _sum(fixed + bytes(2) + header[12:]) + header[12:] + part)
    return made


def _sum(header: bytes) -> bytes:
    return struct.pack("!H", (-int.from_bytes(header, "big") % 0xFFFF) or 0xFFFF)


def send_fragmented(lab: Lab, probe: Probe, times: int = 1, *, options: bool = False) -> int:
    """Send a probe from the client in fragments, again and again. Returns the bytes of all packets."""
    sent = 0
    with lab.client.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as ear:
        wire = Tap(ear, "eth0")
        for _ in range(times):
            content = packet(probe, CLIENT, secrets.randbits(32), bytes(MARK.size))
            for each in fragments(content, options=options):
                wire.send(each, ETHERTYPES[each[0] >> 4])
                sent += len(each)
    return sent
