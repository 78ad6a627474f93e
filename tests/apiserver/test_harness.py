"""What the other tests take for granted of their API server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from nftsync.cluster.api import Api, ApiError
from tests.apiserver.client import refusal_of
from tests.apiserver.harness import HERE, MANIFESTS, NFTS, ApiServer, Programs, eventually

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture(scope="module")
def server(programs: Programs) -> Iterator[ApiServer]:
    with ApiServer(["--watch-cache=false"], programs) as server:
        server.apply(MANIFESTS / "crd.yaml", MANIFESTS / "rbac.yaml")
        yield server


@pytest.mark.parametrize(("user", "status"), [("admin", None), ("nftsync", 403)])
@pytest.mark.parametrize("in_a_file", [True, False])
def test_a_kubeconfig_makes_the_daemon_the_user_whom_it_names(
    server: ApiServer, tmp_path: Path, user: str, status: int | None, *, in_a_file: bool
) -> None:
    api = Api(server.kubeconfig(user, tmp_path / "token" if in_a_file else None))
    try:
        assert api.request("GET", "/api/v1/services")["items"]
        refused = None
        try:
            api.request("GET", "/api/v1/secrets")
        except ApiError as fault:
            refused = fault.status
        assert refused == status
    finally:
        api.close()


def test_a_killed_server_comes_back_with_its_data_and_without_a_revoked_token(server: ApiServer) -> None:
    server.apply(MANIFESTS / "nft.yaml")
    before = server.admin.get(f"{NFTS}/nft")
    revoked, kept = server.client(server.issue_token()), server.client(server.issue_token("another"))
    assert revoked.get(NFTS)["items"] == kept.get(NFTS)["items"] == [before]
    server.revoke_token()

    server.kill()
    with pytest.raises(urllib3.exceptions.HTTPError):
        kept.get(NFTS)
    server.restart()

    assert kept.get(NFTS)["items"] == [before]
    assert refusal_of(lambda: revoked.get(NFTS)) == 401


def test_after_a_compaction_old_continue_tokens_and_old_watches_are_gone(server: ApiServer) -> None:
    for number in range(2):
        server.admin.post(CONFIG_MAPS, {"metadata": {"name": f"map-{number}"}})
    page = server.admin.get(CONFIG_MAPS, {"limit": "1"})["metadata"]
    assert refusal_of(lambda: server.admin.get(CONFIG_MAPS, {"limit": "1", "continue": page["continue"]})) is None

    server.compact()

    assert refusal_of(lambda: server.admin.get(CONFIG_MAPS, {"limit": "1", "continue": page["continue"]})) == 410
    event = next(server.admin.watch(CONFIG_MAPS, page["resourceVersion"]))
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


def test_the_servers_end_with_the_process_that_started_them(programs: Programs) -> None:
    program = (
        "import sys\n"
        "from tests.apiserver.harness import ApiServer\n"
        "ApiServer._ready = lambda self: True  # that they run is enough\n"
        "with ApiServer() as server:\n"
        "    print(*server.pids, server.folder, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    root = HERE.parents[1]
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        *pids, folder = child.stdout.readline().split()
        assert all(runs(pid) for pid in pids)
    finally:
        child.kill()
        child.communicate()
    assert len(pids) == 2
    eventually(lambda: not any(runs(pid) for pid in pids), "the servers have not ended")
    subprocess.run(["rm", "-r", folder], check=True)


def runs(pid: str) -> bool:
    """Whether the process is there and not a zombie that waits for init."""
    try:
        state = Path("/proc", pid, "stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
