"""What the metrics tell of the kernel: packets of each Service, and pinholes without a route.

A counter starts at 0 again when the kernel replaces its element or rule. A total only grows: if a
counter is lower than before, its whole value is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from nftsync.objects.address import AddressSet
from nftsync.objects.names import Name
from nftsync.policy.pinholes import Pinhole

CAP = 1000  # Services with their own series

Element = tuple[str, bytes]  # the pinhole's key, and bytes that distinguish its elements
Rule = tuple[str, int]  # the set that a rule matches, or its chain; and its handle: a new rule has a new one


class Count(NamedTuple):
    """Packets and bytes. Bytes include the IP headers."""

    packets: int
    octets: int

    def __add__(self, other: tuple[int, ...]) -> Count:  # type: ignore[override]  # tuple.__add__ would append
        return Count(self[0] + other[0], self[1] + other[1])

    def since(self, before: Count | None) -> Count:
        """The growth since `before`; the whole count if the counter is new or was reset."""
        if before is None or self[0] < before[0] or self[1] < before[1]:
            return self
        return Count(self[0] - before[0], self[1] - before[1])


NOTHING = Count(0, 0)


@dataclass(frozen=True, slots=True)
class Reading:
    """The kernel's counters at one moment.

    counts: by set and element.  sizes: number of elements by set.
    closed: packets to closed ports of the cluster, by rule; its set is "closed4", "pools4" or the like.
    fragments: later fragments dropped by a limit, by rule.
    invalid: packets dropped because of their state in connection tracking, by rule.
    """

    counts: Mapping[str, Mapping[Element, Count]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    closed: Mapping[Rule, Count] = field(default_factory=dict)
    fragments: Mapping[Rule, Count] = field(default_factory=dict)
    invalid: Mapping[Rule, Count] = field(default_factory=dict)


@dataclass(slots=True)
class Total:
    """The total of one Service. dropped, dropped_egress: by its rate limits; None if it never had one."""

    passed: Count = NOTHING
    dropped: Count | None = None
    dropped_egress: Count | None = None


class Traffic:
    """Totals since the first reading, of at most `cap` Services; 0 for none. One thread at a time.

    A Service keeps its totals while it has a pinhole. New Services get none while there is no room.
    When the kernel removes an element or rule, its counts since the last reading are lost.
    A pinhole that changed owner since the last reading counts for its new owner.
    """

    def __init__(self, cap: int = CAP) -> None:
        self.cap = cap
        self.totals: dict[Name, Total] = {}
        self.closed = {4: NOTHING, 6: NOTHING}
        self.fragments = {4: NOTHING, 6: NOTHING}
        self.invalid = NOTHING
        self.left_out: set[Name] = set()
        self.dropped = 0  # how often a Service became left out
        self._before: Reading | None = None

    def take(self, reading: Reading, pinholes: Mapping[str, Pinhole]) -> None:
        """Add the growth since the last reading. The first reading adds nothing."""
        self._admit(pinholes)
        before, self._before = self._before or reading, reading
        for name, counts in reading.counts.items():
            old = before.counts.get(name, {})
            dropping = name.startswith("dropped")
            for element, count in counts.items():
                if not dropping and count in (old.get(element), NOTHING):
                    continue
                pinhole = pinholes.get(element[0])
                total = self.totals.get(pinhole.service) if pinhole else None
                if total is None:
                    continue
                growth = count.since(old.get(element))
                if name.startswith("dropped-egress"):  # even without growth: a Service with a limit shows 0
                    total.dropped_egress = (total.dropped_egress or NOTHING) + growth
                elif dropping:
                    total.dropped = (total.dropped or NOTHING) + growth
                else:
                    total.passed += growth
        for rule, count in reading.closed.items():
            self.closed[6 if "6" in rule[0] else 4] += count.since(before.closed.get(rule))
        for rule, count in reading.fragments.items():
            self.fragments[6 if "6" in rule[0] else 4] += count.since(before.fragments.get(rule))
        for rule, count in reading.invalid.items():
            self.invalid += count.since(before.invalid.get(rule))

    def _admit(self, pinholes: Mapping[str, Pinhole]) -> None:
        """Give totals to Services that own pinholes, up to the cap."""
        owners = {hole.service for hole in pinholes.values()} if self.cap else set[Name]()
        stay = [name for name in self.totals if name in owners][: self.cap]
        room = self.cap - len(stay)
        new = sorted(owners.difference(stay)) if len(owners) > len(stay) else []
        self.totals = {name: self.totals[name] for name in stay} | {name: Total() for name in new[:room]}
        left_out = set(new[room:])
        self.dropped += len(left_out - self.left_out)
        self.left_out = left_out


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
        routes = (
            self.found[version, length].get(address >> bits - length << bits - length)
            for length in range(bits, 0, -1)
            if (version, length) in self.found
        )
        return next((forwards for forwards in routes if forwards is not None), False)

    def hosts(self, version: int) -> Iterator[int]:
        """The addresses with a forwarding host route."""
        routes = self.found.get((version, _BITS[version]), {})
        return (address for address, forwards in routes.items() if forwards)


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
    texts = {(hole.version, hole.key.partition(" ")[0]) for hole in pinholes.values() if hole.sources != ()}
    opened = {(version, int(ip_address(text))) for version, text in texts}
    unreached = sum(1 for version, address in opened if not routes.reach(version, address))
    if legal is None:
        return Reachability(unreached, None)
    unused = sum(
        1
        for version, first, last in [(part.version, int(part.first), int(part.last)) for part in legal.ranges]
        for address in routes.hosts(version)
        if first <= address <= last and (version, address) not in opened
    )
    return Reachability(unreached, unused)
