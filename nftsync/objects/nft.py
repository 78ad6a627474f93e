"""The Nft resource (nft.acnodal.com/v1alpha1): the router's settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

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
)
from nftsync.objects.status import NftStatus, parse_status

_NIC = re.compile(r"[A-Za-z0-9_.:+=@][A-Za-z0-9_.:+=@-]{0,14}")  # IFNAMSIZ; no '*', nft's wildcard
METALLB_NAMESPACE = "metallb-system"  # unless the resource says otherwise
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class NftSpec:
    """The spec of an Nft resource: the router's settings. The defaults are the CRD's."""

    public_nic: str
    enable_bgp: bool = True
    enable_dropall: bool = True
    enable_rateshape: bool = True
    enable_ssh: bool = True
    metallb_namespace: str = METALLB_NAMESPACE


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
    """The Nft resource from its API object. `before` keeps its last good spec if this one is refused.

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
    namespace = spec.get("metallb-namespace")
    return NftSpec(
        metallb_namespace=(
            METALLB_NAMESPACE if namespace is None else kubernetes_name(namespace, "spec.metallb-namespace")
        ),
        public_nic=parse_nic(spec.get("public_nic")),
        enable_bgp=_switch(spec, "enable_bgp"),
        enable_dropall=_switch(spec, "enable_dropall"),
        enable_rateshape=_switch(spec, "enable_rateshape"),
        enable_ssh=_switch(spec, "enable_ssh"),
    )


def describe_spec(spec: NftSpec) -> dict[str, object]:
    """The spec in its API form, for parse_spec()."""
    return {**asdict(spec), "metallb-namespace": spec.metallb_namespace}


def parse_nic(value: object) -> str:
    """The name of a network interface that may be public. Raises Malformed."""
    if value is None:
        raise Malformed("public_nic is required: the name of the router's public interface, e.g. enp1s0")
    if not isinstance(value, str) or not _NIC.fullmatch(value) or value in (".", "..", "lo"):
        raise Malformed(f"public_nic {quote(value)} is not the name of a network interface that can be public")
    return value


def _switch(spec: Mapping[str, object], field: str) -> bool:
    """A boolean, true if absent. Like the old operator, this accepts words such as "yes" or "off"."""
    value = spec.get(field)
    if value is None:
        return True
    if isinstance(value, str):
        value = _BOOLEANS.get(value.lower(), value)
    if not isinstance(value, bool):
        raise Malformed(f"spec.{field} {quote(value)} is neither true nor false")
    return value
