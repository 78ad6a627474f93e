"""The tables of other programs that can drop packets beside nftsync.

A packet passes only if every base chain at its hooks accepts it. An accept of nftsync is final in
nftsync's table alone (nft(8)). nftsync reads these tables but never changes them.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from nftsync.objects.names import quote, some

THROUGH = ("ingress", "prerouting", "forward", "postrouting", "egress")  # the hooks of a forwarded packet
TO_ROUTER = ("ingress", "prerouting", "input")
_FAMILIES = {4: {"ip", "inet", "netdev"}, 6: {"ip6", "inet", "netdev"}}
_NAMED = 5  # the most chains that an answer names
_PRIORITIES = {-300: "raw", -150: "mangle", -100: "dstnat", 0: "filter", 50: "security", 100: "srcnat"}
_NEAR = 10  # nft writes a priority as a name and at most this difference
_NAMEABLE = re.compile(r"[A-Za-z_.][A-Za-z0-9_./-]{0,254}")
HOW_SEEN = "To watch the packets, run `nft monitor trace` and set `meta nftrace set 1` for them in your local chain"


@dataclass(frozen=True, slots=True)
class OtherChain:
    """A base chain of another program that can drop packets.

    policy: "drop" or "accept".
    drops: the rules that drop or reject packets, in this chain and those that it jumps to.
    devices: the interfaces of a hook at an interface, else none.
    """

    family: str
    table: str
    chain: str
    hook: str
    priority: int
    policy: str = "accept"
    drops: int = 0
    devices: tuple[str, ...] = ()

    def __str__(self) -> str:
        at = f" at {some(map(readable, self.devices), _NAMED)}" if self.devices else ""
        priority = str(self.priority) if self.family == "bridge" else _priority(self.priority)  # it has other names
        place = f"hook {self.hook}{at}, priority {priority}"
        return f"table {self.family} {readable(self.table)}, chain {readable(self.chain)} ({place})"

    @property
    def effect(self) -> str:
        """Its effect as a predicate, such as "drops packets by its policy"."""
        rules = (
            f"has {self.drops} rule{'s that drop or reject' if self.drops > 1 else ' that drops or rejects'} packets"
        )
        if self.policy != "drop":
            return rules
        return "drops packets by its policy" + (f" and {rules}" if self.drops else "")

    @property
    def listing(self) -> str:
        """The command that shows it."""
        return f"nft list table {self.family} {readable(self.table)}"


@dataclass(frozen=True, slots=True)
class OtherTables:
    """The base chains that can drop packets, by hook and priority.

    unread: a sentence for each part that could not be read.
    """

    chains: tuple[OtherChain, ...] = ()
    unread: tuple[str, ...] = ()

    def warnings(self) -> Iterator[str]:
        """A sentence for each."""
        for chain in self.chains:
            yield f"{chain} {chain.effect}, perhaps also some that nftsync accepts: see `{chain.listing}`"
        yield from self.unread

    def on(self, hooks: Collection[str], versions: Iterable[int], devices: Collection[str]) -> "OtherTables":
        """The part that a packet can meet.

        versions: 4, 6 or both.  devices: the interfaces through which it comes in.
        """
        families = set[str]().union(*(_FAMILIES[version] for version in versions))
        met = (
            chain
            for chain in self.chains
            if chain.family in families
            and chain.hook in hooks
            and (chain.hook != "ingress" or not set(devices).isdisjoint(chain.devices))
        )
        return OtherTables(tuple(met), self.unread)

    @property
    def drops_by_policy(self) -> bool:
        return any(chain.policy == "drop" for chain in self.chains)

    def lines(self) -> Iterator[str]:
        """Sentences about a packet that nftsync lets pass, those about policies first."""
        ordered = sorted(self.chains, key=lambda chain: chain.policy != "drop")
        for chain in ordered[:_NAMED]:
            yield f"nftsync lets it pass, but {chain} {chain.effect}: see `{chain.listing}`"
        if len(ordered) > _NAMED:
            yield f"… and {len(ordered) - _NAMED} more chains of other tables can drop it: run `nftsync check`"
        yield from self.unread


def _priority(number: int) -> str:
    """As nft prints it."""
    for near, name in _PRIORITIES.items():
        if abs(number - near) <= _NEAR:
            return name if number == near else f"{name} {'+' if number > near else '-'} {abs(number - near)}"
    return str(number)


def readable(name: str) -> str:
    """A name that another program chose."""
    return name if _NAMEABLE.fullmatch(name) else quote(name)
