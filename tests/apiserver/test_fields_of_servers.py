"""The tables for files against a real API server: what it accepts is right, and what it refuses is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nftsync.cluster.api import Api
from nftsync.objects.fields import LAST_APPLIED, SHAPES, complaints, recognize
from nftsync.objects.names import KINDS
from tests.apiserver.client import RefusedError
from tests.apiserver.harness import NFTS, ApiServer

SERVICES = "/api/v1/namespaces/default/services"
STRICT = {"dryRun": "All", "fieldValidation": "Strict"}
SPEC = {"type": "LoadBalancer", "ports": [{"port": 80}]}

# Parts of a Service and of an Nft, merged into a right one. None of them is wrong in another way.
SERVICE_PARTS: list[dict[str, Any]] = [
    {},
    {"spec": {**SPEC, "loadBalancerSourceRanges": ["192.0.2.0/24"]}},
    {"spec": {**SPEC, "loadBalancerSourceranges": ["192.0.2.0/24"]}},
    {"spec": {**SPEC, "loadbalancerSourceRanges": ["192.0.2.0/24"]}},
    {"loadBalancerSourceRanges": ["192.0.2.0/24"]},
    {"spec": {**SPEC, "ports": [{"port": 80, "targetPort": 8080, "protocol": "UDP", "appProtocol": "x", "name": "a"}]}},
    {"spec": {**SPEC, "ports": [{"port": 80, "targetport": 8080}]}},
    {"spec": {**SPEC, "ports": [{"port": 80, "Protocol": "UDP"}]}},
    {"spec": {**SPEC, "type": "loadBalancer"}},
    {"spec": {**SPEC, "type": "NodePort"}},
    {"spec": {**SPEC, "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 9}}}},
    {"spec": {**SPEC, "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSecond": 9}}}},
    {"spec": {**SPEC, "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "ipFamilies": ["IPv4"]}},
    {"spec": {**SPEC, "loadBalancerClass": "a.b/c", "allocateLoadBalancerNodePorts": False, "externalIPs": []}},
    {
        "spec": {
            **SPEC,
            "selector": {"any": "x"},
            "publishNotReadyAddresses": True,
            "trafficDistribution": "PreferClose",
        }
    },
    {"spec": {**SPEC, "selectors": {"any": "x"}}},
    {"metadata": {"name": "a", "annotations": {"any": "x"}, "labels": {"any": "x"}, "finalizers": ["a.b/c"]}},
    {"metadata": {"name": "a", "annotation": {"any": "x"}}},
    {"metadata": {"name": "a", "ratelimit": "1/second"}},
    {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}, "conditions": []}},
    {"status": {"loadbalancer": {}}},
    {"status": {"loadBalancer": {"ingress": [{"addr": "192.0.2.1"}]}}},
    {"status": {"ingress": []}},
]
NFT_PARTS: list[dict[str, Any]] = [
    {},
    {"spec": {"public_nic": "eth0", "enable-ssh": False}},
    {"spec": {"public_nic": "eth0", "enable_ssh": False}},
    {"spec": {"public_nic": "eth0", "public_nics": ["eth1"], "inside_nics": ["eth2"], "metallb-namespace": "x"}},
    {"spec": {"public_nic": "eth0", "metallb_namespace": "x"}},
    {"enable_ssh": False},
    {"metadata": {"name": "a", "namespce": "x"}},
]


def body(kind: str, part: dict[str, Any]) -> dict[str, Any]:
    spec = SPEC if kind == "Service" else {"public_nic": "eth0"}
    return {"apiVersion": KINDS[kind].api_version, "kind": kind, "metadata": {"name": "a"}, "spec": spec, **part}


def knows_field_validation(server: ApiServer) -> bool:
    version = server.admin.get("/version")
    if int(version["minor"].rstrip("+")) >= 25:
        return True
    print(f"{version['gitVersion']} does not know fieldValidation: it accepts unknown fields")
    return False


@pytest.mark.parametrize(
    ("kind", "part"),
    [*(("Service", part) for part in SERVICE_PARTS), *(("Nft", part) for part in NFT_PARTS)],
    ids=lambda value: str(value)[:60],
)
def test_an_object_of_a_file_is_refused_if_a_strict_server_refuses_it(
    apiserver: ApiServer, kind: str, part: dict[str, Any]
) -> None:
    raw = body(kind, part)
    try:
        apiserver.admin.post(SERVICES if kind == "Service" else NFTS, raw, STRICT)
        refusal = ""
    except RefusedError as refused:
        refusal = refused.message
    texts = complaints(raw, kind).texts
    if knows_field_validation(apiserver):
        assert bool(texts) == bool(refusal), (texts, refusal)
    else:
        assert texts or not refusal, refusal


@pytest.mark.parametrize("kind", ["Service", "ConfigMap"])
def test_no_field_that_this_server_knows_is_refused(apiserver: ApiServer, kind: str) -> None:
    definitions = apiserver.admin.get("/openapi/v2")["definitions"]
    schema = {"$ref": f"#/definitions/io.k8s.api.core.v1.{kind}"}
    places = list(known(definitions, schema, SHAPES[kind], ()))
    assert len(places) > 15, "it has the metadata at least"
    assert [place for place in places if complaints(built(place), kind).texts] == []


def test_no_kind_that_this_server_serves_is_a_misspelling(apiserver: ApiServer) -> None:
    core = apiserver.admin.get("/api/v1")["resources"]
    served = [("v1", each["kind"]) for each in core if "/" not in each["name"]]  # a subresource's kind is of any group
    for group in apiserver.admin.get("/apis")["groups"]:
        for version in group["versions"]:
            resources = apiserver.admin.get(f"/apis/{version['groupVersion']}")["resources"]
            served += [(version["groupVersion"], each["kind"]) for each in resources]
    assert ("v1", "Service") in served
    for version, kind in served:
        found = recognize({"apiVersion": version, "kind": kind, "metadata": {"name": "a"}})
        assert found is None or found.complaint == "", (version, kind)


# --- what a server has removed ------------------------------------------------------------------------


def applied(raw: dict[str, Any]) -> dict[str, Any]:
    """The object with the annotation that `kubectl apply --validate=false` writes."""
    annotations = {LAST_APPLIED: json.dumps(raw)}
    return {**raw, "metadata": {**raw["metadata"], "annotations": annotations}}


@pytest.fixture
def pruned(private_apiserver: ApiServer) -> ApiServer:
    """A server that has removed a setting and a source range without a word."""
    private_apiserver.issue_token()
    nft = body("Nft", {"metadata": {"name": "nft"}, "spec": {"public_nic": "eth0", "enable-ssh": False}})
    private_apiserver.admin.post(NFTS, applied(nft))
    service = body("Service", {"spec": {**SPEC, "loadBalancerSourceranges": ["192.0.2.0/24"]}})
    private_apiserver.admin.post(SERVICES, applied(service))
    assert "enable-ssh" not in private_apiserver.admin.get(f"{NFTS}/nft")["spec"]
    return private_apiserver


def test_check_names_the_fields_that_the_server_did_not_keep(pruned: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "nftsync.toml").write_text(f'kubeconfig = "{pruned.kubeconfig()}"\npaths.state = "{tmp_path}"\n')
    done = command("check", "--config", str(tmp_path / "nftsync.toml"))
    assert done.returncode == 1, done.stderr
    setting = "arbf-operators/nft: unknown field spec.enable-ssh (did you mean spec.enable_ssh?)"
    ranges = "unknown field spec.loadBalancerSourceranges (did you mean spec.loadBalancerSourceRanges?)"
    lines = done.stdout.splitlines()
    assert f"FAIL  Nft: {setting}; the API server did not keep it" in lines, done.stdout
    assert f"FAIL  Service: default/a: {ranges}; the API server did not keep it" in lines, done.stdout
    assert any(line.startswith("ok    Nft arbf-operators/nft: public_nic eth0") for line in lines), "the rest counts"


def test_bootstrap_says_what_the_server_did_not_keep(pruned: ApiServer) -> None:
    done = command("bootstrap", "--kubeconfig", str(pruned.kubeconfig("admin")))
    assert done.returncode == 0, done.stderr
    assert "exists, unchanged; unknown field spec.enable-ssh (did you mean spec.enable_ssh?)" in done.stderr


def test_the_warnings_of_a_server_reach_the_caller(apiserver: ApiServer) -> None:
    said: list[str] = []
    with closing(Api(apiserver.kubeconfig("admin"))) as api:
        api.warned = said.append
        raw = body("Service", {"spec": {**SPEC, "loadBalancerSourceranges": []}})
        api.request("POST", SERVICES, {"dryRun": "All", "fieldValidation": "Warn"}, raw)
    expected = ['unknown field "spec.loadBalancerSourceranges"'] if knows_field_validation(apiserver) else []
    assert said == expected


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "nftsync", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def known(
    definitions: dict[str, Any], schema: dict[str, Any], shape: Any, path: tuple[object, ...]
) -> Iterator[tuple[object, ...]]:
    """The path of each field of a schema, as deep as our table goes; 0 stands for an entry of a list."""
    if reference := schema.get("$ref"):
        schema = definitions[reference.removeprefix("#/definitions/")]
    if isinstance(shape, list) and "items" in schema:
        yield from known(definitions, schema["items"], shape[0], (*path, 0))
    elif isinstance(shape, dict):
        for name, inner in schema.get("properties", {}).items():
            yield (*path, name)
            yield from known(definitions, inner, shape.get(name), (*path, name))


def built(path: tuple[object, ...]) -> dict[str, Any]:
    """An object with nothing but the field at a path."""
    value: Any = None
    for step in reversed(path):
        value = [value] if step == 0 else {step: value}
    assert isinstance(value, dict)
    return value
