"""A daemon that runs as a process, with a cluster that can fail.

A test starts it by hand or as systemd does, and can look at each of its transactions.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faultycluster import FaultyCluster, write_kubeconfig
from tests.lab.lab import Lab
from tests.labtools import SERVICE4, SERVICE6, Daemon, Raw, elements, eventually, nft, service
from tests.load import Tally, Traffic, traffic
from tests.support import ROOT

UNITS = ROOT / "systemd"
OPEN = (f"{SERVICE4} 80", f"{SERVICE6} 80")  # to WEB
CLOSED = (f"{SERVICE4} 81", "172.30.254.99 80", "2001:db8:254::99 80")  # the pool has them, and no Service
WEB = service("web", SERVICE4, SERVICE6, ports=[("UDP", 80)])
WEB_KEY = f"{SERVICE4} . udp . 80"
POOL: Raw = {
    "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
    "metadata": {"namespace": "metallb-system", "name": "services", "uid": "uid-pool"},
    "spec": {"addresses": ["172.30.254.0/24", "2001:db8:254::/64"]},
}  # fmt: skip
INVALID_NFT = {**nft(), "spec": {"public_nic": 7}}


@dataclass
class ClusterDaemon(Daemon):
    """`nftsync run` in the router, with an API server, and a listener in place of systemd."""

    cluster: FaultyCluster = field(kw_only=True)

    def __post_init__(self) -> None:
        self.kubeconfig = write_kubeconfig(self.folder / "kubeconfig")
        super().__post_init__()
        self._systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._systemd.bind(str(self.folder / "notify"))
        self.systemd_status = ""  # the sentence that `systemctl status` shows
        self._hearing = threading.Thread(target=self._hear, daemon=True)
        self._hearing.start()
        self.environment = {"NOTIFY_SOCKET": str(self.folder / "notify")}

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(self.folder / "notify"))
        self._hearing.join()
        self._systemd.close()

    @property
    def runtime(self) -> Path:
        return self.folder / "run"

    def configure(self, text: str | None = None) -> None:
        super().configure(text)
        if text is None:
            self.config.write_text(f'kubeconfig = "{self.kubeconfig}"\n{self.config.read_text()}')

    def argv(self, *options: str) -> list[str]:
        return [*self.program, "run", "--config", str(self.config), *options]

    def put(self, *objects: Raw) -> None:
        self.cluster.put(*objects)

    def remove(self, *objects: Raw) -> None:
        self.cluster.remove(*objects)

    def kill(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def syncs(self) -> float:
        """The number of syncs with any result."""
        return sum(
            map(float, re.findall(r"^nftsync_syncs_total\{.*\} (\S+)$", self.get("/metrics").body, re.MULTILINE))
        )

    def waiting(self) -> None:
        """Start it, and return after its first sync, even if it waits for lists or settings."""
        self.start(ready=False)
        assert eventually(lambda: self.syncs() >= 1), self.log()

    def remembering(self) -> None:
        """Start it while its API server is away, and return when it has found that out."""
        self.waiting()
        assert eventually(lambda: self.metric("nftsync_watch_restarts_total", {"resource": "Service"}) >= 1), self.log()

    def status(self) -> dict[str, Any]:
        done = self.command("status", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def explain(self, *words: str) -> dict[str, Any]:
        done = self.command("explain", "--json", *words)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _hear(self) -> None:
        """Listen in place of systemd. An empty message is our own: it ends the thread."""
        while message := self._systemd.recv(4096).decode():
            if found := re.search(r"^STATUS=(.*)$", message, re.MULTILINE):
                self.systemd_status = found[1]


@contextmanager
def cluster_daemon(folder: Path, *objects: Raw, extra: str = "") -> Iterator[ClusterDaemon]:
    """A lab with these objects in its cluster, and a daemon that does not run yet.

    It resyncs every second.
    """
    with (
        Lab() as lab,
        FaultyCluster(lab.router) as cluster,
        ClusterDaemon(lab, folder, interval=1, extra=extra, cluster=cluster) as made,
    ):
        made.put(*objects)
        yield made


def closed_for_good(daemon: ClusterDaemon, raw: Raw) -> None:
    """Delete a Service, and wait until the kernel has no element for its first address."""
    (address, *_) = (each["ip"] for each in raw["status"]["loadBalancer"]["ingress"])
    daemon.remove(raw)
    assert eventually(
        lambda: not any(key.startswith(f"{address} ") for key in elements(daemon.lab, "services4"))
    ), daemon.log()


# --- systemd ------------------------------------------------------------------------------------------


def systemctl_start(daemon: ClusterDaemon) -> None:
    """Run the units of `systemctl start nftsync` on a router that has been up for a while."""
    service_unit = _unit("nftsync.service")
    for name in " ".join([*service_unit.get("Wants", ()), *service_unit.get("Requires", ())]).split():
        if (UNITS / name).exists() and _conditions_hold(_unit(name), daemon):
            _execute(daemon, [*_unit(name).get("ExecStartPre", ()), *_unit(name).get("ExecStart", ())])
    assert _conditions_hold(service_unit, daemon)
    _execute(daemon, service_unit.get("ExecStartPre", ()))
    daemon.waiting()


def _unit(name: str) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def _conditions_hold(unit: Mapping[str, Sequence[str]], daemon: ClusterDaemon) -> bool:
    """Whether a unit's conditions hold: one of those with a |, and all others.

    Source: systemd.unit(5).
    """
    unknown = [key for key in unit if key.startswith(("Condition", "Assert")) and key != "ConditionPathExists"]
    assert not unknown, f"teach this function {unknown}"
    places = {
        "/etc/nftsync/kubeconfig": daemon.kubeconfig,
        "/var/lib/nftsync": daemon.state,
        "/run/nftsync": daemon.runtime,
    }
    one: list[bool] = []
    every: list[bool] = []
    for condition in unit.get("ConditionPathExists", ()):
        path = condition.lstrip("|!")
        for place, mine in places.items():
            path = path.replace(place, str(mine), 1)
        (one if "|" in condition else every).append(Path(path).exists() is not ("!" in condition))
    return all(every) and (any(one) or not one)


def _execute(daemon: ClusterDaemon, lines: Sequence[str]) -> None:
    for line in lines:
        program, *arguments = line.lstrip("-@:+!").split()
        assert program == "/usr/bin/nftsync", f"teach this function {line}"
        done = daemon.command(*arguments)
        assert line.startswith("-") or done.returncode == 0, done.stderr


# --- packets and transactions ----------------------------------------------------------------------------


class Flow:
    """The counts of packets to each destination."""

    def __init__(self, tallies: Mapping[str, Tally]) -> None:
        self._tallies = tallies

    def lost(self) -> dict[str, list[int]]:
        """The first packets that did not arrive, by destination."""
        return {destination: tally.missing for destination, tally in self._tallies.items() if tally.missing}

    def arrived(self) -> set[str]:
        return {destination for destination, tally in self._tallies.items() if tally.arrived}

    def shut_once(self, destination: str) -> bool:
        """Whether packets arrived up to one moment, and never after it."""
        tally = self._tallies[destination]
        return 0 < tally.arrived < tally.sent and tally.missing[0] == tally.arrived


class Flowing:
    """Packets that flow until `end`."""

    def __init__(self, running: Traffic, destinations: Sequence[str]) -> None:
        self._running = running
        self._destinations = destinations

    def end(self) -> Flow:
        return Flow(dict(zip(self._destinations, self._running.end(), strict=True)))


@contextmanager
def flow(lab: Lab, *destinations: str, passing: int) -> Iterator[Flowing]:
    """Numbered packets to destinations (see tests.load).

    passing: packets reach so many destinations before the block begins.
    """
    with traffic(lab, destinations, pause=0.001) as running:
        assert eventually(lambda: running.through(passing)), "nothing comes through"
        yield Flowing(running, destinations)


class Transactions:
    """The lines of each transaction in the router since the start, as `nft monitor` shows them."""

    def __init__(self, lab: Lab, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        self._lab = lab
        self._lines: list[str] = []
        threading.Thread(target=self._lines.extend, args=[process.stdout], daemon=True).start()
        assert eventually(self._mark), "nft monitor says nothing"

    def _mark(self) -> bool:
        """Commit an object of others; return whether `nft monitor` showed it."""
        before = len(self._lines)
        self._lab.router.nft("add table ip probe\ndelete table ip probe")
        return eventually(lambda: any("new generation" in line for line in self._lines[before:]), 0.5)

    def so_far(self) -> list[list[str]]:
        assert eventually(self._mark), "nft monitor says no more"
        parts = re.split(r"^# new generation .*\n", "".join(list(self._lines)), flags=re.MULTILINE)
        return [lines for part in parts if (lines := [line for line in part.splitlines() if " ip probe" not in line])]

    def first(self, line: str) -> list[str]:
        """The first transaction with a line that begins so; empty if there is none."""
        return next((each for each in self.so_far() if any(found.startswith(line) for found in each)), [])


@contextmanager
def transactions(lab: Lab) -> Iterator[Transactions]:
    process = lab.router.popen(["nft", "monitor"], stdout=subprocess.PIPE, bufsize=1)
    try:
        yield Transactions(lab, process)
    finally:
        process.kill()
        process.communicate()


def always(condition: Callable[[], object], times: int = 5) -> bool:
    """Whether a condition holds again and again, some moments apart."""
    return not any(eventually(lambda: not condition(), 0.1) for _ in range(times))
