"""What runs beside the rules, with and without: caps, somebody who listens to commits, a scrape."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import ip_address
from statistics import median

from nftsync.config import Caps, Filters
from nftsync.kernel import commits, counters
from nftsync.kernel.netns import Namespace
from nftsync.kernel.nft import Kernel
from nftsync.objects.names import Name
from nftsync.objects.service import Port, Protocol, Service
from nftsync.policy.pinholes import PinholeIndex
from nftsync.policy.quota import UNCAPPED
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset
from nftsync.ruleset.text import render
from tests.bench.measure import Goal, Samples, in_turns, spread, table

COUNT = 10_000
ROUNDS = 15
ELEMENTS = ", ".join(f"10.0.{number // 250}.{number % 250}" for number in range(COUNT))
LOAD = (
    "add table inet nftsync\nadd set inet nftsync s { type ipv4_addr; }\n"
    f"add element inet nftsync s {{ {ELEMENTS} }}\n"
)


def crowd() -> list[Service]:
    ports = (Port(Protocol.TCP, 80), Port(Protocol.TCP, 443))
    return [
        Service(
            Name("shop", f"s{n}"), f"u{n}", "", "", (ip_address(f"10.0.{n // 250}.{n % 250}"),), ports, None, None, ()
        )
        for n in range(COUNT)
    ]


def compute(services: list[Service], caps: Caps) -> float:
    """From scratch, and once more one by one."""
    began = time.perf_counter()
    desired = PinholeIndex(services, Filters(), caps=caps)
    for each in services:
        desired.put(each.name, each)
    return time.perf_counter() - began


@contextmanager
def going_on(namespace: Namespace, work: Callable[[threading.Event], object]) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=namespace.call, args=(work, stop))
    thread.start()
    try:
        time.sleep(0.1)  # until it is at work
        yield
    finally:
        stop.set()
        thread.join()


class Loader:
    """Loads many elements, with somebody who listens or without."""

    def __init__(self, opened: ExitStack) -> None:
        self._namespace = Namespace()
        opened.callback(self._namespace.close)
        self._kernel: Kernel = self._namespace.call(Kernel)

    def alone(self) -> float:
        began = time.perf_counter()
        self._kernel.apply(LOAD)
        took = time.perf_counter() - began
        self._kernel.apply("delete table inet nftsync")
        return took

    def heard(self) -> float:
        own = self._namespace.call(commits.identity)
        with going_on(self._namespace, lambda stop: commits.listen(lambda _: None, own, stop)):
            return self.alone()


class Changer:
    """Changes one pinhole of many, while somebody scrapes without a pause or without."""

    def __init__(self, opened: ExitStack) -> None:
        self._namespace = Namespace()
        opened.callback(self._namespace.close)
        self._kernel: Kernel = self._namespace.call(Kernel)
        pinholes = PinholeIndex(crowd(), Filters(), caps=UNCAPPED).pinholes.values()
        self._kernel.apply(render(ruleset(pinholes, Settings(enable_rateshape=True))))

    def alone(self) -> float:
        """The median of some changes."""
        taken = []
        for verb in ("add", "delete") * 10:
            began = time.perf_counter()
            self._kernel.apply(f"{verb} element inet nftsync services4 {{ 192.0.2.1 . tcp . 80 }}")
            taken.append(time.perf_counter() - began)
            time.sleep(0.005)
        return median(taken)

    def scraped(self) -> float:
        def scrape(stop: threading.Event) -> None:
            while not stop.is_set():
                try:
                    counters.read()
                except OSError:  # it was changed again and again meanwhile
                    continue

        with going_on(self._namespace, scrape):
            return self.alone()


def run() -> list[Goal]:
    services = crowd()
    with ExitStack() as opened:
        loader, changer = Loader(opened), Changer(opened)
        samples: Samples = in_turns({
            "10,000 Services computed and changed, without caps": partial(compute, services, UNCAPPED),
            "the same with caps": partial(compute, services, Caps()),
            "10,000 elements loaded, nobody listens": loader.alone,
            "the same, somebody listens": loader.heard,
            "a pinhole changed among 20,000": changer.alone,
            "the same while somebody scrapes": changer.scraped,
        }, ROUNDS)  # fmt: skip
    table(
        "Beside the rules, in ms",
        ("", "median", "95 %", "samples"),
        [[name, *spread(taken, 1e3)] for name, taken in samples.items()],
    )
    without, capped, alone, heard, quiet, scraped = (median(taken) for taken in samples.values())
    return [
        Goal(f"with caps {capped / without:.2f} times as long as without (goal: at most 1.5)", capped <= 1.5 * without),
        Goal(f"a load that is listened to takes {heard / alone:.2f} times as long (goal: at most 2)",
             heard <= 2 * alone),
        Goal(f"a change during scrapes takes {scraped / quiet:.0f} times as long, "
             f"{scraped * 1e3:.1f} ms (goal: at most 100 ms)",
             scraped <= 0.1),
    ]  # fmt: skip
