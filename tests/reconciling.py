"""A reconciler with a real kernel, told of objects by the test instead of by a source."""

from __future__ import annotations

import time
from pathlib import Path

from nftsync.caps import Caps
from nftsync.config import Config
from nftsync.inbox import Inbox
from nftsync.inputs import Inputs
from nftsync.kernel import Kernel
from nftsync.lab import Lab
from nftsync.links import Links
from nftsync.nftresource import Nft, parse_nft
from nftsync.objects import Reason, Service, parse_service
from nftsync.reconcile import Reconciler
from nftsync.result import SyncResult
from nftsync.store import Store
from tests.labtools import Raw, nft, no_metallb


class Router:
    """A reconciler in the lab's router and the objects that it is told of; `start` makes another, as after a restart."""

    def __init__(self, lab: Lab, folder: Path, caps: Caps = Caps()) -> None:  # noqa: B008 Caps are frozen
        self.lab = lab
        self._folder = folder
        self._services = Inbox[Service](parse_service, lambda: None, time.monotonic)
        nfts = Inbox[Nft](parse_nft, lambda: None, time.monotonic)
        with self._services.listing(), nfts.listing() as listing:
            listing.put(nft())
        metallb = no_metallb()
        self._inputs = Inputs(self._services, nfts, lambda _: metallb)
        self.kernel: Kernel = lab.router.call(Kernel)
        self.links: Links = lab.router.call(Links)
        self.start(caps)

    def _config(self, caps: Caps) -> Config:
        return Config(state=self._folder, local_chain=self._folder / "local-chain.nft", caps=caps, own_tables=False)

    def start(self, caps: Caps = Caps()) -> None:  # noqa: B008 Caps are frozen
        for inbox in (self._inputs.services, self._inputs.nfts):
            inbox._dirty.update(inbox._objects)
        self.reconciler = Reconciler(self._config(caps), self._inputs, self.kernel, self.links, Store(self._folder))

    def reload(self, caps: Caps) -> None:
        self.reconciler.configure(self._config(caps), self._inputs, self.reconciler.store)

    def put(self, *services: Raw) -> None:
        for each in services:
            self._services.put(each)

    def delete(self, *services: Raw) -> None:
        for each in services:
            self._services.delete(each)

    def sync(self, *, resync: bool = False) -> SyncResult:
        result: SyncResult = self.lab.router.call(self.reconciler.sync, resync=resync)
        return result

    def refused(self, reason: Reason) -> set[str]:
        """Whose objects are refused for this."""
        return {each.object.name for each in self.reconciler.rejections() if each.reason is reason}
