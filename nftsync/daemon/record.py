"""The state that the kernel has accepted: in this process, in the journal, and in /run."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

from nftsync.config import PoolMode
from nftsync.daemon.observe import Changed
from nftsync.files.journal import Journal
from nftsync.files.runtime import BootMark
from nftsync.kernel.nft import KernelError
from nftsync.objects.names import Name
from nftsync.objects.nft import Nics
from nftsync.objects.service import Service
from nftsync.plan.closed import NOTHING_CLOSES, Closing, closing, old
from nftsync.plan.memory import BootFacts, Facts
from nftsync.plan.plan import Left, Plan
from nftsync.plan.result import Applied
from nftsync.plan.snapshot import Snapshot
from nftsync.policy.confirm import Confirming
from nftsync.policy.pinholes import Pinhole

AS_OF = 300.0  # seconds until the journal gets a new time at which the cluster asked for the same


class Record:
    """Records a change as accepted only after the kernel has accepted it. One thread owns a Record.

    state, runtime: folders of the journal, and of the mark that counts until the next boot.
    memory: the content of the journal.  applied: the ruleset in the kernel.
    left: a digest of the rules; it shows whether somebody changed them.
    boot: facts that count until the next boot.
    memory_is_right: True if others loaded the rules in the kernel, even if this is not the first
    run since the boot.
    clock: monotonic seconds.  wall_clock: Unix seconds.
    """

    def __init__(
        self,
        state: Path,
        runtime: Path,
        *,
        memory_is_right: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._folders = state, runtime
        self.journal = Journal(state)
        self._mark = BootMark(runtime)
        self._clock, self._wall_clock = clock, wall_clock
        self.memory = self.journal.load()
        self.boot = BootFacts(base=True) if self._mark.facts is None else self._mark.facts
        self.first_since_boot = memory_is_right or self.boot.base
        self.left = Left.by_another_process(self.boot)
        self.applied = Applied()
        self._local_chain = self.memory.facts.local_chain  # the last body that the kernel accepted
        self._written = self.memory.facts  # in the journal
        self._as_of = float("-inf")  # time of the last write of facts.as_of
        self._hash, self._hashed = "", tuple[object, ...]()

    def move(self, state: Path, runtime: Path) -> None:
        """Write to these folders from now on."""
        before, self._folders = self._folders, (state, runtime)
        if state != before[0]:
            self.journal.finish()
            self.journal = Journal(state)
            self.journal.replace(self.memory)
            self._written = self.memory.facts
        if runtime != before[1]:
            self._mark = BootMark(runtime)
            self._mark.write(self.boot)

    def changed(self, admitted: Mapping[Name, Service], *, limits: bool) -> Changed:
        """The Services that differ from the versions accepted last.

        limits: False if the kernel refuses all limits; then the previous limits count.
        """
        before = self.memory.services
        if not limits:
            admitted = {name: _with_limit_of(service, before.get(name)) for name, service in admitted.items()}
        gone: dict[Name, Service | None] = {name: None for name in before if name not in admitted}
        return gone | {name: service for name, service in admitted.items() if before.get(name) != service}

    def closing(self, before: Iterable[str], after: Collection[str], idle: Collection[str] = ()) -> Closing:
        """The change of the closed endpoints when the endpoints `after` are open in place of `before`.

        idle: closed endpoints of which conntrack has no connection.
        """
        return closing(self.memory.closed, before, after, int(self._wall_clock()), idle)

    def old(self) -> frozenset[str]:
        """The closed endpoints to forget as soon as conntrack has no connection of them."""
        return old(self.memory.closed, int(self._wall_clock()))

    @contextmanager
    def attempt(
        self, changed: Changed, facts: Facts | None = None, closing: Closing = NOTHING_CLOSES
    ) -> Iterator[None]:
        """Give the kernel these versions inside of the block. On KernelError the versions before count.

        The journal gets the versions first. So after a kill in between, the next process opens no
        pinhole that this one had closed.
        """
        services = self.memory.services
        self._write(changed, facts or self._written, closing)
        try:
            yield
        except KernelError:
            undone = closing.undone(self.memory.closed)
            self._write({name: services.get(name) for name in changed}, self.memory.facts, undone)
            raise
        closing.apply(self.memory.closed)
        for name, service in changed.items():
            if service is None:
                services.pop(name, None)
            else:
                services[name] = service

    def _write(self, changed: Changed, facts: Facts, closing: Closing = NOTHING_CLOSES) -> None:
        self.journal.remember(changed, None if facts == self._written else facts, closing)
        self._written = facts

    def accept(self, planned: Plan, pinholes: dict[str, Pinhole], rules: str, boot: BootFacts) -> None:
        """Record that the kernel has accepted a whole plan.

        rules: digest of the rules in the kernel.
        """
        self.applied = Applied.of(planned.wanted.tables, pinholes, planned.settings)
        self.left = Left(rules, planned.wanted.tables)
        self.boot = boot
        self._mark.write(self.boot)
        self._local_chain = planned.local_chain.last_good

    def remember(self, s: Snapshot, confirming: Confirming | None, *, fresh: Callable[[], bool]) -> None:
        """Write down the facts of a snapshot if they have changed.

        confirming: None while the kernel has not accepted the snapshot. Pools count even then: the
        guard refuses addresses outside of the pools as soon as the daemon has seen them.
        fresh: whether all watches are up to date.
        """
        before, now = self.memory.facts, self._clock()
        facts = self.facts_of(s, confirming)
        due = facts != before or facts != self._written or now - self._as_of >= AS_OF
        if due and confirming is not None and s.complete and fresh():
            facts, self._as_of = replace(facts, as_of=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")), now
        self._write({}, facts)
        self.memory.facts = facts
        if self.journal.wants_all and (confirming is not None or facts != before):  # keep an unreadable file
            self.journal.replace(self.memory)

    def facts_of(self, s: Snapshot, confirming: Confirming | None) -> Facts:
        """The facts of a snapshot: everything but its Services. confirming: see remember()."""
        facts = self.memory.facts
        if s.pools.listed and s.config.address_policy.pool_mode is not PoolMode.IGNORED:
            facts = replace(facts, pools=s.pools.value, pools_listed=True)
        if confirming is not None:
            facts = replace(
                facts,
                spec=confirming.settled,
                rolled_back=confirming.rolled_back,
                config=s.config.text,
                local_chain=self._local_chain,
            )
        seen = s.interfaces
        if confirming is not None and seen.live and (side := seen.side):
            facts = replace(facts, local=seen.local, peers=seen.peers)
            if confirming.in_force == confirming.settled:
                names, inside = frozenset(side.names or ()), frozenset(side.inside or ())
                facts = replace(facts, public=names, inside=inside, devices=side.devices, trunks=side.trunks)
        return facts

    def hash(self, s: Snapshot) -> str:
        """Digest of the ruleset without the NIC and the local chain.

        Routers of one cluster show the same digest.
        """
        of = (self.applied.fingerprint, s.spec.value, s.guard)
        if of != self._hashed:
            spec = replace(s.spec.value, nics=Nics()) if s.spec.value else None
            common = f"{self.applied.fingerprint} {spec} {s.guard.legal}"
            self._hashed, self._hash = of, blake2b(common.encode(), digest_size=16).hexdigest()
        return self._hash

    def finish(self) -> None:
        """Wait a few seconds for the disk."""
        self.journal.finish()


def _with_limit_of(service: Service, before: Service | None) -> Service:
    """A Service with the limit of its previous version. The kernel takes egress limits all the same."""
    return replace(service, limit=before.limit if before is not None and before.uid == service.uid else None)
