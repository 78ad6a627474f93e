"""From Services to pinholes: what may pass, and who owns an address and port that several claim.

There is one way to compute, `Desired.of(services)`, and one shortcut, `put`, for the Services that changed. A property
test holds the two equal for any sequence of changes.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from nftsync.caps import Caps, Room
from nftsync.guard import UNGUARDED, Guard
from nftsync.objects import Name, Network, ObjectRef, Reason, Rejection, Service
from nftsync.ratelimit import RateLimit


@dataclass(frozen=True, slots=True)
class Filters:
    """Which Services are ours. An empty collection filters nothing.

    load_balancer_classes: spec.loadBalancerClass values; "" stands for Services that have none.
    """

    namespaces: frozenset[str] = frozenset()
    exclude_namespaces: frozenset[str] = frozenset()
    load_balancer_classes: frozenset[str] = frozenset()

    def admit(self, service: Service) -> bool:
        namespace = service.name.namespace
        return (
            (not self.namespaces or namespace in self.namespaces)
            and namespace not in self.exclude_namespaces
            and (not self.load_balancer_classes or service.load_balancer_class in self.load_balancer_classes)
        )


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


def _age(service: Service) -> tuple[str, str, Name]:
    """Sorts older Services first; one of unknown age comes after all of known age, and the order is total."""
    return (service.created or "~", service.uid or "~", service.name)


class Desired:
    """Which Service owns which pinhole, kept up to date one Service at a time.

    The cost of `put` follows the Service that changed, not the number of Services.
    """

    def __init__(self, filters: Filters, guard: Guard = UNGUARDED, caps: Caps = Caps()) -> None:  # noqa: B008  # immutable
        self._filters = filters
        self._guard = guard
        self._room = Room(caps)
        self.waiting: dict[Name, Service] = {}  # versions of Services for which there is no room
        self._services: dict[Name, Service] = {}
        self._claims: dict[str, list[Name]] = {}  # every Service that claims a key, owner first
        self._rejected: set[Name] = set()  # Services with a rejection of their own or a claim lost
        self.pinholes: dict[str, Pinhole] = {}
        self.rejections_changed = 0  # how often: who remembers it need not ask for the rejections again

    @classmethod
    def of(
        cls,
        services: Iterable[Service],
        filters: Filters,
        guard: Guard = UNGUARDED,
        caps: Caps = Caps(),  # noqa: B008  # immutable
        before: Desired | None = None,
    ) -> Desired:
        """From scratch. before: what was desired until now; who is in it stays in, whoever else there is no room for."""
        desired = cls(filters, guard, caps)
        present = {service.name: service for service in services}
        held = before._services if before else {}  # noqa: SLF001  # one of us
        waiting = set(before.waiting) if before else set()
        for name in held.keys() & waiting & present.keys():
            desired.put(name, held[name])
        for service in sorted(present.values(), key=lambda each: (each.name in waiting or each.name not in held, *_age(each))):
            desired.put(service.name, service)
        return desired

    @property
    def services(self) -> Collection[Service]:
        """The Services that are ours: of type LoadBalancer and admitted by the filters."""
        return self._services.values()

    def put(self, name: Name, service: Service | None) -> Iterable[str]:
        """Take a Service's new version, or None when it is gone; returns the keys that may have changed."""
        if service is not None and not self._filters.admit(service):
            service = None
        before = self._services.get(name)
        withdrawn = pinholes_of(before, self._guard) if before else {}
        claimed = pinholes_of(service, self._guard) if service else {}
        self.waiting.pop(name, None)
        if not self._room.take(name.namespace, len(claimed) - len(withdrawn)):
            assert service is not None, "who goes needs no room"
            self.waiting[name] = service
            self._note_rejections(name, withdrawn)
            return ()
        self._services.pop(name, None)
        affected = self._withdraw(withdrawn, name)
        if service is not None:
            self._services[name] = service
        for key, pinhole in claimed.items():
            affected |= self._claim(key, pinhole)
        self._note_rejections(name, claimed)
        for other in affected - {name}:
            self._note_rejections(other, pinholes_of(self._services[other], self._guard))
        changed = withdrawn.keys() | claimed.keys()
        return changed | self._let_in() if len(claimed) < len(withdrawn) else changed

    def _let_in(self) -> set[str]:
        """There is room again: for those who wait, oldest first; returns the keys that may have changed."""
        changed: set[str] = set()
        for service in sorted(self.waiting.values(), key=_age):
            changed.update(self.put(service.name, service))
        return changed

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

    def _seniority(self, name: Name) -> tuple[str, str, Name]:
        return _age(self._services[name])

    def _note_rejections(self, name: Name, claimed: Iterable[str]) -> None:
        """claimed: the keys of the pinholes that the Service claims."""
        service = self._services.get(name)
        rejected = name in self.waiting or (
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

    def _lost(self, service: Service) -> Iterator[Rejection]:
        """The claims of a Service that an older one owns."""
        for key in pinholes_of(service, self._guard):
            owner = self._claims[key][0]
            if owner != service.name:
                message = f"{key.replace(' . ', ' ')} belongs to the older Service {owner}; it is inherited when that one goes"
                yield Rejection(service.ref, Reason.CONFLICT, message)

    def crowded(self, name: Name) -> str:
        """Why there is no room for a Service that waits."""
        held = self._services.get(name)
        more = len(pinholes_of(self.waiting[name], self._guard)) - (len(pinholes_of(held, self._guard)) if held else 0)
        return f"{self._room.cap_for(name.namespace, more)}, and with this Service there would be more"

    def rejections(self) -> Iterator[Rejection]:
        """Everything that was refused, ordered by Service."""
        for name in sorted(self._rejected):
            yield from self.rejections_of(name)

    def rejections_of(self, name: Name) -> Iterator[Rejection]:
        service = self._services.get(name)
        if name in self.waiting:
            stays = "what was open of it before stays" if service else "it opens nothing"
            message = f"{self.crowded(name)}; {stays} until there is room"
            yield Rejection(self.waiting[name].ref, Reason.OVER_CAP, message, part="cap")
        if service is not None:
            yield from service.rejections
            yield from self._refused(service)
            yield from self._lost(service)

    def _refused(self, service: Service) -> Iterator[Rejection]:
        """The addresses of a Service that the guard refuses."""
        for address in service.addresses:
            refusal = self._guard.refusal(address)
            if refusal is not None:
                yield Rejection(service.ref, *refusal, part=str(address))
