"""A lab: three network namespaces, client — router — node, to try a firewall with real packets.

    client eth0 ────── public_nic router cluster0 ────── eth0 node (has all the Services' addresses)

The namespaces have no names: only file descriptors of this process hold them. So the lab ends with
the process, even by SIGKILL, and any number of labs run side by side. To look into one, run
`nsenter --net=PATH`.
"""

from __future__ import annotations

import itertools
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Self

from tests.lab.namespace import LabError, Namespace, Socket, TcpServer
from tests.lab.probe import (
    CLIENT,
    CLUSTER,
    ETHERTYPES,
    MARK,
    NODE,
    PEER_MAC,
    PUBLIC,
    ROUTER_MAC,
    Origin,
    Pair,
    Probe,
    Prober,
    Protocol,
    Tap,
    packet,
)
from tests.lab.wire import Frame, Framer, Wire, addressed

__all__ = [
    "CLIENT",
    "CLUSTER",
    "NODE",
    "PUBLIC",
    "SERVICES",
    "Flood",
    "Frame",
    "Lab",
    "LabError",
    "Namespace",
    "Origin",
    "Probe",
    "Protocol",
    "TcpServer",
    "Wire",
]

SERVICES = ("172.30.254.0/24", "2001:db8:254::/64")  # routed to the node unless others are asked for
HOST = {  # addresses are usable at once, packets may come from anywhere
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    "ipv6/conf/all/disable_ipv6": 0,
    "ipv6/conf/default/disable_ipv6": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/default/accept_ra": 0,
}
ROUTER = {"ipv4/conf/all/forwarding": 1, "ipv6/conf/all/forwarding": 1}


@dataclass(frozen=True, slots=True)
class Flood:
    """The result of `Lab.flood`: IP packets and bytes that the node received within `seconds`."""

    seconds: float
    sent_packets: int
    arrived_packets: int
    arrived_bytes: int

    @property
    def rate(self) -> float:
        """Bytes of IP packets that arrived per second."""
        return self.arrived_bytes / self.seconds


class Lab:
    """Client, router and node. Use it as a context manager; needs root, ip(8), nft(8) and setpriv(1).

    public_nic: the name of the router's interface towards the client.
    services: the node answers for every address of these networks.
    gso=False: no segmentation offload, so a packet that nft counts has at most 1500 bytes.
    One thread at a time sends probes. Raises LabError.
    """

    def __init__(self, public_nic: str = "public0", services: Iterable[str] = SERVICES, *, gso: bool = True) -> None:
        self.public_nic = public_nic
        self._segments = 65535 if gso else 1
        self._prober: Prober | None = None
        self._framer: Framer | None = None
        self._floods = itertools.count()
        with ExitStack() as opened:
            self.client, self.router, self.node = (open_namespace(opened) for _ in range(3))
            self.router.sysctl(ROUTER)
            self.plug()
            self._join("cluster0", CLUSTER, self.node, NODE)
            for service in services:
                self.route(service)
            self._opened = opened.pop_all()
        self._uplinks = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the lab's processes and let go of its namespaces. Close your own sockets yourself."""
        self._stop_probing()
        if self._framer:
            self._framer.close()
        self._opened.close()

    @property
    def public(self) -> Wire:
        """The wire to the client."""
        return Wire(self.router, self.public_nic, PUBLIC, self.client, CLIENT)

    @property
    def inside(self) -> Wire:
        """The wire to the node."""
        return Wire(self.router, "cluster0", CLUSTER, self.node, NODE)

    def uplink(self, nic: str) -> Wire:
        """Give the router one more NIC, with a network and a peer of its own. No Service is there."""
        peer, number = open_namespace(self._opened), next(self._uplinks)
        here, there = (
            (IPv4Address(f"192.0.{number}.{host}"), IPv6Address(f"2001:db8:{number}::{host}")) for host in (1, 2)
        )
        self._join(nic, here, peer, there)
        return Wire(self.router, nic, here, peer, there)

    def replug(self, wire: Wire) -> None:
        """Make a wire anew whose NIC was taken out of the router."""
        self._join(wire.nic, wire.here, wire.peer, wire.there)

    def plug(self, public_nic: str | None = None) -> None:
        """Give the router its public NIC (again, after `unplug`), under a new name if one is given."""
        self.public_nic = public_nic or self.public_nic
        self._join(self.public_nic, PUBLIC, self.client, CLIENT)

    def unplug(self) -> None:
        """Take the public NIC out of the router."""
        self._stop_probing()
        self.router.ip(f"link del {self.public_nic}")

    def route(self, network: str) -> None:
        """Let the node answer for one more network or address, and the router send it there."""
        prefix = ip_network(network)
        self.node.ip(f"route add local {prefix} dev lo")
        self.router.ip(f"route add {prefix} via {NODE[prefix.version == 6]}")

    def arrives(
        self, protocol: Protocol, destination: str, port: int = 0, *, origin: Origin = "client", **fields: Any
    ) -> bool:
        """Whether one probe arrives; `fields` are the others of Probe. See `deliver`."""
        return bool(self.deliver([Probe(protocol, destination, port, **fields)], origin))

    def deliver(self, probes: Iterable[Probe], origin: Origin = "client") -> list[Probe]:
        """Send probes from the client or the node; those that arrived, in the order they were sent.

        A probe arrives if it leaves the router on the other side. A probe to the router itself
        arrives if it passes the input hook. The kernel with the address answers a probe like any
        packet.
        """
        self._prober = self._prober or Prober(self.client, self.router, self.node, self.public_nic)
        return self._prober.deliver(probes, origin)

    def deliver_frames(self, entry: Wire, frames: Iterable[Frame], leaving: Sequence[Wire] = ()) -> list[Frame]:
        """Send frames by one wire; those that arrived, in the order they were sent.

        A frame arrives if its packet leaves the router by one of the wires `leaving` (the inside one
        unless others are asked for), or if the router itself receives the packet.
        """
        self._framer = self._framer or Framer(self.router)
        return self._framer.deliver(entry, frames, leaving or [self.inside])

    def tcp_connect(self, destination: str, port: int, timeout: float = 2.0) -> Socket:
        """A TCP connection from the client. Raises OSError: TimeoutError if `timeout` seconds pass without answer."""
        connection = self.client.socket(_family(destination), socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect((destination, port))
        except BaseException:
            connection.close()
            raise
        return connection

    def flood(  # noqa: PLR0913 - each is a quantity with a sensible value of its own
        self,
        destination: str,
        port: int,
        seconds: float = 2.0,
        *,
        protocol: Protocol = "udp",
        settle: float = 0.5,
        rate: float | None = None,
        length: int = 1400,
    ) -> Flood:
        """Send one packet (see Probe) again and again. The node counts and drops it with nft.

        settle: seconds of sending before the measurement, to empty the limit's bucket.
        rate: bytes per second to send; None for the speed of one thread.
        length: bytes of each IP packet. Rates count these bytes, as nft's limits do.
        """
        content = packet(
            Probe(protocol, destination, port, length=length), CLIENT, secrets.randbits(32), bytes(MARK.size)
        )
        pause = len(content) / rate if rate else 0.0
        with (
            self._counter(protocol, destination, port) as count,
            self.client.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as ear,
        ):
            sender = Tap(ear, "eth0")
            start = time.monotonic()
            (_, began), (packets, octets) = _send(sender, content, start, start + settle, pause), count()
            (sent, ended), (more_packets, more_octets) = _send(sender, content, began, began + seconds, pause), count()
        return Flood(ended - began, sent, more_packets - packets, more_octets - octets)

    @contextmanager
    def _counter(self, protocol: Protocol, destination: str, port: int) -> Iterator[Callable[[], tuple[int, int]]]:
        """Count and drop these packets at the node.

        Yields a function that returns packets and bytes.
        """
        word, icmp = ("ip", "icmp") if ip_address(destination).version == 4 else ("ip6", "ipv6-icmp")
        transport = f"meta l4proto {icmp}" if protocol == "icmp" else f"{protocol} dport {port}"
        table = f"flood{next(self._floods)}"
        chain = (
            f"type filter hook prerouting priority raw; {word} daddr {destination} {transport} counter name "
            "arrived drop;"
        )
        self.node.nft(f"table inet {table} {{ counter arrived {{ }}; chain prerouting {{ {chain} }}; }}")

        def count() -> tuple[int, int]:
            listed = self.node.run(["nft", "-j", "list", "counter", "inet", table, "arrived"]).stdout
            counter = next(item["counter"] for item in json.loads(listed)["nftables"] if "counter" in item)
            return counter["packets"], counter["bytes"]

        try:
            yield count
        finally:
            self.node.nft(f"delete table inet {table}")

    def _join(self, nic: str, here: Pair, peer: Namespace, there: Pair) -> None:
        """Connect the router to a peer. Neighbours are permanent: no packet waits for their discovery."""
        self.router.ip(
            f"link add {nic} address {ROUTER_MAC} type veth peer name eth0 address {PEER_MAC} netns {peer.path}",
            *self._interface(nic, here, there, PEER_MAC),
        )
        peer.ip(
            *self._interface("eth0", there, here, ROUTER_MAC),
            *(f"route add default via {address}" for address in here),
        )

    def _interface(self, nic: str, here: Pair, there: Pair, mac: str) -> list[str]:
        return [
            f"link set {nic} addrgenmode none gso_max_segs {self._segments} up",
            *addressed(nic, here, there, mac),
        ]

    def _stop_probing(self) -> None:
        if self._prober:
            self._prober.close()
            self._prober = None


def open_namespace(opened: ExitStack, sysctls: dict[str, int] = HOST) -> Namespace:
    """A namespace that `opened` closes, with its loopback up."""
    namespace = Namespace()
    opened.callback(namespace.close)
    namespace.sysctl(sysctls)
    namespace.ip("link set lo up")
    return namespace


def _send(sender: Tap, content: bytes, began: float, ends: float, pause: float) -> tuple[int, float]:
    """Send an IP packet until `ends`; if `pause` is not 0, as many as one per `pause` since `began` are. How many, and
    when the last one: a limit's bucket fills again while this thread waits for the CPU after it.
    """
    ethertype, sent = ETHERTYPES[content[0] >> 4], 0
    last = began
    while (now := time.monotonic()) < ends:
        if (due := began + sent * pause) > now:
            time.sleep(min(due, ends) - now)
        else:
            sender.send(content, ethertype)
            sent, last = sent + 1, now
    return sent, last


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6
