"""Computes pinholes from Services, and the owner of each pinhole that several Services claim.

A new `PinholeIndex` computes everything; `put` is a shortcut for one changed Service. A property
test checks that both agree for any sequence of changes. History matters only over a cap: an
admitted Service stays admitted.
"""

from bisect import insort
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType

from nftsync.config import Caps, Filters
from nftsync.objects.address import Network
from nftsync.objects.names import Name, ObjectRef, Reason, Rejection
from nftsync.objects.ratelimit import RateLimit
from nftsync.objects.service import Service
from nftsync.policy.guard import UNGUARDED, Guard
from nftsync.policy.quota import UNCAPPED, Admission, Version, seniority


@dataclass(frozen=True, slots=True)
class Pinhole:
    """One address, protocol and port that may pass.

    key: identifies the pinhole in nft's notation, e.g. "192.0.2.1 . tcp . 80".
    sources: None for everybody; otherwise only these ranges, of the address's own family.
    limit: of packets to it.  limit_egress: of packets from it to the public network.
    service, uid: the owner.
    """

    key: str
    version: int
    sources: tuple[Network, ...] | None
    limit: RateLimit | None
    service: Name
    uid: str = field(default="", compare=False)
    limit_egress: RateLimit | None = None

    @property
    def address(self) -> str:
        return self.key.partition(" ")[0]

    @property
    def ref(self) -> ObjectRef:
        """The Service that owns it."""
        return ObjectRef("Service", str(self.service), self.uid)


def pinholes_of(service: Service, guard: Guard = UNGUARDED) -> dict[str, Pinhole]:
    """The pinholes that a Service claims, by key. Addresses that the guard refuses get none."""
    claimed = {}
    for address in filter(guard.admits, service.addresses):
        ranges = service.sources
        sources = None if ranges is None else tuple(network for network in ranges if network.version == address.version)
        text = str(address)
        for protocol, port in service.ports:
            key = f"{text} . {protocol} . {port}"
            claimed[key] = Pinhole(
                key, address.version, sources, service.limit, service.name, service.uid, service.limit_egress
            )
    return claimed


class PinholeIndex:
    """The pinholes and their owners, updated one Service at a time.

    pinholes: by key.
    admitted: the admitted version of each Service. It is an older one if the newest has no room, or
    the kernel refuses it.
    rejections_changed: a counter: while it is the same, so are the rejections.
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
        self._admission = Admission(caps, filter(filters.admit, services), admitted, quarantined)
        self.admitted: Mapping[Name, Service] = self._admission.admitted
        self._services: dict[Name, Service] = {}  # the version of each that counts
        self._claims: dict[str, list[Name]] = {}  # every Service that claims a key, owner first
        self._rejected: set[Name] = set()  # Services with a rejection of their own or a claim lost
        self.pinholes: dict[str, Pinhole] = {}
        self._changed: dict[Name, Service | None] = {}
        self.rejections_changed = 0
        for service in self.admitted.values():
            self._replace(service.name, service)
        for name in self._admission.waiting:
            self._note_rejections(name, ())
        self._changed.clear()

    @property
    def services(self) -> Collection[Service]:
        """The Services that are ours: of type LoadBalancer and admitted by the filters."""
        waiting = self._admission.waiting
        return (self._services | waiting).values() if waiting else self._services.values()

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
        if name not in versions:  # it waits, or never was there
            self._note_rejections(name, ())
        return set().union(*(self._replace(changed, version) for changed, version in versions.items()))

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
            affected.update(self._claim(key, pinhole))
        self._note_rejections(name, claimed)
        affected.discard(name)
        for other in affected:
            self._note_rejections(other, pinholes_of(self._services[other], self._guard))
        return withdrawn.keys() | claimed.keys()

    # The claimants of a key are in order of seniority; the first one owns it.
    # Only the next two methods change the owner.

    def _claim(self, key: str, pinhole: Pinhole) -> Sequence[Name]:
        claimants = self._claims.get(key)
        if claimants is None:  # as nearly always
            self._claims[key] = [pinhole.service]
            self.pinholes[key] = pinhole
            return ()
        insort(claimants, pinhole.service, key=lambda name: seniority(self._services[name]))
        if claimants[0] == pinhole.service:
            self.pinholes[key] = pinhole
        return claimants[:2]

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
        for heir, gained in inherited.items():
            claimed = pinholes_of(self._services[heir], self._guard)
            self.pinholes.update((key, claimed[key]) for key in gained)
        return set(inherited)

    def _note_rejections(self, name: Name, claimed: Iterable[str]) -> None:
        """claimed: the keys that the Service claims; ignored while it waits for room."""
        service = self._services.get(name)
        rejected = name in self._admission.waiting or (
            service is not None
            and (
                bool(service.rejections)
                or not all(map(self._guard.admits, service.addresses))
                or any(self._claims[key][0] != name for key in claimed)
            )
        )
        if rejected or name in self._rejected:
            self.rejections_changed += 1
        if rejected:
            self._rejected.add(name)
        else:
            self._rejected.discard(name)

    def rejections(self) -> Iterator[Rejection]:
        """All rejections, ordered by Service."""
        return chain.from_iterable(map(self.rejections_of, sorted(self._rejected)))

    def rejections_of(self, name: Name) -> Iterator[Rejection]:
        counted = self._services.get(name)
        service = self._admission.waiting.get(name, counted)
        if service is not None:
            yield from service.rejections
            for address in service.addresses:
                if refusal := self._guard.refusal(address):
                    yield Rejection(service.ref, *refusal, part=str(address))
            if held_back := self.held_back(name):
                # The message can change while the rejection is the same.
                yield Rejection(service.ref, *held_back, part=held_back[0])
        if counted is not None:
            for key in pinholes_of(counted, self._guard):
                owner = self._claims[key][0]
                if owner != name:
                    lost = f"{key.replace(' . ', ' ')} belongs to the older Service {owner}"
                    message = f"{lost}; this Service gets it when that one is deleted"
                    yield Rejection(counted.ref, Reason.CONFLICT, message)
