"""The Prometheus endpoint and its two health checks, on loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse

import pytest

from nftsync import __version__
from nftsync.metrics import Endpoint, EndpointError, Metrics
from nftsync.objects import ObjectRef, Reason, Rejection


class Served:
    """An endpoint, and what its checks say."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.healthy = self.ready = True
        self.metrics = Metrics()
        self.endpoint = Endpoint((host, 0), self.metrics, lambda: self.healthy, lambda: self.ready)

    def get(self, path: str, method: str = "GET") -> tuple[HTTPResponse, str]:
        connection = HTTPConnection(self.host, self.endpoint.port, timeout=10)
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
    for name in ("services", "pinholes", "drift_repairs_total", "last_success_timestamp_seconds", "sync_duration_seconds_count"):
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
    assert two.registry.get_sample_value("nftsync_syncs_total", {"result": "applied"}) is None
