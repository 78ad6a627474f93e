"""The whole ruleset: both tables, and the pinholes as elements of their sets.

There are two tables: `inet nftsync` (the filter) and `netdev nftsync` (rate limits). Only parsed
values, names of a checked grammar, and the operator's verbatim local chain enter them from outside.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset import inet, netdev
from nftsync.ruleset.limits import Limits, limits_at, together
from nftsync.ruleset.model import INET, NETDEV, Elements, Ruleset, Set, Table, unquoted
from nftsync.ruleset.settings import Settings

_OF_PINHOLES = ("services", "sources", "errors", "limited", "dropped")  # the sets whose names begin so
# The sets of each table, the same with any settings.
SETS: Mapping[str, Mapping[str, Set]] = {INET: inet.SETS, NETDEV: netdev.SETS}


def tables(settings: Settings) -> Mapping[str, Table]:
    """The tables without elements. `netdev nftsync` exists only with enable_rateshape."""
    wanted = {INET: Table(SETS[INET], inet.chains(settings), flags=settings.flags)}
    if settings.enable_rateshape:
        wanted[NETDEV] = Table(SETS[NETDEV], netdev.chains(settings), flags=settings.flags)
    return wanted


def flags_for(current: Mapping[str, Table], flags: frozenset[str]) -> frozenset[str]:
    """The flags of the wanted tables.

    The kernel cannot add flags to a table or take them away, and nftsync does not replace a table
    only for its flags. So present tables keep theirs.
    """
    if not current:
        return flags
    kept = frozenset.intersection(*(table.flags for table in current.values())) - {"dormant"}
    return flags or kept if "persist" in kept else frozenset()


def ruleset(pinholes: Iterable[Pinhole], settings: Settings, closed: Iterable[str] = ()) -> Ruleset:
    """The whole ruleset: the tables and their elements. closed: keys of closed endpoints."""
    found = elements(pinholes, settings, closed=closed)
    for pool in settings.cluster.ranges:
        found[INET].setdefault(f"pools{pool.version}", {})[pool.element] = ""
    found[INET].update(inet.interfaces(settings.side))
    return Ruleset(tables(settings), found)


def elements(
    pinholes: Iterable[Pinhole],
    settings: Settings,
    others: Limits = MappingProxyType({}),
    closed: Iterable[str] = (),
) -> dict[str, Elements]:
    """The set elements of pinholes and closed endpoints, by family and set.

    others: the limits of further pinholes at the same addresses.  closed: keys of closed endpoints.
    """
    holes = list(pinholes)
    filters = inet.elements(holes, closed)
    if not settings.enable_rateshape:
        return {INET: filters, NETDEV: {}}
    limits = together(limits_at(holes), others)
    return {INET: {**filters, **inet.limits(holes, limits)}, NETDEV: netdev.elements(holes, limits)}


def open_keys(elements: Mapping[str, Elements]) -> set[str]:
    """The keys of the open pinholes of these elements, which are ordered by family."""
    return {
        pinhole_key(element)
        for name, members in elements.get(INET, {}).items()
        if name.startswith(("services", "sources"))
        for element in members
    }


def has_pinholes(set_name: str) -> bool:
    """Whether each element of a set of ours belongs to a pinhole."""
    return set_name.startswith(_OF_PINHOLES)


def closed_keys(elements: Mapping[str, Elements]) -> set[str]:
    """The keys of the endpoints that these elements keep closed, but for some sources."""
    return {key for name, members in elements.get(INET, {}).items() if name.startswith("closed") for key in members}


def pinhole_key(element: str) -> str:
    """The key of the pinhole to which an element of such a set belongs."""
    return unquoted(element) if element.startswith("0x") else " ".join(element.split(" ", 5)[:5])
