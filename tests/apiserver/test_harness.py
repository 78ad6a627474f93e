"""What the other tests take for granted of their API server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from nftsync.cluster.api import Api
from nftsync.cluster.backoff import ApiError
from tests.apiserver.client import Client, RefusedError, refusal_of
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


def lagging(
    monkeypatch: pytest.MonkeyPatch, about: Callable[[Client, str], bool], answer: Callable[[str], object]
) -> list[int]:
    """The next three requests about something get the answer of a server whose caches lag.

    Returns the answers still to come.
    """
    honest, left = Client._request, [1, 2, 3]

    def request(client: Client, method: str, path: str, *arguments: Any, **how: Any) -> Any:
        if left and about(client, path):
            left.pop()
            return answer(path)
        return honest(client, method, path, *arguments, **how)

    monkeypatch.setattr(Client, "_request", request)
    return left


def refused(status: int) -> Callable[[str], object]:
    def refuse(path: str) -> object:
        raise RefusedError(path, status, {})

    return refuse


def test_a_token_is_handed_out_once_the_server_takes_it(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    left = lagging(monkeypatch, lambda client, _: client is not server.admin, refused(401))
    server.issue_token("lagging")
    assert left == []


def test_apply_returns_once_the_server_serves_the_kind(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    left = lagging(monkeypatch, lambda _, path: path.endswith("/nfts"), refused(404))
    server.apply(MANIFESTS / "crd.yaml")
    assert left == []


WAYS: dict[str, Callable[[ApiServer], object]] = {
    "apply": lambda server: server.apply(MANIFESTS / "rbac.yaml"),
    "issue_token": ApiServer.issue_token,
}


@pytest.mark.parametrize("way", WAYS)
def test_whoever_gets_rights_has_them_at_once(server: ApiServer, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    denied = {"status": {"allowed": False}}
    left = lagging(monkeypatch, lambda _, path: path.endswith("/subjectaccessreviews"), lambda _: denied)
    WAYS[way](server)
    assert left == []


def test_delete_kind_returns_once_the_server_no_longer_serves_it(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.apply(HERE / "metallb-crds.yaml")
    left = lagging(monkeypatch, lambda _, path: path.endswith("/ipaddresspools"), lambda _: {"items": []})
    server.delete_kind("ipaddresspools.metallb.io")
    assert left == []
    server.delete_kind("ipaddresspools.metallb.io")


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
