"""A lab's router that is switched off and on: what the daemon wrote down is there, what it did to the kernel is not."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.labtools import Daemon

PATIENCE = 60.0  # seconds that a boot may take: a file that is none must not be waited for


def last_good_file(daemon: Daemon) -> Path:
    return daemon.state / "ruleset.nft"


def power_off(daemon: Daemon) -> None:
    """Stop the daemon; what it did to the kernel is gone, and so is what stands in /run."""
    assert daemon.stop() == 0
    daemon.lab.router.nft("flush ruleset")
    shutil.rmtree(daemon.folder / "run", ignore_errors=True)


def boot(daemon: Daemon) -> str:
    """What it said."""
    done = daemon.lab.router.run(daemon.command_line("boot"), check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr
