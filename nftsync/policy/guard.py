"""Decides which addresses nftsync may open: addresses of MetalLB's pools, never the router's own.

Everybody with the right to patch a Service's status can write any address into it
(CVE-2020-8554). So nftsync does not trust a Service alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nftsync.config import AddressPolicy, PoolMode
from nftsync.objects.address import Address, AddressSet, Network, Range
from nftsync.objects.metallb import MetalLBConfig, Pool
from nftsync.objects.names import Reason, quote

_NAMED = 5  # pools that a message names


@dataclass(frozen=True, slots=True)
class Guard:
    """Judges addresses.

    legal: the addresses that may be opened, None for all.
    pools: the pools in use, None while no pool guards anything.
    reserved: addresses that nftsync never opens.
    cluster: addresses that only the cluster uses. From the public NIC, packets reach them through a
    pinhole or not at all.
    held: the addresses of the pools, allowed or not.  names: the pools' names, for people.
    """

    legal: AddressSet | None = None
    pools: tuple[Pool, ...] | None = None
    reserved: frozenset[Address] = frozenset()
    cluster: AddressSet = field(default_factory=AddressSet)
    held: AddressSet = field(default_factory=AddressSet, compare=False)  # both follow from the pools
    names: str = field(default="", compare=False)

    @classmethod
    def of(
        cls,
        address_policy: AddressPolicy,
        known: MetalLBConfig | None,
        reserved: Iterable[Address] = (),
        attached: Iterable[Network] = (),
    ) -> Guard:
        """The guard of a configuration.

        known: MetalLB's last good configuration.
        reserved: the router's own addresses and its BGP peers'.
        attached: the networks in which the router has an address.
        """
        configuration = None if address_policy.pool_mode is PoolMode.IGNORED else known
        if configuration is None and address_policy.pool_mode is PoolMode.REQUIRED:
            configuration = MetalLBConfig()
        pools, legal, held, reserved = None, None, AddressSet(), address_policy.reserved.union(reserved)
        if configuration is not None:
            pools = tuple(pool for pool in configuration.pools if pool.advertised or not address_policy.advertised_only)
            legal = held = AddressSet.of(each for pool in pools for each in pool.ranges)
            reserved |= configuration.peers
        if address_policy.allowed:
            allowed = AddressSet.of(map(Range.of, address_policy.allowed))
            legal = allowed if legal is None else legal & allowed
        near = frozenset(address for address in reserved if legal is None or address in legal)
        return cls(legal, pools, near, _cluster(legal, attached), held, _names(pools or ()))

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


def _names(pools: tuple[Pool, ...]) -> str:
    shown = [f"{quote(pool.name)[1:-1]}: {_some([each.element for each in pool.ranges], ', ')}" for pool in pools[:_NAMED]]
    return _some([*shown, *("" for _ in pools[_NAMED:])], "; ")


def _some(texts: list[str], between: str) -> str:
    more = len(texts) - _NAMED
    return between.join(texts[:_NAMED]) + (f"{between}and {more} more" if more > 0 else "")
