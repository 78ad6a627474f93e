"""A small evaluator of CEL, for the expressions of packaging/kubernetes/.

It knows only what they use. tests/apiserver/test_admission.py holds it against a real API server.
Sources: cel-spec, doc/langdef.md; Kubernetes, "Common Expression Language in Kubernetes".
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Scope = Mapping[str, Any]
Expression = Callable[[Scope], Any]

_TOKEN = re.compile(
    r"""\s*(?:(?P<uint>[0-9]+)u|(?P<int>[0-9]+)|(?P<word>[A-Za-z_]\w*)|(?P<text>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
    r"""|(?P<sign>&&|\|\||[=!<>]=|[-+*/%<>!?:.,()\[\]{}]))"""
)
_RANKS = (("||",), ("&&",), ("==", "!=", "<=", ">=", "<", ">", "in"), ("+", "-"), ("*", "/", "%"))
_MACROS = {"map", "filter", "exists"}


class CelError(Exception):
    """The expression fails, as it would in the API server: an overflow, an index, a key, or no number."""


class Uint(int):
    """An unsigned integer of 64 bits."""


def compiled(source: str) -> Expression:
    """A function of the variables. Raises SyntaxError for an expression beyond this evaluator."""
    parser = _Parser(source)
    made = parser.ternary()
    parser.expect("")
    return made


class _Parser:
    def __init__(self, source: str) -> None:
        self._tokens = list(_tokens(source))
        self._at = 0

    def _next(self) -> tuple[str, str]:
        return self._tokens[self._at]

    def _take(self, *signs: str) -> str:
        """The next token if it is one of these signs or words, else ""."""
        kind, text = self._next()
        if kind in ("sign", "word") and text in signs:
            self._at += 1
            return text
        return ""

    def expect(self, sign: str) -> None:
        kind, text = self._next()
        if text != sign or kind not in ("sign", "end"):
            raise SyntaxError(f"{sign or 'the end'!r} expected and not {text!r}")
        self._at += 1

    def ternary(self) -> Expression:
        condition = self._binary(0)
        if not self._take("?"):
            return condition
        yes = self.ternary()
        self.expect(":")
        no = self.ternary()
        return lambda scope: yes(scope) if condition(scope) else no(scope)

    def _binary(self, rank: int) -> Expression:
        if rank == len(_RANKS):
            return self._unary()
        left = self._binary(rank + 1)
        while sign := self._take(*_RANKS[rank]):
            left = _operation(sign, left, self._binary(rank + 1))
        return left

    def _unary(self) -> Expression:
        if self._take("!"):
            operand = self._unary()
            return lambda scope: not operand(scope)
        return self._member()

    def _member(self) -> Expression:
        value = self._primary()
        while sign := self._take(".", "["):
            if sign == "[":
                value = _indexed(value, self.ternary())
                self.expect("]")
            else:
                name = self._word()
                value = self._method(value, name) if self._take("(") else _indexed(value, _constant(name))
        return value

    def _method(self, value: Expression, name: str) -> Expression:
        if name in _MACROS:
            variable = self._word()
            self.expect(",")
            body = self.ternary()
            self.expect(")")
            return _macro(name, value, variable, body)
        return _called(_METHODS[name], [value, *self._listed(")")])

    def _primary(self) -> Expression:
        kind, text = self._next()
        self._at += 1
        if kind in _LITERALS:
            return _constant(_LITERALS[kind](text))
        if kind == "word":
            return self._named(text)
        if text == "(":
            inner = self.ternary()
            self.expect(")")
            return inner
        if text == "[":
            items = self._listed("]")
            return lambda scope: [item(scope) for item in items]
        if text == "{":
            pairs = self._pairs()
            return lambda scope: {key(scope): value(scope) for key, value in pairs}
        raise SyntaxError(f"unexpected {text!r}")

    def _named(self, name: str) -> Expression:
        if name == "has":
            self.expect("(")
            *path, last = self._path()
            self.expect(")")
            return lambda scope: last in _walk(scope, path)
        if name in _FUNCTIONS and self._take("("):
            return _called(_FUNCTIONS[name], self._listed(")"))
        if name == "null":
            return _constant(None)
        return lambda scope: scope[name]

    def _path(self) -> list[str]:
        path = [self._word()]
        while self._take("."):
            path.append(self._word())
        return path

    def _word(self) -> str:
        kind, text = self._next()
        if kind != "word":
            raise SyntaxError(f"a name expected and not {text!r}")
        self._at += 1
        return text

    def _listed(self, end: str) -> list[Expression]:
        items: list[Expression] = []
        while not self._take(end):
            items.append(self.ternary())
            if not self._take(","):
                self.expect(end)
                break
        return items

    def _pairs(self) -> list[tuple[Expression, Expression]]:
        pairs: list[tuple[Expression, Expression]] = []
        while not self._take("}"):
            key = self.ternary()
            self.expect(":")
            pairs.append((key, self.ternary()))
            if not self._take(","):
                self.expect("}")
                break
        return pairs


def _tokens(source: str) -> Iterator[tuple[str, str]]:
    at, end = 0, len(source.rstrip())
    while at < end:
        found = _TOKEN.match(source, at)
        if found is None or found.lastgroup is None:
            raise SyntaxError(f"no token at {source[at : at + 40]!r}")
        yield found.lastgroup, found[found.lastgroup]
        at = found.end()
    yield "end", ""


def _constant(value: object) -> Expression:
    return lambda _: value


def _called(function: Callable[..., Any], arguments: list[Expression]) -> Expression:
    def call(scope: Scope) -> Any:
        try:
            return function(*(argument(scope) for argument in arguments))
        except ValueError as error:
            raise CelError(str(error)) from None

    return call


def _indexed(value: Expression, index: Expression) -> Expression:
    def get(scope: Scope) -> Any:
        container, key = value(scope), index(scope)
        if isinstance(container, list) and not 0 <= key < len(container):
            raise CelError(f"index {key} of {len(container)}")
        try:
            return container[key]
        except KeyError:
            raise CelError(f"no key {key!r}") from None

    return get


def _walk(scope: Scope, path: list[str]) -> Any:
    value: Any = scope
    for name in path:
        value = value[name]
    return value


def _macro(name: str, value: Expression, variable: str, body: Expression) -> Expression:
    def run(scope: Scope) -> Any:
        results = ((item, body({**scope, variable: item})) for item in value(scope))
        if name == "map":
            return [result for _, result in results]
        if name == "filter":
            return [item for item, result in results if result]
        return any(result for _, result in results)

    return run


def _operation(sign: str, left: Expression, right: Expression) -> Expression:
    if sign == "&&":
        return lambda scope: bool(left(scope)) and bool(right(scope))
    if sign == "||":
        return lambda scope: bool(left(scope)) or bool(right(scope))
    operate = _OPERATIONS[sign]

    def run(scope: Scope) -> Any:
        first, second = left(scope), right(scope)
        if sign != "in" and type(first) is not type(second) and None not in (first, second):
            raise CelError(f"{first!r} {sign} {second!r}: two types")
        return _bounded(operate(first, second), unsigned=isinstance(first, Uint))

    return run


def _bounded(value: Any, *, unsigned: bool) -> Any:
    if type(value) is int or isinstance(value, Uint):
        if not (0 <= value < 2**64 if unsigned else -(2**63) <= value < 2**63):
            raise CelError(f"{value} has more than 64 bits")
        return Uint(value) if unsigned else int(value)
    return value


def _int(value: object) -> int:
    assert isinstance(value, int | str)
    if isinstance(value, str) and not re.fullmatch("[0-9]+", value):
        raise CelError(f"{value!r} is no number")
    return int(_bounded(int(value), unsigned=False))


def _pattern(pattern: str) -> re.Pattern[str]:
    """Go's `$` is the end of the text alone, and its blanks lack the vertical tab."""
    return re.compile(pattern.replace("$", r"\Z").replace(r"\s", r"[\t\n\f\r ]"), re.ASCII)


def _split(text: str, separator: str) -> list[str]:
    return text.split(separator) if separator else list(text)


def _substring(text: str, start: int, end: int) -> str:
    if not 0 <= start <= end <= len(text):
        raise CelError(f"{start} to {end} of {len(text)}")
    return text[start:end]


def _lower(text: str) -> str:
    return "".join(character.lower() if character.isascii() else character for character in text)


def _find(text: str, pattern: str) -> str:
    found = _pattern(pattern).search(text)
    return found[0] if found else ""


_LITERALS: dict[str, Callable[[str], object]] = {"int": int, "uint": Uint, "text": ast.literal_eval}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"int": _int, "uint": Uint, "string": str}
_METHODS: dict[str, Callable[..., Any]] = {
    "contains": lambda text, part: part in text,
    "endsWith": str.endswith,
    "find": _find,
    "findAll": lambda text, pattern: [found[0] for found in _pattern(pattern).finditer(text)],
    "indexOf": str.find,
    "join": lambda items, separator="": separator.join(items),
    "lowerAscii": _lower,
    "matches": lambda text, pattern: bool(_pattern(pattern).search(text)),
    "replace": str.replace,
    "size": len,
    "split": _split,
    "substring": _substring,
}
_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,  # CEL rounds towards zero; here no number is negative
    "%": operator.mod,
    "in": lambda item, container: item in container,
}
