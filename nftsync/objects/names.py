"""Kinds and names of objects, reasons and messages of rejections, and checks of hostile shapes.

Source of the kinds and their paths: the Kubernetes API, MetalLB's api/.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple, TypeVar

NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")  # RFC 1123 subdomain, as the API server checks it
_UID = re.compile(r"[A-Za-z0-9-]{1,64}")
_T = TypeVar("_T")

CONFIG_MAP = "config"  # the usual name of MetalLB's ConfigMap, and the key in it

# The remedy if the cluster lacks a required kind or permission.
MEND = "run nftsync bootstrap with an administrator's kubeconfig"


class Reason(StrEnum):
    """Why an object, or a part of one, was refused. Metrics and Events use this fixed list."""

    MALFORMED = "malformed"
    UNREADABLE = "unreadable"
    DUPLICATE = "duplicate"
    UNKNOWN_KIND = "unknown_kind"
    UNKNOWN_FIELD = "unknown_field"
    INVALID_ADDRESS = "invalid_address"
    INVALID_PORT = "invalid_port"
    INVALID_PROTOCOL = "invalid_protocol"
    INVALID_SOURCE_RANGE = "invalid_source_range"
    INVALID_RATELIMIT = "invalid_ratelimit"
    CONFLICT = "conflict"
    QUARANTINED = "quarantined"
    OVER_CAP = "over_cap"
    OUTSIDE_POOLS = "outside_pools"
    RESERVED_ADDRESS = "reserved_address"
    INVALID_POOLS = "invalid_pools"
    MISSING_POOLS = "missing_pools"
    REFUSED_BY_METALLB = "refused_by_metallb"
    INVALID_SETTINGS = "invalid_settings"
    MISSING_SETTINGS = "missing_settings"
    INVALID_LOCAL_CHAIN = "invalid_local_chain"


OF_POOLS = (Reason.INVALID_POOLS, Reason.MISSING_POOLS, Reason.REFUSED_BY_METALLB)  # of MetalLB's configuration


class Name(NamedTuple):
    """Namespace and name. Together they identify an object of one kind."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """A reference to an object or a file.

    name: printable, "namespace/name" or a file's path.  uid: "" if unknown.
    """

    kind: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Rejection:
    """The refusal of an object, or of a part of one. str() is one printable line.

    part: identifies the refusal if its message can change; "" if the message identifies it.
    """

    object: ObjectRef
    reason: Reason
    message: str
    part: str = ""

    def __str__(self) -> str:
        return f"{self.object}: {self.reason}: {self.message}"


class NftsyncError(Exception):
    """An expected failure. Its message is one line for people; a command prints it and ends."""


class Malformed(ValueError):
    """An object without a valid name, or a part of the wrong shape."""


def quote(value: object, limit: int = 80) -> str:
    """A hostile value for a message: printable ASCII on one line, at most `limit` characters."""
    if isinstance(value, str):
        value = value[: limit + 1]
    try:
        text = ascii(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    except ValueError:  # Python refuses to write out more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= limit else text[:limit] + "…"


def some(items: Iterable[object], most: int, between: str = ", ") -> str:
    """The first `most` items for a sentence, and the number of the others."""
    texts = list(map(str, items))
    return between.join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def identify(raw: object) -> tuple[Name, str]:
    """Name and UID ("" if absent) of an API object. Raises Malformed."""
    metadata = mapping(mapping(raw, "the object").get("metadata"), "metadata")
    namespace, uid = metadata.get("namespace"), metadata.get("uid")
    name = Name(
        "default" if namespace is None else kubernetes_name(namespace, "metadata.namespace"),
        kubernetes_name(metadata.get("name"), "metadata.name"),
    )
    return name, uid if isinstance(uid, str) and _UID.fullmatch(uid) else ""


def kubernetes_name(value: object, what: str) -> str:
    """`value` if it is a name that the API server accepts. Raises Malformed."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise Malformed(f"{what} {quote(value)} is not a Kubernetes name")
    return value


def require(holds: bool, complaint: str) -> None:  # noqa: FBT001
    """Raise Malformed with a complaint unless a condition holds."""
    if not holds:
        raise Malformed(complaint)


def mapping(value: object, what: str) -> Mapping[str, object]:
    """`value` if it is an object; {} if it is absent. Raises Malformed."""
    return {} if value is None else _expect(dict, "an object", value, what)


def sequence(value: object, what: str) -> list[object]:
    """`value` if it is a list; [] if it is absent. Raises Malformed."""
    return [] if value is None else _expect(list, "a list", value, what)


def _expect(kind: type[_T], kind_name: str, value: object, what: str) -> _T:
    if not isinstance(value, kind):
        raise Malformed(f"{what} is not {kind_name} but {quote(value)}")
    return value


@dataclass(frozen=True, slots=True)
class Resource:
    """An API path to list and watch, narrowed by `query`. kind: for people and metrics.

    optional: a cluster without this kind, or without the permission to read it, is no error.
    guarded: if a list suddenly lacks most known objects, nftsync believes only a second such list.
    otherwise: what to read in its place if the server does not serve or permit it.
    """

    kind: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    optional: bool = False
    guarded: bool = False
    otherwise: "Resource | None" = None


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind. group: "" for Kubernetes' own.  optional, guarded: see Resource.

    older: the version to read if the server does not serve `version`; "" for none.
    """

    name: str
    group: str
    version: str
    plural: str
    optional: bool = False
    guarded: bool = False
    older: str = ""

    @property
    def api_version(self) -> str:
        """The value of an object's apiVersion."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "") -> str:
        """The path of a list: of one namespace, or "" for all."""
        within = f"namespaces/{namespace}/" if namespace else ""
        return f"/{'apis' if self.group else 'api'}/{self.api_version}/{within}{self.plural}"

    def watched(self, namespace: str = "", name: str = "") -> Resource:
        """The resource to watch: all objects, those of a namespace, or the one with a name."""
        query = (("fieldSelector", f"metadata.name={name}"),) if name else ()
        older = replace(self, version=self.older, older="").watched(namespace, name) if self.older else None
        return Resource(self.name, self.path(namespace), query, self.optional, self.guarded, older)


SERVICE = Kind("Service", "", "v1", "services", guarded=True)
NFT = Kind("Nft", "nft.acnodal.com", "v1alpha1", "nfts")
POOL = Kind("IPAddressPool", "metallb.io", "v1beta1", "ipaddresspools", optional=True)
ADVERTISEMENT = Kind("BGPAdvertisement", "metallb.io", "v1beta1", "bgpadvertisements", optional=True)
PEER = Kind("BGPPeer", "metallb.io", "v1beta2", "bgppeers", optional=True, older="v1beta1")
LEGACY = Kind("ConfigMap", "", "v1", "configmaps", optional=True)  # which MetalLB read up to 0.12
FORMER_POOL = Kind("AddressPool", "metallb.io", "v1beta1", "addresspools", optional=True, older="v1alpha1")
STATE = Kind("ConfigurationState", "metallb.io", "v1beta1", "configurationstates", optional=True)

METALLB = (POOL, ADVERTISEMENT, PEER, LEGACY, FORMER_POOL, STATE)
KINDS = {kind.name: kind for kind in (SERVICE, NFT, *METALLB)}

SERVICES = SERVICE.watched()


def metallb(namespace: str, config_map: str = "") -> tuple[Resource, ...]:
    """MetalLB's objects, in the order of METALLB.

    config_map: the name of the ConfigMap of MetalLB up to 0.12. Without it, nftsync reads each
    ConfigMap of the namespace; if RBAC forbids that, the one with the usual name.
    """
    return tuple(
        kind.watched(namespace) if kind is not LEGACY else _config_maps(namespace, config_map) for kind in METALLB
    )


def _config_maps(namespace: str, name: str) -> Resource:
    usual = LEGACY.watched(namespace, name or CONFIG_MAP)
    return usual if name else replace(LEGACY.watched(namespace), otherwise=usual)
