"""The daemon as a process, with few Services and with many.

Measured: how long a repair, a scrape, its end and `nftsync boot` take.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

from nftables import Nftables

from tests.bench.measure import Goal, address_of, in_turns, nft_resource, service, spread, table
from tests.lab.lab import Lab
from tests.labtools import PATIENCE, Daemon
from tests.reboot import boot

SIZES = (10, 10_000)
ROUNDS = 7
GRACE = 1.2  # seconds: a repair is at once, and a scrape reads the kernel, only so long after the one before
GOALS = {"repair": 1, "scrape": 1, "stop": 2, "boot": 1}  # seconds with many


class Router:
    """A lab's router with a daemon that has `count` Services."""

    def __init__(self, opened: ExitStack, count: int) -> None:
        lab = opened.enter_context(Lab())
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        self.daemon = opened.enter_context(Daemon(lab, folder, interval=600))
        items = [nft_resource(), *(service(number) for number in range(count))]
        crowd = {"apiVersion": "v1", "kind": "List", "items": items}
        (self.daemon.manifests / "crowd.json").write_text(json.dumps(crowd))
        self._nft: Nftables = lab.router.call(Nftables)
        self._pinhole = f"inet nftsync services4 {{ {address_of(0)} . tcp . 443 }}"
        self.daemon.start()

    def _command(self, text: str) -> bool:
        code, _, _ = self._nft.cmd(text)
        return bool(code == 0)

    def _until(self, text: str) -> None:
        ends = time.perf_counter() + PATIENCE
        while not self._command(text):
            if time.perf_counter() > ends:
                raise AssertionError(f"{text}: {self.daemon.log()}")
            time.sleep(0.001)

    def repair(self) -> float:
        """From a change by somebody else to its repair."""
        time.sleep(GRACE)
        began = time.perf_counter()
        if not self._command(f"delete element {self._pinhole}"):
            raise AssertionError(self._pinhole)
        self._until(f"get element {self._pinhole}")
        return time.perf_counter() - began

    def scrape(self) -> float:
        time.sleep(GRACE)
        began = time.perf_counter()
        if self.daemon.get("/metrics").status != 200:
            raise AssertionError(self.daemon.log())
        return time.perf_counter() - began

    def stop(self) -> float:
        """From SIGTERM to the end of the process, which is started again."""
        began = time.perf_counter()
        if self.daemon.stop():
            raise AssertionError(self.daemon.log())
        took = time.perf_counter() - began
        self.daemon.start()
        return took

    def boot(self) -> float:
        """`nftsync boot` into an empty kernel, after a power cut."""
        self.daemon.stop()
        self.daemon.lab.router.nft("flush ruleset")
        began = time.perf_counter()
        boot(self.daemon)
        took = time.perf_counter() - began
        self._until(f"get element {self._pinhole}")
        self.daemon.start()
        return took


def run() -> list[Goal]:
    with ExitStack() as opened:
        routers = {count: Router(opened, count) for count in SIZES}
        contestants: dict[str, Callable[[], float]] = {
            f"{what.__name__}, {count}": partial(what, router)
            for what in (Router.repair, Router.scrape, Router.stop, Router.boot)
            for count, router in routers.items()
        }
        samples = in_turns(contestants, ROUNDS)
    table(
        "The daemon as a process, by the number of Services, in ms",
        ("", "median", "95 %", "samples"),
        [[name, *spread(taken, 1e3, 0)] for name, taken in samples.items()],
    )
    few, many = SIZES
    goals = []
    for what, most in GOALS.items():
        taken, base = median(samples[f"{what}, {many}"]), median(samples[f"{what}, {few}"])
        text = f"{what} with {many} Services {taken:.2f} s, {taken / base:.1f} times as long as with {few}"
        goals.append(Goal(f"{text} (goal: at most {most} s)", taken <= most))
    return goals
