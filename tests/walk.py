"""Trace one Service through a running daemon: the modules on its way to the kernel and back.

    python -m tests.walk

sends some Services through a lab's router without logs and pools. It prints the way of the one that
enters the fewest modules. `python -m tests.walk FILE ARGUMENT…` runs `nftsync ARGUMENT…` and writes
the entered modules with their times into FILE.
"""

from __future__ import annotations

import json
import runpy
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import FrameType

from tests.labtools import Raw, eventually, nft, service
from tests.process import WEB, ClusterDaemon, cluster_daemon

Entry = tuple[float, str, str]  # monotonic seconds, thread, module; the module is "" when nft is given a transaction


@dataclass(frozen=True)
class Walk:
    """The modules that an ADDED line enters.

    there: until nft has the pinhole.  back: from then until the daemon sends the Event.
    """

    there: Sequence[Entry]
    back: Sequence[Entry]

    @property
    def modules(self) -> list[str]:
        """Each module once, without the faces of packages."""
        return sorted({module for _, _, module in (*self.there, *self.back)})

    def __str__(self) -> str:
        return "\n".join(
            [f"{len(self.modules)} modules there and back", *_way("there", self.there), *_way("back", self.back)]
        )


def _way(title: str, entries: Sequence[Entry]) -> Iterator[str]:
    rooms = [(thread, module.removeprefix("nftsync.")) for _, thread, module in entries]
    steps = [room for room, _ in groupby(rooms)]
    yield f"\n{title}: {len({module for _, module in steps})} modules, entered {len(steps)} times, {len(rooms)} calls"
    for thread, those in groupby(steps, key=lambda step: step[0]):
        yield f"  {thread}: {' → '.join(module for _, module in those)}"


def _is_a_room(frame: FrameType) -> bool:
    """False for faces of packages and for the code of dataclasses: nobody has to read them."""
    return "__path__" not in frame.f_globals and frame.f_code.co_filename != "<string>"


def record(file: Path, arguments: Sequence[str]) -> None:
    """Run nftsync, and write down the modules that it enters."""
    entries: list[Entry] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith("nftsync.") and _is_a_room(frame):
            entries.append((time.monotonic(), threading.current_thread().name, module))
        elif event == "call" and module == "nftables.nftables" and frame.f_code.co_name == "cmd":
            entries.append((time.monotonic(), threading.current_thread().name, ""))

    threading.setprofile(profile)
    sys.setprofile(profile)
    sys.argv[1:] = [*arguments, "--log-level", "warning"]
    try:
        runpy.run_module("nftsync", run_name="__main__", alter_sys=True)
    finally:
        sys.setprofile(None)
        file.write_text(json.dumps(entries))


def walks(daemon: ClusterDaemon, file: Path, number: int) -> list[Walk]:
    """Send so many Services, one after the other, through a warm daemon."""
    daemon.program = (sys.executable, "-m", "tests.walk", str(file))
    daemon.start()
    times = [_walk(daemon, service(f"walker{each}", f"172.30.254.{100 + each}")) for each in range(number + 1)]
    assert daemon.stop() == 0
    entries: list[Entry] = json.loads(file.read_text())
    return [_cut(entries, began, ended) for began, ended in times[1:]]


def _walk(daemon: ClusterDaemon, raw: Raw) -> tuple[float, float]:
    """Send one Service. Returns the times of its start and of its Event."""
    time.sleep(0.3)  # a warm daemon is one that has nothing to do
    before = len(daemon.cluster.rest.requests)
    began = time.monotonic()
    daemon.put(raw)

    def told() -> list[float]:
        name = raw["metadata"]["name"]
        requests = list(daemon.cluster.rest.requests[before:])
        return [each.at for each in requests if each.path.endswith("/events") and name in each.body.decode()]

    assert eventually(told), daemon.log()
    return began, told()[0]


def _cut(entries: Sequence[Entry], began: float, ended: float) -> Walk:
    """The walk without threads that only listen to the kernel's notifications."""
    during = [entry for entry in entries if began <= entry[0] <= ended]
    taken = next(place for place, (_, _, module) in enumerate(during) if not module)
    there, back = during[:taken], [entry for entry in during[taken:] if entry[2]]
    concerned = {thread for _, thread, _ in (*there, back[-1])}
    return Walk(there, [entry for entry in back if entry[1] in concerned])


@contextmanager
def router() -> Iterator[tuple[ClusterDaemon, Path]]:
    with tempfile.TemporaryDirectory() as folder, cluster_daemon(Path(folder), nft(), WEB) as daemon:
        yield daemon, Path(folder, "walk.json")


def main() -> None:
    with router() as (daemon, file):
        print(min(walks(daemon, file, 5), key=lambda walk: len(walk.modules)))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        record(Path(sys.argv[1]), sys.argv[2:])
    else:
        main()
