"""The caches that a sync reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from nftsync.cluster.cache import MetalLBCaches, ObjectCache, nobody
from nftsync.objects.names import KINDS, Name, Rejection
from nftsync.objects.nft import Nft, parse_nft
from nftsync.objects.service import Service, parse_service


@dataclass(frozen=True, slots=True)
class Inputs:
    """The caches, and the objects that no cache could take.

    metallb: returns MetalLB's caches of a namespace; the same object for the same namespace.
    rejections: returns the objects that no cache could take.
    fresh: returns True while the caches are up to date with the cluster.
    """

    services: ObjectCache[Service]
    nfts: ObjectCache[Nft]
    metallb: Callable[[str], MetalLBCaches]
    rejections: Callable[[], Iterable[Rejection]] = tuple
    fresh: Callable[[], bool] = lambda: True

    @classmethod
    def empty(
        cls,
        wake: Callable[[], None] = nobody,
        clock: Callable[[], float] = time.monotonic,
        remembered: Mapping[Name, Service] = MappingProxyType({}),
    ) -> Inputs:
        """Empty caches before any list. See ObjectCache for the arguments."""
        metallb = MetalLBCaches.empty(wake, clock)
        services = ObjectCache[Service](parse_service, wake, clock, remembered=remembered)
        return cls(services, ObjectCache[Nft](parse_nft, wake, clock), lambda _: metallb)

    def by_kind(self, namespace: str = "") -> dict[str, ObjectCache[Any]]:
        """The caches by the kind of their objects. namespace: MetalLB's namespace."""
        caches: tuple[ObjectCache[Any], ...] = (self.services, self.nfts, *self.metallb(namespace).caches)
        return dict(zip(KINDS, caches, strict=True))

    @property
    def synced(self) -> bool:
        """True after a complete list of Services and one of Nft resources."""
        return self.services.synced.is_set() and self.nfts.synced.is_set()
