"""Label selectors, with the API's own rules for labels.

The API server checks the labels of an object, but not those in a selector of MetalLB's objects.
MetalLB refuses its whole configuration for one selector that breaks these rules.
Source: Kubernetes, apimachinery's labels.NewRequirement and metav1.LabelSelectorAsSelector.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from nftsync.objects.names import Malformed, mapping, quote, require, sequence

_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")  # of a key, or a value
_PREFIX = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
_LONGEST_PREFIX = 253


@dataclass(frozen=True, slots=True)
class Selector:
    """A label selector (metav1.LabelSelector). expressions: key, operator and values of each."""

    labels: tuple[tuple[str, str], ...]
    expressions: tuple[tuple[str, str, frozenset[str]], ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(labels.get(key) == value for key, value in self.labels) and all(
            _OPERATORS[operator](labels.get(key), values) for key, operator, values in self.expressions
        )


_OPERATORS: dict[str, Callable[[str | None, frozenset[str]], bool]] = {
    "In": lambda value, values: value in values,
    "NotIn": lambda value, values: value not in values,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
}


def parse_selectors(value: object, what: str) -> tuple[Selector, ...]:
    """A list of selectors, none of them twice. Raises Malformed."""
    selectors = tuple(_selector(entry, what) for entry in sequence(value, what))
    require(len(set(selectors)) == len(selectors), f"{what} holds a selector twice")
    return selectors


def _selector(value: object, what: str) -> Selector:
    raw = mapping(value, f"an entry of {what}")
    listed = sequence(raw.get("matchExpressions"), f"{what}: matchExpressions")
    expressions = [_expression(expression, what) for expression in listed]
    require(len(set(expressions)) == len(expressions), f"{what} holds an expression twice")
    labels = sorted(parse_labels(mapping(raw.get("matchLabels"), f"{what}: matchLabels"), what))
    for key, label in labels:
        _check_key(key, what)
        _check_value(label, what)
    return Selector(tuple(labels), tuple(expressions))


def parse_labels(labels: Mapping[str, object], what: str) -> Iterator[tuple[str, str]]:
    """Keys and values, both texts. Raises Malformed."""
    for key, value in labels.items():
        if not isinstance(value, str):
            raise Malformed(f"{what}: the label {quote(key)} is not a text but {quote(value)}")
        yield key, value


def parse_texts(value: object, what: str) -> frozenset[str]:
    """A list of texts, none of them twice. Raises Malformed."""
    texts: set[str] = set()
    for text in sequence(value, what):
        if not isinstance(text, str):
            raise Malformed(f"{what} holds {quote(text)}, which is not a text")
        require(text not in texts, f"{what} holds {quote(text)} twice")
        texts.add(text)
    return frozenset(texts)


def _expression(value: object, what: str) -> tuple[str, str, frozenset[str]]:
    raw = mapping(value, f"an expression of {what}")
    key, operator = raw.get("key"), raw.get("operator")
    values = parse_texts(raw.get("values"), f"{what}: values")
    if not isinstance(key, str) or not key:
        raise Malformed(f"{what}: {quote(key)} is not a label's key")
    if not isinstance(operator, str) or operator not in _OPERATORS:
        raise Malformed(f"{what}: the operator {quote(operator)} is not In, NotIn, Exists or DoesNotExist")
    require(
        bool(values) == (operator in ("In", "NotIn")),
        f"{what}: In and NotIn need values, Exists and DoesNotExist have none",
    )
    _check_key(key, what)
    for text in sorted(values):
        _check_value(text, what)
    return key, operator, values


def _check_key(key: str, what: str) -> None:
    prefix, slash, name = key.rpartition("/")
    is_key = _PART.fullmatch(name) and (
        not slash or (len(prefix) <= _LONGEST_PREFIX and _PREFIX.fullmatch(prefix) is not None)
    )
    require(bool(is_key), f"{what}: {quote(key)} is not a label's key")


def _check_value(value: str, what: str) -> None:
    require(not value or bool(_PART.fullmatch(value)), f"{what}: {quote(value)} is not a label's value")
