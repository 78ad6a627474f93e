"""Switch a lab's router off and on: it keeps the daemon's files, but no rules in the kernel."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nftsync.files.journal import Journal
from nftsync.plan.memory import Memory
from tests.lab.lab import CLUSTER, NODE, SERVICES, Lab
from tests.labtools import Daemon, eventually

PATIENCE = 60.0  # seconds that a boot may take: a file that is none must not be waited for


def journal_file(daemon: Daemon) -> Path:
    return daemon.state / "memory.journal"


def remembered(daemon: Daemon) -> Memory:
    """The memory of a daemon that starts now."""
    return Journal(daemon.state).load()


def remembers(daemon: Daemon) -> bool:
    """Whether the daemon has written Services. Its first file may come a moment after the rules."""
    return eventually(lambda: remembered(daemon).services)


def power_off(daemon: Daemon) -> None:
    """Stop the daemon, and delete its rules in the kernel and its files in /run."""
    assert daemon.stop() == 0
    switched_off(daemon)


def switched_off(daemon: Daemon) -> None:
    """Delete the rules in the kernel and the files in /run. No daemon may run."""
    daemon.lab.router.nft("flush ruleset")
    shutil.rmtree(daemon.folder / "run", ignore_errors=True)


def boot(daemon: Daemon, *options: str) -> str:
    """Run `nftsync boot`; returns its log lines."""
    done = daemon.lab.router.run(daemon.command_line("boot", *options), check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr


@contextmanager
def before_the_network(lab: Lab) -> Iterator[None]:
    """As in early boot: the router has no interface but lo. Afterwards it has all of them again."""
    lab.unplug()
    lab.router.ip("link del cluster0")
    yield
    lab._join("cluster0", CLUSTER, lab.node, NODE)
    lab.router.ip(*(f"route add {network} via {NODE[':' in network]}" for network in SERVICES))
    lab.plug()


def early_boot(daemon: Daemon) -> str:
    """Run the boot unit's command before there is a network; returns its log."""
    with before_the_network(daemon.lab):
        return boot(daemon, "--early")
