"""Which addresses may be opened: those that MetalLB's pools hold, and never the router's own.

Whoever may patch a Service's status can write any address into it (CVE-2020-8554), so a Service's word alone is not enough.
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

    legal: None if every address is.  pools: those that say so, None while no pool guards anything.  held: what is in them, allowed
    or not.  names: of them, for people.  reserved: never opened.  cluster: addresses that are the cluster's alone: from the public
    NIC one comes to them through a pinhole or not at all.
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
        """known: MetalLB's last good configuration.  reserved: the router's own addresses and its BGP peers'.

        attached: the networks that the router has an address in.
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
        """Whether pools decide what may be opened."""
        return self.pools is not None

    def admits(self, address: Address) -> bool:
        return address not in self.reserved and (self.legal is None or address in self.legal)

    def refusal(self, address: Address) -> tuple[Reason, str] | None:
        """Why an address stays closed; None if it does not."""
        if address in self.reserved:
            return Reason.RESERVED_ADDRESS, f"{address} is an address of the router or of a BGP peer; it stays closed"
        if self.admits(address):
            return None
        if self.pools is None or address in self.held:
            return Reason.OUTSIDE_POOLS, f"{address} is outside of allowed_prefixes; it stays closed"
        if not self.pools:
            return Reason.OUTSIDE_POOLS, f"no pool of MetalLB's that counts holds {address}; it stays closed"
        return Reason.OUTSIDE_POOLS, f"{address} is in none of MetalLB's pools that count ({self.names}); it stays closed"


UNGUARDED = Guard()


def _cluster(legal: AddressSet | None, attached: Iterable[Network]) -> AddressSet:
    """The legal addresses without networks that the router itself is in and a pool swallows whole.

    Such a pool (0.0.0.0/0, 10.0.0.0/8) is wider than the cluster: hosts beside the router are not the cluster's.
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
