"""Decides which addresses nftsync may open: addresses of MetalLB's pools, never the router's own.

Everybody with the right to patch a Service's status can write any address into it
(CVE-2020-8554). So nftsync does not trust a Service alone.

MetalLB's last good configuration stays in force while a later one is invalid. It stays for good if
MetalLB's objects vanish: the cluster then keeps its addresses and gets no others. A part of it stays
in force while nftsync cannot read its kind of objects.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from nftsync.config import AddressPolicy, PoolMode
from nftsync.objects.address import Address, AddressSet, Network, Range
from nftsync.objects.metallb import (
    AddressPool,
    Advertisement,
    ConfigMap,
    ConfigurationState,
    MetalLBConfig,
    Peer,
    Pool,
    configuration,
)
from nftsync.objects.names import (
    ADVERTISEMENT,
    FORMER_POOL,
    LEGACY,
    PEER,
    POOL,
    STATE,
    Name,
    ObjectRef,
    Reason,
    Rejection,
    quote,
    some,
)

_NAMED = 5  # pools that a message names
_NOT_ADVERTISED = "no pool is advertised over BGP (advertised_pools_only)"


@dataclass(frozen=True, slots=True)
class Guard:
    """Judges addresses.

    legal: the addresses that may be opened, None for all.
    pools: the pools in use, None while no pool guards anything.
    reserved: addresses that nftsync never opens.
    cluster: addresses that only the cluster uses. From the public NIC, packets reach them through a
    pinhole or not at all.
    held: the addresses of the pools, allowed or not.  names: the pools' names, for people.
    no_pool: why none of the present pools counts, for people; "" if one does, or if there is none.
    """

    legal: AddressSet | None = None
    pools: tuple[Pool, ...] | None = None
    reserved: frozenset[Address] = frozenset()
    cluster: AddressSet = field(default_factory=AddressSet)
    held: AddressSet = field(default_factory=AddressSet, compare=False)  # both follow from the pools
    names: str = field(default="", compare=False)
    no_pool: str = field(default="", compare=False)

    @classmethod
    def of(
        cls,
        address_policy: AddressPolicy,
        known: MetalLBConfig | None,
        reserved: Iterable[Address] = (),
        attached: Iterable[Network] = (),
    ) -> "Guard":
        """The guard of a configuration.

        known: MetalLB's last good configuration.
        reserved: the router's own addresses and its BGP peers'.
        attached: the networks in which the router has an address.
        """
        config = None if address_policy.pool_mode is PoolMode.IGNORED else known
        if config is None and address_policy.pool_mode is PoolMode.REQUIRED:
            config = MetalLBConfig()
        pools, legal, held, reserved = None, None, AddressSet(), address_policy.reserved.union(reserved)
        if config is not None:
            pools = tuple(pool for pool in config.pools if pool.advertised or not address_policy.advertised_only)
            legal = held = AddressSet.of(part for pool in pools for part in pool.ranges)
            reserved |= config.peers
        if address_policy.allowed:
            allowed = AddressSet.of(map(Range.of, address_policy.allowed))
            legal = allowed if legal is None else legal & allowed
        near = frozenset(address for address in reserved if legal is None or address in legal)
        no_pool = _NOT_ADVERTISED if config is not None and config.pools and not pools else ""
        return cls(legal, pools, near, _cluster(legal, attached), held, _names(pools or ()), no_pool)

    @property
    def guarded(self) -> bool:
        """Whether pools decide which addresses may be opened."""
        return self.pools is not None

    def admits(self, address: Address) -> bool:
        return address not in self.reserved and (self.legal is None or address in self.legal)

    def refusal(self, address: Address) -> tuple[Reason, str] | None:
        """Why an address stays closed; None if it may be opened."""
        if address in self.reserved:
            return Reason.RESERVED_ADDRESS, f"{address} is an address of the router or of a BGP peer; it stays closed"
        if self.admits(address):
            return None
        if self.pools is None or address in self.held:
            return Reason.OUTSIDE_POOLS, f"{address} is outside of allowed_prefixes; it stays closed"
        if not self.pools:
            if self.no_pool:
                return Reason.OUTSIDE_POOLS, f"{self.no_pool}; {address} stays closed"
            return Reason.OUTSIDE_POOLS, f"MetalLB has no usable pool for {address}; it stays closed"
        return Reason.OUTSIDE_POOLS, f"{address} is outside of MetalLB's usable pools ({self.names}); it stays closed"


UNGUARDED = Guard()


def _cluster(legal: AddressSet | None, attached: Iterable[Network]) -> AddressSet:
    """The legal addresses without the router's own networks that lie completely in a pool.

    Such a pool (0.0.0.0/0, 10.0.0.0/8) is wider than the cluster: the hosts of the router's networks
    do not belong to the cluster.
    """
    if legal is None:
        return AddressSet()
    networks = (Range.of(network) for network in attached if network.num_addresses > 1)
    return legal - AddressSet.of(network for network in networks if legal.covers(network))


def _names(pools: Collection[Pool]) -> str:
    texts = (
        f"{quote(pool.name)[1:-1]}: {_some((part.element for part in pool.ranges), len(pool.ranges), ', ')}"
        for pool in pools
    )
    return _some(texts, len(pools), "; ")


def _some(texts: Iterable[str], count: int, between: str) -> str:
    more = f"{between}and {count - _NAMED} more" if count > _NAMED else ""
    return between.join(islice(texts, _NAMED)) + more


GRACE_PERIOD = 0.3  # seconds without a change until nftsync believes that missing pools are deleted
MAX_GRACE_PERIOD = 0.6  # the same, in seconds since the first change


@dataclass(frozen=True, slots=True)
class MetalLBObjects:
    """MetalLB's objects at one moment.

    pools: IPAddressPools and AddressPools.
    unreadable: the kinds that the server does not serve, or not to nftsync; or that a file holds and
    nftsync cannot read there.
    config_map: the name of MetalLB's ConfigMap; "" to find it by its looks.
    """

    pools: tuple[AddressPool, ...] = ()
    advertisements: tuple[Advertisement, ...] = ()
    peers: tuple[Peer, ...] = ()
    config_maps: tuple[ConfigMap, ...] = ()
    states: tuple[ConfigurationState, ...] = ()
    unreadable: frozenset[str] = frozenset()
    config_map: str = ""

    @property
    def speakers(self) -> frozenset[Address]:
        """The addresses of the BGPPeers, also while there is no pool."""
        return frozenset(peer.address for peer in self.peers if peer.address is not None)

    def judge(self, known: MetalLBConfig | None) -> tuple[MetalLBConfig | None, tuple[Rejection, ...]]:
        """The configuration of these objects, None if it is not good, and its rejections.

        known: the last good one. nftsync takes unreadable parts from it. Each rejection says which
        pools hold instead.
        An upgrade of MetalLB can leave the old ConfigMap behind. It does not count any more once
        there were pool objects.
        """
        config_map, rejections = self._config_map(known)
        found = None
        if not rejections:
            found, rejections = configuration(self.pools, self.advertisements, self.peers, config_map)
        stays = "; the last good pools stay" if known else "; no pools are known"
        rejections = tuple(replace(rejection, message=rejection.message + stays) for rejection in rejections)
        read = found
        if found is not None and known is not None and found.of_pool_objects:
            found = self._completed(found, known)
        if not rejections and known is not None and (found is None or found != read):
            rejections = tuple(self._kept(found, known))
        return found, (*rejections, *self._refused_by_metallb())

    def _config_map(self, known: MetalLBConfig | None) -> tuple[tuple[ConfigMap, ...], tuple[Rejection, ...]]:
        """The ConfigMap that counts, or a rejection of several that could be MetalLB's.

        Everybody with the right to write ConfigMaps there could add one. So none counts until you name it.
        One that counted before is among them, even if it is gone or looks less like MetalLB's.
        """
        if self.pools or (known is not None and known.of_pool_objects):
            return (), ()
        ordered = sorted(self.config_maps, key=lambda config_map: config_map.name)
        if self.config_map:
            return tuple(each for each in ordered if each.name.name == self.config_map), ()
        looks = [each for each in ordered if each.is_marked] or [each for each in ordered if each.is_similar]
        former = _config_map_of(known)
        others = {former.name} if former and looks and former.namespace == looks[0].name.namespace else set()
        found = sorted({each.name.name for each in looks} | others)
        if len(found) <= 1:
            return tuple(looks), ()
        names = some(found, _NAMED)
        message = f"each of {names} can be MetalLB's: write the name in spec.metallb-configmap of the Nft"
        return (), (Rejection(ObjectRef(LEGACY.name, str(looks[0].name), looks[0].uid), Reason.INVALID_POOLS, message),)

    def _completed(self, found: MetalLBConfig, known: MetalLBConfig) -> MetalLBConfig:
        """The configuration with the parts of the last good one that nftsync can't read any more."""
        announced = {pool.source for pool in known.pools if pool.advertised and ADVERTISEMENT.name in self.unreadable}
        pools = tuple(replace(pool, advertised=pool.advertised or pool.source in announced) for pool in found.pools)
        sources, legal = {pool.source for pool in pools}, AddressSet.of(part for pool in pools for part in pool.ranges)
        unread = tuple(
            pool
            for pool in known.pools
            if pool.kind in self.unreadable & {POOL.name, FORMER_POOL.name}
            and pool.source not in sources
            and not all(map(legal.covers, pool.ranges))  # then another object has taken its place
        )
        peers = found.peers | known.peers if PEER.name in self.unreadable else found.peers
        return MetalLBConfig((*pools, *unread), peers)

    def _kept(self, found: MetalLBConfig | None, known: MetalLBConfig) -> Iterator[Rejection]:
        """What is in force although the cluster does not have it any more."""
        holds = found or known
        kinds = {pool.kind for pool in holds.pools}
        namespace = holds.pools[0].source.partition(" ")[2].partition("/")[0] if holds.pools else ""
        needed = set(kinds)
        if holds.of_pool_objects:
            covered = any(pool.advertised and pool.kind == POOL.name for pool in holds.pools)
            needed |= {ADVERTISEMENT.name} if covered else set()
            needed |= {PEER.name} if holds.peers else set()
        unread = sorted(needed & self.unreadable)
        for kind in unread:
            message = (
                "nftsync cannot read this kind in the cluster, or all of it in the files; its last good objects stay"
            )
            yield Rejection(ObjectRef(kind, namespace), Reason.MISSING_POOLS, message)
        if found is None and not unread:
            kind = min(kinds, default=POOL.name)
            message = f"there is no {kind} any more; the last good pools stay"
            yield Rejection(ObjectRef(kind, namespace), Reason.MISSING_POOLS, message)

    def _refused_by_metallb(self) -> Iterator[Rejection]:
        """The errors of MetalLB's parts, each once: it has a part on each node."""
        by_error: dict[str, list[ConfigurationState]] = {}
        for state in sorted(self.states, key=lambda state: state.name):
            if state.error:
                by_error.setdefault(state.error, []).append(state)
        for error, (first, *others) in list(by_error.items())[:_NAMED]:
            message = f"MetalLB refuses its configuration: {quote(error, 300)}"
            more = f" (and {len(others)} more objects say so)" if others else ""
            ref = ObjectRef(STATE.name, str(first.name), first.uid)
            yield Rejection(ref, Reason.REFUSED_BY_METALLB, message + more, part=error)  # the number grows by and by


def _config_map_of(known: MetalLBConfig | None) -> Name | None:
    """The ConfigMap of a configuration, None if it comes from none or has no pools."""
    sources = (pool.source.partition(" ") for pool in known.pools) if known else ()
    found = (Name(*name.split("/")) for kind, _, name in sources if kind == LEGACY.name)
    return next(found, None)


def _contents(configuration: MetalLBConfig) -> set[object]:
    """The parts of a configuration that can vanish one by one."""
    pools = ((pool.source, advertised) for pool in configuration.pools for advertised in (False, pool.advertised))
    return {*pools, *configuration.peers}


@dataclass(slots=True)
class PoolTracker:
    """Remembers the last good configuration.

    known: the last good configuration, None before the first one.
    speakers: addresses of the present BGPPeers.
    deadline: end of the doubt about missing objects, in the clock's seconds; inf without doubt.
    rejections: of the present configuration; a new tuple after each look.
    """

    known: MetalLBConfig | None
    speakers: frozenset[Address] = frozenset()
    deadline: float = float("inf")
    rejections: tuple[Rejection, ...] = ()
    _missing_since: float | None = None
    _looked: MetalLBObjects | None = None

    def look(self, objects: MetalLBObjects, now: float) -> None:
        """Take MetalLB's complete lists. now: the clock's seconds.

        If somebody removes the kinds, the server deletes their objects one by one. So missing objects
        count as deleted only after a while without a change.
        """
        new = objects != self._looked
        if not new and self._missing_since is None:
            return
        self._looked = objects
        self.speakers = objects.speakers
        found, self.rejections = objects.judge(self.known)
        if found and self.known and _contents(self.known) - _contents(found):
            if self._missing_since is None:
                self._missing_since = now
            if new:
                self.deadline = min(now + GRACE_PERIOD, self._missing_since + MAX_GRACE_PERIOD)
            if now < self.deadline:
                return
        self.relist()
        self.known = found or self.known

    def relist(self) -> None:
        """End the doubt, because the lists are incomplete again."""
        self._missing_since, self.deadline = None, float("inf")
