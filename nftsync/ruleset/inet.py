"""The table `inet nftsync`: which packets pass. docs/ruleset.md draws a packet's way through it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from nftsync.policy.pinholes import Pinhole
from nftsync.policy.public import PublicSide
from nftsync.ruleset.model import (
    ENDPOINT,
    FORWARD,
    FROM_INSIDE,
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
} | {"public": Set("ifname"), "public-links": Set("iface_index"), "inside": Set("ifname")}

# How a packet tells its interface. The index comes first, because it costs least. It keeps an interface
# public while somebody renames it; the name does so while somebody unplugs and plugs it. The port of
# a VRF is in sdifname, and the VRF in iifname.
_PUBLIC = ("iif @public-links", "iif != @public-links iifname @public", "meta sdifname @public")
_INSIDE = ("iifname @inside", "meta sdifname @inside")


def chains(settings: Settings) -> dict[str, Chain]:
    verdict = "drop" if settings.enable_dropall else "accept"
    return {
        LOCAL_CHAIN: Chain(settings.local_chain),
        OPERATOR_CR: Chain(
            lines(
                *(f"{peers}tcp dport 179 accept" for peers in _bgp_peers(settings) if settings.enable_bgp),
                "tcp dport 22 accept" if settings.enable_ssh else "",
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
                f"ct state new jump {FROM_INSIDE}",
                "ct state established,related accept",
                "ct state invalid drop",
                "meta l4proto icmp accept",
                "meta l4proto ipv6-icmp accept",
            )
        ),
        FROM_INSIDE: Chain(lines(*_from_inside(settings.side))),
        # The last rule decides before the policy does. If that rule is missing, the policy drops.
        INPUT: Chain(
            lines(
                f"jump {LOCAL_CHAIN}",
                *_from_public(settings.side, f"jump {OPERATOR_CR}"),
                f"jump {GLOBAL}",
                verdict,
            ),
            hook="type filter hook input priority 0; policy drop;",
        ),
        FORWARD: Chain(
            lines(
                f"jump {LOCAL_CHAIN}",
                *_from_public(settings.side, f"jump {OPERATOR_SVC}"),
                f"jump {GLOBAL}",
                verdict,
            ),
            hook="type filter hook forward priority 0; policy drop;",
        ),
    }


def _from_public(side: PublicSide, action: str) -> Iterator[str]:
    """The rules for an action on packets that come in by a public interface."""
    if side.names is None:
        return iter([action if side.inside is None else f"iifname != @inside {action}"])
    return (f"{match} {action}" for match in _PUBLIC)


def _from_inside(side: PublicSide) -> Iterator[str]:
    """The rules that accept packets from inside."""
    if side.names is not None:
        yield from (f"{match} return" for match in _PUBLIC)
    if side.inside is not None:
        yield from (f"{match} accept" for match in _INSIDE)
    elif side.names is not None:
        yield "accept"


def interfaces(side: PublicSide) -> Elements:
    """The elements of the sets of interfaces."""
    quoted = {"public": side.names or (), "inside": side.inside or ()}
    found: Elements = {name: {f'"{nic}"': "" for nic in nics} for name, nics in quoted.items()}
    return {**found, "public-links": {str(index): "" for index in side.indices}}


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
