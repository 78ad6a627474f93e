"""MetalLB's configuration: the cluster's addresses, and its BGP peers.

It consists of IPAddressPool, BGPAdvertisement and BGPPeer objects, and of the AddressPools of
MetalLB 0.13; up to MetalLB 0.12, of one ConfigMap. As in MetalLB, one invalid part makes the whole
configuration invalid. Then the last good configuration stays in force.
Source: MetalLB's internal/config and api/v1beta1.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from nftsync.objects.address import Address, Range, read_address, unmapped
from nftsync.objects.aggregation import (
    UNAGGREGATED,
    Lengths,
    Prefixes,
    is_advertised,
    parse_addresses,
    parse_lengths,
    too_narrow,
)
from nftsync.objects.names import (
    ADVERTISEMENT,
    FORMER_POOL,
    LEGACY,
    PEER,
    POOL,
    Kind,
    Malformed,
    Name,
    ObjectRef,
    Reason,
    Rejection,
    identify,
    mapping,
    quote,
    sequence,
)
from nftsync.objects.selector import Selector, parse_labels, parse_selectors, parse_texts

_LONGEST_ERROR = 1000  # characters


@dataclass(frozen=True, slots=True)
class Pool:
    """Addresses that MetalLB may give to Services.

    source: the object that defines the pool.
    advertised: whether MetalLB announces any of them over BGP.
    """

    name: str
    source: str
    ranges: tuple[Range, ...]
    advertised: bool

    @property
    def kind(self) -> str:
        """The kind of the object that defines it."""
        return self.source.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class MetalLBConfig:
    """One valid configuration.

    peers: the addresses to which the cluster's speakers connect. No Service has such an address.
    """

    pools: tuple[Pool, ...] = ()
    peers: frozenset[Address] = frozenset()

    @property
    def of_pool_objects(self) -> bool:
        """Whether it comes from pool objects, at least one, and not from the ConfigMap."""
        return any(pool.kind in (POOL.name, FORMER_POOL.name) for pool in self.pools)


@dataclass(frozen=True, slots=True)
class AddressPool:
    """An IPAddressPool, or one of its forerunners (AddressPool, metallb.io/v1beta1 and v1alpha1).

    prefixes: those of its ranges.
    advertised: whether it says so itself, without a BGPAdvertisement. Only an AddressPool does.
    """

    name: Name
    uid: str
    labels: tuple[tuple[str, str], ...] = ()
    ranges: tuple[Range, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    kind: Kind = POOL
    prefixes: Prefixes = frozenset()
    advertised: bool = False

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef(self.kind.name, str(self.name), self.uid)


@dataclass(frozen=True, slots=True)
class Advertisement:
    """A BGPAdvertisement (metallb.io/v1beta1).

    It advertises the pools that it names or selects; all pools if it does neither.
    aggregation: lengths of the advertised prefixes.
    """

    name: Name
    uid: str
    pools: frozenset[str] = frozenset()
    selectors: tuple[Selector, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    aggregation: Lengths = UNAGGREGATED

    def covers(self, pool: AddressPool) -> bool:
        labels = dict(pool.labels)
        return pool.kind is POOL and (
            (not self.pools and not self.selectors)
            or pool.name.name in self.pools
            or any(selector.matches(labels) for selector in self.selectors)
        )


@dataclass(frozen=True, slots=True)
class Peer:
    """A BGPPeer (metallb.io/v1beta2). nftsync keeps only its address, never its password."""

    name: Name
    uid: str
    address: Address | None = None  # None for a peer with an interface in place of an address
    rejections: tuple[Rejection, ...] = ()


Judged = tuple[MetalLBConfig | None, tuple[Rejection, ...]]  # a configuration, or why there is none


@dataclass(frozen=True, slots=True)
class ConfigMap:
    """A ConfigMap that can be that of MetalLB up to 0.12.

    text: None if there is none.
    is_marked, is_similar: whether its name or label, or its text, looks like MetalLB's.
    read: reads the text when it is asked for. Others can write many large ConfigMaps that never count.
    """

    name: Name
    uid: str
    text: str | None
    is_marked: bool
    is_similar: bool
    read: Callable[[], Judged] = field(compare=False)

    @property
    def configuration(self) -> MetalLBConfig | None:
        """None if it is invalid."""
        return self.read()[0]

    @property
    def rejections(self) -> tuple[Rejection, ...]:
        return self.read()[1]

    @property
    def source(self) -> str:
        """The source of its pools."""
        return str(ObjectRef(LEGACY.name, str(self.name)))


@dataclass(frozen=True, slots=True)
class ConfigurationState:
    """What a part of MetalLB says of its configuration (metallb.io/v1beta1). error: "" for nothing bad."""

    name: Name
    uid: str
    error: str = ""


def configuration(
    pools: Iterable[AddressPool],
    advertisements: Iterable[Advertisement],
    peers: Iterable[Peer],
    legacy: Iterable[ConfigMap],
) -> Judged:
    """The configuration, and the rejections that make it invalid.

    The configuration is None if there is none, or if it is invalid.
    MetalLB does not read the ConfigMap in a cluster with pool objects.
    """
    ordered, advertisements, peers = sorted(pools, key=_position), list(advertisements), list(peers)
    config_map = next(iter(legacy), None)
    if config_map and not ordered:
        return config_map.configuration, config_map.rejections
    configured = tuple(
        Pool(
            pool.name.name,
            str(ObjectRef(pool.kind.name, str(pool.name))),
            pool.ranges,
            advertised=pool.advertised or any(advertisement.covers(pool) for advertisement in advertisements),
        )
        for pool in ordered
    )
    objects: tuple[AddressPool | Advertisement | Peer, ...] = (*ordered, *advertisements, *peers)
    rejections = [rejection for parsed in objects for rejection in parsed.rejections]
    refs = {pool.source: parsed.ref for pool, parsed in zip(configured, ordered, strict=True)}
    # A pool can have tens of thousands of overlaps, so only the first one of each is told.
    overlapping = {pool.source: (pool, message) for pool, message in reversed(tuple(overlaps(configured)))}
    for pool, message in (*_doubles(configured), *reversed(overlapping.values())):
        # MetalLB 0.14 does not read AddressPools, but an upgrade leaves them in the cluster.
        is_former = pool.kind == FORMER_POOL.name and ordered[0].kind is POOL
        hint = "; delete this AddressPool if your MetalLB is 0.14 or newer" if is_former else ""
        rejections.append(Rejection(refs[pool.source], Reason.INVALID_POOLS, message + hint))
    for advertisement in advertisements:
        for parsed in filter(advertisement.covers, ordered):
            if complaint := too_narrow(advertisement.aggregation, parsed.prefixes):
                ref = ObjectRef(ADVERTISEMENT.name, str(advertisement.name), advertisement.uid)
                complaint = f"{complaint} of the pool {quote(parsed.name.name)}"
                rejections.append(Rejection(ref, Reason.INVALID_POOLS, complaint))
                break
    if rejections or not ordered:
        return None, tuple(rejections)
    return MetalLBConfig(configured, frozenset(peer.address for peer in peers if peer.address is not None)), ()


def _position(pool: AddressPool) -> tuple[bool, Name]:
    """A sort key: what is wrong between pools of both kinds is told of the AddressPool."""
    return pool.kind is not POOL, pool.name


def _doubles(pools: Iterable[Pool]) -> Iterator[tuple[Pool, str]]:
    """The pools with the name of an earlier one, each with a sentence."""
    sources: dict[str, str] = {}
    for pool in pools:
        if (first := sources.setdefault(pool.name, pool.source)) != pool.source:
            yield pool, f"{first} has the same name"


def overlaps(pools: Iterable[Pool]) -> Iterator[tuple[Pool, str]]:
    """Ranges that overlap another one, of the same or another pool, each with a sentence."""
    ranges = [(part, pool) for pool in pools for part in pool.ranges]
    widest: tuple[Range, Pool] | None = None
    for part, pool in sorted(ranges, key=lambda entry: (*entry[0].position(), -int(entry[0].last))):
        if widest is not None and part.overlaps(widest[0]):
            yield pool, f"{part} overlaps {widest[0]} of the pool {quote(widest[1].name)}"
        if widest is None or (part.version, int(part.last)) > (widest[0].version, int(widest[0].last)):
            widest = part, pool


def parse_pool(raw: object, _before: AddressPool | None) -> AddressPool:
    """An IPAddressPool from its API object. Raises Malformed if its name is not valid."""
    name, uid = identify(raw)
    try:
        resource = mapping(raw, "the object")
        spec = mapping(resource.get("spec"), "spec")
        labels = mapping(mapping(resource.get("metadata"), "metadata").get("labels"), "metadata.labels")
        allocation = mapping(spec.get("serviceAllocation"), "spec.serviceAllocation")
        parse_texts(allocation.get("namespaces"), "spec.serviceAllocation.namespaces")
        parse_selectors(allocation.get("namespaceSelectors"), "spec.serviceAllocation.namespaceSelectors")
        parse_selectors(allocation.get("serviceSelectors"), "spec.serviceAllocation.serviceSelectors")
        ranges, prefixes = parse_addresses(spec.get("addresses"), "spec.addresses")
        return AddressPool(name, uid, tuple(sorted(parse_labels(labels, "metadata.labels"))), ranges, prefixes=prefixes)
    except Malformed as error:
        return AddressPool(name, uid, rejections=_invalid(POOL.name, name, uid, error))


def parse_former_pool(raw: object, _before: AddressPool | None) -> AddressPool:
    """An AddressPool from its API object, v1beta1 or v1alpha1. Raises Malformed if its name is not valid."""
    name, uid = identify(raw)
    try:
        spec = mapping(mapping(raw, "the object").get("spec"), "spec")
        ranges, prefixes = parse_addresses(spec.get("addresses"), "spec.addresses")
        advertisements = sequence(spec.get("bgpAdvertisements"), "spec.bgpAdvertisements")
        advertised = is_advertised(
            spec.get("protocol"),
            prefixes,
            what="the pool",
            advertisements=[
                parse_lengths(mapping(entry, "an entry of spec.bgpAdvertisements")) for entry in advertisements
            ],
        )
        return AddressPool(name, uid, ranges=ranges, kind=FORMER_POOL, prefixes=prefixes, advertised=advertised)
    except Malformed as error:
        return AddressPool(name, uid, rejections=_invalid(FORMER_POOL.name, name, uid, error), kind=FORMER_POOL)


def parse_advertisement(raw: object, _before: Advertisement | None) -> Advertisement:
    """A BGPAdvertisement from its API object. Raises Malformed if its name is not valid."""
    name, uid = identify(raw)
    try:
        spec = mapping(mapping(raw, "the object").get("spec"), "spec")
        parse_texts(spec.get("peers"), "spec.peers")
        parse_selectors(spec.get("nodeSelectors"), "spec.nodeSelectors")
        return Advertisement(
            name,
            uid,
            parse_texts(spec.get("ipAddressPools"), "spec.ipAddressPools"),
            parse_selectors(spec.get("ipAddressPoolSelectors"), "spec.ipAddressPoolSelectors"),
            aggregation=parse_lengths(spec),
        )
    except Malformed as error:
        return Advertisement(name, uid, rejections=_invalid(ADVERTISEMENT.name, name, uid, error))


def parse_peer(raw: object, _before: Peer | None) -> Peer:
    """A BGPPeer from its API object. Raises Malformed if its name is not valid."""
    name, uid = identify(raw)
    try:
        address = mapping(mapping(raw, "the object").get("spec"), "spec").get("peerAddress")
        return Peer(name, uid, None if address in (None, "") else parse_peer_address(address, "spec.peerAddress"))
    except Malformed as error:
        return Peer(name, uid, rejections=_invalid(PEER.name, name, uid, error))


def parse_state(raw: object, _before: ConfigurationState | None) -> ConfigurationState:
    """A ConfigurationState from its API object. Raises Malformed if its name is not valid."""
    name, uid = identify(raw)
    try:
        status = mapping(mapping(raw, "the object").get("status"), "status")
        conditions = [mapping(each, "a condition") for each in sequence(status.get("conditions"), "conditions")]
        errors = [
            str(each.get("message"))
            for each in conditions
            if (each.get("status"), each.get("reason")) == ("False", "ConfigurationError")
        ]
        if not errors and status.get("result") == "Invalid":
            errors = [str(status.get("errorSummary"))]
        return ConfigurationState(name, uid, "; ".join(errors)[:_LONGEST_ERROR])
    except Malformed:  # it is only for people
        return ConfigurationState(name, uid)


def _invalid(kind: str, name: Name, uid: str, error: Malformed) -> tuple[Rejection, ...]:
    return (Rejection(ObjectRef(kind, str(name), uid), Reason.INVALID_POOLS, str(error)),)


def parse_peer_address(value: object, what: str) -> Address:
    """The address of a BGP speaker. Raises Malformed."""
    return unmapped(read_address(value, f"{what} {quote(value)} is not an IP address"))
