"""From Services to pinholes: what may pass, and who owns an address and port that several claim.

There is one way to compute, `Desired.of(services)`, and one shortcut, `put`, for the Services that changed. A property
test holds the two equal for any sequence of changes. What came before counts only over a cap: whoever is in stays in.
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

    key: the three in nft's notation, e.g. "192.0.2.1 . tcp . 80": what identifies a pinhole.
    sources: None for everybody; otherwise only these ranges, of the address's own family.
    service, uid: the Service that owns it.
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
    """The pinholes that a Service claims, by key: none at an address that the guard refuses."""
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


class Desired:
    """Which Service owns which pinhole, kept up to date one Service at a time.

    The cost of `put` follows the Service that changed, not the number of Services.
    """

    def __init__(  # noqa: PLR0913  # see `of`
        self,
        filters: Filters,
        guard: Guard = UNGUARDED,
        caps: Caps = UNCAPPED,
        services: Iterable[Service] = (),
        admitted: Mapping[Name, Service] = MappingProxyType({}),
        quarantined: Mapping[Name, str] = MappingProxyType({}),
    ) -> None:
        """See `of`."""
        self._filters = filters
        self._guard = guard
        ours = {service.name: service for service in services if filters.admit(service)}
        self._admission = Admission(caps, ours.values(), admitted, quarantined)
        self._services: dict[Name, Service] = {}  # the version of each that counts
        self._claims: dict[str, list[Name]] = {}  # every Service that claims a key, owner first
        self._rejected: set[Name] = set()  # Services with a rejection of their own or a claim lost
        self.pinholes: dict[str, Pinhole] = {}
        self._changed: dict[Name, Service | None] = {}
        self.rejections_changed = 0  # how often: who remembers it need not ask for the rejections again
        for service in self._admission.admitted.values():
            self._replace(service.name, service)
        for name in self._admission.waiting:
            self._note_rejections(name, ())
        self._changed.clear()

    @classmethod
    def of(  # noqa: PLR0913  # all that decides
        cls,
        services: Iterable[Service],
        filters: Filters,
        guard: Guard = UNGUARDED,
        caps: Caps = UNCAPPED,
        admitted: Mapping[Name, Service] = MappingProxyType({}),
        quarantined: Mapping[Name, str] = MappingProxyType({}),
    ) -> Desired:
        """From scratch. admitted: who is in already, and with which version; over a cap these stay, and the oldest come first.

        quarantined: why the kernel refuses the newest version of some Services; the version that is in goes on counting.
        """
        return cls(filters, guard, caps, services, admitted, quarantined)

    @property
    def services(self) -> Collection[Service]:
        """The Services that are ours: of type LoadBalancer and admitted by the filters."""
        waiting = self._admission.waiting
        return (self._services | waiting).values() if waiting else self._services.values()

    @property
    def admitted(self) -> Mapping[Name, Service]:
        """Who is in, and with which version: an older one where there is no room for the newest, or the kernel refuses it."""
        return self._admission.admitted

    def held_back(self, name: Name) -> tuple[Reason, str] | None:
        """Why a Service's newest version waits, OVER_CAP or QUARANTINED; None if it does not."""
        return self._admission.refusal(name)

    def take_changed(self) -> dict[Name, Service | None]:
        """The Services of which another version counts since the last time, and that version; None for one that is out."""
        changed, self._changed = self._changed, {}
        return changed

    def put(self, name: Name, service: Service | None) -> Iterable[str]:
        """Take a Service's new version, or None when it is gone; returns the keys that may have changed."""
        if service is not None and not self._filters.admit(service):
            service = None
        versions = self._admission.put(name, service)
        changed = [self._replace(each, version) for each, version in versions.items()]
        if name not in versions:  # it waits, or never was there
            self._note_rejections(name, ())
        return changed[0] if len(changed) == 1 else set().union(*changed)

    def _replace(self, name: Name, service: Version) -> set[str]:
        """Let another version of a Service count; returns the keys that may have changed."""
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

    # The claimants of a key stand in order of seniority; the first one owns it. Only these two methods change who does.

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
        """claimed: the keys of the pinholes that the Service claims; they do not matter while it waits for room."""
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
                message = f"{key.replace(' . ', ' ')} belongs to the older Service {owner}; it is inherited when that one goes"
                yield Rejection(service.ref, Reason.CONFLICT, message)

    def rejections(self) -> Iterator[Rejection]:
        """Everything that was refused, ordered by Service."""
        for name in sorted(self._rejected):
            yield from self.rejections_of(name)

    def rejections_of(self, name: Name) -> Iterator[Rejection]:
        held = self._services.get(name)
        service = self._admission.waiting.get(name, held)
        if service is not None:
            yield from service.rejections
            yield from self._refused(service)
            if held_back := self.held_back(name):
                yield Rejection(service.ref, *held_back, part=held_back[0])  # the message may change
        if held is not None:
            yield from self._lost(held)

    def _refused(self, service: Service) -> Iterator[Rejection]:
        """The addresses of a Service that the guard refuses."""
        for address in service.addresses:
            refusal = self._guard.refusal(address)
            if refusal is not None:
                yield Rejection(service.ref, *refusal, part=str(address))
