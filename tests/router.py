"""A router for tests: a kernel in a network namespace, the daemon's parts, and a cluster.

`Router` hides from the tests how the daemon's parts join. It stands for one process after another:
the kernel, the files and the cluster outlive each. The API server answers, or it is silent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from nftsync.cluster.cache import Inputs, ObjectCache
from nftsync.cluster.source import Source
from nftsync.config import Config
from nftsync.daemon.observe import Observer
from nftsync.daemon.publish import Publisher
from nftsync.daemon.reconcile import Reconciler
from nftsync.daemon.record import Record
from nftsync.files.journal import Journal
from nftsync.files.runtime import BootMark
from nftsync.kernel.interfaces import Links, Network
from nftsync.kernel.nft import Kernel
from nftsync.objects import names
from nftsync.objects.address import Address, AddressSet
from nftsync.objects.names import Name, Reason, Rejection, identify
from nftsync.objects.nft import Confirmation
from nftsync.plan.result import Outcome, SyncResult
from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.settings import Settings
from tests.lab.lab import Lab
from tests.lab.namespace import Namespace
from tests.labtools import Raw

KINDS = tuple(names.KINDS)


def config_in(folder: Path, **changes: Any) -> Config:
    """A configuration with its files in a folder. Tests and other programs may change the tables.

    changes: fields of Config.
    """
    made = Config(state=folder, runtime=folder, local_chain=folder / "local-chain.nft", own_tables=False)
    return replace(made, **changes)


class Router:
    """One router.

    objects: those in the cluster.  listed: whether the API server answers.
    wake: called after each change, as in the daemon.
    """

    def __init__(
        self,
        place: Namespace,
        config: Config,
        *objects: Raw,
        listed: bool = True,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.place = place
        self.config = config
        self._wake = wake
        self._cluster: dict[str, dict[Name, Raw]] = {kind: {} for kind in KINDS}
        self._links: Links = place.call(Links)
        self._keep(*objects)
        self._begin(listed=listed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process. Its rules stay in the kernel."""
        self._record.finish()
        self._links.close()

    @property
    def local_chain(self) -> Path:
        """The local chain's file."""
        return self.config.local_chain

    # --- the cluster --------------------------------------------------------------------------------------

    def put(self, *objects: Raw) -> None:
        """Add or change objects of any kind."""
        for raw in objects:
            self._keep(raw)
            if self._listed:
                self._caches[raw["kind"]].put(raw)

    def delete(self, *objects: Raw) -> None:
        """Delete objects of any kind."""
        for raw in objects:
            self._cluster[raw["kind"]].pop(identify(raw)[0], None)
            if self._listed:
                self._caches[raw["kind"]].delete(raw)

    def lists(self, *objects: Raw) -> None:
        """Let the silent API server answer.

        The first lists are complete and hold these objects, too.
        """
        self._keep(*objects)
        self._listed = True
        for kind, cache in self._caches.items():
            with cache.relist() as relist:
                for raw in self._cluster[kind].values():
                    relist.put(raw)

    def _keep(self, *objects: Raw) -> None:
        for raw in objects:
            self._cluster[raw["kind"]][identify(raw)[0]] = raw

    def _connect(self, *, listed: bool) -> None:
        """Connect to the cluster with new caches."""
        self._inputs = Inputs.empty(self._wake, remembered=self._record.memory.named)
        self._caches: dict[str, ObjectCache[Any]] = self._inputs.by_kind()
        self._listed = False
        if listed:
            self.lists()

    # --- the process --------------------------------------------------------------------------------------

    def restart(self, *, listed: bool = True, **changes: Any) -> None:
        """Start another process with the same kernel and files.

        listed: whether the API server answers.
        """
        self._record.finish()
        self.config = replace(self.config, **changes)
        self._begin(listed=listed)

    def _begin(self, *, listed: bool) -> None:
        self._record = Record(self.config.state, self.config.runtime)
        self._connect(listed=listed)
        self.kernel: Kernel = self.place.call(Kernel)
        facts = self._record.memory.facts
        network = Network(self._links, facts.local, facts.peers)
        self._observer = Observer(self.config, self._inputs, network, facts)
        self._reconciler: Reconciler = Reconciler(self._observer, self.kernel, self._record)
        self._result = SyncResult(Outcome.WAITING)

    def forget(self) -> None:
        """Delete the journal before the next process begins."""
        self._record.finish()
        for path in self.config.state.glob("*.journal"):
            path.unlink()

    def reload(self, *, listed: bool = True, **changes: Any) -> None:
        """Reload a changed configuration. listed: False for another API server, which is silent."""
        self.config = replace(self.config, **changes)
        if not (listed and self._listed):
            self._connect(listed=listed)
        self._observer.configure(self.config, self._inputs)
        self._record.move(self.config.state, self.config.runtime)

    def sync(self, *, resync: bool = False, changed_by: str = "") -> SyncResult:
        """Sync as the daemon does: look at local chain and NICs first.

        changed_by: the program that changed our tables.
        """
        self._result = self.place.call(self._reconciler.sync, look=True, resync=resync, changed_by=changed_by)
        return self._result

    def synced(self, *, resync: bool = False, changed_by: str = "") -> SyncResult:
        """Sync, and assert success."""
        result = self.sync(resync=resync, changed_by=changed_by)
        assert result.outcome in (Outcome.APPLIED, Outcome.UNCHANGED), result.message
        return result

    def sync_events(self) -> SyncResult:
        """Sync after events of the cluster alone, at the daemon's speed.

        The calling thread is in the namespace already.
        """
        self._result = self._reconciler.sync()
        return self._result

    def publish(self, publisher: Publisher, source: Source, result: SyncResult) -> None:
        """Let a publisher publish a sync's result."""
        publisher.publish(source, result)

    # --- its state now ------------------------------------------------------------------------------------

    def pinholes(self) -> Mapping[str, Pinhole]:
        """The pinholes that the kernel has accepted, by their keys."""
        return self._reconciler.opened()

    def settings_in_force(self) -> Settings | None:
        """The settings of the rules in the kernel; None before the first successful sync."""
        return self._result.settings

    def rejections(self) -> tuple[Rejection, ...]:
        """All rejections of the last sync."""
        return self._result.rejections

    def refused(self, reason: Reason) -> set[str]:
        """The names of the objects with a rejection for this reason."""
        return {each.object.name for each in self.rejections() if each.reason is reason}

    def admits(self, address: Address) -> bool:
        """Whether a Service may have an address, after the last sync."""
        return self._result.guard.admits(address)

    def cluster_addresses(self) -> AddressSet:
        """The addresses that are closed except for their pinholes, after the last sync."""
        return self._result.guard.cluster

    def confirmation(self) -> tuple[Confirmation, str]:
        """The state of settings that need a confirmation, and the sentence about it."""
        confirming = self._observer.confirming
        return confirming.state, str(confirming)

    def next_deadline(self) -> float:
        """Seconds until the next sync even if no input changes; infinite for never."""
        return max(0.0, self._observer.deadline - time.monotonic())

    def local_chain_changed(self) -> bool:
        """True if the local chain's file has changed since the last sync."""
        return self._observer.local_chain_changed()

    # --- the state folder ---------------------------------------------------------------------------------

    def saved_local_chain(self) -> str:
        """The last good local chain in the state folder."""
        return Journal(self.config.state).load().facts.local_chain

    def save_local_chain(self, body: str) -> None:
        """Replace the last good local chain in the state folder without the process."""
        journal = Journal(self.config.state)
        memory = journal.load()
        memory.facts = replace(memory.facts, local_chain=body)
        journal.replace(memory)
        journal.finish()

    def rules_are_known(self) -> bool:
        """True if the next process can check that nobody has changed the rules."""
        mark = BootMark(self.config.runtime)
        return mark.facts is not None and bool(mark.facts.rules)


class LabRouter(Router):
    """The router of a lab."""

    def __init__(self, lab: Lab, config: Config, *objects: Raw, listed: bool = True) -> None:
        super().__init__(lab.router, config, *objects, listed=listed)
        self.lab = lab
