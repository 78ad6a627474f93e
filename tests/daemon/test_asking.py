"""The answers of the running daemon, through the commands status, explain, diff and top.

The tests compare them with the real behaviour of the kernel.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from nftsync.daemon.control import ControlError, call
from tests.lab.lab import CLIENT, CLUSTER, PUBLIC, Lab, Probe
from tests.labtools import PATIENCE, PUBLIC_NIC, Daemon, Raw, elements, eventually, needs_root, nft, rules, service

pytestmark = needs_root

POOL4, POOL6 = "172.30.254.0/24", "2001:db8:254::/64"
POOL = {
    "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
    "metadata": {"name": "services", "namespace": "metallb-system"},
    "spec": {"addresses": [POOL4, POOL6, f"{CLUSTER[0]}/32"]},
}  # fmt: skip
FRIENDS = ["203.0.113.0/24", "2001:db8:113::/48"]
FRIEND, STRANGER = "203.0.113.7", "192.0.2.7"
UNROUTED = "172.31.9.9"


def in_namespace(raw: Raw, namespace: str) -> Raw:
    return {**raw, "metadata": {**raw["metadata"], "namespace": namespace}}


def created(raw: Raw, when: str) -> Raw:
    return {**raw, "metadata": {**raw["metadata"], "creationTimestamp": when}}


OBJECTS: tuple[Raw, ...] = (
    nft(),
    POOL,
    created(
        service("web", "172.30.254.1", "2001:db8:254::1", ports=[("TCP", 80), ("UDP", 53)]), "2020-01-01T00:00:00Z"
    ),
    service("friends", "172.30.254.2", "2001:db8:254::2", sources=FRIENDS),
    service("slow", "172.30.254.3", ports=[("UDP", 5000)], limit="1/week burst 3 packets"),
    created(service("late", "172.30.254.1"), "2024-01-01T00:00:00Z"),
    service("outside", "203.0.113.99"),
    service("own", str(CLUSTER[0])),
    service("waiting"),
    service("classy", "172.30.254.5", loadBalancerClass="example.com/other"),
    in_namespace(service("hidden", "172.30.254.6"), "shunned"),
    service("nobody", "172.30.254.7", sources=["10.0.0.300/33"]),
    service("wrong", "172.30.254.8", limit="a lot"),
)
NAMED = 'router_name = "edge1"\n'
FILTERS = '[filters]\nexclude_namespaces = ["shunned"]\nload_balancer_classes = [""]\n'


class Asked(Daemon):
    """A daemon that is asked."""

    def configure(self, text: str | None = None) -> None:
        super().configure(text)
        self.config.write_text(f"{NAMED}{self.config.read_text()}{FILTERS}")

    @property
    def runtime(self) -> Path:
        return self.folder / "run"

    def status(self) -> dict[str, Any]:
        return call(self.runtime, {"command": "status"})

    def explain(self, *words: str) -> dict[str, Any]:
        return call(self.runtime, {"command": "explain", "words": list(words)})


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """One that runs for all tests that change nothing."""
    with Lab() as lab, Asked(lab, tmp_path_factory.mktemp("asked"), interval=600) as made:
        lab.route(UNROUTED)
        lab.router.run(["ip", "route", "del", f"{UNROUTED}/32"])
        made.put(*OBJECTS)
        yield made.start()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Asked]:
    """One for a test of its own; not started."""
    with Lab() as lab, Asked(lab, tmp_path, interval=600) as made:
        made.put(*OBJECTS)
        yield made


# --- status -------------------------------------------------------------------------------------------


def test_status_says_for_programs_how_the_router_is_doing(shared: Asked) -> None:
    done = shared.command("status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["router"] == "edge1"
    assert re.fullmatch(r"\d+\.\d+.*", found["version"])
    assert 0 < found["running_seconds"] < 600
    assert found["sync"]["result"] in ("applied", "unchanged")
    assert 0 <= found["sync"]["last_success_seconds"] <= found["running_seconds"]
    assert re.fullmatch("[0-9a-f]{32}", found["sync"]["hash"])
    assert found["public_nic"] == {"name": PUBLIC_NIC, "attached": True, "missing": False, "rate_shaping": True}
    assert found["pools"] == {"guarded": True, "names": ["services"]}
    assert (found["services"], found["pinholes"]) == (9, 9)
    refused = {each["object"]: each["reason"] for each in found["rejections"]}
    assert refused == {
        "Service default/late": "conflict", "Service default/outside": "outside_pools",
        "Service default/own": "reserved_address",
        "Service default/nobody": "invalid_source_range", "Service default/wrong": "invalid_ratelimit",
    }  # fmt: skip
    assert found["rejected"] == len(found["rejections"])
    assert found["stale"] == {}
    times = [each["time"] for each in found["changes"]]
    assert times == sorted(times)
    assert "Service default/web" in {each["about"] for each in found["changes"]}
    assert call(shared.runtime, {"command": "status"})["sync"]["hash"] == found["sync"]["hash"], "nothing has changed"


def test_status_follows_what_happens_and_the_newest_change_stands_last(daemon: Asked) -> None:
    daemon.start()
    before = daemon.status()
    assert before["watches"] == {"files": "watching"}
    new = service("new", "172.30.254.20")
    daemon.put(new)
    assert eventually(lambda: daemon.status()["sync"]["hash"] != before["sync"]["hash"])
    opened = daemon.status()
    assert (opened["services"], opened["pinholes"]) == (before["services"] + 1, before["pinholes"] + 1)
    newest = opened["changes"][-1]
    assert (newest["about"], newest["topic"], newest["message"]) == (
        "Service default/new", "Opened", "opened 172.30.254.20 tcp 80",
    )  # fmt: skip
    daemon.remove(new)
    assert eventually(lambda: daemon.status()["changes"][-1]["topic"] == "Closed")
    daemon.put({**POOL, "spec": {"addresses": ["nonsense"]}})
    assert eventually(lambda: "pools" in daemon.status()["stale"])
    after = daemon.status()
    assert after["sync"]["hash"] == before["sync"]["hash"], "the last good pools stay"
    assert after["sync"]["last_success_seconds"] < after["running_seconds"]
    assert "stale: pools: 'nonsense' is neither" in daemon.command("status").stdout


def test_status_is_a_table_for_people(shared: Asked) -> None:
    done = shared.command("status")
    assert done.returncode == 0
    assert done.stdout.startswith("router edge1, nftsync ")
    assert re.search(rf"^public NIC +{PUBLIC_NIC}, rate limits in force at {PUBLIC_NIC}$", done.stdout, re.MULTILINE)
    assert re.search("^open +9 pinholes of 9 Services$", done.stdout, re.MULTILINE)
    assert re.search("^Service default/outside +outside_pools +203.0.113.99 is outside of", done.stdout, re.MULTILINE)


def test_status_is_shown_again_and_again_until_it_is_interrupted(shared: Asked) -> None:
    command = [sys.executable, "-m", "nftsync", "status", "--watch", "--config", str(shared.config)]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    hurry = threading.Timer(PATIENCE, watching.kill)
    hurry.start()
    try:
        assert watching.stdout
        frames = (line for line in watching.stdout if "router edge1, nftsync " in line)
        first, second = next(frames, ""), next(frames, "")
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=PATIENCE)
        assert (watching.returncode, said) == (130, "")
        assert first.startswith("router "), "this is no terminal that could be cleared"
        assert int(first.split()[-2]) < int(second.split()[-2])
    finally:
        hurry.cancel()
        watching.kill()
        watching.communicate()


def test_what_strangers_wrote_is_one_printable_line_each(daemon: Asked) -> None:
    evil = "\x1b[2J\x1b]0;x\x07\0\n\r\u202e\u2028\x9b31m"
    named = service("named")
    named["metadata"]["name"] = evil
    items = [
        service("limit", "172.30.254.9", limit=evil + "A" * 100_000), service("address", evil * 5000), named,
        service("range", "172.30.254.10", sources=[evil * 5000]), service("port", "172.30.254.11", ports=[(evil, 80)]),
        service("class", "172.30.254.12", loadBalancerClass=evil),
    ]  # fmt: skip
    (daemon.manifests / "evil.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    (daemon.manifests / "\x1b[2J\u202e\n.yaml").write_text("[")
    daemon.put({**POOL, "metadata": {"name": "other", "namespace": "metallb-system"}, "spec": {"addresses": [evil]}})
    daemon.local_chain.write_text('chain local-chain {\n\tct label set "\x1b[2J"\n}\n')
    daemon.start()
    shown = daemon.command("status")
    assert shown.returncode == 0
    lines = shown.stdout.split("\n")
    assert all(line.isprintable() and len(line) < 1000 for line in lines)
    (first,) = (number for number, line in enumerate(lines) if line.startswith("REFUSED "))
    refused = Counter(line.split()[0] for line in lines[first + 1 : lines.index("", first)])
    known = ("late", "nobody", "own", "wrong")
    assert refused == {"Service": len(known) + 5, "IPAddressPool": 1, "File": 2}
    for name in ("limit", "address", "range", "port", "class"):
        told = daemon.command("explain", f"default/{name}")
        assert told.returncode == 0
        assert all(line.isprintable() for line in told.stdout.split("\n"))
    assert all(line.isprintable() for line in daemon.log().split("\n"))


def test_a_nic_that_goes_shows_in_the_status_and_in_what_is_explained(daemon: Asked) -> None:
    daemon.start()
    daemon.lab.unplug()
    missing = {"name": PUBLIC_NIC, "attached": False, "missing": True, "rate_shaping": True}
    assert eventually(lambda: daemon.status()["public_nic"] == missing)
    assert (
        "is not there: every interface counts as public, and no ingress limit is in force"
        in daemon.command("status").stdout
    )
    found = daemon.explain("172.30.254.3:5000/udp")
    assert found["reason"] == "nic_missing"
    assert "nic_missing" in found["also"]
    done = daemon.command("diff")
    assert (done.returncode, done.stdout) == (0, "")


def test_a_daemon_that_goes_away_is_said_in_a_line(daemon: Asked) -> None:
    daemon.start()
    command = [sys.executable, "-m", "nftsync", "status", "--watch", "--config", str(daemon.config)]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert watching.stdout
        assert watching.stdout.readline()
        assert daemon.stop() == 0
        _, said = watching.communicate(timeout=PATIENCE)
        assert watching.returncode == 1
        assert said == (
            f"nftsync: {daemon.runtime}/control.sock: the daemon does not run: "
            "start it with `systemctl start nftsync`\n"
        )
    finally:
        watching.kill()


@pytest.mark.parametrize("words", [("status",), ("explain", "default/web"), ("diff",), ("top", "--once")])
def test_who_is_not_root_is_told_so(shared: Asked, words: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        readable = Path(folder) / "nftsync.toml"
        readable.write_text(shared.config.read_text())
        readable.parent.chmod(0o755)
        command = [sys.executable, "-m", "nftsync", *words, "--config", str(readable)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, user=65534, group=65534, extra_groups=[]
        )
    assert done.returncode == (2 if words == ("diff",) else 1)
    assert done.stderr == f"nftsync: {shared.runtime}/control.sock: only root can ask the daemon: use sudo\n"


# --- explain ------------------------------------------------------------------------------------------

PACKETS = {
    ("172.30.254.1:80",): ("passes", "open"),
    ("[2001:db8:254::1]:53/udp",): ("passes", "open"),
    (FRIEND, "172.30.254.2:80"): ("passes", "open"),
    (STRANGER, "172.30.254.2:80"): ("dropped", "refused_source"),
    ("172.30.254.2:80",): ("depends", "open"),
    ("172.30.254.1:81",): ("dropped", "no_such_port"),
    ("172.30.254.77:80",): ("dropped", "no_such_address"),
    ("203.0.113.99:80",): ("dropped", "outside_pools"),
    (f"{CLUSTER[0]}:80",): ("dropped", "router_port"),
    (f"{PUBLIC[0]}:22",): ("passes", "router_port"),
    ("172.30.254.5:80",): ("dropped", "other_class"),
    ("172.30.254.6:80",): ("dropped", "filtered_namespace"),
    ("172.30.254.7:80",): ("dropped", "invalid"),
    ("172.30.254.3:5000/udp",): ("limited", "open"),
}
SERVICES = {
    "web": ("passes", "open"), "friends": ("passes", "open"), "slow": ("limited", "open"),
    "late": ("dropped", "lost_to_older"),
    "outside": ("dropped", "outside_pools"), "own": ("dropped", "reserved_address"),
    "waiting": ("dropped", "no_address_yet"),
    "classy": ("dropped", "other_class"), "nobody": ("dropped", "invalid"), "wrong": ("passes", "invalid"),
    "absent": ("dropped", "not_a_service"),
}  # fmt: skip


@pytest.mark.parametrize("words", PACKETS, ids=" ".join)
def test_a_packet_is_explained(shared: Asked, words: tuple[str, ...]) -> None:
    found = shared.explain(*words)
    assert (found["verdict"], found["reason"]) == PACKETS[words], found["text"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_explained(shared: Asked, name: str) -> None:
    found = shared.explain(f"default/{name}")
    assert (found["verdict"], found["reason"]) == SERVICES[name], found["text"]


def test_the_command_prints_what_the_daemon_answers(shared: Asked) -> None:
    told = shared.explain(STRANGER, "172.30.254.2:80")
    done = shared.command("explain", STRANGER, "172.30.254.2:80")
    assert (done.returncode, done.stdout, done.stderr) == (0, told["text"] + "\n", "")
    done = shared.command("explain", "--json", STRANGER, "172.30.254.2:80")
    assert json.loads(done.stdout) == {key: value for key, value in told.items() if key != "text"}
    done = shared.command("explain", "nonsense")
    assert done.returncode == 2
    assert "names neither a packet nor a Service" in done.stderr


def test_hundreds_of_packets_go_the_way_that_the_daemon_tells(shared: Asked) -> None:
    draw = random.Random(7)
    addresses = [f"172.30.254.{number}" for number in (1, 1, 2, 2, 5, 6, 7, 8, 77)]
    addresses += [f"2001:db8:254::{number}" for number in (1, 2, 9)]
    sources = {4: [FRIEND, STRANGER, str(CLIENT[0])], 6: ["2001:db8:113::7", "2001:db8:999::7", str(CLIENT[1])]}
    probes = []
    for _ in range(400):
        destination = draw.choice([*addresses, str(PUBLIC[0]), str(CLUSTER[0])])
        source = draw.choice(sources[ip_address(destination).version])
        probes.append(
            Probe(draw.choice(["tcp", "udp"]), destination, draw.choice([22, 53, 80, 80, 80, 81, 179]), source=source)
        )
    arrived = {id(probe) for probe in shared.lab.deliver(probes)}
    seen: Counter[str] = Counter()
    for probe in probes:
        host = f"[{probe.destination}]" if ":" in probe.destination else probe.destination
        found = shared.explain(str(probe.source), f"{host}:{probe.port}/{probe.protocol}")
        assert (found["verdict"] == "passes") == (id(probe) in arrived), f"{probe}: {found['text']}"
        seen[found["verdict"]] += 1
    assert min(seen["passes"], seen["dropped"]) > 40


def test_what_a_limit_has_dropped_is_told_and_grows(daemon: Asked) -> None:
    daemon.start()

    def dropped() -> int:
        found = daemon.explain("172.30.254.3:5000/udp")
        (line,) = (line for line in found["lines"] if line.startswith("its limit is "))
        return int(line.rpartition(": ")[2])

    flood = [Probe("udp", "172.30.254.3", 5000)] * 10
    assert dropped() == 0
    assert len(daemon.lab.deliver(flood)) == 3
    assert dropped() == 7
    assert not daemon.lab.deliver(flood)
    assert dropped() == 17


def test_an_address_without_a_route_and_a_firewall_that_lets_everything_pass_are_explained(daemon: Asked) -> None:
    daemon.put(service("far", UNROUTED), {**POOL, "spec": {"addresses": [POOL4, POOL6, f"{UNROUTED}/32"]}})
    daemon.start()
    found = daemon.explain(f"{UNROUTED}:80")
    assert (found["verdict"], found["reason"]) == ("dropped", "no_route")
    assert not daemon.lab.arrives("tcp", UNROUTED, 80)
    daemon.lab.route(UNROUTED)
    assert daemon.explain(f"{UNROUTED}:80")["reason"] == "open"
    assert daemon.lab.arrives("tcp", UNROUTED, 80)
    daemon.put(nft(enable_dropall=False))
    assert eventually(lambda: daemon.explain("172.30.254.1:81")["reason"] == "everything_passes")
    assert daemon.lab.arrives("tcp", "172.30.254.1", 81)


# --- diff ---------------------------------------------------------------------------------------------


def changes(text: str) -> list[str]:
    return [line for line in text.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]


def test_diff_shows_what_somebody_else_changed_and_nothing_else(daemon: Asked) -> None:
    daemon.start()
    done = daemon.command("diff")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert daemon.stop() == 0, "it would repair at once what is to be seen"
    daemon.lab.router.nft("add element inet nftsync services4 { 192.0.2.1 . tcp . 99 }")
    done = daemon.command("diff", "--manifests", str(daemon.manifests))
    assert done.returncode == 1
    (line,) = changes(done.stdout)
    assert line.startswith("-")
    assert "192.0.2.1 . tcp . 99" in line
    daemon.lab.router.nft("delete element inet nftsync services4 { 192.0.2.1 . tcp . 99 }")
    daemon.lab.router.nft("flush chain inet nftsync operator-cr")
    done = daemon.command("diff", "--manifests", str(daemon.manifests))
    assert done.returncode == 1
    assert {line.lstrip("+\t ").split(" counter")[0] for line in changes(done.stdout)} == {
        "tcp dport 179 accept", "tcp dport 22 accept",
    }  # fmt: skip


def test_diff_shows_what_somebody_else_goes_on_changing_beside_the_daemon_until_it_is_repaired(daemon: Asked) -> None:
    daemon.start()
    stray = "192.0.2.1 . tcp . 99"
    found: list[str] = []
    stop = threading.Event()

    def meddle() -> None:
        while not stop.wait(0.01):
            daemon.lab.router.nft(f"add element inet nftsync services4 {{ {stray} }}")

    def shown() -> bool:
        done = daemon.command("diff")
        assert (done.returncode, done.stderr) == (1 if done.stdout else 0, "")
        found.extend(changes(done.stdout))
        return done.returncode == 1

    meddler = threading.Thread(target=meddle)
    meddler.start()
    try:
        assert eventually(shown)
    finally:
        stop.set()
        meddler.join()
    (line,) = found
    assert re.fullmatch(rf"-\t+{stray} ?.*,", line)
    assert eventually(lambda: stray not in elements(daemon.lab, "services4"))
    done = daemon.command("diff")
    assert (done.returncode, done.stdout) == (0, "")


def test_diff_shows_what_other_manifests_would_do_and_does_it_not(daemon: Asked, tmp_path: Path) -> None:
    daemon.start()
    before = rules(daemon.lab)
    done = daemon.command("diff", "--manifests", str(daemon.manifests))
    assert done.returncode == 0, done.stdout
    more = tmp_path / "more.yaml"
    more.write_text(json.dumps(service("new", "172.30.254.50", ports=[("TCP", 443)], limit="2 mbytes/second")))
    done = daemon.command("diff", "--manifests", str(daemon.manifests), str(more))
    assert done.returncode == 1
    assert all(line.startswith("+") for line in changes(done.stdout))
    inside = [line.strip("+\t,") for line in changes(done.stdout) if not line.endswith(("{", "}"))]
    assert not [line for line in inside if not line.startswith(("172.30.254.50", "0xac1efe32 . 0x6"))]
    assert (
        len([line for line in inside if line.startswith("172.30.254.50 . tcp . 443 ")]) == 5
    ), "the pinhole, its limit and that of redirected packets, and counters of what these drop"
    assert rules(daemon.lab) == before


# --- top ----------------------------------------------------------------------------------------------


def test_top_shows_what_each_service_gets_and_what_its_limit_drops(daemon: Asked) -> None:
    daemon.put(service("slow", "172.30.254.3", ports=[("UDP", 5000)], limit="50/second burst 5 packets"))
    daemon.start()
    stop = threading.Event()
    sent = Counter[str]()

    def send() -> None:
        due = time.monotonic()
        while not stop.is_set():
            daemon.lab.deliver([Probe("udp", "172.30.254.1", 53)] * 10 + [Probe("udp", "172.30.254.3", 5000)] * 20)
            sent.update(web=10, slow=20)
            due += 0.1
            stop.wait(max(0.0, due - time.monotonic()))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        assert eventually(lambda: sent["web"] >= 20)
        before = sent["web"]
        done = daemon.command("top", "--once", "--seconds", "3")
        during = sent["web"] - before + 10  # and those on their way
        by_drops = daemon.command("top", "--once", "--drops", "--seconds", "1")
    finally:
        stop.set()
        thread.join()
    assert done.returncode == by_drops.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["KBYTES/S", "PACKETS/S", "DROPPED/S", "SERVICE"]
    shown = {row.split()[-1]: [float(cell) for cell in row.split()[:3]] for row in rows}
    assert shown.keys() == {"default/web", "default/slow"}, "the others had no traffic"
    (_, web, lost), (_, slow, dropped) = shown["default/web"], shown["default/slow"]
    assert 0 < web * 3 <= during
    assert lost == 0
    assert slow + dropped == pytest.approx(
        2 * web, abs=2 * 20 / 3
    ), "twice as much is sent; either end may be in a burst"
    assert 0 < slow < dropped
    assert by_drops.stdout.splitlines()[1].split()[-1] == "default/slow"


# --- the loop goes on ---------------------------------------------------------------------------------


def test_many_who_ask_do_not_hold_up_the_firewall(daemon: Asked) -> None:
    crowd = {"apiVersion": "v1", "kind": "List", "items": [
        service(f"crowd{number}", f"172.30.254.{10 + number % 200}", ports=[("TCP", 1000 + number)], limit="400/second")
        for number in range(1000)
    ]}  # fmt: skip
    (daemon.manifests / "crowd.json").write_text(json.dumps(crowd))  # YAML takes a busy machine seconds to read
    daemon.start()
    stop, answered = threading.Event(), Counter[str]()
    counted: dict[str, set[tuple[int, ...]]] = {}  # by hash

    def asking(number: int) -> None:
        explain = {"command": "explain", "words": ["default/crowd7"]}
        questions: list[dict[str, Any]] = [{"command": "status"}, {"command": "ruleset"}, explain]
        while not stop.is_set():
            question = questions[number % 3]
            number += 1
            try:
                answer = call(daemon.runtime, question)
            except ControlError:
                answered["busy"] += 1
                continue
            answered[str(question["command"])] += 1
            if question["command"] == "status":
                counts = tuple(answer[each] for each in ("services", "pinholes", "rejected"))
                counted.setdefault(answer["sync"]["hash"], set()).add(counts)
            elif question["command"] == "ruleset":
                opened = answer["text"].partition("set services4 {")[2].partition("}\n")[0]
                webs = set(re.findall(r"172\.30\.254\.1 \. tcp \. 2\d{3}\b", opened))
                answered["two at once"] += len(webs) > 1

    threads = [threading.Thread(target=asking, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):
            port = 2000 + number
            daemon.put(service("web", "172.30.254.1", ports=[("TCP", port)]))
            element = f"get element inet nftsync services4 {{ 172.30.254.1 . tcp . {port} }}"
            assert eventually(lambda words=["nft", element]: not daemon.lab.router.run(words, check=False).returncode)  # type: ignore[misc]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert answered["two at once"] == answered["busy"] == 0
    assert len(counted) > 1
    assert all(len(counts) == 1 for counts in counted.values()), "an answer is of one moment"
    assert min(answered["status"], answered["ruleset"], answered["explain"]) > 0


def test_the_socket_is_gone_when_the_daemon_is_and_one_that_was_killed_is_followed_by_another(daemon: Asked) -> None:
    daemon.start()
    assert daemon.process
    daemon.process.kill()
    daemon.process.wait()
    assert (daemon.runtime / "control.sock").exists()
    assert daemon.command("status").returncode == 1
    daemon.start()
    assert daemon.status()["router"] == "edge1"
    assert daemon.stop() == 0
    assert not (daemon.runtime / "control.sock").exists()
