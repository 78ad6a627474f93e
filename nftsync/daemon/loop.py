"""The daemon's loop: wait for a change, sync, report.

The loop syncs the first change after a quiet time at once. All changes of the next SETTLE seconds
become one transaction. Each input runs in its own thread and only says "something changed". Process
signals become messages, too. A tick looks once a second at everything that sends no message.
"""

import gc
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import TypeVar

from nftsync import __version__, config
from nftsync.cluster.backoff import ApiError
from nftsync.cluster.cache import Inputs
from nftsync.cluster.manifests import ManifestError, Manifests
from nftsync.cluster.source import Clock, ClusterSource, Source
from nftsync.config import ConfigError
from nftsync.daemon.answers import View, answer
from nftsync.daemon.control import ControlError, RequestQueue, Server
from nftsync.daemon.observe import Observer
from nftsync.daemon.process import Systemd, give_back, process_signals, settle_in
from nftsync.daemon.publish import MetricsObserver, Publisher
from nftsync.daemon.reconcile import NOT_FILTERING, Reconciler
from nftsync.daemon.record import Record
from nftsync.exporter.endpoint import Endpoint, EndpointError
from nftsync.exporter.metrics import KernelCollector, Metrics, ReadError
from nftsync.files.runtime import locked, read_boot_failure
from nftsync.kernel import commits, conntrack, counters, interfaces, routes
from nftsync.kernel.netlink import DumpError
from nftsync.kernel.nft import Kernel
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


class Message(Enum):
    """A message to the loop, from any thread. A hundred equal ones count as one."""

    INPUTS = auto()  # something in the caches changed
    LINKS = auto()  # this machine's network changed
    TABLES = auto()  # another program changed our tables
    REQUEST = auto()  # a command waits for an answer
    RELOAD = auto()
    STOP = auto()


_DUE = {Message.INPUTS, Message.LINKS, Message.RELOAD}  # these need a sync


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
        self._options, self._clock = options, clock
        self._config = config.load(options.config)
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._listeners: list[threading.Thread] = []
        self._foreign_changes = commits.ForeignChanges(self._wake(Message.TABLES), clock)
        self._cutter = conntrack.Cutter(lambda: self._reconciler.opened())
        self._requests = RequestQueue(self._wake(Message.REQUEST))
        self._systemd = Systemd(os.environ)
        self._metrics = Metrics()
        self._publisher = Publisher(self._metrics, clock=clock)
        self._endpoint: Endpoint | None = None
        self._collector: KernelCollector | None = None
        self._boot_failure = read_boot_failure(self._config.runtime)
        self._metrics.show_boot_failure(self._boot_failure.loaded if self._boot_failure else "")
        self._started = self._turned = clock()
        self._synced: float | None = None  # time of the last sync that succeeded
        self._last = SyncResult(Outcome.WAITING, NOT_FILTERING)

    def run(self) -> int:
        """Sync until a signal stops the daemon. Returns the exit status.

        With `once` the first sync with complete lists ends it.
        Raises LockedError, ConfigError, EndpointError and ManifestError before the first sync.
        """
        gc.set_threshold(GARBAGE)
        with process_signals(self._receive, self._stop), locked(self._config.runtime), ExitStack() as stack:
            self._open(stack)
            self._loop()
        log.info("stopped; the ruleset stays")
        return 1 if self._options.once and not self._is_ready() else 0

    def _open(self, stack: ExitStack) -> None:
        """Open all effects. The stack closes them, the last one first."""
        self._record = Record(self._config.state, self._config.runtime)
        stack.callback(self._record.finish)
        links, facts = stack.enter_context(closing(interfaces.Links())), self._record.memory.facts
        self._network = interfaces.Network(links, facts.local, facts.peers)
        self._source = self._open_source()
        stack.callback(self._leave)
        self._observer = Observer(self._config, self._source.inputs, self._network, facts, self._clock)
        self._reconciler = Reconciler(self._observer, Kernel(), self._record)
        if not self._options.once:
            self._serve(stack)
        wake = self._wake(Message.LINKS)
        self._listen("links", interfaces.listen, wake)
        self._listen("uplinks", self._network.watch_uplinks, lambda: self._last.guard.legal, wake)
        self._listen("commits", commits.listen, self._foreign_changes.tell, commits.identity())
        self._listen("conntrack", self._cutter.run)
        log.info("nftsync %s started as router %s", __version__, self._config.router_name)
        if self._boot_failure:
            log.warning("%s", self._boot_failure)

    def _leave(self) -> None:
        self._systemd.stopping()
        self._source.stop(farewell=not self._options.once)

    def _open_source(self) -> Source:
        remembered, wake = self._record.memory.named, self._wake(Message.INPUTS)
        if self._options.manifests:
            inputs = Inputs.empty(wake, self._clock, remembered)
            return Manifests(self._options.manifests, self._config.nft, inputs, wake).start()
        return ClusterSource(self._config, remembered, MetricsObserver(self._metrics), wake, self._clock)

    def _serve(self, stack: ExitStack) -> None:
        """Answer scrapes and commands. Counts from now on: packets before the first scrape count, too."""
        self._collector = KernelCollector(
            self._reconciler.opened,
            partial(_reading, counters.read),
            lambda opened: _reading(lambda: routes.reachability(opened, self._last.guard.legal)),
            cap=self._config.metrics_services,
        )
        self._collector.prime()
        self._metrics.registry.register(self._collector)
        self._serve_metrics(self._config.metrics)
        stack.callback(self._serve_metrics, None)
        try:
            stack.callback(Server(self._config.runtime, self._requests.call).close)
        except ControlError as error:
            log.warning("nftsync status, explain, diff, top and confirm can't reach this daemon: %s", error)

    def _serve_metrics(self, address: tuple[str, int] | None) -> None:
        """Move the endpoint; None closes it. Closes the old one first: the new one may need its port.

        Raises EndpointError if the new one does not open.
        """
        if self._endpoint:
            self._endpoint.close()
        self._endpoint = None
        if address:
            self._endpoint = Endpoint(address, self._metrics, self._is_healthy, self._is_ready)

    def _is_healthy(self) -> bool:
        return self._clock() - self._turned < ALIVE

    def _is_ready(self) -> bool:
        return self._last.outcome in (Outcome.APPLIED, Outcome.UNCHANGED)

    def _listen(self, name: str, listen: Callable[..., None], *arguments: object) -> None:
        """Listen to the kernel in a thread until the daemon stops."""
        thread = threading.Thread(target=listen, args=(*arguments, self._stop), name=name, daemon=True)
        thread.start()
        self._listeners.append(thread)

    def _wake(self, message: Message) -> Callable[[], None]:
        return partial(self._messages.put, message)

    def _receive(self, number: int) -> None:
        """A process signal: TERM and INT stop, HUP reloads."""
        if number != signal.SIGHUP:
            self._stop.set()
        self._messages.put(Message.RELOAD if number == signal.SIGHUP else Message.STOP)

    def _take_messages(self, until: float) -> set[Message]:
        """All messages that wait. Without any, wait for one until a time of the clock."""
        messages = set()
        with suppress(queue.Empty):
            messages.add(self._messages.get(timeout=max(until - self._clock(), 0.0)))
            while True:
                messages.add(self._messages.get_nowait())
        return messages

    def _loop(self) -> None:
        """Turn until a signal stops the daemon."""
        resynced = tick_at = self._clock()
        retry_at, retry_after = resynced, RETRY_FIRST  # the first sync is due at once
        while not self._stop.is_set():
            resync_at = min(resynced + self._config.resync_interval, self._foreign_changes.due)
            messages = self._take_messages(min(tick_at, resync_at, retry_at, self._observer.deadline))
            self._turned = now = self._clock()
            if self._stop.is_set():  # before the answers: a `confirm` counts only with the sync that follows it
                return
            if Message.REQUEST in messages:
                self._answer()
            if Message.RELOAD in messages:
                self._reload()
            due, look = bool(messages & _DUE), Message.LINKS in messages
            if now >= tick_at:
                tick_at = now + TICK
                look |= self._observer.local_chain_changed()
                due |= self._tick() or look
            resync, retry = now >= resync_at, now >= retry_at
            if not (due or resync or retry or now >= self._observer.deadline):
                continue
            result = self._sync(whole=retry, look=look, resync=resync)
            if resync:
                resynced = self._clock()
            if result.outcome is Outcome.FAILED:
                retry_at, retry_after = self._clock() + retry_after, min(retry_after * 2, RETRY_LAST)
            else:
                retry_at, retry_after = float("inf"), RETRY_FIRST
            if result.listed and self._options.once:
                return
            self._stop.wait(SETTLE if result.listed else 0.0)

    def _tick(self) -> bool:
        """Look at everything that sends no message. True if people must hear of a change.

        Raises DaemonError if an input has ended.
        """
        alive = self._source.alive and all(thread.is_alive() for thread in self._listeners)
        if not (alive or self._stop.is_set()):  # in this order: the listeners end after `stop`
            raise DaemonError("an input ended by itself; this is a bug, see the traceback above; the ruleset stays")
        self._systemd.alive()
        self._metrics.state_kept.set(self._record.journal.kept)
        self._publisher.sum_up(self._source)
        return self._publisher.stale(self._source, self._last) != self._publisher.stale_before

    def _answer(self) -> None:
        """Answer the requests that came since the last turn."""
        now = self._clock()
        synced = None if self._synced is None else now - self._synced
        failed = str(self._boot_failure or "")
        view = View(self._observer, self._publisher, self._source, self._last, now - self._started, synced, failed)
        self._requests.answer(partial(answer, view))

    def _sync(self, *, whole: bool, look: bool, resync: bool) -> SyncResult:
        began, first = self._clock(), not self._synced
        changed_by = self._foreign_changes.take() if resync else ""
        idle = self._cutter.take_idle() if resync else ()
        self._last = result = self._reconciler.sync(
            whole=whole, look=look, resync=resync, changed_by=changed_by, idle=idle
        )
        side = result.settings.side if result.settings else None
        public = side.indices if side and side.names is not None else None
        self._cutter.take(result.cut, result.untracked, public)
        ended = self._clock()
        metrics = self._metrics
        metrics.syncs.labels(result.outcome).inc()
        metrics.sync_duration.observe(ended - began)
        if self._is_ready():
            metrics.last_success.set_to_current_time()
            self._synced = ended
            if result.since is not None:
                metrics.event_to_kernel.observe(ended - result.since)
        self._publisher.publish(self._source, result)
        self._systemd.ready(_in_words(result))
        if first and self._synced:
            settle_in()
        elif resync:
            give_back()
        return result

    def _reload(self) -> None:
        """Read the configuration file again. If it is not valid, keep the running configuration."""
        before, source = self._config, self._source
        self._systemd.reloading()
        try:
            self._config = config.load(self._options.config)
            reports_the_same = (self._config.nft, self._config.router_name) == (before.nft, before.router_name)
            access = [(chosen.kubeconfig, chosen.unsafe_kubeconfig) for chosen in (before, self._config)]
            if not (reports_the_same and (self._options.manifests or access[0] == access[1])):
                self._source = self._open_source()
            if self._config.metrics != before.metrics:
                self._serve_metrics(self._config.metrics)
        except (ConfigError, EndpointError, ApiError, ManifestError) as error:
            log.error("the configuration was not reloaded, the running one stays in force: %s", error)
            if self._config.metrics != before.metrics and not self._endpoint:
                with suppress(EndpointError):  # its address can be gone by now
                    self._serve_metrics(before.metrics)
            self._config = before
            if self._source is not source:
                self._source.stop()
                self._source = source
            return
        if self._source is not source:
            # With a farewell, if from now on it reports to another Nft or under another name.
            source.stop(farewell=not reports_the_same)
        self._observer.configure(self._config, self._source.inputs)
        self._record.move(self._config.state, self._config.runtime)
        if self._collector:
            self._collector.cap = self._config.metrics_services
        log.info("configuration reloaded")


def _in_words(result: SyncResult) -> str:
    """A sentence for `systemctl status`."""
    if result.outcome in (Outcome.APPLIED, Outcome.UNCHANGED):
        absence = result.settings.side.absence if result.settings else ""
        return f"Public NIC: {absence}." if absence else "The kernel holds what the cluster asks for."
    remembered = next(iter(result.remembered.values()), "") if result.settings else ""
    said = f"{result.outcome.capitalize()}: {result.message or 'the last ruleset stays'}"
    return f"{said}; the ruleset in force is {remembered}" if remembered else said


def _reading(read: Callable[[], T]) -> T:
    """Read from the kernel for a scrape. Raises ReadError."""
    try:
        return read()
    except DumpError as error:
        raise ReadError(str(error)) from error
