"""Reads the operator's own rules, `chain local-chain { … }`, from a file and keeps them verbatim.

nft judges the rules when nftsync loads them. This module only checks that the text is one such chain
and nothing else. So an extra brace cannot close our table and reach another one. It also refuses
rules that take something from outside of the file: nobody would notice its changes.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from nftsync.objects.names import quote
from nftsync.ruleset.hostnames import host_names
from nftsync.ruleset.model import INET, LOCAL_CHAIN, NAME
from nftsync.ruleset.text import Complaint

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
_INCLUDE = re.compile(r"(?<![\w./-])include(?![\w./-])")
_TO_SET = re.compile(r"(?<!flow )\b(?:add|update|delete)\s[^;\n{}]*@")  # also nft's other spelling, `set add KEY @NAME`

# What nft's complaints mean here.
_ADVICE = {
    "No such file or directory": (
        f"table {INET} {NAME} has no set, map, counter, quota, limit, helper, flowtable or chain of that name, "
        "and rules can use only objects of their own table"
    ),
    "Interface does not exist": "match it by its name, with iifname or oifname",
    "Too many links": "its jumps lead back to it",
    "Operation not supported": "one of its statements is not possible at the hooks input and forward",
}
BY_KERNEL = "Could not process rule"  # the start of a complaint that is the kernel's, not nft's own
_STATEMENT = "or this kernel does not have the statement"
_NAMED = re.compile(r'@[\w-]+$|"[^"]*"$|\b(?:jump|goto)\s+\S+$')  # the end of a statement that names an object
_LONGEST = 100  # characters of a line in a sentence


class LocalChainError(ValueError):
    """A file that does not hold exactly one local-chain; the message names the fault."""


class Body(NamedTuple):
    """The inside of the chain, verbatim, and its place: the lines before it, and the characters in its first line."""

    text: str = ""
    line: int = 0
    column: int = 0


def parse_local_chain(text: str) -> Body:
    """The body of the one `chain local-chain { … }` in `text`; empty if there are only comments.

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
        return Body()
    body = text[start:end].lstrip(" \t").removeprefix("\n")
    start = end - len(body)
    _judge(body, _line(text, start) - 1)
    body = body.rstrip(" \t")
    column = start - (text.rfind("\n", 0, start) + 1)
    return Body(body if not body or body.endswith("\n") else f"{body}\n", _line(text, start) - 1, column)


def _judge(body: str, before: int) -> None:
    """Refuse rules that are wrong in a local chain. before: number of lines before the body."""
    code = _TOKENS.sub(lambda token: token[0] if token[0] in "{}" else " " * len(token[0]), body)
    if _BASE_CHAIN.search(code):
        raise LocalChainError(f"{LOCAL_CHAIN} is not a base chain: remove its hook and its policy")
    if found := _INCLUDE.search(code):
        raise LocalChainError(
            f"line {before + _line(body, found.start())}: nft reads an included file only when it loads the chain, "
            "so later changes of that file have no effect: write its rules here in place of `include`"
        )
    if found := _TO_SET.search(code):
        raise LocalChainError(
            f"line {before + _line(body, found.start())}: the sets of table {INET} {NAME} hold the cluster's wishes, "
            "so no rule can change them: use a `meter`"
        )
    for name, place in host_names(body):
        raise LocalChainError(
            f"line {before + _line(body, place)}: nft looks up the host name {quote(name)} only when it loads the "
            "chain, and not without a network: write its addresses"
        )


def explain_complaint(body: Body, complaint: Complaint) -> str:
    """nft's complaint about the local chain as one sentence, with the place in the file.

    complaint: its line counts from the body's first line. A line outside of the body is no place.
    """
    said, lines = complaint.message, body.text.split("\n")[:-1]
    advice = next((f": {meaning}" for error, meaning in _ADVICE.items() if said.endswith(error)), "")
    if not 0 <= complaint.line < len(lines):
        return said + advice
    line, (first, last) = lines[complaint.line], complaint.columns
    marked = line[first - 1 : last].strip() if first else ""
    if advice and said.startswith(BY_KERNEL) and not _NAMED.search(line[:last]):
        advice += f"; {_STATEMENT}"
    column = first + (0 if complaint.line else body.column)
    place = f"line {body.line + complaint.line + 1}" + (f", column {column}" if first else "")
    whole = line.strip()
    at = f"{quote(marked, _LONGEST)} in " if marked and marked != whole else ""
    return f"{place}: {said}: {at}{quote(whole, _LONGEST)}{advice}"


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
