"""The benchmark runs this in a fresh process: the daemon as it is, or its counterpart.

Prints one line of JSON.

    python -m tests.bench.process daemon CONFIG         seconds until the kernel has accepted the first ruleset
    python -m tests.bench.process fetch CONFIG RULESET  seconds to fetch the same bytes and to load the same elements
    python -m tests.bench.process libraries             memory after importing the libraries that the daemon has to use
    python -m tests.bench.process memory CONFIG SYNCS   memory of the daemon after so many resyncs
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes.config
import nftables
import prometheus_client  # noqa: F401
import pyroute2  # noqa: F401
import tenacity  # noqa: F401

from nftsync.cluster.api import PAGE, PIECE, Api
from nftsync.config import load
from nftsync.daemon.loop import Daemon, Options
from nftsync.daemon.reconcile import Reconciler
from nftsync.kernel.nft import Kernel
from nftsync.objects.names import SERVICES
from nftsync.plan.result import SyncResult

_CONTINUE = re.compile(rb'"continue":"([^"]+)"')


def start(config: Path) -> dict[str, float]:
    """From the daemon's start, all imports done, to the kernel's acceptance."""
    accepted: list[float] = []
    apply = Kernel.apply

    def timed(self: Kernel, text: str) -> None:
        apply(self, text)
        accepted.append(time.perf_counter())

    Kernel.apply = timed  # type: ignore[method-assign]
    began = time.perf_counter()
    Daemon(Options(config, once=True)).run()
    return {"start": accepted[0] - began}


def fetch(config: Path, ruleset: Path) -> dict[str, float]:
    """The same pages through the same connection pool, only received; then the same ruleset, loaded once."""
    text = ruleset.read_text(encoding="ascii")
    began = time.perf_counter()
    api = Api(load(config).kubeconfig)
    query, size, pages = {"limit": str(PAGE)}, 0, 0
    while True:
        with api._exchange("GET", SERVICES.path, query, {"Accept-Encoding": "gzip"}, None) as response:
            pieces = list(response.stream(PIECE, decode_content=True))
            response.release_conn()
        size, pages = size + sum(map(len, pieces)), pages + 1
        token = _CONTINUE.search(pieces[0][:2000])
        if not token:
            break
        query["continue"] = token[1].decode()
    fetched = time.perf_counter()
    code, _, error = nftables.Nftables().cmd(text)
    loaded = time.perf_counter()
    if code:
        raise AssertionError(error)
    return {"fetch": fetched - began, "load": loaded - fetched, "bytes": size, "pages": pages}


def memory() -> dict[str, float]:
    """Resident set and its peak, in bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return {name: int(status[field].split()[0]) * 1024 for name, field in (("now", "VmRSS"), ("peak", "VmHWM"))}


def daemon_memory(config: Path, syncs: int) -> dict[str, float]:
    """The daemon's memory after its start and `syncs` resyncs."""
    resynced = threading.Semaphore(0)
    found: dict[str, float] = {}
    sync = Reconciler.sync

    def counted(self: Reconciler, *, resync: bool = False, **how: Any) -> SyncResult:
        result = sync(self, resync=resync, **how)
        if resync and result.listed:
            resynced.release()
        return result

    def watch() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for the daemon's own threads
        for _ in range(syncs):
            resynced.acquire()
        found.update(memory())
        os.kill(os.getpid(), signal.SIGTERM)

    Reconciler.sync = counted  # type: ignore[method-assign]
    threading.Thread(target=watch, daemon=True).start()
    Daemon(Options(config)).run()
    return found


def main(what: str, *arguments: str) -> None:
    kubernetes.client.ApiClient(kubernetes.client.Configuration())  # it imports more when it is first used
    gc.collect()
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "daemon": lambda: start(Path(arguments[0])),
        "fetch": lambda: fetch(Path(arguments[0]), Path(arguments[1])),
        "libraries": memory,
        "memory": lambda: daemon_memory(Path(arguments[0]), int(arguments[1])),
    }
    print(json.dumps(parts[what]()))


if __name__ == "__main__":
    main(*sys.argv[1:])
