"""The words for a ruleset: names of tables and chains, and the types of their parts.

The text in them is nft's (nft(8)).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

NAME = "nftsync"  # of both tables
INET = "inet"
NETDEV = "netdev"
DYNAMIC = "dynamic"  # the flag of a set to which packets add elements
OWNED = frozenset({"owner", "persist"})  # only the creator can change the table; it outlives him

LOCAL_CHAIN = "local-chain"
OPERATOR_CR = "operator-cr"
OPERATOR_SVC = "operator-svc"
OPERATOR_TC = "operator-tc"
FRAGMENTS = "fragments"
DNAT_LIMITS = "dnat-limits"
FROM_PUBLIC = "from-public"
EGRESS_LIMITS = "egress-limits"
GLOBAL = "global"
FROM_INSIDE = "from-inside"
ICMP_ERRORS = "icmp-errors"
ANSWERS = "answers"
PREROUTING = "prerouting"
INPUT = "input"
FORWARD = "forward"
OUTPUT = "output"
RATELIMIT = "ratelimit"

IP = {4: "ip", 6: "ip6"}  # the matches of each IP version
PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}  # by number
_NUMBERS = {name: number for number, name in PROTOCOLS.items()}
ENDPOINT = {4: "ipv4_addr . inet_proto . inet_service", 6: "ipv6_addr . inet_proto . inet_service"}  # of a pinhole
# Address, protocol and port in the packet that an ICMP error quotes: of its source, and of its
# destination. This holds for IPv4 headers without options and IPv6 headers without extensions.
# Source: RFC 792, RFC 4443.
QUOTED_SOURCE = {4: "@th,160,32 . @th,136,8 . @th,224,16", 6: "@th,128,128 . @th,112,8 . @th,384,16"}
QUOTED_DESTINATION = {4: "@th,192,32 . @th,136,8 . @th,240,16", 6: "@th,256,128 . @th,112,8 . @th,400,16"}


@dataclass(frozen=True, slots=True)
class Set:
    """A set's declaration: its type, its flags and the kind of its elements' statement.

    typeof: expressions of the type, if a field of it has no name. `type` calls such fields
    "integer" with their bits, because the kernel does not know the expressions.
    """

    type: str
    flags: str = ""
    statement: str = ""
    typeof: str = field(default="", compare=False)

    def __str__(self) -> str:
        flags = f"flags {self.flags}; " if self.flags else ""
        kind = f"typeof {self.typeof}" if self.typeof else f"type {self.type}"
        return f"{kind}; {flags}{self.statement}{';' if self.statement else ''}".rstrip()


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


def lines(*rules: str) -> str:
    """The rules of a chain. Leaves out empty ones."""
    return "".join(f"\t\t{rule}\n" for rule in rules if rule)


def quoted(key: str) -> str:
    """A pinhole's key as an element of the sets of QUOTED_SOURCE: in numbers, the address in hex."""
    address, protocol, port = key.split(" . ")
    # For IPv4, ip_address() takes ten times as long.
    packed = ip_address(address).packed if ":" in address else bytes(map(int, address.split(".")))
    return f"0x{packed.hex()} . {_NUMBERS[protocol]} . {port}"


def unquoted(element: str) -> str:
    """The pinhole's key of such an element."""
    address, protocol, port = element.split(" . ")
    return f"{ip_address(bytes.fromhex(address[2:]))} . {PROTOCOLS.get(int(protocol), protocol)} . {port}"
