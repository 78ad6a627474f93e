"""Whether what is open can be reached: routes against the addresses of the pinholes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from nftsync.objects.address import AddressSet
from nftsync.policy.pinholes import Pinhole

_BITS = {4: 32, 6: 128}


@dataclass(slots=True)
class Routes:
    """Of both families: by family and prefix length, from the network as a number to whether packets go on from here."""

    found: dict[tuple[int, int], dict[int, bool]] = field(default_factory=dict)

    def add(self, version: int, length: int, network: int, *, forwards: bool) -> None:
        """Of two routes to one network, in two tables, the one that leads on counts."""
        networks = self.found.setdefault((version, length), {})
        networks[network] = forwards or networks.get(network, False)

    def reach(self, version: int, address: int) -> bool:
        """Whether the most specific route to an address leads on. The default route does not count: it leads back."""
        bits = _BITS[version]
        for length in range(bits, 0, -1):
            networks = self.found.get((version, length))
            if networks is not None:
                forwards = networks.get(address >> bits - length << bits - length)
                if forwards is not None:
                    return forwards
        return False

    def hosts(self, version: int) -> Iterator[int]:
        """The addresses that have a route of their own that leads on."""
        for address, forwards in self.found.get((version, _BITS[version]), {}).items():
            if forwards:
                yield address


@dataclass(frozen=True, slots=True)
class Reachability:
    """open_without_route: addresses with a pinhole to which no route leads.

    routes_without_pinhole: host routes to legal addresses that no pinhole uses; None if nothing says what is legal.
    """

    open_without_route: int
    routes_without_pinhole: int | None


def judge(routes: Routes, pinholes: Mapping[str, Pinhole], legal: AddressSet | None) -> Reachability:
    """Compare the routes with what is open."""
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
