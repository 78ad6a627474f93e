"""The base of last resort, which is loaded when `nftsync boot` can't run: systemd/base.nft."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import PUBLIC, Lab, TcpServer
from tests.labtools import SERVICE4, SERVICE6, Daemon, needs_root, nft, rules, service
from tests.support import ROOT

pytestmark = needs_root

BASE = ["nft", "--file", str(ROOT / "systemd" / "base.nft")]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Lab() as lab, Daemon(lab, tmp_path) as made:
        made.put(nft(), service("web", SERVICE4, SERVICE6))
        yield made


def test_it_lets_in_ssh_and_lets_nothing_through(daemon: Daemon) -> None:
    lab = daemon.lab
    assert lab.arrives("tcp", SERVICE4, 80), "without rules everything passes"
    lab.router.run(BASE)
    assert not lab.arrives("tcp", SERVICE4, 80)
    assert not lab.arrives("tcp", SERVICE6, 80)
    for port in (22, 179):
        with TcpServer(lab.router, port):
            assert lab.arrives("tcp", str(PUBLIC[0]), port) is (port == 22)


def test_the_daemon_makes_of_it_what_it_makes_of_nothing(daemon: Daemon) -> None:
    assert daemon.once().returncode == 0
    good = rules(daemon.lab)
    daemon.lab.router.nft("flush ruleset")
    daemon.lab.router.run(BASE)
    assert daemon.once().returncode == 0
    assert rules(daemon.lab) == good


def test_it_replaces_no_ruleset(daemon: Daemon) -> None:
    assert daemon.once().returncode == 0
    good = rules(daemon.lab)
    done = daemon.lab.router.run(BASE, check=False)
    assert done.returncode == 1
    assert "File exists" in done.stderr
    assert rules(daemon.lab) == good
