"""One Service added, changed, removed: from the watch's line to the kernel's acceptance."""

from __future__ import annotations

import gc
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from nftsync.config import Config
from nftsync.plan.result import Outcome, SyncResult
from tests.bench.measure import NIC, Goal, Samples, address_of, in_turns, nft_resource, service, spread, table
from tests.lab.namespace import Namespace
from tests.router import Router

SIZES = (1_000, 10_000)
ROUNDS = 100
OLD_ROUNDS = 10
STEPS = ("add", "change", "remove")
GRACE = (
    0.03  # seconds: an nft process ends only when the kernel has freed what was deleted before, which is not its cost
)


class Looped:
    """A namespace in which the daemon's own parts hold `count` Services.

    The loop has a thread of its own, as in the daemon.
    """

    def __init__(self, opened: ExitStack, count: int) -> None:
        self._number = count  # of the Service that comes and goes
        self.namespace = Namespace()
        opened.callback(self.namespace.close)
        self._changed, self._stopped = threading.Event(), threading.Event()
        objects = [nft_resource(), *map(service, range(count))]
        state = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        config = Config(state=state, local_chain=state / "local-chain.nft")
        self._router = Router(self.namespace, config, *objects, wake=self._changed.set)
        opened.callback(self._router.close)
        self._results: list[tuple[SyncResult, float]] = []
        self._synced = threading.Event()
        self._loop = threading.Thread(target=self._run)
        self._loop.start()
        opened.callback(self._stop)
        self._outcome()
        gc.freeze()  # the cluster's objects, which the daemon does not keep, are none of a change's cost

    def _run(self) -> None:
        with self.namespace.entered():
            while not self._stopped.is_set():
                if self._changed.wait(1.0):
                    self._changed.clear()
                    result = self._router.sync_events()
                    self._results.append((result, time.perf_counter()))
                    self._synced.set()

    def _stop(self) -> None:
        self._stopped.set()
        self._changed.set()
        self._loop.join()

    def _outcome(self) -> float:
        """When the kernel had accepted."""
        self._synced.wait(60)
        self._synced.clear()
        result, accepted = self._results.pop()
        if result.outcome is not Outcome.APPLIED:
            raise AssertionError(result)
        return accepted

    def event(self, step: str) -> float:
        """Seconds that the loop needs for one event of the watch. The steps come in the order of STEPS."""
        raw = service(self._number, port=443 if step == "add" else 8443)
        line = json.dumps({"type": step, "object": raw}).encode()
        began = time.perf_counter()
        (self._router.delete if step == "remove" else self._router.put)(json.loads(line)["object"])
        return self._outcome() - began

    def process(self, step: str) -> float:
        """Seconds that an nft process needs for the same elements."""
        before, after = (
            f"inet nftsync services4 {{ {address_of(self._number)} . tcp . {port} }}\n" for port in (443, 8443)
        )
        text = {
            "add": f"add element {before}",
            "change": f"delete element {before}add element {after}",
            "remove": f"delete element {after}",
        }[step]
        time.sleep(GRACE)
        with self.namespace.entered():
            began = time.perf_counter()
            subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True)
            return time.perf_counter() - began


@contextmanager
def _old_operator(count: int) -> Iterator[Callable[[], float]]:
    """The file of one rule per Service that the old operator loads for any change, in a namespace of its own."""
    rules = "".join(
        f'\t\tiifname "{NIC}" ip daddr {address_of(number)} tcp dport 443 accept\n' for number in range(count)
    )
    chain = "table inet filter {\n\tchain operator-svc {\n"
    namespace = Namespace()
    with tempfile.NamedTemporaryFile("w", suffix=".nft") as file:
        file.write(f"{chain}\t}}\n}}\nflush chain inet filter operator-svc\n{chain}{rules}\t}}\n}}\n")
        file.flush()

        def load() -> float:
            time.sleep(GRACE)
            with namespace.entered():
                began = time.perf_counter()
                subprocess.run(["nft", "-f", file.name], check=True)
                return time.perf_counter() - began

        load()
        yield load
    namespace.close()


def run() -> list[Goal]:
    with ExitStack() as opened:
        routers = {count: Looped(opened, count) for count in SIZES}
        contestants: dict[str, Callable[[], float]] = {}
        for kind, do in (("nftsync", Looped.event), ("nft -f -", Looped.process)):
            for count, router in routers.items():
                for step in STEPS:
                    contestants[f"{kind}, {step}, {count}"] = partial(do, router, step)
        old = {f"old file, any, {count}": opened.enter_context(_old_operator(count)) for count in SIZES}
        samples: Samples = {}
        for _ in range(OLD_ROUNDS):
            for each in (in_turns(contestants, ROUNDS // OLD_ROUNDS), in_turns(old, 1)):
                for name, taken in each.items():
                    samples.setdefault(name, []).extend(taken)
    table(
        "One Service added, changed, removed, in ms",
        ("", "median", "95 %", "samples"),
        [[name, *spread(taken, 1e3)] for name, taken in samples.items()],
    )
    return _goals({name: median(taken) * 1e3 for name, taken in samples.items()})


def _goals(medians: dict[str, float]) -> list[Goal]:
    small, large = SIZES
    ours = {count: [medians[f"nftsync, {step}, {count}"] for step in STEPS] for count in SIZES}
    growth = max(after / before for before, after in zip(*ours.values(), strict=True))
    process = min(medians[f"nft -f -, {step}, {large}"] / medians[f"nftsync, {step}, {large}"] for step in STEPS)
    old = medians[f"old file, any, {large}"] / max(ours[large])
    slowest = max(*ours[small], *ours[large])
    return [
        Goal(f"slowest median of a change {slowest:.2f} ms (goal: at most 1 ms)", slowest <= 1.0),
        Goal(f"{large} Services cost {growth:.2f} times what {small} cost (goal: flat, at most 1.25)", growth <= 1.25),
        Goal(f"at least {process:.1f} times faster than one nft process (goal: faster)", process > 1),
        Goal(f"{old:.0f} times faster than the old operator's file at {large} (goal: at least 20)", old >= 20),
    ]
