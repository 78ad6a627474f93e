"""The state that the kernel has accepted: in this process, in the journal, and in /run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b

from nftsync.config import PoolMode
from nftsync.files.journal import Journal
from nftsync.files.runtime import BootMark
from nftsync.objects.names import Name
from nftsync.objects.service import Service
from nftsync.plan.memory import BootFacts, Facts
from nftsync.plan.plan import Left, Plan
from nftsync.plan.result import Applied
from nftsync.plan.snapshot import Confirming, Snapshot
from nftsync.policy.pinholes import Pinhole

AS_OF = 300.0  # seconds until the journal gets a new time at which the cluster asked for the same

Versions = Mapping[Name, Service | None]  # None: the Service is gone


@dataclass(frozen=True, slots=True)
class Store:
    """The files that outlive the process. mark: until the next boot only."""

    journal: Journal
    mark: BootMark


class Record:
    """Records a change as accepted only after the kernel has accepted it. One thread owns a Record.

    memory: the content of the journal.  applied: the ruleset in the kernel.
    left: a digest of the rules; it shows whether somebody changed them.
    boot: facts that count until the next boot.
    memory_is_right: True if others loaded the rules in the kernel, even if this is not the first
    run since the boot.
    clock: monotonic seconds.
    """

    def __init__(
        self, store: Store, *, memory_is_right: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._clock = clock
        self.memory = store.journal.load()
        self.boot = BootFacts(base=True) if store.mark.facts is None else store.mark.facts
        self.first_since_boot = memory_is_right or self.boot.base
        self.left = Left.by_another_process(self.boot)
        self.applied = Applied()
        self._as_of = float("-inf")  # time of the last write of facts.as_of
        self._differs = False  # whether the facts in the journal differ from those in memory
        self._hash, self._hashed = "", tuple[object, ...]()

    def move(self, journal: Journal | None, mark: BootMark | None) -> None:
        """Write to other files from now on. None keeps a file."""
        if journal is not None:
            self._store.journal.finish()
            journal.replace(self.memory)
        if mark is not None:
            mark.write(self.boot)
        self._store = Store(journal or self._store.journal, mark or self._store.mark)

    @property
    def kept(self) -> bool:
        """False while the journal can't be written."""
        return self._store.journal.kept

    def changed(self, admitted: Mapping[Name, Service]) -> dict[Name, Service | None]:
        """The Services that differ from the versions accepted last."""
        before = self.memory.services
        gone: dict[Name, Service | None] = {name: None for name in before if name not in admitted}
        return gone | {name: service for name, service in admitted.items() if before.get(name) != service}

    def expect(self, changed: Versions, facts: Facts | None = None) -> None:
        """Write down these versions before the kernel gets them.

        So after a kill between the two, the next process opens no pinhole that this one had closed.
        """
        self._store.journal.remember(changed, None if facts == self.memory.facts else facts)
        self._differs = facts is not None and facts != self.memory.facts

    def revert(self, names: Iterable[Name]) -> None:
        """Write down that the kernel refused the newest versions of these Services."""
        facts = self.memory.facts if self._differs else None
        self._store.journal.remember({name: self.memory.services.get(name) for name in names}, facts)
        self._differs = False

    def without_limits(self, changed: Versions) -> Versions:
        """These versions with their previous limits. Call it if the kernel refused all limits."""
        taken = dict(changed)
        for name, service in changed.items():
            before = self.memory.services.get(name)
            if service is not None:
                limit = before.limit if before is not None and before.uid == service.uid else None
                taken[name] = replace(service, limit=limit)
        self._store.journal.remember({name: service for name, service in taken.items() if service != changed[name]})
        return taken

    def take(self, changed: Versions) -> None:
        """Record that the kernel has accepted these versions."""
        for name, service in changed.items():
            if service is None:
                self.memory.services.pop(name, None)
            else:
                self.memory.services[name] = service

    def accept(self, planned: Plan, pinholes: dict[str, Pinhole], rules: str, boot: BootFacts) -> None:
        """Record that the kernel has accepted a whole plan.

        rules: digest of the rules in the kernel.
        """
        self.applied = Applied.of(planned.wanted.tables, pinholes, planned.settings)
        self.left = Left(rules, planned.wanted.tables)
        self.first_since_boot = False
        self.boot = boot
        self._store.mark.write(self.boot)
        if planned.local_chain.last_good != self.memory.facts.local_chain:
            self.memory.facts = replace(self.memory.facts, local_chain=planned.local_chain.last_good)
            self._differs = True

    def remember(self, s: Snapshot, confirming: Confirming | None, *, fresh: bool) -> None:
        """Write down the facts of a snapshot if they have changed.

        confirming: None while the kernel has not accepted the snapshot. Pools count even then: the
        guard refuses addresses outside of the pools as soon as the daemon has seen them.
        fresh: whether all watches are up to date.
        """
        before, now = self.memory.facts, self._clock()
        facts = self.facts_of(s, confirming)
        renew = confirming is not None and s.complete and fresh
        if self._differs or facts != before or (renew and now - self._as_of >= AS_OF):
            if renew:
                facts, self._as_of = replace(facts, as_of=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")), now
            self.memory.facts = facts
            self._store.journal.remember({}, facts)
            self._differs = False
        if self._store.journal.wants_all and (confirming is not None or facts != before):  # keep an unreadable file
            self._store.journal.replace(self.memory)

    def facts_of(self, s: Snapshot, confirming: Confirming | None) -> Facts:
        """The facts of a snapshot: everything but its Services. confirming: see remember()."""
        facts = self.memory.facts
        if s.pools.listed and s.config.address_policy.pool_mode is not PoolMode.IGNORED:
            facts = replace(facts, pools=s.pools.value, pools_listed=True)
        if confirming is not None:
            facts = replace(facts, spec=confirming.settled, rolled_back=confirming.rolled_back, config=s.config.text)
        if confirming is not None and s.interfaces.index is not None:  # None: did not look yet
            facts = replace(facts, local=s.interfaces.local, peers=s.interfaces.peers)
        return facts

    def hash(self, s: Snapshot) -> str:
        """Digest of the ruleset without the NIC and the local chain.

        Routers of one cluster show the same digest.
        """
        of = (self.applied.fingerprint, s.spec.value, s.guard)
        if of != self._hashed:
            spec = replace(s.spec.value, public_nic="") if s.spec.value else None
            common = f"{self.applied.fingerprint} {spec} {s.guard.legal}"
            self._hashed, self._hash = of, blake2b(common.encode(), digest_size=16).hexdigest()
        return self._hash

    def finish(self) -> None:
        """Wait a few seconds for the disk."""
        self._store.journal.finish()
