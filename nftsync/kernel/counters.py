"""Read the counters of our elements and rules through netlink, in any thread.

This module shares nothing with the Kernel that changes the tables.
Source: linux/netfilter/nf_tables.h.
"""

from collections.abc import Collection, Iterable, Iterator

from nftsync.kernel import netlink
from nftsync.kernel.netlink import HEADER, PROTOCOL, Netlink, address, elements, expressions, fields, text
from nftsync.report.traffic import NOTHING, Count, Element, Reading, Rule
from nftsync.ruleset.limits import FRAGMENT_SETS
from nftsync.ruleset.model import FRAGMENTS, GLOBAL, INET, NETDEV, OPERATOR_SVC, PROTOCOLS
from nftsync.ruleset.tables import SETS

_RULE_HANDLE = 3
_BYTES, _PACKETS = 1, 2  # of a counter

_COUNTING = {INET: ("services", "sources", "dropped-dnat", "dropped-egress"), NETDEV: ("dropped",)}
_OTHERS = {family: [name for name in SETS[family] if not name.startswith(stems)] for family, stems in _COUNTING.items()}
_CLOSED = ("closed4", "closed6", "pools4", "pools6")


def read() -> Reading:
    """All counters, from this thread's network namespace. Missing sets count as empty.

    Raises DumpError.
    """
    with Netlink(PROTOCOL) as kernel:
        counts = {
            f"{stem}{version}": dict(_counted(kernel, family, f"{stem}{version}", width))
            for family, stems in _COUNTING.items()
            for stem in stems
            for version, width in ((4, 4), (6, 16))
        }
        sizes = {set_name: len(counted) for set_name, counted in counts.items()} | {
            set_name: sum(not element.ends_interval for element in elements(kernel, family, set_name))
            for family, names in _OTHERS.items()
            for set_name in names
        }
        return Reading(
            counts,
            sizes,
            dict(_by_rule(kernel, INET, OPERATOR_SVC, _CLOSED)),
            dict(_by_rule(kernel, NETDEV, FRAGMENTS, FRAGMENT_SETS)),
            dict(_by_rule(kernel, INET, GLOBAL, ())),
        )


def _counted(kernel: Netlink, family: str, set_name: str, width: int) -> Iterator[tuple[Element, Count]]:
    """The elements of a set and their counters. Keys are "address . protocol . port", with or without a source.

    width: bytes of an address.
    """
    for key, end, _, statements in elements(kernel, family, set_name):
        if len(key) < width + 8:  # a foreign set of another type has our set's name
            continue
        protocol = PROTOCOLS.get(key[width], key[width])
        pinhole = f"{address(key[:width])} . {protocol} . {int.from_bytes(key[width + 4 : width + 6])}"
        yield (pinhole, key[width + 8 :] + end[width + 8 :]), _count(statements) or NOTHING


def _count(statements: Iterable[tuple[bytes, bytes]]) -> Count | None:
    """The value of the first counter; None without one."""
    for called, data in statements:
        if called == b"counter":
            values = fields(data)
            return Count(int.from_bytes(values[_PACKETS]), int.from_bytes(values[_BYTES]))
    return None


def _by_rule(kernel: Netlink, family: str, chain: str, names: Collection[str]) -> Iterator[tuple[Rule, Count]]:
    """The counters of a chain's rules that match one of these sets; of all its rules without names."""
    for content in netlink.dump(kernel, netlink.GET_RULES, family, netlink.name(netlink.RULE_CHAIN, chain)):
        rule = fields(content, HEADER)
        statements = list(expressions(rule.get(netlink.RULE_EXPRESSIONS, b"")))
        sets = {text(fields(data)[netlink.LOOKUP_SET]) for called, data in statements if called == b"lookup"}
        matched = sets.intersection(names)
        count = _count(statements)
        if count and (matched or not names):
            yield (matched.pop() if matched else chain, int.from_bytes(rule[_RULE_HANDLE])), count
