"""The wall clock may jump by a year: nothing is decided by it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from nftsync.cluster.outbox import utc_now
from tests.lab.lab import Lab
from tests.labtools import SERVICE4, Daemon, eventually, needs_root, nft, service
from tests.support import ROOT

WALL = {("time", each) for each in ("time", "time_ns", "gmtime", "localtime")} | {
    ("datetime", "now"),
    ("datetime", "utcnow"),
}
STAMPS = {"cluster/outbox.py", "daemon/record.py"}  # where people are told when something happened, or how old it is


def calls(source: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.value.id, node.attr


def test_the_wall_clock_is_read_where_people_are_told_the_time_and_nowhere_else() -> None:
    package = ROOT / "nftsync"
    found = {path for path in package.rglob("*.py") if WALL & set(calls(path.read_text()))}
    assert {str(path.relative_to(package)) for path in found} == STAMPS
    assert abs((utc_now() - datetime.now(UTC)).total_seconds()) < 60


YEAR_LATER = """
import datetime, sys, time
jumps = [0.0, 3.2e7, -3.2e7]
real = time.time
def leaping():
    jumps.append(jumps.pop(0))
    return real() + jumps[0]
time.time = leaping
from nftsync.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@needs_root
def test_a_daemon_whose_clock_jumps_by_years_at_every_look_does_what_it_always_does(tmp_path: Path) -> None:
    with Lab() as lab, Daemon(lab, tmp_path, interval=1) as daemon:
        daemon.argv = lambda *options: [  # type: ignore[method-assign]
            sys.executable, "-c", YEAR_LATER, "run", "--config", str(daemon.config), "--manifests",
            str(daemon.manifests), *options,
        ]  # fmt: skip
        daemon.put(nft(), service("web", SERVICE4))
        daemon.start()
        for number in range(3):
            daemon.put(service("web", SERVICE4, ports=[("TCP", 80 + number)]))
            assert eventually(lambda port=80 + number: lab.arrives("tcp", SERVICE4, port))  # type: ignore[misc]
        unchanged = {"result": "unchanged"}
        before = daemon.metric("nftsync_syncs_total", unchanged)
        assert eventually(
            lambda: daemon.metric("nftsync_syncs_total", unchanged) > before + 1
        ), "it goes on to look every second"
        assert daemon.get("/healthz").status == 200
        assert "Traceback" not in daemon.log()
