"""What the kernel has counted, for Prometheus: read when somebody scrapes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from nftsync.policy.pinholes import Pinhole
from nftsync.report.reachability import Reachability
from nftsync.report.traffic import CAP, Reading, Traffic

_T = TypeVar("_T")
_READ_AGAIN = 1.0  # seconds that what was read of the kernel serves every scrape
_ROUTES_AGAIN = 30.0  # seconds between looks at the routes


class ReadError(Exception):
    """What the kernel has counted can't be read at the moment."""


class KernelCollector:
    """What the kernel has counted, read when somebody scrapes, in that scrape's thread. Register it with a registry.

    read, judge: called in the scraping thread; they raise ReadError. judge: compares what is open with the kernel's routes, None
    if that can't be done.  pinholes: those that are open, by key, as an object that nobody changes any more.
    cap: how many Services have series of their own; 0 for none. It can be changed.
    """

    def __init__(
        self,
        pinholes: Callable[[], Mapping[str, Pinhole]],
        read: Callable[[], Reading],
        judge: Callable[[Mapping[str, Pinhole]], Reachability | None],
        cap: int = CAP,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pinholes = pinholes
        self._read = read
        self._judge = judge
        self._clock = clock
        self._lock = threading.Lock()
        self._traffic = Traffic(cap)
        self._sizes: Mapping[str, int] = {}
        self._reachability: Reachability | None = None
        self._errors = 0
        self._read_at = self._judged_at = float("-inf")

    @property
    def cap(self) -> int:
        return self._traffic.cap

    @cap.setter
    def cap(self, cap: int) -> None:
        with self._lock:
            self._traffic.cap = cap

    def prime(self) -> None:
        """Begin to count now, not with the first scrape. Costs as much as a scrape."""
        with self._lock:
            self._refresh()
            self._read_at = float("-inf")  # the first scrape sees what was opened since

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        with self._lock:
            self._refresh()
            if self._clock() - self._judged_at >= _ROUTES_AGAIN:
                self._judged_at = self._clock()
                self._reachability = self._attempt(lambda: self._judge(self._pinholes()))
            families = [*_by_service(self._traffic), *self._whole()]
        yield from families

    def _refresh(self) -> None:
        if self._clock() - self._read_at < _READ_AGAIN:
            return
        self._read_at = self._clock()
        reading = self._attempt(self._read)
        if reading is not None:
            self._traffic.take(reading, self._pinholes())
            self._sizes = reading.sizes

    def _attempt(self, asked: Callable[[], _T]) -> _T | None:
        try:
            return asked()
        except ReadError:  # what was read before is shown once more
            self._errors += 1
            return None

    def _whole(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """What is not of one Service."""
        errors = CounterMetricFamily("nftsync_kernel_read_errors", "Times that a scrape could not read the kernel's counters.")
        errors.add_metric([], self._errors)
        yield errors
        elements = GaugeMetricFamily("nftsync_kernel_elements", "Elements in the kernel.", labels=["set"])
        for name, size in self._sizes.items():
            elements.add_metric([name], size)
        yield elements
        closed = CounterMetricFamily(
            "nftsync_closed_port_drops", "Packets to addresses of the cluster dropped for want of a pinhole.", labels=["family"]
        )
        for name, family in (("pools4", "ipv4"), ("pools6", "ipv6")):
            closed.add_metric([family], self._traffic.closed[name].packets)
        yield closed
        if self._reachability is not None:
            yield GaugeMetricFamily(
                "nftsync_addresses_open_without_route",
                "Addresses with a pinhole to which no route leads but the default one.",
                value=self._reachability.open_without_route,
            )
            if self._reachability.routes_without_pinhole is not None:
                yield GaugeMetricFamily(
                    "nftsync_routes_without_pinhole",
                    "Host routes to addresses of the pools that no pinhole uses.",
                    value=self._reachability.routes_without_pinhole,
                )


def _by_service(traffic: Traffic) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    labels = ["namespace", "service"]
    packets = CounterMetricFamily("nftsync_service_packets", "Packets that pinholes of the Service let pass.", labels=labels)
    octets = CounterMetricFamily("nftsync_service_bytes", "Bytes that pinholes of the Service let pass.", labels=labels)
    drops = CounterMetricFamily(
        "nftsync_service_rate_limit_drops", "Packets to the Service dropped by its rate limit.", labels=labels
    )
    for name, total in sorted(traffic.totals.items()):
        packets.add_metric(name, total.passed.packets)
        octets.add_metric(name, total.passed.octets)
        if total.dropped is not None:
            drops.add_metric(name, total.dropped.packets)
    yield from (packets, octets, drops)
    dropped = CounterMetricFamily("nftsync_series_dropped", "Services left out of nftsync_service_… because there are too many.")
    dropped.add_metric([], traffic.dropped)
    yield dropped
    left_out = "Services that are left out of nftsync_service_… now."
    yield GaugeMetricFamily("nftsync_services_without_series", left_out, value=len(traffic.left_out))
