"""`nftsync bootstrap` gives a real cluster what its routers need, and changes nothing that stands as it should."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nftsync.cli import bootstrap
from nftsync.cli.bootstrap import BootstrapError, Manifest
from nftsync.cluster.api import Api
from nftsync.cluster.backoff import ApiError
from tests.apiserver.harness import MANIFESTS, NAMESPACE, NFTS, ROUTER_SECRET, ApiServer
from tests.apiserver.kubectl import has_policies
from tests.labtools import write

SECRET = f"/api/v1/namespaces/{NAMESPACE}/secrets/{ROUTER_SECRET}"
FILES = [MANIFESTS / name for name in bootstrap.FILES]


@pytest.fixture
def server(start_apiserver: Any) -> ApiServer:
    """Empty: without a CustomResourceDefinition, and without any right for anybody but its administrator."""
    made: ApiServer = start_apiserver()
    return made


def run(server: ApiServer, *arguments: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "nftsync",
        "bootstrap",
        "--kubeconfig",
        str(kubeconfig or server.kubeconfig("admin")),
    ]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def made(server: ApiServer) -> str:
    """Run it for the first time; the routers' kubeconfig."""
    with server.token_controller():
        done = run(server)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects() -> list[Manifest]:
    return [Manifest(raw) for path in FILES for raw in yaml.safe_load_all(path.read_text()) if raw]


def served(server: ApiServer) -> list[Manifest]:
    """Without those of kinds that this server is too old for."""
    policies = has_policies(server)
    return [each for each in objects() if policies or each.kind not in bootstrap.OPTIONAL]


def versions(server: ApiServer) -> dict[str, str]:
    return {each.path: server.admin.get(each.path)["metadata"]["resourceVersion"] for each in served(server)}


def test_an_empty_cluster_gets_all_of_it_and_the_kubeconfig_can_do_what_a_router_does_and_nothing_more(
    server: ApiServer, tmp_path: Path
) -> None:
    with server.token_controller():
        done = run(server, "--output", str(tmp_path / "kubeconfig"))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    told = dict(line.split(": ", 1) for line in done.stderr.splitlines())
    assert list(told) == [str(each) for each in objects()]
    assert all(told.pop(str(each)).startswith("created") for each in served(server))
    assert set(told.values()) <= {"left out: this cluster does not have the kind, which came with Kubernetes 1.30"}
    assert (tmp_path / "kubeconfig").stat().st_mode & 0o777 == 0o600
    write(tmp_path / "nftsync.toml", f'kubeconfig = "{tmp_path}/kubeconfig"\n')
    command = [sys.executable, "-m", "nftsync", "check", "--config", str(tmp_path / "nftsync.toml")]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    cluster = [line for line in said if line.split()[1].rstrip(":") in ("kubeconfig", "permissions", "Nft", "reports")]
    assert cluster
    assert not [line for line in cluster if line.startswith("FAIL")], said
    api = Api(tmp_path / "kubeconfig")
    api.request("GET", "/api/v1/services")
    for beyond in ("/api/v1/secrets", "/api/v1/pods", "/api/v1/nodes", f"{SECRET}"):
        with pytest.raises(ApiError) as refused:
            api.request("GET", beyond)
        assert refused.value.status == 403
    api.close()


def test_run_again_it_changes_nothing_and_prints_the_same(server: ApiServer) -> None:
    first, before = made(server), versions(server)
    done = run(server)
    assert (done.returncode, done.stdout) == (0, first), done.stderr
    assert versions(server) == before, done.stderr
    assert "created" not in done.stderr
    assert not re.search(r"\bchanged", done.stderr)
    document = yaml.safe_load(first)
    assert document["clusters"][0]["cluster"].keys() == {"server", "certificate-authority-data"}
    elsewhere = yaml.safe_load(run(server, "--server", "https://192.0.2.1:6443").stdout)
    assert elsewhere["clusters"][0]["cluster"]["server"] == "https://192.0.2.1:6443"


def test_what_kubectl_applied_before_is_taken_over_and_settings_that_stand_stay(server: ApiServer) -> None:
    server.apply(*FILES[:3], *(FILES[3:] if has_policies(server) else []))
    settings = {"spec": {"public_nic": "wan0", "enable_ssh": False}}
    server.admin.patch(f"{NFTS}/nft", settings)
    before = server.admin.get(f"{NFTS}/nft")
    made(server)
    assert server.admin.get(f"{NFTS}/nft") == before


def test_a_right_that_was_taken_away_is_given_back_and_one_that_somebody_else_set_is_not_overwritten(
    server: ApiServer,
) -> None:
    made(server)
    role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/nftsync"
    server.admin.delete(role)
    done = run(server)
    assert done.returncode == 0, done.stderr
    assert "ClusterRole nftsync: created" in done.stderr
    server.admin.patch(role, {"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]})
    held = server.admin.get(role)
    done = run(server)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        "ClusterRole nftsync exists with other settings, which nftsync does not overwrite: "
        in done.stderr.splitlines()[-1]
    )
    assert server.admin.get(role) == held


def test_a_policy_with_other_settings_or_without_the_right_to_write_it_does_not_keep_the_kubeconfig_back(
    server: ApiServer,
) -> None:
    first, policies = made(server), has_policies(server)
    policy, binding = (each for each in objects() if each.kind in bootstrap.OPTIONAL)
    if policies:
        server.admin.patch(binding.path, {"spec": {"validationActions": ["Warn"]}})
        server.admin.patch(policy.path, {"spec": {"failurePolicy": "Fail"}})
        done = run(server)
        assert (done.returncode, done.stdout) == (0, first), done.stderr
        assert f"{binding}: exists, unchanged" in done.stderr.splitlines()
        assert f"{policy}: exists with other settings, which nftsync does not overwrite: " in done.stderr
        assert server.admin.get(binding.path)["spec"]["validationActions"] == ["Warn"]
        assert server.admin.get(policy.path)["spec"]["failurePolicy"] == "Fail"
        server.admin.delete(policy.path)
    groups = sorted({each.root.removeprefix("/api/v1").removeprefix("/apis/").split("/")[0] for each in objects()})
    groups.remove("admissionregistration.k8s.io")
    rules = [{"apiGroups": groups, "resources": ["*"], "verbs": ["get"]}]
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "reader"}}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"}
    subject = {"kind": "ServiceAccount", "name": "nftsync", "namespace": NAMESPACE}
    server.apply_object({**role, "rules": rules})
    server.apply_object({**role, "kind": "ClusterRoleBinding", "roleRef": reference, "subjects": [subject]})
    done = run(server, kubeconfig=server.kubeconfig())
    assert (done.returncode, done.stdout) == (0, first), done.stderr
    reason = ".*403 Forbidden" if policies else "this cluster does not have the kind"
    assert re.search(rf"^{policy}: left out: {reason}", done.stderr, re.MULTILINE)


def test_what_it_cannot_do_it_refuses_with_a_reason(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = server.kubeconfig("admin")
    monkeypatch.setattr(bootstrap, "PATIENCE", 0.5)
    with pytest.raises(
        BootstrapError, match=r"^the cluster filled in no token in Secret arbf-operators/nftsync-token within"
    ):
        bootstrap.bootstrap(admin, lambda _: None)
    document = yaml.safe_load(admin.read_text())
    document["clusters"][0]["cluster"] = {"server": server.url, "insecure-skip-tls-verify": True}
    write(tmp_path / "insecure", yaml.safe_dump(document))
    for kubeconfig, reason in (
        (tmp_path / "insecure", "nftsync refuses insecure-skip-tls-verify"),
        (tmp_path / "absent", "there is no such file: name an administrator's kubeconfig"),
        (server.kubeconfig(), "403 Forbidden"),
    ):
        done = run(server, kubeconfig=kubeconfig)
        assert (done.returncode, done.stdout) == (1, "")
        assert reason in done.stderr.splitlines()[-1]
        assert "unsafe_kubeconfig" not in done.stderr, "that is for routers"
    server.admin.delete(SECRET)
    server.admin.post(SECRET.rpartition("/")[0], {"metadata": {"name": ROUTER_SECRET}, "type": "Opaque"})
    done = run(server)
    assert done.returncode == 1
    assert "Secret arbf-operators/nftsync-token exists and is not a ServiceAccount's token" in done.stderr
    server.kill()
    assert "Connection refused" in run(server).stderr


def test_print_shows_what_would_be_applied_and_asks_nobody() -> None:
    command = [sys.executable, "-m", "nftsync", "bootstrap", "--print", "--kubeconfig", "/nonexistent"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [raw for raw in yaml.safe_load_all(done.stdout) if raw] == [dict(each.raw) for each in objects()]
