"""Kubernetes objects as frozen types: parsed once, here, and never checked again.

Every input is hostile. No dict gets past this: it ends as a Service, as "not ours" (None), or as Rejections, for who can mend it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address
from types import MappingProxyType
from typing import NamedTuple

from nftsync.objects.ratelimit import RateLimit, RateLimitError, parse_ratelimit

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

RATELIMIT_ANNOTATION = "ratelimit"
SOURCE_RANGES_ANNOTATION = "service.beta.kubernetes.io/load-balancer-source-ranges"

NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")  # RFC 1123 subdomain, as the API server checks it
_UID = re.compile(r"[A-Za-z0-9-]{1,64}")
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")  # metav1.Time
_IPV4_SLOPPY = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})\.([0-9]{1,9})\.([0-9]{1,9})")
_BROADCAST = IPv4Address("255.255.255.255")
_PREFIX_LENGTH = re.compile(r"[0-9]{1,3}")


class Reason(StrEnum):
    """Why an object, or a part of one, was refused. The list is fixed: metrics and Events use it."""

    MALFORMED = "malformed"
    UNREADABLE = "unreadable"
    DUPLICATE = "duplicate"
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
    INVALID_SETTINGS = "invalid_settings"
    MISSING_SETTINGS = "missing_settings"
    INVALID_LOCAL_CHAIN = "invalid_local_chain"


class Protocol(StrEnum):
    """Transport protocols of a Service port, by nft's names."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


class Name(NamedTuple):
    """Namespace and name: what identifies an object of one kind."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """Which object: `kind` and a printable `name` ("namespace/name", or a file's path); `uid` may be empty."""

    kind: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Rejection:
    """An object, or a part of one, that was refused. str() is one printable line.

    part: which part, if the message can change while the refusal is the same; "" if the message says it.
    """

    object: ObjectRef
    reason: Reason
    message: str
    part: str = ""

    def __str__(self) -> str:
        return f"{self.object}: {self.reason}: {self.message}"


class Port(NamedTuple):
    """One entry of spec.ports: a protocol and a port from 1 to 65535."""

    protocol: Protocol
    number: int


@dataclass(frozen=True, slots=True)
class Service:
    """A Service of type LoadBalancer, as far as it could be understood.

    created: RFC 3339 UTC in seconds, or "" if unknown.  load_balancer_class: "" for none.
    addresses: status.loadBalancer.ingress[].ip.  sources: None for everybody; otherwise only these, collapsed; () for nobody.
    """

    name: Name
    uid: str
    created: str
    load_balancer_class: str
    addresses: tuple[Address, ...]
    ports: tuple[Port, ...]
    sources: tuple[Network, ...] | None
    limit: RateLimit | None
    rejections: tuple[Rejection, ...]

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef("Service", str(self.name), self.uid)


class Malformed(ValueError):
    """An object of which not even the name can be read, or a part whose shape is wrong."""


# --- identity -----------------------------------------------------------------------------------------


def quote(value: object, limit: int = 80) -> str:
    """A hostile value for a message: printable ASCII on one line, at most `limit` characters."""
    if isinstance(value, str):
        value = value[: limit + 1]
    try:
        text = ascii(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    except ValueError:  # Python refuses to write out more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= limit else text[:limit] + "…"


def identify(raw: object) -> tuple[Name, str]:
    """Name and UID ("" if absent) of an API object. Raises Malformed."""
    metadata = mapping(mapping(raw, "the object").get("metadata"), "metadata")
    namespace, uid = metadata.get("namespace"), metadata.get("uid")
    name = Name("default" if namespace is None else _name(namespace, "namespace"), _name(metadata.get("name"), "name"))
    return name, uid if isinstance(uid, str) and _UID.fullmatch(uid) else ""


def _name(value: object, field: str) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise Malformed(f"metadata.{field} {quote(value)} is not a Kubernetes name")
    return value


# --- Service ------------------------------------------------------------------------------------------

Limits = Mapping[tuple[Name, str], RateLimit]  # of Services, by name and UID


@dataclass(frozen=True, slots=True)
class Opened:
    """The Services that had pinholes, and what they were limited to."""

    names: frozenset[Name] = frozenset()
    limits: Limits = field(default_factory=dict)


def parse_service(raw: object, before: Service | None, limits: Limits = MappingProxyType({})) -> Service | None:
    """A Service from its API object; None if it is not of type LoadBalancer. Raises Malformed if not even the name can be read.

    before: as it was last parsed; where the new version is refused, its good parts stay.  limits: stand in for it after a start.
    """
    name, uid = identify(raw)
    if before is not None and before.uid != uid:
        before = None  # another object that bears the name
    try:
        service = mapping(raw, "the object")
        spec = mapping(service.get("spec"), "spec")
        if spec.get("type") != "LoadBalancer":
            return None  # whatever its status lists
        return _parse_service(service, spec, before.limit if before else limits.get((name, uid)), name, uid)
    except Malformed as fault:
        stays = "its previous version stays" if before else "it opens nothing"
        refused = (Rejection(ObjectRef("Service", str(name), uid), Reason.MALFORMED, f"{fault}; {stays}"),)
        if before is not None:
            return replace(before, rejections=refused)
        return Service(name, uid, "", "", (), (), (), None, refused)


def _parse_service(
    service: Mapping[str, object], spec: Mapping[str, object], limited: RateLimit | None, name: Name, uid: str
) -> Service:
    metadata = mapping(service.get("metadata"), "metadata")
    annotations = mapping(metadata.get("annotations"), "metadata.annotations")
    created, load_balancer_class = metadata.get("creationTimestamp"), spec.get("loadBalancerClass")
    refusals = _Refusals(name, uid)
    return Service(
        name=name,
        uid=uid,
        created=created if isinstance(created, str) and _TIMESTAMP.fullmatch(created) else "",
        load_balancer_class=load_balancer_class if isinstance(load_balancer_class, str) else "",
        addresses=tuple(dict.fromkeys(_addresses(service, refusals))),
        ports=tuple(dict.fromkeys(_ports(spec, refusals))),
        sources=_sources(spec, annotations, refusals),
        limit=_limit(annotations, limited, refusals),
        rejections=tuple(refusals.refused),
    )


class _Refusals:
    """Collects what is refused of one object while it is parsed."""

    def __init__(self, name: Name, uid: str) -> None:
        self._name = name
        self._uid = uid
        self.refused: list[Rejection] = []

    def add(self, reason: Reason, message: str) -> None:
        self.refused.append(Rejection(ObjectRef("Service", str(self._name), self._uid), reason, message))


def _addresses(service: Mapping[str, object], refusals: _Refusals) -> Iterator[Address]:
    status = mapping(service.get("status"), "status")
    load_balancer = mapping(status.get("loadBalancer"), "status.loadBalancer")
    for entry in sequence(load_balancer.get("ingress"), "status.loadBalancer.ingress"):
        text = mapping(entry, "an entry of status.loadBalancer.ingress").get("ip")
        if text is None or text == "":
            continue  # a host name opens nothing
        try:
            yield parse_address(text)
        except ValueError as fault:
            refusals.add(Reason.INVALID_ADDRESS, f"status.loadBalancer.ingress: {fault}")


def parse_address(text: object) -> Address:
    """An IPv4 or IPv6 address in its usual notation that a Service can have. Raises ValueError with a sentence."""
    try:
        if not isinstance(text, str) or "%" in text:  # a zone could hold anything
            raise ValueError
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"{quote(text)} is not an IP address") from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        raise ValueError(f"{quote(text)} is an IPv4 address in IPv6 notation: write {address.ipv4_mapped}")
    if address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local or address == _BROADCAST:
        raise ValueError(f"{quote(text)} can never be a Service's address")
    return address


def _ports(spec: Mapping[str, object], refusals: _Refusals) -> Iterator[Port]:
    for entry in sequence(spec.get("ports"), "spec.ports"):
        port = mapping(entry, "an entry of spec.ports")
        number, protocol = port.get("port"), port.get("protocol")
        if protocol is None or protocol == "":
            protocol = "TCP"
        if type(number) is not int or not 1 <= number <= 65535:
            refusals.add(Reason.INVALID_PORT, f"spec.ports: port {quote(number)} is not a whole number from 1 to 65535")
        elif not isinstance(protocol, str) or protocol not in _PROTOCOLS:
            message = f"spec.ports: protocol {quote(protocol)} of port {number} is not TCP, UDP or SCTP"
            refusals.add(Reason.INVALID_PROTOCOL, message)
        else:
            yield Port(_PROTOCOLS[protocol], number)


_PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}


def _sources(
    spec: Mapping[str, object], annotations: Mapping[str, object], refusals: _Refusals
) -> tuple[Network, ...] | None:
    """The ranges that may pass, or None for everybody: from the field, or where it is empty from the annotation."""
    ranges = sequence(spec.get("loadBalancerSourceRanges"), "spec.loadBalancerSourceRanges")
    if not ranges:
        annotation = annotations.get(SOURCE_RANGES_ANNOTATION)
        if annotation is None or (isinstance(annotation, str) and not annotation.strip()):
            return None
        ranges = list(annotation.split(",")) if isinstance(annotation, str) else [annotation]
    networks = []
    for text in ranges:
        try:
            networks.append(parse_source_range(text))
        except ValueError as fault:
            refusals.add(Reason.INVALID_SOURCE_RANGE, f"source range {fault}; it opens nothing")
    return _collapse(networks)


def parse_source_range(text: object) -> Network:
    """A CIDR as kube-proxy reads it: blanks around it, host bits and decimal leading zeros are understood.

    Raises ValueError with a sentence. Source: Go's net.ParseCIDR before 1.17 (k8s.io/utils/net.ParseCIDRSloppy).
    """
    if not isinstance(text, str) or len(text) > 128:
        raise ValueError(f"{quote(text)} is not a CIDR")
    address, slash, length = text.strip(" \t\r\n").partition("/")
    if not slash:
        raise ValueError(f"{quote(text)} has no prefix length: write e.g. 192.0.2.1/32")
    if not _PREFIX_LENGTH.fullmatch(length) or "%" in address:
        raise ValueError(f"{quote(text)} is not a CIDR such as 192.0.2.0/24")
    try:
        if octets := _IPV4_SLOPPY.fullmatch(address):
            return IPv4Network((".".join(str(int(octet)) for octet in octets.groups()), int(length)), strict=False)
        network = IPv6Network((address, int(length)), strict=False)
    except ValueError:
        raise ValueError(f"{quote(text)} is not a CIDR such as 192.0.2.0/24") from None
    mapped = network.network_address.ipv4_mapped
    if mapped is not None and network.prefixlen >= 96:
        raise ValueError(f"{quote(text)} is an IPv4 range in IPv6 notation: write {mapped}/{network.prefixlen - 96}")
    return network


def _collapse(networks: list[Network]) -> tuple[Network, ...]:
    """Without duplicates and overlaps: a concatenated set of nft never merges ranges by itself."""
    v4 = collapse_addresses(network for network in networks if isinstance(network, IPv4Network))
    v6 = collapse_addresses(network for network in networks if isinstance(network, IPv6Network))
    return (*v4, *v6)


def _limit(annotations: Mapping[str, object], before: RateLimit | None, refusals: _Refusals) -> RateLimit | None:
    """The annotation's limit; where it is invalid, the one before it stays."""
    text = annotations.get(RATELIMIT_ANNOTATION)
    if text is None:
        return None
    try:
        if not isinstance(text, str):
            raise RateLimitError(f"{quote(text)} is not a text: put it in quotes")
        return parse_ratelimit(text)
    except RateLimitError as fault:
        stays = f"the previous limit, {before}, stays" if before else "the Service is not limited"
        refusals.add(Reason.INVALID_RATELIMIT, f"annotation {RATELIMIT_ANNOTATION}: {fault}; {stays}")
        return before


# --- shapes -------------------------------------------------------------------------------------------


def mapping(value: object, what: str) -> Mapping[str, object]:
    """`value` if it is an object; {} if it is absent."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed(f"{what} is not an object but {quote(value)}")
    return value


def sequence(value: object, what: str) -> list[object]:
    """`value` if it is a list; [] if it is absent."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise Malformed(f"{what} is not a list but {quote(value)}")
    return value
