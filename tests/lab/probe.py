"""Send marked packets and find out which arrive.

A probe is one packet with a mark. A fence is a frame of an ethertype that no IP firewall looks at.
A veth pair keeps the order of the packets of one CPU. So if a fence that followed the probes has
come through, every probe that did not come before it was dropped.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import secrets
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

from tests.lab.namespace import PATIENCE, LabError, Namespace, Socket

Pair = tuple[IPv4Address, IPv6Address]
# icmp is ICMPv6 where the destination is IPv6. ah is for IPv4 alone: in IPv6 it is an extension header.
Protocol = Literal["tcp", "udp", "sctp", "icmp", "vrrp", "ospf", "esp", "ah", "gre"]
Origin = Literal["client", "node"]
CLIENT: Pair = IPv4Address("198.51.100.2"), IPv6Address("2001:db8:100::2")
PUBLIC: Pair = IPv4Address("198.51.100.1"), IPv6Address("2001:db8:100::1")  # the router's, on the public NIC
CLUSTER: Pair = IPv4Address("172.30.250.1"), IPv6Address("2001:db8:250::1")  # the router's, on cluster0
NODE: Pair = IPv4Address("172.30.250.2"), IPv6Address("2001:db8:250::2")
_OWN = {"client": CLIENT, "node": NODE}
_PORTLESS = {"vrrp", "ospf", "esp", "ah", "gre"}
ROUTER_MAC, PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"  # on either link
_NUMBERS = {"tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "ospf": 89, "vrrp": 112, "sctp": 132}
_BATCH = 256  # probes before a fence: well below net.core.netdev_max_backlog
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
FENCE = 0x88B5  # IEEE 802 local experimental ethertype
_ETH_P_ALL, _SOL_PACKET, _PACKET_IGNORE_OUTGOING = 3, 263, 23  # packet(7); the socket module lacks these
ALL_FRAMES = socket.htons(_ETH_P_ALL)
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33  # socket(7)
# Raw sockets hear packets after the input hook: family, type, protocol, and the bytes of the header that IPv6 removes.
INPUT_EARS = tuple(
    (family, socket.SOCK_RAW, number, missing)
    for family, icmp, missing in ((socket.AF_INET, 1, 0), (socket.AF_INET6, 58, 40))
    for number in (*_NUMBERS.values(), icmp)
)
MARK = struct.Struct("!IQ")  # the prober's number and the packet's: the last bytes of every probe and fence


@dataclass(frozen=True, slots=True)
class Probe:
    """One packet: a TCP SYN, a UDP datagram, an SCTP INIT or an ICMP echo request, with right checksums.

    Of the other protocols, it has eight zero bytes as a header: nothing that a firewall looks at.
    port: destination port; of ICMP, the sequence number. source: any address; None is the sender's own. sport: source
    port; of ICMP, the identifier; None is another one for each of 40,000 probes. length: bytes of the IP packet, as
    nft's limits count them; never shorter than headers and mark, which are 40 to 68 bytes in IPv4, 60 to 88 in IPv6.
    ttl: IPv4's time to live or IPv6's hop limit.
    """

    protocol: Protocol
    destination: str
    port: int = 0
    source: str | None = None
    sport: int | None = None
    length: int = 0
    ttl: int = 64


class Prober:
    """Sends probes and fences over the lab's two wires, and hears packets on both sides."""

    def __init__(self, client: Namespace, router: Namespace, node: Namespace, public_nic: str) -> None:
        self._magic = secrets.randbits(32)
        self._serials = itertools.count(secrets.randbits(32))
        self._opened = ExitStack()
        try:
            wires = [
                self._tap(client, "eth0"),
                self._tap(router, public_nic),
                self._tap(router, "cluster0"),
                self._tap(node, "eth0"),
            ]
            self._paths = {"client": wires, "node": wires[::-1]}
            self._inputs = {self._ear(router, family, *raw): missing for family, *raw, missing in INPUT_EARS}
        except BaseException:
            self._opened.close()
            raise

    def close(self) -> None:
        self._opened.close()

    def deliver(self, probes: Iterable[Probe], origin: Origin) -> list[Probe]:
        remaining, arrived = iter(probes), list[Probe]()
        with one_cpu():
            while batch := list(itertools.islice(remaining, _BATCH)):
                arrived += self._deliver(batch, origin)
        return arrived

    def _deliver(self, batch: list[Probe], origin: Origin) -> list[Probe]:
        sender, entry, leaving, receiver = self._paths[origin]
        sent: dict[tuple[int, int], Probe] = {}  # by serial and length: an ICMP error ends in the mark it quotes
        for probe in batch:
            serial = next(self._serials)
            content = packet(probe, _OWN[origin], serial, MARK.pack(self._magic, serial))
            sender.send(content, ETHERTYPES[content[0] >> 4])
            sent[serial, len(content)] = probe
        entered = self._fence(sender, entry)
        if not sent.keys() <= entered:
            raise LabError(f"{len(sent.keys() - entered)} probes were lost before the router")
        heard = self._taken_in() | self._fence(leaving, receiver)
        return [probe for key, probe in sent.items() if key in heard]

    def _fence(self, here: Tap, there: Tap) -> set[tuple[int, int]]:
        """Send a fence over one wire. Returns the probes that the other end heard before it."""
        fence, heard = next(self._serials), set[tuple[int, int]]()
        here.send(MARK.pack(self._magic, fence), FENCE)
        while (fence, MARK.size) not in heard:
            try:
                heard.add(_key(there.ear.recv(65536)))
            except TimeoutError as fault:
                raise LabError(f"a fence did not come through {here.nic} in {PATIENCE:.0f} seconds") from fault
        return heard

    def _taken_in(self) -> set[tuple[int, int]]:
        """The probes that the router itself has received by now."""
        heard = set()
        for ear, missing in self._inputs.items():
            with suppress(BlockingIOError):
                while True:
                    heard.add(_key(ear.recv(65536), missing))
        return heard

    def _tap(self, namespace: Namespace, nic: str) -> Tap:
        ear = self._ear(namespace, socket.AF_PACKET, socket.SOCK_DGRAM, 0)  # 0: hears nothing before it is bound
        return Tap(hear_frames(ear, nic), nic)

    def _ear(self, namespace: Namespace, family: int, kind: int, number: int) -> Socket:
        return self._opened.enter_context(ear(namespace, family, kind, number, self._magic))


def ear(namespace: Namespace, family: int, kind: int, number: int, magic: int) -> Socket:
    """A socket that receives only packets with a mark of this prober's number at the end."""
    made = namespace.socket(family, kind, number)
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
    instructions = (  # bpf(4): A = the 32 bits at length - size of a mark; take all of it if A is the number
        (0x80, 0, 0, 0), (0x14, 0, 0, MARK.size), (0x07, 0, 0, 0), (0x40, 0, 0, 0),
        (0x15, 0, 1, magic), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0),
    )  # fmt: skip
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
    reference = struct.pack("HP", len(instructions), ctypes.addressof(program))
    made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, reference)
    made.setblocking(False)
    return made


def hear_frames(ear: Socket, nic: str | None) -> Socket:
    """Let a packet socket hear what comes in at an interface, and wait for it with patience.

    nic: None for a socket that was made with ALL_FRAMES and hears every interface already.
    """
    ear.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    if nic:
        ear.bind((nic, _ETH_P_ALL))
    ear.settimeout(PATIENCE)
    return ear


@dataclass(frozen=True, slots=True)
class Tap:
    """One end of a wire: sends to the other end and hears frames from there."""

    ear: Socket
    nic: str

    def send(self, content: bytes, ethertype: int) -> None:
        peer = ROUTER_MAC if self.nic == "eth0" else PEER_MAC
        self.ear.sendto(content, (self.nic, ethertype, 0, 0, bytes.fromhex(peer.replace(":", ""))))


def _key(content: bytes, missing: int = 0) -> tuple[int, int]:
    """Serial and length of a marked packet, `missing` bytes of which are not in the content."""
    return int(MARK.unpack(content[-MARK.size :])[1]), len(content) + missing


@contextmanager
def one_cpu() -> Iterator[None]:
    """Keep the calling thread on one CPU: a veth pair keeps the order of one CPU's packets only."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def packet(probe: Probe, own: Pair, serial: int, mark: bytes) -> bytes:
    """The IP packet of a probe.

    If the probe names no source, the pair's address of its family counts.
    """
    destination = ip_address(probe.destination)
    source = ip_address(probe.source) if probe.source else own[destination.version == 6]
    if source.version != destination.version:
        raise ValueError(f"{source} cannot send to {destination}")
    header, number = (20, 1) if source.version == 4 else (40, 58)
    number = _NUMBERS.get(probe.protocol, number)
    sport = 20_000 + serial % 40_000 if probe.sport is None else probe.sport
    room = probe.length - header - len(_segment(probe, number, sport, mark, b""))
    body = bytes(max(0, room)) + mark
    pseudo = source.packed + destination.packed
    segment = _segment(probe, number, sport, body, pseudo)
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(segment), number, probe.ttl) + pseudo + segment
    start = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, probe.ttl, number, 0)
    return start[:10] + _checksum(start + pseudo) + pseudo + segment


def _segment(probe: Probe, number: int, sport: int, body: bytes, pseudo: bytes) -> bytes:
    """The packet's transport part: RFC 9293, 768, 9260, 792, 4443."""
    if probe.protocol in _PORTLESS:
        return bytes(8) + body
    ports = struct.pack("!HH", sport, probe.port)
    if number == 132:
        chunk = struct.pack("!BBHIIHHIHH", 1, 0, 24 + len(body), 1, 65536, 1, 1, 1, 0x8001, 4 + len(body)) + body
        return ports + bytes(4) + _crc32c(ports + bytes(8) + chunk) + chunk
    if number == 6:
        head, tail = ports + struct.pack("!IIBBH", 1, 0, 5 << 4, 2, 65535), bytes(2) + body
    elif number == 17:
        head, tail = ports + struct.pack("!H", 8 + len(body)), body
    else:
        head, tail = struct.pack("!BB", 8 if number == 1 else 128, 0), ports + body
    length = len(head) + 2 + len(tail)
    covered = b"" if number == 1 else pseudo + struct.pack("!HH", length, number)
    return head + _checksum(covered + head + bytes(2) + tail) + tail


def _checksum(content: bytes) -> bytes:
    """RFC 1071: the sum of 16-bit words in ones' complement is the remainder by 65535."""
    value = -int.from_bytes(content + bytes(len(content) % 2), "big") % 0xFFFF
    return struct.pack("!H", value or 0xFFFF)


def _crc32c(content: bytes) -> bytes:
    """RFC 9260, appendix A."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return struct.pack("<I", crc ^ 0xFFFFFFFF)
