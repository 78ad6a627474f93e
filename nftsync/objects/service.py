"""Parses a Service into a frozen type. No other module checks it again.

Every input is hostile. No dict leaves this module: it returns a Service, or None for an object that
is not ours. Rejections tell the Service's owner about faults.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from nftsync.objects.address import Address, Network, collapse, parse_address, parse_source_range
from nftsync.objects.names import (
    Malformed,
    Name,
    ObjectRef,
    Reason,
    Rejection,
    identify,
    mapping,
    quote,
    require,
    sequence,
)
from nftsync.objects.ratelimit import RateLimit, parse_ratelimit

RATELIMIT_ANNOTATION = "ratelimit"
EGRESS_ANNOTATION = "nftsync.io/ratelimit-egress"
SOURCE_RANGES_ANNOTATION = "service.beta.kubernetes.io/load-balancer-source-ranges"

Refusal = tuple[Reason, str]  # of a part of the Service, with a sentence

_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")  # metav1.Time


class Protocol(StrEnum):
    """Transport protocols of a Service port, by nft's names."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


class Port(NamedTuple):
    """One entry of spec.ports: a protocol and a port from 1 to 65535."""

    protocol: Protocol
    number: int


@dataclass(frozen=True, slots=True)
class Service:
    """The valid parts of a Service of type LoadBalancer, and rejections of the others.

    created: RFC 3339 UTC in seconds, "" if unknown.
    load_balancer_class: "" for none, None if unknown.
    addresses: status.loadBalancer.ingress[].ip.
    sources: None for everybody; otherwise only these ranges, collapsed; () for nobody.
    limit: of packets to each address and port.  limit_egress: of packets from there to the public network.
    """

    name: Name
    uid: str
    created: str
    load_balancer_class: str | None
    addresses: tuple[Address, ...]
    ports: tuple[Port, ...]
    sources: tuple[Network, ...] | None
    limit: RateLimit | None
    rejections: tuple[Rejection, ...]
    limit_egress: RateLimit | None = None

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef("Service", str(self.name), self.uid)


def parse_service(raw: object, before: Service | None) -> Service | None:
    """A Service from its API object; None if it is not of type LoadBalancer.

    before: the last parsed version; its good parts stay if the new version is refused.
    Raises Malformed if the name is not valid.
    """
    name, uid = identify(raw)
    if before is not None and before.uid != uid:
        before = None  # another object of the same name
    try:
        service = mapping(raw, "the object")
        spec = mapping(service.get("spec"), "spec")
        require(bool(spec), "there is no spec")
        if spec.get("type") != "LoadBalancer":
            return None  # even if its status lists addresses
        metadata = mapping(service.get("metadata"), "metadata")
        annotations = mapping(metadata.get("annotations"), "metadata.annotations")
        created, load_balancer_class = metadata.get("creationTimestamp"), spec.get("loadBalancerClass") or ""
        if not isinstance(load_balancer_class, str):
            raise Malformed(f"spec.loadBalancerClass {quote(load_balancer_class)} is not a text")
        refusals: list[Refusal] = []
        parsed = Service(
            name=name,
            uid=uid,
            created=created if isinstance(created, str) and _TIMESTAMP.fullmatch(created) else "",
            load_balancer_class=load_balancer_class,
            addresses=tuple(dict.fromkeys(_addresses(service, refusals))),
            ports=tuple(dict.fromkeys(_ports(spec, refusals))),
            sources=_sources(spec, annotations, refusals),
            limit=_limit(annotations, RATELIMIT_ANNOTATION, before.limit if before else None, refusals),
            limit_egress=_limit(annotations, EGRESS_ANNOTATION, before.limit_egress if before else None, refusals),
            rejections=tuple(Rejection(ObjectRef("Service", str(name), uid), *refusal) for refusal in refusals),
        )
        require(bool(spec.get("ports")), "spec.ports is empty")
    except Malformed as error:
        stays = "its previous version stays" if before else "it opens nothing"
        closed = Service(name, uid, "", "", (), (), (), None, ())
        rejection = Rejection(closed.ref, Reason.MALFORMED, f"{error}; {stays}")
        return replace(before or closed, rejections=(rejection,))
    return parsed


def _addresses(service: Mapping[str, object], refusals: list[Refusal]) -> Iterator[Address]:
    load_balancer = mapping(mapping(service.get("status"), "status").get("loadBalancer"), "status.loadBalancer")
    for entry in sequence(load_balancer.get("ingress"), "status.loadBalancer.ingress"):
        text = mapping(entry, "an entry of status.loadBalancer.ingress").get("ip")
        try:
            if text not in (None, ""):  # a host name opens nothing
                yield parse_address(text)
        except Malformed as error:
            refusals.append((Reason.INVALID_ADDRESS, f"status.loadBalancer.ingress: {error}"))


def _ports(spec: Mapping[str, object], refusals: list[Refusal]) -> Iterator[Port]:
    for entry in sequence(spec.get("ports"), "spec.ports"):
        port = mapping(entry, "an entry of spec.ports")
        number, protocol = port.get("port"), port.get("protocol")
        if protocol in (None, ""):
            protocol = "TCP"
        if type(number) is not int or not 1 <= number <= 65535:
            sentence = f"spec.ports: port {quote(number)} is not a whole number from 1 to 65535"
            refusals.append((Reason.INVALID_PORT, sentence))
        elif not isinstance(protocol, str) or protocol not in Protocol.__members__:
            sentence = f"spec.ports: protocol {quote(protocol)} of port {number} is not TCP, UDP or SCTP"
            refusals.append((Reason.INVALID_PROTOCOL, sentence))
        else:
            yield Port(Protocol[protocol], number)


def _sources(
    spec: Mapping[str, object], annotations: Mapping[str, object], refusals: list[Refusal]
) -> tuple[Network, ...] | None:
    """The source ranges that may pass, or None for everybody.

    They come from the field; if it is empty, from the annotation.
    """
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
        except Malformed as error:
            refusals.append((Reason.INVALID_SOURCE_RANGE, f"source range {error}; it opens nothing"))
    return collapse(networks)


def _limit(
    annotations: Mapping[str, object], annotation: str, before: RateLimit | None, refusals: list[Refusal]
) -> RateLimit | None:
    """The annotation's limit; the previous limit stays if the annotation is invalid."""
    text = annotations.get(annotation)
    if text is None:
        return None
    try:
        if not isinstance(text, str):
            raise Malformed(f"{quote(text)} is not a text: put it in quotes")
        return parse_ratelimit(text)
    except Malformed as error:
        what = "the Service" if annotation == RATELIMIT_ANNOTATION else "what it sends"
        stays = f"the previous limit, {before}, stays" if before else f"{what} is not limited"
        refusals.append((Reason.INVALID_RATELIMIT, f"annotation {annotation}: {error}; {stays}"))
        return before
