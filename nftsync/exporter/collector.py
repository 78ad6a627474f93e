"""The kernel's counters for Prometheus, read at each scrape."""

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
_READ_AGAIN = 1.0  # seconds during which all scrapes share one reading
_ROUTES_AGAIN = 30.0  # seconds between two readings of the routes


class ReadError(Exception):
    """The kernel's counters are not readable at the moment."""


class KernelCollector:
    """Collects the kernel's counters in the thread of each scrape. Register it with a registry.

    read, judge: run in the scraping thread; they raise ReadError.
    judge: compares the open pinholes with the kernel's routes; None if it can't.
    pinholes: the open ones, by key, in an object that does not change any more.
    cap: how many Services have their own series; 0 for none. You can change it.
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
        """Begin to count now instead of at the first scrape. Costs as much as a scrape."""
        with self._lock:
            self._refresh()
            self._read_at = float("-inf")  # the first scrape must see later pinholes

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
        except ReadError:  # the previous reading stays
            self._errors += 1
            return None

    def _whole(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """The metrics without a Service."""
        errors = CounterMetricFamily("nftsync_kernel_read_errors", "Scrapes that could not read the kernel's counters.")
        errors.add_metric([], self._errors)
        yield errors
        elements = GaugeMetricFamily("nftsync_kernel_elements", "Elements in the kernel.", labels=["set"])
        for name, size in self._sizes.items():
            elements.add_metric([name], size)
        yield elements
        closed = CounterMetricFamily(
            "nftsync_closed_port_drops", "Packets to the cluster's addresses dropped because no pinhole matched.", labels=["family"]
        )
        for name, family in (("pools4", "ipv4"), ("pools6", "ipv6")):
            closed.add_metric([family], self._traffic.closed[name].packets)
        yield closed
        if self._reachability is not None:
            yield GaugeMetricFamily(
                "nftsync_addresses_open_without_route",
                "Addresses with a pinhole but without a route, except the default route.",
                value=self._reachability.open_without_route,
            )
            if self._reachability.routes_without_pinhole is not None:
                yield GaugeMetricFamily(
                    "nftsync_routes_without_pinhole",
                    "Host routes to pool addresses without a pinhole.",
                    value=self._reachability.routes_without_pinhole,
                )


def _by_service(traffic: Traffic) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    labels = ["namespace", "service"]
    packets = CounterMetricFamily("nftsync_service_packets", "Packets that the Service's pinholes accepted.", labels=labels)
    octets = CounterMetricFamily("nftsync_service_bytes", "Bytes that the Service's pinholes accepted.", labels=labels)
    drops = CounterMetricFamily(
        "nftsync_service_rate_limit_drops", "Packets to the Service that its rate limit dropped.", labels=labels
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
    left_out = "Services without nftsync_service_… series now."
    yield GaugeMetricFamily("nftsync_services_without_series", left_out, value=len(traffic.left_out))
