"""A short version of `make chaos KILLS=300`: at whatever instant the daemon is killed, the kernel holds no mixture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kill import KillError, Kills, kills
from tests.labtools import needs_root, service
from tests.process import cluster_daemon

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
