"""Start from a list of many Services, and the memory that they take: the daemon itself, in fresh processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from nftsync.config import Filters
from nftsync.objects.nft import Nics, parse_nft
from nftsync.objects.service import parse_service
from nftsync.policy.pinholes import PinholeIndex
from nftsync.policy.public import public_side
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset
from nftsync.ruleset.text import render
from tests.apiserver.harness import Programs, programs_of, versions
from tests.bench.cluster import cluster
from tests.bench.measure import Goal, nft_resource, service, spread, table
from tests.lab.namespace import Namespace

COUNT = 10_000
ROUNDS = 7

KUBECONFIG = """{{"apiVersion": "v1", "kind": "Config", "current-context": "bench",
"clusters": [{{"name": "bench", "cluster": {{"server": "http://127.0.0.1:{port}"}}}}],
"users": [{{"name": "bench", "user": {{"token": "bench"}}}}],
"contexts": [{{"name": "bench", "context": {{"cluster": "bench", "user": "bench"}}}}]}}"""
CONFIG = """kubeconfig = "{kubeconfig}"
resync_interval = 1
[paths]
state = "{folder}/state"
runtime = "{folder}/run"
local_chain = "{folder}/local-chain.nft"
[metrics]
address = ""
"""


@dataclass(frozen=True, slots=True)
class Bench:
    """An API server with many Services. config, rules: files for the daemon and for libnftables."""

    server: Namespace
    config: Path
    rules: Path

    def process(self, *arguments: object) -> dict[str, float]:
        """Run tests.bench.process on a router that remembers nothing, with our tables gone; what it measured."""
        for remembered in ("state", "run"):
            shutil.rmtree(self.config.parent / remembered, ignore_errors=True)
        self.server.nft(
            "".join(f"add table {each} nftsync\ndelete table {each} nftsync\n" for each in ("inet", "netdev"))
        )
        done = self.server.run([sys.executable, "-m", "tests.bench.process", *map(str, arguments)])
        measured: dict[str, float] = json.loads(done.stdout)
        return measured


@contextmanager
def canned(count: int = COUNT) -> Iterator[Bench]:
    """Answers from memory, as fast as they can be taken."""
    with _namespace() as namespace:
        argv = [sys.executable, "-m", "tests.bench.server", str(count)]
        server = namespace.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert server.stdout
        with tempfile.TemporaryDirectory() as folder:
            kubeconfig = Path(folder, "kubeconfig")
            kubeconfig.write_text(KUBECONFIG.format(port=server.stdout.readline().strip()))
            yield _bench(namespace, kubeconfig, Path(folder), count)


@contextmanager
def real(programs: Programs, count: int = COUNT) -> Iterator[Bench]:
    """kube-apiserver and etcd."""
    with (
        _namespace() as namespace,
        namespace.entered(),
        cluster(programs, count) as kubeconfig,
        tempfile.TemporaryDirectory() as folder,
    ):
        yield _bench(namespace, kubeconfig, Path(folder), count)


@contextmanager
def _namespace() -> Iterator[Namespace]:
    """One of their own for a server and its clients."""
    namespace = Namespace()
    try:
        namespace.ip("link set lo up")
        yield namespace
    finally:
        namespace.close()


def _bench(namespace: Namespace, kubeconfig: Path, folder: Path, count: int) -> Bench:
    made = Bench(namespace, folder / "nftsync.toml", folder / "rules.nft")
    made.config.write_text(CONFIG.format(folder=folder, kubeconfig=kubeconfig))
    made.rules.write_text(_rules(count))
    return made


def _rules(count: int) -> str:
    parsed = [parse_service(service(number), None) for number in range(count)]
    desired = PinholeIndex([each for each in parsed if each], Filters())
    spec = parse_nft(nft_resource(), None).spec
    settings = Settings.of(spec, public_side((), spec.nics if spec else Nics()), local_chain="")
    return render(ruleset(desired.pinholes.values(), settings))


def run() -> list[Goal]:
    with canned() as made:
        goals = [_measure(made, "a server that answers from memory")]
    for version in versions():
        with real(programs_of(version)) as made:
            goals.append(_measure(made, f"kube-apiserver {version}"))
    return goals


def _measure(made: Bench, server: str) -> Goal:
    ours, fetches, loads = [], [], []
    for _ in range(ROUNDS):
        ours.append(made.process("daemon", made.config)["start"])
        floor = made.process("fetch", made.config, made.rules)
        fetches.append(floor["fetch"])
        loads.append(floor["load"])
    floors = [fetched + loaded for fetched, loaded in zip(fetches, loads, strict=True)]
    title = (
        f"Start with {COUNT} Services of {server} ({floor['bytes'] / 1e6:.1f} MB in {floor['pages']:.0f} pages), in ms"
    )
    table(
        title,
        ("", "median", "95 %", "samples"),
        [
            ["nftsync, from start to kernel", *spread(ours, 1e3, 0)],
            ["the bytes, fetched only", *spread(fetches, 1e3, 0)],
            ["the ruleset, loaded only", *spread(loads, 1e3, 0)],
            ["fetched and loaded", *spread(floors, 1e3, 0)],
        ],
    )
    ratio = median(ours) / median(floors)
    return Goal(f"start from {server}: {ratio:.2f} times fetch and load alone (goal: at most 1.5)", ratio <= 1.5)
