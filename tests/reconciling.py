"""A reconciler with a real kernel, told of objects by the test instead of by a source."""

from __future__ import annotations

import time
from pathlib import Path

from nftsync.cluster.cache import Inbox
from nftsync.cluster.inputs import Inputs
from nftsync.cluster.metallb import MetalLB
from nftsync.config import Boundary, Caps, Config
from nftsync.daemon.reconcile import Reconciler
from nftsync.daemon.record import Store
from nftsync.kernel.interfaces import Links
from nftsync.kernel.nft import Kernel
from nftsync.objects.names import Reason
from nftsync.objects.nft import Nft, parse_nft
from nftsync.objects.service import Service, parse_service
from nftsync.plan.result import SyncResult
from tests.lab.lab import Lab
from tests.labtools import Raw, nft, no_metallb


def _nothing_listed() -> Inputs:
    """The inputs of a process that has heard nothing of its cluster yet, which has no MetalLB."""
    metallb = no_metallb()
    services = Inbox[Service](parse_service, lambda: None, time.monotonic)
    return Inputs(services, Inbox[Nft](parse_nft, lambda: None, time.monotonic), lambda _: metallb)


class Router:
    """A reconciler in the lab's router and the objects that it is told of; `start` makes another, as after a restart."""

    def __init__(self, lab: Lab, folder: Path, caps: Caps = Caps()) -> None:  # noqa: B008 Caps are frozen
        self.lab = lab
        self.folder = folder
        self._inputs = _nothing_listed()
        with self._inputs.services.listing(), self._inputs.nfts.listing() as listing:
            listing.put(nft())
        self.confirm_seconds = 0.0
        self.boundary = Boundary()
        self.kernel: Kernel = lab.router.call(Kernel)
        self.links: Links = lab.router.call(Links)
        self.start(caps)

    def _config(self, caps: Caps) -> Config:
        return Config(
            state=self.folder,
            local_chain=self.local_chain,
            caps=caps,
            own_tables=False,
            boundary=self.boundary,
            confirm_seconds=self.confirm_seconds,
        )

    @property
    def local_chain(self) -> Path:
        return self.folder / "local-chain.nft"

    def start(self, caps: Caps = Caps(), *, listed: bool = True) -> None:  # noqa: B008 Caps are frozen
        """listed: whether the API answers."""
        for inbox in (self._inputs.services, self._inputs.nfts):
            inbox._dirty.update(inbox._objects)
        inputs = self._inputs if listed else _nothing_listed()
        self.reconciler = Reconciler(self._config(caps), inputs, self.kernel, self.links, Store(self.folder))

    def reload(self, caps: Caps = Caps(), *, listed: bool = True) -> None:  # noqa: B008 Caps are frozen
        """listed: whether the API is the same; else it is another one, which does not answer."""
        inputs = self._inputs if listed else _nothing_listed()
        self.reconciler.configure(self._config(caps), inputs, self.reconciler.in_force.store)

    def settings(self, resource: Raw) -> None:
        self._inputs.nfts.put(resource)

    def metallb(self) -> MetalLB:
        return self._inputs.metallb("")

    def put(self, *services: Raw) -> None:
        for each in services:
            self._inputs.services.put(each)

    def delete(self, *services: Raw) -> None:
        for each in services:
            self._inputs.services.delete(each)

    def sync(self, *, resync: bool = False, meddler: str = "") -> SyncResult:
        result: SyncResult = self.lab.router.call(self.reconciler.sync, resync=resync, meddler=meddler)
        return result

    def refused(self, reason: Reason) -> set[str]:
        """Whose objects are refused for this."""
        return {each.object.name for each in self.reconciler.rejections() if each.reason is reason}
