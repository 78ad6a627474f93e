"""Two routers between the public network and the cluster, as with BGP and ECMP.

    client ─┬─ public0 routers[0] cluster0 ─┬─ node (has all the Services' addresses)
            └─ public0 routers[1] cluster0 ─┘
                       routers[0] lan0 ─────── host, an inside machine that is no node

Each direction has a way of its own: at first, packets to the cluster go by the first router and
packets to the client by the second one.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from tests.lab import lab
from tests.lab.lab import SERVICES
from tests.lab.namespace import Namespace

CLIENT = ("203.0.113.2", "2001:db8:113::2")
NODE = ("172.30.252.2", "2001:db8:252::2")
HOST = ("172.30.253.2", "2001:db8:253::2")
_SYSCTLS = {**lab.HOST, "ipv4/icmp_ratelimit": 0}


@dataclass(frozen=True, slots=True)
class Link:
    """A cable from a router to another machine: /24 and /64. The router is 1, the other end is 2."""

    four: str
    six: str

    @property
    def networks(self) -> tuple[str, str]:
        return f"{self.four}.0/24", f"{self.six}::/64"

    @property
    def router(self) -> tuple[str, str]:
        return f"{self.four}.1", f"{self.six}::1"

    @property
    def end(self) -> tuple[str, str]:
        return f"{self.four}.2", f"{self.six}::2"


PUBLIC = tuple(Link(f"198.51.10{number}", f"2001:db8:10{number}") for number in (0, 1))  # by router
CLUSTER = tuple(Link(f"172.30.25{number}", f"2001:db8:25{number}") for number in (0, 1))
LAN = Link("172.30.253", "2001:db8:253")


class Pair:
    """The namespaces. Use it as a context manager; needs root and ip(8)."""

    def __init__(self) -> None:
        with ExitStack() as opened:
            made = [lab.open_namespace(opened, _SYSCTLS) for _ in range(5)]
            self.client, self.node, self.host = made[:3]
            self.routers = (made[3], made[4])
            for number, router in enumerate(self.routers):
                router.sysctl(lab.ROUTER)
                _join(router, "public0", self.client, f"eth{number}", PUBLIC[number])
                _join(router, "cluster0", self.node, f"eth{number}", CLUSTER[number])
                _route(router, CLIENT, PUBLIC[number].end)
                _route(router, NODE, CLUSTER[number].end)
                _route(router, SERVICES, CLUSTER[number].end)
            _join(self.routers[0], "lan0", self.host, "eth0", LAN)
            _route(self.host, ("0.0.0.0/0", "::/0"), LAN.router)
            _route(self.node, LAN.networks, CLUSTER[0].router)
            self.node.ip(*(f"route add local {network} dev lo" for network in SERVICES))
            for namespace, addresses in ((self.client, CLIENT), (self.node, NODE)):
                namespace.ip(*(f"address add {address} dev lo" for address in addresses))
            self.inwards(0)
            self.outwards(1)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()

    def inwards(self, number: int) -> None:
        """Send the client's packets by this router."""
        _default(self.client, CLIENT, PUBLIC[number])

    def outwards(self, number: int) -> None:
        """Send the node's packets by this router."""
        _default(self.node, NODE, CLUSTER[number])


def _join(router: Namespace, nic: str, peer: Namespace, end: str, link: Link) -> None:
    router.ip(f"link add {nic} type veth peer name {end} netns {peer.path}")
    for namespace, name, (four, six) in ((router, nic, link.router), (peer, end, link.end)):
        namespace.ip(
            f"link set {name} up",
            f"address add {four}/24 dev {name}",
            f"address add {six}/64 dev {name} nodad",
        )


def _route(namespace: Namespace, targets: tuple[str, ...], gateways: tuple[str, str]) -> None:
    namespace.ip(*(f"route add {target} via {via}" for target, via in zip(targets, gateways, strict=True)))


def _default(namespace: Namespace, own: tuple[str, str], link: Link) -> None:
    pairs = zip(link.router, own, strict=True)
    namespace.ip(*(f"route replace default via {via} src {source}" for via, source in pairs))
