"""The table `inet nftsync`: which packets pass. docs/ruleset.md draws a packet's way through it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from nftsync.policy.pinholes import Pinhole
from nftsync.policy.public import PublicSide
from nftsync.ruleset import stateless
from nftsync.ruleset.limits import (
    DNAT,
    EGRESS,
    EGRESS_SETS,
    FROM,
    TO,
    Limits,
    add_egress,
    add_elements,
    rules_of,
    sets_of,
)
from nftsync.ruleset.model import (
    ANSWERS,
    DNAT_LIMITS,
    EGRESS_LIMITS,
    ENDPOINT,
    FORWARD,
    FROM_INSIDE,
    FROM_PUBLIC,
    GLOBAL,
    ICMP_ERRORS,
    INPUT,
    IP,
    LOCAL_CHAIN,
    OPERATOR_CR,
    OPERATOR_SVC,
    QUOTED_DESTINATION,
    QUOTED_SOURCE,
    Chain,
    Elements,
    Set,
    lines,
    quoted,
)
from nftsync.ruleset.settings import Settings

# The UDP ports of BFD, and the TTL or hop limit that a packet must have: 255 over one hop (RFC 5881,
# section 5), 254 if a peer returns an echo, any over several hops (RFC 5883). The source port does
# not matter: BIRD on Linux sends from 32768 on, below the range of RFC 5881.
BFD = {3784: "255", 3785: "254-255", 4784: "1-255"}

_TTL = {4: "ip ttl", 6: "ip6 hoplimit"}
_BEGUN_OUTSIDE = "meta l4proto { tcp, udp, sctp } ct direction original"

_BITS = {4: 32, 6: 128}  # of an address
_ERRORS = {
    4: "icmp type { destination-unreachable, time-exceeded, parameter-problem }",
    6: "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
}

SETS: Mapping[str, Set] = {
    name: declared
    for version, endpoint in ENDPOINT.items()
    for name, declared in (
        (f"services{version}", Set(endpoint, statement="counter")),
        (f"sources{version}", Set(f"{endpoint} . ipv{version}_addr", flags="interval", statement="counter")),
        (f"closed{version}", Set(endpoint)),
        (f"pools{version}", Set(f"ipv{version}_addr", flags="interval")),
        (f"errors{version}", Set(f"integer{_BITS[version]} . integer8 . integer16", typeof=QUOTED_SOURCE[version])),
    )
} | {
    **sets_of(DNAT),
    **sets_of(EGRESS),
    **EGRESS_SETS,
    "public": Set("ifname"),
    "public-links": Set("iface_index"),
    "inside": Set("ifname"),
}

# How a packet tells its interface. The index comes first, because it costs least. It keeps an interface
# public while somebody renames it; the name does so while somebody unplugs and plugs it. The port of
# a VRF is in sdifname, and the VRF in iifname; sdif is 0 for packets of no VRF.
_PUBLIC = ("iif @public-links", "iifname @public", "meta sdif != 0 meta sdifname @public")
_TO_PUBLIC = ("oif @public-links", "oif != @public-links oifname @public")
_INSIDE = ("iifname @inside", "meta sdifname @inside")


def chains(settings: Settings) -> dict[str, Chain]:
    verdict = "drop" if settings.enable_dropall else "accept"
    # by address first: each packet pays for it
    egress = [
        f"{ip} saddr @egress{version} jump {EGRESS_LIMITS}"
        for version, ip in IP.items()
        if settings.egress and settings.enable_rateshape
    ]
    return {
        LOCAL_CHAIN: Chain(settings.local_chain),
        OPERATOR_CR: Chain(
            lines(
                *(_bgp(settings) if settings.enable_bgp else ()),
                "tcp dport 22 accept" if settings.enable_ssh else "",
            )
        ),
        OPERATOR_SVC: Chain(
            lines(
                *(
                    f"{TO[version]}{source} @{name}{version} accept"
                    for version, ip in IP.items()
                    for name, source in (("services", ""), ("sources", f" . {ip} saddr"))
                ),
                *_closed(settings),
                *(stateless.closed(settings) if settings.is_stateless else _pools(settings)),
                f"jump {GLOBAL}",
                verdict,
            )
        ),
        # Most packets are of an established connection, so they come first.
        GLOBAL: Chain(
            lines(
                "ct state established,related accept",
                'iifname "lo" accept',
                f"ct state {'new,untracked' if settings.is_stateless else 'new'} jump {FROM_INSIDE}",
                f"ct state invalid,untracked jump {ICMP_ERRORS}",
                "ct state invalid counter drop",
                "meta l4proto icmp accept",
                "meta l4proto ipv6-icmp accept",
            )
        ),
        # Limits come before the local chain, because its accept would end the look-ups.
        FROM_PUBLIC: Chain(
            lines(
                f"ct status dnat jump {DNAT_LIMITS}" if settings.enable_rateshape else "",
                f"jump {LOCAL_CHAIN}",
                f"goto {OPERATOR_SVC}",
            )
        ),
        FROM_INSIDE: Chain(lines(*_from_inside(settings))),
        ICMP_ERRORS: Chain(lines(*_icmp_errors(settings.side))),
        **(_limits(settings.side) if settings.enable_rateshape else {}),
        **(stateless.chains(settings) if settings.is_stateless else {}),
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
                # Without a public interface that is there, answers of Services also go to from-public.
                *(egress if settings.side.names is None else ()),
                # goto: a packet that matches several of these rules passes the chain once
                *_from_public(settings.side, f"goto {FROM_PUBLIC}"),
                *(() if settings.side.names is None else egress),
                f"jump {LOCAL_CHAIN}",
                f"jump {GLOBAL}",
                verdict,
            ),
            hook="type filter hook forward priority 0; policy drop;",
        ),
    }


def _closed(settings: Settings) -> Iterator[str]:
    """The rules that drop packets to closed endpoints: no pinhole has accepted them.

    They drop established connections, too, so closing a pinhole cuts them off, and narrowing its
    sources cuts off the others. The direction of the connection does not matter: conntrack can have
    seen the server first.
    """
    if settings.enable_dropall:
        yield from (f"{TO[version]} @closed{version} counter drop" for version in IP)


def _pools(settings: Settings) -> Iterator[str]:
    """The rules that drop the other packets to a pool, but only those of connections that began outside.

    Replies to the cluster and to other hosts with an address of a pool pass. ICMP passes, because path
    MTU discovery needs its errors.
    """
    if settings.enable_dropall:
        yield from (f"{_BEGUN_OUTSIDE} {ip} daddr @pools{version} counter drop" for version, ip in IP.items())


def _icmp_errors(side: PublicSide) -> Iterator[str]:
    """The rules that accept ICMP errors about a packet from a pinhole, and outwards about one to a pinhole.

    Any router on the way can send them, so the quoted packet counts. This router may not have seen
    its connection.
    """
    yield from (f"{_ERRORS[version]} {QUOTED_SOURCE[version]} @errors{version} accept" for version in IP)
    outwards = (f"{_ERRORS[version]} {QUOTED_DESTINATION[version]} @errors{version} accept" for version in IP)
    yield from _to_public(side, *outwards)


def _from_public(side: PublicSide, action: str) -> Iterator[str]:
    """The rules for an action on packets that come in by a public interface."""
    if side.names is None:
        return iter([action if side.inside is None else f"iifname != @inside {action}"])
    return (f"{match} {action}" for match in _PUBLIC)


def _to_public(side: PublicSide, *actions: str) -> Iterator[str]:
    """The rules for actions on packets that leave by a public interface."""
    if side.names is None:
        return iter(actions)
    return (f"{match} {action}" for match in _TO_PUBLIC for action in actions)


def _limits(side: PublicSide) -> dict[str, Chain]:
    """The chains of limits that the ingress hook cannot know.

    It sees the address before DNAT, and no packet that leaves.
    """
    return {
        DNAT_LIMITS: Chain(lines(*rules_of(DNAT, TO))),
        EGRESS_LIMITS: Chain(lines("" if side.names is None else "oifname != @public return", *rules_of(EGRESS, FROM))),
    }


def _from_inside(settings: Settings) -> Iterator[str]:
    """The rules that accept packets from inside."""
    side = settings.side
    if side.names is not None:
        yield from (f"{match} return" for match in _PUBLIC)
    if settings.is_stateless:
        yield from _to_public(side, f"ct state untracked jump {ANSWERS}")
    # A server that goes on sending must not begin its closed connection anew, for another table's
    # flowtable would then carry it past these rules.
    if settings.enable_dropall:
        yield from (
            f"{FROM[version]} @closed{version} {FROM[version]} . {ip} daddr != @sources{version} counter drop"
            for version, ip in IP.items()
        )
    if side.inside is not None:
        yield from (f"{match} accept" for match in _INSIDE)
    elif side.names is not None:
        yield "accept"


def interfaces(side: PublicSide) -> Elements:
    """The elements of the sets of interfaces."""
    quoted = {"public": side.names or (), "inside": side.inside or ()}
    found: Elements = {name: {f'"{nic}"': "" for nic in nics} for name, nics in quoted.items()}
    return {**found, "public-links": {str(index): "" for index in side.indices}}


def _bgp(settings: Settings) -> Iterator[str]:
    """The rules for BGP peers: BGP and BFD from listed peers; without a list, BGP from everybody."""
    for version, ip in IP.items():
        peers = ", ".join(str(peer) for peer in sorted(each for each in settings.bgp_peers if each.version == version))
        if peers:
            ports = ", ".join(f"{port} . {ttl}" for port, ttl in BFD.items())
            yield f"{ip} saddr {{ {peers} }} tcp dport 179 accept"
            yield f"{ip} saddr {{ {peers} }} udp dport . {_TTL[version]} {{ {ports} }} accept"
    if not settings.bgp_peers:
        yield "tcp dport 179 accept"


def elements(pinholes: Iterable[Pinhole], closed: Iterable[str]) -> Elements:
    """The elements of pinholes and closed endpoints, by set. closed: keys.

    A pinhole with source ranges is closed to everybody else.
    """
    found: Elements = defaultdict(dict)
    for key in closed:
        found[f"closed{6 if ':' in key else 4}"][key] = ""
    for hole in pinholes:
        if hole.sources != ():
            found[f"errors{hole.version}"][quoted(hole.key)] = ""
        if hole.sources is None:
            found[f"services{hole.version}"][hole.key] = ""
        else:
            found[f"closed{hole.version}"][hole.key] = ""
        for network in hole.sources or ():  # nft writes one address without a prefix length
            source = network.network_address if network.prefixlen == network.max_prefixlen else network
            found[f"sources{hole.version}"][f"{hole.key} . {source}"] = ""
    return found


def limits(pinholes: Iterable[Pinhole], at: Limits) -> Elements:
    """The elements of pinholes with a limit, by set. at: the limits of their addresses."""
    found: Elements = defaultdict(dict)
    for hole in pinholes:
        add_elements(found, DNAT, hole, hole.limit)
        add_elements(found, EGRESS, hole, hole.limit_egress)
    add_egress(found, at)
    return found
