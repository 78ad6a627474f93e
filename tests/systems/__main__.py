"""The Debian package on real systems: python -m tests.systems [--suite NAME…] [--only-boots NUMBER] PACKAGE.

Needs root, debootstrap, systemd-nspawn and an API server (see tests/apiserver); boots alone need no
API server. Prints a line for each step, with its seconds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from tests.apiserver.harness import MANIFESTS, NFTS, ApiServer, HarnessError, programs_of, versions
from tests.children import give_children_default_signals
from tests.lab.probe import NODE
from tests.systems.boots import Boots
from tests.systems.machine import Machine, between
from tests.systems.proof import OLDER, PACKAGE, Proof
from tests.systems.rootfs import SUITES, copied, root_file_system, run_tests

_NFT = {
    "apiVersion": "nft.acnodal.com/v1alpha1",
    "kind": "Nft",
    "metadata": {"name": "nft"},
    "spec": {"public_nic": "public0"},
}

# The tests of what only this release's nft can.
_TESTS = {"trixie": ("tests/kernel/test_owned.py",)}

_BOOTS = 10  # in a row

T = TypeVar("T")


def main() -> int:
    give_children_default_signals()
    parser = argparse.ArgumentParser(prog="tests.systems")
    parser.add_argument("package", type=Path)
    parser.add_argument("--suite", choices=SUITES, action="append")
    parser.add_argument("--only-boots", type=int, metavar="NUMBER")
    options = parser.parse_args()
    suites = options.suite or SUITES
    programs_of(versions()[-1])
    say("Root file systems: a minute for each that is not in the cache")
    roots = {suite: timed(f"{SUITES[suite]} ({suite})", partial(root_file_system, suite)) for suite in suites}
    return max(_on(suite, root, options.package, options.only_boots) for suite, root in roots.items())


def _on(suite: str, root: Path, package: Path, only_boots: int | None) -> int:
    say(f"{SUITES[suite]} ({suite})")
    if only_boots:
        return _boot(root, package, only_boots)
    return max(_test(suite, root), _prove(root, package), _boot(root, package, _BOOTS))


def _test(suite: str, root: Path) -> int:
    for path in _TESTS.get(suite, ()):
        with tempfile.TemporaryDirectory(prefix="nftsync-systems-") as folder, copied(root, Path(folder)) as copy:
            try:
                say(f"       {timed(path, partial(run_tests, copy, path))}")
            except AssertionError as failed:
                print(failed)
                return 1
    return 0


def _prove(root: Path, package: Path) -> int:
    with (
        tempfile.TemporaryDirectory(prefix="nftsync-systems-") as folder,
        copied(root, Path(folder)) as copy,
        between(copy) as (machine, client, cluster),
        ApiServer(address=str(NODE[0])) as server,
    ):
        server.apply(MANIFESTS / "crd.yaml", MANIFESTS / "rbac.yaml")
        server.admin.post(NFTS, _NFT)
        (copy / PACKAGE.lstrip("/")).write_bytes(package.read_bytes())
        older(package, copy / OLDER.lstrip("/"), Path(folder))
        machine.plug()
        return _walk(machine, (machine.boot, *Proof(machine, client, cluster, server).steps(), machine.power_off))


def _boot(root: Path, package: Path, number: int) -> int:
    """Boots in a row, and each fault."""
    with (
        tempfile.TemporaryDirectory(prefix="nftsync-systems-") as folder,
        copied(root, Path(folder)) as copy,
        between(copy) as (machine, _, _),
    ):
        (copy / PACKAGE.lstrip("/")).write_bytes(package.read_bytes())
        boots = Boots(machine)
        first = (
            boots.the_router_gets_rules_and_loses_its_api_server,
            partial(boots.boots_in_a_row_on_a_busy_machine, number),
        )
        return _walk(machine, (*first, *boots.faults(), machine.power_off))


def _walk(machine: Machine, steps: Iterable[Callable[[], None]]) -> int:
    """Every step, until one fails; then with what the router's journal says."""
    try:
        for step in steps:
            timed(_sentence(step), step)
    except (AssertionError, HarnessError):
        traceback.print_exc()
        print(machine.try_run("journalctl", "--no-pager", "--lines=60", "--unit=nftsync*").stdout)
        return 1
    return 0


def _sentence(step: Callable[[], None]) -> str:
    if isinstance(step, partial):
        return " ".join((*map(str, step.args), _sentence(step.func)))
    return step.__name__.replace("_", " ")


def older(package: Path, target: Path, folder: Path) -> None:
    """The same package as a version that sorts before it."""
    tree = folder / "older"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN" / "control"
    text = control.read_text()
    version = next(line for line in text.splitlines() if line.startswith("Version: "))
    control.write_text(text.replace(version, f"{version}~older"))
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, target], check=True, stdout=subprocess.DEVNULL)


def timed(what: str, work: Callable[[], T]) -> T:
    began = time.monotonic()
    try:
        result = work()
    except BaseException:
        say(f"  FAIL {what}")
        raise
    say(f"  ok   {time.monotonic() - began:5.1f} s  {what}")
    return result


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
