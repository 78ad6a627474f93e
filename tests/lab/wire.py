"""Frames with any VLAN tags and any MAC address, sent into the router by a wire of the lab.

A lab's prober knows two wires and the addresses at their ends. What a router builds on a NIC (a
VLAN, a macvlan, a bridge) has other addresses and receives other frames. Here a test sends those.
"""

from __future__ import annotations

import itertools
import secrets
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from tests.lab.namespace import PATIENCE, LabError, Namespace, Socket
from tests.lab.probe import (
    ALL_FRAMES,
    ETHERTYPES,
    FENCE,
    INPUT_EARS,
    MARK,
    PEER_MAC,
    ROUTER_MAC,
    Pair,
    Probe,
    ear,
    hear_frames,
    one_cpu,
    packet,
)

_TAG = 0x8100  # IEEE 802.1Q
_TAGS = 8  # bytes of VLAN tags that the router may add
_NOBODY = "02:00:00:00:00:fe", "02:00:00:00:00:fd"  # receiver and sender of a fence
_AGAIN = 0.3  # seconds until a fence is sent again
_BATCH = 256
_SERIALS = itertools.count(secrets.randbits(32))


def addressed(device: str, here: Pair, there: Pair, mac: str) -> list[str]:
    """Commands of ip(8) that give an interface its addresses, and its neighbour for good."""
    return [
        f"address replace {here[0]}/24 dev {device}",
        f"address replace {here[1]}/64 dev {device} nodad",
        *(f"neighbour replace {address} lladdr {mac} nud permanent dev {device}" for address in there),
    ]


@dataclass(frozen=True, slots=True)
class Wire:
    """A cable between a NIC of the router and a peer, with the addresses of both.

    end: the peer's interface. A tunnel's end sends frames through a tunnel.
    """

    router: Namespace
    nic: str
    here: Pair
    peer: Namespace
    there: Pair
    end: str = "eth0"

    def address(self, device: str) -> None:
        """Give the router's addresses on this wire to another interface, or again to the NIC."""
        self.router.ip(*addressed(device, self.here, self.there, PEER_MAC))


@dataclass(frozen=True, slots=True)
class Frame:
    """A probe in an Ethernet frame. tags: VLAN ids, the outer one first. mac: the receiver's."""

    probe: Probe
    mac: str = ROUTER_MAC
    tags: tuple[int, ...] = ()
    sender: str = PEER_MAC

    def content(self, own: Pair, serial: int, magic: int) -> bytes:
        """The frame's bytes."""
        inner = packet(self.probe, own, serial, MARK.pack(magic, serial))
        tags = b"".join(struct.pack("!HH", _TAG, tag) for tag in self.tags)
        return _ethernet(self.mac, self.sender) + tags + struct.pack("!H", ETHERTYPES[inner[0] >> 4]) + inner


class Framer:
    """Sends frames into a router by any wire, and hears which of them come out of it.

    It has one socket for each namespace, which hears all interfaces, those to come as well.
    """

    def __init__(self, router: Namespace) -> None:
        self._router, self._magic = router, secrets.randbits(32)
        self._opened = ExitStack()
        self._ears: dict[Namespace, Socket] = {}
        self._inputs = {
            self._opened.enter_context(ear(router, family, kind, number, self._magic)): missing
            for family, kind, number, missing in INPUT_EARS
        }

    def close(self) -> None:
        self._opened.close()

    def deliver(self, entry: Wire, frames: Iterable[Frame], leaving: Sequence[Wire]) -> list[Frame]:
        """Send frames by one wire; those that arrived, in the order they were sent.

        A frame arrives if its packet leaves the router by one of the wires `leaving`, or if the
        router itself receives the packet. Raises LabError.
        """
        remaining, arrived = iter(frames), list[Frame]()
        with one_cpu():
            while batch := list(itertools.islice(remaining, _BATCH)):
                arrived += self._deliver(entry, batch, leaving)
        return arrived

    def _deliver(self, entry: Wire, batch: Iterable[Frame], leaving: Sequence[Wire]) -> list[Frame]:
        sender, sent = self._ear(entry.peer), {}
        self._fenced(entry.peer, entry.end, self._router)
        for wire in leaving:
            self._fenced(self._router, wire.nic, wire.peer)
        for frame in batch:
            serial = next(_SERIALS)
            content = frame.content(entry.there, serial, self._magic)
            sender.sendto(content, (entry.end, 0))
            sent[serial] = frame, len(content) - 14 + _TAGS
        entered = {serial for serial, _ in self._fenced(entry.peer, entry.end, self._router)}
        if not sent.keys() <= entered:
            raise LabError(f"{len(sent.keys() - entered)} frames were lost before the router")
        heard = dict[int, int]()  # the shortest length: an ICMP error ends in the mark that it quotes, and is longer
        outside = (self._fenced(self._router, wire.nic, wire.peer) for wire in leaving)
        for serial, length in itertools.chain(self._taken_in(), *outside):
            heard[serial] = min(length, heard.get(serial, length))
        return [frame for serial, (frame, most) in sent.items() if heard.get(serial, most + 1) <= most]

    def _fenced(self, here: Namespace, nic: str, there: Namespace) -> list[tuple[int, int]]:
        """Send a fence by an interface; serial and length of each packet that was heard there before it.

        It sends the fence again while none comes through: an interface that is new, or whose queueing
        discipline changes, loses packets for a moment.
        """
        fence, sender, ear = next(_SERIALS), self._ear(here), self._ear(there)
        content = _ethernet(*_NOBODY) + struct.pack("!H", FENCE) + MARK.pack(self._magic, fence)
        heard, gives_up = list[tuple[int, int]](), time.monotonic() + PATIENCE
        sender.sendto(content, (nic, 0))
        while time.monotonic() < gives_up:
            try:
                came = ear.recv(65536)
            except TimeoutError:
                sender.sendto(content, (nic, 0))
                continue
            serial = int(MARK.unpack(came[-MARK.size :])[1])
            if serial == fence:
                return heard
            heard.append((serial, len(came) - 14))
        raise LabError(f"a fence did not come through {nic} in {PATIENCE:.0f} seconds")

    def _taken_in(self) -> Iterator[tuple[int, int]]:
        """Serial and length of each packet that the router itself has received by now."""
        for each, missing in self._inputs.items():
            with suppress(BlockingIOError):
                while True:
                    content = each.recv(65536)
                    yield int(MARK.unpack(content[-MARK.size :])[1]), len(content) + missing

    def _ear(self, namespace: Namespace) -> Socket:
        if namespace not in self._ears:
            made = self._opened.enter_context(
                ear(namespace, socket.AF_PACKET, socket.SOCK_RAW, ALL_FRAMES, self._magic)
            )
            self._ears[namespace] = hear_frames(made, None)
            made.settimeout(_AGAIN)
        return self._ears[namespace]


def _ethernet(receiver: str, sender: str) -> bytes:
    return bytes.fromhex((receiver + sender).replace(":", ""))
