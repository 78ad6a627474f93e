"""The Prometheus endpoint and its two health checks, on loopback."""

from __future__ import annotations

import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from nftsync import __version__
from nftsync.exporter.endpoint import Endpoint, EndpointError
from nftsync.exporter.metrics import KernelCollector, Metrics, ReadError
from nftsync.objects.names import Name, ObjectRef, Reason, Rejection
from nftsync.plan.result import Outcome
from nftsync.policy.pinholes import Pinhole
from nftsync.report.traffic import Count, Reachability, Reading
from nftsync.ruleset.settings import Settings
from tests.labtools import PATIENCE
from tests.support import absent, side


class Served:
    """An endpoint, and what its checks say."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.healthy = self.ready = True
        self.metrics = Metrics()
        self.endpoint = Endpoint((host, 0), self.metrics, lambda: self.healthy, lambda: self.ready)

    def get(self, path: str, method: str = "GET") -> tuple[HTTPResponse, str]:
        connection = HTTPConnection(self.host, self.endpoint.port, timeout=PATIENCE)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer, answer.read().decode()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Served]:
    made = Served()
    yield made
    made.endpoint.close()


@pytest.fixture
def served(endpoint: Served) -> Served:
    """One endpoint for all tests, as if it had just been started: to close one takes half a second."""
    endpoint.healthy = endpoint.ready = True
    endpoint.metrics.count_rejections([])
    return endpoint


def sample(text: str, line: str) -> float:
    (value,) = (each.rpartition(" ")[2] for each in text.splitlines() if each.rpartition(" ")[0] == line)
    return float(value)


def test_metrics_are_served_in_prometheus_text(served: Served) -> None:
    answer, text = served.get("/metrics")
    assert answer.status == 200
    assert (answer.getheader("Content-Type") or "").startswith("text/plain; version=0.0.4")
    assert sample(text, f'nftsync_build_info{{version="{__version__}"}}') == 1
    assert served.get("/metrics?name[]=x")[0].status == 200


def test_everything_is_reported_from_the_start(served: Served) -> None:
    text = served.get("/metrics")[1]
    for reason in Reason:
        assert sample(text, f'nftsync_rejections{{reason="{reason}"}}') == 0
    for name in (
        "services",
        "pinholes",
        "drift_repairs_total",
        "last_success_timestamp_seconds",
        "sync_duration_seconds_count",
    ):
        assert sample(text, f"nftsync_{name}") == 0
    for name in (
        "syncs",
        "event_to_kernel_seconds",
        "watch_state",
        "watch_restarts",
        "objects_skipped",
        "last_contact_timestamp_seconds",
    ):
        assert f"# HELP nftsync_{name}" in text


def test_the_process_tells_its_memory_its_open_files_when_it_began_and_what_python_collects(served: Served) -> None:
    text = served.get("/metrics")[1]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert 0.5 < sample(text, "process_resident_memory_bytes") / (pages * resource.getpagesize()) < 2
    assert 0 < sample(text, "process_open_fds") <= sample(text, "process_max_fds")
    assert sample(text, "process_cpu_seconds_total") > 0
    assert 0 < sample(text, "process_start_time_seconds") < time.time()
    assert sample(text, 'python_gc_collections_total{generation="2"}') >= 0
    assert "python_gc_objects_collected_total" in text
    assert f'python_info{{implementation="CPython",major="{sys.version_info.major}"' in text


def test_rejections_are_counted_by_reason_and_go_back_to_zero(served: Served) -> None:
    refused = [Rejection(ObjectRef("Service", f"a/{number}"), Reason.CONFLICT, "x") for number in range(3)]
    served.metrics.services.set(5)
    served.metrics.pinholes.set(7)
    served.metrics.count_rejections([*refused, Rejection(ObjectRef("Nft", "a/b"), Reason.INVALID_SETTINGS, "x")])
    text = served.get("/metrics")[1]
    assert sample(text, "nftsync_services") == 5
    assert sample(text, "nftsync_pinholes") == 7
    assert sample(text, 'nftsync_rejections{reason="conflict"}') == 3
    assert sample(text, 'nftsync_rejections{reason="invalid_settings"}') == 1
    served.metrics.count_rejections([])
    assert sample(served.get("/metrics")[1], 'nftsync_rejections{reason="conflict"}') == 0


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_check_says_200_or_503(served: Served, path: str) -> None:
    answer, text = served.get(path)
    assert (answer.status, text) == (200, "ok\n")
    served.healthy = served.ready = False
    answer, text = served.get(path)
    assert (answer.status, text) == (503, "not yet\n")


def test_the_checks_are_two(served: Served) -> None:
    served.ready = False
    assert served.get("/healthz")[0].status == 200
    assert served.get("/readyz")[0].status == 503


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/healthz/x", "/../etc/passwd"])
def test_every_other_page_is_404(served: Served, path: str) -> None:
    assert served.get(path)[0].status == 404


def test_nothing_can_be_posted(served: Served) -> None:
    assert served.get("/metrics", method="POST")[0].status == 501


def test_it_is_served_on_ipv6_loopback_too() -> None:
    served = Served("::1")
    try:
        assert served.get("/healthz")[0].status == 200
    finally:
        served.endpoint.close()


@pytest.mark.usefixtures("no_dns")
def test_no_name_is_looked_up_to_listen() -> None:
    Served().endpoint.close()


def test_an_address_that_is_in_use_or_not_ours_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            EndpointError, match=f"^the metrics endpoint can't listen on 127.0.0.1 port {port}: Address already in use$"
        ):
            Endpoint(("127.0.0.1", port), Metrics(), lambda: True, lambda: True)
    with pytest.raises(EndpointError, match=r"Cannot assign requested address$"):
        Endpoint(("192.0.2.1", 0), Metrics(), lambda: True, lambda: True)


def test_after_it_was_closed_the_port_is_free_at_once() -> None:
    first = Served()
    port = first.endpoint.port
    first.get("/healthz")
    first.endpoint.close()
    with pytest.raises(ConnectionRefusedError):
        first.get("/healthz")
    Endpoint(("127.0.0.1", port), Metrics(), lambda: True, lambda: True).close()


def test_two_daemons_of_one_process_share_no_metrics() -> None:
    one, two = Metrics(), Metrics()
    one.syncs.labels("applied").inc()
    assert two.registry.get_sample_value("nftsync_syncs_total", {"result": "applied"}) == 0


def test_every_outcome_of_a_sync_is_reported_from_the_start() -> None:
    fresh = Metrics().registry
    for outcome in Outcome:
        assert fresh.get_sample_value("nftsync_syncs_total", {"result": outcome}) == 0


@pytest.mark.parametrize(
    ("settings", "wanted", "attached"),
    [
        (None, 0, 0),
        (Settings(side("pub0")), 0, 0),
        (Settings(absent("pub0"), enable_rateshape=True), 1, 0),
        (Settings(side("pub0"), enable_rateshape=True), 1, 1),
    ],
)
def test_the_nic_counts_as_attached_only_if_limits_are_wanted_and_it_is_there(
    settings: Settings | None, wanted: int, attached: int
) -> None:
    metrics = Metrics()
    metrics.show_settings(settings)
    assert metrics.registry.get_sample_value("nftsync_rateshape_wanted") == wanted
    assert metrics.registry.get_sample_value("nftsync_nic_attached") == attached


def test_what_is_stale_is_said_by_source_and_what_is_not_named_is_not() -> None:
    metrics = Metrics()

    def stale() -> list[float | None]:
        sources = ("settings", "pools", "services")
        return [metrics.registry.get_sample_value("nftsync_config_stale", {"source": each}) for each in sources]

    assert stale() == [0, 0, 0]
    metrics.show_stale({"pools": True, "services": False})
    assert stale() == [0, 1, 0]
    metrics.show_stale({})
    assert stale() == [0, 0, 0]


def test_requests_are_counted_by_verb_and_status_or_as_an_error() -> None:
    metrics = Metrics()
    for status in (200, 200, 404, None):
        metrics.count_api_request("GET", status)
    counted = {
        code: metrics.registry.get_sample_value("nftsync_api_requests_total", {"verb": "GET", "code": code})
        for code in ("200", "404", "error")
    }
    assert counted == {"200": 2, "404": 1, "error": 1}


def test_the_checks_are_metrics_too(served: Served) -> None:
    served.ready = False
    text = served.get("/metrics")[1]
    assert (sample(text, "nftsync_ready"), sample(text, "nftsync_healthy")) == (0, 1)


# --- the kernel's counters -----------------------------------------------------------------------------

KEY = "192.0.2.1 . tcp . 80"
WEB = {"namespace": "shop", "service": "web"}


class Counting:
    """A collector whose kernel and clock a test moves."""

    def __init__(self, cap: int = 10) -> None:
        self.now = 0.0
        self.reading: Reading | None = Reading()
        self.reads = self.judged = 0
        self.reachability: Reachability | None = Reachability(1, 2)
        self.unroutable = False
        self.pinholes = {KEY: Pinhole(KEY, 4, None, None, Name("shop", "web"))}
        self.metrics = Metrics()
        self.collector = KernelCollector(lambda: self.pinholes, self._read, self._judge, cap, lambda: self.now)
        self.metrics.registry.register(self.collector)

    def _read(self) -> Reading:
        self.reads += 1
        if self.reading is None:
            raise ReadError
        return self.reading

    def _judge(self, pinholes: Mapping[str, Pinhole]) -> Reachability | None:
        assert pinholes is self.pinholes
        self.judged += 1
        if self.unroutable:
            raise ReadError
        return self.reachability

    def count(self, packets: int) -> None:
        counts = {name: {(KEY, b""): Count(packets, packets * 100)} for name in ("services4", "dropped4")}
        self.reading = Reading(
            counts,
            {"services4": 1, "pools4": 0},
            closed={("pools4", 7): Count(packets, 0)},
            invalid={("global", 9): Count(packets, 0)},
        )

    def value(self, name: str, labels: Mapping[str, str] | None = None) -> float | None:
        """After enough time that everything is read again."""
        self.now += 31
        found = self.metrics.registry.get_sample_value(f"nftsync_{name}", dict(labels or {}))
        return None if found is None else float(found)


def test_routes_that_cannot_be_read_any_more_are_not_shown() -> None:
    counting = Counting()
    assert counting.value("addresses_open_without_route") == 1
    counting.unroutable = True
    assert counting.value("addresses_open_without_route") is None


def test_a_scrape_tells_what_the_kernel_counted_since_counting_began() -> None:
    counting = Counting()
    counting.count(5)
    counting.collector.prime()
    counting.count(8)
    counting.now -= 31  # at once
    assert counting.value("service_packets_total", WEB) == 3
    assert counting.value("service_bytes_total", WEB) == 300
    assert counting.value("service_rate_limit_drops_total", WEB) == 3
    assert counting.value("closed_port_drops_total", {"family": "ipv4"}) == 3
    assert counting.value("closed_port_drops_total", {"family": "ipv6"}) == 0
    assert counting.value("invalid_drops_total") == 3
    assert counting.value("kernel_elements", {"set": "services4"}) == 1
    assert counting.value("kernel_elements", {"set": "pools4"}) == 0
    assert counting.value("addresses_open_without_route") == 1
    assert counting.value("routes_without_pinhole") == 2


def test_several_scrapes_within_a_second_read_the_kernel_once_and_routes_are_read_every_thirty() -> None:
    counting = Counting()
    for counting.now in (0, 0.3, 0.9, 1.1, 29, 31):
        list(counting.collector.collect())
    assert (counting.reads, counting.judged) == (4, 2)


def test_scrapes_at_the_same_time_read_the_kernel_once() -> None:
    counting = Counting()
    threads = [threading.Thread(target=lambda: list(counting.collector.collect())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (counting.reads, counting.judged) == (1, 1)


def test_a_kernel_that_can_t_be_read_costs_a_count_and_the_totals_stay() -> None:
    counting = Counting()
    counting.count(5)
    assert counting.value("service_packets_total", WEB) == 0
    counting.reading = None
    assert counting.value("service_packets_total", WEB) == 0
    assert counting.value("kernel_read_errors_total") == 2
    counting.count(9)
    assert counting.value("service_packets_total", WEB) == 4


def test_what_is_not_known_of_the_routes_is_absent() -> None:
    counting = Counting()
    counting.reachability = Reachability(3, None)
    assert (counting.value("addresses_open_without_route"), counting.value("routes_without_pinhole")) == (3, None)
    counting.reachability = None
    assert counting.value("addresses_open_without_route") is None


def test_the_cap_leaves_services_out_and_says_so() -> None:
    counting = Counting(cap=1)
    assert counting.value("series_dropped_total") == 0
    other = "192.0.2.2 . tcp . 80"
    counting.pinholes = counting.pinholes | {other: Pinhole(other, 4, None, None, Name("a", "a"))}
    assert counting.value("series_dropped_total") == 1
    assert counting.value("services_without_series") == 1
    assert counting.value("service_packets_total", WEB) == 0
    assert counting.value("service_packets_total", {"namespace": "a", "service": "a"}) is None
    counting.collector.cap = 0
    assert counting.value("service_packets_total", WEB) is None
    assert counting.value("services_without_series") == 0
