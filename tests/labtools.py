"""Helpers of tests with a lab: objects of the API, a firewall and a daemon in the lab's router."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from nftsync.cluster.cache import MetalLBCaches
from nftsync.config import Filters
from nftsync.kernel.nft import Kernel
from nftsync.objects.nft import Nics, parse_nft
from nftsync.objects.service import parse_service
from nftsync.policy.pinholes import PinholeIndex
from nftsync.policy.public import Link, PublicSide, public_side
from nftsync.ruleset.limits import has_egress
from nftsync.ruleset.model import Ruleset
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset
from nftsync.ruleset.text import transaction
from tests.lab.lab import Flood, Lab

PATIENCE = 60.0  # seconds until something that always happens is taken to have failed: a busy machine is no fault
PUBLIC_NIC = "public0"
METRICS = "127.0.0.1:9469"  # the default address; the lab's router has a loopback of its own
SERVICE4, SERVICE6 = "172.30.254.1", "2001:db8:254::1"
TCP80 = (("TCP", 80),)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

Raw = dict[str, Any]


def service(
    name: str,
    *addresses: str,
    ports: Sequence[tuple[str, int]] = TCP80,
    limit: str | None = None,
    egress: str | None = None,
    sources: Sequence[str] = (),
    **spec: Any,
) -> Raw:
    """A Service of type LoadBalancer as the API has it; nodePort and targetPort are there and must not matter."""
    limits = {"ratelimit": limit, "nftsync.io/ratelimit-egress": egress}
    annotations = {name: text for name, text in limits.items() if text is not None}
    listed = [
        {"protocol": protocol, "port": port, "nodePort": 30000 + port % 2768, "targetPort": 8000 + port % 1000}
        for protocol, port in ports
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "default", "name": name, "uid": f"uid-{name}", "annotations": annotations},
        "spec": {"type": "LoadBalancer", "ports": listed, "loadBalancerSourceRanges": list(sources), **spec},
        "status": {"loadBalancer": {"ingress": [{"ip": address} for address in addresses]}},
    }


def nft(public_nic: str = PUBLIC_NIC, /, **switches: bool) -> Raw:
    """An Nft resource as the API has it."""
    return {
        "apiVersion": "nft.acnodal.com/v1alpha1",
        "kind": "Nft",
        "metadata": {"namespace": "arbf-operators", "name": "nft", "uid": "uid-nft"},
        "spec": {"public_nic": public_nic, **switches},
    }


def wanted(
    services: Iterable[Raw], resource: Raw, local_chain: str = "", links: Iterable[Link] | None = None
) -> Ruleset:
    """The ruleset for these objects, computed as the daemon does."""
    parsed = [parse_service(raw, None) for raw in services]
    desired = PinholeIndex([each for each in parsed if each], Filters())
    spec = parse_nft(resource, None).spec
    nics = spec.nics if spec else Nics()
    side = PublicSide.unseen(nics) if links is None else public_side(links, nics)
    settings = Settings.of(spec, side, local_chain=local_chain, egress=has_egress(desired.pinholes.values()))
    return ruleset(desired.pinholes.values(), settings)


def no_metallb() -> MetalLBCaches:
    """MetalLB's caches in a cluster without MetalLB."""
    found = MetalLBCaches.empty(lambda: None, time.monotonic)
    for cache in found.caches:
        with cache.relist():
            pass
    return found


class Firewall:
    """Our tables in the lab's router, changed in place from one ruleset to the next."""

    def __init__(self, lab: Lab) -> None:
        self.kernel: Kernel = lab.router.call(Kernel)
        self.holds = self.kernel.read().ruleset

    def load(self, services: Iterable[Raw], resource: Raw, local_chain: str = "") -> None:
        self.change(wanted(services, resource, local_chain))

    def change(self, after: Ruleset) -> None:
        text = transaction(self.holds, after)
        if text:
            self.kernel.apply(text)
        self.holds = after


def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Whether the condition becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def flooded(measure: Callable[[], Flood], rate: float, within: float) -> Flood:
    """Repeat a flood until it arrives at this rate. A busy machine delays some floods.

    rate: bytes a second, give or take a part of it.
    """
    deadline = time.monotonic() + PATIENCE
    while abs((measured := measure()).rate - rate) > within * rate:
        assert time.monotonic() < deadline, f"{measured.rate:.0f} and never {rate:.0f} bytes/second"
    return measured


def elements(lab: Lab, name: str, family: str = "inet") -> dict[str, Raw]:
    """One of our sets in the kernel: from "address . protocol . port" to the element's attributes.

    Empty if there is no such set.
    """
    done = lab.router.run(["nft", "-j", "list", "set", family, "nftsync", name], check=False)
    if done.returncode:
        return {}
    declared = next(item["set"] for item in json.loads(done.stdout)["nftables"] if "set" in item)
    found: dict[str, Raw] = {}
    for member in declared.get("elem", ()):
        attributes = member.get("elem", {"val": member})
        found[" . ".join(str(part) for part in attributes["val"]["concat"])] = attributes
    return found


def packets(lab: Lab, name: str, key: str) -> int:
    """The packets of an element's counter."""
    return int(elements(lab, name)[key]["counter"]["packets"])


def tables(lab: Lab) -> set[str]:
    """The router's tables, e.g. "inet nftsync"."""
    return {line.removeprefix("table ") for line in lab.router.run(["nft", "list", "tables"]).stdout.splitlines()}


def rules(lab: Lab, *options: str) -> str:
    """The router's whole ruleset as text without counters, in the same order for equal rulesets."""
    listed = lab.router.run(["nft", *options, "--stateless", "list", "ruleset"]).stdout
    shown = []
    for table in re.split(r"^}\n", listed, flags=re.MULTILINE):
        head, *blocks = re.split(r"^\t(?=[a-z]+ [a-z0-9-]+ {$)", table, flags=re.MULTILINE)
        shown.append("\n".join([head.strip(), *sorted(block.strip() for block in blocks)]))
    return "\n".join(sorted(shown))


def but_closed(shown: str) -> str:
    """The rules without closed endpoints: what was open for a moment stays in these sets."""
    return re.sub(r"^set closed[46] \{.*?^\t\}", "", shown, flags=re.MULTILINE | re.DOTALL)


def answers(connection: socket.socket, seconds: float = PATIENCE) -> bool:
    """Whether bytes that you send now come back within that time."""
    text = b"still?%d" % time.monotonic_ns()
    connection.sendall(text)
    return bool(select.select([connection], [], [], seconds)[0]) and connection.recv(100).endswith(text)


def written(shown: str) -> str:
    """The part of rules() that a boot loads again: all but the indices of the public interfaces."""
    return re.sub(r"(?<=set public-links \{\n\t\ttype iface_index\n)\t\telements = \{[^}]*\}\n", "", shown)


def ingress_qdisc(lab: Lab, nic: str | None = None) -> str:
    """The NIC's "ingress" or "clsact" qdisc; "" for none."""
    shown = lab.router.run(["tc", "qdisc", "show", "dev", nic or lab.public_nic]).stdout
    found = re.search(r"^qdisc (ingress|clsact) ", shown, re.MULTILINE)
    return found[1] if found else ""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; status 0 means that nobody answered."""

    status: int
    body: str = ""


@dataclass
class Daemon:
    """`nftsync run` as a process in the lab's router, with files of its own in a folder.

    Use it as a context manager: it ends the process, but leaves the rules in the kernel.

    program: the words for `nftsync` on a command line.  environment: more variables of the process.
    """

    lab: Lab
    folder: Path
    interval: float = 60.0  # seconds between resyncs
    own_tables: bool = (
        False  # so that a test can change them, where nft and the kernel could see to it that nobody does
    )
    extra: str = ""  # lines for the configuration
    process: subprocess.Popen[str] | None = field(default=None, init=False)
    program: Sequence[str] = field(default=(sys.executable, "-m", "nftsync"), init=False)
    environment: Mapping[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.manifests = self.folder / "manifests"
        self.manifests.mkdir(parents=True, exist_ok=True)
        self.config = self.folder / "nftsync.toml"
        self.local_chain = self.folder / "local-chain.nft"
        self.state = self.folder / "state"
        self.logfile = self.folder / "log"
        self.configure()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def configure(self, text: str | None = None) -> None:
        """Write the configuration: `text`, or the one that fits the folder."""
        paths = f'[paths]\nlocal_chain = "{self.local_chain}"\nstate = "{self.state}"\nruntime = "{self.folder}/run"\n'
        top = f"resync_interval = {self.interval}\nown_tables = {str(self.own_tables).lower()}\n"
        self.config.write_text(f"{top}{paths}{self.extra}" if text is None else text)

    def put(self, *objects: Raw) -> None:
        """Write one manifest file for each object, whole at once."""
        for raw in objects:
            write(self.path(raw), json.dumps(raw))

    def remove(self, *objects: Raw) -> None:
        for raw in objects:
            self.path(raw).unlink()

    def path(self, raw: Raw) -> Path:
        return self.manifests / f"{raw['kind']}-{raw['metadata']['name']}.yaml"

    def argv(self, *options: str) -> list[str]:
        return [*self.program, "run", "--config", str(self.config), "--manifests", str(self.manifests), *options]

    def start(self, *, ready: bool = True) -> Self:
        """Start it and wait until it is ready. Without `ready`, wait until it answers."""
        self.launch()
        good = {200} if ready else {200, 503}
        assert eventually(lambda: self.get("/readyz").status in good or self.ended), f"never ready: {self.log()}"
        assert not self.ended, f"it ended: {self.log()}"
        return self

    def launch(self) -> None:
        """Start it and wait for nothing."""
        with self.logfile.open("a") as log:
            self.process = self.lab.router.popen(
                self.argv(), stdout=log, stderr=log, env={**os.environ, **self.environment}
            )

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def stop(self) -> int:
        """End it with SIGTERM; its exit status."""
        self.signal(signal.SIGTERM)
        assert self.process
        return self.process.wait(PATIENCE)

    def once(self) -> subprocess.CompletedProcess[str]:
        return self.lab.router.run(self.argv("--once"), check=False)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another nftsync command in the router, with this configuration."""
        return self.lab.router.run(self.command_line(*arguments), check=False)

    def command_line(self, *arguments: str) -> list[str]:
        """The command line of another nftsync command with this configuration."""
        return [*self.program, *arguments, "--config", str(self.config)]

    def log(self) -> str:
        return self.logfile.read_text() if self.logfile.exists() else ""

    def get(self, path: str, address: str = METRICS) -> Answer:
        return self.lab.router.call(_get, f"http://{address}{path}")

    def metric(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """A metric's value; 0 if it has never been counted."""
        wanted_labels = set((labels or {}).items())
        for line in self.get("/metrics").body.splitlines():
            sample = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if sample and sample[1] == name and wanted_labels <= set(re.findall(r'(\w+)="([^"]*)"', sample[2] or "")):
                return float(sample[3])
        return 0.0


def write_manifests(folder: Path, *objects: Raw) -> Path:
    """A new folder with one file for each object."""
    folder.mkdir()
    for number, raw in enumerate(objects):
        (folder / f"{number}.yaml").write_text(json.dumps(raw))
    return folder


def write(path: Path, text: str) -> None:
    """Replace a file at once, so that nobody reads half of it.

    Its time stamp differs from the previous one.
    """
    before = path.stat().st_mtime_ns if path.exists() else 0
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    if temporary.stat().st_mtime_ns == before:
        os.utime(temporary, ns=(before + 1, before + 1))
    temporary.replace(path)


def _get(url: str) -> Answer:
    try:
        with urllib.request.urlopen(url, timeout=20.0) as response:
            return Answer(response.status, response.read().decode())
    except urllib.error.HTTPError as fault:
        return Answer(fault.code, fault.read().decode())
    except OSError:
        return Answer(0)
