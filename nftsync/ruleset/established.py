"""Finds the local chain's rules that accept packets of established connections.

The local chain comes first. Such a rule accepts packets to a closed endpoint, too, as long as
conntrack knows their connection. This module reads nft's grammar only so far: in doubt, it names a rule.
"""

import re
from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import NamedTuple

from nftsync.ruleset.model import GLOBAL

_TOKENS = re.compile(r'#[^\n]*|"[^"\n]*"|\\\n|[{}();,:|&\n]|[!=]=|!|[^\s{}();,:|&!="#\\]+')
_ESTABLISHED = 2  # its bit, in rules that write states as numbers
# A rule with one of these accepts more than closed endpoints, or none of them: it has its own remark.
_NARROW = frozenset(
    {"saddr", "daddr", "sport", "dport", "type", "iif", "iifname", "iifgroup", "oif", "oifname", "mark"}
)
# A rule with one of these never matches a packet to a pinhole.
_OTHER = frozenset(
    {"icmp", "icmpv6", "ipv6-icmp", "fib", "expected", "igmp", "esp", "ah", "gre", "ospf", "vrrp", "ipip"}
)
_OF_TRACKING = frozenset(
    {"state", "status", "direction", "mark", "label", "expiration", "bytes", "packets", "original"}
)
_JOINING = frozenset({",", "|", "&", "(", ")", ".", "==", "!=", "vmap"})  # between the values of one match
_LONGEST = 80  # characters of a rule that a message quotes


class Rule(NamedTuple):
    """A rule of a chain. line: its number in the chain's body, from 1."""

    line: int
    text: str


def accepting_rule(body: str, public: Collection[str] | None = None, port: int | None = None) -> Rule | None:
    """The first rule that accepts packets of established connections from the public network.

    body: of the chain.  public: the names of public interfaces, None if unknown.
    port: look only at rules for this destination port, None for any.
    """
    for line, words in _rules(body):
        text = " ".join(words).replace(" , ", ", ")
        if _accepts(words, public, port):
            return Rule(line, text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")
        if words[-1] in ("drop", "return", "reject") and not set(words[:-1]) - {"counter", "log"}:
            return None
    return None


def _rules(body: str) -> Iterator[tuple[int, list[str]]]:
    """The words of each rule, and the number of its line. Words in braces belong to the rule around them."""
    line, depth, begun, words = 1, 0, 1, list[str]()
    for match in _TOKENS.finditer(f"{body}\n"):
        word = match[0]
        depth += (word == "{") - (word == "}")
        if word in ("\n", ";") and not depth:
            if words:
                yield begun, words
            words = []
        elif word[0] not in "#\\\n;":
            begun = begun if words else line
            words.append(word)
        line += word.count("\n")


def _accepts(words: list[str], public: Collection[str] | None, port: int | None) -> bool:
    goes_on = any(word in ("jump", "goto") and after == GLOBAL for word, after in pairwise(words))
    if not ("accept" in words or goes_on) or not _OTHER.isdisjoint(words):
        return False
    tracking = [after for word, after in pairwise(words) if word == "ct" and after in _OF_TRACKING]
    if not tracking and not _NARROW.isdisjoint(words):
        return False
    if public is not None and not _sees(words, public):
        return False
    if port is not None and not _has_port(words, port):
        return False
    return all(_matches_established(words, at) for at, word in enumerate(words[:-1]) if word == "ct")


def _matches_established(words: list[str], at: int) -> bool:
    """Whether packets of an established connection match the `ct` at this place, as far as it is about the state."""
    if words[at + 1] != "state":
        return True
    operator, values = "", list[str]()
    for word in words[at + 2 :]:
        if word in ("==", "!=", "!", "eq", "ne", "vmap", "&") and not values:
            operator = word
        elif values and not _continues(values[-1], word, values):
            break
        else:
            values.append(word)
    if operator == "vmap" or "vmap" in values:
        verdicts = " ".join(values).replace("vmap", ",").strip(" {}").split(",")
        pairs = (verdict.partition(":") for verdict in verdicts)
        return any("established" in keys and re.search(r"accept|global", verdict) for keys, _, verdict in pairs)
    named = any(word == "established" or (word.isdecimal() and int(word) & _ESTABLISHED) for word in values)
    negated = operator in ("!=", "!", "ne") or values[-2:] == ["==", "0"]
    return named is not negated


def _continues(before: str, word: str, values: list[str]) -> bool:
    """Whether a word belongs to the values of a match."""
    inside = values.count("{") + values.count("(") > values.count("}") + values.count(")")
    return inside or before in _JOINING or word in _JOINING


def _sees(words: list[str], public: Collection[str]) -> bool:
    """Whether the rule can match a packet from a public interface into the cluster."""
    for key, possible in (("iifname", True), ("iif", True), ("oifname", False), ("oif", False)):
        if key in words and words[words.index(key) + 1] not in ("!=", "ne"):
            names = {word[1:-1] for word in _values(words, key) if word.startswith('"')}
            if names and not any("*" in name for name in names) and possible is names.isdisjoint(public):
                return False
    return True


def _has_port(words: list[str], port: int) -> bool:
    """Whether the rule can match a packet to this port."""
    if "dport" not in words or not all(re.fullmatch(r"[0-9]+(?:-[0-9]+)?", each) for each in _values(words, "dport")):
        return True
    ranges = (value.partition("-") for value in _values(words, "dport"))
    return any(int(first) <= port <= int(last or first) for first, _, last in ranges)


def _values(words: list[str], key: str) -> list[str]:
    """The values after a key: one, or those in braces."""
    after = words[words.index(key) + 1 :]
    listed = after[1 : after.index("}")] if after[:1] == ["{"] and "}" in after else after[:1]
    return [word for word in listed if word != ","]
