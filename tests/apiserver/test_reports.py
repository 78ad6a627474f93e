"""The real daemon reports to a real API server.

It writes the Nft's status, and Events on Services and the Nft.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from nftsync.cluster.outbox import utc_now
from nftsync.cluster.source import ClusterSource
from nftsync.config import Config
from nftsync.daemon.publish import MetricsObserver
from nftsync.exporter.metrics import Metrics
from nftsync.objects.names import ObjectRef
from nftsync.objects.nft import RouterStatus, parse_status
from nftsync.report.events import EventQueue, EventReason, Notice, Request
from tests.apiserver.client import refusal_of
from tests.apiserver.harness import MANIFESTS, NAMESPACE, NFTS, ApiServer, eventually
from tests.apiserver.router import NFT, SERVICES, SPEC, Router, fresh_router
from tests.lab.lab import Lab

EVENTS = "/apis/events.k8s.io/v1/namespaces/{}/events"
STATUS = f"{NFTS}/nft/status"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/nfts.nft.acnodal.com"
CLUSTER_ROLE = "/apis/rbac.authorization.k8s.io/v1/clusterroles/nftsync"
TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
WRITTEN = 'nftsync_status_writes_total{result="written"}'
GOOD = {
    "Ready": "True",
    "Running": "True",
    "PublicInterfaces": "True",
    "RateShaping": "True",
    "LocalChainValid": "True",
    "Confirmed": "True",
    "Stale": "False",
    "RoutersAgree": "True",
}


@pytest.fixture
def router(cluster: tuple[Lab, ApiServer], tmp_path: Path) -> Iterator[Router]:
    """A router called edge1 that looks at its kernel every five seconds."""
    with fresh_router(*cluster, tmp_path) as running:
        for namespace in ("default", NAMESPACE):
            running.server.admin.delete(EVENTS.format(namespace))
        configuration = running.configuration.read_text(encoding="utf-8")
        running.configuration.write_text(
            f'router_name = "edge1"\nresync_interval = 5\n{configuration}', encoding="utf-8"
        )
        yield running


def status(router: Router) -> dict[str, Any]:
    items = router.server.admin.get(NFTS)["items"]
    found: dict[str, Any] = items[0].get("status", {}) if items else {}
    return found


def conditions(of: dict[str, Any]) -> dict[str, str]:
    return {each["type"]: each["status"] for each in of.get("conditions", ())}


def entry(router: Router, name: str = "edge1") -> dict[str, Any]:
    return next((each for each in status(router).get("routers", ()) if each["name"] == name), {})


def ready(router: Router) -> None:
    eventually(lambda: conditions(status(router)).get("Ready") == "True", "Ready does not become True")


def events(router: Router, reason: str, namespace: str = "default") -> list[dict[str, Any]]:
    items = router.server.admin.get(EVENTS.format(namespace))["items"]
    return [each for each in items if each["reason"] == reason]


def event(router: Router, reason: str, namespace: str = "default") -> dict[str, Any]:
    """The one Event of this reason, once it is there."""
    [found] = eventually(
        lambda: events(router, reason, namespace), f"there is no Event {reason}:\n{router.log.read_text()}"
    )
    return found


def metrics(router: Router) -> str:
    """A scrape that is answered: a busy machine lets one time out now and then."""
    return eventually(lambda: router.page("/metrics"), "nobody answers to a scrape")


def syncs(router: Router) -> float:
    return sum(float(each) for each in re.findall(r"^nftsync_syncs_total\{.*\} (\S+)$", metrics(router), re.MULTILINE))


def told(router: Router) -> list[str]:
    """What the daemon has counted of what it told the cluster."""
    return [line for line in metrics(router).splitlines() if re.match("nftsync_(status_writes|events)_total", line)]


def writes(server: ApiServer) -> float:
    """How often somebody wrote an Nft or an Event, or listed anything that routers list, as the API server counts."""
    counted = re.findall(r"^apiserver_request_total\{(.*)\} (\S+)$", server.admin.get("/metrics"), re.MULTILINE)
    return sum(
        float(number)
        for labels, number in counted
        if re.search(r'resource="(nfts|events|services)"', labels) and not re.search(r'verb="(WATCH|GET)"', labels)
    )


def settled(what: Callable[[], object], seconds: float) -> None:
    """Wait until something has stayed the same for so long."""
    ends, before, since = time.monotonic() + 300, what(), time.monotonic()
    while time.monotonic() - since < seconds:
        assert time.monotonic() < ends, f"it never stays the same for {seconds} s: {before}"
        time.sleep(0.1)
        if (now := what()) != before:
            before, since = now, time.monotonic()


def kubectl(router: Router, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("kubectl")
    assert program
    options = [
        "--kubeconfig",
        str(router.server.kubeconfig("admin")),
        "--cache-dir",
        str(router.log.parent / "kubectl"),
    ]
    return subprocess.run([program, *options, "-n", NAMESPACE, *arguments], capture_output=True, text=True, check=False)


# --- the status ---------------------------------------------------------------------------------------


def test_ready_becomes_true_after_the_start(router: Router) -> None:
    router.add("web", "172.30.254.1")
    router.add("late", "172.30.254.1")
    router.start()
    if shutil.which("kubectl"):
        waited = kubectl(router, "wait", "--for=condition=Ready", "nft/nft", "--timeout=60s")
        assert waited.returncode == 0, waited.stderr
    ready(router)
    found = status(router)
    assert {kind: holds for kind, holds in conditions(found).items() if kind != "PoolsGuarded"} == GOOD
    assert conditions(found)["PoolsGuarded"] == "False", "there is no MetalLB in this cluster"
    assert {key: found[key] for key in ("services", "pinholes", "rejected")} == {
        "services": 2,
        "pinholes": 1,
        "rejected": 1,
    }
    own = entry(router)
    generation = router.server.admin.get(f"{NFTS}/nft")["metadata"]["generation"]
    assert own["observedGeneration"] == generation
    assert {each["observedGeneration"] for each in (*found["conditions"], *own["conditions"])} == {generation}
    assert re.fullmatch(r"[0-9a-f]{32}", own["hash"])
    assert own["version"]
    managers = {each["manager"] for each in router.server.admin.get(f"{NFTS}/nft")["metadata"]["managedFields"]}
    assert "nftsync-edge1" in managers


def test_a_table_of_nfts_shows_how_the_routers_are_doing(router: Router) -> None:
    router.add("web", "172.30.254.1")
    router.add("late", "172.30.254.1")
    router.start()
    ready(router)
    if shutil.which("kubectl"):
        listed = kubectl(router, "get", "nft")
        assert listed.returncode == 0, listed.stderr
        head, row = (line.split() for line in listed.stdout.splitlines())
    else:
        table = router.server.admin.get(NFTS, accept=TABLE)
        shown = [
            (column["name"], cell)
            for column, cell in zip(table["columnDefinitions"], table["rows"][0]["cells"], strict=True)
        ]
        wide = {column["name"] for column in table["columnDefinitions"] if column["priority"]}
        head = [name.upper() for name, _ in shown if name not in wide]
        row = [str(cell) for name, cell in shown if name not in wide]
    assert head == ["NAME", "READY", "SERVICES", "PINHOLES", "REJECTED", "AGE"]
    assert row[:-1] == ["nft", "True", "2", "1", "1"]
    assert re.fullmatch(r"\d+[smh].*", row[-1])


def test_what_is_not_as_it_should_be_is_a_condition_and_goes_again(router: Router) -> None:
    router.start()
    ready(router)
    local_chain = router.log.parent / "local-chain.nft"
    local_chain.write_text("nonsense here\n", encoding="utf-8")
    eventually(lambda: conditions(status(router))["LocalChainValid"] == "False", "the local chain is refused")
    refused = next(each for each in entry(router)["conditions"] if each["type"] == "LocalChainValid")
    assert (refused["reason"], conditions(status(router))["Ready"]) == ("Refused", "True")
    assert "the last good chain stays" in refused["message"]
    local_chain.unlink()
    eventually(lambda: conditions(status(router))["LocalChainValid"] == "True", "the local chain is good again")
    router.server.admin.patch(f"{NFTS}/nft", {"spec": {"enable_rateshape": False}})
    eventually(lambda: conditions(status(router))["RateShaping"] == "False", "limits are no longer in force")
    eventually(
        lambda: {each["observedGeneration"] for each in status(router)["conditions"]} == {2},
        "the new generation is taken up",
    )


def test_the_daemons_own_status_writes_wake_no_sync(router: Router) -> None:
    router.configuration.write_text(
        router.configuration.read_text(encoding="utf-8").replace("resync_interval = 5", "resync_interval = 600"),
        encoding="utf-8",
    )
    router.start()
    ready(router)
    eventually(lambda: entry(router).get("observedGeneration") == 1, "the first status")
    settled(lambda: (syncs(router), told(router)), 2)  # what came in during the first sync is another one; counters lag
    synced, written = syncs(router), router.metric(WRITTEN)
    assert synced >= 1
    hashed = entry(router)["hash"]
    for number in range(3):
        meddled = {"routers": [{"name": "edge1", "hash": str(number)}]}
        router.server.admin.patch(STATUS, {"status": meddled})
        eventually(lambda: entry(router).get("hash") == hashed, "the status is put right")
    eventually(lambda: router.metric(WRITTEN) - written >= 3, "the writes are counted, which is after they are seen")
    assert syncs(router) == synced


def test_an_idle_cluster_hears_nothing_but_watches(router: Router) -> None:
    """Over four resyncs: no write, no Event, no list of Services or Nfts, no line in the log.

    It is asked every few seconds for MetalLB's kinds, which this cluster does not have.
    """
    router.add("web", "172.30.254.1")
    router.start()
    ready(router)
    event(router, "Opened")
    settled(lambda: (writes(router.server), told(router)), 4)  # longer than between two writes of the status
    version = router.server.admin.get(f"{NFTS}/nft")["metadata"]["resourceVersion"]
    before, synced, log, counted = writes(router.server), syncs(router), router.log.read_text(), told(router)
    eventually(lambda: syncs(router) >= synced + 4, "it is asleep")
    assert told(router) == counted != []
    assert writes(router.server) == before
    assert router.server.admin.get(f"{NFTS}/nft")["metadata"]["resourceVersion"] == version
    assert router.log.read_text() == log


def test_an_nft_that_is_made_anew_gets_its_status_again(router: Router) -> None:
    router.add("web", "172.30.254.1")
    router.start()
    ready(router)
    before = entry(router)
    router.server.admin.delete(f"{NFTS}/nft")
    eventually(lambda: router.metric('nftsync_rejections{reason="missing_settings"}') == 1, "the loss is noticed")
    assert router.lab.arrives("tcp", "172.30.254.1", 80)
    router.server.admin.post(NFTS, {**NFT, "spec": SPEC})
    ready(router)
    eventually(lambda: entry(router).get("rejected") == 0, "nothing is missing any more")
    assert entry(router)["hash"] == before["hash"]
    assert "Cannot write" not in router.log.read_text()


def reasons(of: dict[str, Any]) -> dict[str, tuple[str, str]]:
    found = {each["type"]: (each["status"], each["reason"]) for each in of.get("conditions", ())}
    return {kind: found[kind] for kind in ("Ready", "Running")}


def test_a_daemon_that_is_stopped_says_so_and_one_that_is_started_again_is_ready(router: Router) -> None:
    router.add("web", "172.30.254.1")
    for _ in range(2):  # the second time the status has nothing new to say before it is stopped
        router.start()
        ready(router)
        router.stop()
        stopped = {"Ready": ("False", "Stopped"), "Running": ("False", "Stopped")}
        assert reasons(entry(router)) == stopped
        assert reasons(status(router)) == stopped
        assert entry(router)["hash"], "its last ruleset stays"
        assert router.lab.arrives("tcp", "172.30.254.1", 80)
    router.start()
    ready(router)
    assert reasons(entry(router)) == {"Ready": ("True", "Synced"), "Running": ("True", "Running")}
    router.stop()
    assert router.run("run", "--once").returncode == 0
    assert reasons(entry(router)) == stopped, "who syncs once says nothing"


def test_a_daemon_can_be_stopped_while_the_server_does_not_answer(router: Router) -> None:
    router.start()
    ready(router)
    for pid in router.server.pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        router.stop()
    finally:
        for pid in router.server.pids:
            os.kill(pid, signal.SIGCONT)


def test_a_reload_says_that_nftsync_stopped_only_if_it_goes_on_under_another_name(router: Router) -> None:
    def reload(before: str, after: str) -> None:
        text, log = router.configuration.read_text(encoding="utf-8"), router.log.read_text()
        router.configuration.write_text(text.replace(before, after), encoding="utf-8")
        assert router.daemon
        router.daemon.send_signal(signal.SIGHUP)
        eventually(lambda: "configuration reloaded" in router.log.read_text().removeprefix(log), "it is reloaded")

    def since() -> str:
        return next(
            str(each["lastTransitionTime"]) for each in entry(router)["conditions"] if each["type"] == "Running"
        )

    router.start()
    ready(router)
    began = since()
    kubeconfig = router.server.kubeconfig(token_file=router.token)
    other = shutil.copy(kubeconfig, router.log.parent / "kubeconfig")
    reload(str(kubeconfig), str(other))
    router.add("web", "172.30.254.1")
    eventually(lambda: entry(router)["services"] == 1, "the new connection writes the status")
    assert (since(), reasons(entry(router))["Running"]) == (began, ("True", "Running"))
    reload('"edge1"', '"edge9"')
    runs = {"Ready": ("True", "Synced"), "Running": ("True", "Running")}
    eventually(
        lambda: entry(router, "edge9") and reasons(entry(router, "edge9")) == runs, "it goes on under the new name"
    )
    assert reasons(entry(router)) == {"Ready": ("False", "Stopped"), "Running": ("False", "Stopped")}


# --- two routers --------------------------------------------------------------------------------------


@contextmanager
def second_router(router: Router) -> Iterator[Callable[[RouterStatus], None]]:
    """All that a second router does to the cluster's API: it watches, and writes the status that it is given."""
    chosen = Config(kubeconfig=router.server.kubeconfig(), router_name="edge2")
    source = ClusterSource(chosen, {}, MetricsObserver(Metrics()), lambda: None, time.monotonic)
    try:
        yield source.report
    finally:
        source.stop()


def test_two_routers_write_at_once_into_one_nft_and_keep_each_others_entries(router: Router) -> None:
    router.add("web", "172.30.254.1")
    router.start()
    ready(router)
    [first] = parse_status(status(router)).routers
    with second_router(router) as report:
        for number in range(2, 8):  # both change at once, again and again
            router.add(f"s{number}", f"172.30.254.{number}")
            report(replace(first, name="edge2", services=number, pinholes=number))
        eventually(
            lambda: entry(router).get("services") == entry(router, "edge2").get("services") == 7,
            "both entries are there",
        )
        eventually(lambda: (status(router)["services"], status(router)["pinholes"]) == (7, 7), "the sums are right")
        own = entry(router)
        report(replace(first, name="edge2", services=7, pinholes=7, hash=own["hash"]))
        eventually(lambda: entry(router, "edge2").get("hash") == own["hash"], "both have the same ruleset")
        managers = {each["manager"] for each in router.server.admin.get(f"{NFTS}/nft")["metadata"]["managedFields"]}
        assert {"nftsync-edge1", "nftsync-edge2"} <= managers
        settled(lambda: writes(router.server), 9)  # longer than a look at what others wrote, and a write that follows
        version = router.server.admin.get(f"{NFTS}/nft")["metadata"]["resourceVersion"]
        before = writes(router.server)
        time.sleep(12)
        assert writes(router.server) == before, "they agree, so they are silent"
        assert router.server.admin.get(f"{NFTS}/nft")["metadata"]["resourceVersion"] == version
        assert conditions(status(router))["RoutersAgree"] == "True"


# --- Events -------------------------------------------------------------------------------------------


def test_a_services_story_is_told_in_its_events(router: Router) -> None:
    router.start()
    router.add("web", "172.30.254.1")
    uid = router.server.admin.get(f"{SERVICES}/web")["metadata"]["uid"]
    opened = event(router, "Opened")
    assert opened["regarding"] == {
        "apiVersion": "v1",
        "kind": "Service",
        "namespace": "default",
        "name": "web",
        "uid": uid,
    }
    assert opened["type"] == "Normal"
    assert opened["action"] == "Open"
    assert opened["reportingController"] == "nft.acnodal.com/nftsync"
    assert opened["reportingInstance"] == "edge1"
    assert opened["note"] == "opened 172.30.254.1 tcp 80 (router edge1)"

    router.server.admin.patch(f"{SERVICES}/web", {"metadata": {"annotations": {"ratelimit": "10 mbytes/second"}}})
    changed = event(router, "LimitChanged")
    assert (changed["type"], changed["regarding"]["uid"]) == ("Normal", uid)
    assert "each limited to 10 mbytes/second" in changed["note"]

    router.server.admin.patch(f"{SERVICES}/web", {"metadata": {"annotations": {"ratelimit": "fast"}}})
    rejected = event(router, "Rejected")
    assert (rejected["type"], rejected["regarding"]["uid"]) == ("Warning", uid)
    assert "invalid_ratelimit" in rejected["note"]
    assert "fast" in rejected["note"]

    router.server.admin.patch(f"{SERVICES}/web", {"metadata": {"annotations": {"ratelimit": "10 mbytes/second"}}})
    assert event(router, "Accepted")["type"] == "Normal"
    router.server.admin.delete(f"{SERVICES}/web")
    closed = event(router, "Closed")
    assert (closed["type"], closed["action"], closed["regarding"]["uid"]) == ("Normal", "Close", uid)
    assert {each["reportingInstance"] for each in router.server.admin.get(EVENTS.format("default"))["items"]} == {
        "edge1"
    }


def test_the_same_news_again_is_one_event_that_counts(router: Router) -> None:
    router.start()
    router.add("web", "172.30.254.1")
    event(router, "Opened")

    def counted(count: int) -> bool:
        return bool(event(router, "Opened").get("series", {}).get("count") == count)

    for count in (2, 3):
        router.server.admin.patch(f"{SERVICES}/web", {"spec": {"type": "ClusterIP"}})
        router.closes("172.30.254.1")
        router.server.admin.patch(f"{SERVICES}/web", {"spec": {"type": "LoadBalancer"}})
        ingress = {"status": {"loadBalancer": {"ingress": [{"ip": "172.30.254.1"}]}}}
        router.server.admin.patch(f"{SERVICES}/web/status", ingress)
        eventually(partial(counted, count), f"count {count}")
    assert "Cannot send Events" not in router.log.read_text()


def test_an_event_that_somebody_deleted_is_made_anew(router: Router) -> None:
    router.start()
    router.add("web", "172.30.254.1")
    before = event(router, "Opened")["metadata"]["name"]
    router.server.admin.delete(EVENTS.format("default"))
    router.server.admin.delete(f"{SERVICES}/web")
    uid = event(router, "Closed")["regarding"]["uid"]
    router.server.admin.delete(EVENTS.format("default"))
    router.add("web", "172.30.254.1")
    after = event(router, "Opened")
    assert after["metadata"]["name"] != before
    assert after["regarding"]["uid"] != uid


def test_drift_and_what_is_refused_of_the_settings_are_told_on_the_nft(router: Router) -> None:
    router.add("web", "172.30.254.1")
    router.start()
    ready(router)
    uid = router.server.admin.get(f"{NFTS}/nft")["metadata"]["uid"]
    router.lab.router.run(["nft", "flush", "set", "inet", "nftsync", "services4"])
    repaired = event(router, "DriftRepaired", NAMESPACE)
    assert repaired["type"] == "Warning"
    assert repaired["regarding"]["uid"] == uid
    assert repaired["regarding"]["apiVersion"] == "nft.acnodal.com/v1alpha1"
    router.opens("172.30.254.1")
    with changed_crd(router.server, lambda version: version["schema"]["openAPIV3Schema"].pop("properties")):
        lenient = {"spec": {"public_nic": "lo"}}
        eventually(
            lambda: refusal_of(lambda: router.server.admin.patch(f"{NFTS}/nft", lenient)) is None,
            "the CRD takes anything",
        )
        refused = event(router, "SettingsRefused", NAMESPACE)
        router.server.admin.patch(f"{NFTS}/nft", {"spec": SPEC})
        eventually(
            lambda: router.metric('nftsync_rejections{reason="invalid_settings"}') == 0, "the settings are good again"
        )
    assert (refused["type"], refused["regarding"]["uid"]) == ("Warning", uid)
    assert "'lo' is not the name of a network interface" in refused["note"]
    assert "the last good settings stay" in refused["note"]


@pytest.mark.parametrize("message", ["x" * 5000, "ü" * 5000, "🧱" * 5000])
def test_the_longest_note_and_name_are_ones_that_the_api_takes(router: Router, message: str) -> None:
    queue = EventQueue("edge1", utc_now)
    queue.put(
        Notice(ObjectRef("ConfigMap", f"default/{'c' * 253}", "uid"), EventReason.REJECTED, message, warning=True)
    )
    request = queue.next(0.0)
    assert isinstance(request, Request)
    client = router.server.client(router.server.issue_token())
    assert client.post(request.path, request.body)["note"] == request.body["note"]
    longer = {**request.body, "note": f"{request.body['note']}{'x' * 20}", "metadata": {"name": "longer"}}
    assert refusal_of(lambda: client.post(request.path, longer)) == 422, "it was as long as it may be"


# --- without permission, without a place --------------------------------------------------------------


@contextmanager
def changed_crd(server: ApiServer, change: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """The shipped CRD with its version changed, and as shipped again afterwards."""
    shipped = yaml.safe_load((MANIFESTS / "crd.yaml").read_text(encoding="utf-8"))["spec"]["versions"]
    other = yaml.safe_load((MANIFESTS / "crd.yaml").read_text(encoding="utf-8"))["spec"]["versions"]
    change(other[0])
    other[0]["schema"]["openAPIV3Schema"]["x-kubernetes-preserve-unknown-fields"] = True
    try:
        server.admin.patch(CRD, {"spec": {"versions": other}})
        yield
    finally:
        server.admin.patch(CRD, {"spec": {"versions": shipped}})
        # A new one: what the Nft holds already is not validated again from Kubernetes 1.33 on.
        refused = {**NFT, "metadata": {"name": "other"}, "spec": {"public_nic": "lo"}}
        eventually(
            lambda: refusal_of(lambda: server.admin.post(NFTS, refused, {"dryRun": "All"})) == 422,
            "the CRD is as shipped again",
        )
        eventually(lambda: refusal_of(lambda: server.admin.get(STATUS)) is None, "the status is back")


@contextmanager
def forbidden(router: Router, resource: str, path: str) -> Iterator[None]:
    """The shipped rights without those to write this resource."""
    role = router.server.admin.get(CLUSTER_ROLE)
    client = router.server.client(router.server.issue_token())
    try:
        left = [rule for rule in role["rules"] if resource not in rule["resources"]]
        assert len(left) == len(role["rules"]) - 1
        router.server.admin.patch(CLUSTER_ROLE, {"rules": left})
        eventually(lambda: refusal_of(lambda: client.patch(path, {})) == 403, f"{resource} is forbidden")
        yield
    finally:
        router.server.admin.patch(CLUSTER_ROLE, {"rules": role["rules"]})
        eventually(lambda: refusal_of(lambda: client.patch(path, {})) != 403, f"{resource} is allowed again")


def test_without_the_right_to_write_the_status_all_else_works_and_it_is_said_once(router: Router) -> None:
    with forbidden(router, "nfts/status", STATUS):
        router.start()
        for number in range(1, 4):
            router.add(f"s{number}", f"172.30.254.{number}")
            router.opens(f"172.30.254.{number}")
        eventually(lambda: len(events(router, "Opened")) == 3, "Events are sent")
        eventually(lambda: "Cannot write" in router.log.read_text(), "the status was tried")
        router.server.admin.delete(f"{SERVICES}/s1")
        router.closes("172.30.254.1")
    said = [line for line in router.log.read_text().splitlines() if "Cannot " in line]
    assert len(said) == 1
    assert "nftsync: WARNING: Cannot write the Nft's status: " in said[0]
    assert "403 Forbidden" in said[0]
    assert ": run nftsync bootstrap with an administrator's kubeconfig. The firewall is not affected" in said[0]
    assert 'nftsync_status_writes_total{result="failed"} 1.0\n' in metrics(router), "it is tried again after minutes"
    assert status(router) == {}


def test_without_the_right_to_send_events_all_else_works_and_it_is_said_once(router: Router) -> None:
    with forbidden(router, "events", f"{EVENTS.format('default')}/none"):
        router.start()
        for number in range(1, 4):
            router.add(f"s{number}", f"172.30.254.{number}")
            router.opens(f"172.30.254.{number}")
        eventually(lambda: status(router).get("pinholes") == 3, "the status is written")
        eventually(lambda: router.metric('nftsync_events_total{result="dropped"}') >= 1, "an Event was tried")
    said = [line for line in router.log.read_text().splitlines() if "Cannot " in line]
    assert len(said) == 1
    assert "Cannot send Events" in said[0]
    assert "run nftsync bootstrap" in said[0]
    assert 'nftsync_events_total{result="failed"} 1.0\n' in metrics(router)


def test_with_a_crd_that_has_no_status_subresource_all_else_works_and_it_is_said_once(router: Router) -> None:
    """As the Ansible operator's may be, where somebody upgrades and does not apply ours."""
    with changed_crd(router.server, lambda version: version.pop("subresources")):
        eventually(lambda: refusal_of(lambda: router.server.admin.get(STATUS)) == 404, "there is no status")
        router.start()
        router.add("web", "172.30.254.1")
        router.opens("172.30.254.1")
        event(router, "Opened")
        eventually(lambda: "Cannot write" in router.log.read_text(), "it is said")
        router.server.admin.delete(f"{SERVICES}/web")
        router.closes("172.30.254.1")
        said = [line for line in router.log.read_text().splitlines() if "Cannot " in line]
    assert len(said) == 1
    assert (
        "is too old: run nftsync bootstrap with an administrator's kubeconfig. The firewall is not affected" in said[0]
    )


# --- the log ------------------------------------------------------------------------------------------


def test_each_change_is_one_line_with_its_fields_and_no_line_holds_a_secret(router: Router) -> None:
    router.start()
    router.add("web", "172.30.254.1")
    router.opens("172.30.254.1")
    router.server.admin.delete(f"{SERVICES}/web")
    router.closes("172.30.254.1")
    fields = "kind=Service namespace=default name=web topic={} router=edge1"
    log = eventually(
        lambda: router.log.read_text() if "topic=Closed" in router.log.read_text() else "", "the line on closing"
    )
    told = [line for line in log.splitlines() if "default/web" in line]
    assert told == [
        f"nftsync: INFO: Service default/web: opened 172.30.254.1 tcp 80 {fields.format('Opened')}",
        f"nftsync: INFO: Service default/web: closed 172.30.254.1 tcp 80 {fields.format('Closed')}",
    ]
    assert router.token.read_text().strip() not in log
