"""Reads YAML from strangers safely: from parser events, without expansion or construction.

Refused: aliases and merge keys (a few hundred bytes of them expand to gigabytes), tags, duplicate
keys, deep nesting, large texts.
Understood: mappings with text keys, sequences, texts, null, decimal integers and YAML 1.1 booleans
(kubectl reads `yes` as true). Everything else stays a text: `64512:1` and `0123` never become numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

MAX_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 64

# libyaml is ten times faster, but not every PyYAML has it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})")
_CONSTANTS = {
    word: value
    for words, value in (("true yes on", True), ("false no off", False), ("null", None))
    for lower in words.split()
    for word in (lower, lower.capitalize(), lower.upper())
} | {"~": None, "": None}

Resolve = Callable[[str], object]  # from a scalar without quotes to its value

_KINDS_OF_TEXT = ("tag:yaml.org,2002:str", "!")


class YamlError(ValueError):
    """A text that is not YAML, or refused YAML; the message names the line."""


class Plain(str):
    """The text of a scalar without quotes."""

    __slots__ = ()


def documents(text: str, *, plain: bool = False) -> list[object]:
    """All documents of a text, as dicts, lists, str, int, bool and None. Raises YamlError.

    plain: return scalars without quotes, except null, as Plain. The caller must know their types.
    """
    if len(text) > MAX_BYTES:
        raise YamlError(f"it is larger than {MAX_BYTES // 1024 // 1024} MiB")
    try:
        return list(_documents(yaml.parse(text, Loader=_Loader), _plain if plain else _resolved))
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(fault, "problem", None) or getattr(fault, "reason", None) or "it can't be read"
        raise YamlError(f"{where}{problem}") from fault
    except (RecursionError, UnicodeError) as fault:
        raise YamlError(f"it can't be read: {type(fault).__name__}") from fault


def _documents(events: Iterator[Any], resolve: Resolve) -> Iterator[object]:
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            yield _value(next(events), events, resolve, 0)


def _value(event: Any, events: Iterator[Any], resolve: Resolve, depth: int) -> object:
    if depth > MAX_DEPTH:
        raise YamlError(f"{_line(event)}it is nested more than {MAX_DEPTH} deep")
    if isinstance(event, yaml.AliasEvent) or event.anchor:
        raise YamlError(f"{_line(event)}anchors and aliases are not allowed: write the value out")
    if event.tag and event.tag not in _KINDS_OF_TEXT:
        raise YamlError(f"{_line(event)}the tag {event.tag[:60]!a} is not allowed")
    if isinstance(event, yaml.ScalarEvent):
        text: str = event.value
        quoted = not event.implicit[0] or event.tag  # or a block, or tagged as text
        return text if quoted else resolve(text)
    if isinstance(event, yaml.SequenceStartEvent):
        return list(_sequence(events, resolve, depth))
    return _mapping(events, resolve, depth)


def _sequence(events: Iterator[Any], resolve: Resolve, depth: int) -> Iterator[object]:
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent):
            return
        yield _value(event, events, resolve, depth + 1)


def _mapping(events: Iterator[Any], resolve: Resolve, depth: int) -> dict[str, object]:
    mapping: dict[str, object] = {}
    for event in events:
        if isinstance(event, yaml.MappingEndEvent):
            break
        if not isinstance(event, yaml.ScalarEvent) or event.anchor:
            raise YamlError(f"{_line(event)}a key must be a text")
        if event.tag and event.tag not in _KINDS_OF_TEXT:
            raise YamlError(f"{_line(event)}the tag {event.tag[:60]!a} is not allowed")
        if event.value == "<<" and event.implicit[0]:
            raise YamlError(f"{_line(event)}merge keys are not allowed: write the values out")
        if event.value in mapping:
            raise YamlError(f"{_line(event)}the key {event.value[:60]!a} occurs twice")
        mapping[event.value] = _value(next(events), events, resolve, depth + 1)
    return mapping


def _resolved(text: str) -> object:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    return int(text) if _INTEGER.fullmatch(text) else text


def _plain(text: str) -> object:
    return None if text in _CONSTANTS and _CONSTANTS[text] is None else Plain(text)


def _line(event: Any) -> str:
    return f"line {event.start_mark.line + 1}: "
