"""Programs that no package has, built once by ./build and kept in a cache folder.

Kubernetes 1.37 is today's. 1.20 is like the clusters that the old operator served: no ValidatingAdmissionPolicy, no
field validation, no streaming lists, CRDs in v1beta1. No Go module has it, and 1.30, which one has, lacks none of that.
Each MetalLB says its pools in another way: by IPAddressPool, by AddressPool, in a ConfigMap.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
OLD, NEW = "1.20.2", "1.37.2"  # of Kubernetes
METALLB = ("0.15.3", "0.13.5", "0.12.1")


class ProgramsError(Exception):
    """A program is missing; says why and what to do."""


def kubernetes(version: str) -> Path:
    """The folder of kube-apiserver, and for NEW also of kube-controller-manager and etcd."""
    return _cache() / f"kubernetes-{version}"


def metallb(version: str) -> Path:
    """The folder of controller and speaker, and from 0.13 on of `crds/`."""
    return _cache() / f"metallb-{version}"


def build(folders: Iterable[Path]) -> None:
    """Build what is missing, which takes minutes and root. Raises ProgramsError."""
    missing = [folder.name for folder in folders if not folder.is_dir()]
    if missing and not may_build():
        raise ProgramsError(f"{', '.join(missing)} is not built: run `make programs` once as root")
    environment = {**os.environ, "NFTSYNC_TEST_CACHE": str(_cache())}  # the script runs in a folder of its own
    if missing and subprocess.run([HERE / "build", *missing], env=environment, check=False).returncode:
        raise ProgramsError(f"{', '.join(missing)} could not be built: see {_cache() / 'build.log'}")


def may_build() -> bool:
    """Whether what is missing is built here: in CI always, elsewhere for root, who can install the compiler."""
    return os.geteuid() == 0 or bool(os.environ.get("CI"))


def _cache() -> Path:
    if cache := os.environ.get("NFTSYNC_TEST_CACHE"):
        return Path(cache).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nftsync-tests"
