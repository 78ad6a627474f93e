"""The words for a ruleset: names of tables and chains, and the types of their parts.

The text in them is nft's (nft(8)).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
GLOBAL = "global"
FROM_INSIDE = "from-inside"
INPUT = "input"
FORWARD = "forward"
RATELIMIT = "ratelimit"

IP = {4: "ip", 6: "ip6"}  # the matches of each IP version
ENDPOINT = {4: "ipv4_addr . inet_proto . inet_service", 6: "ipv6_addr . inet_proto . inet_service"}  # of a pinhole


@dataclass(frozen=True, slots=True)
class Set:
    """A set's declaration: its type, its flags and the kind of its elements' statement."""

    type: str
    flags: str = ""
    statement: str = ""

    def __str__(self) -> str:
        flags = f"flags {self.flags}; " if self.flags else ""
        return f"type {self.type}; {flags}{self.statement}{';' if self.statement else ''}".rstrip()


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
