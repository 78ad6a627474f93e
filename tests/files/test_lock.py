"""One nftsync at a time."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftsync.files.runtime import LockedError, locked
from tests.lab.lab import Lab
from tests.labtools import SERVICE4, Daemon, needs_root, nft, rules, service, tables


def test_who_comes_second_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        for _ in range(2):
            with pytest.raises(LockedError, match="another nftsync is running"), locked(tmp_path / "run"):
                pytest.fail("there are two")
        with locked(tmp_path / "other"):
            pass
    with locked(tmp_path / "run"):
        pass


def test_where_no_lock_can_be_held_that_is_said_and_the_work_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    done = False
    with caplog.at_level(logging.WARNING), locked(tmp_path / "file" / "run"):
        done = True
    assert done
    assert "nftsync runs without a lock and cannot notice a second nftsync" in caplog.text


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING), locked(tmp_path):
        assert not (tmp_path / "elsewhere").exists()
    assert "nftsync runs without a lock and cannot notice a second nftsync" in caplog.text


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Lab() as lab, Daemon(lab, tmp_path) as made:
        made.put(nft(), service("web", SERVICE4))
        yield made.start()


@needs_root
@pytest.mark.parametrize("command", [("run",), ("run", "--once"), ("flush",)], ids=" ".join)
def test_beside_a_daemon_nobody_else_changes_anything(daemon: Daemon, command: tuple[str, ...]) -> None:
    other = daemon.folder / "other"
    other.mkdir()
    before = rules(daemon.lab)
    paths = [] if command == ("flush",) else ["--manifests", str(other)]
    done = daemon.command(*command, *paths)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == f"nftsync: {daemon.folder}/run/lock: another nftsync is running. Stop it first: systemctl stop nftsync\n"
    )
    assert rules(daemon.lab) == before
    assert daemon.lab.arrives("tcp", SERVICE4, 80)
    assert daemon.get("/readyz").status == 200


@needs_root
def test_a_daemon_that_was_killed_holds_no_lock(daemon: Daemon) -> None:
    daemon.signal(signal.SIGKILL)
    assert daemon.process
    daemon.process.wait()
    assert daemon.command("flush").returncode == 0
    assert tables(daemon.lab) == set()
    daemon.start()
    assert daemon.lab.arrives("tcp", SERVICE4, 80)
