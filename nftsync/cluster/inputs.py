"""Where a sync takes objects from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nftsync.cluster.cache import Inbox
from nftsync.cluster.metallb import MetalLB
from nftsync.objects.names import Rejection
from nftsync.objects.nft import Nft, parse_nft
from nftsync.objects.service import Service, parse_service


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inboxes, and what could not even be put into one.

    metallb: what is read of MetalLB in a namespace; the same object while the namespace is the same.
    fresh: whether the inboxes have what the cluster says now.
    """

    services: Inbox[Service]
    nfts: Inbox[Nft]
    metallb: Callable[[str], MetalLB]
    rejections: Callable[[], Iterable[Rejection]] = tuple
    fresh: Callable[[], bool] = lambda: True

    @classmethod
    def nothing(cls) -> Inputs:
        """Of a process that listens to no cluster: nothing is ever listed."""
        metallb = MetalLB.empty(_nobody, time.monotonic)
        services = Inbox[Service](parse_service, _nobody, time.monotonic)
        return cls(services, Inbox[Nft](parse_nft, _nobody, time.monotonic), lambda _: metallb)

    @property
    def synced(self) -> bool:
        """Whether the lists of Services and of Nft resources have been complete once."""
        return self.services.synced.is_set() and self.nfts.synced.is_set()


def _nobody() -> None:
    """Waits for no change."""
