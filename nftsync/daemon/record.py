"""What the kernel has accepted: as this process knows it, in the journal, and in /run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b

from nftsync.config import PoolMode
from nftsync.files.bootmark import BootMark
from nftsync.files.journal import Journal
from nftsync.objects.names import Name
from nftsync.objects.service import Service
from nftsync.plan.applied import Applied
from nftsync.plan.memory import BootFacts, Facts
from nftsync.plan.plan import Left, Plan
from nftsync.plan.snapshot import Snapshot
from nftsync.policy.confirm import Confirming
from nftsync.policy.pinholes import Pinhole

AS_OF = 300.0  # seconds until it is written down anew that the cluster still asks for the same

Versions = Mapping[Name, Service | None]  # None: the Service is gone


@dataclass(frozen=True, slots=True)
class Store:
    """What outlives the process, and what outlives it until the next boot."""

    journal: Journal
    mark: BootMark


class Record:
    """Nothing is recorded as accepted before the kernel has accepted it. One thread owns a Record.

    memory: as the journal has it.  applied: what the kernel has.  left: what tells whether its rules are still ours.
    boot: what counts until the next boot.  memory_is_right: whether what stands was loaded by others, though it may not be the
    first run since the boot.  clock: monotonic seconds.
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
        self._as_of = float("-inf")  # when facts.as_of was written down
        self._differs = False  # whether the journal has other facts than memory
        self._hash, self._hashed = "", tuple[object, ...]()

    def move(self, journal: Journal | None, mark: BootMark | None) -> None:
        """Keep it in other files from now on; None for the same ones."""
        if journal is not None:
            self._store.journal.finish()
            journal.replace(self.memory)
        if mark is not None:
            mark.write(self.boot)
        self._store = Store(journal or self._store.journal, mark or self._store.mark)

    @property
    def kept(self) -> bool:
        """Whether the disk has what it should."""
        return self._store.journal.kept

    def changed(self, admitted: Mapping[Name, Service]) -> dict[Name, Service | None]:
        """What differs from what was accepted last."""
        before = self.memory.services
        gone: dict[Name, Service | None] = {name: None for name in before if name not in admitted}
        return gone | {name: service for name, service in admitted.items() if before.get(name) != service}

    def expect(self, changed: Versions, facts: Facts | None = None) -> None:
        """The kernel is about to take these versions. They are written down first: so a process that is killed between the two
        opens nothing again that it had closed.
        """
        self._store.journal.remember(changed, None if facts == self.memory.facts else facts)
        self._differs = facts is not None and facts != self.memory.facts

    def revert(self, names: Iterable[Name]) -> None:
        """The kernel has not taken the newest versions of these."""
        facts = self.memory.facts if self._differs else None
        self._store.journal.remember({name: self.memory.services.get(name) for name in names}, facts)
        self._differs = False

    def without_limits(self, changed: Versions) -> Versions:
        """The versions that the kernel has taken of these, where it took no limits: those that were stay."""
        taken = dict(changed)
        for name, service in changed.items():
            before = self.memory.services.get(name)
            if service is not None:
                limit = before.limit if before is not None and before.uid == service.uid else None
                taken[name] = replace(service, limit=limit)
        self._store.journal.remember({name: service for name, service in taken.items() if service != changed[name]})
        return taken

    def take(self, changed: Versions) -> None:
        """The kernel has taken them."""
        for name, service in changed.items():
            if service is None:
                self.memory.services.pop(name, None)
            else:
                self.memory.services[name] = service

    def accept(self, planned: Plan, pinholes: dict[str, Pinhole], rules: str, boot: BootFacts) -> None:
        """The kernel has taken a whole plan. rules: as they were read back."""
        self.applied = Applied.of(planned.wanted.tables, pinholes, planned.settings)
        self.left = Left(rules, planned.wanted.tables)
        self.first_since_boot = False
        self.boot = boot
        self._store.mark.write(self.boot)
        if planned.local_chain.last_good != self.memory.facts.local_chain:
            self.memory.facts = replace(self.memory.facts, local_chain=planned.local_chain.last_good)
            self._differs = True

    def remember(self, s: Snapshot, confirming: Confirming | None, *, fresh: bool) -> None:
        """The facts beside the Services, if they are others than before.

        confirming: None while the kernel has not accepted the snapshot; pools count even then, since an address that they do not
        hold is refused from the moment in which they were seen.  fresh: whether the cluster says all this now.
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
        if self._store.journal.wants_all and (confirming is not None or facts != before):  # not over what it could not read
            self._store.journal.replace(self.memory)

    def facts_of(self, s: Snapshot, confirming: Confirming | None) -> Facts:
        """The facts beside the Services, as they are in a snapshot. confirming: see remember()."""
        facts = self.memory.facts
        if s.pools.listed and s.config.address_policy.pool_mode is not PoolMode.IGNORED:
            facts = replace(facts, pools=s.pools.value, pools_listed=True)
        if confirming is not None:
            facts = replace(facts, spec=confirming.settled, rolled_back=confirming.rolled_back, config=s.config.text)
        if confirming is not None and s.interfaces.index is not None:  # else nobody has looked
            facts = replace(facts, local=s.interfaces.local, peers=s.interfaces.peers)
        return facts

    def hash(self, s: Snapshot) -> str:
        """Of what routers of one cluster have in common of their rulesets: not their NIC, not their local chain."""
        of = (self.applied.fingerprint, s.spec.value, s.guard)
        if of != self._hashed:
            spec = replace(s.spec.value, public_nic="") if s.spec.value else None
            common = f"{self.applied.fingerprint} {spec} {s.guard.legal}"
            self._hashed, self._hash = of, blake2b(common.encode(), digest_size=16).hexdigest()
        return self._hash

    def finish(self) -> None:
        """Wait a while for the disk."""
        self._store.journal.finish()
