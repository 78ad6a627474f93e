"""Read the counters of our elements and rules through netlink, in any thread.

This module shares nothing with the Kernel that changes the tables.
Source: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from nftsync.kernel.netlink import Netlink, Span, attributes
from nftsync.kernel.nf_tables import (
    EXPRESSION,
    EXPRESSIONS,
    FLAGS,
    GET_RULES,
    HEADER,
    INTERVAL_END,
    KEY,
    KEY_END,
    LOOKUP_SET,
    PROTOCOL,
    PROTOCOLS,
    RULE_CHAIN,
    RULE_EXPRESSIONS,
    address,
    dump,
    elements,
    expression,
    name,
    text,
)
from nftsync.report.traffic import Count, Element, Reading, Rule
from nftsync.ruleset.tables import INET, NETDEV, OPERATOR_SVC

_RULE_HANDLE = 3
_BYTES, _PACKETS = 1, 2  # of a counter

_U32, _U64, _PORT = struct.Struct(">I"), struct.Struct(">Q"), struct.Struct(">H")

_COUNTING = {INET: ("services", "sources"), NETDEV: ("dropped",)}
_OTHERS = {INET: ("pools4", "pools6"), NETDEV: ("limited4", "limited6", "limited4-packets", "limited6-packets")}


def read() -> Reading:
    """All counters, from this thread's network namespace. Missing sets count as empty.

    Raises DumpError.
    """
    counts: dict[str, dict[Element, Count]] = {}
    sizes = {}
    with Netlink(PROTOCOL) as kernel:
        for family, stems in _COUNTING.items():
            for set_name, version in ((f"{stem}{version}", version) for stem in stems for version in (4, 6)):
                counts[set_name] = dict(_counted(kernel, family, set_name, version))
                sizes[set_name] = len(counts[set_name])
        for family, names in _OTHERS.items():
            for set_name in names:
                found = elements(kernel, family, set_name)
                sizes[set_name] = sum(1 for each in found if not (family == INET and _ends_interval(*each)))
        return Reading(counts, sizes, dict(_closed(kernel)))


def _counted(kernel: Netlink, family: str, set_name: str, version: int) -> Iterator[tuple[Element, Count]]:
    """The elements of a set and their counters. Keys are "address . protocol . port", with or without a source."""
    width = 4 if version == 4 else 16
    for content, (_, start, stop) in elements(kernel, family, set_name):
        key, end, count = b"", b"", Count(0, 0)
        for kind, first, last in attributes(content, start, stop):
            if kind == KEY:
                key = content[first + 4 : last]
            elif kind == KEY_END:
                end = content[first + 4 : last]
            elif kind == EXPRESSION:
                count = _counter(content, first, last) or count
            elif kind == EXPRESSIONS:
                several = (_counter(content, *inner[1:]) for inner in attributes(content, first, last))
                count = next(filter(None, several), count)
        if len(key) < width + 8:  # a foreign set of another type has our set's name
            continue
        protocol = PROTOCOLS.get(key[width], key[width])
        pinhole = f"{address(key[:width])} . {protocol} . {_PORT.unpack_from(key, width + 4)[0]}"
        yield (pinhole, key[width + 8 :] + end[width + 8 :]), count


def _ends_interval(content: bytes, element: Span) -> bool:
    """True if an element only marks the end of a range."""
    flags = (_U32.unpack_from(content, at)[0] for kind, at, _ in attributes(content, *element[1:]) if kind == FLAGS)
    return any(each & INTERVAL_END for each in flags)


def _counter(content: bytes, start: int, end: int) -> Count | None:
    """The value of an expression; None if it is no counter."""
    called, *data = expression(content, start, end)
    if called != b"counter":
        return None
    values = {what: _U64.unpack_from(content, at)[0] for what, at, _ in attributes(content, *data) if what in (_BYTES, _PACKETS)}
    return Count(values[_PACKETS], values[_BYTES])


def _closed(kernel: Netlink) -> Iterator[tuple[Rule, Count]]:
    """The counters of the rules that match pools4 or pools6."""
    for content in dump(kernel, GET_RULES, INET, name(RULE_CHAIN, OPERATOR_SVC)):
        handle = 0
        for kind, start, end in attributes(content, HEADER, len(content)):
            if kind == _RULE_HANDLE:
                handle = _U64.unpack_from(content, start)[0]
            elif kind == RULE_EXPRESSIONS:
                expressions = [each[1:] for each in attributes(content, start, end)]
                looked = {_looked_up(content, *each) for each in expressions} & {"pools4", "pools6"}
                count = next(filter(None, (_counter(content, *each) for each in expressions)), None)
                if looked and count:
                    yield (looked.pop(), handle), count


def _looked_up(content: bytes, start: int, end: int) -> str:
    """The set of a lookup expression; "" for other expressions."""
    called, *data = expression(content, start, end)
    if called != b"lookup":
        return ""
    return next((text(content[at:to]) for what, at, to in attributes(content, *data) if what == LOOKUP_SET), "")
