"""`nftsync check`: every line says ok or what to do, whatever is wrong."""

from __future__ import annotations

import errno
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from nftsync.cli.check import Finding, Level, _guarding, _stateless, findings
from nftsync.cli.main import main
from nftsync.cli.preview import known_of_cluster
from nftsync.cluster.api import TooLargeError
from nftsync.cluster.backoff import ApiError
from nftsync.config import Config
from nftsync.kernel.netlink import DumpError
from nftsync.kernel.nft import Kernel, KernelError
from nftsync.objects.address import AddressSet, parse_range
from nftsync.objects.fields import LAST_APPLIED, removed
from nftsync.objects.metallb import MetalLBConfig, Pool
from nftsync.policy.public import Link
from tests.lab.lab import Lab
from tests.labtools import SERVICE4, Daemon, needs_root, nft, service

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
    assert [finding.level for finding in rights] == [Level.FAIL] * 2 + [Level.WARN] * 8
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


NO_SUCH = "No such file or directory: {} in {}: table inet nftsync has no set, map, counter"
TRIED = {
    'counter name "web" accept': "line 4, column 15: Could not process rule: "
    + NO_SUCH.format("'\"web\"'", "'counter name \"web\" accept'"),
    "ip saddr @bad accept": "line 4, column 11: " + NO_SUCH.format("'@bad'", "'ip saddr @bad accept'"),
    "jump nowhere": "line 4, column 7: Could not process rule: " + NO_SUCH.format("'nowhere'", "'jump nowhere'"),
    "tcp dport 22 accept\n\tflow add @f": "line 5, column 2: Could not process rule: No such file or directory: 'flow",
    'ct helper set "ftp"': "line 4, column 16: Could not process rule: No such file or directory: '\"ftp\"' in",
    "tcp dport 22 accpt": "line 4, column 20: syntax error, unexpected newline: 'tcp dport 22 accpt'",
    'iif "lo" accept; iif gone0 accept': "line 4, column 23: Interface does not exist: 'gone0' in",
    "jump local-chain": "Could not process rule: Too many links: its jumps lead back to it",
    "masquerade": "Operation not supported: one of its statements is not possible at the hooks input and forward",
    "ip saddr \x1b[2J accept": "line 4, column 11: syntax error, unexpected junk: '\\x1b' in 'ip saddr \\x1b[2J",
    'include "/etc/more.nft"': "line 4: nft reads an included file only when it loads the chain",
}


def chain_finding(folder: Path, rules: str) -> Finding:
    path = configuration(folder, None)
    (folder / "local-chain.nft").write_text(f"# mine\n\nchain local-chain {{\n\t{rules}\n}}\n")
    return found(path)["local chain"]


@pytest.mark.parametrize("rules", TRIED)
def test_nft_tries_the_local_chain_and_its_complaint_has_the_place_in_the_file(tmp_path: Path, rules: str) -> None:
    finding = chain_finding(tmp_path, rules)
    assert finding.level is Level.FAIL
    assert TRIED[rules] in finding.message
    assert finding.message.isprintable()


@pytest.mark.parametrize("rules", [
    "", 'iif "lo" accept', "meter x { ip saddr limit rate 3/minute } accept", "ip daddr @pools4 accept",
    "jump operator-cr", "fib saddr . iif oif missing drop", "ct state new limit rate 3/second accept",
])  # fmt: skip
def test_a_local_chain_that_nft_accepts_is_ok_and_the_trial_changes_nothing(tmp_path: Path, rules: str) -> None:
    before = subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True).stdout
    finding = chain_finding(tmp_path, rules)
    assert finding.level is Level.OK, finding.message
    assert subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True).stdout == before


@pytest.mark.parametrize("rule", ["ct state established,related accept", "ct status assured accept", "goto global"])
def test_a_local_chain_that_accepts_established_packets_is_a_warning(tmp_path: Path, rule: str) -> None:
    finding = chain_finding(tmp_path, f"tcp dport 22 accept\n\t{rule}")
    assert finding.level is Level.WARN
    said = f"local-chain.nft, line 5: {rule.replace(',', ', ')} also accepts packets of existing connections"
    assert said in finding.message


def test_the_daemon_says_the_same_of_a_local_chain_as_the_check(tmp_path: Path) -> None:
    rules = 'tcp dport 22 counter name "web" accept'
    said = chain_finding(tmp_path, rules).message.partition(": ")[2]
    with Lab() as lab, Daemon(lab, tmp_path / "daemon") as daemon:
        daemon.local_chain.write_text((tmp_path / "local-chain.nft").read_text())
        daemon.put(nft(), service("web", SERVICE4))
        daemon.start()
        assert said in daemon.log()


def test_without_root_the_local_chain_is_read_and_the_rest_is_said(tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise KernelError("run this as root")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kernel, "__init__", refuse)
        finding = chain_finding(tmp_path, "accept")
        assert finding.level is Level.WARN
        assert "nft could not try it: run this as root" in finding.message
        assert chain_finding(tmp_path, 'include "x"').level is Level.FAIL


@pytest.mark.parametrize(
    ("legal", "level"),
    [
        (None, Level.WARN),
        (AddressSet(), Level.WARN),
        (AddressSet.of([parse_range("172.30.254.0/24")]), Level.OK),
        (AddressSet.of([parse_range("172.30.0.0/16")]), Level.WARN),
    ],
)
def test_stateless_without_a_pool_or_with_one_wider_than_the_cluster_is_a_warning(
    legal: AddressSet | None, level: Level
) -> None:
    assert _stateless(legal, [ip_network("172.30.250.0/24"), ip_network("172.30.254.1/32")]).level is level


# --- fields that nobody knows -------------------------------------------------------------------------


WRONG = """\
apiVersion: nft.acnodal.com/v1alpha1
kind: Nft
metadata: {name: nft}
spec: {public_nic: lo0, enable-ssh: false}
"""


def test_files_in_place_of_a_cluster_are_checked_as_an_api_server_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, file = configuration(tmp_path, None), tmp_path / "nft.yaml"
    file.write_text(WRONG)
    assert main(["check", "--config", str(config), "--manifests", str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    told = f"{file} #1: unknown field spec.enable-ssh (did you mean spec.enable_ssh?); it does not count"
    assert f"FAIL  manifests: Nft arbf-operators/nft: unknown_field: {told}" in lines
    assert not any("kubeconfig" in line for line in lines), "no cluster is asked"


def test_right_files_are_ok_and_files_that_are_not_there_are_a_finding(tmp_path: Path) -> None:
    config, file = configuration(tmp_path, None), tmp_path / "nft.yaml"
    file.write_text(WRONG.replace("enable-ssh", "enable_ssh"))
    seen = [finding for finding in findings(config, [file]) if finding.subject == "manifests"]
    assert seen == [Finding("manifests", Level.OK, "0 Services of type LoadBalancer")]
    gone = str(next(each for each in findings(config, [tmp_path / "gone"]) if each.subject == "manifests"))
    assert gone == f"FAIL  manifests: {tmp_path}/gone: there is no such file or folder"


def test_fields_that_a_server_did_not_keep_are_findings_but_those_of_a_newer_api_are_none(tmp_path: Path) -> None:
    applied = {"spec": {"type": "LoadBalancer", "ofTomorrow": 1, **{f"wrong{number}": 1 for number in range(3)}}}
    item: dict[str, Any] = {
        "metadata": {"name": "a", "namespace": "b", "annotations": {LAST_APPLIED: json.dumps(applied)}},
        "spec": {"type": "LoadBalancer", "ofTomorrow": 1},
    }
    annotations: tuple[object, ...] = ({LAST_APPLIED: "["}, {LAST_APPLIED: "[" * 100000}, [], 5)
    strange = [{**item, "metadata": {**item["metadata"], "annotations": each}} for each in annotations]
    other = {**item, "spec": {"type": "ClusterIP"}}
    answer = {"metadata": {"resourceVersion": "1"}, "items": [*strange, 5, {}, *[item] * 4, other]}
    with answering(json.dumps(answer).encode()) as server:
        seen = [finding for finding in findings(configuration(tmp_path, server)) if finding.subject == "Service"]
    assert {finding.level for finding in seen} == {Level.FAIL}
    assert str(seen[0]) == "FAIL  Service: b/a: unknown field spec.wrong0; the API server did not keep it"
    assert str(seen[-1]) == "FAIL  Service: … and 2 more such fields"
    assert not any("ofTomorrow" in str(finding) for finding in seen)
    assert [removed(each, "Service").texts for each in strange] == [()] * 4


def test_pools_of_a_namespace_that_the_nft_named_before_are_not_said_to_be_in_the_new_one() -> None:
    pool = Pool("old", "IPAddressPool metallb-system/old", (parse_range("192.0.2.0/24"),), advertised=True)
    *_, finding = _guarding(Config(), MetalLBConfig((pool,)), (), "elsewhere", "looked")
    assert finding.message == "1 in metallb-system: old"


def test_large_config_maps_beside_metallbs_do_not_hide_its_pools(tmp_path: Path) -> None:
    """With the right to read all of them, a page of the usual size can exceed the limit of an answer."""

    class Server:
        def request(self, _method: str, path: str, query: dict[str, str]) -> object:
            if not path.endswith("/configmaps"):
                raise ApiError("404", 404)
            if int(query["limit"]) > 50:
                raise TooLargeError("the answer is larger than 67108864 bytes")
            text = "address-pools: [{name: a, protocol: bgp, addresses: [192.0.2.0/24]}]"
            metadata = {"namespace": "metallb-system", "name": "config"}
            return {"metadata": {"resourceVersion": "1"}, "items": [{"metadata": metadata, "data": {"config": text}}]}

    server: Any = Server()
    known, rejections = known_of_cluster(server, Config(state=tmp_path), None)
    assert rejections == ()
    assert known is not None
    assert [pool.name for pool in known.pools] == ["a"]
