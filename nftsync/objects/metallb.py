"""MetalLB's configuration: the cluster's addresses, and its BGP peers.

It consists of IPAddressPool, BGPAdvertisement and BGPPeer objects; up to MetalLB 0.12, of one
ConfigMap. As in MetalLB, one invalid part makes the whole configuration invalid. Then the last good
configuration stays in force.
Source: MetalLB's internal/config and api/v1beta1.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from nftsync.objects.address import Address, Range, parse_range, read_address, unmapped
from nftsync.objects.names import (
    ADVERTISEMENT,
    PEER,
    POOL,
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


@dataclass(frozen=True, slots=True)
class MetalLBConfig:
    """One valid configuration.

    peers: the addresses to which the cluster's speakers connect. No Service has such an address.
    """

    pools: tuple[Pool, ...] = ()
    peers: frozenset[Address] = frozenset()

    @property
    def of_pool_objects(self) -> bool:
        """Whether it comes from IPAddressPools, at least one, and not from the ConfigMap."""
        return any(pool.source.startswith(POOL.name) for pool in self.pools)


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


@dataclass(frozen=True, slots=True)
class AddressPool:
    """An IPAddressPool (metallb.io/v1beta1)."""

    name: Name
    uid: str
    labels: tuple[tuple[str, str], ...] = ()
    ranges: tuple[Range, ...] = ()
    rejections: tuple[Rejection, ...] = ()


@dataclass(frozen=True, slots=True)
class Advertisement:
    """A BGPAdvertisement (metallb.io/v1beta1).

    It advertises the pools that it names or selects; all pools if it does neither.
    """

    name: Name
    uid: str
    pools: frozenset[str] = frozenset()
    selectors: tuple[Selector, ...] = ()
    rejections: tuple[Rejection, ...] = ()

    def covers(self, pool: AddressPool) -> bool:
        labels = dict(pool.labels)
        return (
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


@dataclass(frozen=True, slots=True)
class ConfigMap:
    """The ConfigMap of MetalLB up to 0.12; configuration is None if it is invalid."""

    name: Name
    uid: str
    configuration: MetalLBConfig | None = None
    rejections: tuple[Rejection, ...] = ()


def configuration(
    pools: Iterable[AddressPool],
    advertisements: Iterable[Advertisement],
    peers: Iterable[Peer],
    legacy: Iterable[ConfigMap],
) -> tuple[MetalLBConfig | None, tuple[Rejection, ...]]:
    """The configuration, and the rejections that make it invalid.

    The configuration is None if there is none, or if it is invalid.
    MetalLB does not read the ConfigMap in a cluster with an IPAddressPool.
    """
    ordered, advertisements, peers = sorted(pools, key=lambda pool: pool.name), list(advertisements), list(peers)
    config_map = next(iter(legacy), None)
    if config_map and not ordered:
        return config_map.configuration, config_map.rejections
    configured = tuple(
        Pool(
            pool.name.name,
            f"{POOL.name} {pool.name}",
            pool.ranges,
            advertised=any(advertisement.covers(pool) for advertisement in advertisements),
        )
        for pool in ordered
    )
    objects: tuple[AddressPool | Advertisement | Peer, ...] = (*ordered, *advertisements, *peers)
    rejections = [rejection for parsed in objects for rejection in parsed.rejections]
    refs = {pool.name.name: ObjectRef(POOL.name, str(pool.name), pool.uid) for pool in ordered}
    rejections += [Rejection(refs[pool.name], Reason.INVALID_POOLS, message) for pool, message in overlaps(configured)]
    if rejections or not ordered:
        return None, tuple(rejections)
    return MetalLBConfig(configured, frozenset(peer.address for peer in peers if peer.address is not None)), ()


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
        _texts(allocation.get("namespaces"), "spec.serviceAllocation.namespaces")
        _selectors(allocation.get("namespaceSelectors"), "spec.serviceAllocation.namespaceSelectors")
        _selectors(allocation.get("serviceSelectors"), "spec.serviceAllocation.serviceSelectors")
        ranges = parse_addresses(spec.get("addresses"), "spec.addresses")
        return AddressPool(name, uid, tuple(sorted(_labels(labels, "metadata.labels"))), ranges)
    except Malformed as error:
        return AddressPool(name, uid, rejections=_invalid(POOL.name, name, uid, error))


def parse_advertisement(raw: object, _before: Advertisement | None) -> Advertisement:
    """A BGPAdvertisement from its API object. Raises Malformed if its name is not valid."""
    name, uid = identify(raw)
    try:
        spec = mapping(mapping(raw, "the object").get("spec"), "spec")
        _texts(spec.get("peers"), "spec.peers")
        _selectors(spec.get("nodeSelectors"), "spec.nodeSelectors")
        pools = _texts(spec.get("ipAddressPools"), "spec.ipAddressPools")
        return Advertisement(
            name, uid, pools, _selectors(spec.get("ipAddressPoolSelectors"), "spec.ipAddressPoolSelectors")
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


def _invalid(kind: str, name: Name, uid: str, error: Malformed) -> tuple[Rejection, ...]:
    return (Rejection(ObjectRef(kind, str(name), uid), Reason.INVALID_POOLS, str(error)),)


def parse_addresses(value: object, what: str) -> tuple[Range, ...]:
    """A pool's list of addresses. Raises Malformed, also for an empty list."""
    entries = sequence(value, what)
    require(bool(entries), f"{what} is empty: a pool needs a CIDR or a range of addresses")
    return tuple(sorted((parse_range(entry) for entry in entries), key=Range.position))


def parse_peer_address(value: object, what: str) -> Address:
    """The address of a BGP speaker. Raises Malformed."""
    return unmapped(read_address(value, f"{what} {quote(value)} is not an IP address"))


def _texts(value: object, what: str) -> frozenset[str]:
    """A list of texts, none of them twice."""
    texts: set[str] = set()
    for text in sequence(value, what):
        if not isinstance(text, str):
            raise Malformed(f"{what} holds {quote(text)}, which is not a text")
        require(text not in texts, f"{what} holds {quote(text)} twice")
        texts.add(text)
    return frozenset(texts)


def _selectors(value: object, what: str) -> tuple[Selector, ...]:
    selectors: list[Selector] = []
    for entry in sequence(value, what):
        raw = mapping(entry, f"an entry of {what}")
        listed = sequence(raw.get("matchExpressions"), f"{what}: matchExpressions")
        expressions = [_expression(expression, what) for expression in listed]
        require(len(set(expressions)) == len(expressions), f"{what} holds an expression twice")
        labels = _labels(mapping(raw.get("matchLabels"), f"{what}: matchLabels"), what)
        selector = Selector(tuple(sorted(labels)), tuple(expressions))
        require(selector not in selectors, f"{what} holds a selector twice")
        selectors.append(selector)
    return tuple(selectors)


def _expression(value: object, what: str) -> tuple[str, str, frozenset[str]]:
    raw = mapping(value, f"an expression of {what}")
    key, operator = raw.get("key"), raw.get("operator")
    values = _texts(raw.get("values"), f"{what}: values")
    if not isinstance(key, str) or not key:
        raise Malformed(f"{what}: {quote(key)} is not a label's key")
    if not isinstance(operator, str) or operator not in _OPERATORS:
        raise Malformed(f"{what}: the operator {quote(operator)} is not In, NotIn, Exists or DoesNotExist")
    require(
        bool(values) == (operator in ("In", "NotIn")),
        f"{what}: In and NotIn need values, Exists and DoesNotExist have none",
    )
    return key, operator, values


def _labels(labels: Mapping[str, object], what: str) -> Iterator[tuple[str, str]]:
    for key, value in labels.items():
        if not isinstance(value, str):
            raise Malformed(f"{what}: the label {quote(key)} is not a text but {quote(value)}")
        yield key, value
