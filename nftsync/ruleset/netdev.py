"""The table `netdev nftsync`: rate limits. docs/ruleset.md draws a packet's way through it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.limits import FRAGMENT_SETS, Limits, drops_over, limit_sets, limits_at, set_of, strictest
from nftsync.ruleset.model import ENDPOINT, FRAGMENTS, IP, OPERATOR_TC, RATELIMIT, Chain, Elements, Set, lines
from nftsync.ruleset.settings import Settings

# Only the first fragment of a packet has its ports.
_LATER_FRAGMENT = ("ip frag-off & 0x1fff != 0", "frag frag-off != 0")

SETS: Mapping[str, Set] = {
    **limit_sets("limited", ENDPOINT),
    **FRAGMENT_SETS,
    # A second look-up counts packets over a limit, because a limit hides a counter on the same
    # element in a listing.
    **{f"dropped{version}": Set(endpoint, statement="counter") for version, endpoint in ENDPOINT.items()},
}


def chains(settings: Settings) -> dict[str, Chain]:
    endpoints = {version: f"{ip} daddr . meta l4proto . th dport" for version, ip in IP.items()}
    over = (
        rule
        for version, endpoint in endpoints.items()
        for rule in drops_over("limited", version, endpoint, f"{endpoint} @dropped{version}")
    )
    fragments = (
        rule for version, ip in IP.items() for rule in drops_over("fragments", version, f"{ip} daddr", "counter")
    )
    found = {
        FRAGMENTS: Chain(lines(*fragments)),
        OPERATOR_TC: Chain(lines(*(f"{is_one} goto {FRAGMENTS}" for is_one in _LATER_FRAGMENT), *over)),
    }
    for number, device in enumerate(settings.devices, 1):
        name = RATELIMIT if number == 1 else f"{RATELIMIT}-{number}"  # a device's name may be no word of nft's
        hook = f'type filter hook ingress device "{device}" priority 0; policy accept;'
        # The hook of a VLAN's interface sees the packet, too. It must not count twice.
        tagged = "ether type { 8021q, 8021ad } return" if device in settings.side.trunks else ""
        found[name] = Chain(lines(tagged, f"jump {OPERATOR_TC}"), hook=hook)
    return found


def elements(pinholes: Iterable[Pinhole], others: Limits = MappingProxyType({})) -> Elements:
    """The elements of pinholes with a limit, by set.

    others: the limits of further pinholes at the same addresses. Later fragments share one limit.
    """
    found: Elements = defaultdict(dict)
    limited = [hole for hole in pinholes if hole.limit is not None and hole.sources != ()]
    for hole in limited:
        assert hole.limit is not None
        found[set_of("limited", hole.version, hole.limit)][hole.key] = hole.limit.statement
        found[f"dropped{hole.version}"][hole.key] = ""
    own = limits_at(limited)
    for address in own.keys() | others.keys():
        for limit in strictest({*own.get(address, ()), *others.get(address, ())}):
            found[set_of("fragments", 6 if ":" in address else 4, limit)][address] = limit.statement
    return found
