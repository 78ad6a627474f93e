"""Pools without connection tracking: their packets bypass it, and pinholes alone decide.

docs/router-pairs.md says what this means for routers in pairs.
"""

from collections.abc import Iterator

from nftsync.ruleset.limits import FROM
from nftsync.ruleset.model import ANSWERS, ICMP_ERRORS, IP, OUTPUT, PREROUTING, Chain, lines
from nftsync.ruleset.settings import Settings

_PING = {4: "icmp type echo", 6: "icmpv6 type echo"}


def chains(settings: Settings) -> dict[str, Chain]:
    """The chains that only stateless pools have."""
    bypass = lines(
        *(f"{ip} {end} @pools{version} notrack accept" for version, ip in IP.items() for end in ("daddr", "saddr")),
        "accept",
    )
    return {
        # From inside to the public network.
        ANSWERS: Chain(
            lines(
                *(
                    f"{FROM[version]}{client} @{name}{version} accept"
                    for version, ip in IP.items()
                    for name, client in (("services", ""), ("sources", f" . {ip} daddr"))
                ),
                *_others(settings, "saddr", "reply"),
            )
        ),
        # After fragments are put together (priority -400), before connection tracking (-200).
        PREROUTING: Chain(bypass, hook="type filter hook prerouting priority -300; policy accept;"),
        OUTPUT: Chain(bypass, hook="type filter hook output priority -300; policy accept;"),
    }


def closed(settings: Settings) -> Iterator[str]:
    """The last rules for packets from the public network to a pool: no pinhole has accepted them."""
    return _others(settings, "daddr", "request")


def _others(settings: Settings, end: str, ping: str) -> Iterator[str]:
    """The rules for packets of the pools that are of no pinhole: only ICMP errors about one and pings pass."""
    yield f"jump {ICMP_ERRORS}"
    yield from (f"{_PING[version]}-{ping} {ip} {end} @pools{version} accept" for version, ip in IP.items())
    if settings.enable_dropall:
        yield from (f"{ip} {end} @pools{version} counter drop" for version, ip in IP.items())
