"""The kernel's nf_tables through libnftables: check, apply, read back.

libnftables runs in this process: adding an element takes a tenth of a millisecond, starting nft takes twenty times
that. A context is not thread-safe: one thread owns a Kernel. Text goes in, JSON comes out (libnftables-json(5)).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nftables import Nftables

from nftsync.ratelimit import BYTE_UNITS, RateLimit
from nftsync.ruleset import FILTER, NAME, SHAPER, Chain, Elements, Ruleset, Set, Table

_LIBC = ctypes.CDLL(None)
_UNKNOWN = "\t\t# as found in the kernel\n"  # the rules of a chain that was read back: equal to no rules of ours
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_./-]{0,127}")  # what nft takes as a name without quotes
_DEVICE = re.compile(r'hook ingress device(?:s = \{)? "?([^"\s}]+)')
_ELEMENT = re.compile(r"[0-9A-Za-z.:/-]+")
_CAP_NET_ADMIN = 12  # linux/capability.h


class KernelError(Exception):
    """nft or the kernel refused; nothing of the transaction took effect."""


@dataclass(frozen=True, slots=True)
class Found:
    """Our tables as they are in the kernel.

    ruleset: sets, hooks and elements as read; the rules of its chains are unknown, so they equal no rules of ours.
    listing: the tables as nft lists them, without elements and counters: two equal listings have equal rules.
    """

    ruleset: Ruleset
    listing: str


class Kernel:
    """The tables `inet nftsync` and `netdev nftsync` of this network namespace. Raises KernelError without CAP_NET_ADMIN."""

    def __init__(self) -> None:
        if not _capable():  # libnftables would complain on stderr, at every single command
            raise KernelError("nftables can't be read or changed without CAP_NET_ADMIN: run this as root")
        self._commands = Nftables()
        self._rehearsal = Nftables()
        self._rehearsal.set_dry_run(True)
        self._json = Nftables()
        self._json.set_json_output(True)
        self._listing = Nftables()
        self._listing.set_stateless_output(True)
        self._listing.set_terse_output(True)

    def apply(self, text: str) -> None:
        """Run a transaction, whole or not at all. Raises KernelError."""
        _run(self._commands, text)

    def apply_each(self, lines: Sequence[str]) -> dict[int, str]:
        """Run a transaction of one command to a line, whole or not at all; returns the complaints, by the line's index.

        Raises KernelError if it failed and nobody knows where. The kernel goes on to look for errors after the first one, and nft
        names the line, but only of a file.
        """
        with os.fdopen(os.memfd_create("nftsync"), "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            path = f"/proc/self/fd/{file.fileno()}"
            code, _, error = self._commands.cmd(f'include "{path}"')
        if code == 0:
            return {}
        complaints = re.findall(rf"^{path}:([0-9]+):[0-9-]+: Error: (.*)$", error, re.MULTILINE)
        if not complaints:
            raise KernelError(_sentence(error))
        return {int(line) - 1: complaint for line, complaint in complaints}

    def check(self, text: str) -> None:
        """Let nft parse and evaluate a transaction without running it. Raises KernelError."""
        _run(self._rehearsal, text)

    def read(self) -> Found:
        """Read our tables back. A table that is not there is simply not in the result."""
        tables, elements, listings = {}, {}, []
        for family in (FILTER, SHAPER):
            listed = self._list(self._json, family)
            if listed is None:
                continue
            objects = json.loads(listed)["nftables"]
            listing = self._list(self._listing, family) or ""
            tables[family] = _table(objects, listing)
            elements[family] = _elements(objects)
            listings.append(listing)
        return Found(Ruleset(tables, elements), "\n".join(listings))

    def listing(self) -> str:
        """The `listing` of Found alone, which costs much less than to read the elements."""
        return "\n".join(filter(None, (self._list(self._listing, family) for family in (FILTER, SHAPER))))

    @staticmethod
    def _list(context: Nftables, family: str) -> str | None:
        code, output, error = context.cmd(f"list table {family} {NAME}")
        _LIBC.malloc_trim(0)  # malloc(3) would keep the twenty megabytes that libnftables needs to list 10,000 elements
        if code == 0:
            return str(output)
        if "No such file or directory" in error:
            return None
        raise KernelError(_sentence(error))


def _capable() -> bool:
    """Whether this process has CAP_NET_ADMIN: capabilities(7), proc(5)."""
    status = Path("/proc/thread-self/status").read_text(encoding="ascii", errors="replace")
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) >> _CAP_NET_ADMIN & 1)


def _run(context: Nftables, text: str) -> None:
    code, _, error = context.cmd(text)
    if code != 0:
        raise KernelError(_sentence(error))


def _sentence(error: str) -> str:
    """The first complaint of nft, on one printable line, without its position in a text that nobody sees."""
    first = next((line for line in error.splitlines() if "Error:" in line), error)
    said = first.partition("Error:")[2].strip() or first.strip() or "nft failed without saying why"
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in said)  # it quotes the local chain, for one


# --- libnftables' JSON to our types -------------------------------------------------------------------

# What others can put into a table, in an order in which it can be deleted: maps refer to the objects after them.
_STRANGERS = ("map", "flowtable", "counter", "quota", "limit", "secmark", "synproxy", "ct helper", "ct timeout", "ct expectation")
_SET_KEYS = {"family", "name", "table", "handle", "type", "flags", "stmt", "elem"}


def _table(objects: list[dict[str, Any]], listing: str) -> Table:
    sets: dict[str, Set] = {}
    chains: dict[str, Chain] = {}
    strangers: list[tuple[str, str]] = []
    for kind, described in (pair for entry in objects for pair in entry.items()):
        name = described.get("name", "")
        if not _WORD.fullmatch(name):
            continue
        if kind == "set":
            sets[name] = _set(described)
        elif kind == "chain":
            chains[name] = Chain(_UNKNOWN, _hook(described, listing))
        elif kind in _STRANGERS:
            strangers.append((kind, name))
    strangers.sort(key=lambda stranger: _STRANGERS.index(stranger[0]))
    return Table(sets, chains, tuple(strangers))


def _set(declared: Mapping[str, Any]) -> Set:
    types = declared["type"]
    statement = " ".join(_statement(each) for each in declared.get("stmt", ()))
    if declared.keys() - _SET_KEYS:
        statement += "?"  # a time-out, a size, …: none of our sets has one
    return Set(types if isinstance(types, str) else " . ".join(types), ",".join(declared.get("flags", ())), statement)


def _hook(chain: Mapping[str, Any], listing: str) -> str:
    if "hook" not in chain:
        return ""
    # The JSON of nft 1.0.6 does not name the device of a chain; its listing does.
    attached = _DEVICE.search(listing)
    device = f' device "{attached[1]}"' if attached else ""
    return f"type {chain['type']} hook {chain['hook']}{device} priority {chain['prio']}; policy {chain['policy']};"


def _elements(objects: list[dict[str, Any]]) -> Elements:
    return {
        entry["set"]["name"]: dict(_members(entry["set"].get("elem", ())))
        for entry in objects
        if "set" in entry and _WORD.fullmatch(entry["set"]["name"])
    }


def _members(members: list[Any]) -> Iterator[tuple[str, str]]:
    for member in members:
        attributes = member["elem"] if isinstance(member, dict) and "elem" in member else {"val": member}
        value = attributes["val"]
        parts = value["concat"] if isinstance(value, dict) and "concat" in value else [value]
        yield " . ".join([_part(part) for part in parts]), _limit(attributes["limit"]) if "limit" in attributes else ""


def _part(part: Any) -> str:
    """One field of a concatenation: an address, a prefix, a range, a protocol's name or number, a port."""
    if isinstance(part, dict):
        if "prefix" in part:
            return f"{_part(part['prefix']['addr'])}/{part['prefix']['len']}"
        return "-".join(_part(end) for end in part["range"])
    text = str(part)
    if ":" in text and "." in text:  # inet_ntop(3) ends some IPv6 addresses in IPv4 notation, Python does not
        return str(ip_address(text))
    if not _ELEMENT.fullmatch(text):
        raise KernelError(f"a set of ours holds an element that can't be read: {text[:40]!a}")
    return text


def _statement(statement: Mapping[str, Any]) -> str:
    kind = next(iter(statement))
    return _limit(statement["limit"]) if kind == "limit" else kind


def _limit(limit: Mapping[str, Any]) -> str:
    """A limit as our rulesets write it."""
    packets = "rate_unit" not in limit
    rate = limit["rate"] * BYTE_UNITS[limit.get("rate_unit", "bytes")]
    burst = limit.get("burst", 0) * BYTE_UNITS[limit.get("burst_unit", "bytes")]
    text = RateLimit(rate, limit["per"], burst, packets).statement
    return text if limit.get("inv") else text.replace(" over", "")
