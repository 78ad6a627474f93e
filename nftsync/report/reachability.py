"""Compare routes with the addresses of pinholes: can packets reach the open ports?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from nftsync.objects.address import AddressSet
from nftsync.policy.pinholes import Pinhole

_BITS = {4: 32, 6: 128}


@dataclass(slots=True)
class Routes:
    """Routes of both families. found: by family and prefix length, from network number to forwarding.

    Forwarding is True if the route sends packets on from this router.
    """

    found: dict[tuple[int, int], dict[int, bool]] = field(default_factory=dict)

    def add(self, version: int, length: int, network: int, *, forwards: bool) -> None:
        """Add a route. If two tables have a route to one network, a forwarding one wins."""
        networks = self.found.setdefault((version, length), {})
        networks[network] = forwards or networks.get(network, False)

    def reach(self, version: int, address: int) -> bool:
        """True if the most specific route forwards. The default route does not count: it leads back."""
        bits = _BITS[version]
        for length in range(bits, 0, -1):
            networks = self.found.get((version, length))
            if networks is not None:
                forwards = networks.get(address >> bits - length << bits - length)
                if forwards is not None:
                    return forwards
        return False

    def hosts(self, version: int) -> Iterator[int]:
        """The addresses with a forwarding host route."""
        for address, forwards in self.found.get((version, _BITS[version]), {}).items():
            if forwards:
                yield address


@dataclass(frozen=True, slots=True)
class Reachability:
    """open_without_route: number of addresses with a pinhole but without a route.

    routes_without_pinhole: number of host routes to legal addresses without a pinhole.
    None if no pools say which addresses are legal.
    """

    open_without_route: int
    routes_without_pinhole: int | None


def judge(routes: Routes, pinholes: Mapping[str, Pinhole], legal: AddressSet | None) -> Reachability:
    """Compare the routes with the pinholes. legal: None if no pools are known."""
    opened = _addresses(hole for hole in pinholes.values() if hole.sources != ())
    unreached = sum(1 for version, address in opened if not routes.reach(version, address))
    if legal is None:
        return Reachability(unreached, None)
    unused = 0
    for each in legal.ranges:
        first, last = int(each.first), int(each.last)
        unused += sum(
            1 for address in routes.hosts(each.version) if first <= address <= last and (each.version, address) not in opened
        )
    return Reachability(unreached, unused)


def _addresses(pinholes: Iterable[Pinhole]) -> set[tuple[int, int]]:
    texts = {(hole.version, hole.key.partition(" ")[0]) for hole in pinholes}
    return {(version, int(ip_address(text))) for version, text in texts}
