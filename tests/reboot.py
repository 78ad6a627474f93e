"""A lab's router that is switched off and on: what the daemon wrote down is there, what it did to the kernel is not."""

from __future__ import annotations

import shutil
from pathlib import Path

from nftsync.files.journal import Journal
from nftsync.plan.memory import Memory
from tests.labtools import Daemon

PATIENCE = 60.0  # seconds that a boot may take: a file that is none must not be waited for


def journal_file(daemon: Daemon) -> Path:
    return daemon.state / "memory.journal"


def remembered(daemon: Daemon) -> Memory:
    """What a daemon that starts now would know."""
    return Journal(daemon.state).load()


def power_off(daemon: Daemon) -> None:
    """Stop the daemon; what it did to the kernel is gone, and so is what stands in /run."""
    assert daemon.stop() == 0
    switched_off(daemon)


def switched_off(daemon: Daemon) -> None:
    """The router lost its kernel's state and /run; no daemon runs."""
    daemon.lab.router.nft("flush ruleset")
    shutil.rmtree(daemon.folder / "run", ignore_errors=True)


def boot(daemon: Daemon, *options: str) -> str:
    """What it said."""
    done = daemon.lab.router.run(daemon.command_line("boot", *options), check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr
