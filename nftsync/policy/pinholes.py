"""Computes pinholes from Services, and the owner of each pinhole that several Services claim.

A new `PinholeIndex` computes everything; `put` is a shortcut for one changed Service. A property
test checks that both agree for any sequence of changes. History matters only over a cap: an
admitted Service stays admitted.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from nftsync.config import Caps, Filters
from nftsync.objects.address import Network
from nftsync.objects.names import Name, ObjectRef, Reason, Rejection
from nftsync.objects.ratelimit import RateLimit
from nftsync.objects.service import Service
from nftsync.policy.guard import UNGUARDED, Guard
from nftsync.policy.quota import UNCAPPED, Admission, Seniority, Version, seniority


@dataclass(frozen=True, slots=True)
class Pinhole:
    """One address, protocol and port that may pass.

    key: identifies the pinhole in nft's notation, e.g. "192.0.2.1 . tcp . 80".
    sources: None for everybody; otherwise only these ranges, of the address's own family.
    service, uid: the owner.
    """

    key: str
    version: int
    sources: tuple[Network, ...] | None
    limit: RateLimit | None
    service: Name
    uid: str = field(default="", compare=False)

    @property
    def ref(self) -> ObjectRef:
        """The Service that owns it."""
        return ObjectRef("Service", str(self.service), self.uid)


def pinholes_of(service: Service, guard: Guard = UNGUARDED) -> dict[str, Pinhole]:
    """The pinholes that a Service claims, by key. Addresses that the guard refuses get none."""
    claimed = {}
    for address in service.addresses:
        if not guard.admits(address):
            continue
        sources = service.sources
        if sources is not None:
            sources = tuple(network for network in sources if network.version == address.version)
        text = str(address)
        for protocol, port in service.ports:
            key = f"{text} . {protocol} . {port}"
            claimed[key] = Pinhole(key, address.version, sources, service.limit, service.name, service.uid)
    return claimed


class PinholeIndex:
    """The pinholes and their owners, updated one Service at a time.

    The cost of `put` depends on the size of the changed Service, not on the number of Services.
    """

    def __init__(  # noqa: PLR0913  # all that decides
        self,
        services: Iterable[Service],
        filters: Filters,
        guard: Guard = UNGUARDED,
        caps: Caps = UNCAPPED,
        admitted: Mapping[Name, Service] = MappingProxyType({}),
        quarantined: Mapping[Name, str] = MappingProxyType({}),
    ) -> None:
        """From scratch.

        admitted: the versions of the Services that are admitted already. They stay over a cap; then
        the oldest other Services come first.
        quarantined: Services with a newest version that the kernel refuses, and why. Their admitted
        version stays.
        """
        self._filters = filters
        self._guard = guard
        ours = [service for service in services if filters.admit(service)]
        self._admission = Admission(caps, ours, admitted, quarantined)
        self._services: dict[Name, Service] = {}  # the version of each that counts
        self._claims: dict[str, list[Name]] = {}  # every Service that claims a key, owner first
        self._rejected: set[Name] = set()  # Services with a rejection of their own or a claim lost
        self.pinholes: dict[str, Pinhole] = {}
        self._changed: dict[Name, Service | None] = {}
        self.rejections_changed = 0  # a counter: while it is the same, so are the rejections
        for service in self._admission.admitted.values():
            self._replace(service.name, service)
        for name in self._admission.waiting:
            self._note_rejections(name, ())
        self._changed.clear()

    @property
    def services(self) -> Collection[Service]:
        """The Services that are ours: of type LoadBalancer and admitted by the filters."""
        waiting = self._admission.waiting
        return (self._services | waiting).values() if waiting else self._services.values()

    @property
    def admitted(self) -> Mapping[Name, Service]:
        """The admitted version of each Service.

        It is an older one if the newest has no room, or the kernel refuses it.
        """
        return self._admission.admitted

    def held_back(self, name: Name) -> tuple[Reason, str] | None:
        """Why a Service's newest version waits, OVER_CAP or QUARANTINED; None if it counts."""
        return self._admission.refusal(name)

    def take_changed(self) -> dict[Name, Service | None]:
        """The versions that began to count since the last call, by Service; None for no version."""
        changed, self._changed = self._changed, {}
        return changed

    def put(self, name: Name, service: Service | None) -> Iterable[str]:
        """Take a Service's new version, None for a deleted Service; return the affected keys."""
        if service is not None and not self._filters.admit(service):
            service = None
        versions = self._admission.put(name, service)
        changed = [self._replace(each, version) for each, version in versions.items()]
        if name not in versions:  # it waits, or never was there
            self._note_rejections(name, ())
        return changed[0] if len(changed) == 1 else set().union(*changed)

    def _replace(self, name: Name, service: Version) -> set[str]:
        """Let another version of a Service count; return the affected keys."""
        before = self._services.pop(name, None)
        self._changed[name] = service
        withdrawn = pinholes_of(before, self._guard) if before else {}
        claimed = pinholes_of(service, self._guard) if service else {}
        affected = self._withdraw(withdrawn, name)
        if service is not None:
            self._services[name] = service
        for key, pinhole in claimed.items():
            affected |= self._claim(key, pinhole)
        self._note_rejections(name, claimed)
        for other in affected - {name}:
            self._note_rejections(other, pinholes_of(self._services[other], self._guard))
        return withdrawn.keys() | claimed.keys()

    # The claimants of a key are in order of seniority; the first one owns it.
    # Only the next two methods change the owner.

    def _claim(self, key: str, pinhole: Pinhole) -> set[Name]:
        claimants = self._claims.get(key)
        if claimants is None:  # as nearly always
            self._claims[key] = [pinhole.service]
            self.pinholes[key] = pinhole
            return set()
        insort(claimants, pinhole.service, key=self._seniority)
        if claimants[0] == pinhole.service:
            self.pinholes[key] = pinhole
        return set(claimants[:2])

    def _withdraw(self, keys: Iterable[str], name: Name) -> set[Name]:
        inherited: dict[Name, list[str]] = {}
        for key in keys:
            claimants = self._claims[key]
            owned = claimants[0] == name
            claimants.remove(name)
            if not claimants:
                del self._claims[key], self.pinholes[key]
            elif owned:
                inherited.setdefault(claimants[0], []).append(key)
        for heir, held in inherited.items():
            claimed = pinholes_of(self._services[heir], self._guard)
            self.pinholes.update((key, claimed[key]) for key in held)
        return set(inherited)

    def _seniority(self, name: Name) -> Seniority:
        return seniority(self._services[name])

    def _note_rejections(self, name: Name, claimed: Iterable[str]) -> None:
        """claimed: the keys that the Service claims; ignored while it waits for room."""
        service = self._services.get(name)
        rejected = name in self._admission.waiting or (service is not None and (
            bool(service.rejections)
            or not all(map(self._guard.admits, service.addresses))
            or any(self._claims[key][0] != name for key in claimed)
        ))
        if rejected or name in self._rejected:
            self.rejections_changed += 1
        if rejected:
            self._rejected.add(name)
        else:
            self._rejected.discard(name)

    def _lost(self, service: Service) -> Iterator[Rejection]:
        """The claims of a Service that an older one owns."""
        for key in pinholes_of(service, self._guard):
            owner = self._claims[key][0]
            if owner != service.name:
                heir = "this Service gets it when that one is deleted"
                message = f"{key.replace(' . ', ' ')} belongs to the older Service {owner}; {heir}"
                yield Rejection(service.ref, Reason.CONFLICT, message)

    def rejections(self) -> Iterator[Rejection]:
        """All rejections, ordered by Service."""
        for name in sorted(self._rejected):
            yield from self.rejections_of(name)

    def rejections_of(self, name: Name) -> Iterator[Rejection]:
        held = self._services.get(name)
        service = self._admission.waiting.get(name, held)
        if service is not None:
            yield from service.rejections
            yield from self._refused(service)
            if held_back := self.held_back(name):
                # The message can change while the rejection is the same.
                yield Rejection(service.ref, *held_back, part=held_back[0])
        if held is not None:
            yield from self._lost(held)

    def _refused(self, service: Service) -> Iterator[Rejection]:
        """The addresses of a Service that the guard refuses."""
        for address in service.addresses:
            refusal = self._guard.refusal(address)
            if refusal is not None:
                yield Rejection(service.ref, *refusal, part=str(address))
