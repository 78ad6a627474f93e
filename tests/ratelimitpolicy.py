"""The shipped admission policy as a function, and the texts that it is tried with.

The policy's own expressions are evaluated here, and by a real API server in
tests/apiserver/test_admission.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from nftsync.objects.names import Malformed
from nftsync.objects.ratelimit import parse_ratelimit
from nftsync.objects.service import RATELIMIT_ANNOTATION
from tests.cel import Expression, compiled
from tests.support import ROOT

MANIFEST = ROOT / "packaging" / "kubernetes" / "ratelimit-policy.yaml"
POLICY, BINDING = yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))


class _Variables(Mapping[str, Any]):
    """Evaluated once and only when an expression reads them, as the API server does."""

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self._scope = {**scope, "variables": self}
        self._known: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._known:
            self._known[name] = _expressions()[name](self._scope)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_expressions())

    def __len__(self) -> int:
        return len(_expressions())


@cache
def _expressions() -> dict[str, Expression]:
    return {each["name"]: compiled(each["expression"]) for each in POLICY["spec"]["variables"]}


@cache
def _expression(where: str, key: str) -> Expression:
    [only] = POLICY["spec"][where]
    return compiled(only[key])


def service(annotations: Mapping[str, str] | None, kind: str = "LoadBalancer") -> dict[str, Any]:
    """The parts of a Service that the policy reads."""
    return {"metadata": {} if annotations is None else {"annotations": dict(annotations)}, "spec": {"type": kind}}


def judged(new: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> str:
    """The message with which the policy refuses a Service; "" if it lets it pass. Raises CelError."""
    scope: dict[str, Any] = {"object": new, "oldObject": old}
    if not _expression("matchConditions", "expression")(scope):
        return ""
    scope["variables"] = _Variables(scope)
    if _expression("validations", "expression")(scope):
        return ""
    return str(_expression("validations", "messageExpression")(scope))


def parsers(text: str, annotation: str = RATELIMIT_ANNOTATION) -> str:
    """The parser's complaint about an annotation; "" for a valid limit."""
    try:
        parse_ratelimit(text)
    except Malformed as refused:
        return f"annotation {annotation}: {refused}"
    return ""
