"""Finds host names in nft's rules.

nft asks DNS for the addresses of a name while it loads the rules, and never again. There is no DNS
at boot. This module knows the usual places of addresses. It can miss a name in an unusual rule.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from ipaddress import ip_address
from itertools import pairwise
from typing import NamedTuple

_WORDS = re.compile(r'#[^\n]*|\\\n|"(?P<quoted>[^"\n]*)"|[{},;\n]|[!=<>&|^()]+|[^\s{},;"#!=<>&|^()]+')
_NAME = re.compile(r"(?!0x)[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_DOTTED = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.[A-Za-z]{2,}")
_FIELDS = {"saddr", "daddr", "nexthop"}
_OTHER_FIELDS = {"ether", "fib"}  # before `saddr`: these compare no address
_BEFORE_FIELD = {"ip", "ip6", "arp", "ct", "original", "reply"}
# Between a field and its value. A mask stands in between, too.
_OPERATORS = {
    "!", "!=", "(", "<", "<=", "==", ">", ">=", "eq", "ge", "gt", "ip", "le", "lt", "map", "ne", "set", "vmap",
}  # fmt: skip
_MASKS = {"&", "and", "|", "or", "^", "xor"}
_NO_VALUES = {
    "accept", "comment", "counter", "ct", "expires", "last", "limit", "mod", "offset", "oif", "oifname", "quota",
    "seed", "timeout", "type",
}  # fmt: skip


class _Word(NamedTuple):
    """A word of the rules, its place in their text, and whether it is in quotes."""

    text: str
    place: int
    quoted: bool = False


def host_names(rules: str) -> Iterator[tuple[str, int]]:
    """The host names in rules, each with its place in the text."""
    words = [
        _Word(found["quoted"], found.start(), quoted=True) if found["quoted"] else _Word(found[0], found.start())
        for found in _WORDS.finditer(rules)
        if not found[0].startswith(("#", "\\\n"))
    ]
    words.append(_Word("\n", len(rules)))
    variables = {
        f"${words[at + 1].text}": at + 3  # its value, after "="
        for at, word in enumerate(words[:-3])
        if word.text in ("define", "redefine")
    }
    for at, word in enumerate(words):
        if word.text not in _FIELDS or words[at - 1].text in _OTHER_FIELDS:
            continue
        for text, place, _ in _values(words, at, variables):
            name = text.partition(":")[0]  # of "name:accept" in a map
            if text.count(":") < 2 and _is_name(name):  # IPv6 addresses have more
                yield name, place


def _values(words: Sequence[_Word], at: int, variables: Mapping[str, int]) -> Iterator[_Word]:
    """Words that can be the value of an address field. at: its place.  variables: the places of their values."""
    before = next((word.text for word in reversed(words[max(at - 4, 0) : at]) if word.text not in _BEFORE_FIELD), "")
    at += 1
    while words[at].text in _OPERATORS | _MASKS:
        at = min(at + (2 if words[at].text in _MASKS else 1), len(words) - 1)
    joined = "." in (before, words[at].text)  # a concatenation: the values of the other fields can be any words
    while joined and words[at].text not in {"{", ";", "\n", *variables}:
        at += 1
    at = variables.get(words[at].text, at)
    if words[at].text == "{":
        members = list(_until(words, at + 1, {"}"}))
        firsts = (word for before, word in pairwise((words[at], *members)) if before.text in ("{", ",", "\n"))
        yield from filter(_is_dotted, members) if joined else firsts
    elif not joined:
        yield words[at]


def _until(words: Sequence[_Word], at: int, ends: Collection[str]) -> Iterator[_Word]:
    """The words from a place up to the first of these."""
    while at < len(words) and words[at].text not in ends:
        yield words[at]
        at += 1


def _is_dotted(word: _Word) -> bool:
    """Whether a word can only be a host name. In quotes it is rather an interface or a comment."""
    return not word.quoted and _DOTTED.fullmatch(word.text) is not None


def _is_name(word: str) -> bool:
    if word in _NO_VALUES or not _NAME.fullmatch(word) or word.isdigit():
        return False
    try:
        ip_address(word)
    except ValueError:
        return any(letter.isalpha() for letter in word)
    return False
