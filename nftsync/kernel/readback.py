"""Read our tables back from the kernel, including foreign changes.

Rules become a digest, which shows whether they have changed.
Source: linux/netfilter/nf_tables.h; the numbers of types are nft's own.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from ipaddress import ip_address
from operator import itemgetter
from typing import NamedTuple

from nftsync.kernel import nf_tables
from nftsync.kernel.netlink import Netlink, Span, attributes
from nftsync.kernel.nf_tables import FAMILIES, HEADER, dump, elements, expression, text
from nftsync.objects.address import Range
from nftsync.objects.ratelimit import TIME_UNITS, RateLimit
from nftsync.plan.plan import Found
from nftsync.ruleset.tables import Chain, Ruleset, Set, Table

_NAMEABLE = re.compile(r"[A-Za-z_.][A-Za-z0-9_./-]{0,254}")  # the names that nft takes without quotes
_UNKNOWN = "\t\t# as found in the kernel\n"  # stands for the rules of a chain; equals no rules of ours

_U32, _U64 = struct.Struct(">I"), struct.Struct(">Q")
_TABLE_FLAGS = 2
_FLAGS = {1: "dormant", 2: "owner", 4: "persist"}  # of a table
_CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE, _CHAIN_FLAGS = 3, 4, 5, 7, 10
_BINDING = 4  # a chain's flag: it is part of a rule
_HOOK_NUMBER, _HOOK_PRIORITY, _HOOK_DEVICE = 1, 2, 3
_HOOKS = {"inet": ("prerouting", "input", "forward", "output", "postrouting", "ingress"), "netdev": ("ingress", "egress")}
_POLICIES = ("drop", "accept")
_NAME = 2  # of a set, an object, a flowtable
_SET_FLAGS, _SET_TYPE, _SET_DESCRIBED, _SET_NOTES, _SET_STATEMENT = 3, 4, 9, 13, 17
_SET_OTHERWISE = {11, 12, 18}  # timeout, garbage collection, several statements: our sets have none
_DESCRIBED_SIZE = 1
_NOTED_MERGE, _NOTED_COMMENT = 2, 7
_ANONYMOUS, _INTERVAL, _MAP, _OBJECT, _CONCAT, _STATEMENT = 0x1, 0x4, 0x8, 0x40, 0x80, 0x100  # a set's flags
_DECIDING = (nf_tables.KEY, nf_tables.KEY_END, 2, nf_tables.FLAGS)  # of an element; 2 is the value in a map
_CATCHALL = "*"  # the element that stands for all others
_LIMIT_RATE, _LIMIT_UNIT, _LIMIT_BURST, _LIMIT_TYPE, _LIMIT_FLAGS = 1, 2, 3, 4, 5
_COUNTING = (b"counter", b"last")  # expressions that hold only counts
_QUOTA_CONSUMED = 4
_OBJECT_TYPE = 3
_OBJECTS = {
    1: "counter", 2: "quota", 3: "ct helper", 4: "limit", 7: "ct timeout", 8: "secmark", 9: "ct expectation", 10: "synproxy",
}  # fmt: skip
# Foreign objects in a table, in the order to delete them: maps refer to the objects after them.
_STRANGERS = ("map", "flowtable", "counter", "quota", "limit", "secmark", "synproxy", "ct helper", "ct timeout", "ct expectation")


_Fields = Mapping[int, bytes]  # the values of attributes


class _Type(NamedTuple):
    """The type of one field in a set's elements. width: bytes; each field begins at a multiple of four."""

    name: str
    width: int


_TYPES = {7: _Type("ipv4_addr", 4), 8: _Type("ipv6_addr", 16), 12: _Type("inet_proto", 1), 13: _Type("inet_service", 2)}
_TYPE_BITS = 6  # of each field, in the number of a set's type


def read(kernel: Netlink) -> Found:
    """Tables, elements and rules. The result omits missing tables. Raises DumpError."""
    found = read_tables(kernel)
    elements_of = {
        family: {name: _members(kernel, family, name, declared) for name, declared in table.sets.items()}
        for family, table in found.ruleset.tables.items()
    }
    return replace(found, ruleset=replace(found.ruleset, elements=elements_of))


def read_tables(kernel: Netlink) -> Found:
    """Tables and rules without elements, which costs much less. Raises DumpError."""
    tables, digest = _tables(kernel)
    return Found(Ruleset(tables), digest)


def _tables(kernel: Netlink) -> tuple[dict[str, Table], str]:
    tables = {}
    digest = blake2b(digest_size=16)
    for family in FAMILIES:
        for described in dump(kernel, nf_tables.GET_TABLES, family):
            sets = _listed(kernel, nf_tables.GET_SETS, family)
            tables[family] = table = _table(kernel, family, _fields(described), sets)
            known = f"{family} {table.sets} {table.chains} {table.foreign_objects} {'dormant' in table.flags}"
            for part in (known.encode(), *_rules(kernel, family, sets)):
                digest.update(len(part).to_bytes(4) + part)
    return tables, digest.hexdigest()


def _fields(content: bytes, start: int = HEADER, end: int | None = None) -> _Fields:
    """The values of a message's attributes, or of nested attributes."""
    return {kind: content[first:last] for kind, first, last in attributes(content, start, len(content) if end is None else end)}


def _listed(kernel: Netlink, kind: int, family: str) -> list[_Fields]:
    return [_fields(content) for content in dump(kernel, kind, family)]


def _number(value: bytes | None) -> int:
    return _U32.unpack(value)[0] if value else 0


# --- tables -------------------------------------------------------------------------------------------


def _table(kernel: Netlink, family: str, described: _Fields, declared: Iterable[_Fields]) -> Table:
    sets, chains, foreign_objects = {}, {}, []
    for name, each in _named(declared, _NAME):
        flags = _number(each.get(_SET_FLAGS))
        if flags & _ANONYMOUS:
            continue
        if flags & (_MAP | _OBJECT):
            foreign_objects.append(("map", name))
        else:
            sets[name] = _set(flags, each)
    for name, each in _named(_listed(kernel, nf_tables.GET_CHAINS, family), _CHAIN_NAME):
        if not _number(each.get(_CHAIN_FLAGS)) & _BINDING:
            chains[name] = Chain(_UNKNOWN, _hook(family, each))
    for name, each in _named(_listed(kernel, nf_tables.GET_OBJECTS, family), _NAME):
        kind = _OBJECTS.get(_number(each[_OBJECT_TYPE]))
        if kind:
            foreign_objects.append((kind, name))
    foreign_objects.extend(("flowtable", name) for name, _ in _named(_listed(kernel, nf_tables.GET_FLOWTABLES, family), _NAME))
    foreign_objects.sort(key=lambda stranger: (_STRANGERS.index(stranger[0]), stranger[1]))
    bits = _number(described.get(_TABLE_FLAGS))
    return Table(sets, chains, tuple(foreign_objects), frozenset(name for bit, name in _FLAGS.items() if bits & bit))


def _named(found: Iterable[_Fields], kind: int) -> list[tuple[str, _Fields]]:
    """The objects that nft can name, sorted by name: the kernel lists them by age."""
    names = ((text(each[kind]), each) for each in found)
    return sorted((pair for pair in names if _NAMEABLE.fullmatch(pair[0])), key=itemgetter(0))


def _set(flags: int, declared: _Fields) -> Set:
    """The declaration in our notation. A "?" marks a property that our sets do not have."""
    number = _number(declared[_SET_TYPE])
    names: list[str] = []
    while number:
        kind = number & (1 << _TYPE_BITS) - 1
        names.insert(0, _TYPES[kind].name if kind in _TYPES else f"type{kind}")
        number >>= _TYPE_BITS
    others = flags & ~(_INTERVAL | _CONCAT | _STATEMENT)
    strange = others or declared.keys() & _SET_OTHERWISE or _limited(declared.get(_SET_DESCRIBED, b"")) or _noted(declared)
    statement = _statement(declared[_SET_STATEMENT]) if _SET_STATEMENT in declared else ""
    return Set(" . ".join(names), "interval" if flags & _INTERVAL else "", statement + ("?" if strange else ""))


def _limited(described: bytes) -> bool:
    """True if a set has a size limit."""
    return _DESCRIBED_SIZE in _fields(described, 0)


def _noted(declared: _Fields) -> bool:
    """True if nft stored auto-merge or a comment with the set."""
    notes, at, found = declared.get(_SET_NOTES, b""), 0, set()
    while at + 2 <= len(notes):
        if any(notes[at + 2 : at + 2 + notes[at + 1]]):
            found.add(notes[at])
        at += 2 + notes[at + 1]
    return bool(found & {_NOTED_MERGE, _NOTED_COMMENT})


def _hook(family: str, chain: _Fields) -> str:
    if _CHAIN_HOOK not in chain:
        return ""
    hook = _fields(chain[_CHAIN_HOOK], 0)
    names, number = _HOOKS[family], _number(hook[_HOOK_NUMBER])
    where = names[number] if number < len(names) else str(number)
    device = f' device "{text(hook[_HOOK_DEVICE])}"' if _HOOK_DEVICE in hook else ""
    priority = struct.unpack(">i", hook[_HOOK_PRIORITY])[0]
    policy = _POLICIES[_number(chain.get(_CHAIN_POLICY)) & 1]
    return f"type {text(chain[_CHAIN_TYPE])} hook {where}{device} priority {priority}; policy {policy};"


# --- rules --------------------------------------------------------------------------------------------


def _rules(kernel: Netlink, family: str, declared: Iterable[_Fields]) -> Iterator[bytes]:
    """The parts of the rules that decide, chain by chain, sorted by the chain's name."""
    anonymous = {
        each[_NAME]: _content(kernel, family, text(each[_NAME])) for each in declared if _number(each.get(_SET_FLAGS)) & _ANONYMOUS
    }
    chains: dict[bytes, list[bytes]] = {}
    for rule in _listed(kernel, nf_tables.GET_RULES, family):
        chains.setdefault(rule[nf_tables.RULE_CHAIN], []).extend(_expressions(rule.get(nf_tables.RULE_EXPRESSIONS, b""), anonymous))
    for chain, expressions in sorted(chains.items()):
        yield chain
        yield from expressions


def _content(kernel: Netlink, family: str, name: str) -> bytes:
    """The content of an anonymous set: its name is only a number that the kernel chose."""
    members = []
    for content, (_, start, end) in elements(kernel, family, name):
        member = _fields(content, start, end)
        members.append(b"".join(member.get(kind, b"") + b"\0" for kind in _DECIDING))
    return b"\0".join(sorted(members))


def _expressions(value: bytes, anonymous: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """The expressions of one rule, and an end mark."""
    for _, *place in attributes(value, 0, len(value)):
        called, *data = expression(value, *place)
        yield called
        if called not in _COUNTING:
            for kind, each in _fields(value, *data).items():
                if (called, kind) != (b"quota", _QUOTA_CONSUMED):
                    yield bytes([kind]) + anonymous.get(each, each)
    yield b""


# --- elements -----------------------------------------------------------------------------------------


def _members(kernel: Netlink, family: str, name: str, declared: Set) -> dict[str, str]:
    """The elements of a set and their statements; none if our sets do not have this type."""
    layout = _layout(declared.type)
    if not layout:
        return {}
    found = elements(kernel, family, name, whole=False)
    if len(layout) == 1 and declared.flags:
        return dict.fromkeys(_ranges(found), "")
    return dict(_member(content, element, layout) for content, element in found)


def _layout(declared: str) -> list[tuple[str, slice]]:
    """The fields of a type and their places in the key; none if our sets do not have this type."""
    widths = {each.name: each.width for each in _TYPES.values()}
    layout, at = [], 0
    for name in declared.split(" . "):
        if name not in widths:
            return []
        layout.append((name, slice(at, at + widths[name])))
        at += widths[name] + 3 & ~3
    return layout


def _member(content: bytes, element: Span, layout: list[tuple[str, slice]]) -> tuple[str, str]:
    key, last, statements = b"", b"", []
    for kind, start, end in attributes(content, *element[1:]):
        if kind == nf_tables.KEY:
            key = content[start + 4 : end]
        elif kind == nf_tables.KEY_END:
            last = content[start + 4 : end]
        elif kind == nf_tables.EXPRESSION:
            statements.append(_statement(content[start:end]))
        elif kind == nf_tables.EXPRESSIONS:
            statements.extend(_statement(content[first:to]) for _, first, to in attributes(content, start, end))
    text = " . ".join([_field(name, key[place], (last or key)[place]) for name, place in layout]) if key else _CATCHALL
    return text, " ".join(each for each in statements if each.startswith("limit"))


def _field(name: str, first: bytes, last: bytes) -> str:
    """One field of a concatenation: an address, a prefix, a range, a protocol's name or number, a port."""
    if name in ("ipv4_addr", "ipv6_addr"):
        return nf_tables.address(first) if first == last else Range(ip_address(first), ip_address(last)).element
    low, high = int.from_bytes(first), int.from_bytes(last)
    if low != high:
        return f"{low}-{high}"
    return nf_tables.PROTOCOLS.get(low, str(low)) if name == "inet_proto" else str(low)


def _ranges(found: Iterable[tuple[bytes, Span]]) -> Iterator[str]:
    """The ranges of a set. The kernel keeps an element at each start and one after each end."""
    edges = set()
    for content, element in found:
        member = _fields(content, *element[1:])
        if nf_tables.KEY in member:
            begins = not _number(member.get(nf_tables.FLAGS)) & nf_tables.INTERVAL_END
            edges.add((ip_address(member[nf_tables.KEY][4:]), begins))
        else:
            yield _CATCHALL
    first = None
    for address, begins in sorted(edges):  # at the same address, an end comes before a start
        if first is not None:
            yield Range(first, address - 1).element
        first = address if begins else None
    if first is not None:
        yield Range(first, ip_address(b"\xff" * len(first.packed))).element


def _statement(value: bytes) -> str:
    """A limit in our notation; only the name for other statements."""
    called, *data = expression(value, 0, len(value))
    return _limit(_fields(value, *data)) if called == b"limit" else text(called)


def _limit(limit: _Fields) -> str:
    rate, seconds = _U64.unpack(limit[_LIMIT_RATE])[0], _U64.unpack(limit[_LIMIT_UNIT])[0]
    per = next((name for name, length in TIME_UNITS.items() if length == seconds), f"{seconds} seconds")
    packets = _number(limit.get(_LIMIT_TYPE)) == 0
    statement = RateLimit(rate, per, _number(limit.get(_LIMIT_BURST)), packets).statement
    return statement if _number(limit.get(_LIMIT_FLAGS)) & 1 else statement.replace(" over", "")
