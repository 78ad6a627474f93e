"""Reads the operator's own rules, `chain local-chain { … }`, from a file and keeps them verbatim.

nft judges the rules when nftsync loads them. This module only checks that the text is one such chain
and nothing else. So an extra brace cannot close our table and reach another one.
"""

import re
from collections.abc import Iterator

from nftsync.ruleset.model import LOCAL_CHAIN

# Comments and strings, which a lexer must skip, and the braces to count.
_TOKENS = re.compile(r'#[^\n]*|"[^"\n]*"|[{}]|"')
_HEAD = re.compile(rf"chain\s+{LOCAL_CHAIN}")
# An interface by its index. It is no match in a route look-up (`fib`), nor if the index is a number
# (`iif 1`): nft accepts a number even if the interface is missing.
_INDEX = re.compile(
    r'#[^\n]*|"[^"\n]*"|\bfib\s+[a-z]+(?:\s*\.\s*[a-z]+)*(?:\s+oif)?\b|'
    r"\b([io])if\b(?!\s*(?:[!=<>&|^]+|[a-z]+\s)?\s*(?:\d|\{(?:[^}]*,)?\s*\d+\s*[,}:]))"
)
_BASE_CHAIN = re.compile(r"(?:^|[;{\n])\s*(?:type\s+\w+\s+hook|policy)\b")


class LocalChainError(ValueError):
    """A file that does not hold exactly one local-chain; the message names the fault."""


def parse_local_chain(text: str) -> str:
    """The body of the one `chain local-chain { … }` in `text`, verbatim; "" if there are only comments.

    Raises LocalChainError.
    """
    if "\0" in text:
        raise LocalChainError("it holds a NUL character")
    blocks = list(_blocks(text))
    if len(blocks) > 1:
        raise LocalChainError("it holds more than one block")
    start, end = blocks[0] if blocks else (1, -1)  # without a block all of the text is behind it
    head, rest = (_blank(part).strip() for part in (text[: start - 1], text[end + 1 :]))
    if blocks and not _HEAD.fullmatch(head):
        raise LocalChainError(f"it must be 'chain {LOCAL_CHAIN} {{ … }}' and nothing else, not {head[:40]!a}")
    if rest and (rest != ";" or not blocks):
        raise LocalChainError(f"there is something outside of chain {LOCAL_CHAIN}: {rest[:40]!a}")
    if not blocks:
        return ""
    body = text[start:end]
    if _BASE_CHAIN.search(_blank(body)):
        raise LocalChainError(f"{LOCAL_CHAIN} is not a base chain: remove its hook and its policy")
    body = body.lstrip(" \t").removeprefix("\n").rstrip(" \t")
    return body if not body or body.endswith("\n") else f"{body}\n"


def by_name(body: str) -> str:
    """The same body with interfaces by name (`iifname`) in place of index (`iif`).

    nft accepts `iif` only while the interface exists. A rule with the name of a missing interface
    matches no packet, so the same packets pass.
    """
    return _INDEX.sub(lambda token: f"{token[1]}ifname" if token[1] else token[0], body)


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of the inside of each outermost pair of braces."""
    depth, start = 0, 0
    for token in _TOKENS.finditer(text):
        if token[0] == '"':
            raise LocalChainError(f"line {_line(text, token.start())}: a quote is not closed")
        if token[0] == "{":
            start = start if depth else token.end()
            depth += 1
        elif token[0] == "}":
            depth -= 1
            if depth < 0:
                raise LocalChainError(f"line {_line(text, token.start())}: a '}}' closes nothing")
            if depth == 0:
                yield start, token.start()
    if depth:
        raise LocalChainError("the last '}' is missing")


def _blank(text: str) -> str:
    """The text without comments and strings."""
    return _TOKENS.sub(lambda token: token[0] if token[0] in "{}" else " ", text)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
