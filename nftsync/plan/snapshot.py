"""Everything that decides what the kernel should hold, as one frozen value.

Each kind of input is listed (its list is complete), remembered (it counts as it was accepted last) or unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Generic, TypeVar

from nftsync.config import Config, PoolMode
from nftsync.objects.address import Address, AddressSet, Local, Range
from nftsync.objects.metallb import MetalLBConfig
from nftsync.objects.names import Name
from nftsync.objects.nft import NftSpec
from nftsync.objects.service import Service
from nftsync.policy.guard import Guard
from nftsync.ruleset.tables import Elements

T = TypeVar("T")


class Origin(StrEnum):
    """How a value came to be known."""

    LISTED = "listed"  # its list was complete, and is not in doubt
    REMEMBERED = "remembered"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Known(Generic[T]):
    """A value, and how it came to be known."""

    value: T
    origin: Origin

    @property
    def listed(self) -> bool:
        return self.origin is Origin.LISTED


@dataclass(frozen=True, slots=True)
class Interfaces:
    """This machine's network.

    index: the public NIC's (if_nametoindex(3)); 0 while there is none of its name, None where nobody has looked.
    local: the router's addresses, None while they are not known.  peers: the other ends of its BGP sessions.
    """

    index: int | None = None
    local: Local | None = None
    peers: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True)
class LocalChain:
    """The operator's own rules. body: of the file as it is now, None if it can't be used; then `error` says why.

    last_good: the last body of the file that the kernel took.
    """

    body: str | None = ""
    error: str = ""
    last_good: str = ""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the kernel has refused, and why, until it is asked again.

    services: of each the newest version.  unlimited: Services of which it refuses the version that it took before, too, as
    another kernel may, or one that limits were kept from. That version counts without its limit.  out: it refuses even that.
    local_chains: by body.  limits: "" if it takes them.
    """

    services: Mapping[Name, str] = field(default_factory=dict)
    unlimited: frozenset[Name] = frozenset()
    out: frozenset[Name] = frozenset()
    local_chains: Mapping[str, str] = field(default_factory=dict)
    limits: str = ""

    def __bool__(self) -> bool:
        return bool(self.services or self.local_chains or self.limits)

    def of_services(self, blamed: Mapping[Name, str]) -> Verdicts:
        """After the kernel has refused some Services. Where the newest version was refused already, it was the one before."""
        again = self.services.keys() & blamed.keys()
        return replace(
            self,
            services={**self.services, **blamed},
            unlimited=self.unlimited | again,
            out=self.out | (self.unlimited & again),
        )

    def without(self, services: Collection[Name]) -> Verdicts:
        """Of these Services there is something new."""
        if self.services.keys().isdisjoint(services):
            return self
        refused = {name: why for name, why in self.services.items() if name not in services}
        return replace(self, services=refused, unlimited=self.unlimited & refused.keys(), out=self.out & refused.keys())

    def taken(self, remembered: Mapping[Name, Service]) -> Mapping[Name, Service]:
        """The versions that the kernel took last, as far as it still does."""
        if not self.unlimited:
            return remembered
        left = {name: service for name, service in remembered.items() if name not in self.out}
        return left | {name: replace(left[name], limit=None) for name in left.keys() & self.unlimited}


@dataclass(frozen=True)
class Snapshot:
    """All inputs of a plan but the Services, which change too often to be compared as a whole.

    spec: the settings in force.  pools: MetalLB's last good configuration.  speakers: addresses of its BGPPeers, good or not.
    flags: those that the kernel can give our tables.  former: addresses that had pinholes before the guard refused them.
    undecided: elements that stood when this process began, and that nobody has decided about yet.
    first_since_boot: whether what stands was not left by nftsync since the boot; then what is remembered is right, whatever stands.
    """

    config: Config
    services: Origin
    spec: Known[NftSpec | None]
    pools: Known[MetalLBConfig | None]
    speakers: frozenset[Address] = frozenset()
    interfaces: Interfaces = field(default_factory=Interfaces)
    local_chain: LocalChain = field(default_factory=LocalChain)
    flags: frozenset[str] = frozenset()
    former: frozenset[Address] = frozenset()
    undecided: Mapping[str, Elements] = field(default_factory=dict)
    first_since_boot: bool = False
    verdicts: Verdicts = field(default_factory=Verdicts)

    @property
    def complete(self) -> bool:
        """Whether every list is."""
        return self.services is Origin.LISTED and self.spec.listed and self.pools.listed

    @property
    def missing(self) -> str:
        """What was never listed, for people; "" if everything was. Without settings nobody knows where MetalLB is."""
        if self.services is not Origin.LISTED or not self.spec.listed:
            return "the first lists are not complete"
        return "" if self.pools.listed or self.spec.value is None else "MetalLB's configuration is not read yet"

    @cached_property
    def guard(self) -> Guard:
        """What judges addresses. While nothing is known of pools, and they would count, no address passes that was not open."""
        address_policy, local = self.config.address_policy, self.interfaces.local or Local()
        pools = self.pools.value
        if self.pools.origin is Origin.UNKNOWN and address_policy.pool_mode is not PoolMode.IGNORED:
            pools = pools or MetalLBConfig()
        return Guard.of(address_policy, pools, local.addresses | self.interfaces.peers | self.speakers, local.networks)

    @property
    def cluster(self) -> AddressSet:
        """The addresses that are cut off where they have no pinhole. Those that left the pools were the cluster's, too."""
        return self.guard.cluster | AddressSet.of(Range(each, each) for each in self.former)
