"""The sets of rate limits: every element has a token bucket of its own. Both tables have such sets."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from nftsync.objects.ratelimit import TIME_UNITS, RateLimit
from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.model import IP, Set

# The kind of limit in a set's declaration. All elements of a set have limits of one kind.
_KINDS = {"": "limit rate over 1 bytes/second burst 1 bytes", "-packets": "limit rate over 1/second burst 1 packets"}

Limits = Mapping[str, Collection[RateLimit]]  # by address


def limit_sets(stem: str, types: Mapping[int, str]) -> dict[str, Set]:
    """The sets of a stem: for each IP version one in bytes and one in packets. types: of the elements."""
    return {
        f"{stem}{version}{suffix}": Set(declared, statement=limit)
        for version, declared in types.items()
        for suffix, limit in _KINDS.items()
    }


FRAGMENT_SETS = limit_sets("fragments", {version: f"ipv{version}_addr" for version in IP})


def set_of(stem: str, version: int, limit: RateLimit) -> str:
    """The set for a limit."""
    return f"{stem}{version}{'-packets' if limit.packets else ''}"


def drops_over(stem: str, version: int, key: str, then: str) -> Iterator[str]:
    """The rules that drop packets over the limit of their key. then: other statements before the drop."""
    return (f"{key} @{stem}{version}{suffix} {then} drop" for suffix in _KINDS)


def limits_at(pinholes: Iterable[Pinhole]) -> dict[str, Counter[RateLimit]]:
    """The limits of limited pinholes, by address, and how many pinholes have each."""
    found: dict[str, Counter[RateLimit]] = defaultdict(Counter)
    for hole in pinholes:
        if hole.limit is not None and hole.sources != ():
            found[hole.address][hole.limit] += 1
    return found


def slowest_at(pinholes: Iterable[Pinhole]) -> dict[tuple[str, str], Pinhole]:
    """The limited pinhole with the slowest limit, by the set for fragments and its element."""
    limited = [(hole.limit, hole) for hole in pinholes if hole.limit is not None and hole.sources != ()]
    limited.sort(key=lambda pair: -pace(pair[0]))
    return {(set_of("fragments", hole.version, limit), hole.address): hole for limit, hole in limited}


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
