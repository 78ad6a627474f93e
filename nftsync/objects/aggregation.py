"""The addresses of a pool, and how MetalLB aggregates them for BGP.

MetalLB splits each range into prefixes. It refuses its configuration if no prefix of a range is as
short as an advertisement's aggregation length.
Source: MetalLB's internal/config: ParseCIDR, validateBGPAdvPerPool.
"""

from collections.abc import Mapping

from nftsync.objects.address import Range, parse_range
from nftsync.objects.names import Malformed, quote, require, sequence

Lengths = tuple[int, int]  # of aggregated prefixes: IPv4's, IPv6's
Prefixes = frozenset[tuple[int, int]]  # IP version, and length of the shortest prefix in a range
UNAGGREGATED: Lengths = (32, 128)


def parse_addresses(value: object, what: str) -> tuple[tuple[Range, ...], Prefixes]:
    """A pool's list of addresses, and its prefixes.

    Raises Malformed, also for an empty list.
    """
    entries = sequence(value, what)
    require(bool(entries), f"{what} is empty: a pool needs a CIDR or a range of addresses")
    ranges = [parse_range(entry) for entry in entries]
    prefixes = frozenset((part.version, _length(str(entry), part)) for entry, part in zip(entries, ranges, strict=True))
    return tuple(sorted(ranges, key=Range.position)), prefixes


def _length(entry: str, part: Range) -> int:
    """The length of the shortest prefix. MetalLB counts that of an IPv4-mapped CIDR as IPv6's."""
    if "-" not in entry:
        return int(entry.rpartition("/")[2])
    first, last = int(part.first), int(part.last)
    bits = (last - first + 1).bit_length() - 1
    start = -(-first >> bits) << bits  # the first multiple of the block's size
    return part.first.max_prefixlen - (bits if start + (1 << bits) - 1 <= last else bits - 1)


def parse_lengths(
    raw: Mapping[str, object], keys: tuple[str, str] = ("aggregationLength", "aggregationLengthV6")
) -> Lengths:
    """The aggregation lengths of an advertisement. Raises Malformed."""
    first, second = (_aggregation(raw.get(key), key, most) for key, most in zip(keys, UNAGGREGATED, strict=True))
    return first, second


def _aggregation(value: object, key: str, most: int) -> int:
    length = most if value is None else value
    if type(length) is not int or length > most:
        raise Malformed(f"{key} {quote(value)} is not a number up to {most}")
    return length


def is_advertised(protocol: object, prefixes: Prefixes, advertisements: list[Lengths], what: str) -> bool:
    """Whether a pool of this protocol is advertised over BGP.

    advertisements: the lengths of each.  what: names the pool. Raises Malformed.
    """
    require(protocol in ("bgp", "layer2"), f"the protocol {quote(protocol)} of {what} is neither bgp nor layer2")
    require(protocol == "bgp" or not advertisements, f"{what} is layer2, so it can't have BGP advertisements")
    for lengths in advertisements:
        if complaint := too_narrow(lengths, prefixes):
            raise Malformed(f"{complaint} of {what}")
    return protocol == "bgp"


def too_narrow(aggregation: Lengths, prefixes: Prefixes) -> str:
    """A phrase about a range that has no prefix of these lengths; "" if there is none."""
    for version, length in sorted(prefixes):
        aggregated = aggregation[version == 6]
        if aggregated < length:
            return f"the aggregation length {aggregated} is shorter than the prefix length {length} of a range"
    return ""
