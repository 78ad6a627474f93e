"""Where nft and the kernel support it, our tables have an owner.

Nobody else changes them while nftsync runs, and they stay when it ends.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.labtools import SERVICE4, Daemon, eventually, needs_root, nft, packets, rules, service, tables
from tests.reboot import boot, power_off


def _reaches(version: str, least: tuple[int, int]) -> bool:
    """Whether the first two numbers of a version are enough."""
    major, minor = map(int, re.findall(r"\d+", version)[:2])
    return (major, minor) >= least


def _can_own() -> bool:
    nft = subprocess.run(["/usr/sbin/nft", "--version"], capture_output=True, text=True, check=True).stdout
    return _reaches(nft, (1, 1)) and _reaches(os.uname().release, (6, 9))


# Debian 12 has no such nft: tests/systems runs this file on Debian 13.
pytestmark = [
    needs_root,
    pytest.mark.elsewhere,
    pytest.mark.skipif(not _can_own(), reason="only nft 1.1 and Linux 6.9 have tables with an owner"),
]

KEY = f"{SERVICE4} . tcp . 80"


@pytest.fixture
def daemon(lab: Lab, tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(lab, tmp_path, own_tables=True) as made:
        made.put(nft(), service("web", SERVICE4, limit="400/second"))
        yield made.start()


def flags(lab: Lab) -> list[list[str]]:
    """Of both tables."""
    listed = json.loads(lab.router.run(["nft", "-j", "list tables"]).stdout)["nftables"]
    found = [
        each["table"].get("flags", []) for each in listed if "table" in each and each["table"]["name"] == "nftsync"
    ]
    return [sorted([each] if isinstance(each, str) else each) for each in found]


OWNED, LEFT = [["owner", "persist"]] * 2, [["persist"]] * 2


@pytest.mark.parametrize("command", [
    "flush ruleset",
    "delete table inet nftsync",
    "delete table netdev nftsync",
    "flush chain inet nftsync operator-svc",
    "insert rule inet nftsync forward accept",
    "add chain inet nftsync theirs",
    "add element inet nftsync services4 { 172.30.254.99 . tcp . 80 }",
    "add table inet nftsync { flags dormant; }",
])  # fmt: skip
def test_nobody_else_changes_anything(lab: Lab, daemon: Daemon, command: str) -> None:
    good = rules(lab)
    lab.router.run(["nft", command], check=False)
    assert rules(lab) == good
    assert flags(lab) == OWNED
    assert lab.arrives("tcp", SERVICE4, 80)
    assert not lab.arrives("tcp", "172.30.254.99", 80)
    assert daemon.metric("nftsync_drift_repairs_total") == 0


def test_the_daemon_goes_on_changing_them_elements_and_rules(lab: Lab, daemon: Daemon) -> None:
    daemon.put(service("more", "172.30.254.2"))
    assert eventually(lambda: lab.arrives("tcp", "172.30.254.2", 80))
    daemon.put(nft(enable_ssh=False))
    assert eventually(lambda: "dport 22" not in rules(lab)), daemon.log()
    daemon.put(nft(enable_rateshape=False))
    assert eventually(lambda: tables(lab) == {"inet nftsync"}), daemon.log()
    daemon.put(nft())
    assert eventually(lambda: flags(lab) == OWNED), daemon.log()
    assert daemon.metric("nftsync_syncs_total", {"result": "failed"}) == 0


@pytest.mark.parametrize("kill", [False, True])
def test_when_it_ends_they_stay_and_the_next_one_takes_them_over_as_they_are(
    lab: Lab,
    daemon: Daemon,
    kill: bool,  # noqa: FBT001
) -> None:
    assert lab.arrives("tcp", SERVICE4, 80)
    counted = packets(lab, "services4", KEY)
    assert daemon.process
    if kill:
        daemon.process.kill()
        daemon.process.wait()
    else:
        assert daemon.stop() == 0
    assert eventually(lambda: flags(lab) == LEFT)
    assert lab.arrives("tcp", SERVICE4, 80)
    assert not lab.arrives("tcp", SERVICE4, 81)
    daemon.start()
    assert flags(lab) == OWNED
    assert packets(lab, "services4", KEY) > counted


def test_they_come_back_after_a_reboot_and_are_taken_over(lab: Lab, daemon: Daemon) -> None:
    power_off(daemon)
    boot(daemon)
    assert flags(lab) == LEFT
    assert lab.arrives("tcp", SERVICE4, 80)
    daemon.start()
    assert flags(lab) == OWNED


def test_flush_removes_what_a_stopped_daemon_left(lab: Lab, daemon: Daemon) -> None:
    assert daemon.command("flush").returncode == 1
    assert flags(lab) == OWNED
    daemon.stop()
    done = daemon.command("flush")
    assert (done.returncode, tables(lab)) == (0, set()), done.stderr


def test_tables_that_stand_without_an_owner_serve_as_they_are(lab: Lab, tmp_path: Path) -> None:
    with Daemon(lab, tmp_path) as before:
        before.put(nft(), service("web", SERVICE4))
        before.start()
        before.stop()
    assert flags(lab) == [[], []]
    with Daemon(lab, tmp_path, own_tables=True) as daemon:
        daemon.start()
        daemon.put(service("more", "172.30.254.2"), nft(enable_ssh=False))
        assert eventually(lambda: lab.arrives("tcp", "172.30.254.2", 80) and "dport 22" not in rules(lab)), daemon.log()
        assert flags(lab) == [[], []]
        lab.router.nft("flush ruleset")
        assert eventually(lambda: flags(lab) == OWNED), daemon.log()


def test_whose_they_are_is_no_difference_to_diff(daemon: Daemon) -> None:
    done = daemon.command("diff")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
