"""Turns pinholes into elements of the tables' sets, and elements into pinholes again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nftsync.objects.address import Network
from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.tables import INET, NETDEV, Elements, Ruleset, Settings, tables


def ruleset(pinholes: Iterable[Pinhole], settings: Settings) -> Ruleset:
    """The whole ruleset: the tables and their elements."""
    found = elements(pinholes, settings)
    for each in settings.cluster.ranges:
        found[INET].setdefault(f"pools{each.version}", {})[each.element] = ""
    return Ruleset(tables(settings), found)


def elements(pinholes: Iterable[Pinhole], settings: Settings) -> dict[str, Elements]:
    """The set elements of pinholes, by family and set."""
    found: dict[str, Elements] = {INET: {}, NETDEV: {}}
    for family, name, key, statement in _elements(pinholes, settings):
        found[family].setdefault(name, {})[key] = statement
    return found


def _elements(pinholes: Iterable[Pinhole], settings: Settings) -> Iterator[tuple[str, str, str, str]]:
    for hole in pinholes:
        if hole.sources is None:
            yield INET, f"services{hole.version}", hole.key, ""
        else:
            for network in hole.sources:
                yield INET, f"sources{hole.version}", f"{hole.key} . {_source_text(network)}", ""
        if settings.enable_rateshape and hole.limit is not None and hole.sources != ():
            suffix = "-packets" if hole.limit.packets else ""
            yield NETDEV, f"limited{hole.version}{suffix}", hole.key, hole.limit.statement
            yield NETDEV, f"dropped{hole.version}", hole.key, ""


def open_keys(shown: Ruleset) -> set[str]:
    """The keys of a ruleset's open pinholes."""
    sets = shown.elements.get(INET, {})
    names = [f"{stem}{version}" for stem in ("services", "sources") for version in (4, 6)]
    return {key for name in names for element in sets.get(name, ()) if (key := pinhole_key(name, element))}


def pinhole_key(name: str, element: str) -> str | None:
    """The key of the pinhole to which an element of set `name` belongs; None if there is none."""
    return None if name.startswith("pools") else " . ".join(element.split(" . ")[:3])


def _source_text(network: Network) -> str:
    """A range in nft's notation: one address has no prefix length."""
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)
