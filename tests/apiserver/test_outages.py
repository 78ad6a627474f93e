"""While the cluster can't be heard, the last ruleset stays and the operator is told.

Changes of that time count soon after it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from nftables import Nftables

from tests.apiserver.harness import ApiServer, eventually
from tests.apiserver.router import Router, fresh_router
from tests.lab.lab import Lab

OPEN, CLOSED, LATE = "172.30.254.1", "172.30.254.2", "172.30.254.3"
STALE = 'nftsync_config_stale{source="services"}'
RAISED, CONFIRMED = (f'nftsync_list_doubts_total{{doubt="{doubt}"}}' for doubt in ("raised", "confirmed"))
WATCHING = 'nftsync_watch_state{resource="Service",state="watching"}'
NOTICED = 300.0  # seconds until silence is taken never to be noticed; half a minute on an idle machine


@pytest.fixture
def router(cluster: tuple[Lab, ApiServer], tmp_path: Path) -> Iterator[Router]:
    """One that runs, and has a Service."""
    with fresh_router(*cluster, tmp_path) as running:
        running.add("web", OPEN)
        running.start()
        running.opens(OPEN)
        yield running


def as_before(router: Router) -> None:
    assert router.lab.arrives("tcp", OPEN, 80)
    assert not router.lab.arrives("tcp", CLOSED, 80)


def stale(router: Router) -> None:
    """It is noticed, and nothing changes until then and after."""
    ends = time.monotonic() + NOTICED
    while router.metric(STALE) != 1:
        assert time.monotonic() < ends, f"nobody noticed:\n{router.log.read_text()}"
        as_before(router)
    as_before(router)


def recovers(router: Router) -> float:
    """What is new opens; returns the seconds."""
    began = time.monotonic()
    router.add("late", LATE)
    router.opens(LATE)
    seconds = time.monotonic() - began
    eventually(lambda: router.metric(STALE) == 0, "what is known is up to date again")
    as_before(router)
    return seconds


@contextmanager
def killed(server: ApiServer) -> Iterator[None]:
    server.kill()
    yield
    server.restart()


@contextmanager
def hanging(server: ApiServer) -> Iterator[None]:
    """Its kernel goes on to acknowledge what it is sent, so nothing but silence tells."""
    for pid in server.pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in server.pids:
            os.kill(pid, signal.SIGCONT)


def test_a_server_that_hangs_is_noticed_and_followed_again_when_it_goes_on(router: Router) -> None:
    with hanging(router.server):
        stale(router)
    recovers(router)


def test_connections_that_are_half_open_are_replaced_and_nothing_closes(router: Router) -> None:
    """Their packets are lost without a word, as behind a NAT or a firewall that has forgotten them."""
    nft, ports = Nftables(), connections(router)
    assert len(ports) > 1, "the watches"
    theirs = f"{{ {', '.join(ports)} }}"
    chain = f"type filter hook input priority -200; tcp sport {theirs} drop; tcp dport {theirs} drop;"
    code, _, error = nft.cmd(f"table inet lost {{ chain input {{ {chain} }}; }}")
    assert not code, error
    try:
        began = time.monotonic()
        router.add("late", LATE)
        while not router.lab.arrives("tcp", LATE, 80):
            assert time.monotonic() < began + NOTICED, router.log.read_text()
            as_before(router)
        print(f"seconds until half-open connections were replaced: {time.monotonic() - began:.1f}")
        eventually(lambda: connections(router).isdisjoint(ports), "all of them are replaced", NOTICED)
    finally:
        nft.cmd("delete table inet lost")
    assert "topic=Closed" not in router.log.read_text()


def connections(router: Router) -> set[str]:
    """The daemon's own ports of its connections to the server."""
    assert router.daemon
    command = ["ss", "-Htnp", "state", "established", "dport", "=", f":{router.server.url.rpartition(':')[2]}"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {line.split()[2].rpartition(":")[2] for line in lines if f"pid={router.daemon.pid}," in line}


def test_a_server_that_is_away_again_and_again_is_followed_each_time(router: Router) -> None:
    """RETURNS=40 in the environment tries more often than the three times that do for every day."""
    times = []
    for number in range(int(os.environ.get("RETURNS", "3"))):
        with hanging(router.server) if number % 3 == 2 else killed(router.server):
            stale(router)
            time.sleep(number % 5 * 3)  # so that it comes back at any moment between two tries
        times.append(recovers(router))
        router.server.admin.delete("/api/v1/namespaces/default/services/late")
        router.closes(LATE)
    print(f"seconds from the server's return until a new Service is open: {[round(each, 1) for each in sorted(times)]}")


def without_rights(router: Router) -> Callable[[], None]:
    path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/nftsync"
    binding = router.server.admin.get(path)
    router.server.admin.delete(path)
    del binding["metadata"]["resourceVersion"], binding["metadata"]["uid"]

    def give_back() -> None:
        router.server.apply_object(binding)

    return give_back


def with_another_ca(router: Router) -> Callable[[], None]:
    """The kubeconfig trusts a certificate authority that has signed nothing here."""
    kubeconfig = Path(tomllib.loads(router.configuration.read_text(encoding="utf-8"))["kubeconfig"])
    before = kubeconfig.read_bytes()
    authority = router.log.parent / "other-ca.pem"
    router.server._openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=other",
        "-keyout", str(router.log.parent / "other-ca.key"), "-out", str(authority),
    )  # fmt: skip
    document = yaml.safe_load(before)
    document["clusters"][0]["cluster"]["certificate-authority"] = str(authority)
    kubeconfig.write_text(yaml.safe_dump(document), encoding="utf-8")

    def give_back() -> None:
        kubeconfig.write_bytes(before)

    return give_back


@pytest.mark.parametrize("fault", [without_rights, with_another_ca], ids=["403", "wrong CA"])
def test_a_refusal_stops_nothing_is_said_and_ends(
    router: Router, fault: Callable[[Router], Callable[[], None]]
) -> None:
    give_back = fault(router)
    router.server.restart()  # a watch that was accepted goes on
    try:
        stale(router)
    finally:
        give_back()
    recovers(router)
    assert "Traceback" not in router.log.read_text()


def test_services_that_a_list_has_suddenly_lost_stay_open_until_a_second_one_says_the_same(router: Router) -> None:
    """Most are deleted while the daemon hears nothing, and what the watch would tell of it is compacted away."""
    many = [f"many{number}" for number in range(12)]
    for number, name in enumerate(many):
        router.add(name, f"172.30.254.{100 + number}")
    router.opens("172.30.254.111")
    assert router.daemon
    router.daemon.send_signal(signal.SIGSTOP)
    router.server.restart()
    for name in many:
        router.server.admin.delete(f"/api/v1/namespaces/default/services/{name}")
    router.server.compact()
    router.server.restart()
    router.daemon.send_signal(signal.SIGCONT)
    assert doubted(router, "172.30.254.100"), "the status says so"
    router.closes("172.30.254.100")
    router.closes("172.30.254.111")
    as_before(router)
    assert router.metric(RAISED) == 1
    eventually(lambda: router.metric(STALE) == 0, "nothing is in doubt any more")
    said = (
        "12 of 13 objects of the kind Service are missing from the list: they stay open until a second list "
        "confirms it",
        "a second list also lacks 12 of the 12 missing objects of the kind Service",
    )
    assert all(each in router.log.read_text() for each in said)
    eventually(lambda: len(doubts_told(router)) == 2, "there are Events of both")
    told = doubts_told(router)
    assert all(any(each in event["note"] for event in told) for each in said)
    assert {(event["type"], event["regarding"]["name"]) for event in told} == {("Warning", "nft")}


def test_a_restart_does_not_make_a_suddenly_smaller_list_the_truth(router: Router) -> None:
    many = [f"many{number}" for number in range(12)]
    for number, name in enumerate(many):
        router.add(name, f"172.30.254.{100 + number}")
    router.opens("172.30.254.111")
    router.stop()
    told_before = len(doubts_told(router))
    for name in many:
        router.server.admin.delete(f"/api/v1/namespaces/default/services/{name}")
    router.launch()
    doubted(router, "172.30.254.100")
    router.closes("172.30.254.100")
    as_before(router)
    eventually(lambda: len(doubts_told(router)) == told_before + 2, "there are Events of both")


def doubted(router: Router, address: str) -> bool:
    """A list is doubted until a second one says the same; until then the address stays open.

    Returns whether the status said so.
    """
    stale = False

    def over() -> bool:
        nonlocal stale
        stale = stale or router.metric(STALE) == 1
        is_open = router.lab.arrives("tcp", address, 80)
        as_before(router)
        if not is_open:  # then the second list has come, a moment ago or earlier
            eventually(lambda: router.metric(CONFIRMED) == 1, "closed before a second list said the same", 2.0)
        return router.metric(CONFIRMED) == 1

    eventually(over, "a second list says the same")
    return stale


def doubts_told(router: Router) -> list[dict[str, Any]]:
    events = router.server.admin.get("/apis/events.k8s.io/v1/namespaces/arbf-operators/events")["items"]
    return [event for event in events if event["reason"] == "ListDoubted"]
