"""The table `netdev nftsync`: rate limits. docs/ruleset.md draws a packet's way through it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.limits import (
    FRAGMENT_SETS,
    INGRESS,
    INGRESS_SETS,
    TO,
    Limits,
    add_elements,
    add_ingress,
    fragment_rules,
    rules_of,
    sets_of,
)
from nftsync.ruleset.model import FRAGMENTS, IP, OPERATOR_TC, RATELIMIT, Chain, Elements, Set, lines
from nftsync.ruleset.settings import Settings

# Only the first fragment of a packet has its ports.
_LATER_FRAGMENT = ("ip frag-off & 0x1fff != 0", "frag frag-off != 0")
# A frame with the id 0 belongs to no VLAN: its tag has a priority alone (IEEE 802.1Q).
_TAGGED = ("vlan id != 0 return", "ether type 8021ad vlan id != 0 return")

SETS: Mapping[str, Set] = {**sets_of(INGRESS), **INGRESS_SETS, **FRAGMENT_SETS}


def chains(settings: Settings) -> dict[str, Chain]:
    later = (f"{is_one} goto {FRAGMENTS}" for is_one in _LATER_FRAGMENT)
    found = {FRAGMENTS: Chain(lines(*fragment_rules())), OPERATOR_TC: Chain(lines(*later, *rules_of(INGRESS, TO)))}
    for number, device in enumerate(settings.devices, 1):
        name = RATELIMIT if number == 1 else f"{RATELIMIT}-{number}"  # a device's name may be no word of nft's
        hook = f'type filter hook ingress device "{device}" priority 0; policy accept;'
        # The hook of a VLAN's interface sees the packet, too. It must not count twice.
        tagged = _TAGGED if device in settings.side.trunks else ()
        limited = (f"{ip} daddr @ingress{version} jump {OPERATOR_TC}" for version, ip in IP.items())
        found[name] = Chain(lines(*tagged, *limited), hook=hook)
    return found


def elements(pinholes: Iterable[Pinhole], limits: Limits) -> Elements:
    """The elements of pinholes with a limit, by set. limits: all those of their addresses."""
    found: Elements = defaultdict(dict)
    for hole in pinholes:
        add_elements(found, INGRESS, hole, hole.limit)
    add_ingress(found, limits)
    return found
