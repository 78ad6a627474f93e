"""A short version of `make chaos KILLS=300`: at whatever instant the daemon is killed, the kernel holds no mixture."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kill import KillError, Kills, kills
from tests.labtools import eventually, needs_root, nft, service
from tests.process import POOL, WEB, cluster_daemon

pytestmark = needs_root


@pytest.mark.parametrize("seed", [1, 2])
def test_at_whatever_instant_it_is_killed_there_is_no_mixture_and_nothing_is_lost(seed: int) -> None:
    tally = kills(seed, 10)
    print(tally)
    assert sum(tally.kills.values()) >= 10
    assert min(tally.allowed, tally.forbidden) > 1000


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Kills]:
    with cluster_daemon(tmp_path) as daemon:
        yield Kills(daemon.lab, daemon.cluster, daemon, 3)


def test_half_a_service_is_caught(made: Kills) -> None:
    made.daemon.kill()
    made.versions["s2"] = [None, service("s2", "172.30.254.2", ports=[("TCP", 80), ("TCP", 443)])]
    made.whole("before")
    made.lab.router.nft("add element inet nftsync services4 { 172.30.254.2 . tcp . 80 }")
    with pytest.raises(KillError, match=r"after half of it, after 0 kills: s2: \[.*\] is none of \[\[\], \["):
        made.whole("after half of it")
    made.lab.router.nft("add element inet nftsync services4 { 172.30.254.2 . tcp . 443 }")
    made.whole("after all of it")


@pytest.mark.parametrize("harm", [
    "delete element inet nftsync services4 { 172.30.254.1 . udp . 80 }",
    "add element inet nftsync services4 { 172.30.254.2 . udp . 80 }",
    "add element netdev nftsync limited4 { 172.30.254.1 . udp . 80 limit rate over 9 mbytes/second burst 9 mbytes }",
])  # fmt: skip
def test_what_nobody_asked_for_is_caught(made: Kills, harm: str) -> None:
    made.daemon.kill()
    made.lab.router.nft(harm)
    with pytest.raises(KillError, match="after that, after 0 kills: "):
        made.whole("after that")


def test_a_disk_that_takes_its_time_does_not_let_a_killed_daemon_forget(tmp_path: Path) -> None:
    """Closed Services stay closed, though the API server is away after the kill."""
    gone = service("gone", "172.30.254.2")
    with cluster_daemon(tmp_path, nft(), POOL, WEB, gone) as daemon:
        assert daemon.start().stop() == 0
        slow = tmp_path / "slow"
        slow.write_text("")
        daemon.program = (sys.executable, "-m", "tests.slowdisk", str(slow))
        daemon.start()
        daemon.put(service("first", "172.30.254.3"))  # from now on the daemon waits for its disk
        assert eventually(lambda: daemon.lab.arrives("tcp", "172.30.254.3", 80)), daemon.log()
        for number in range(4, 8):
            daemon.put(service("later", f"172.30.254.{number}"))
            assert eventually(lambda number=number: daemon.lab.arrives("tcp", f"172.30.254.{number}", 80)), daemon.log()  # type: ignore[misc]
        daemon.remove(gone)
        assert eventually(lambda: not daemon.lab.arrives("tcp", "172.30.254.2", 80)), daemon.log()
        daemon.cluster.refuse()
        daemon.kill()
        daemon.remembering()
        assert not daemon.lab.arrives("tcp", "172.30.254.2", 80)
        assert [number for number in range(3, 8) if daemon.lab.arrives("tcp", f"172.30.254.{number}", 80)] == [3, 7]
