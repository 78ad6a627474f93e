"""All inputs of a plan, as one frozen value; and the confirmation of settings.

Each kind of input is listed (its list is complete), remembered (the last accepted version counts)
or unknown.

Settings that can lock the administrator out need a confirmation. This works like `commit confirmed`
on other routers. nftsync applies the change and rolls it back after confirm_seconds, unless somebody
runs `nftsync confirm` meanwhile. Only a person with access to the router can run it.
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
from nftsync.objects.nft import Confirmation, NftSpec
from nftsync.objects.service import Service
from nftsync.policy.guard import Guard
from nftsync.ruleset.tables import Elements


def cut_off(before: NftSpec, after: NftSpec) -> str:
    """The part of a change that can lock the administrator out, for people; "" for none."""
    if before.public_nic != after.public_nic:
        return f"public_nic changed from {before.public_nic} to {after.public_nic}"
    # Whether the rules accept ssh from the public side.
    had_ssh, has_ssh = (spec.enable_ssh or not spec.enable_dropall for spec in (before, after))
    if had_ssh and not has_ssh:
        return (
            "enable_ssh was switched off" if before.enable_ssh else "enable_dropall was switched on without enable_ssh"
        )
    return ""


@dataclass(frozen=True, slots=True)
class Confirming:
    """The settings in force, and the settings that wait for a confirmation.

    settled: the last settings that need no confirmation; None before the first ones.
    state: of the settings that the resource asks for.
    asked: the settings that wait or were rolled back, None for none.
    cut: their part that can lock the administrator out, in words; "" for none.
    deadline: time of the rollback, in the clock's seconds; inf if none is due.
    """

    settled: NftSpec | None = None
    state: Confirmation = Confirmation.NOT_NEEDED
    asked: NftSpec | None = None
    cut: str = ""
    deadline: float = float("inf")

    @classmethod
    def remembered(cls, settled: NftSpec | None, rolled_back: NftSpec | None) -> Confirming:
        """The state at the start of a process. rolled_back: settings that nobody confirmed."""
        if rolled_back is None:
            return cls(settled)
        return cls(settled, Confirmation.ROLLED_BACK, rolled_back, cut_off(settled, rolled_back) if settled else "")

    @property
    def rolled_back(self) -> NftSpec | None:
        return self.asked if self.state is Confirmation.ROLLED_BACK else None

    @property
    def in_force(self) -> NftSpec | None:
        return self.asked if self.state is Confirmation.WAITING else self.settled

    def take(self, asked: NftSpec, seconds: float, now: float) -> Confirming:
        """The state after the resource asks for `asked`.

        seconds: the time to confirm in; 0 for no confirmation.  now: the clock's seconds.
        """
        if asked == self.settled:  # the resource took any other request back
            return self if self.asked is None else Confirming(asked)
        if asked != self.asked:
            cut = cut_off(self.settled, asked) if self.settled else ""
            if not (cut and seconds):
                return Confirming(asked, cut=cut)
            return Confirming(self.settled, Confirmation.WAITING, asked, cut, now + seconds)
        if now >= self.deadline:
            return replace(self, state=Confirmation.ROLLED_BACK, deadline=float("inf"))
        return self

    def confirmed(self) -> Confirming:
        """The state after a confirmation; the same state if no settings wait."""
        if self.state is not Confirmation.WAITING:
            return self
        return Confirming(self.asked, Confirmation.CONFIRMED, cut=self.cut)

    def __str__(self) -> str:
        return f"{self.cut}{_SENTENCES[self.state]}" if self.cut else "the settings cannot lock you out"


_SENTENCES = {
    Confirmation.NOT_NEEDED: ". This can lock you out. It applies at once because confirm_seconds is 0.",
    Confirmation.CONFIRMED: "; it was confirmed",
    Confirmation.WAITING: (
        ". nftsync takes it back after confirm_seconds unless you run `nftsync confirm` on the router."
    ),
    Confirmation.ROLLED_BACK: (
        "; nobody ran `nftsync confirm`, so the former settings hold until you change the resource"
    ),
}


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

    index: the public NIC's (if_nametoindex(3)); 0 while no NIC has its name, None before a look.
    local: the router's addresses, None while unknown.  peers: the other ends of its BGP sessions.
    """

    index: int | None = None
    local: Local | None = None
    peers: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True)
class LocalChain:
    """The operator's own rules.

    body: of the present file, None if it is not usable; then `error` says why.
    last_good: the last body of the file that the kernel accepted.
    """

    body: str | None = ""
    error: str = ""
    last_good: str = ""


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
        return left | {name: replace(left[name], limit=None) for name in left.keys() & self.unlimited}


@dataclass(frozen=True)
class Snapshot:
    """All inputs of a plan but the Services, which change too often to compare them as a whole.

    spec: the settings in force.  pools: MetalLB's last good configuration.
    speakers: addresses of MetalLB's BGPPeers, from a good configuration or not.
    flags: table flags that the kernel supports.
    former: addresses that had pinholes before the guard refused them.
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
    former: frozenset[Address] = frozenset()
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

    @property
    def cluster(self) -> AddressSet:
        """The addresses that stay closed without a pinhole.

        They include former addresses: these belonged to the cluster before they left the pools.
        """
        return self.guard.cluster | AddressSet.of(Range(address, address) for address in self.former)
