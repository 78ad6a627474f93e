"""The other ways in which MetalLB says its pools, in a real API server with real RBAC."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from nftsync.cli import bootstrap
from nftsync.cli.bootstrap import Manifest
from nftsync.cluster.api import Api
from nftsync.cluster.outbox import Reporter
from nftsync.objects.names import Name, ObjectRef
from nftsync.objects.nft import parse_nft
from nftsync.report.events import EventReason, Notice
from tests.apiserver.harness import MANIFESTS, NFTS, ApiServer, Programs, eventually
from tests.apiserver.router import Router, fresh_router, running_cluster
from tests.lab.lab import Lab

NAMESPACE = "metallb-system"
IPPOOLS, OLD_POOLS, STATES = "ipaddresspools", "addresspools", "configurationstates"
CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
ROLE = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/roles/nftsync"
ONE, TWO, THREE = "172.30.254.1", "172.30.254.17", "172.30.254.33"


def pool_of(address: str) -> str:
    """The /28 with an address."""
    return f"{address}/28"


def definition(kind: str, plural: str, *versions: str) -> dict[str, Any]:
    """A kind whose first version is stored, with any field."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    served = [
        {"name": version, "served": True, "storage": version == versions[0], "schema": schema} for version in versions
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.metallb.io"},
        "spec": {
            "group": "metallb.io",
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "scope": "Namespaced",
            "versions": served,
        },
    }


def path(plural: str, version: str = "v1beta1") -> str:
    return f"/apis/metallb.io/{version}/namespaces/{NAMESPACE}/{plural}"


def metallbs(kind: str, name: str, version: str = "v1beta1", /, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": f"metallb.io/{version}", "kind": kind, "metadata": {"name": name}, **fields}


def shipped_role() -> dict[str, Any]:
    documents = yaml.safe_load_all((MANIFESTS / "rbac.yaml").read_text(encoding="utf-8"))
    role: dict[str, Any] = next(each for each in documents if each["kind"] == "Role")
    return role


def config_map(name: str, address: str, *, labelled: bool = False) -> dict[str, Any]:
    pools = [{"name": name, "protocol": "bgp", "addresses": [pool_of(address)]}]
    labels = {"app.kubernetes.io/name": "metallb"} if labelled else {}
    return {"metadata": {"name": name, "labels": labels}, "data": {"config": json.dumps({"address-pools": pools})}}


@pytest.fixture(scope="module")
def cluster(programs: Programs) -> Iterator[tuple[Lab, ApiServer]]:
    with running_cluster(programs) as running:
        yield running


@pytest.fixture
def router(cluster: tuple[Lab, ApiServer], tmp_path: Path) -> Iterator[Router]:
    """A router, the shipped rights, and no kind or ConfigMap of MetalLB's."""
    lab, server = cluster
    for plural in (IPPOOLS, OLD_POOLS, STATES):
        server.delete_kind(f"{plural}.metallb.io")
    for each in server.admin.get(CONFIG_MAPS)["items"]:
        server.admin.delete(f"{CONFIG_MAPS}/{each['metadata']['name']}")
    server.apply_object(shipped_role())
    with fresh_router(lab, server, tmp_path) as running:
        for number, address in enumerate((ONE, TWO, THREE)):
            running.add(f"s{number}", address)
        yield running


def only_open(router: Router, *addresses: str) -> None:
    def found() -> list[str]:
        return [address for address in (ONE, TWO, THREE) if router.lab.arrives("tcp", address, 80)]

    eventually(lambda: found() == list(addresses), f"open should be {addresses}")


@pytest.mark.parametrize("versions", [("v1beta1", "v1alpha1"), ("v1alpha1",)])
def test_address_pools_of_each_version_decide_alone_and_beside_ip_address_pools(
    router: Router, versions: tuple[str, ...]
) -> None:
    router.server.apply_object(definition("AddressPool", OLD_POOLS, *versions))
    spec = {"protocol": "bgp", "addresses": [pool_of(ONE)]}
    router.server.admin.post(path(OLD_POOLS, versions[-1]), metallbs("AddressPool", "old", versions[-1], spec=spec))
    router.start()
    only_open(router, ONE)
    assert "AddressPool metallb-system/old" in router.run("pools").stdout
    router.server.apply_object(definition("IPAddressPool", IPPOOLS, "v1beta1"))
    router.server.admin.post(path(IPPOOLS), metallbs("IPAddressPool", "new", spec={"addresses": [pool_of(TWO)]}))
    only_open(router, ONE, TWO)
    router.server.admin.patch(f"{path(OLD_POOLS, versions[0])}/old", {"spec": {"addresses": [pool_of(THREE)]}})
    only_open(router, TWO, THREE)
    router.server.admin.delete(f"{path(OLD_POOLS, versions[0])}/old")
    only_open(router, TWO)


def test_rights_of_an_older_version_go_on_working(router: Router) -> None:
    role = shipped_role()
    role["rules"][0]["resources"] = ["ipaddresspools", "bgpadvertisements", "bgppeers"]
    router.server.admin.put(ROLE, role)
    for kind, plural in (("IPAddressPool", IPPOOLS), ("AddressPool", OLD_POOLS), ("ConfigurationState", STATES)):
        router.server.apply_object(definition(kind, plural, "v1beta1"))
    spec = {"addresses": [pool_of(ONE)]}
    router.server.admin.post(path(IPPOOLS), metallbs("IPAddressPool", "new", spec=spec))
    router.start()
    only_open(router, ONE)
    assert json.loads(router.run("status", "--json").stdout)["stale"] == {}
    said = router.run("check").stdout
    for plural in (OLD_POOLS, STATES):
        assert f"warn  RBAC: may not list or watch {plural} in metallb-system: run nftsync bootstrap" in said


def test_a_config_map_of_another_name_is_read_where_the_nft_names_it_and_bootstrap_gives_the_right(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    router.server.admin.post(CONFIG_MAPS, config_map("metallb", ONE, labelled=True))
    router.start()
    only_open(router, ONE, TWO, THREE)
    assert "looked for IPAddressPool, AddressPool and the ConfigMap config" in router.run("check").stdout
    router.server.admin.patch(f"{NFTS}/nft", {"spec": {"metallb-configmap": "metallb"}})
    eventually(
        lambda: "may not list or watch configmaps metallb in metallb-system" in router.run("check").stdout,
        "the check names the right that is missing",
    )
    monkeypatch.setattr(bootstrap, "_token", lambda _api, _secret: "token")
    router.server.admin.delete(ROLE)  # the tests' own client owns its fields
    told: list[str] = []
    bootstrap.bootstrap(router.server.kubeconfig("admin"), told.append)
    assert [line for line in told if line.startswith("Role ")] == ["Role metallb-system/nftsync: created"]
    only_open(router, ONE)
    assert (
        "ok    MetalLB's pools: 1 in metallb-system: metallb (ConfigMap metallb-system/metallb)"
        in router.run("check").stdout
    )
    told.clear()
    bootstrap.bootstrap(router.server.kubeconfig("admin"), told.append)
    assert [line for line in told if "Role" in line and "exists, correct" not in line] == []


def test_a_config_map_is_found_by_itself_with_the_right_to_read_all_and_strangers_do_not_replace_it(
    router: Router,
) -> None:
    role = shipped_role()
    del role["rules"][1]["resourceNames"]
    router.server.admin.put(ROLE, role)
    router.server.admin.post(CONFIG_MAPS, config_map("metallb", ONE, labelled=True))
    router.start()
    only_open(router, ONE)
    router.server.admin.post(CONFIG_MAPS, config_map("another", TWO))
    router.server.admin.post(CONFIG_MAPS, {"metadata": {"name": "a"}, "data": {"config": "no: pools"}})
    router.add("s9", "172.30.254.2")  # a sync after them
    router.opens("172.30.254.2")
    only_open(router, ONE)
    router.server.admin.post(CONFIG_MAPS, config_map("config", THREE))
    eventually(lambda: "each of config, metallb can be MetalLB's" in router.run("status").stdout, "both are named")
    only_open(router, ONE)
    router.server.admin.patch(f"{NFTS}/nft", {"spec": {"metallb-configmap": "config"}})
    only_open(router, THREE)


def test_what_metallb_says_of_its_configuration_is_told_and_kinds_that_go_are_told(router: Router) -> None:
    router.server.apply_object(definition("IPAddressPool", IPPOOLS, "v1beta1"))
    router.server.apply_object(definition("ConfigurationState", STATES, "v1beta1"))
    spec = {"addresses": [pool_of(ONE)]}
    router.server.admin.post(path(IPPOOLS), metallbs("IPAddressPool", "new", spec=spec))
    condition = {"type": "x", "status": "False", "reason": "ConfigurationError", "message": "no such community"}
    status = {"conditions": [condition]}
    router.server.admin.post(path(STATES), metallbs("ConfigurationState", "controller", status=status))
    router.start()
    only_open(router, ONE)
    words = "MetalLB refuses its configuration: 'no such community'"
    eventually(lambda: words in router.run("status").stdout, "the status says it")
    assert words in router.run("check").stdout
    assert words in router.run("pools").stderr
    assert router.metric('nftsync_config_stale{source="pools"}') == 0

    router.server.admin.delete(f"{path(IPPOOLS)}/new")
    gone = "there is no IPAddressPool any more; the last good pools stay"
    eventually(lambda: gone in router.run("status").stdout, "the last pool is gone")
    assert router.metric('nftsync_config_stale{source="pools"}') == 1
    router.server.delete_kind(f"{IPPOOLS}.metallb.io")
    lost = "nftsync cannot read this kind in the cluster, or all of it in the files; its last good objects stay"
    eventually(lambda: lost in router.run("status").stdout, "the kind is gone")
    assert lost in router.run("pools").stderr
    assert f"warn  MetalLB's pools: IPAddressPool metallb-system: missing_pools: {lost}" in router.run("check").stdout

    def stale() -> dict[str, Any]:
        (resource,) = router.server.admin.get(NFTS)["items"]
        conditions = (resource.get("status") or {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == "Stale"), {})

    eventually(lambda: stale().get("status") == "True" and lost in stale()["message"], "the condition says it")
    only_open(router, ONE)


def test_an_event_in_a_namespace_that_is_gone_is_dropped_without_a_word(
    router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[str] = []
    observer: Any = SimpleNamespace(requested=lambda *_: None, sent_event=sent.append)
    services = router.server.admin.get("/api/v1/namespaces/default/services")["items"]
    uid = services[0]["metadata"]["uid"]
    with closing(Api(router.server.kubeconfig())) as api:
        reporter = Reporter(api, Name("arbf-operators", "nft"), "edge1", lambda: None, observer)
        about = (ObjectRef("Service", "nowhere/web", "u"), ObjectRef("Service", "default/s0", uid))
        reporter.tell(Notice(each, EventReason.CLOSED, "closed") for each in about)
        reporter.step()
    assert sent == ["failed", "sent", "dropped"]
    assert caplog.text == ""


def test_bootstrap_gives_the_rights_in_the_namespace_that_the_nft_names() -> None:
    manifests = [Manifest(raw) for raw in yaml.safe_load_all(bootstrap.text()) if raw]
    spec = parse_nft(
        {"metadata": {"name": "nft"}, "spec": {"public_nic": "a", "metallb-namespace": "lb", "metallb-configmap": "m"}},
        None,
    ).spec
    fitted = [bootstrap._fitted(manifest, spec) for manifest in manifests]
    named = {str(manifest) for manifest in fitted}
    assert {"Namespace lb", "Role lb/nftsync", "RoleBinding lb/nftsync"} <= named
    assert not any("metallb-system" in name for name in named)
    (role,) = (manifest for manifest in fitted if manifest.kind == "Role")
    assert [rule.get("resourceNames") for rule in role.raw["rules"]] == [None, ["m"]]
