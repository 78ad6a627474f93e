"""The ruleset: every table, chain and set name, the rules, and the pinholes as elements of sets.

There are two tables: `inet nftsync` (the filter) and `netdev nftsync` (rate limits). docs/ruleset.md
draws a packet's way through them. The text is nft's (nft(8)). Only parsed values, names of a checked
grammar, and the operator's verbatim local chain enter it from outside.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nftsync.objects.address import AddressSet, Network
from nftsync.objects.nft import NftSpec
from nftsync.policy.pinholes import Pinhole

NAME = "nftsync"  # of both tables
INET = "inet"
NETDEV = "netdev"
OWNED = frozenset({"owner", "persist"})  # only the creator can change the table; it outlives him

LOCAL_CHAIN = "local-chain"
OPERATOR_CR = "operator-cr"
OPERATOR_SVC = "operator-svc"
OPERATOR_TC = "operator-tc"
GLOBAL = "global"
INPUT = "input"
FORWARD = "forward"
RATELIMIT = "ratelimit"

_IP = {4: "ip", 6: "ip6"}  # the matches of each IP version
_CLOSED = "meta l4proto { tcp, udp, sctp } ct direction original"


@dataclass(frozen=True, slots=True)
class Set:
    """A set's declaration: its type, its flags and the kind of its elements' statement."""

    type: str
    flags: str = ""
    statement: str = ""

    def __str__(self) -> str:
        flags = f"flags {self.flags}; " if self.flags else ""
        return f"type {self.type}; {flags}{self.statement}{';' if self.statement else ''}".rstrip()


_ENDPOINT = {4: "ipv4_addr . inet_proto . inet_service", 6: "ipv6_addr . inet_proto . inet_service"}
# The kind of limit in a set's declaration. Each element has a limit of its own.
_LIMITS = {"": "limit rate over 1 bytes/second burst 1 bytes", "-packets": "limit rate over 1/second burst 1 packets"}

# The sets of each table, the same with any settings.
SETS: Mapping[str, Mapping[str, Set]] = {
    INET: {
        name: declared
        for version, endpoint in _ENDPOINT.items()
        for name, declared in (
            (f"services{version}", Set(endpoint, statement="counter")),
            (f"sources{version}", Set(f"{endpoint} . ipv{version}_addr", flags="interval", statement="counter")),
            (f"pools{version}", Set(f"ipv{version}_addr", flags="interval")),
        )
    },
    NETDEV: {
        f"limited{version}{suffix}": Set(endpoint, statement=limit)
        for version, endpoint in _ENDPOINT.items()
        for suffix, limit in _LIMITS.items()
    }
    # A second look-up counts packets over a limit, because a limit hides a counter on the same
    # element in a listing.
    | {f"dropped{version}": Set(endpoint, statement="counter") for version, endpoint in _ENDPOINT.items()},
}


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain: its rules as one text, and a base chain's hook line."""

    rules: str
    hook: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table without its elements.

    foreign_objects: kind and name of objects that others put into it, such as ("map", "x").
    flags: nft's. Only the owner can change a table with "owner". A table with "persist" outlives its
    owner. A "dormant" table is switched off.
    """

    sets: Mapping[str, Set] = field(default_factory=dict)
    chains: Mapping[str, Chain] = field(default_factory=dict)
    foreign_objects: tuple[tuple[str, str], ...] = ()
    flags: frozenset[str] = frozenset()

    @property
    def is_enforcing(self) -> bool:
        """Whether the table filters: it has all our base chains, and is not dormant."""
        return "dormant" not in self.flags and all(
            any(f"hook {name} " in chain.hook for chain in self.chains.values()) for name in (INPUT, FORWARD)
        )


Elements = dict[str, dict[str, str]]  # set name → element key → the element's own statement ("" for none)


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The kernel's ruleset, or the wanted one. tables and elements: by family, INET or NETDEV."""

    tables: Mapping[str, Table] = field(default_factory=dict)
    elements: Mapping[str, Elements] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    """The inputs of the tables beside the pinholes.

    public_nic: None while unknown. Then, or if the NIC is missing, every interface but lo is public.
    index: the public NIC's (if_nametoindex(3)); 0 while no NIC has its name, None before a look. The
    index keeps the NIC public under another name.
    local_chain: the body of the operator's own chain, verbatim.
    bgp_peers: peers that may speak BGP with the router on its public side; empty for everybody.
    cluster: addresses that only the cluster uses (see guard.Guard).
    flags: of the tables.
    limits_refused: whether the kernel refused the limits; then its present limits stay.
    """

    public_nic: str | None = None
    enable_bgp: bool = False
    enable_dropall: bool = True
    enable_rateshape: bool = False
    enable_ssh: bool = True
    index: int | None = None
    local_chain: str = ""
    bgp_peers: tuple[Network, ...] = ()
    cluster: AddressSet = field(default_factory=AddressSet)
    flags: frozenset[str] = frozenset()
    limits_refused: bool = False

    @property
    def nic_missing(self) -> bool:
        """Whether a look for the public NIC found no such interface."""
        return self.index == 0

    @property
    def public(self) -> str | None:
        """The only public NIC; None while every interface is public."""
        return None if self.nic_missing else self.public_nic

    @property
    def device(self) -> str | None:
        """The NIC with the ingress hook."""
        return self.public if self.enable_rateshape and not self.limits_refused else None

    @classmethod
    def of(  # noqa: PLR0913  # each is a setting of its own
        cls,
        spec: NftSpec | None,
        *,
        public_nic: str | None,
        index: int | None = None,
        local_chain: str,
        bgp_peers: tuple[Network, ...] = (),
        cluster: AddressSet = AddressSet(),  # noqa: B008  # immutable
        flags: frozenset[str] = frozenset(),
    ) -> "Settings":
        """Settings from the Nft resource's spec; without a spec the strictest settings.

        public_nic: from the local configuration; it overrides the resource's.
        """
        if spec is None:
            return cls(public_nic=public_nic, local_chain=local_chain, cluster=cluster)
        return cls(
            public_nic=public_nic or spec.public_nic,
            enable_bgp=spec.enable_bgp,
            enable_dropall=spec.enable_dropall,
            enable_rateshape=spec.enable_rateshape,
            enable_ssh=spec.enable_ssh,
            index=index,
            local_chain=local_chain,
            bgp_peers=bgp_peers,
            cluster=cluster,
            flags=flags,
        )


def tables(settings: Settings) -> Mapping[str, Table]:
    """The tables without elements. `netdev nftsync` exists only with enable_rateshape."""
    wanted = {INET: Table(SETS[INET], _filter_chains(settings), flags=settings.flags)}
    if settings.enable_rateshape:
        wanted[NETDEV] = Table(SETS[NETDEV], _limit_chains(settings), flags=settings.flags)
    return wanted


def _filter_chains(settings: Settings) -> dict[str, Chain]:
    public = f'iifname "{settings.public}" ' if settings.public else ""
    # While somebody renames the public NIC, the rules match it by index. Its packets still go through
    # operator-svc and never count as inside.
    other = f'iifname != "{settings.public}" '
    inside = f"{other}iif != {settings.index} " if settings.index else other
    verdict = "drop" if settings.enable_dropall else "accept"
    return {
        LOCAL_CHAIN: Chain(settings.local_chain),
        OPERATOR_CR: Chain(
            _lines(
                *(f"{public}{peers}tcp dport 179 accept" for peers in _bgp_peers(settings) if settings.enable_bgp),
                f"{public}tcp dport 22 accept" if settings.enable_ssh else "",
            )
        ),
        OPERATOR_SVC: Chain(
            _lines(
                *(
                    f"{ip} daddr . meta l4proto . th dport{source} @{name}{version} accept"
                    for version, ip in _IP.items()
                    for name, source in (("services", ""), ("sources", f" . {ip} saddr"))
                ),
                # Drops established connections, too, so closing a pinhole cuts them off. It drops only
                # connections that began outside: replies to the cluster and to other hosts with an
                # address of a pool pass. ICMP passes, because path MTU discovery needs its errors.
                *(
                    f"{_CLOSED} {ip} daddr @pools{version} counter drop"
                    for version, ip in _IP.items()
                    if settings.enable_dropall
                ),
            )
        ),
        GLOBAL: Chain(
            _lines(
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
            _lines(f"jump {LOCAL_CHAIN}", f"jump {OPERATOR_CR}", f"jump {GLOBAL}", verdict),
            hook="type filter hook input priority 0; policy drop;",
        ),
        FORWARD: Chain(
            _lines(
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
    peers = {ip: [peer for peer in settings.bgp_peers if peer.version == version] for version, ip in _IP.items()}
    matches = [f"{ip} saddr {{ {', '.join(map(str, sorted(some)))} }} " for ip, some in peers.items() if some]
    return matches or [""]


def _limit_chains(settings: Settings) -> dict[str, Chain]:
    endpoints = {version: f"{ip} daddr . meta l4proto . th dport" for version, ip in _IP.items()}
    over = (
        f"{endpoint} @limited{version}{suffix} {endpoint} @dropped{version} drop"
        for version, endpoint in endpoints.items()
        for suffix in _LIMITS
    )
    chains = {OPERATOR_TC: Chain(_lines(*over))}
    if settings.device:
        hook = f'type filter hook ingress device "{settings.device}" priority 0; policy accept;'
        chains[RATELIMIT] = Chain(_lines(f"jump {OPERATOR_TC}"), hook=hook)
    return chains


def flags_for(current: Mapping[str, Table], flags: frozenset[str]) -> frozenset[str]:
    """The flags of the wanted tables.

    The kernel cannot add flags to a table or take them away, and nftsync does not replace a table
    only for its flags. So present tables keep theirs.
    """
    if not current:
        return flags
    kept = frozenset.intersection(*(table.flags for table in current.values())) - {"dormant"}
    return flags or kept if "persist" in kept else frozenset()


def _lines(*rules: str) -> str:
    return "".join(f"\t\t{rule}\n" for rule in rules if rule)


def ruleset(pinholes: Iterable[Pinhole], settings: Settings) -> Ruleset:
    """The whole ruleset: the tables and their elements."""
    found = elements(pinholes, settings)
    for pool in settings.cluster.ranges:
        found[INET].setdefault(f"pools{pool.version}", {})[pool.element] = ""
    return Ruleset(tables(settings), found)


def elements(pinholes: Iterable[Pinhole], settings: Settings) -> dict[str, Elements]:
    """The set elements of pinholes, by family and set."""
    filters: Elements = defaultdict(dict)
    limits: Elements = defaultdict(dict)
    for hole in pinholes:
        if hole.sources is None:
            filters[f"services{hole.version}"][hole.key] = ""
        for network in hole.sources or ():  # nft writes one address without a prefix length
            source = network.network_address if network.prefixlen == network.max_prefixlen else network
            filters[f"sources{hole.version}"][f"{hole.key} . {source}"] = ""
        if settings.enable_rateshape and hole.limit is not None and hole.sources != ():
            suffix = "-packets" if hole.limit.packets else ""
            limits[f"limited{hole.version}{suffix}"][hole.key] = hole.limit.statement
            limits[f"dropped{hole.version}"][hole.key] = ""
    return {INET: filters, NETDEV: limits}


def open_keys(found: Ruleset) -> set[str]:
    """The keys of a ruleset's open pinholes."""
    return {
        pinhole_key(element)
        for name, members in found.elements.get(INET, {}).items()
        if name in SETS[INET] and not name.startswith("pools")
        for element in members
    }


def pinhole_key(element: str) -> str:
    """The key of the pinhole to which an element of another set than "pools" belongs."""
    return " ".join(element.split(" ", 5)[:5])
