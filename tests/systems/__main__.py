"""The Debian package on real systems: python -m tests.systems [--suite NAME…] PACKAGE.

Needs root, debootstrap, systemd-nspawn and an API server (see tests/apiserver). Prints a line for each step, with its seconds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from tests.apiserver.harness import MANIFESTS, NFTS, ApiServer, HarnessError, build_programs
from tests.lab.probe import NODE
from tests.systems.machine import between
from tests.systems.proof import OLDER, PACKAGE, Proof
from tests.systems.rootfs import SUITES, copied, root_file_system, run_tests

_NFT = {"apiVersion": "nft.acnodal.com/v1alpha1", "kind": "Nft", "metadata": {"name": "nft"}, "spec": {"public_nic": "public0"}}

# The tests of what only this release's nft can.
_TESTS = {"trixie": ("tests/kernel/test_owned.py",)}

T = TypeVar("T")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.systems")
    parser.add_argument("package", type=Path)
    parser.add_argument("--suite", choices=SUITES, action="append")
    options = parser.parse_args()
    build_programs()
    return max(_on(suite, options.package) for suite in options.suite or SUITES)


def _on(suite: str, package: Path) -> int:
    say(f"{SUITES[suite]} ({suite})")
    root = timed("its root file system", lambda: root_file_system(suite))
    return max(_test(suite, root), _prove(root, package))


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
    """Every step, until one fails; then with what the router's journal says."""
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
        try:
            timed("boot", machine.boot)
            for step in Proof(machine, client, cluster, server).steps():
                timed(step.__name__.replace("_", " "), step)
        except (AssertionError, HarnessError):
            traceback.print_exc()
            print(machine.try_run("journalctl", "--no-pager", "--lines=60", "--unit=nftsync*").stdout)
            return 1
        timed("power off", machine.power_off)
    return 0


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
