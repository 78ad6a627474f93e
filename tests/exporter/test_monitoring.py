"""Prometheus itself on what nftsync offers it: promtool on metrics and alerts, and a real server that scrapes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from nftsync.exporter.metrics import KernelCollector, Metrics
from nftsync.kernel import counters, routes
from nftsync.kernel.nft import Kernel
from nftsync.objects.names import Name, ObjectRef, Reason, Rejection
from nftsync.objects.ratelimit import parse_ratelimit
from nftsync.policy.pinholes import Pinhole
from nftsync.report.traffic import CAP, Count, Reachability, Reading
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset
from nftsync.ruleset.text import render
from tests.lab.lab import Lab, Probe
from tests.lab.namespace import Namespace
from tests.labtools import METRICS, PATIENCE, SERVICE4, SERVICE6, Daemon, eventually, needs_root, nft, service
from tests.support import ROOT

MONITORING = ROOT / "packaging/monitoring"
ALERTS, ALERT_TESTS = MONITORING / "nftsync-alerts.yaml", MONITORING / "nftsync-alerts.test.yaml"
MANY = 10_000

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="the package prometheus is not installed"
)
pytestmark = needs_prometheus


def promtool(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], input=text, capture_output=True, text=True, check=False, cwd=MONITORING
    )


# --- alerts --------------------------------------------------------------------------------------------


def rules() -> dict[str, Any]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def test_the_alerts_are_well_formed() -> None:
    done = promtool("check", "rules", ALERTS.name)
    assert (done.returncode, "SUCCESS" in done.stdout) == (0, True), done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_not_before_and_ends() -> None:
    done = promtool("test", "rules", ALERT_TESTS.name)
    assert done.returncode == 0, done.stdout + done.stderr
    asked: dict[str, list[bool]] = {}
    for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"]:
        for each in test.get("promql_expr_test", ()):
            for name in re.findall(r'alertname="(\w+)"', each["expr"]):
                asked.setdefault(name, []).append(bool(each["exp_samples"]))
    assert asked == {name: [False, True, False] for name in rules()}


def test_each_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for name, rule in rules().items():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, name
        assert len(rule["annotations"]["description"]) > 100, name
        assert "{{" in rule["annotations"]["summary"] or name == "NftsyncAbsent", f"{name} does not say which router"


def test_alerts_and_the_documentation_name_only_metrics_that_there_are_and_the_documentation_all_of_them() -> None:
    offered = set(re.findall(r"^# TYPE (\w+)", exposition(filled()), re.MULTILINE))
    offered = {name for name in offered if not name.endswith("_created")}
    for rule in rules().values():
        assert set(re.findall(r"nftsync_\w+", rule["expr"])) <= offered
    documented = set(
        re.findall(r"^\| `((?:nftsync|process|python)_\w+)", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    )
    assert documented == offered


# --- metrics -------------------------------------------------------------------------------------------


def exposition(metrics: Metrics) -> str:
    return bytes(generate_latest(metrics.registry)).decode()


def filled() -> Metrics:
    """Metrics with at least one sample of everything."""
    metrics = Metrics()
    key = "192.0.2.1 . tcp . 80"
    counts = {name: {(key, b""): Count(0, 0)} for name in ("dropped4", "dropped-egress4")}
    reading = Reading(counts, {"services4": 1})
    collector = KernelCollector(
        lambda: {key: Pinhole(key, 4, None, None, Name("shop", "web"))}, lambda: reading, lambda _: Reachability(0, 0)
    )
    metrics.registry.register(collector)
    metrics.syncs.labels("applied").inc()
    metrics.sync_duration.observe(0.01)
    metrics.event_to_kernel.observe(0.01)
    metrics.watch_state.labels("Service", "watching").set(1)
    metrics.watch_restarts.labels("Service", "ended").inc()
    metrics.last_contact.labels("Service").set_to_current_time()
    metrics.skipped.labels("Service").inc()
    metrics.list_doubts.labels("raised").inc()
    metrics.status_writes.labels("written").inc()
    metrics.events.labels("sent").inc()
    metrics.count_api_request("GET", 200)
    metrics.count_rejections([Rejection(ObjectRef("Service", "shop/web"), Reason.CONFLICT, "x")])
    return metrics


def test_promtool_has_nothing_to_complain_of_when_every_metric_has_samples() -> None:
    text = exposition(filled())
    for name in re.findall(r"^# TYPE (\w+) (?:counter|gauge)", text, re.MULTILINE):
        assert re.search(rf"^{name}[ {{]", text, re.MULTILINE), f"{name} has no sample"
    done = promtool("check", "metrics", text=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- a real server -------------------------------------------------------------------------------------

CONFIGURATION = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: ["{alerts}"]
scrape_configs:
  - job_name: nftsync
    static_configs: [{{targets: ["{target}"]}}]
"""


POOL = {
    "apiVersion": "metallb.io/v1beta1",
    "kind": "IPAddressPool",
    "metadata": {"namespace": "metallb-system", "name": "services", "uid": "uid-pool"},
    "spec": {"addresses": ["172.30.254.0/24", "2001:db8:254::/64"]},
}
WEB = service("web", SERVICE4)
SLOW = service("slow", SERVICE6, limit="1/week burst 4 packets")


class Prometheus:
    """A server in a namespace, on loopback, with storage of its own."""

    def __init__(self, opened: ExitStack, namespace: Namespace, folder: Path) -> None:
        self._namespace = namespace
        (folder / "prometheus.yml").write_text(CONFIGURATION.format(alerts=ALERTS, target=METRICS))
        self._log = folder / "log"
        log = opened.enter_context(self._log.open("w"))
        self.process = namespace.popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             "--web.listen-address=127.0.0.1:9090", "--log.level=warn"], stdout=log, stderr=log,
        )  # fmt: skip
        opened.callback(self._end)

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()

    def log(self) -> str:
        return self._log.read_text()

    def get(self, path: str) -> Any:
        def fetch() -> Any:
            with urllib.request.urlopen(f"http://127.0.0.1:9090/api/v1/{path}", timeout=PATIENCE) as answer:
                return json.load(answer)["data"]

        try:
            return self._namespace.call(fetch)
        except (OSError, ValueError):  # it is not there yet, or still reads its storage
            return {}

    def values(self, query: str) -> list[float]:
        found = self.get(f"query?query={urllib.request.quote(query)}").get("result", ())  # type: ignore[attr-defined]
        return [float(each["value"][1]) for each in found]

    def rules(self) -> dict[str, tuple[str, str]]:
        """Of each alert, whether its rule can be worked out, and whether it fires; by name."""
        groups = self.get("rules").get("groups", ())
        return {rule["name"]: (rule["health"], rule["state"]) for group in groups for rule in group["rules"]}


@pytest.fixture
def daemon(lab: Lab, tmp_path: Path) -> Iterator[Daemon]:
    """Not started; it would find a Service, one that is limited, and a pool that holds both."""
    folder = tmp_path / "daemon"
    folder.mkdir()
    with Daemon(lab, folder) as made:
        made.put(nft(), POOL, WEB, SLOW)
        yield made


@pytest.fixture
def prometheus(lab: Lab, tmp_path: Path) -> Iterator[Prometheus]:
    """Beside the daemon, in the router."""
    folder = tmp_path / "prometheus"
    folder.mkdir()
    with ExitStack() as opened:
        yield Prometheus(opened, lab.router, folder)


@needs_root
def test_a_prometheus_that_scrapes_the_daemon_shows_the_packets_of_each_service(
    lab: Lab, daemon: Daemon, prometheus: Prometheus
) -> None:
    daemon.start()
    shown = prometheus.values
    assert eventually(lambda: shown("up") == [1] and shown("nftsync_service_packets_total") == [0, 0]), prometheus.log()
    lab.deliver([Probe("tcp", SERVICE4, 80)] * 7)
    lab.deliver([Probe("tcp", SERVICE6, 80)] * 20)
    lab.deliver([Probe("tcp", "172.30.254.99", 80)] * 3)
    wanted = {
        'nftsync_service_packets_total{namespace="default", service="web"}': 7,
        'nftsync_service_packets_total{namespace="default", service="slow"}': 4,
        'nftsync_service_rate_limit_drops_total{service="slow"}': 16,
        'nftsync_closed_port_drops_total{family="ipv4"}': 3,
        'nftsync_kernel_elements{set="services4"}': 1,
        'nftsync_syncs_total{result="failed"}': 0,
        "nftsync_pinholes": 2,
        "nftsync_services": 2,
        "nftsync_ready": 1,
        "nftsync_healthy": 1,
        "nftsync_nic_attached": 1,
        "nftsync_pools_guarded": 1,
        "nftsync_addresses_open_without_route": 0,
    }
    found: dict[str, list[float]] = {}

    def settled() -> bool:
        found.update({query: shown(query) for query in wanted})
        return found == {query: [value] for query, value in wanted.items()}

    assert eventually(settled), found
    daemon.remove(SLOW)
    assert eventually(lambda: shown("nftsync_pinholes") == [1]), "what the daemon does is seen"


@needs_root
def test_the_shipped_alerts_work_in_a_prometheus_and_tell_of_a_router_that_died(
    daemon: Daemon, prometheus: Prometheus
) -> None:
    """A rule that waits some minutes is pending at first."""
    daemon.start()
    assert eventually(lambda: prometheus.values("up") == [1]), prometheus.log()
    assert eventually(lambda: prometheus.rules() == dict.fromkeys(rules(), ("ok", "inactive"))), prometheus.rules()
    (target,) = prometheus.get("targets")["activeTargets"]
    assert (target["lastError"], target["labels"]["job"]) == ("", "nftsync")
    daemon.signal(signal.SIGKILL)
    assert eventually(lambda: prometheus.rules().get("NftsyncDown") == ("ok", "pending")), prometheus.rules()
    assert prometheus.values("up") == [0]


# --- cost ----------------------------------------------------------------------------------------------


@needs_root
def test_no_change_of_the_ruleset_waits_for_a_scrape_of_ten_thousand_services() -> None:
    limit = parse_ratelimit("2 mbytes/second burst 512 kbytes")
    pinholes = {
        each.key: each
        for each in (
            Pinhole(
                f"10.1.{n // 250}.{n % 250 + 1} . tcp . 80",
                4,
                None,
                None if n % 10 else limit,
                Name("shop", f"web-{n}"),
            )
            for n in range(MANY)
        )
    }
    namespace, reading, changed = Namespace(), threading.Event(), threading.Event()

    def read() -> Reading:
        found = namespace.call(counters.read)
        reading.set()
        assert changed.wait(PATIENCE), "the change waits for the scrape"
        return found

    try:
        kernel = namespace.call(Kernel)
        kernel.apply(render(ruleset(pinholes.values(), Settings(enable_rateshape=True))))
        metrics = Metrics()
        metrics.registry.register(
            KernelCollector(lambda: pinholes, read, lambda opened: namespace.call(routes.reachability, opened, None))
        )
        with ThreadPoolExecutor(1) as pool:
            scrape = pool.submit(exposition, metrics)
            assert reading.wait(PATIENCE)
            kernel.apply("add element inet nftsync services4 { 192.0.2.1 . tcp . 1 }")
            assert not scrape.done()
            changed.set()
            scrape.result(PATIENCE)
        # On a busy machine the reading is old by now, and each of these reads the kernel again.
        assert metrics.registry.get_sample_value("nftsync_kernel_elements", {"set": "services4"}) >= MANY
        assert metrics.registry.get_sample_value("nftsync_services_without_series") == MANY - CAP
        assert metrics.registry.get_sample_value("nftsync_kernel_read_errors_total") == 0
    finally:
        changed.set()
        namespace.close()
