"""Where a sync takes objects from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nftsync.cluster.cache import Inbox
from nftsync.cluster.metallb import MetalLB
from nftsync.objects.names import Rejection
from nftsync.objects.nft import Nft
from nftsync.objects.service import Service


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inboxes, and what could not even be put into one.

    metallb: what is read of MetalLB in a namespace; the same object while the namespace is the same.
    """

    services: Inbox[Service]
    nfts: Inbox[Nft]
    metallb: Callable[[str], MetalLB]
    rejections: Callable[[], Iterable[Rejection]] = tuple

    @property
    def synced(self) -> bool:
        """Whether the lists of Services and of Nft resources have been complete once."""
        return self.services.synced.is_set() and self.nfts.synced.is_set()
