"""All inputs of a plan, as one frozen value.

Each kind of input is listed (its list is complete), remembered (the last accepted version counts)
or unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Generic, TypeVar

from nftsync.config import Config, PoolMode
from nftsync.objects.address import Address, Local
from nftsync.objects.metallb import MetalLBConfig
from nftsync.objects.names import Name
from nftsync.objects.nft import NftSpec, Nics
from nftsync.objects.service import Service
from nftsync.policy.guard import Guard
from nftsync.policy.public import PublicSide
from nftsync.ruleset.model import Elements

T = TypeVar("T")


class Origin(StrEnum):
    """The source of a value."""

    LISTED = "listed"  # from a complete list that is not in doubt
    REMEMBERED = "remembered"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Known(Generic[T]):
    """A value, and its source."""

    value: T
    origin: Origin

    @property
    def listed(self) -> bool:
        return self.origin is Origin.LISTED


@dataclass(frozen=True, slots=True)
class Interfaces:
    """This machine's network.

    side: the interfaces that count as public, None before a look.
    live: whether all this is the kernel's present state.
    local: the router's addresses, None while unknown.  peers: the other ends of its BGP sessions.
    """

    side: PublicSide | None = None
    local: Local | None = None
    peers: frozenset[Address] = frozenset()
    live: bool = False


@dataclass(frozen=True, slots=True)
class LocalChain:
    """The operator's own rules.

    body: of the present file, None if it is not usable; then `error` says why.
    last_good: the last body of the file that the kernel accepted.
    line, column: the place of the body in the file (see localchain.Body).
    """

    body: str | None = ""
    error: str = ""
    last_good: str = ""
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The kernel's refusals with their reasons, until nftsync tries again.

    services: Services with a refused newest version.
    unlimited: Services with a refused earlier version, too. Another kernel can refuse a version that
    the last one accepted. The earlier version counts without its limit.
    out: Services that the kernel refuses even without the limit.
    local_chains: refused bodies.  limits: "" if the kernel accepts limits.
    """

    services: Mapping[Name, str] = field(default_factory=dict)
    unlimited: frozenset[Name] = frozenset()
    out: frozenset[Name] = frozenset()
    local_chains: Mapping[str, str] = field(default_factory=dict)
    limits: str = ""

    def of_services(self, blamed: Mapping[Name, str]) -> Verdicts:
        """The verdicts after the kernel has refused some Services.

        If the newest version was refused before, this refusal is of the earlier version.
        """
        again = self.services.keys() & blamed.keys()
        return replace(
            self,
            services={**self.services, **blamed},
            unlimited=self.unlimited | again,
            out=self.out | (self.unlimited & again),
        )

    def without(self, services: Collection[Name]) -> Verdicts:
        """The verdicts after these Services have changed: they count as not refused."""
        if self.services.keys().isdisjoint(services):
            return self
        refused = {name: why for name, why in self.services.items() if name not in services}
        return replace(self, services=refused, unlimited=self.unlimited & refused.keys(), out=self.out & refused.keys())

    def taken(self, remembered: Mapping[Name, Service]) -> Mapping[Name, Service]:
        """The remembered versions, less the versions or limits that the kernel refuses."""
        if not self.unlimited:
            return remembered
        left = {name: service for name, service in remembered.items() if name not in self.out}
        return left | {
            name: replace(left[name], limit=None, limit_egress=None) for name in left.keys() & self.unlimited
        }


@dataclass(frozen=True)
class Snapshot:
    """All inputs of a plan but the Services, which change too often to compare them as a whole.

    spec: the settings in force.  pools: MetalLB's last good configuration.
    speakers: addresses of MetalLB's BGPPeers, from a good configuration or not.
    flags: table flags that the kernel supports.
    undecided: elements that stood when this process began; no list has decided about them yet.
    first_since_boot: True if nftsync has not changed the kernel since the boot. Then the memory
    counts, and the kernel's tables do not.
    """

    config: Config
    services: Origin
    spec: Known[NftSpec | None]
    pools: Known[MetalLBConfig | None]
    speakers: frozenset[Address] = frozenset()
    interfaces: Interfaces = field(default_factory=Interfaces)
    local_chain: LocalChain = field(default_factory=LocalChain)
    flags: frozenset[str] = frozenset()
    undecided: Mapping[str, Elements] = field(default_factory=dict)
    first_since_boot: bool = False
    verdicts: Verdicts = field(default_factory=Verdicts)

    def retried(self, before: Snapshot, changed: Collection[Name], *, again: bool) -> Snapshot:
        """Forget refusals of the kernel if it may accept these parts now; always if `again`."""
        verdicts = self.verdicts
        if again or self.interfaces != before.interfaces:
            verdicts = Verdicts()
        if self.local_chain.body != before.local_chain.body:
            verdicts = replace(verdicts, local_chains={})
        verdicts = verdicts.without(changed)
        return self if verdicts == self.verdicts else replace(self, verdicts=verdicts)

    @property
    def nics(self) -> Nics:
        """The named interfaces."""
        return self.spec.value.nics if self.spec.value else self.config.nics

    @property
    def complete(self) -> bool:
        """Whether every list is complete."""
        return self.services is Origin.LISTED and self.spec.listed and self.pools.listed

    @property
    def missing(self) -> str:
        """The lists that were never complete, for people; "" if there are none.

        Without settings nftsync does not know MetalLB's namespace, so MetalLB does not count.
        """
        if self.services is not Origin.LISTED or not self.spec.listed:
            return "the first lists are not complete"
        return "" if self.pools.listed or self.spec.value is None else "MetalLB's configuration is not read yet"

    @cached_property
    def guard(self) -> Guard:
        """The guard that judges addresses.

        While nftsync knows no pools and does not ignore them, it opens no further address.
        """
        address_policy, local = self.config.address_policy, self.interfaces.local or Local()
        pools = self.pools.value
        if self.pools.origin is Origin.UNKNOWN and address_policy.pool_mode is not PoolMode.IGNORED:
            pools = pools or MetalLBConfig()
        return Guard.of(address_policy, pools, local.addresses | self.interfaces.peers | self.speakers, local.networks)
