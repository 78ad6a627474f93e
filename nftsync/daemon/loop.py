"""The daemon's loop: wait for a change, sync, report.

The loop syncs the first change after a quiet time at once. All changes of the next SETTLE seconds
become one transaction. Each input runs in its own thread and only says "something changed". Process
signals become messages, too.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from nftsync import __version__, config
from nftsync.cluster.backoff import ApiError
from nftsync.cluster.cache import Inputs
from nftsync.cluster.manifests import ManifestError, Manifests
from nftsync.cluster.source import Clock, ClusterSource, Source
from nftsync.config import Config, ConfigError
from nftsync.daemon import publish
from nftsync.daemon.control import ControlError, RequestQueue, Server
from nftsync.daemon.process import Signals, Systemd, give_back, process_signals, settle_in
from nftsync.daemon.publish import MetricsObserver, Publisher
from nftsync.daemon.reconcile import NOT_FILTERING, Reconciler
from nftsync.daemon.record import Record, Store
from nftsync.exporter.endpoint import Endpoint, EndpointError
from nftsync.exporter.metrics import KernelCollector, Metrics, ReadError
from nftsync.files.journal import Journal
from nftsync.files.runtime import BootMark, locked, read_boot_failure
from nftsync.kernel import commits, counters
from nftsync.kernel import interfaces as links
from nftsync.kernel.commits import ForeignChanges
from nftsync.kernel.interfaces import Links, Network
from nftsync.kernel.netlink import DumpError
from nftsync.kernel.nft import Kernel
from nftsync.kernel.routes import reachability
from nftsync.objects.names import NftsyncError
from nftsync.plan.result import Outcome, SyncResult

SETTLE = 0.05  # seconds: changes that follow a sync within this time become one transaction
TICK = 1.0  # seconds between looks at the local chain's file
RETRY_FIRST, RETRY_LAST = 1.0, 30.0  # seconds until the next try of a refused ruleset, doubling
GARBAGE = 200_000  # new objects until Python looks for cycles: a list has millions and no cycles
ALIVE = 30.0  # seconds: /healthz fails if the loop does not turn for longer

T = TypeVar("T")

log = logging.getLogger(__name__)


class DaemonError(NftsyncError):
    """The daemon must end. A new process can go on."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line.

    config: path, None for the default place.  manifests: files instead of a cluster.
    once: end after the first sync with complete lists.
    """

    config: Path | None = None
    manifests: tuple[Path, ...] = ()
    once: bool = False


class Daemon:
    """One router's daemon. run() opens and closes all its effects."""

    def __init__(self, options: Options, clock: Clock = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._signals = Signals()
        self._systemd = Systemd(os.environ)
        self._listeners: list[threading.Thread] = []
        self._foreign_changes = ForeignChanges(self._signals.asked, clock)
        self._metrics = Metrics()
        self._config = config.load(options.config)
        self._endpoint: Endpoint | None = None
        self._collector: KernelCollector | None = None
        self._stale: dict[str, str] = {}  # the reason for each input that is not up to date
        self._turned = clock()
        self._last = SyncResult(Outcome.WAITING, NOT_FILTERING)
        self._publisher = Publisher(self._metrics)
        self._boot_failure = read_boot_failure(self._config.runtime)
        self._metrics.show_boot_failure(self._boot_failure.loaded if self._boot_failure else "")
        self._requests = RequestQueue(self._signals.asked)
        self._server: Server | None = None
        self._started = clock()
        self._synced: float | None = None  # time of the last sync that succeeded

    def run(self) -> int:
        """Sync until a signal stops the daemon. Returns the exit status.

        With `once` the first sync with complete lists ends it.
        Raises LockedError, ConfigError, EndpointError and ManifestError before the first sync.
        """
        gc.set_threshold(GARBAGE)
        with process_signals(self._signals), locked(self._config.runtime):
            self._run()
        log.info("stopped; the ruleset stays")
        return 1 if self._options.once and self._last.outcome not in (Outcome.APPLIED, Outcome.UNCHANGED) else 0

    def _run(self) -> None:
        record = Record(_store(self._config))
        source = self._open_source(record)
        network = Links()
        try:
            facts = record.memory.facts
            here = Network(network, facts.local, facts.peers)
            reconciler = Reconciler(self._config, source.inputs, Kernel(), here, record)
            if not self._options.once:
                self._collector = self._open_collector(self._config, reconciler)
                self._endpoint = self._open_endpoint(self._config)
                self._server = self._open_server(self._config)
            self._listen("links", links.listen, self._signals.links_changed)
            self._listen("commits", commits.listen, self._foreign_changes.tell, commits.identity())
            log.info("nftsync %s started as router %s", __version__, self._config.router_name)
            if self._boot_failure:
                log.warning("%s", self._boot_failure)
            source = self._loop(reconciler, source)
        finally:
            self._systemd.stopping()
            source.stop(farewell=not self._options.once)
            network.close()
            if self._endpoint:
                self._endpoint.close()
            if self._server:
                self._server.close()
            record.finish()

    def _listen(self, name: str, listen: Callable[..., None], *arguments: object) -> None:
        """Listen to the kernel in a thread until the daemon stops."""
        thread = threading.Thread(target=listen, args=(*arguments, self._signals.stop), name=name, daemon=True)
        thread.start()
        self._listeners.append(thread)

    def _open_source(self, record: Record) -> Source:
        remembered = record.memory.named
        if self._options.manifests:
            inputs = Inputs.empty(self._signals.changed, self._clock, remembered)
            return Manifests(self._options.manifests, self._config.nft, inputs, self._signals.changed).start()
        return ClusterSource(self._config, remembered, MetricsObserver(self._metrics), self._signals.changed, self._clock)

    def _open_server(self, chosen: Config) -> Server | None:
        try:
            return Server(chosen.runtime, self._requests.call)
        except ControlError as fault:
            log.warning("nftsync status, explain, diff, top and confirm can't reach this daemon: %s", fault)
            return None

    def _answer(self, reconciler: Reconciler, source: Source) -> None:
        """Answer the requests that came since the last turn."""
        now = self._clock()
        synced = None if self._synced is None else now - self._synced
        failed = str(self._boot_failure or "")
        asked = publish.View(reconciler, source, self._publisher, self._last, now - self._started, synced, failed)
        self._requests.answer(lambda request: publish.answer(asked, request))

    def _open_collector(self, chosen: Config, reconciler: Reconciler) -> KernelCollector:
        """Start to count now, so that packets before the first scrape count, too."""
        collector = KernelCollector(
            reconciler.opened,
            partial(_reading, counters.read),
            lambda opened: _reading(lambda: reachability(opened, self._last.guard.legal)),
            cap=chosen.metrics_services,
        )
        collector.prime()
        self._metrics.registry.register(collector)
        return collector

    def _open_endpoint(self, chosen: Config) -> Endpoint | None:
        if not chosen.metrics:
            return None
        return Endpoint(chosen.metrics, self._metrics, self._healthy, self._ready)

    def _healthy(self) -> bool:
        return self._clock() - self._turned < ALIVE

    def _ready(self) -> bool:
        return self._last.outcome in (Outcome.APPLIED, Outcome.UNCHANGED)

    def _loop(self, reconciler: Reconciler, source: Source) -> Source:
        """Turn until a signal stops the daemon. Returns the source that is open then."""
        signals = self._signals
        signals.changed()
        resynced, retry_at, retry_after = self._clock(), float("inf"), RETRY_FIRST
        while True:
            resync_at = min(resynced + self._config.resync_interval, self._foreign_changes.due)
            signals.wait(min(TICK, min(resync_at, retry_at, reconciler.deadline) - self._clock()))
            self._turned = now = self._clock()
            self._systemd.alive()
            self._metrics.state_kept.set(reconciler.record.kept)
            if not self._goes_on(source):
                return source
            self._answer(reconciler, source)
            stale, self._stale = self._stale, self._publisher.stale(source, self._last)
            changed = signals.take(signals.inputs) or now >= reconciler.deadline or reconciler.local_chain_changed()
            if signals.take(signals.reload):
                source, changed = self._reload(reconciler, source), True
            resync, retry, look = now >= resync_at, now >= retry_at, signals.take(signals.links)
            if not (changed or resync or retry or look or stale != self._stale):
                continue
            result = self._sync(reconciler, source, whole=retry, look=look, resync=resync)
            if resync:
                resynced = self._clock()
            if result.outcome is Outcome.FAILED:
                retry_at, retry_after = self._clock() + retry_after, min(retry_after * 2, RETRY_LAST)
            else:
                retry_at, retry_after = float("inf"), RETRY_FIRST
            if self._options.once and result.listed:
                return source
            if result.listed:
                self._signals.stop.wait(SETTLE)

    def _goes_on(self, source: Source) -> bool:
        """False if a signal asked the daemon to stop. Raises DaemonError if an input has ended."""
        if self._signals.stop.is_set():
            return False
        if not (source.alive and all(thread.is_alive() for thread in self._listeners)):
            raise DaemonError("an input ended by itself; this is a bug, see the traceback above; the ruleset stays")
        return True

    def _sync(self, reconciler: Reconciler, source: Source, *, whole: bool, look: bool, resync: bool) -> SyncResult:
        started, first = self._clock(), not self._synced
        changed_by = self._foreign_changes.take() if resync else ""
        result = reconciler.sync(whole=whole, look=look, resync=resync, changed_by=changed_by)
        ended = self._clock()
        metrics = self._metrics
        metrics.syncs.labels(result.outcome).inc()
        metrics.sync_duration.observe(ended - started)
        if result.outcome in (Outcome.APPLIED, Outcome.UNCHANGED):
            metrics.last_success.set_to_current_time()
            self._synced = ended
            if result.since is not None:
                metrics.event_to_kernel.observe(ended - result.since)
        self._last = result
        self._publisher.publish(source, result)
        self._systemd.ready(_in_words(result))
        if first and self._synced:
            settle_in()
        elif resync:
            give_back()
        return result

    def _reload(self, reconciler: Reconciler, source: Source) -> Source:
        """Read the configuration file again. If it is not valid, keep the running configuration."""
        before, opened = self._config, source
        self._systemd.reloading()
        try:
            self._config = config.load(self._options.config)
            if not self._reads_the_same(before):
                opened = self._open_source(reconciler.record)
            if self._config.metrics != before.metrics:
                self._move_endpoint(before)
        except (ConfigError, EndpointError, ApiError, ManifestError) as fault:
            self._config = before
            if opened is not source:
                opened.stop()
            log.error("the configuration was not reloaded, the running one stays in force: %s", fault)
            return source
        if opened is not source:
            # The new one can report to another Nft or under another name.
            source.stop(farewell=not self._speaks_the_same(before))
        reconciler.configure(self._config, opened.inputs)
        state, runtime = self._config.state, self._config.runtime
        moved = Journal(state) if state != before.state else None, BootMark(runtime) if runtime != before.runtime else None
        reconciler.record.move(*moved)
        if self._collector:
            self._collector.cap = self._config.metrics_services
        log.info("configuration reloaded")
        return opened

    def _reads_the_same(self, before: Config) -> bool:
        """True if the open source of the previous configuration serves this one, too."""
        read = [(each.kubeconfig, each.unsafe_kubeconfig) for each in (before, self._config)]
        same_cluster = bool(self._options.manifests) or read[0] == read[1]
        return same_cluster and self._speaks_the_same(before)

    def _speaks_the_same(self, before: Config) -> bool:
        """True if both configurations report to the same Nft under the same router name."""
        return (self._config.nft, self._config.router_name) == (before.nft, before.router_name)

    def _move_endpoint(self, before: Config) -> None:
        """Close the old endpoint first: the new one may need its port.

        Raises EndpointError if the new one does not open; then it opens the old one again.
        """
        if self._endpoint:
            self._endpoint.close()
            self._endpoint = None
        try:
            self._endpoint = self._open_endpoint(self._config)
        except EndpointError:
            self._endpoint = self._open_endpoint(before)
            raise


def _in_words(result: SyncResult) -> str:
    """A sentence for `systemctl status`."""
    if result.outcome in (Outcome.APPLIED, Outcome.UNCHANGED):
        return "The kernel holds what the cluster asks for."
    remembered = next(iter(result.remembered.values()), "") if result.settings else ""
    said = [f"{result.outcome.capitalize()}: {result.message or 'the last ruleset stays'}"]
    return "; ".join([*said, *([f"the ruleset in force is {remembered}"] if remembered else [])])


def _reading(read: Callable[[], T]) -> T:
    """Read from the kernel for a scrape. Raises ReadError."""
    try:
        return read()
    except DumpError as error:
        raise ReadError(str(error)) from error


def _store(chosen: Config) -> Store:
    return Store(Journal(chosen.state), BootMark(chosen.runtime))
