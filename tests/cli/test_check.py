"""`nftsync check`: every line says ok or what to do, whatever is wrong."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nftsync.cli.check import Finding, Level, findings
from nftsync.cli.main import main
from nftsync.kernel.netlink import DumpError
from nftsync.policy.public import Link
from tests.labtools import needs_root

pytestmark = needs_root


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """A server that answers everything with `body`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802  # http.server's name
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815  # the same

        def log_message(self, *_: object) -> None:
            """Tests read the findings alone."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def configuration(folder: Path, server: str | None) -> Path:
    kubeconfig, path = folder / "kubeconfig", folder / "nftsync.toml"
    if server:
        kubeconfig.write_text(
            f'{{kind: Config, current-context: c, clusters: [{{name: c, cluster: {{server: "{server}"}}}}], '
            "users: [{name: u, user: {}}], contexts: [{name: c, context: {cluster: c, user: u}}]}"
        )
    path.write_text(
        f'kubeconfig = "{kubeconfig}"\n[paths]\nstate = "{folder}/state"\nlocal_chain = "{folder}/local-chain.nft"\n'
    )
    return path


def found(path: Path) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings(path)}


def test_what_is_missing_is_named_with_what_to_do_and_the_status_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configuration(tmp_path, None)
    (tmp_path / "local-chain.nft").write_text("chain other {\n}\n")
    assert main(["check", "--config", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok    ", "FAIL  ")) for line in lines)
    wrong = [line for line in lines if line.startswith("FAIL  ")]
    assert any("local chain" in line and "chain local-chain" in line for line in wrong)
    assert any("kubeconfig" in line and "put the router's kubeconfig there" in line for line in wrong)
    assert any("public NIC" in line for line in wrong)
    assert any(line.startswith("ok    nft: ") for line in lines), "the kernel takes the ruleset"


def test_a_wrong_configuration_is_the_only_finding(tmp_path: Path) -> None:
    path = tmp_path / "nftsync.toml"
    path.write_text("resync_intervall = 5\n")
    findings_of_it = list(findings(path))
    assert [finding.level for finding in findings_of_it] == [Level.FAIL]
    assert "resync_intervall" in str(findings_of_it[0])


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"7", b"null", b"{", b""])
def test_a_server_that_is_no_api_server_is_a_finding(tmp_path: Path, body: bytes) -> None:
    with answering(body) as server:
        finding = found(configuration(tmp_path, server))["kubeconfig"]
    assert finding.level is Level.FAIL
    assert finding.message.isprintable()


def test_a_right_that_is_missing_and_a_resource_that_is_not_there_are_findings(tmp_path: Path) -> None:
    with answering(b'{"metadata": {"resourceVersion": "1"}, "items": []}') as server:
        seen = list(findings(configuration(tmp_path, server)))
    rights = [finding for finding in seen if finding.subject == "RBAC"]
    assert [finding.level for finding in rights] == [Level.FAIL] * 2 + [Level.WARN] * 6
    assert all("run nftsync bootstrap" in finding.message for finding in rights)
    told = [finding.message.partition(":")[0] for finding in rights[2:4]]
    assert told == ["may not patch nfts/status", "may not create or patch events"]
    resource = next(finding for finding in seen if finding.subject == "Nft arbf-operators/nft")
    assert resource.level is Level.FAIL
    assert "nftsync bootstrap --print" in resource.message


def test_a_kernel_that_does_not_tell_of_interfaces_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> tuple[Link, ...]:
        raise DumpError(errno.EPERM)

    monkeypatch.setattr("nftsync.cli.check.read_links", refuse)
    path = configuration(tmp_path, None)
    path.write_text('router_name = "edge1"\n' + path.read_text() + '[overrides.edge1]\npublic_nic = "eth7"\n')
    finding = found(path)["public NIC"]
    assert finding.level is Level.FAIL
    assert finding.message.endswith("Operation not permitted")
