"""Reports to the cluster: the Nft's status and Events, from a separate thread.

The sync never waits for this thread. It writes the status if the cluster's copy differs, at most
every few seconds. If somebody else keeps changing the status back, it writes more and more slowly.
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from nftsync.cluster.api import Api
from nftsync.cluster.backoff import ApiError, Backoff
from nftsync.objects.kinds import MEND, NFT
from nftsync.objects.names import Name
from nftsync.objects.nft import Nft
from nftsync.objects.status import Figures, NftStatus, RouterStatus
from nftsync.report.conditions import describe, stamped, stopped, summary
from nftsync.report.events import EventQueue, Notice, Request

SETTLE = 1.0  # seconds between the start and the first status: a restart is no news
QUIET = 3.0  # seconds between two writes of the status
LONGEST = 300.0  # seconds between two writes of the same status, if somebody changes it back
TICK = 5.0  # seconds between looks at the status of other routers
DISAGREE = 60.0  # seconds for which rulesets can differ without a report
ABSENT = 3  # after so many 404s in a row, the cluster's CustomResourceDefinition has no status
DENIED = 300.0  # seconds between two tries of a forbidden request

log = logging.getLogger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


class Observer(Protocol):
    """Counts the reports. The reporter's thread calls it."""

    def wrote_status(self, result: str) -> None:
        """result: "written" or "failed"."""

    def sent_event(self, result: str) -> None:
        """result: "sent", "dropped" or "failed"."""


class StatusWriter:
    """Decides when to write the status, and its content. Not thread-safe.

    wanted: this router's status, without times; None before the first sync.
    begins: the clock's time of the first write.
    """

    def __init__(self, nft: Name, router: str, utc: Callable[[], datetime], *, begins: float) -> None:
        self._nft = nft
        self._router = router
        self._utc = utc
        self._differ_since: float | None = None
        self._written: object = None
        self._written_at = begins
        self._not_before = begins
        self._interval = QUIET
        self.wanted: RouterStatus | None = None

    def next(self, now: float, seen: NftStatus, *, anyway: bool = False) -> Request | float:
        """The request that updates the cluster's status, or the seconds until the next chance.

        anyway: write even if `seen` is up to date, because `seen` can be older than the last write.
        """
        if self.wanted is None:
            return float("inf")
        if now < self._not_before:
            return self._not_before - now
        others = [each for each in seen.routers if each.name != self._router]
        own = next((each for each in seen.routers if each.name == self._router), None)
        time = self._utc().strftime("%Y-%m-%dT%H:%M:%SZ")
        router = replace(self.wanted, conditions=stamped(self.wanted.conditions, own.conditions if own else (), time))
        if own is not None and own.hash == router.hash:
            router = replace(router, last_change=own.last_change or router.last_change)
        routers = sorted((*others, router), key=lambda each: each.name)
        disagree = self._disagree(now, routers, said=seen.disagree)
        together, figures = stamped(summary(routers, disagree=disagree), seen.conditions, time), Figures.of(routers)
        if not anyway and own == router and set(together) <= set(seen.conditions) and figures == seen.figures:
            return float("inf")
        content = (self.wanted, figures, tuple(replace(each, since="") for each in together))
        again = content == self._written and now - self._written_at < 2 * LONGEST
        self._interval = min(2 * self._interval, LONGEST) if again else QUIET
        self._written, self._written_at = content, now
        self._not_before = now + self._interval
        return self._request(describe(router, together, routers))

    def farewell(self, now: float, seen: NftStatus) -> Request | None:
        """The request that reports the end of this daemon; None if it never reported anything."""
        said = self._written is not None or any(each.name == self._router for each in seen.routers)
        if self.wanted is None or not said:
            return None
        self.wanted, self._not_before = stopped(self.wanted), now
        due = self.next(now, seen, anyway=self._written is not None)
        return due if isinstance(due, Request) else None

    def postpone(self, until: float) -> None:
        """Make no request before the clock's time `until`."""
        self._not_before = until
        self._written = None

    def _disagree(self, now: float, routers: list[RouterStatus], *, said: bool) -> bool:
        """True if rulesets have differed for long; a router that still catches up is no news.

        said: True if the status already reports it. A router that started later believes this,
        or the two routers would contradict each other.
        """
        if len({router.hash for router in routers if router.hash}) <= 1:
            self._differ_since = None
        elif self._differ_since is None:
            self._differ_since = now
        return self._differ_since is not None and (said or now - self._differ_since >= DISAGREE)

    def _request(self, status: dict[str, object]) -> Request:
        path = f"{NFT.path(self._nft.namespace)}/{self._nft.name}/status"
        body: dict[str, object] = {
            "apiVersion": NFT.api_version,
            "kind": NFT.name,
            "metadata": {"namespace": self._nft.namespace, "name": self._nft.name},
            "status": status,
        }
        return Request("PATCH", path, body, "application/apply-patch+yaml")


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
        self._manager = _field_manager(router)
        self._resource = resource
        self._observer = observer
        self._clock = clock
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._farewell = False
        self._backoff, self._failures, self._events_failures = (
            Backoff(initial=1.0, maximum=60.0, forbidden=DENIED),
            0,
            0,
        )
        self._rng = random.Random()  # noqa: S311  # jitter is no secret
        self._complaints: set[tuple[str, int | None]] = set()
        self._status = StatusWriter(nft, router, utc, begins=clock() + SETTLE)
        self._events = EventQueue(router, utc)
        self._events_at = 0.0
        self._dropped = 0

    def status(self, wanted: RouterStatus) -> None:
        """Set the status that this router wants from now on. Never blocks."""
        with self._lock:
            changed = self._status.wanted != wanted
            self._status.wanted = wanted
        if changed:
            self._wake.set()

    def tell(self, news: Iterable[Notice]) -> None:
        """Send Events about these notices. Never blocks; a full queue drops Events."""
        with self._lock:
            for each in news:
                self._events.put(each)
        self._wake.set()

    def run(self) -> None:
        """Send reports until stop(). Run it in its own thread."""
        while not self._stop.is_set():
            self._wake.wait(self.step())
            self._wake.clear()
        resource = self._resource()
        if self._farewell and resource is not None:
            with self._lock:
                last = self._status.farewell(self._clock(), resource.status)
            if last:
                self._write(last)

    def farewell(self) -> None:
        """Let run() report the end of this daemon in the status, and then end."""
        self._farewell = True
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()

    def step(self) -> float:
        """Send the due reports. Returns the seconds until the next look, at most TICK."""
        resource = self._resource()
        wait = TICK
        if resource is not None:
            with self._lock:
                due = self._status.next(self._clock(), resource.status)
            if isinstance(due, Request):
                self._write(due)
            else:
                wait = min(wait, due)
        wait = min(wait, self._send_events())
        self._count_dropped()
        return wait

    def _write(self, request: Request) -> None:
        query = {"fieldManager": self._manager, "force": "true"}
        try:
            self._api.request(request.method, request.path, query, request.body, request.content_type)
        except ApiError as fault:
            self._observer.wrote_status("failed")
            self._learn(fault)
            self._failures += 1
            # A 404 means either: the resource was just deleted, or its kind has no status.
            gone = fault.status == 404 and self._failures < ABSENT
            with self._lock:
                self._status.postpone(
                    self._clock() + (QUIET if gone else self._backoff.wait(self._failures, fault, self._rng))
                )
            if not gone:
                old = f"the cluster's CustomResourceDefinition is too old: {MEND}"
                self._complain("Cannot write the Nft's status", fault, {404: old})
        else:
            self._observer.wrote_status("written")
            self._failures = 0
            self._forgive("Cannot write the Nft's status")

    def _send_events(self) -> float:
        while not self._stop.is_set():
            now = self._clock()
            if now < self._events_at:
                return self._events_at - now
            with self._lock:
                due = self._events.next(now)
            if not isinstance(due, Request):
                return due
            self._send(due)
        return 0.0

    def _count_dropped(self) -> None:
        with self._lock:
            dropped, self._dropped = self._events.dropped - self._dropped, self._events.dropped
        for _ in range(dropped):
            self._observer.sent_event("dropped")

    def _send(self, due: Request) -> None:
        try:
            self._api.request(due.method, due.path, None, due.body, due.content_type)
        except ApiError as fault:
            self._observer.sent_event("failed")
            self._learn(fault)
            self._refused(due, fault)
        else:
            self._observer.sent_event("sent")
            self._events_failures = 0
            self._forgive("Cannot send Events")
            with self._lock:
                self._events.sent(self._clock())

    def _refused(self, due: Request, fault: ApiError) -> None:
        """After a failure: wait and try again, drop this Event, or drop them all.

        403: the router has no right, so drop all. Other 4xx: the server never takes this Event.
        """
        with self._lock:
            if fault.status == 403 and "being terminated" not in str(fault):
                self._events.clear()
                self._events_at = self._clock() + DENIED
            elif fault.status in (404, 409) and due.method == "PATCH":
                self._events.begin_anew()
                return
            elif fault.status is not None and 400 <= fault.status < 500 and fault.status not in (401, 408, 429):
                self._events.drop()
            else:
                self._events_failures += 1
                self._events_at = self._clock() + self._backoff.wait(self._events_failures, fault, self._rng)
        self._complain("Cannot send Events", fault, {})

    def _learn(self, fault: ApiError) -> None:
        if fault.status == 401:
            self._api.reload()

    def _complain(self, what: str, fault: ApiError, advice: Mapping[int | None, str]) -> None:
        """Log each kind of fault once, until a request succeeds again.

        Two faults of one kind can name different objects, so the kind is the HTTP status.
        """
        if (what, fault.status) not in self._complaints and not self._stop.is_set():
            self._complaints.add((what, fault.status))
            mend = {403: MEND, **advice}.get(fault.status)
            log.warning("%s: %s%s. The firewall is not affected", what, fault, f": {mend}" if mend else "")

    def _forgive(self, what: str) -> None:
        self._complaints = {each for each in self._complaints if each[0] != what}


def _field_manager(router: str) -> str:
    """The field manager of this router, at most 128 characters.

    Two routers with one field manager would remove each other's entry from the status.
    """
    manager = f"nftsync-{router}"
    return manager if len(manager) <= 128 else f"{manager[:111]}-{hashlib.sha256(router.encode()).hexdigest()[:16]}"
