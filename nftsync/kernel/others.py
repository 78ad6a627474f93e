"""Read the base chains of other programs' tables, to find those that can drop packets.

This module only reads. It reads at most a number of rules for a limited time, because others'
tables can hold a hundred thousand rules, and the daemon's loop waits for the answer.
Source: linux/netfilter/nf_tables.h, linux/netfilter/nf_tables_compat.h.
"""

import errno
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from nftsync.kernel import netlink
from nftsync.kernel.netlink import HEADER, PROTOCOL, DumpError, Fields, Netlink, expressions, fields, name, text
from nftsync.report.others import OtherChain, OtherTables, readable
from nftsync.ruleset.model import INET, NAME, NETDEV

MOST_RULES = 20_000  # rules, and elements of verdict maps, in one look
MOST_SECONDS = 0.5

_FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")
_DEVICE_HOOKS = ("ingress", "egress")  # of family netdev
_NOT_OURS = {"bridge": "forward"}  # the hooks that no routed packet from outside meets; "output" in other families
_OURS = {(INET, NAME), (NETDEV, NAME)}
_LEGACY = {"iptables": "ip_tables_names", "ip6tables": "ip6_tables_names"}
_NET = Path("/proc/thread-self/net")

_TABLE_NAME, _TABLE_FLAGS, _DORMANT = 1, 2, 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY = 1, 3, 4, 5
_HOOK_NUMBER, _HOOK_PRIORITY, _HOOK_DEVICE, _HOOK_DEVICES = 1, 2, 3, 4
_SET_NAME, _SET_ELEMENTS = 2, 3
_LOOKUP_TO, _IMMEDIATE_DATA, _VERDICT = 3, 2, 2  # of a look-up, an immediate, and data
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_DROP = 0  # NF_DROP, a verdict's code
_TARGET_NAME = 1
_REJECTING = {b"REJECT", b"TARPIT"}  # targets of iptables-nft that are no verdict of nft's


class _EnoughError(Exception):
    """The budget is used up."""


@dataclass
class _Budget:
    """What one look may still read."""

    deadline: float
    clock: Callable[[], float]
    left: int

    def take(self) -> None:
        self.left -= 1
        if self.left < 0 or (self.left % 256 == 0 and self.clock() > self.deadline):
            raise _EnoughError


@dataclass
class _Rules:
    """The content of a chain that matters: rules that drop, and the chains to go on with."""

    drops: int = 0
    targets: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Table:
    family: int
    name: str


def read(
    clock: Callable[[], float] = time.monotonic, *, rules: int = MOST_RULES, seconds: float = MOST_SECONDS
) -> OtherTables:
    """The chains of this network namespace. It never raises: a fault becomes a sentence in `unread`.

    rules, seconds: read at most this much.
    """
    budget = _Budget(clock() + seconds, clock, rules)
    found, unread = list[OtherChain](), list[str]()
    try:
        by_table = _base_chains(replace(budget))
    except (DumpError, _EnoughError) as error:
        return OtherTables((), (f"the tables of other programs can't be read: {error or 'there are too many'}",))
    for left, (table, chains) in zip(range(len(by_table), 0, -1), by_table.items(), strict=True):
        share = replace(budget, left=budget.left // left)  # so that a long table leaves something for the others
        budget.left -= share.left
        content = defaultdict[str, _Rules](_Rules)
        called = f"table {_FAMILIES[table.family]} {readable(table.name)}"
        try:
            _read_rules(table, content, share)
        except _EnoughError:
            unread.append(f"{called} is too long, nftsync has not read all of it: it can drop more packets")
        except DumpError as error:
            unread.append(f"{called} can't be read: {error}")
        budget.left += max(share.left, 0)
        counted = (replace(chain, drops=_reachable(content, chain.chain)) for chain in chains)
        found.extend(chain for chain in counted if chain.drops or chain.policy == "drop")
    found.sort(key=lambda chain: (chain.hook, chain.priority, chain.family, chain.table, chain.chain))
    return OtherTables(tuple(found), (*unread, *legacy()))


def legacy(folder: Path = _NET) -> Iterator[str]:
    """A sentence for each legacy iptables with tables: nftables can't show them. folder: a namespace's, in /proc."""
    for command, file in _LEGACY.items():
        names = ""
        with suppress(OSError):  # the kernel does not have them, or only root may know
            names = (folder / file).read_text(encoding="utf-8", errors="replace")
        if tables := ", ".join(readable(table) for table in names.split()):
            yield f"legacy {command} has tables that nftsync can't read ({tables}): see `{command}-legacy-save`"


def _base_chains(budget: _Budget) -> dict[_Table, list[OtherChain]]:
    """The base chains of other programs at our hooks, of tables that are not switched off."""
    with Netlink(PROTOCOL) as kernel:
        active = {
            _Table(content[0], text(table[_TABLE_NAME]))
            for content, table in _messages(kernel, netlink.GET_TABLES, b"\0\0\0\0", budget)
            if not int.from_bytes(table.get(_TABLE_FLAGS, b"")) & _DORMANT
        }
        found = defaultdict[_Table, list[OtherChain]](list)
        for content, chain in _messages(kernel, netlink.GET_CHAINS, b"\0\0\0\0", budget):
            table = _Table(content[0], text(chain[_CHAIN_TABLE]))
            family = _FAMILIES.get(table.family, "")
            if family and table in active and (family, table.name) not in _OURS and _CHAIN_HOOK in chain:
                base = _base_chain(family, chain)
                if base.hook != _NOT_OURS.get(family, "output"):
                    found[table].append(base)
    return found


def _base_chain(family: str, chain: Fields) -> OtherChain:
    hook = fields(chain[_CHAIN_HOOK])
    number = int.from_bytes(hook[_HOOK_NUMBER])
    names = _DEVICE_HOOKS if family == "netdev" else _HOOKS
    devices = [hook[_HOOK_DEVICE]] if _HOOK_DEVICE in hook else list(_values(hook.get(_HOOK_DEVICES, b"")))
    return OtherChain(
        family,
        text(chain[_CHAIN_TABLE]),
        text(chain[_CHAIN_NAME]),
        names[number] if number < len(names) else str(number),
        int.from_bytes(hook[_HOOK_PRIORITY], signed=True),
        "accept" if int.from_bytes(chain.get(_CHAIN_POLICY, b"\1")) else "drop",
        devices=tuple(sorted({text(device) for device in devices})),
    )


def _values(listed: bytes) -> Iterator[bytes]:
    """The values of a list: its attributes are all of one type."""
    return (listed[start:end] for _, start, end in netlink.attributes(listed, 0, len(listed)))


def _read_rules(table: _Table, content: dict[str, _Rules], budget: _Budget) -> None:
    """Fill in the content of a table's chains."""
    inside = struct.pack(">BBH", table.family, 0, 0) + name(_TABLE_NAME, table.name)
    maps = defaultdict[bytes, set[str]](set)  # verdict maps, and the chains that look something up in them
    with Netlink(PROTOCOL) as kernel:  # its own: an unfinished answer ends with the socket
        for _, rule in _messages(kernel, netlink.GET_RULES, inside, budget):
            chain = text(rule[netlink.RULE_CHAIN])
            for called, data in expressions(rule.get(netlink.RULE_EXPRESSIONS, b"")):
                if called == b"reject" or (called == b"target" and _target(data) in _REJECTING):
                    content[chain].drops += 1
                elif called == b"immediate":
                    _note(content[chain], fields(data).get(_IMMEDIATE_DATA, b""))
                elif called == b"lookup" and _gives_verdict(looked_up := fields(data)):
                    maps[looked_up[netlink.LOOKUP_SET]].add(chain)
        for set_name, chains in maps.items():
            verdicts = _Rules()
            members = inside + name(_SET_NAME, text(set_name))
            for _, message in _messages(kernel, netlink.GET_ELEMENTS, members, budget):
                for element in _values(message.get(_SET_ELEMENTS, b"")):
                    budget.take()
                    _note(verdicts, fields(element).get(netlink.VALUE, b""))
            for chain in chains:
                content[chain].drops += bool(verdicts.drops)
                content[chain].targets |= verdicts.targets


def _note(rules: _Rules, data: bytes) -> None:
    """Note a verdict; other data have none."""
    verdict = fields(fields(data).get(_VERDICT, b""))
    if _VERDICT_CHAIN in verdict:
        rules.targets.add(text(verdict[_VERDICT_CHAIN]))
    elif _VERDICT_CODE in verdict:
        rules.drops += int.from_bytes(verdict[_VERDICT_CODE]) == _DROP


def _gives_verdict(looked_up: Fields) -> bool:
    """Whether a look-up in a map writes its result to the verdict's register, number 0."""
    return _LOOKUP_TO in looked_up and not int.from_bytes(looked_up[_LOOKUP_TO])


def _target(data: bytes) -> bytes:
    return fields(data).get(_TARGET_NAME, b"").rstrip(b"\0")


def _reachable(content: dict[str, _Rules], base: str) -> int:
    """The rules that drop, in a base chain and the chains that it can reach."""
    seen, waiting = {base}, [base]
    drops = 0
    while waiting:
        rules = content.get(waiting.pop(), _Rules())
        drops += rules.drops
        waiting.extend(rules.targets - seen)
        seen |= rules.targets
    return drops


def _messages(kernel: Netlink, kind: int, body: bytes, budget: _Budget) -> Iterator[tuple[bytes, Fields]]:
    """The messages of a dump. A mix of generations will do; an object that is gone has none."""
    try:
        for content in kernel.messages(kind, body):
            budget.take()
            yield content, fields(content, HEADER)
    except DumpError as error:
        if error.number not in (errno.EINTR, errno.ENOENT):
            raise
