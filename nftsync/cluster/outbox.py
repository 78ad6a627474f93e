"""Reports to the cluster: the Nft's status and Events, from a separate thread.

The sync never waits for this thread. It writes the status if the cluster's copy differs, at most
every few seconds. If the status changes without end, or if somebody else keeps changing it back, it
writes more slowly.
"""

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from nftsync.cluster.api import Api
from nftsync.cluster.backoff import ApiError, Backoff
from nftsync.cluster.watch import Observer
from nftsync.objects.names import MEND, NFT, Name
from nftsync.objects.nft import Figures, Nft, NftStatus, RouterStatus
from nftsync.report.conditions import describe, stamped, stopped, summary
from nftsync.report.events import Bucket, EventQueue, Notice, Request

SETTLE = 1.0  # seconds between the start and the first status: a restart is no news
QUIET = 3.0  # seconds between two writes of the status
LONGEST = 300.0  # seconds between two writes of the same status, if somebody changes it back
BURST, SLOW = 20, 30.0  # so many writes of the status, then one in so many seconds
FOR_CONDITIONS = 10  # of those, only for a condition that turned
TICK = 5.0  # seconds between looks at the status of other routers
DISAGREE = 60.0  # seconds for which rulesets can differ without a report
ABSENT = 3  # after so many 404s in a row, the cluster's CustomResourceDefinition has no status
# The API server's words about a namespace that goes, a gone one, and one with rules about Events of its own.
_OF_NAMESPACE = ("being terminated", 'namespaces "', "denied the request", "denied request", "exceeded quota")
DENIED = 300.0  # seconds between two tries of a forbidden request

log = logging.getLogger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


class StatusWriter:
    """Decides when to write the status, and its content. Not thread-safe.

    begins: the clock's time of the first write.
    """

    def __init__(self, nft: Name, router: str, utc: Callable[[], datetime], *, begins: float) -> None:
        self._nft = nft
        self._router = router
        self._utc = utc
        self._ours: dict[str, float] = {}  # hashes, with the last time at which each was ours or new
        self._bucket = Bucket.full(BURST, SLOW)
        self._written: object = None
        self._written_at = self._not_before = begins
        self._interval = QUIET

    def next(self, now: float, wanted: RouterStatus, seen: NftStatus, *, anyway: bool = False) -> Request | float:
        """The request that updates the cluster's status, or the seconds until the next chance.

        wanted: this router's status, without times.
        anyway: write even if `seen` is up to date, because `seen` can be older than the last write.
        """
        self._ours[wanted.hash] = now
        if now < self._not_before:
            return self._not_before - now
        own = next((router for router in seen.routers if router.name == self._router), RouterStatus(self._router))
        time = self._utc().strftime("%Y-%m-%dT%H:%M:%SZ")
        router = replace(wanted, conditions=stamped(wanted.conditions, own.conditions, time))
        if own.hash == router.hash:
            router = replace(router, last_change=own.last_change or router.last_change)
        others = (other for other in seen.routers if other.name != self._router)
        routers = sorted((*others, router), key=lambda router: router.name)
        disagree = self._disagree(now, routers, reported=seen.disagree)
        together, figures = stamped(summary(routers, disagree=disagree), seen.conditions, time), Figures.of(routers)
        if not anyway and own == router and set(together) <= set(seen.conditions) and figures == seen.figures:
            return float("inf")
        content = (wanted, figures, tuple(replace(condition, since="") for condition in together))
        if not anyway and not self._bucket.take(now, keep=FOR_CONDITIONS * (_turned(own) == _turned(router))):
            return QUIET
        again = content == self._written and now - self._written_at < 2 * LONGEST
        self._interval = min(2 * self._interval, LONGEST) if again else QUIET
        self._written, self._written_at = content, now
        self._not_before = now + self._interval
        body: dict[str, object] = {
            "apiVersion": NFT.api_version,
            "kind": NFT.name,
            "metadata": {"namespace": self._nft.namespace, "name": self._nft.name},
            "status": describe(router, together, routers),
        }
        path = f"{NFT.path(self._nft.namespace)}/{self._nft.name}/status"
        return Request("PATCH", path, body, "application/apply-patch+yaml")

    def last(self, now: float, wanted: RouterStatus, seen: NftStatus) -> Request | float:
        """The request that reports the end of this daemon; infinity if it never reported."""
        if self._written is None and all(router.name != self._router for router in seen.routers):
            return float("inf")
        self._not_before = now
        return self.next(now, stopped(wanted), seen, anyway=self._written is not None)

    def postpone(self, until: float) -> None:
        """Make no request before the clock's time `until`."""
        self._not_before = until
        self._written = None

    def _disagree(self, now: float, routers: list[RouterStatus], *, reported: bool) -> bool:
        """True if rulesets have differed for long.

        A router that still catches up is no news: its hash was ours a moment ago, or is new to us.
        """
        hashes = {router.hash for router in routers if router.hash}
        differ = len(hashes) > 1
        known = {each: self._ours.get(each, now) if differ else now for each in hashes}
        self._ours = {each: when for each, when in self._ours.items() if now - when < DISAGREE} | known
        # If the status already says so, believe it: two routers must not contradict each other.
        return differ and (reported or any(now - when >= DISAGREE for when in known.values()))


def _turned(router: RouterStatus) -> dict[str, bool]:
    return {condition.type: condition.holds for condition in router.conditions}


@dataclass(slots=True)
class _Sender:
    """Requests of one sort. It counts failures in a row and keeps repetitions out of the log.

    failing: for the log.  advice: by HTTP status.  logged: the status of each error in the log.
    """

    failing: str
    advice: Mapping[int | None, str]
    failures: int = 0
    logged: set[int | None] = field(default_factory=set)


class Reporter:
    """Sends reports to the cluster, until stopped.

    resource: returns the Nft resource as the watch saw it last.  clock: monotonic seconds.
    """

    def __init__(  # noqa: PLR0913  # tests inject the clocks
        self,
        api: Api,
        nft: Name,
        router: str,
        resource: Callable[[], Nft | None],
        observer: Observer,
        *,
        clock: Callable[[], float] = time.monotonic,
        utc: Callable[[], datetime] = utc_now,
    ) -> None:
        self._api = api
        manager = f"nftsync-{router}"
        if len(manager) > 128:  # two routers with one field manager would remove each other's entry
            manager = f"{manager[:111]}-{hashlib.sha256(router.encode()).hexdigest()[:16]}"
        self._query = {"fieldManager": manager, "force": "true"}
        self._resource = resource
        self._observer = observer
        self._clock = clock
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._farewell = False
        self._backoff = Backoff(initial=1.0, maximum=60.0, forbidden=DENIED)
        self._rng = random.Random()  # noqa: S311  # jitter is no secret
        self._wanted: RouterStatus | None = None  # None before the first sync
        self._status = StatusWriter(nft, router, utc, begins=clock() + SETTLE)
        old = f"the cluster's CustomResourceDefinition is too old: {MEND}"
        self._writes = _Sender("Cannot write the Nft's status", {403: MEND, 404: old})
        self._lock = threading.Lock()  # of the queue
        self._events = EventQueue(router, utc)
        self._events_at = 0.0
        self._sends = _Sender("Cannot send Events", {403: MEND})
        self._dropped = 0

    def status(self, wanted: RouterStatus) -> None:
        """Set the status that this router wants from now on. Never blocks."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._wake.set()

    def tell(self, news: Iterable[Notice]) -> None:
        """Send Events about these notices. Never blocks; a full queue drops Events."""
        with self._lock:
            for notice in news:
                self._events.put(notice)
        self._wake.set()

    def run(self) -> None:
        """Send reports until stop(). Run it in its own thread."""
        while not self._stop.is_set():
            self._wake.wait(self.step())
            self._wake.clear()
        if self._farewell:
            self._send_status(self._status.last)

    def stop(self, *, farewell: bool = False) -> None:
        """Let run() end. farewell: it first reports the end of this daemon in the status."""
        self._farewell = farewell
        self._stop.set()
        self._wake.set()

    def step(self) -> float:
        """Send the due reports. Returns the seconds until the next look, at most TICK."""
        wait = min(TICK, self._send_status(self._status.next), self._send_events())
        with self._lock:
            dropped, self._dropped = self._events.dropped - self._dropped, self._events.dropped
        for _ in range(dropped):
            self._observer.sent_event("dropped")
        return wait

    def _send_status(self, next_request: Callable[[float, RouterStatus, NftStatus], Request | float]) -> float:
        resource = self._resource()
        if resource is None or self._wanted is None:
            return TICK
        due = next_request(self._clock(), self._wanted, resource.status)
        if not isinstance(due, Request):
            return due
        error = self._send(self._writes, due, self._query)
        self._observer.wrote_status("failed" if error else "written")
        if error:
            self._writes.failures += 1
            # A 404 means either: the resource was just deleted, or its kind has no status.
            gone = error.status == 404 and self._writes.failures < ABSENT
            wait = QUIET if gone else self._backoff.wait(self._writes.failures, error, self._rng)
            self._status.postpone(self._clock() + wait)
            if not gone:
                self._complain(self._writes, error)
        return TICK

    def _send_events(self) -> float:
        while not self._stop.is_set():
            now = self._clock()
            with self._lock:
                due = self._events.next(now) if now >= self._events_at else self._events_at - now
            if not isinstance(due, Request):
                return due
            error = self._send(self._sends, due)
            self._observer.sent_event("failed" if error else "sent")
            if error:
                self._refused(due, error)
            else:
                with self._lock:
                    self._events.sent(self._clock())
        return 0.0

    def _refused(self, due: Request, error: ApiError) -> None:
        """After a failure: wait and try again, drop this Event, or drop them all."""
        with self._lock:
            if error.status in (403, 404) and any(words in str(error) for words in _OF_NAMESPACE):
                self._events.drop()  # those of other namespaces go on
                return
            if error.status == 403:  # no right to any
                self._events.clear()
                self._events_at = self._clock() + DENIED
            elif error.status in (404, 409) and due.method == "PATCH":
                self._events.begin_anew()
                return
            elif error.status is not None and 400 <= error.status < 500 and error.status not in (401, 408, 429):
                self._events.drop()  # the server never takes this one
            else:
                self._sends.failures += 1  # a dropped Event is no failure of the server
                self._events_at = self._clock() + self._backoff.wait(self._sends.failures, error, self._rng)
        self._complain(self._sends, error)

    def _send(self, sender: _Sender, request: Request, query: Mapping[str, str] | None = None) -> ApiError | None:
        try:
            self._api.request(request.method, request.path, query, request.body, request.content_type)
        except ApiError as error:
            return error
        sender.failures = 0
        sender.logged.clear()
        return None

    def _complain(self, sender: _Sender, error: ApiError) -> None:
        """Log each HTTP status once, until a request succeeds again; messages name the object."""
        if error.status not in sender.logged and not self._stop.is_set():
            sender.logged.add(error.status)
            advice = f": {sender.advice[error.status]}" if error.status in sender.advice else ""
            log.warning("%s: %s%s. The firewall is not affected", sender.failing, error, advice)
