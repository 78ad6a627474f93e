"""Read our tables back from the kernel, including foreign changes.

Rules become a digest, which shows whether they have changed.
Source: linux/netfilter/nf_tables.h; the numbers of types are nft's own.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from ipaddress import ip_address
from operator import itemgetter

from nftsync.kernel import netlink
from nftsync.kernel.netlink import FAMILIES, HEADER, Element, Fields, Netlink, dump, expressions, fields, text
from nftsync.objects.address import Range
from nftsync.objects.ratelimit import TIME_UNITS, RateLimit
from nftsync.plan.plan import Found
from nftsync.ruleset.model import DYNAMIC, PROTOCOLS, Chain, Ruleset, Set, Table

_NAMEABLE = re.compile(r"[A-Za-z_.][A-Za-z0-9_./-]{0,254}")  # the names that nft takes without quotes
_UNKNOWN = "\t\t# as found in the kernel\n"  # stands for the rules of a chain; equals no rules of ours

_TABLE_FLAGS = 2
_FLAGS = {1: "dormant", 2: "owner", 4: "persist"}  # of a table
_CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE, _CHAIN_FLAGS = 3, 4, 5, 7, 10
_BINDING = 4  # a chain's flag: it is part of a rule
_HOOK_NUMBER, _HOOK_PRIORITY, _HOOK_DEVICE = 1, 2, 3
_HOOKS = {
    "inet": ("prerouting", "input", "forward", "output", "postrouting", "ingress"),
    "netdev": ("ingress", "egress"),
}
_POLICIES = ("drop", "accept")
_NAME = 2  # of a set, an object, a flowtable
_SET_FLAGS, _SET_TYPE, _SET_KEY, _SET_DESCRIBED, _SET_NOTES, _SET_STATEMENT = 3, 4, 5, 9, 13, 17
_SET_TIMEOUT = 11
_SET_OTHERWISE = {_SET_TIMEOUT, 12, 18}  # the others: garbage collection, several statements; our sets have none
_DESCRIBED_SIZE = 1
_NOTED_MERGE, _NOTED_COMMENT = 2, 7
_ANONYMOUS, _INTERVAL, _MAP, _OBJECT, _CONCAT, _STATEMENT = 0x1, 0x4, 0x8, 0x40, 0x80, 0x100  # a set's flags
_DYNAMIC = 0x20  # one more: packets add elements, as to a `meter`
_DECLARING = (_NAME, _SET_FLAGS, _SET_TYPE, _SET_DESCRIBED, _SET_TIMEOUT)
_DECIDING = (netlink.KEY, netlink.KEY_END, netlink.VALUE, netlink.FLAGS)  # of an element
_CATCHALL = "*"  # the element that stands for all others
_LIMIT_RATE, _LIMIT_UNIT, _LIMIT_BURST, _LIMIT_TYPE, _LIMIT_FLAGS = 1, 2, 3, 4, 5
_COUNTING = (b"counter", b"last")  # expressions that hold only counts
_QUOTA_FLAGS, _QUOTA_CONSUMED = 2, 4
_DEPLETED = 0x2  # a quota's flag: packets have used it up
_OBJECT_TYPE = 3
_OBJECTS = {
    1: "counter", 2: "quota", 3: "ct helper", 4: "limit", 7: "ct timeout", 8: "secmark", 9: "ct expectation",
    10: "synproxy",
}  # fmt: skip
# Foreign objects in a table, in the order to delete them: maps refer to the objects after them.
_STRANGERS = (
    "map", "flowtable", "counter", "quota", "limit", "secmark", "synproxy", "ct helper", "ct timeout", "ct expectation",
)  # fmt: skip

# The type of a field in a set's elements, and its bytes.
_TYPES = {7: "ipv4_addr", 8: "ipv6_addr", 12: "inet_proto", 13: "inet_service", 20: "iface_index", 41: "ifname"}
_WIDTHS = {
    "ipv4_addr": 4, "ipv6_addr": 16, "inet_proto": 1, "inet_service": 2, "iface_index": 4, "ifname": 16,
    "integer8": 1, "integer16": 2, "integer32": 4, "integer128": 16,
}  # fmt: skip
# The kernel knows no widths of integers, only the bytes of a whole key. These are our own sets', by the
# number of the type and those bytes.
_INTEGERS = {(0x4104, 12): "integer32 . integer8 . integer16", (0x4104, 24): "integer128 . integer8 . integer16"}
_TYPE_BITS = 6  # of each field, in the number of a set's type


def read(kernel: Netlink) -> Found:
    """Tables, elements and rules. The result omits missing tables. Raises DumpError."""
    tables = read_tables(kernel)
    elements_of = {
        family: {name: _members(kernel, family, name, declared) for name, declared in table.sets.items()}
        for family, table in tables.ruleset.tables.items()
    }
    return replace(tables, ruleset=replace(tables.ruleset, elements=elements_of))


def read_tables(kernel: Netlink) -> Found:
    """Tables and rules without elements, which costs much less. Raises DumpError."""
    tables = {}
    digest = blake2b(digest_size=16)
    for family in FAMILIES:
        for described in dump(kernel, netlink.GET_TABLES, family):
            sets = _listed(kernel, netlink.GET_SETS, family)
            tables[family] = table = _table(kernel, family, fields(described, HEADER), sets)
            known = f"{family} {table.sets} {table.chains} {table.foreign_objects} {'dormant' in table.flags}"
            for part in (known.encode(), *_rules(kernel, family, sets)):
                digest.update(len(part).to_bytes(4) + part)
    return Found(Ruleset(tables), digest.hexdigest())


def _listed(kernel: Netlink, kind: int, family: str) -> list[Fields]:
    return [fields(content, HEADER) for content in dump(kernel, kind, family)]


def _table(kernel: Netlink, family: str, described: Fields, declared: Iterable[Fields]) -> Table:
    sets = [(name, _number(entry, _SET_FLAGS), entry) for name, entry in _named(declared, _NAME)]
    objects = _named(_listed(kernel, netlink.GET_OBJECTS, family), _NAME)
    flowtables = _named(_listed(kernel, netlink.GET_FLOWTABLES, family), _NAME)
    foreign_objects = [
        *(("map", name) for name, flags, _ in sets if flags & (_MAP | _OBJECT) and not flags & _ANONYMOUS),
        *((_OBJECTS.get(_number(entry, _OBJECT_TYPE), ""), name) for name, entry in objects),
        *(("flowtable", name) for name, _ in flowtables),
    ]
    return Table(
        {name: _set(flags, entry) for name, flags, entry in sets if not flags & (_ANONYMOUS | _MAP | _OBJECT)},
        {
            name: Chain(_UNKNOWN, _hook(family, chain))
            for name, chain in _named(_listed(kernel, netlink.GET_CHAINS, family), _CHAIN_NAME)
            if not _number(chain, _CHAIN_FLAGS) & _BINDING
        },
        tuple((kind, name) for kind in _STRANGERS for other, name in sorted(foreign_objects) if other == kind),
        frozenset(name for bit, name in _FLAGS.items() if _number(described, _TABLE_FLAGS) & bit),
    )


def _named(objects: Iterable[Fields], kind: int) -> list[tuple[str, Fields]]:
    """The objects that nft can name, sorted by name: the kernel lists them by age."""
    names = ((text(described[kind]), described) for described in objects)
    return sorted((pair for pair in names if _NAMEABLE.fullmatch(pair[0])), key=itemgetter(0))


def _set(flags: int, declared: Fields) -> Set:
    """The declaration in our notation. A "?" marks a property that our sets do not have."""
    number, names = _number(declared, _SET_TYPE), list[str]()
    integers = _INTEGERS.get((number, _number(declared, _SET_KEY)))
    while number:
        kind = number & (1 << _TYPE_BITS) - 1
        names.insert(0, _TYPES.get(kind, f"type{kind}"))
        number >>= _TYPE_BITS
    others = flags & ~(_INTERVAL | _CONCAT | _STATEMENT | _DYNAMIC)
    is_limited = _DESCRIBED_SIZE in fields(declared.get(_SET_DESCRIBED, b""))
    strange = others or declared.keys() & _SET_OTHERWISE or is_limited or _noted(declared.get(_SET_NOTES, b""))
    statement = _statement(*netlink.expression(declared[_SET_STATEMENT])) if _SET_STATEMENT in declared else ""
    called = DYNAMIC if flags & _DYNAMIC else "interval" if flags & _INTERVAL else ""
    return Set(integers or " . ".join(names), called, statement + ("?" if strange else ""))


def _noted(notes: bytes) -> bool:
    """True if nft stored auto-merge or a comment with the set. notes: its records of type, length and value."""
    at = 0
    while at + 2 <= len(notes):
        end = at + 2 + notes[at + 1]
        if notes[at] in (_NOTED_MERGE, _NOTED_COMMENT) and any(notes[at + 2 : end]):
            return True
        at = end
    return False


def _hook(family: str, chain: Fields) -> str:
    if _CHAIN_HOOK not in chain:
        return ""
    hook = fields(chain[_CHAIN_HOOK])
    names, number = _HOOKS[family], _number(hook, _HOOK_NUMBER)
    where = names[number] if number < len(names) else str(number)
    device = f' device "{text(hook[_HOOK_DEVICE])}"' if _HOOK_DEVICE in hook else ""
    priority = int.from_bytes(hook[_HOOK_PRIORITY], signed=True)
    policy = _POLICIES[_number(chain, _CHAIN_POLICY) & 1]
    return f"type {text(chain[_CHAIN_TYPE])} hook {where}{device} priority {priority}; policy {policy};"


def _rules(kernel: Netlink, family: str, declared: Iterable[Fields]) -> Iterator[bytes]:
    """The parts of the rules that decide, chain by chain, sorted by the chain's name."""
    anonymous = {
        described[_NAME]: _content(kernel, family, described)
        for described in declared
        if _number(described, _SET_FLAGS) & _ANONYMOUS
    }
    chains: dict[bytes, list[bytes]] = {}
    for rule in _listed(kernel, netlink.GET_RULES, family):
        chains.setdefault(rule[netlink.RULE_CHAIN], []).extend(
            _deciding(expressions(rule.get(netlink.RULE_EXPRESSIONS, b"")), anonymous)
        )
    for chain, parts in sorted(chains.items()):
        yield chain
        yield from parts


def _content(kernel: Netlink, family: str, declared: Fields) -> bytes:
    """What an anonymous set means to its rule. The kernel chose its name, so the name does not count.

    A `meter` counts by its declaration, because packets add its elements.
    """
    if _number(declared, _SET_FLAGS) & _DYNAMIC:
        return b"\0".join(declared.get(kind, b"") for kind in _DECLARING)
    members = (
        fields(content, *place) for content, (_, *place) in netlink.places(kernel, family, text(declared[_NAME]))
    )
    return b"\0".join(sorted(b"".join(part + b"\0" for part in _member_parts(member)) for member in members))


def _member_parts(member: Fields) -> Iterator[bytes]:
    """The parts of an anonymous set's element that decide."""
    yield from (member.get(kind, b"") for kind in _DECIDING)
    if netlink.EXPRESSION in member:
        yield from _deciding([netlink.expression(member[netlink.EXPRESSION])], {})
    yield from _deciding(expressions(member.get(netlink.EXPRESSIONS, b"")), {})


def _deciding(statements: Iterable[tuple[bytes, bytes]], anonymous: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """The expressions of a rule or an element, without their counts, and an end mark."""
    for called, data in statements:
        yield called
        if called not in _COUNTING:
            for kind, value in fields(data).items():
                if (called, kind) == (b"quota", _QUOTA_FLAGS):
                    yield bytes([kind, int.from_bytes(value) & ~_DEPLETED])
                elif (called, kind) != (b"quota", _QUOTA_CONSUMED):
                    yield bytes([kind]) + anonymous.get(value, value)
    yield b""


def _members(kernel: Netlink, family: str, name: str, declared: Set) -> dict[str, str]:
    """The elements of a set and their statements; none if our sets do not have this type, or packets add them."""
    names = declared.type.split(" . ")
    if declared.flags == DYNAMIC or not _WIDTHS.keys() >= set(names):
        return {}
    members = netlink.elements(kernel, family, name, whole=False)
    if len(names) == 1 and declared.flags:
        return dict.fromkeys(_ranges(members), "")
    layout, at = [], 0
    for field in names:
        layout.append((field, slice(at, at + _WIDTHS[field])))
        at += _WIDTHS[field] + 3 & ~3
    return dict(_member(member, layout) for member in members)


def _member(member: Element, layout: list[tuple[str, slice]]) -> tuple[str, str]:
    """An element and its limits. layout: the fields of its key and their places: each begins at a multiple of four."""
    key, end, _, statements = member
    parts = [_field(name, key[place], (end or key)[place]) for name, place in layout] if key else [_CATCHALL]
    limits = [_statement(called, data) for called, data in statements if called == b"limit"]
    return " . ".join(parts), " ".join(limits)


def _field(name: str, first: bytes, last: bytes) -> str:
    """One field of a key: an address, a prefix, a range, a protocol's name or number, a port, an interface."""
    if name == "ifname":
        return f'"{text(first)}"'
    if name == "iface_index":
        return str(int.from_bytes(first, sys.byteorder))
    if name in ("ipv4_addr", "ipv6_addr"):
        return netlink.address(first) if first == last else Range(ip_address(first), ip_address(last)).element
    if name in ("integer32", "integer128"):
        return f"0x{first.hex()}"
    low, high = int.from_bytes(first), int.from_bytes(last)
    if low != high:
        return f"{low}-{high}"
    return PROTOCOLS.get(low, str(low)) if name == "inet_proto" else str(low)


def _ranges(members: Iterable[Element]) -> Iterator[str]:
    """The ranges of a set. The kernel keeps an element at each start and one after each end."""
    edges = set()
    for key, _, ends_interval, _ in members:
        if key:
            edges.add((ip_address(key), not ends_interval))
        else:
            yield _CATCHALL
    first = None
    for address, begins in sorted(edges):  # at the same address, an end comes before a start
        if first is not None:
            yield Range(first, address - 1).element
        first = address if begins else None
    if first is not None:
        yield Range(first, ip_address(b"\xff" * len(first.packed))).element


def _statement(called: bytes, data: bytes) -> str:
    """A limit in our notation; only the name for other statements."""
    if called != b"limit":
        return text(called)
    limit = fields(data)
    rate, seconds = _number(limit, _LIMIT_RATE), _number(limit, _LIMIT_UNIT)
    per = next((name for name, length in TIME_UNITS.items() if length == seconds), f"{seconds} seconds")
    statement = RateLimit(rate, per, _number(limit, _LIMIT_BURST), _number(limit, _LIMIT_TYPE) == 0).statement
    return statement if _number(limit, _LIMIT_FLAGS) & 1 else statement.replace(" over", "")


def _number(values: Fields, kind: int) -> int:
    return int.from_bytes(values.get(kind, b""))
