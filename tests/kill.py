"""SIGKILL at random instants, while Services change and packets flow.

The API server is away half of the time. A seed draws the instants.

    python -m tests.chaos --faults 0 --kills 300 [--seed N]

After each kill, the kernel holds each Service in one of its versions, never a part of it. No
allowed packet is lost and no forbidden one passes. After the next start the kernel holds the newest
versions.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.chaos import ALLOWED, FORBIDDEN, POOL, STEADY
from tests.faultycluster import FaultyCluster
from tests.lab.lab import Lab
from tests.labtools import Raw, eventually, nft, service
from tests.load import traffic
from tests.process import ClusterDaemon

NAMES = [f"s{number}" for number in range(2, 14)]
PORTS = (53, 80, 443, 8080)
RANGES: tuple[list[str], ...] = ([], [], ["203.0.113.0/24", "2001:db8:113::/48"], ["192.0.2.0/24", "2001:db8:2::/64"])
LIMITS = (None, None, "100 mbytes/second burst 1 mbytes")
START = 1.0  # seconds within which a process that starts is killed
CHANGE = 0.06  # seconds within which one is killed that has heard of a change

Part = frozenset[str]  # elements of one Service in the kernel: "set: element"


class KillError(AssertionError):
    """A promise was not kept."""


@dataclass
class Tally:
    """The counts of a run. seconds: from each start until everything was right."""

    kills: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    allowed: int = 0
    forbidden: int = 0

    def __str__(self) -> str:
        slowest = sorted(self.seconds)[-max(1, len(self.seconds) // 100)]
        return (
            f"{sum(self.kills.values())} kills, {dict(self.kills)}; {self.allowed} packets to open Services, "
            "all arrived; "
            f"{self.forbidden} to closed ones, none arrived; right {median(self.seconds):.2f} s after a start "
            "with an API server "
            f"(median), {slowest:.2f} s (99th percentile)"
        )


def asked(raw: Raw | None) -> Part:
    """The elements that the kernel must hold for a version of a Service; none for None."""
    if raw is None:
        return frozenset()
    found = set()
    ranges = raw["spec"]["loadBalancerSourceRanges"]
    for address in (each["ip"] for each in raw["status"]["loadBalancer"]["ingress"]):
        family = 6 if ":" in address else 4
        for port in raw["spec"]["ports"]:
            key = f"{address} . {port['protocol'].lower()} . {port['port']}"
            found |= {f"sources{family}: {key} . {each}" for each in ranges if (":" in each) == (family == 6)}
            found |= set() if ranges else {f"services{family}: {key}"}
            limits = {f"limited{family}: {key}", f"limited-dnat{family}: {key}"}
            found |= limits if raw["metadata"]["annotations"] else set()
    return frozenset(found)


def held(lab: Lab) -> Mapping[str, Part]:
    """The elements that the kernel holds, by address."""
    done = lab.router.run(["nft", "-j", "list", "ruleset"])
    found: dict[str, set[str]] = {}
    for declared in (each["set"] for each in json.loads(done.stdout)["nftables"] if "set" in each):
        name = declared["name"]
        if name.startswith(("services", "sources", "limited")):
            for member in declared.get("elem", ()):
                parts = list(map(_text, member.get("elem", {"val": member})["val"]["concat"]))
                found.setdefault(parts[0], set()).add(f"{name}: {' . '.join(parts)}")
    return {address: frozenset(part) for address, part in found.items()}


def _text(part: Any) -> str:
    return f"{part['prefix']['addr']}/{part['prefix']['len']}" if isinstance(part, dict) else str(part)


class Kills:
    """A router, and a cluster in which Services change.

    versions: those that the kernel may hold of each Service: all since everything was right last.
    """

    def __init__(self, lab: Lab, cluster: FaultyCluster, daemon: ClusterDaemon, seed: int) -> None:
        self.lab, self.cluster, self.daemon = lab, cluster, daemon
        self.draw = random.Random(seed)
        self.tally = Tally()
        self.versions: dict[str, list[Raw | None]] = {name: [None] for name in NAMES}
        cluster.put(nft(), POOL)
        for name, address in STEADY.items():
            cluster.put(service(name, address, ports=[("UDP", 80)]))
            self.versions[name] = [cluster.kinds["Service"].objects["default", name]]
        daemon.start()

    # --- requested Services --------------------------------------------------------------------------------

    def change(self) -> None:
        """Open, change or close some Services."""
        for name in self.draw.sample(NAMES, self.draw.randint(1, 3)):
            before = self.versions[name][-1]
            if before is not None and self.draw.random() < 0.4:
                self.cluster.remove(before)
                self.versions[name].append(None)
                continue
            number = name[1:]
            ports = self.draw.sample(
                [(protocol, port) for protocol in ("TCP", "UDP") for port in PORTS], self.draw.randint(1, 4)
            )
            addresses = f"172.30.254.{number}", f"2001:db8:254::{number}"
            limit = self.draw.choice(LIMITS)
            made = service(name, *addresses, ports=ports, sources=self.draw.choice(RANGES), limit=limit)
            self.versions[name].append(made)
            self.cluster.put(made)

    def mixtures(self) -> Iterator[str]:
        """Services that the kernel holds in no permitted version, and unrequested elements."""
        found = dict(held(self.lab))
        for name, versions in self.versions.items():
            addresses = {each["ip"] for raw in versions if raw for each in raw["status"]["loadBalancer"]["ingress"]}
            part: Part = frozenset().union(*(found.pop(address, frozenset()) for address in addresses))
            if part not in map(asked, versions):
                yield f"{name}: {sorted(part)} is none of {[sorted(asked(each)) for each in versions]}"
        yield from (f"nobody asked for {sorted(part)}" for part in found.values())

    def whole(self, when: str) -> None:
        if wrong := list(self.mixtures()):
            raise KillError(
                f"{when}, after {sum(self.tally.kills.values())} kills: {wrong[0]}\n{self.daemon.log()[-3000:]}"
            )

    def right(self) -> None:
        """Wait until the kernel holds the newest version of each Service."""
        self.versions = {name: versions[-1:] for name, versions in self.versions.items()}
        if not eventually(lambda: not list(self.mixtures()), 30):
            self.whole("never right again")

    # --- the kills ----------------------------------------------------------------------------------------

    def kill(self, when: str) -> None:
        self.tally.kills[when] += 1
        self.daemon.kill()
        self.whole(f"killed {when}")

    def round(self) -> None:
        away = self.draw.random() < 0.5
        if self.draw.random() < 0.3:
            self._kill_one_that_starts(away=away)
        else:
            self._kill_one_that_runs(away=away)
        if away:
            self.daemon.waiting()
            self.whole("started while the API server was away")
            self.change()
            self.cluster.listen()
            self.right()
            return
        began = time.monotonic()
        self.daemon.start()
        self.right()
        self.tally.seconds.append(time.monotonic() - began)

    def _kill_one_that_runs(self, *, away: bool) -> None:
        """Kill a process shortly after a change, which it may have heard of or not."""
        self.change()
        if away:
            time.sleep(self.draw.random() * CHANGE)
            self.cluster.refuse()
            self.change()
        time.sleep(self.draw.random() * CHANGE)
        self.kill("while it ran, the API server away" if away else "while it ran")

    def _kill_one_that_starts(self, *, away: bool) -> None:
        self.kill("while it ran, before a start")
        if away:
            self.cluster.refuse()
        self.change()
        self.daemon.launch()
        time.sleep(self.draw.random() * START)
        self.change()
        self.kill("while it started, the API server away" if away else "while it started")

    @contextmanager
    def load(self) -> Iterator[None]:
        """Packets to ports that are always open and to ports that are never open."""
        with traffic(self.lab, [*ALLOWED, *FORBIDDEN], pause=0.01) as running:
            if not eventually(lambda: running.through(len(ALLOWED))):
                raise KillError(f"nothing comes through\n{self.daemon.log()[-3000:]}")
            yield
            tallies = running.end()
        for destination, tally in zip([*ALLOWED, *FORBIDDEN], tallies, strict=True):
            if tally.arrived != (tally.sent if destination in ALLOWED else 0):
                raise KillError(
                    f"{destination}: of {tally.sent} packets {tally.arrived} arrived; missing {tally.missing}"
                )
        self.tally.allowed += sum(tally.sent for tally in tallies[: len(ALLOWED)])
        self.tally.forbidden += sum(tally.sent for tally in tallies[len(ALLOWED) :])

    def run(self, number: int) -> None:
        """Kill at least so many processes."""
        while (done := sum(self.tally.kills.values())) < number:
            with self.load():
                while sum(self.tally.kills.values()) < min(number, done + 20):
                    self.round()


def kills(seed: int, number: int) -> Tally:
    """Raises KillError, with the log's end, at the first promise that is not kept."""
    with ExitStack() as opened:
        lab = opened.enter_context(Lab())
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        cluster = opened.enter_context(FaultyCluster(lab.router))
        daemon = opened.enter_context(ClusterDaemon(lab, folder, interval=600, cluster=cluster))
        made = Kills(lab, cluster, daemon, seed)
        made.run(number)
        return made.tally
