"""The shipped CRD and RBAC, as a real API server understands them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from nftsync.objects.names import Malformed
from nftsync.objects.nft import NftSpec, Nics, parse_nft, parse_nic
from tests.apiserver.client import Client, RefusedError, refusal_of
from tests.apiserver.conftest import Start
from tests.apiserver.harness import MANIFESTS, NAMESPACE, NFTS, ApiServer, eventually

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/nfts.nft.acnodal.com"
TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
DRY_RUN = {"dryRun": "All"}
NAMES = (f"nft-{number}" for number in itertools.count())

Create = Callable[..., dict[str, Any]]


def nft(spec: object, name: str = "nft", **metadata: object) -> dict[str, Any]:
    return {
        "apiVersion": "nft.acnodal.com/v1alpha1",
        "kind": "Nft",
        "metadata": {"name": name, "namespace": NAMESPACE, **metadata},
        "spec": spec,
    }


def old_resource() -> dict[str, Any]:
    """What the Ansible operator's users have in their clusters: its example, and the status that it wrote."""
    spec = {
        "public_nic": "enp1s0",
        "enable_dropall": False,
        "enable_ssh": True,
        "enable_bgp": True,
        "enable_rateshape": True,
    }
    resource = nft(spec, annotations={"ansible.operator-sdk/verbosity": "4"})
    finished = {"changed": 9, "completion": "2020-09-01T10:00:00.123456", "failures": 0, "ok": 21, "skipped": 3}
    resource["status"] = {
        "conditions": [
            {
                "type": "Running",
                "status": "True",
                "lastTransitionTime": "2020-09-01T09:59:00Z",
                "ansibleResult": finished,
            },
            {"type": "Failure", "status": "False"},
        ]
    }
    return resource


@pytest.fixture
def create(apiserver: ApiServer) -> Iterator[Create]:
    """Creates an Nft with this spec under a name of its own, and deletes it after the test."""
    names = []

    def create(spec: object, **metadata: object) -> dict[str, Any]:
        created: dict[str, Any] = apiserver.admin.post(NFTS, nft(spec, next(NAMES), **metadata))
        names.append(created["metadata"]["name"])
        return created

    yield create
    for name in names:
        apiserver.admin.delete(f"{NFTS}/{name}")


@pytest.fixture(scope="module")
def router(apiserver: ApiServer) -> Client:
    """The user whom the shipped RBAC makes."""
    return apiserver.client(apiserver.issue_token())


def refusal(apiserver: ApiServer, body: object) -> RefusedError:
    with pytest.raises(RefusedError) as refused:
        apiserver.admin.post(NFTS, body, DRY_RUN)
    return refused.value


# --- the schema ---------------------------------------------------------------------------------------


def test_the_crd_becomes_established_and_the_server_keeps_every_word_of_it(apiserver: ApiServer) -> None:
    stored = apiserver.admin.get(CRD)
    conditions = {each["type"]: each["status"] for each in stored["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}, "a structural schema, without complaints"
    shipped = yaml.safe_load((MANIFESTS / "crd.yaml").read_text(encoding="utf-8"))
    assert stored["spec"]["versions"] == shipped["spec"]["versions"]


def test_every_field_has_a_description() -> None:
    def undescribed(schema: dict[str, Any], path: str) -> Iterator[str]:
        if "description" not in schema:
            yield path
        for name, inner in schema.get("properties", {}).items():
            yield from undescribed(inner, f"{path}.{name}")
        if "items" in schema:
            yield from undescribed(schema["items"], f"{path}[]")

    shipped = yaml.safe_load((MANIFESTS / "crd.yaml").read_text(encoding="utf-8"))
    assert list(undescribed(shipped["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "")) == []


def test_what_is_absent_gets_the_defaults_that_the_daemon_assumes(create: Create) -> None:
    created = create({"public_nic": "enp1s0"})
    assert created["spec"] == {
        "public_nic": "enp1s0",
        "enable_bgp": True,
        "enable_dropall": True,
        "enable_rateshape": True,
        "enable_ssh": True,
        "metallb-namespace": "metallb-system",
    }
    assert parse_nft(created, None).spec == NftSpec(Nics(("enp1s0",)))


def test_what_is_present_stays(create: Create) -> None:
    spec = {
        "public_nic": "br0.100",
        "public_nics": ["enp2s0"],
        "inside_nics": ["enp6s0"],
        "enable_bgp": False,
        "enable_dropall": False,
        "enable_rateshape": False,
        "enable_ssh": False,
        "metallb-namespace": "lb",
    }
    assert create(spec)["spec"] == spec


def test_a_field_that_the_schema_does_not_know_is_dropped_and_harms_nothing(create: Create) -> None:
    assert "colour" not in create({"public_nic": "enp1s0", "colour": "red"})["spec"]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (None, "spec"),
        ({}, "public_nic"),
        ({"public_nics": []}, "public_nic"),
        ({"public_nic": "eth0", "public_nics": ["eth1", "lo"]}, "spec.public_nics"),
        ({"public_nic": "eth0", "inside_nics": ["eth1", "eth*"]}, "spec.inside_nics"),
        ({"public_nic": None}, "spec.public_nic"),
        ({"public_nic": 1}, "spec.public_nic"),
        ({"public_nic": ""}, "spec.public_nic"),
        ({"public_nic": "eth*"}, "spec.public_nic"),
        ({"public_nic": "a" * 16}, "spec.public_nic"),
        ({"public_nic": "eth0\n"}, "spec.public_nic"),
        *[({"public_nic": "eth0", switch: "true"}, f"spec.{switch}") for switch in ("enable_bgp", "enable_ssh")],
        *[({"public_nic": "eth0", switch: 1}, f"spec.{switch}") for switch in ("enable_dropall", "enable_rateshape")],
        ({"public_nic": "eth0", "metallb-namespace": "Metal_LB"}, "spec.metallb-namespace"),
        ({"public_nic": "eth0", "metallb-namespace": ""}, "spec.metallb-namespace"),
        ({"public_nic": "eth0", "metallb-namespace": "a" * 64}, "spec.metallb-namespace"),
    ],
)
def test_a_bad_value_is_refused_and_the_answer_names_the_field(apiserver: ApiServer, spec: object, field: str) -> None:
    refused = refusal(apiserver, nft(spec))
    assert refused.status == 422
    assert field in refused.message


def test_a_resource_without_a_spec_is_refused(apiserver: ApiServer) -> None:
    body = nft({})
    del body["spec"]
    assert refusal(apiserver, body).status == 422


@pytest.mark.parametrize(
    "name",
    [
        *("enp1s0", "eth0.100", "br-lan", "wg_0", "a" * 15, "a" * 16, "veth@if2", "eth0:1", "a+b=c"),
        *("", ".", "..", "lo", "-a", "eth*", "eth/0", "eth 0", "eth0\n", 'a"b', "ëth0", "eth0;", "eth０"),
    ],
)
def test_the_crd_and_the_daemon_agree_about_a_name_of_an_interface(apiserver: ApiServer, name: str) -> None:
    def daemon_accepts() -> bool:
        try:
            return parse_nic(name) == name
        except Malformed:
            return False

    refused = refusal_of(lambda: apiserver.admin.post(NFTS, nft({"public_nic": name}), DRY_RUN))
    assert refused == (None if daemon_accepts() else 422)


def test_the_example_is_accepted_and_holds_the_defaults(apiserver: ApiServer) -> None:
    example = yaml.safe_load((MANIFESTS / "nft.yaml").read_text(encoding="utf-8"))
    accepted = apiserver.admin.post(NFTS, example, DRY_RUN)
    assert accepted["spec"] == example["spec"]
    assert parse_nft(accepted, None).spec == NftSpec(Nics(("enp1s0",)))


# --- the Ansible operator's resources -----------------------------------------------------------------


def test_a_resource_of_the_old_operator_is_accepted_with_its_status(apiserver: ApiServer, create: Create) -> None:
    old = old_resource()
    name = create(old["spec"], annotations=old["metadata"]["annotations"])["metadata"]["name"]
    accepted = apiserver.admin.patch(f"{NFTS}/{name}/status", {"status": old["status"]})
    assert parse_nft(accepted, None).spec == NftSpec(Nics(("enp1s0",)), enable_dropall=False)
    conditions = [{key: each[key] for key in each if key != "ansibleResult"} for each in old["status"]["conditions"]]
    assert accepted["status"] == {"conditions": conditions}


def test_the_crd_takes_the_place_of_the_old_operators_and_its_resource_lives_on(start_apiserver: Start) -> None:
    server = start_apiserver()
    server.apply(MANIFESTS / "rbac.yaml")
    server.apply_object(_OLD_CRD if _serves_v1beta1(server) else _in_v1(_OLD_CRD))
    server.apply_object(old_resource())
    server.admin.patch(f"{NFTS}/nft/status", {"status": old_resource()["status"]})

    server.apply(MANIFESTS / "crd.yaml")

    def with_defaults() -> dict[str, Any] | None:
        found: dict[str, Any] = server.admin.get(f"{NFTS}/nft")
        return found if "metallb-namespace" in found["spec"] else None

    found = eventually(with_defaults, "the new schema is not in force")
    assert parse_nft(found, None).spec == NftSpec(Nics(("enp1s0",)), enable_dropall=False)
    router = server.client(server.issue_token())
    reported = router.apply(f"{NFTS}/nft/status", _report("edge-1"), "edge-1")
    assert [each["type"] for each in reported["status"]["conditions"]] == ["Running", "Failure"]
    assert [each["name"] for each in reported["status"]["routers"]] == ["edge-1"]


_OLD_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1beta1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "nfts.nft.acnodal.com"},
    "spec": {
        "group": "nft.acnodal.com",
        "names": {"kind": "Nft", "listKind": "NftList", "plural": "nfts", "singular": "nft"},
        "scope": "Namespaced",
        "subresources": {"status": {}},
        "validation": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
        "versions": [{"name": "v1alpha1", "served": True, "storage": True}],
    },
}


def _serves_v1beta1(server: ApiServer) -> bool:
    """Whether it knows the version in which the old operator's CRD was written."""
    return refusal_of(lambda: server.admin.get("/apis/apiextensions.k8s.io/v1beta1")) is None


def _in_v1(definition: dict[str, Any]) -> dict[str, Any]:
    """The same CRD as a cluster shows it that has been upgraded since."""
    spec = dict(definition["spec"])
    parts = {"schema": spec.pop("validation"), "subresources": spec.pop("subresources")}
    spec["versions"] = [{**version, **parts} for version in spec["versions"]]
    return {**definition, "apiVersion": "apiextensions.k8s.io/v1", "spec": spec}


# --- status -------------------------------------------------------------------------------------------


def _report(name: str) -> dict[str, Any]:
    """What a router applies to the status."""
    condition = {
        "type": "Ready",
        "status": "True",
        "reason": "Applied",
        "message": "the kernel has the ruleset",
        "lastTransitionTime": "2024-05-01T10:00:00Z",
        "observedGeneration": 1,
    }
    entry = {
        "name": name,
        "version": "0.1.0",
        "hash": "5f1c",
        "observedGeneration": 1,
        "lastChange": "2024-05-01T10:00:00Z",
        "services": 5,
        "pinholes": 7,
        "rejected": 0,
        "conditions": [condition],
    }
    return {"apiVersion": "nft.acnodal.com/v1alpha1", "kind": "Nft", "status": {"routers": [entry]}}


def test_the_status_is_written_only_through_its_subresource_and_the_spec_only_outside_it(
    apiserver: ApiServer, create: Create
) -> None:
    path = f"{NFTS}/{create({'public_nic': 'enp1s0'})['metadata']['name']}"
    both = {"spec": {"enable_ssh": False}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}

    through_status = apiserver.admin.patch(f"{path}/status", both)
    assert through_status["status"] == both["status"]
    assert through_status["spec"]["enable_ssh"] is True
    assert through_status["metadata"]["generation"] == 1, "a status is no new generation"

    both["status"] = {"conditions": []}
    outside = apiserver.admin.patch(path, both)
    assert outside["status"] == through_status["status"]
    assert outside["spec"]["enable_ssh"] is False
    assert outside["metadata"]["generation"] == 2


def test_the_status_holds_all_that_a_router_reports(apiserver: ApiServer, create: Create) -> None:
    name = create({"public_nic": "enp1s0"})["metadata"]["name"]
    report = _report("edge-1")
    assert apiserver.admin.patch(f"{NFTS}/{name}/status", report)["status"] == report["status"]


def test_routers_that_apply_their_own_entry_leave_those_of_others_alone(router: Client, create: Create) -> None:
    path = f"{NFTS}/{create({'public_nic': 'enp1s0'})['metadata']['name']}/status"
    for name in ("edge-1", "edge-2"):
        router.apply(path, _report(name), name)
    changed = _report("edge-1")
    changed["status"]["routers"][0]["services"] = 6
    status = router.apply(path, changed, "edge-1")["status"]
    assert [(each["name"], each["services"]) for each in status["routers"]] == [("edge-1", 6), ("edge-2", 5)]


@pytest.mark.parametrize(
    "status",
    [
        {"conditions": [{"type": "Ready"}]},
        {"conditions": [{"type": "Ready", "status": "Maybe"}]},
        {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "yesterday"}]},
        {"routers": [{"hash": "5f1c"}]},
        {"routers": [{"name": "edge-1", "services": -1}]},
    ],
)
def test_a_status_that_makes_no_sense_is_refused(apiserver: ApiServer, create: Create, status: object) -> None:
    name = create({"public_nic": "enp1s0"})["metadata"]["name"]
    with pytest.raises(RefusedError) as refused:
        apiserver.admin.patch(f"{NFTS}/{name}/status", {"status": status})
    assert refused.value.status == 422


def test_a_table_shows_whether_it_is_ready_and_how_much_is_open_and_refused(
    apiserver: ApiServer, create: Create
) -> None:
    name = create({"public_nic": "enp1s0", "enable_dropall": False})["metadata"]["name"]
    conditions = [{"type": "Running", "status": "True"}, {"type": "Ready", "status": "False"}]
    status = {"conditions": conditions, "services": 3, "pinholes": 5, "rejected": 1}
    apiserver.admin.patch(f"{NFTS}/{name}/status", {"status": status})
    table = apiserver.admin.get(f"{NFTS}/{name}", accept=TABLE)
    wide = {column["name"] for column in table["columnDefinitions"] if column["priority"] > 0}
    row = dict(zip([column["name"] for column in table["columnDefinitions"]], table["rows"][0]["cells"], strict=True))
    assert row.pop("Age")
    assert row == {
        "Name": name, "Ready": "False", "Services": 3, "Pinholes": 5, "Rejected": 1,
        "NIC": "enp1s0", "Dropall": False, "Rateshape": True,
    }  # fmt: skip
    assert wide == {"NIC", "Dropall", "Rateshape"}


# --- rights -------------------------------------------------------------------------------------------

SERVICE = {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}
EVENT = {
    "metadata": {"name": "web.1"},
    "eventTime": "2024-05-01T10:00:00.000000Z",
    "reportingController": "nft.acnodal.com/nftsync",
    "reportingInstance": "edge-1",
    "action": "Sync",
    "reason": "InvalidRatelimit",
    "type": "Warning",
    "regarding": {"kind": "Service", "namespace": "default", "name": "web", "apiVersion": "v1"},
    "note": "a sentence",
}
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
NFT_PATH = "/apis/nft.acnodal.com/v1alpha1/nfts"


@pytest.mark.parametrize("path", ["/api/v1/services", NFT_PATH, NFTS])
def test_the_router_may_list_and_watch(router: Client, create: Create, path: str) -> None:
    create({"public_nic": "enp1s0"})
    listed = router.get(path, {"limit": "500"})
    assert listed["items"]
    # A watch begins with what the server's cache holds, which can be a little older than the list.
    added = ("ADDED", listed["items"][0]["metadata"]["name"])
    assert any((event["type"], event["object"]["metadata"].get("name")) == added for event in router.watch(path))


def test_the_router_may_patch_the_status_of_an_nft(router: Client, create: Create) -> None:
    name = create({"public_nic": "enp1s0"})["metadata"]["name"]
    assert router.patch(f"{NFTS}/{name}/status", _report("edge-1"))["status"]["routers"]


def test_the_router_may_write_an_event_and_repeat_it(apiserver: ApiServer, router: Client) -> None:
    name = router.post(EVENTS, EVENT)["metadata"]["name"]
    series = {"count": 2, "lastObservedTime": "2024-05-01T10:01:00.000000Z"}
    assert router.patch(f"{EVENTS}/{name}", {"series": series})["series"]["count"] == 2
    apiserver.admin.delete(f"{EVENTS}/{name}")


FORBIDDEN: dict[str, Callable[[Client], object]] = {
    "list Secrets": lambda user: user.get("/api/v1/secrets"),
    "list Secrets of its own namespace": lambda user: user.get(f"/api/v1/namespaces/{NAMESPACE}/secrets"),
    "list ConfigMaps": lambda user: user.get("/api/v1/configmaps"),
    "list Nodes": lambda user: user.get("/api/v1/nodes"),
    "get a Pod": lambda user: user.get("/api/v1/namespaces/default/pods/web"),
    "get a Service": lambda user: user.get("/api/v1/namespaces/default/services/kubernetes"),
    "create a Service": lambda user: user.post("/api/v1/namespaces/default/services", SERVICE, DRY_RUN),
    "patch a Service": lambda user: user.patch("/api/v1/namespaces/default/services/kubernetes", {}, DRY_RUN),
    "patch a Service's status": lambda user: user.patch(
        "/api/v1/namespaces/default/services/kubernetes/status", {}, DRY_RUN
    ),
    "create an Nft": lambda user: user.post(NFTS, nft({"public_nic": "eth0"}), DRY_RUN),
    "patch an Nft's spec": lambda user: user.patch(f"{NFTS}/nft", {"spec": {"enable_dropall": False}}, DRY_RUN),
    "delete an Nft": lambda user: user.delete(f"{NFTS}/absent"),
    "list Events": lambda user: user.get("/apis/events.k8s.io/v1/events"),
    "get a CRD": lambda user: user.get(CRD),
}


@pytest.mark.parametrize("action", FORBIDDEN)
def test_the_router_may_not(apiserver: ApiServer, router: Client, action: str) -> None:
    assert refusal_of(lambda: FORBIDDEN[action](router)) == 403
    control = refusal_of(lambda: FORBIDDEN[action](apiserver.admin))
    assert control in (None, 404), "it is a request that an administrator may send"


def test_the_router_has_these_rights_and_no_others(router: Client) -> None:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": NAMESPACE},
    }
    rules = router.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review)["status"]["resourceRules"]
    rights = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if not resource.startswith("selfsubject")  # everybody may ask what they may, and whom to trust
        if resource != "clustertrustbundles"
    }
    assert rights == {
        ("", "services", "list"),
        ("", "services", "watch"),
        ("nft.acnodal.com", "nfts", "list"),
        ("nft.acnodal.com", "nfts", "watch"),
        ("nft.acnodal.com", "nfts/status", "patch"),
        ("events.k8s.io", "events", "create"),
        ("events.k8s.io", "events", "patch"),
    }
