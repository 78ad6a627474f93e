"""Caps the number of pinholes: over a cap new Services wait, and admitted Services stay.

A Service counts with all its addresses times all its ports. Pinholes that an older Service owns
count as well, and so do addresses that the guard refuses. So a Service does not become larger when
others are deleted or pools grow, and nftsync counts without making the pinholes.
With source ranges each range counts, and counts several times. The kernel needs 1 s to accept 8,000
ranges and 4 s for 16,000. Meanwhile it blocks a processor, and packets.
"""

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from heapq import merge
from sys import maxsize

from nftsync.config import Caps
from nftsync.objects.names import Name, Reason
from nftsync.objects.service import Service

Version = Service | None  # None: no version
Seniority = tuple[str, str, Name]

RANGE = 5  # a range of sources counts as so many pinholes


def size(service: Version) -> int:
    """The number of pinholes that a Service counts as."""
    if service is None:
        return 0
    if service.sources is None:
        return len(service.addresses) * len(service.ports)
    ranges = Counter(network.version for network in service.sources)
    return len(service.ports) * sum(max(1, RANGE * ranges[address.version]) for address in service.addresses)


def seniority(service: Service) -> Seniority:
    """A sort key that puts older Services first, and Services of unknown age last.

    The order is total.
    """
    return (service.created or "~", service.uid or "~", service.name)


UNCAPPED = Caps(0, 0)


class Admission:
    """The admitted Services, and the waiting ones.

    admitted: the version that counts, by Service.
    waiting: the newest version of each Service without room for it. None of them would fit.
    """

    def __init__(
        self, caps: Caps, services: Iterable[Service], admitted: Mapping[Name, Service], quarantined: Mapping[Name, str]
    ) -> None:
        """From scratch.

        admitted: the versions of the Services that are admitted already.
        quarantined: Services with a newest version that the kernel refuses, and why. These wait even
        if there is room.
        """
        self._total = caps.pinholes or maxsize
        self._each = caps.pinholes_per_namespace or maxsize
        self._used = 0
        self._used_by = defaultdict[str, int](int)  # namespace
        self._queues: dict[str, list[Seniority]] = {}  # of waiting Services, by namespace
        self.admitted: dict[Name, Service] = {}
        self.waiting: dict[Name, Service] = {}
        self.quarantined = quarantined
        asking = []
        for service in services:
            version = admitted.get(service.name)
            if version is not None and version.uid != service.uid:
                version = None  # another Service of the same name counts as new
            if service.name in quarantined:
                self.waiting[service.name] = service
            elif version is not None and size(service) <= size(version):
                version = service
            else:
                asking.append(service)
            if version is not None:
                self._count(service.name, version)
        for service in sorted(asking, key=seniority):
            self.put(service.name, service)

    def put(self, name: Name, service: Version) -> Mapping[Name, Version]:
        """Take a Service's new version, None for a deleted Service.

        Returns the Services with another version that counts now, and that version.
        """
        if name in self.waiting:
            self._unqueue(name)
        before, used = self.admitted.get(name), self._used
        changed: dict[Name, Version] = {}
        if before is not None and (service is None or before.uid != service.uid):
            changed[name] = None
            self._count(name, None)
        if service is not None:
            # A Service that takes the place of another one lets older Services go first.
            if self._fits(service) and (used == self._used or not size(service)):
                changed[name] = service
                self._count(name, service)
            else:
                self._queue(service)
        if self._used < used:
            changed |= self._let_in(name.namespace, self._total - used)
        return changed

    def refusal(self, name: Name) -> tuple[Reason, str] | None:
        """Why a Service's newest version waits; None if it counts."""
        service, namespace = self.waiting.get(name), name.namespace
        if service is None:
            return None
        if name in self.quarantined:
            stays = "its open pinholes stay open, and every resync tries again"
            return Reason.QUARANTINED, f"the kernel refuses this Service: {self.quarantined[name]}; {stays}"
        if size(service) - size(self.admitted.get(name)) > self._each - self._used_by[namespace]:
            whose, key, cap = f"namespace {namespace}", "pinholes_per_namespace", self._each
        else:
            whose, key, cap = "all Services together", "pinholes", self._total
        stays = "its open pinholes stay open" if name in self.admitted else "it stays closed"
        return Reason.OVER_CAP, (
            f"this Service counts as {size(service)} pinholes, so {whose} would exceed the cap of {cap} "
            f"({key} in [caps] of the router's configuration); {stays}; "
            "delete Services or raise the cap: it opens when there is room"
        )

    def _fits(self, service: Service) -> bool:
        """Whether there is room for this version.

        A Service that does not grow always fits, even if the cap was lowered.
        """
        more = size(service) - size(self.admitted.get(service.name))
        used = self._used_by[service.name.namespace]
        return more <= 0 or (self._used + more <= self._total and used + more <= self._each)

    def _count(self, name: Name, version: Version) -> None:
        """Let a version count in place of the former one."""
        more = size(version) - size(self.admitted.pop(name, None))
        self._used += more
        self._used_by[name.namespace] += more
        if version is not None:
            self.admitted[name] = version

    def _let_in(self, namespace: str, former: int) -> dict[Name, Version]:
        """Admit the waiting Services that fit now that a namespace has room, oldest first.

        former: the room under the total cap before. A Service of another namespace can fit now only
        if it was too large for that room.
        """
        rooms = {space: self._each - self._used_by[space] for space in self._queues}
        spaces = {space for space, room in rooms.items() if room > (0 if space == namespace else max(former, 0))}
        admitted: dict[Name, Version] = {}
        for _, _, name in merge(*(self._queues[space] for space in spaces)):
            if not spaces or self._used >= self._total:
                break
            if name.namespace in spaces and self._fits(self.waiting[name]):
                admitted[name] = self.waiting[name]
                self._count(name, admitted[name])
                if self._used_by[name.namespace] >= self._each:
                    spaces.remove(name.namespace)
        for name in admitted:
            self._unqueue(name)
        return admitted

    def _queue(self, service: Service) -> None:
        self.waiting[service.name] = service
        insort(self._queues.setdefault(service.name.namespace, []), seniority(service))

    def _unqueue(self, name: Name) -> None:
        queue = self._queues[name.namespace]
        del queue[bisect_left(queue, seniority(self.waiting.pop(name)))]
        if not queue:
            del self._queues[name.namespace]
