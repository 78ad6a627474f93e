"""The Nft resource (nft.acnodal.com/v1alpha1): the router's settings, and the routers' status.

The status has an entry for each router, and a summary of all. Everybody with the right to write it
can write anything into it.
Source: api-conventions.md of Kubernetes (conditions).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from nftsync.objects.names import (
    Malformed,
    Name,
    ObjectRef,
    Reason,
    Rejection,
    identify,
    kubernetes_name,
    mapping,
    quote,
    require,
    sequence,
)

_NIC = re.compile(r"[A-Za-z0-9_.:+=@][A-Za-z0-9_.:+=@-]{0,14}")  # IFNAMSIZ; no '*', nft's wildcard
METALLB_NAMESPACE = "metallb-system"  # unless the resource says otherwise
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_LONGEST = 512  # characters of a message
_MOST_NICS = 32
_MANY = 64  # the most routers, and the most conditions of each, that nftsync reads
AGREE = "RoutersAgree"
SUMMED = (
    "Ready", "Running", "PoolsGuarded", "PublicInterfaces", "RateShaping", "LocalChainValid", "Confirmed", "Stale",
)  # fmt: skip


class Nics(NamedTuple):
    """Names of network interfaces: the public ones, and those that count as inside.

    Alternative names are valid (ip-link(8)).  inside: empty for every interface that is not public.
    """

    public: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()

    def over(self, other: Nics) -> Nics:
        """These names; of each kind that has none here, the other ones. What is public is not inside."""
        public = self.public or other.public
        return Nics(public, tuple(name for name in self.inside or other.inside if name not in public))

    def __str__(self) -> str:
        return ", ".join(self.public) + (f" (inside: {', '.join(self.inside)})" if self.inside else "")


@dataclass(frozen=True, slots=True)
class NftSpec:
    """The spec of an Nft resource: the router's settings. The defaults are the CRD's."""

    nics: Nics
    enable_bgp: bool = True
    enable_dropall: bool = True
    enable_rateshape: bool = True
    enable_ssh: bool = True
    metallb_namespace: str = METALLB_NAMESPACE
    metallb_configmap: str = ""  # the name of the ConfigMap of MetalLB up to 0.12; "" to find it


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that holds or does not.

    since: RFC 3339, time of the last change of `holds`; "" before anybody has written it.
    """

    type: str
    holds: bool
    reason: str
    message: str = ""
    since: str = ""


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """One router. hash: identifies the common part of the rulesets of a cluster's routers."""

    name: str
    version: str = ""
    generation: int = 0
    hash: str = ""
    last_change: str = ""
    services: int = 0
    pinholes: int = 0
    rejected: int = 0
    conditions: tuple[Condition, ...] = ()

    def condition(self, kind: str) -> Condition | None:
        return next((condition for condition in self.conditions if condition.type == kind), None)


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of all routers together. generation: the last one that all of them have taken."""

    services: int = 0
    pinholes: int = 0
    rejected: int = 0
    generation: int = 0

    @classmethod
    def of(cls, routers: Sequence[RouterStatus]) -> Figures:
        """routers: at least one."""
        return cls(
            max(router.services for router in routers),
            max(router.pinholes for router in routers),
            max(router.rejected for router in routers),
            min(router.generation for router in routers),
        )


@dataclass(frozen=True, slots=True)
class NftStatus:
    """The whole status."""

    routers: tuple[RouterStatus, ...] = ()
    conditions: tuple[Condition, ...] = ()
    figures: Figures = field(default_factory=Figures)

    @property
    def disagree(self) -> bool:
        """Whether a router has reported that rulesets differ."""
        return next((not condition.holds for condition in self.conditions if condition.type == AGREE), False)


class Confirmation(StrEnum):
    """The state of the settings that the Nft resource asks for."""

    NOT_NEEDED = "NotNeeded"  # they cannot lock anybody out, or confirm_seconds is 0
    CONFIRMED = "Confirmed"
    WAITING = "Waiting"
    ROLLED_BACK = "RolledBack"


@dataclass(frozen=True, slots=True)
class Nft:
    """An Nft resource (nft.acnodal.com/v1alpha1).

    spec: the last good one, None before the first.
    status: does not compare, so a router's write to it wakes no router.
    """

    name: Name
    uid: str
    generation: int
    spec: NftSpec | None
    rejections: tuple[Rejection, ...] = ()
    status: NftStatus = field(default_factory=NftStatus, compare=False)

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef("Nft", str(self.name), self.uid)


def parse_nft(raw: object, before: Nft | None) -> Nft:
    """The Nft resource from its API object. If its spec is refused, that of `before` stays.

    Raises Malformed if the name is not valid.
    """
    name, uid = identify(raw)
    resource = mapping(raw, "the object")
    generation = mapping(resource.get("metadata"), "metadata").get("generation")
    status = parse_status(resource.get("status"))
    nft = Nft(name, uid, generation if type(generation) is int else 0, None, status=status)
    try:
        return replace(nft, spec=parse_spec(resource.get("spec")))
    except Malformed as error:
        last_good = before.spec if before else None
        stays = "the last good settings stay" if last_good else "there are no earlier settings to keep"
        rejection = Rejection(nft.ref, Reason.INVALID_SETTINGS, f"{error}; {stays}")
        return replace(nft, spec=last_good, rejections=(rejection,))


def parse_spec(raw: object) -> NftSpec:
    """The spec from its API form. Raises Malformed."""
    spec = mapping(raw, "spec")
    namespace, config_map = spec.get("metallb-namespace"), spec.get("metallb-configmap")
    nics = parse_nics(spec)
    require(bool(nics.public), "public_nic is required: the name of the router's public interface, e.g. enp1s0")
    return NftSpec(
        metallb_namespace=(
            METALLB_NAMESPACE if namespace is None else kubernetes_name(namespace, "spec.metallb-namespace")
        ),
        metallb_configmap="" if config_map is None else kubernetes_name(config_map, "spec.metallb-configmap"),
        nics=nics,
        enable_bgp=_switch(spec, "enable_bgp"),
        enable_dropall=_switch(spec, "enable_dropall"),
        enable_rateshape=_switch(spec, "enable_rateshape"),
        enable_ssh=_switch(spec, "enable_ssh"),
    )


def describe_spec(spec: NftSpec) -> dict[str, object]:
    """The spec in its API form, for parse_spec() of this version and of the ones before."""
    first, *others = spec.nics.public
    nics = {"public_nic": first, "public_nics": others, "inside_nics": list(spec.nics.inside)}
    switches = {key: value for key, value in asdict(spec).items() if key.startswith("enable_")}
    config_map = {"metallb-configmap": spec.metallb_configmap} if spec.metallb_configmap else {}
    return {**nics, **switches, "metallb-namespace": spec.metallb_namespace, **config_map}


def parse_nics(spec: Mapping[str, object]) -> Nics:
    """The names in public_nic, public_nics and inside_nics. Raises Malformed."""
    first = spec.get("public_nic")
    names = [*([] if first is None else [first]), *sequence(spec.get("public_nics"), "public_nics")]
    nics = Nics(
        tuple(dict.fromkeys(parse_nic(name) for name in names)),
        tuple(dict.fromkeys(parse_nic(name) for name in sequence(spec.get("inside_nics"), "inside_nics"))),
    )
    require(len(names) <= _MOST_NICS and len(nics.inside) <= _MOST_NICS, f"more than {_MOST_NICS} interfaces are named")
    both = set(nics.public) & set(nics.inside)
    require(not both, f"{min(both, default='')} is in inside_nics, and public as well")
    return nics


def parse_nic(value: object) -> str:
    """The name of a network interface that may be public. Raises Malformed."""
    if not isinstance(value, str) or not _NIC.fullmatch(value) or value in (".", "..", "lo"):
        raise Malformed(f"{quote(value)} is not the name of a network interface that can be public")
    return value


def _switch(spec: Mapping[str, object], field: str) -> bool:
    """A boolean, true if absent. As in the old operator, words such as "yes" or "off" are valid."""
    value = spec.get(field)
    if value is None:
        return True
    if isinstance(value, str):
        value = _BOOLEANS.get(value.lower(), value)
    if not isinstance(value, bool):
        raise Malformed(f"spec.{field} {quote(value)} is neither true nor false")
    return value


def parse_status(raw: object) -> NftStatus:
    """The status from its API form, without entries that are not ours."""
    try:
        status = mapping(raw, "status")
        routers = filter(None, map(_router, sequence(status.get("routers"), "status.routers")[:_MANY]))
        ordered = sorted(routers, key=lambda router: router.name)
        return NftStatus(tuple(ordered), _conditions(status), _figures(status))
    except Malformed:
        return NftStatus()


def _figures(status: Mapping[str, object]) -> Figures:
    """generation: from the routers' own conditions, not from those of others."""
    own = (condition for condition in _raw_conditions(status) if condition.get("type") in (*SUMMED, AGREE))
    return Figures(
        _number(status, "services"),
        _number(status, "pinholes"),
        _number(status, "rejected"),
        min((_number(condition, "observedGeneration") for condition in own), default=0),
    )


def _router(raw: object) -> RouterStatus | None:
    try:
        entry = mapping(raw, "an entry of status.routers")
        conditions = _conditions(entry)
    except Malformed:
        return None
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        return None
    return RouterStatus(
        name,
        _text(entry, "version"),
        _number(entry, "observedGeneration"),
        _text(entry, "hash"),
        _text(entry, "lastChange"),
        _number(entry, "services"),
        _number(entry, "pinholes"),
        _number(entry, "rejected"),
        conditions,
    )


def _conditions(entry: Mapping[str, object]) -> tuple[Condition, ...]:
    return tuple(
        Condition(
            _text(condition, "type"),
            condition.get("status") == "True",
            _text(condition, "reason"),
            _text(condition, "message"),
            _text(condition, "lastTransitionTime"),
        )
        for condition in _raw_conditions(entry)
    )


def _raw_conditions(entry: Mapping[str, object]) -> list[Mapping[str, object]]:
    conditions = sequence(entry.get("conditions"), "conditions")[:_MANY]
    return [mapping(condition, "a condition") for condition in conditions]


def _text(entry: Mapping[str, object], key: str) -> str:
    value = entry.get(key)
    return shorten(value) if isinstance(value, str) else ""


def _number(entry: Mapping[str, object], key: str) -> int:
    value = entry.get(key)
    return value if type(value) is int and 0 <= value < 1 << 63 else 0


def shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
