"""The table `inet nftsync`: which packets pass. docs/ruleset.md draws a packet's way through it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.model import (
    ENDPOINT,
    FORWARD,
    GLOBAL,
    INPUT,
    IP,
    LOCAL_CHAIN,
    OPERATOR_CR,
    OPERATOR_SVC,
    Chain,
    Elements,
    Set,
    lines,
)
from nftsync.ruleset.settings import Settings

_CLOSED = "meta l4proto { tcp, udp, sctp } ct direction original"

SETS: Mapping[str, Set] = {
    name: declared
    for version, endpoint in ENDPOINT.items()
    for name, declared in (
        (f"services{version}", Set(endpoint, statement="counter")),
        (f"sources{version}", Set(f"{endpoint} . ipv{version}_addr", flags="interval", statement="counter")),
        (f"pools{version}", Set(f"ipv{version}_addr", flags="interval")),
    )
}


def chains(settings: Settings) -> dict[str, Chain]:
    public = f'iifname "{settings.public}" ' if settings.public else ""
    # While somebody renames the public NIC, the rules match it by index. Its packets still go through
    # operator-svc and never count as inside.
    other = f'iifname != "{settings.public}" '
    inside = f"{other}iif != {settings.index} " if settings.index else other
    verdict = "drop" if settings.enable_dropall else "accept"
    return {
        LOCAL_CHAIN: Chain(settings.local_chain),
        OPERATOR_CR: Chain(
            lines(
                *(f"{public}{peers}tcp dport 179 accept" for peers in _bgp_peers(settings) if settings.enable_bgp),
                f"{public}tcp dport 22 accept" if settings.enable_ssh else "",
            )
        ),
        OPERATOR_SVC: Chain(
            lines(
                *(
                    f"{ip} daddr . meta l4proto . th dport{source} @{name}{version} accept"
                    for version, ip in IP.items()
                    for name, source in (("services", ""), ("sources", f" . {ip} saddr"))
                ),
                # Drops established connections, too, so closing a pinhole cuts them off. It drops only
                # connections that began outside: replies to the cluster and to other hosts with an
                # address of a pool pass. ICMP passes, because path MTU discovery needs its errors.
                *(
                    f"{_CLOSED} {ip} daddr @pools{version} counter drop"
                    for version, ip in IP.items()
                    if settings.enable_dropall
                ),
            )
        ),
        GLOBAL: Chain(
            lines(
                'iifname "lo" accept',
                f"{inside}ct state new accept" if settings.public else "",
                "ct state established,related accept",
                "ct state invalid drop",
                "meta l4proto icmp accept",
                "meta l4proto ipv6-icmp accept",
            )
        ),
        # The last rule decides before the policy does. If that rule is missing, the policy drops.
        INPUT: Chain(
            lines(f"jump {LOCAL_CHAIN}", f"jump {OPERATOR_CR}", f"jump {GLOBAL}", verdict),
            hook="type filter hook input priority 0; policy drop;",
        ),
        FORWARD: Chain(
            lines(
                f"jump {LOCAL_CHAIN}",
                f"{public}jump {OPERATOR_SVC}",
                f"{other}iif {settings.index} jump {OPERATOR_SVC}" if settings.index else "",
                f"jump {GLOBAL}",
                verdict,
            ),
            hook="type filter hook forward priority 0; policy drop;",
        ),
    }


def _bgp_peers(settings: Settings) -> list[str]:
    """The matches of permitted BGP peers: one for each family, or one that matches everybody."""
    peers = {ip: [peer for peer in settings.bgp_peers if peer.version == version] for version, ip in IP.items()}
    matches = [f"{ip} saddr {{ {', '.join(map(str, sorted(some)))} }} " for ip, some in peers.items() if some]
    return matches or [""]


def elements(pinholes: Iterable[Pinhole]) -> Elements:
    """The elements of pinholes, by set."""
    found: Elements = defaultdict(dict)
    for hole in pinholes:
        if hole.sources is None:
            found[f"services{hole.version}"][hole.key] = ""
        for network in hole.sources or ():  # nft writes one address without a prefix length
            source = network.network_address if network.prefixlen == network.max_prefixlen else network
            found[f"sources{hole.version}"][f"{hole.key} . {source}"] = ""
    return found
