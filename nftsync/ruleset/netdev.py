"""The table `netdev nftsync`: rate limits. docs/ruleset.md draws a packet's way through it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.model import ENDPOINT, IP, OPERATOR_TC, RATELIMIT, Chain, Elements, Set, lines
from nftsync.ruleset.settings import Settings

# The kind of limit in a set's declaration. Each element has a limit of its own.
_LIMITS = {"": "limit rate over 1 bytes/second burst 1 bytes", "-packets": "limit rate over 1/second burst 1 packets"}

SETS: Mapping[str, Set] = {
    f"limited{version}{suffix}": Set(endpoint, statement=limit)
    for version, endpoint in ENDPOINT.items()
    for suffix, limit in _LIMITS.items()
} | {
    # A second look-up counts packets over a limit, because a limit hides a counter on the same
    # element in a listing.
    f"dropped{version}": Set(endpoint, statement="counter")
    for version, endpoint in ENDPOINT.items()
}


def chains(settings: Settings) -> dict[str, Chain]:
    endpoints = {version: f"{ip} daddr . meta l4proto . th dport" for version, ip in IP.items()}
    over = (
        f"{endpoint} @limited{version}{suffix} {endpoint} @dropped{version} drop"
        for version, endpoint in endpoints.items()
        for suffix in _LIMITS
    )
    found = {OPERATOR_TC: Chain(lines(*over))}
    for number, device in enumerate(settings.devices, 1):
        name = RATELIMIT if number == 1 else f"{RATELIMIT}-{number}"  # a device's name may be no word of nft's
        hook = f'type filter hook ingress device "{device}" priority 0; policy accept;'
        # The hook of a VLAN's interface sees the packet, too. It must not count twice.
        tagged = "ether type { 8021q, 8021ad } return" if device in settings.side.trunks else ""
        found[name] = Chain(lines(tagged, f"jump {OPERATOR_TC}"), hook=hook)
    return found


def elements(pinholes: Iterable[Pinhole]) -> Elements:
    """The elements of pinholes with a limit, by set."""
    found: Elements = defaultdict(dict)
    for hole in pinholes:
        if hole.limit is not None and hole.sources != ():
            suffix = "-packets" if hole.limit.packets else ""
            found[f"limited{hole.version}{suffix}"][hole.key] = hole.limit.statement
            found[f"dropped{hole.version}"][hole.key] = ""
    return found
