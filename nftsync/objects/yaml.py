"""Reads YAML from strangers safely: from parser events, without expansion or construction.

Refused: aliases and merge keys (a few hundred bytes of them expand to gigabytes), tags, duplicate
keys, deep nesting, large texts.
Understood: mappings with text keys, sequences, texts, null, decimal integers and YAML 1.1 booleans
(kubectl reads `yes` as true). Everything else stays a text: `64512:1` and `0123` never become numbers.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile
from typing import Any

import yaml

from nftsync.objects.names import Malformed, require

MAX_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 64

# libyaml is ten times faster, but not every PyYAML has it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})")
_CONSTANTS: Mapping[str, object] = {
    word: value
    for words, value in (("true yes on", True), ("false no off", False), ("null", None))
    for lower in words.split()
    for word in (lower, lower.capitalize(), lower.upper())
} | {"~": None, "": None}

Resolve = Callable[[str], object]  # from a scalar without quotes to its value


class Plain(str):
    """The text of a scalar without quotes."""

    __slots__ = ()


def documents(text: str, *, plain: bool = False) -> list[object]:
    """All documents of a text, as dicts, lists, str, int, bool and None.

    Raises Malformed. The message names the line.
    plain: return scalars without quotes, except null, as Plain. The caller must know their types.
    """
    require(len(text) <= MAX_BYTES, f"it is larger than {MAX_BYTES // 1024 // 1024} MiB")
    events = yaml.parse(text, Loader=_Loader)
    resolve = _plain if plain else _resolved
    try:
        return [
            _value(next(events), events, resolve, 0) for event in events if isinstance(event, yaml.DocumentStartEvent)
        ]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it can't be read"
        raise Malformed(f"{where}{problem}") from error
    except (RecursionError, UnicodeError) as error:
        raise Malformed(f"it can't be read: {type(error).__name__}") from error


def _value(event: Any, events: Iterator[Any], resolve: Resolve, depth: int) -> object:
    if depth > MAX_DEPTH:
        raise Malformed(f"{_line(event)}it is nested more than {MAX_DEPTH} deep")
    if isinstance(event, yaml.AliasEvent) or event.anchor:
        raise Malformed(f"{_line(event)}anchors and aliases are not allowed: write the value out")
    _check_tag(event)
    if isinstance(event, yaml.ScalarEvent):
        quoted = not event.implicit[0] or event.tag  # or a block, or tagged as text
        return event.value if quoted else resolve(event.value)
    if isinstance(event, yaml.SequenceStartEvent):
        entries = takewhile(lambda event: not isinstance(event, yaml.SequenceEndEvent), events)
        return [_value(entry, events, resolve, depth + 1) for entry in entries]
    return _mapping(events, resolve, depth)


def _mapping(events: Iterator[Any], resolve: Resolve, depth: int) -> dict[str, object]:
    mapping: dict[str, object] = {}
    for key in takewhile(lambda event: not isinstance(event, yaml.MappingEndEvent), events):
        if not isinstance(key, yaml.ScalarEvent) or key.anchor:
            raise Malformed(f"{_line(key)}a key must be a text")
        _check_tag(key)
        if key.value == "<<" and key.implicit[0]:
            raise Malformed(f"{_line(key)}merge keys are not allowed: write the values out")
        if key.value in mapping:
            raise Malformed(f"{_line(key)}the key {key.value[:60]!a} occurs twice")
        mapping[key.value] = _value(next(events), events, resolve, depth + 1)
    return mapping


def _check_tag(event: Any) -> None:
    if event.tag and event.tag not in ("tag:yaml.org,2002:str", "!"):  # both mean a text
        raise Malformed(f"{_line(event)}the tag {event.tag[:60]!a} is not allowed")


def _line(event: Any) -> str:
    return f"line {event.start_mark.line + 1}: "


def _resolved(text: str) -> object:
    return int(text) if _INTEGER.fullmatch(text) else _CONSTANTS.get(text, text)


def _plain(text: str) -> object:
    return None if _CONSTANTS.get(text, text) is None else Plain(text)
