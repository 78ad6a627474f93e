"""The fields and kinds that an API server knows: what is misspelt is found, and what is right is left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nftsync.objects.fields import LAST_APPLIED, SHAPES, complaints, near, recognize, removed
from nftsync.objects.names import KINDS
from nftsync.objects.nft import NftSpec, Nics, describe_spec
from tests.support import ROOT, json_values

CRD = ROOT / "packaging/kubernetes/crd.yaml"

# Every kind of Kubernetes 1.37's API with a group of its own, and kinds of others that look like ours.
FOREIGN = [
    *("v1 " + kind for kind in (
        "Binding", "ComponentStatus", "Endpoints", "Event", "LimitRange", "Namespace", "Node", "PersistentVolume",
        "PersistentVolumeClaim", "Pod", "PodTemplate", "ReplicationController", "ResourceQuota", "Secret",
        "ServiceAccount",
    )),
    *("apps/v1 " + kind for kind in ("ControllerRevision", "DaemonSet", "Deployment", "ReplicaSet", "StatefulSet")),
    *("networking.k8s.io/v1 " + kind for kind in (
        "IPAddress", "Ingress", "IngressClass", "NetworkPolicy", "ServiceCIDR",
    )),
    "discovery.k8s.io/v1 EndpointSlice", "batch/v1 Job", "batch/v1 CronJob", "events.k8s.io/v1 Event",
    "coordination.k8s.io/v1 Lease", "scheduling.k8s.io/v1 PriorityClass", "apiregistration.k8s.io/v1 APIService",
    *("metallb.io/v1beta1 " + kind for kind in (
        "BFDProfile", "Community", "L2Advertisement", "ServiceBGPStatus", "ServiceL2Status",
    )),
    "serving.knative.dev/v1 Service", "networking.istio.io/v1 ServiceEntry", "monitoring.coreos.com/v1 ServiceMonitor",
    "projectcalico.org/v3 BGPPeer", "crd.projectcalico.org/v1 BGPPeer", "network.kubesphere.io/v1alpha2 BgpPeer",
    "frrk8s.metallb.io/v1beta1 FRRConfiguration", "ipam.metal3.io/v1alpha1 IPPool", "purelb.io/v1 ServiceGroup",
    "kustomize.config.k8s.io/v1beta1 Kustomization", "example.com/v1 Nft", "multicluster.x-k8s.io/v1 ServiceImport",
]  # fmt: skip

WRONG = {  # apiVersion and kind, and the word that is meant
    "metallb.io/v9 IPAddressPool": "metallb.io/v1beta1",
    "v1 IPAddressPool": "metallb.io/v1beta1",
    "metallb.io IPAddressPool": "metallb.io/v1beta1",
    "metalb.io/v1beta1 BGPAdvertisement": "metallb.io/v1beta1",
    "MetalLB.io/v1beta1 IPAddressPool": "metallb.io/v1beta1",
    "metallb.io/v1beta3 BGPPeer": "metallb.io/v1beta2",
    "metallb.io/v1beta1 IpAddressPool": "IPAddressPool",
    "metallb.io/v1beta1 ipaddresspools": "IPAddressPool",
    "metallb.io/v1beta1 BGPAdvertisment": "BGPAdvertisement",
    "nft.acnodal.com/v1 Nft": "nft.acnodal.com/v1alpha1",
    "nft.acnodal.io/v1alpha1 Nft": "nft.acnodal.com/v1alpha1",
    "nft.acnodal.com/v1alpha1 Ntf": "Nft",
    "nft.acnodal.com/v1alpha1 NFT": "Nft",
    "v1 Nft": "nft.acnodal.com/v1alpha1",
    "v1 service": "Service",
    "v1 Servcie": "Service",
    "v1 Services": "Service",
    "v1 configmap": "ConfigMap",
    "v2 Service": "v1",
    "V1 Service": "v1",
    "apps/v1 Service": "v1",
    "networking.k8s.io/v1 Service": "v1",
    "core/v1 Service": "v1",
}


def header(words: str) -> dict[str, object]:
    version, kind = words.split()
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "a"}}


@pytest.mark.parametrize("words", FOREIGN)
def test_a_kind_of_others_is_not_ours_and_no_misspelling(words: str) -> None:
    assert recognize(header(words)) is None


@pytest.mark.parametrize(("words", "meant"), WRONG.items())
def test_a_misspelt_kind_or_version_is_told_with_what_is_meant(words: str, meant: str) -> None:
    found = recognize(header(words))
    assert found is not None
    assert found.kind in KINDS
    assert found.complaint.endswith(f"(did you mean {meant}?)")


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS.values()])
def test_our_own_kinds_are_recognized_and_have_their_fields_here(kind: str) -> None:
    found = recognize({"apiVersion": KINDS[kind].api_version, "kind": kind})
    assert found is not None
    assert (found.kind, found.complaint) == (kind, "")
    assert recognize({"apiVersion": "metallb.io/v1beta1", "kind": "BGPPeer"}) is not None, "served, too"


def test_every_kind_whose_spec_decides_has_a_table() -> None:
    assert SHAPES.keys() >= {"Service", "Nft", "IPAddressPool", "BGPAdvertisement", "BGPPeer", "AddressPool"}


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ({"kind": "Service"}, "apiVersion is missing"),
        ({"kind": "Service", "apiVersion": 1}, "apiVersion 1 is not a text"),
        ({"apiVersion": "v1"}, "kind is missing"),
        ({}, "apiVersion is missing; kind is missing"),
        ({"apiVersion": "v1", "kind": "Svc"}, "there is no kind Svc in v1"),
        ({"apiVersion": "v1", "kind": ""}, "kind is missing"),
        ({"apiVersion": "", "kind": "Service"}, "apiVersion is missing"),
        (
            {"apiVersion": "metallb.io/v1beta1", "kind": "L2Advertisment"},
            "there is no kind L2Advertisment in metallb.io/v1beta1 (did you mean L2Advertisement?)",
        ),
        ({"apiVersion": "v1", "kind": ["Service"]}, "kind a list is not a text"),
        ({"apiVersion": "v1", "kind": "List", "Items": []}, "List has no list of items"),
        ({"apiVersion": "v1", "kind": "ServiceList", "items": {}}, "ServiceList has no list of items"),
    ],
)
def test_half_a_header_of_ours_is_told(raw: dict[str, object], complaint: str) -> None:
    found = recognize({**raw, "metadata": {"name": "a"}})
    assert found is not None
    assert found.complaint == complaint


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"kind": "Ingress", "metadata": {}},
        {"apiVersion": "x/v1", "metadata": {}},
        {"apiVersion": "v1", "kind": "List", "items": None, "metadata": {}},
        {"apiVersion": "v1", "kind": "Config", "clusters": []},
        {"apiVersion": "v1", "name": "chart", "version": "1"},
        {"kind": "Service", "port": 80},
    ],
)
def test_half_a_header_of_others_is_not_ours(raw: dict[str, object]) -> None:
    assert recognize(raw) is None


RANGES = "spec.loadBalancerSourceRanges"
ALLOCATION = "spec.serviceAllocation.namespace"

# --- fields -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "raw", "field", "meant"),
    [
        ("Service", {"spec": {"loadBalancerSourceranges": []}}, "spec.loadBalancerSourceranges", RANGES),
        ("Service", {"loadBalancerSourceRanges": []}, "loadBalancerSourceRanges", RANGES),
        ("Service", {"spec": {"port": 80}}, "spec.port", "spec.ports[].port"),
        ("Service", {"spec": {"ports": [{}, {"protcol": 1}]}}, "spec.ports[1].protcol", "spec.ports[1].protocol"),
        ("Service", {"metadata": {"ratelimit": "1"}}, "metadata.ratelimit", "metadata.annotations.ratelimit"),
        ("Service", {"metadata": {"annotation": {}}}, "metadata.annotation", "metadata.annotations"),
        ("Service", {"status": {"ingress": []}}, "status.ingress", "status.loadBalancer.ingress"),
        ("Nft", {"spec": {"enable-ssh": False}}, "spec.enable-ssh", "spec.enable_ssh"),
        ("Nft", {"enable_ssh": False}, "enable_ssh", "spec.enable_ssh"),
        ("Nft", {"spec": {"metallb_namespace": ""}}, "spec.metallb_namespace", "spec.metallb-namespace"),
        ("IPAddressPool", {"spec": {"adresses": []}}, "spec.adresses", "spec.addresses"),
        ("IPAddressPool", {"addresses": []}, "addresses", "spec.addresses"),
        ("BGPPeer", {"spec": {"peerAdress": ""}}, "spec.peerAdress", "spec.peerAddress"),
        ("BGPAdvertisement", {"spec": {"ipAddressPool": []}}, "spec.ipAddressPool", "spec.ipAddressPools"),
        ("AddressPool", {"spec": {"bgpadvertisements": []}}, "spec.bgpadvertisements", "spec.bgpAdvertisements"),
        ("ConfigMap", {"datas": {}}, "datas", "data"),
        ("IPAddressPool", {"spec": {"serviceAllocation": {"namespace": 1}}}, ALLOCATION, f"{ALLOCATION}s"),
    ],
)  # fmt: skip
def test_an_unknown_field_is_told_with_the_one_that_is_meant(
    kind: str, raw: dict[str, object], field: str, meant: str
) -> None:
    assert complaints(raw, kind).texts == (f"unknown field {field} (did you mean {meant}?)",)


def test_a_field_like_no_other_is_told_without_a_guess() -> None:
    assert complaints({"spec": {"zzz": 1}}, "Service").texts == ("unknown field spec.zzz",)


def test_of_many_unknown_fields_a_later_one_may_hold_the_name() -> None:
    for number, renames in ((5, False), (6, True)):
        found = complaints({"spec": {f"zzz{each}": 1 for each in range(number)}}, "Service")
        assert (len(found.texts), found.renames) == (5, renames)


def test_an_unknown_type_of_a_service_is_told() -> None:
    told = complaints({"spec": {"type": "loadbalancer"}}, "Service").texts
    assert told == ("spec.type 'loadbalancer' is not a known value (did you mean LoadBalancer?)",)
    assert not any(complaints({"spec": {"type": each}}, "Service").texts for each in (None, "", "ClusterIP"))


@pytest.mark.parametrize("wrong", [["LoadBalancer"], {"LoadBalancer": None}, [], {}, 5, True])
def test_a_type_of_another_shape_is_told(wrong: object) -> None:
    raw = {"spec": {"type": wrong}}
    [text] = complaints(raw, "Service").texts
    assert text.startswith("spec.type ")
    assert text.endswith(" is not a known value")
    applied = {LAST_APPLIED: json.dumps(raw)}
    assert removed({"metadata": {"annotations": applied}}, "Service").texts == (text,)


def test_labels_annotations_and_selectors_may_have_any_key() -> None:
    free = {"a.b/c": "d"}
    raw = {"metadata": {"labels": free, "annotations": free}, "spec": {"selector": free}}
    assert complaints(raw, "Service").texts == ()
    assert (
        complaints(
            {"spec": {"serviceAllocation": {"serviceSelectors": [{"matchLabels": free}]}}}, "IPAddressPool"
        ).texts
        == ()
    )


def test_a_thousand_unknown_fields_make_a_short_message_of_printable_text() -> None:
    spec = {f"\x1b{'x' * 10000}{number}": 1 for number in range(1000)}
    told = complaints({"spec": spec}, "Service").texts
    assert len(told) == 5
    assert all(text.isprintable() and text.isascii() and len(text) < 200 for text in told)


@given(st.dictionaries(st.text(), json_values), st.sampled_from(sorted(SHAPES)))
def test_no_object_breaks_the_check(raw: dict[str, Any], kind: str) -> None:
    for value in (raw, {"spec": raw}, {"spec": {"ports": [raw]}}, {"metadata": raw}):
        assert all(map(str.isprintable, complaints(value, kind).texts))
        recognize({**value, "kind": kind})


def test_the_fields_of_the_nft_are_those_of_the_crd_and_those_that_the_daemon_reads() -> None:
    crd = yaml.safe_load(CRD.read_text(encoding="utf-8"))
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    assert SHAPES["Nft"]["spec"].keys() == schema["spec"]["properties"].keys()
    assert schema.keys() <= SHAPES["Nft"].keys()
    assert describe_spec(NftSpec(Nics(("eth0",)))).keys() <= SHAPES["Nft"]["spec"].keys()


SELECTOR = [{"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}]
RIGHT = {  # the fields of MetalLB 0.13 to 0.16
    "IPAddressPool": {
        "addresses": [], "autoAssign": True, "avoidBuggyIPs": True,
        "serviceAllocation": {
            "priority": 1, "namespaces": [], "namespaceSelectors": SELECTOR, "serviceSelectors": SELECTOR,
        },
    },
    "BGPAdvertisement": {
        "aggregationLength": 32, "aggregationLengthV6": 128, "asPathPrepend": 1, "communities": [], "localPref": 1,
        "ipAddressPools": [], "ipAddressPoolSelectors": SELECTOR, "nodeSelectors": SELECTOR, "peers": [],
        "serviceSelectors": SELECTOR,
    },
    "BGPPeer": {
        "bfdProfile": "", "connectTime": "1s", "disableMP": False, "dualStackAddressFamily": True, "dynamicASN": "",
        "ebgpMultiHop": True, "enableGracefulRestart": True, "holdTime": "1s", "interface": "", "keepaliveTime": "1s",
        "localASN": 1, "myASN": 1, "nodeSelectors": SELECTOR, "password": "", "peerASN": 1, "peerAddress": "",
        "passwordSecret": {"name": "a", "namespace": "b"}, "peerPort": 1, "routerID": "", "sourceAddress": "",
        "vrf": "",
    },
    "AddressPool": {
        "protocol": "bgp", "addresses": [], "autoAssign": True,
        "bgpAdvertisements": [
            {"aggregationLength": 1, "aggregationLengthV6": 1, "communities": [], "localPref": 1}
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize(("kind", "spec"), RIGHT.items())
def test_every_field_of_metallbs_objects_is_known(kind: str, spec: dict[str, object]) -> None:
    assert complaints({"metadata": {"name": "a"}, "spec": spec, "status": {"any": 1}}, kind).texts == ()


def test_a_word_is_like_another_one_whatever_its_case_dashes_and_length() -> None:
    assert near("ENABLE-SSH", ["enable_bgp", "enable_ssh"]) == "enable_ssh"
    assert near("x" * 100000, ["enable_ssh"]) == ""
    assert near(5, ["enable_ssh"]) == ""
