"""Root file systems of Debian releases, with everything that the package depends on.

They are made once and kept in the cache folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUITES = {"bookworm": "Debian 12", "trixie": "Debian 13"}
# A router's packages: init, network, and the tools that restart things. debootstrap's own resolver
# knows no alternatives, so apt gets the rest.
_SYSTEM = ("systemd-sysv", "dbus", "ca-certificates", "ifupdown", "iproute2", "procps")
_DEPENDS = ("netbase", "nftables", "python3", "python3-kubernetes", "python3-nftables", "python3-prometheus-client",
            "python3-pyroute2", "python3-systemd", "python3-tenacity", "python3-yaml")  # fmt: skip
_TESTING = ("python3-hypothesis", "python3-pytest")
_PROJECT = Path(__file__).parents[2]
# In a mount namespace of its own, so that whatever ends it leaves nothing mounted.
_INSIDE = """set -e
for each in proc sys dev; do mount --rbind "/$each" "$1/$each"; done
mount --bind "$2" "$1/mnt"
mount -o remount,bind,ro "$1/mnt"
shift 2
exec "$@"
"""


def root_file_system(suite: str) -> Path:
    """The folder of a release; nobody writes to it. About a minute the first time."""
    recipe = hashlib.sha256(repr((suite, _SYSTEM, _DEPENDS, _TESTING)).encode()).hexdigest()[:12]
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    kept, made = cache / f"{suite}-{recipe}", cache / f".{suite}-{recipe}.new"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            shutil.rmtree(made, ignore_errors=True)
            _run("debootstrap", "--variant=minbase", f"--include={','.join(_SYSTEM)}", suite, str(made), _mirror())
            shutil.copy("/etc/resolv.conf", made / "etc" / "resolv.conf")
            _run("chroot", str(made), "apt-get", "update", "-q")
            _run("chroot", str(made), "apt-get", "install", "-q", "-y", "--no-install-recommends", *_DEPENDS, *_TESTING)
            made.rename(kept)
    return kept


@contextmanager
def copied(root: Path, folder: Path) -> Iterator[Path]:
    """A copy of a root file system that may be changed; what is changed lies in `folder`."""
    above, work, merged = (folder / name for name in ("above", "work", "merged"))
    for each in (above, work, merged):
        each.mkdir()
    _run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={root},upperdir={above},workdir={work}", str(merged))
    try:
        yield merged
    finally:
        _run("umount", str(merged))


def run_tests(root: Path, path: str) -> str:
    """Run tests of this project's with the Python, the libraries and the nft of a root file system.

    Returns pytest's last line. Raises AssertionError with all that it printed if one fails.
    """
    pytest = ["env", "--chdir=/mnt", "python3", "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", path]
    command = ["unshare", "--mount", "sh", "-c", _INSIDE, "sh", str(root), str(_PROJECT), "chroot", str(root), *pytest]
    environment = {**os.environ, "CI": "true", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout.splitlines()[-1]


def _mirror() -> str:
    """Where this machine gets Debian from."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages", "Label: Debian"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    if not found:
        raise RuntimeError("apt knows no mirror of Debian's: run apt-get update")
    return min(found)


def _cache() -> Path:
    if cache := os.environ.get("NFTSYNC_TEST_CACHE"):
        return Path(cache, "roots")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "nftsync-tests", "roots")


def _run(*command: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
