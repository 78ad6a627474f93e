"""The sets of rate limits: every element has a token bucket of its own. Both tables have such sets."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from nftsync.objects.ratelimit import TIME_UNITS, RateLimit
from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.model import ENDPOINT, IP, Elements, Set

# The kind of limit in a set's declaration. All elements of a set have limits of one kind.
_KINDS = {"": "limit rate over 1 bytes/second burst 1 bytes", "-packets": "limit rate over 1/second burst 1 packets"}

# The parts of a packet that name a pinhole: on its way to the Service, and from there.
TO = {version: f"{ip} daddr . meta l4proto . th dport" for version, ip in IP.items()}
FROM = {version: f"{ip} saddr . meta l4proto . th sport" for version, ip in IP.items()}

# The ways of a packet that have sets of their own: their names end so.
INGRESS, DNAT, EGRESS = "", "-dnat", "-egress"

Bound = tuple[str, RateLimit]  # a way, and its limit
Limits = Mapping[str, Collection[Bound]]  # by address


def _limit_sets(stem: str, types: Mapping[int, str]) -> dict[str, Set]:
    return {
        f"{stem}{version}{suffix}": Set(declared, statement=limit)
        for version, declared in types.items()
        for suffix, limit in _KINDS.items()
    }


_ADDRESS = {version: f"ipv{version}_addr" for version in IP}
FRAGMENT_SETS = _limit_sets("fragments", _ADDRESS)
# The addresses with a limit of a way. A packet of another address pays for one look-up alone.
INGRESS_SETS, EGRESS_SETS = (
    {f"{way}{version}": Set(address) for version, address in _ADDRESS.items()} for way in ("ingress", "egress")
)
BY_ADDRESS = frozenset({*FRAGMENT_SETS, *INGRESS_SETS, *EGRESS_SETS})  # names of sets whose elements are addresses


def sets_of(way: str) -> dict[str, Set]:
    """The sets of the limits of a way.

    A second look-up counts packets over a limit, because a limit hides a counter on the same element
    in a listing.
    """
    dropped = {f"dropped{way}{version}": Set(endpoint, statement="counter") for version, endpoint in ENDPOINT.items()}
    return _limit_sets(f"limited{way}", ENDPOINT) | dropped


def rules_of(way: str, keys: Mapping[int, str]) -> Iterator[str]:
    """The rules that drop packets over the limit of their pinhole. keys: TO or FROM."""
    return (
        f"{key} @limited{way}{version}{suffix} {key} @dropped{way}{version} drop"
        for version, key in keys.items()
        for suffix in _KINDS
    )


def fragment_rules() -> Iterator[str]:
    """The rules that drop later fragments over the limit of their address."""
    return (f"{ip} daddr @fragments{version}{suffix} counter drop" for version, ip in IP.items() for suffix in _KINDS)


def add_elements(found: Elements, way: str, hole: Pinhole, limit: RateLimit | None) -> None:
    """Add a pinhole's elements to the sets of sets_of(), if it has a limit and anybody may reach it."""
    if limit is not None and hole.sources != ():
        found[_set_for(f"limited{way}", hole.version, limit)][hole.key] = limit.statement
        found[f"dropped{way}{hole.version}"][hole.key] = ""


def add_ingress(found: Elements, limits: Limits) -> None:
    """Add the elements for these addresses, and for later fragments to them, if they have an ingress limit."""
    for address, some in limits.items():
        for limit in strictest([limit for way, limit in some if way == INGRESS]):
            found[_set_for("fragments", _version(address), limit)][address] = limit.statement
            found[f"ingress{_version(address)}"][address] = ""


def add_egress(found: Elements, limits: Limits) -> None:
    """Add the elements for these addresses, if they have an egress limit."""
    for address, some in limits.items():
        if any(way == EGRESS for way, _ in some):
            found[f"egress{_version(address)}"][address] = ""


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def _set_for(stem: str, version: int, limit: RateLimit) -> str:
    return f"{stem}{version}{'-packets' if limit.packets else ''}"


def limits_at(pinholes: Iterable[Pinhole]) -> dict[str, Counter[Bound]]:
    """The limits of limited pinholes, by address, and how many pinholes have each."""
    found: dict[str, Counter[Bound]] = defaultdict(Counter)
    for hole in pinholes:
        for way, limit in ((INGRESS, hole.limit), (EGRESS, hole.limit_egress)):
            if limit is not None and hole.sources != ():
                found[hole.address][way, limit] += 1
    return found


def has_egress(pinholes: Iterable[Pinhole]) -> bool:
    """Whether any pinhole has an egress limit."""
    return any(hole.limit_egress is not None for hole in pinholes)


def together(some: Limits, others: Limits) -> Limits:
    """Both limits of each address."""
    return {address: {*some.get(address, ()), *others.get(address, ())} for address in (*some, *others)}


def slowest_at(pinholes: Iterable[Pinhole]) -> dict[tuple[str, str], Pinhole]:
    """The limited pinhole with the slowest limit, by the set for fragments and its element."""
    limited = [(hole.limit, hole) for hole in pinholes if hole.limit is not None and hole.sources != ()]
    limited.sort(key=lambda pair: -pace(pair[0]))
    return {(_set_for("fragments", hole.version, limit), hole.address): hole for limit, hole in limited}


def strictest(limits: Collection[RateLimit]) -> Iterator[RateLimit]:
    """At most one limit in bytes and one in packets: each as strict as every limit of its kind.

    Its rate and its bucket are at most the smallest ones.
    """
    for packets in (False, True):
        some = [limit for limit in limits if limit.packets is packets]
        if some:
            yield _as_strict(min(some, key=pace), min(limit.bucket for limit in some))


def pace(limit: RateLimit) -> int:
    """Bytes or packets in a week: every limit's rate in one unit."""
    return limit.rate * (TIME_UNITS["week"] // TIME_UNITS[limit.per])


def _as_strict(limit: RateLimit, bucket: int) -> RateLimit:
    """The limit with a bucket of at most this size.

    The bucket of a limit in bytes holds one unit of rate, too. So its rate may need a shorter unit.
    """
    if limit.packets:
        return replace(limit, burst=bucket)
    own = TIME_UNITS[limit.per]
    rates = [(limit.rate * seconds // own, per) for per, seconds in TIME_UNITS.items() if seconds <= own]
    possible = [(rate, per) for rate, per in reversed(rates) if rate]
    rate, per = next((pair for pair in possible if pair[0] < bucket), possible[-1])
    rate = min(rate, bucket - 1)
    return RateLimit(rate, per, bucket - rate, packets=False)
