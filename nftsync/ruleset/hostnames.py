"""Finds host names in nft's rules.

nft asks DNS for the addresses of a name while it loads the rules, and never again. There is no DNS
at boot. This module knows the usual places of addresses. It can miss a name in an unusual rule.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from ipaddress import ip_address
from typing import NamedTuple

_WORDS = re.compile(r'#[^\n]*|"(?P<quoted>[^"\n]*)"|[{},;\n]|[^\s{},;"#]+')
_NAME = re.compile(r"(?!0x)[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_DOTTED = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.[A-Za-z]{2,}")
_FIELDS = {"saddr", "daddr", "nexthop"}
_OTHER_FIELDS = {"ether", "fib"}  # before `saddr`: these compare no address
_OPERATORS = {"==", "!=", "eq", "ne", "set", "map", "vmap", "ip"}  # between a field and its value
_NO_VALUES = {
    "accept", "and", "comment", "counter", "ct", "expires", "ge", "gt", "last", "le", "limit", "lt", "mod", "offset",
    "oif", "oifname", "or", "quota", "seed", "timeout", "type", "xor",
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
        if not found[0].startswith("#")
    ]
    words.append(_Word("\n", len(rules)))
    for at, word in enumerate(words):
        if word.text in _FIELDS and words[at - 1].text not in _OTHER_FIELDS:
            candidates = _values(words, at + 1)
        elif word.text in ("define", "redefine"):
            candidates = filter(_is_dotted, _until(words, at, {"\n", ";"}))
        else:
            continue
        for text, place, _ in candidates:
            name = text.partition(":")[0]  # of "name:accept" in a map
            if text.count(":") < 2 and _is_name(name):  # IPv6 addresses have more
                yield name, place


def _values(words: Sequence[_Word], at: int) -> Iterator[_Word]:
    """Words that can be the value of an address field. at: the place after the field."""
    while words[at].text in _OPERATORS:
        at += 1
    if words[at].text == ".":  # a concatenation: the values of the other fields can be any words
        at += sum(1 for _ in _until(words, at, {"{", ";", "\n"}))
        yield from filter(_is_dotted, _until(words, at, {"}"}) if words[at].text == "{" else ())
    elif words[at].text == "{":
        before = "{"
        for word in _until(words, at + 1, {"}"}):
            if before in ("{", ",", "\n"):
                yield word
            before = word.text
    else:
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
