"""How many pinholes there may be: over a cap new Services wait, and whoever is in stays in.

A Service counts with all that it asks for, each address times each port: also with what an older Service owns, and with what the
guard refuses. So nobody becomes larger because others go or pools grow, and nothing has to be spread out to be counted.
Where only some sources may pass, each of their ranges counts, and for more: the kernel needs 1 s to take 8,000 of them, 4 s for
16,000, and holds up a processor, and packets, for so long.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from heapq import merge
from sys import maxsize
from types import MappingProxyType

from nftsync.config import Caps
from nftsync.objects.names import Name, Reason
from nftsync.objects.service import Service

Version = Service | None  # None: there is none
Seniority = tuple[str, str, Name]

RANGE = 5  # pinholes that a range of sources counts for

_QUARANTINED = "the kernel does not take what it asks for: {}; what was open of it before stays, and every resync tries again"


def size(service: Version) -> int:
    """How many pinholes a Service counts for."""
    if service is None:
        return 0
    if service.sources is None:
        return len(service.addresses) * len(service.ports)
    ranges = Counter(network.version for network in service.sources)
    return len(service.ports) * sum(max(1, RANGE * ranges[address.version]) for address in service.addresses)


def seniority(service: Service) -> Seniority:
    """Sorts older Services first; one of unknown age comes after all of known age, and the order is total."""
    return (service.created or "~", service.uid or "~", service.name)


UNCAPPED = Caps(0, 0)


def within(caps: Caps, services: Collection[Service]) -> bool:
    """Whether there is room for all of these."""
    counted = Counter[str]()
    for service in services:
        counted[service.name.namespace] += size(service)
    largest = max(counted.values(), default=0)
    return counted.total() <= (caps.pinholes or maxsize) and largest <= (caps.pinholes_per_namespace or maxsize)


class Admission:
    """Who is in, and who waits.

    admitted: of each Service that is in, the version that counts.  waiting: newer versions of these, and Services that are not in,
    for which there is no room; there is none that would fit.
    """

    def __init__(
        self,
        caps: Caps,
        services: Collection[Service] = (),
        held: Mapping[Name, Service] = MappingProxyType({}),
        quarantined: Mapping[Name, str] = MappingProxyType({}),
    ) -> None:
        """From scratch. held: who is in already, and with which version.

        quarantined: why the kernel refuses the newest version of some; these wait, however much room there is, until the next time.
        """
        self._total = caps.pinholes or maxsize
        self._each = caps.pinholes_per_namespace or maxsize
        self._used = 0
        self._used_by = defaultdict[str, int](int)  # namespace
        self._queues: dict[str, list[Seniority]] = {}  # who waits, by namespace, oldest first
        self.admitted: dict[Name, Service] = {}
        self.waiting: dict[Name, Service] = {}
        self.quarantined = quarantined
        asking = []
        fit = within(caps, services)
        for service in services:
            before = held.get(service.name)
            if before is not None and before.uid != service.uid:
                before = None  # another that bears the name comes anew
            if service.name in quarantined:
                self.waiting[service.name] = service
                if before is not None:
                    self._count(service.name, before, size(before))
                continue
            if fit or (before is not None and size(service) <= size(before)):
                self._count(service.name, service, size(service))
                continue
            if before is not None:
                self._count(service.name, before, size(before))
            asking.append(service)
        for service in sorted(asking, key=seniority):
            self.put(service.name, service)

    def put(self, name: Name, service: Version) -> Mapping[Name, Version]:
        """Take a Service's new version, or None when it is gone; returns whose version that counts has changed, to which."""
        if name in self.waiting:
            self._unqueue(name)
        held, former = self.admitted.get(name), self._total - self._used
        if service is None or (held is not None and held.uid != service.uid):
            if held is None:
                return {}
            self._count(name, None, -size(held))
            if size(service) and service is not None:
                self._queue(service)
            elif service is not None:
                self._count(name, service, 0)
            return {name: self.admitted.get(name), **self._let_in(name.namespace, former)}
        more = size(service) - size(held)
        if not self._fits(name.namespace, more):
            self._queue(service)
            return {}
        self._count(name, service, more)
        return {name: service} if more >= 0 else {name: service, **self._let_in(name.namespace, former)}

    def refusal(self, name: Name) -> tuple[Reason, str] | None:
        """Why a Service's newest version has to wait; None if it does not."""
        service, namespace = self.waiting.get(name), name.namespace
        if service is None:
            return None
        if name in self.quarantined:
            return Reason.QUARANTINED, _QUARANTINED.format(self.quarantined[name])
        if size(service) - size(self.admitted.get(name)) > self._each - self._used_by[namespace]:
            whose, key, cap = f"namespace {namespace}", "pinholes_per_namespace", self._each
        else:
            whose, key, cap = "all Services together", "pinholes", self._total
        stays = "what was open of it before stays" if name in self.admitted else "it opens nothing"
        return Reason.OVER_CAP, (
            f"with the {size(service)} that it counts for, {whose} would have more than {cap} pinholes ({key} in [caps] of the "
            f"router's configuration); {stays}; delete what is not needed or raise the cap: it is let in as soon as there is room"
        )

    def _fits(self, namespace: str, more: int) -> bool:
        """Who wants no more than before always does, whatever became of the caps."""
        return more <= 0 or (self._used + more <= self._total and self._used_by[namespace] + more <= self._each)

    def _count(self, name: Name, service: Version, more: int) -> None:
        """more: than the version that counted before."""
        self._used += more
        self._used_by[name.namespace] += more
        if service is not None:
            self.admitted[name] = service
        else:
            del self.admitted[name]

    def _let_in(self, namespace: str, former: int) -> dict[Name, Service]:
        """There is room in a namespace: whoever fits comes in, oldest first. former: the room that there was in total before.

        In another namespace only those can fit now who lacked just that.
        """
        rooms = {each: self._each - self._used_by[each] for each in self._queues}
        rooms = {each: room for each, room in rooms.items() if room > (0 if each == namespace else max(former, 0))}
        found: dict[Name, Service] = {}
        for _, _, name in merge(*(self._queues[each] for each in rooms)):
            if not rooms or self._used >= self._total:
                break
            service = self.waiting[name]
            more = size(service) - size(self.admitted.get(name))
            if name.namespace in rooms and self._fits(name.namespace, more):
                found[name] = service
                self._count(name, service, more)
                if self._used_by[name.namespace] >= self._each:
                    del rooms[name.namespace]
        for name in found:
            self._unqueue(name)
        return found

    def _queue(self, service: Service) -> None:
        self.waiting[service.name] = service
        insort(self._queues.setdefault(service.name.namespace, []), seniority(service))

    def _unqueue(self, name: Name) -> None:
        queue = self._queues[name.namespace]
        del queue[bisect_left(queue, seniority(self.waiting.pop(name)))]
        if not queue:
            del self._queues[name.namespace]
