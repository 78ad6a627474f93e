"""Services and the Nft resource from files: what is read, what is refused, and what stays when a file breaks."""

from __future__ import annotations

import codecs
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftsync.cluster import manifests as module
from nftsync.cluster.cache import Inputs
from nftsync.cluster.manifests import ManifestError, Manifests
from nftsync.objects import yaml as yamltext
from nftsync.objects.names import Name, Reason
from tests.labtools import PATIENCE

pytestmark = pytest.mark.usefixtures("no_dns")

RESOURCE = "apiVersion: nft.acnodal.com/v1alpha1\nkind: Nft\nmetadata: {name: nft}\nspec: {public_nic: eth0}\n"


def service(name: str, ip: str = "192.0.2.1") -> str:
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n"
        "spec: {type: LoadBalancer, ports: [{port: 80}]}\n"
        f"status: {{loadBalancer: {{ingress: [{{ip: {ip}}}]}}}}\n"
    )


class Files:
    """A folder of manifests, and what was read from it."""

    def __init__(self, folder: Path, *paths: Path) -> None:
        self.folder = folder
        self.woken = threading.Event()
        inputs = Inputs.empty(self.woken.set)
        self.services, self.nfts, self.metallb = inputs.services, inputs.nfts, inputs.metallb("", "")
        self.manifests = Manifests(paths or [folder], Name("arbf-operators", "nft"), inputs)

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")  # as editors and kubectl do: never half a file
        new.write_bytes(text if isinstance(text, bytes) else text.encode())
        return new.replace(path)

    def read(self) -> list[str]:
        """Read; returns the names of the Services."""
        self.manifests.read()
        return sorted(str(each.name) for each in self.services.objects())

    def told(self) -> list[tuple[str, Reason]]:
        assert all(str(each).isprintable() for each in self.manifests.rejections)
        return [(str(each.object).replace(f"{self.folder}/", ""), each.reason) for each in self.manifests.rejections]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_every_yaml_and_json_file_of_a_folder_and_below_is_read(files: Files) -> None:
    files.write("b.yaml", service("b"))
    files.write("sub/deeper/a.yml", service("a"))
    files.write(
        "c.json",
        json.dumps(
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "c"}, "spec": {"type": "LoadBalancer"}}
        ),
    )
    files.write("notes.txt", service("never"))
    files.write("d.yaml~", service("never"))
    (files.folder / "folder.yaml").mkdir()
    assert files.read() == ["default/a", "default/b", "default/c"]
    assert files.told() == []
    assert files.services.synced.is_set()
    assert files.nfts.synced.is_set()


def test_hidden_files_and_folders_are_not_read(files: Files) -> None:
    files.write("seen.yaml", service("seen"))
    files.write(".swap.yaml", service("swap"))
    files.write("..data/copy.yaml", service("copy"))
    assert files.read() == ["default/seen"]


def test_an_empty_folder_is_a_complete_list_of_nothing(files: Files) -> None:
    assert files.read() == []
    assert files.services.synced.is_set()


def test_a_file_that_was_named_is_read_whatever_its_suffix(tmp_path: Path) -> None:
    path = Files(tmp_path).write("services", service("a") + "---\n" + service("b"))
    assert Files(tmp_path, path).read() == ["default/a", "default/b"]


@pytest.mark.parametrize(
    "text",
    [
        "apiVersion: v1\nkind: List\nitems:\n"
        "- {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {type: LoadBalancer}}\n"
        "- {apiVersion: apps/v1, kind: Deployment, metadata: {name: x}}\n- 5\n-\n",
        "apiVersion: v1\nkind: ServiceList\nitems:\n- {metadata: {name: a}, spec: {type: LoadBalancer}}\n",
        '{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Service", "metadata": '
        '{"name": "a"},'
        ' "spec": {"type": "LoadBalancer"}}]}',
    ],
)
def test_lists_as_kubectl_writes_them_are_understood(files: Files, text: str) -> None:
    files.write("list.yaml", text)
    assert files.read() == ["default/a"]
    assert files.told() == []


def test_other_kinds_are_not_ours(files: Files) -> None:
    files.write(
        "x.yaml",
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: x}\n---\nkind: Ingress\n---\n"
        "- 5\n---\n"
        "apiVersion: example.com/v1\nkind: Nft\nmetadata: {name: nft}\n---\nkind: [Service]\napiVersion: apps/v1\n---\n"
        "kind: {a: b}\nitems: []\n---\nresources: [web.yaml]\n---\nreplicas: 1\nkind: DaemonSet\n---\n"
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other, namespace: shop}\ndatas: {}\n---\n"
        "apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: x}\nspec: {foo: 1}\n",
    )
    assert files.read() == []
    assert files.nfts.objects() == []
    assert files.told() == []


LIST = json.dumps(
    {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"type": "LoadBalancer"}},
            {
                "apiVersion": "v1",
                "kind": "List",
                "items": [
                    {
                        "apiVersion": "v1",
                        "kind": "ServiceList",
                        "items": [{"metadata": {"name": "b"}, "spec": {"type": "LoadBalancer"}}],
                    }
                ],
            },
        ],
    }
)
JSON = '{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "%s"}, "spec": {"type": "LoadBalancer"}}'
FLOW = "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {type: LoadBalancer,},}\n---\n"
TWICE = {
    "Lists in Lists": LIST,
    "JSON documents without anything between them": JSON % "a" + JSON % "b",
    "JSON documents on lines": JSON % "a" + "\n\r\n\t" + JSON % "b" + "\n",
    "JSON, then YAML": JSON % "a" + "\n---\n" + service("b"),
    "JSON documents as YAML ones": JSON % "a" + "\n---\n" + JSON % "b",
    "JSON with tabs, then YAML": (JSON % "a").replace(" ", "\t") + "\n---\n" + service("b"),
    "YAML alone": service("a") + "---\n" + service("b"),
    "YAML that looks like JSON": FLOW + service("b"),
    "a UTF-8 mark before the text": "\ufeff" + service("a") + "---\n" + service("b"),
    "a UTF-8 mark before JSON": "\ufeff" + JSON % "a" + JSON % "b",
    "files with marks, one after the other": "\ufeff" + service("a") + "---\n\ufeff" + service("b"),
    "UTF-16, little end first": codecs.BOM_UTF16_LE + (service("a") + "---\n" + service("b")).encode("utf-16-le"),
    "UTF-16, big end first": codecs.BOM_UTF16_BE + (JSON % "a" + JSON % "b").encode("utf-16-be"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize("text", TWICE.values(), ids=TWICE)
def test_a_file_is_read_as_kubectl_reads_it_whatever_its_suffix(files: Files, text: str | bytes, suffix: str) -> None:
    files.write(f"x.{suffix}", text)
    assert files.read() == ["default/a", "default/b"]
    assert files.told() == []


def test_lists_nested_as_deep_as_a_text_may_be_are_read_and_deeper_ones_are_told(files: Files) -> None:
    for depth in (20, 30000):
        text = '{"kind": "List", "apiVersion": "v1", "items": [' * depth + JSON % "a" + "]}" * depth
        files.write(f"{depth}.json", text)
    assert files.read() == ["default/a"]
    assert files.told() == [("File 30000.json", Reason.UNREADABLE)]


def test_a_file_that_is_too_large_is_told(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yamltext, "MAX_BYTES", 100)
    files.write("a.json", JSON % "a" + " " * 100)
    files.read()
    assert files.told() == [("File a.json", Reason.UNREADABLE)]


def test_objects_in_a_plain_sequence_are_told_because_kubectl_refuses_them(files: Files) -> None:
    files.write("a.json", f"[{JSON % 'a'}]")
    assert files.read() == []
    assert files.told() == [("File a.json", Reason.UNREADABLE)]


@pytest.mark.parametrize("namespace", ["", ", namespace: arbf-operators", ", namespace: ~", ", namespace: null"])
def test_an_nft_resource_without_a_namespace_is_taken_to_be_the_one(files: Files, namespace: str) -> None:
    files.write("nft.yaml", RESOURCE.replace("name: nft", f"name: nft{namespace}"))
    files.read()
    assert [str(each.name) for each in files.nfts.objects()] == ["arbf-operators/nft"]


def test_another_nft_resource_does_not_count(files: Files) -> None:
    files.write(
        "nft.yaml",
        RESOURCE.replace("name: nft", "name: other")
        + "---\n"
        + RESOURCE.replace("name: nft", "name: nft, namespace: x"),
    )
    files.read()
    assert files.nfts.objects() == []


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"/absent: there is no such file or folder$"):
        Files(tmp_path, tmp_path / "absent").read()
    with pytest.raises(ManifestError, match=r"File name too long$"):
        Files(tmp_path, tmp_path / ("x" * 300)).read()


BROKEN = {
    "a: [": "line",
    b"\xff": "utf-8",
    b"\xff\xfe\x00": "utf-16",
    "a: 1\na: 2": "line 2: the key 'a' occurs twice",
    "a: *x": "line 1: anchors and aliases are not allowed",
    "<html><body>not found</body></html>": "it holds '<html><body>not found</body></html>' in place of an object",
    f"{service('a')}---\n5": "it holds 5 in place of an object",
}


@pytest.mark.parametrize(("text", "reason"), BROKEN.items())
def test_a_file_that_breaks_is_told_and_what_it_held_stays(files: Files, text: str | bytes, reason: str) -> None:
    files.write("a.yaml", service("a"))
    files.write("b.yaml", service("b"))
    files.read()
    files.write("a.yaml", text)
    files.write("b.yaml", service("c"))
    for _ in range(2):
        assert files.read() == ["default/a", "default/c"]
        assert files.told() == [("File a.yaml", Reason.UNREADABLE)]
        assert reason in files.manifests.rejections[0].message
        assert files.manifests.rejections[0].message.endswith("; its previous objects stay")
    (files.folder / "a.yaml").unlink()
    assert files.read() == ["default/c"]
    assert files.told() == []


def test_what_a_link_led_to_stays_while_it_leads_nowhere(
    files: Files, tmp_path_factory: pytest.TempPathFactory
) -> None:
    share = tmp_path_factory.mktemp("share")
    (share / "a.yaml").write_text(service("a"))
    (files.folder / "a.yaml").symlink_to(share / "a.yaml")
    assert files.read() == ["default/a"]
    (share / "a.yaml").rename(share / "away")
    assert files.read() == ["default/a"]
    assert files.told() == [("File a.yaml", Reason.UNREADABLE)]
    (files.folder / "a.yaml").unlink()
    assert files.read() == []


def test_a_file_that_was_never_readable_holds_nothing(files: Files) -> None:
    files.write("a.yaml", "a: [")
    assert files.read() == []
    assert "stays" not in files.manifests.rejections[0].message


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100000,
        '{"a": 1, "a": 2}',
        '{"a": ' + "9" * 5000 + "}",
        '{"a": 1} x',
        "",
        "\ufeff",
        '{"a": NaN}',
        '{"a": 1}{"a": ',
        '{"a": 1},{"a": 2}',
    ],
)
def test_a_json_file_that_can_not_be_read_is_told(files: Files, text: str) -> None:
    files.write("a.json", text)
    files.read()
    assert files.told() == [("File a.json", Reason.UNREADABLE)]


def test_a_deeply_nested_kind_is_no_kind(files: Files) -> None:
    for depth in range(700, 1000, 7):
        files.write(f"{depth}.json", '{"items": [], "kind": ' + "[" * depth + "]" * depth + "}")
    assert files.read() == []


def test_of_an_object_that_stands_twice_the_first_one_counts(files: Files) -> None:
    files.write("1.yaml", service("a", "192.0.2.1"))
    files.write("2.yaml", service("b") + "---\n" + service("a", "192.0.2.2"))
    files.read()
    assert {str(each.addresses[0]) for each in files.services.objects()} == {"192.0.2.1"}
    assert files.told() == [("Service default/a", Reason.DUPLICATE)]
    assert files.manifests.rejections[0].message == f"{files.folder}/2.yaml #2 holds it again: the first one counts"


@pytest.mark.parametrize(
    "metadata", ["", "{}", "{name: Web}", "[name]", "{name: 'a\\nb'}", "{name: web, namespace: ''}"]
)
def test_an_object_that_can_not_be_named_is_told_with_its_place(files: Files, metadata: str) -> None:
    files.write(
        "1.yaml",
        f"apiVersion: v1\nkind: Service\nmetadata: {metadata}\nspec: {{type: LoadBalancer}}\n---\n{service('b')}",
    )
    assert files.read() == ["default/b"]
    assert files.told() == [("Service 1.yaml #1", Reason.MALFORMED)]


def test_a_hostile_file_name_is_told_on_one_line(files: Files) -> None:
    files.write("a\n\x1b[2J.yaml", "a: [")
    files.read()
    assert files.told() == [(r"File a\n\x1b[2J.yaml", Reason.UNREADABLE)]


def test_a_service_that_a_file_no_longer_holds_is_gone_and_the_others_are_the_same(files: Files) -> None:
    files.write("a.yaml", service("a") + "---\n" + service("b"))
    files.read()
    files.services.drain()
    files.write("a.yaml", service("b"))
    files.read()
    assert files.services.drain().objects == {Name("default", "a"): None}


# --- as an API server would ---------------------------------------------------------------------------


RANGES = "spec.loadBalancerSourceRanges"
FIELDS = {  # a Service's text, and what to write in its place
    "status:": ("statuss:", "status"),
    "ports: [{port: 80}]": ("ports: [{port: 80}], loadBalancerSourceranges: [192.0.2.0/24]", RANGES),
    "ports: [{port: 80": ("ports: [{port: 80, targetport: 8080", "spec.ports[0].targetPort"),
    "spec:": ("loadBalancerSourceRanges: [192.0.2.0/24]\nspec:", RANGES),
    "LoadBalancer,": ("Loadbalancer,", "LoadBalancer"),
    "loadBalancer:": ("loadbalancer:", "status.loadBalancer"),
    "{name: a}": ("{name: a, loadBalancerSourceRanges: [192.0.2.0/24]}", RANGES),
    "apiVersion": ("apiversion", "apiVersion"),
    "kind": ("Kind", "kind"),
    ": v1": (": v2", "v1"),
    "Service": ("Servcie", "Service"),
}


@pytest.mark.parametrize(("right", "wrong", "meant"), [(right, *rest) for right, rest in FIELDS.items()])
def test_a_misspelt_or_misplaced_field_is_told_and_the_last_good_version_stays(
    files: Files, right: str, wrong: str, meant: str
) -> None:
    misspelt = service("a", "192.0.2.9").replace(right, wrong, 1)
    files.write("a.yaml", service("b") + "---\n" + service("a"))
    files.read()
    [before] = [each for each in files.services.objects() if each.name.name == "a"]
    files.write("a.yaml", service("c") + "---\n" + misspelt)
    for _ in range(2):
        assert files.read() == ["default/a", "default/c"]
        [told] = files.manifests.rejections
        assert told.object == before.ref
        assert f"did you mean {meant}?" in told.message
        assert told.message.startswith(f"{files.folder}/a.yaml #2: ")
        assert told.message.endswith("; its previous version stays")
        assert before in files.services.objects(), "not the version that opens another address"
    files.write("a.yaml", service("a", "192.0.2.9"))
    assert files.read() == ["default/a"]
    assert files.told() == []
    assert before not in files.services.objects()


@pytest.mark.parametrize(("right", "wrong", "meant"), [(right, *rest) for right, rest in FIELDS.items()])
def test_a_misspelt_object_that_was_never_good_opens_nothing(files: Files, right: str, wrong: str, meant: str) -> None:
    files.write("a.yaml", service("a").replace(right, wrong, 1) + "---\n" + service("b"))
    assert files.read() == ["default/b"]
    [told] = files.manifests.rejections
    assert str(told.object) == "Service default/a"
    assert told.message.endswith(f"(did you mean {meant}?); it does not count")


@pytest.mark.parametrize(
    "wrong", ["{name: a}\nnamespace: shop", "{name: a, namspace: shop}", "{nam: a, namespace: shop}", "{}\nname: a"]
)
def test_if_the_name_itself_is_misplaced_everything_that_the_file_held_stays(files: Files, wrong: str) -> None:
    right = service("a").replace("{name: a}", "{name: a, namespace: shop}")
    files.write("a.yaml", right)
    files.write("b.yaml", service("b"))
    assert files.read() == ["default/b", "shop/a"]
    files.write("a.yaml", right.replace("{name: a, namespace: shop}", wrong))
    for _ in range(2):
        assert files.read() == ["default/b", "shop/a"]
        assert [reason for _, reason in files.told()] == [Reason.UNKNOWN_FIELD]


def test_a_misspelt_object_gives_way_to_a_good_one_in_another_file(files: Files) -> None:
    files.write("old.yaml", service("a", "192.0.2.1"))
    files.read()
    (files.folder / "old.yaml").unlink()
    files.write("1.yaml", service("a").replace("spec:", "sepc:"))
    files.write("2.yaml", service("a", "192.0.2.2"))
    files.read()
    assert [str(each.addresses[0]) for each in files.services.objects()] == ["192.0.2.2"]
    assert files.manifests.rejections[0].message.endswith("; it does not count")


def test_an_object_that_moves_to_another_file_and_is_misspelt_there_stays(files: Files) -> None:
    files.write("old.yaml", service("a"))
    files.read()
    (files.folder / "old.yaml").unlink()
    files.write("new.yaml", service("a").replace("spec:", "sepc:"))
    for _ in range(2):
        assert files.read() == ["default/a"]
    files.write("new.yaml", "a: [")
    assert files.read() == ["default/a"]


def test_a_misspelt_object_keeps_its_place_before_a_second_one_of_its_name(files: Files) -> None:
    files.write("1.yaml", service("a", "192.0.2.1"))
    files.write("2.yaml", service("a", "192.0.2.2"))
    files.read()
    files.write("1.yaml", service("a", "192.0.2.1").replace("spec:", "sepc:"))
    files.read()
    assert [str(each.addresses[0]) for each in files.services.objects()] == ["192.0.2.1"]
    assert {reason for _, reason in files.told()} == {Reason.UNKNOWN_FIELD, Reason.DUPLICATE}


def test_a_misspelt_object_keeps_the_version_of_the_previous_process(files: Files) -> None:
    files.write("a.yaml", service("a"))
    files.read()
    [before] = files.services.objects()
    inputs = Inputs.empty(remembered={before.name: before})
    files.write("a.yaml", service("a", "192.0.2.9").replace("spec:", "sepc:"))
    Manifests([files.folder], Name("arbf-operators", "nft"), inputs).read()
    assert inputs.services.objects() == [before]


def test_a_misspelt_setting_leaves_the_last_good_settings(files: Files) -> None:
    files.write("nft.yaml", RESOURCE.replace("}\n", ", enable_ssh: false}\n").replace("nft, enable_ssh: false", "nft"))
    files.read()
    [before] = files.nfts.objects()
    files.write("nft.yaml", RESOURCE.replace("eth0", "eth1, enable-ssh: false"))
    files.read()
    assert files.nfts.objects() == [before]
    [told] = files.manifests.rejections
    assert "unknown field spec.enable-ssh (did you mean spec.enable_ssh?)" in told.message


def test_a_misspelt_pool_leaves_the_last_good_one(files: Files) -> None:
    pool = (
        "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: p, namespace: metallb-system}\n"
        "spec: {addresses: [192.0.2.0/24]}\n"
    )
    files.write("p.yaml", pool)
    files.read()
    [before] = files.metallb.pools.objects()
    for right, wrong in {"IPAddress": "IpAddress", "/v1beta1": "/v9", "addresses": "adresses", "spec": "Spec"}.items():
        files.write("p.yaml", pool.replace("192.0.2", "198.51.100").replace(right, wrong))
        files.read()
        assert files.metallb.pools.objects() == [before]
        [told] = files.manifests.rejections
        assert str(told.object) == "IPAddressPool metallb-system/p"
        assert "did you mean" in told.message
    files.write("p.yaml", pool.replace("metallb-system", "elsewhere").replace("addresses", "adresses"))
    files.read()
    assert files.metallb.pools.objects() == []
    assert files.told() == [], "pools of another namespace do not count"


@pytest.mark.parametrize(
    "text",
    ["apiVersion: v1\nmetadata: {name: a}\n", "apiVersion: v1\nkind: Svc\nmetadata: {name: a}\n",
     "metadata: {name: a, apiVersion: v1, kind: Service}\nspec: {}\n", "404: Not Found\n", "spec: {}\n",
     "apiVersion: metallb.io/v1beta1\nkind: Pool\nmetadata: {name: a}\n",
     "apiVersion: v1\nkind: List\nItems: []\n", "apiVersion: v1\nkind: [Service]\nmetadata: {}\n"],
)  # fmt: skip
def test_an_object_that_could_be_any_of_its_file_leaves_them_all(files: Files, text: str) -> None:
    files.write("a.yaml", service("a"))
    files.read()
    files.write("a.yaml", text)
    assert files.read() == ["default/a"]
    assert files.told() == [("File a.yaml #1", Reason.UNKNOWN_KIND)]


def test_what_kubectl_get_prints_of_a_service_is_not_refused(files: Files) -> None:
    files.write("a.yaml", PRINTED)
    assert files.read() == ["shop/web"]
    assert files.told() == []


PRINTED = """\
apiVersion: v1
kind: Service
metadata:
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {"apiVersion":"v1","kind":"Service","spec":{"unknown":1}}
    metallb.io/ip-allocated-from-pool: first
  clusterName: ""
  creationTimestamp: "2026-01-01T00:00:00Z"
  finalizers: [service.kubernetes.io/load-balancer-cleanup]
  generation: 2
  labels: {app: web}
  managedFields:
  - {apiVersion: v1, fieldsType: FieldsV1, fieldsV1: {"f:spec": {}}, manager: kubectl, operation: Update}
  name: web
  namespace: shop
  ownerReferences: [{apiVersion: v1, kind: Pod, name: x, uid: u}]
  resourceVersion: "12"
  selfLink: /api/v1/namespaces/shop/services/web
  uid: 3f2b8f0e-0000-0000-0000-000000000001
spec:
  allocateLoadBalancerNodePorts: true
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7]
  externalTrafficPolicy: Local
  healthCheckNodePort: 31000
  internalTrafficPolicy: Cluster
  ipFamilies: [IPv4]
  ipFamilyPolicy: SingleStack
  loadBalancerClass: metallb.io/metallb
  loadBalancerSourceRanges: [198.51.100.0/24]
  ports: [{appProtocol: http, name: http, nodePort: 30080, port: 80, protocol: TCP, targetPort: web}]
  selector: {app: web}
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}
  topologyKeys: ["*"]
  trafficDistribution: PreferClose
  type: LoadBalancer
status:
  conditions: [{type: x, status: "True"}]
  loadBalancer: {ingress: [{ip: 192.0.2.1, ipMode: VIP, ports: [{port: 80, protocol: TCP}]}]}
"""


# --- following -----------------------------------------------------------------------------------------


@pytest.fixture
def followed(files: Files, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """Files that were read once and are followed."""
    monkeypatch.setattr(module, "POLL_INTERVAL", 0.005)
    files.write("a.yaml", service("a"))
    files.read()
    files.services.drain()
    stop = threading.Event()
    follower = threading.Thread(target=files.manifests.follow, args=(stop, lambda: None))
    follower.start()
    yield files
    stop.set()
    follower.join(PATIENCE)
    assert not follower.is_alive()


def eventually(files: Files, names: list[str]) -> bool:
    """Whether these Services are there within some seconds."""
    deadline = time.monotonic() + PATIENCE
    while sorted(each.name.name for each in files.services.objects()) != names:
        if not files.woken.wait(deadline - time.monotonic()):
            return False
        files.woken.clear()
    return True


def test_a_change_a_new_file_and_one_that_goes_are_noticed(followed: Files) -> None:
    followed.write("a.yaml", service("b"))
    assert eventually(followed, ["b"])
    followed.write("sub/c.yaml", service("c"))
    assert eventually(followed, ["b", "c"])
    (followed.folder / "a.yaml").unlink()
    assert eventually(followed, ["c"])


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_noticed(followed: Files) -> None:
    status = (followed.folder / "a.yaml").stat()
    new = followed.folder / "new"
    new.write_text(service("b"))
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(followed.folder / "a.yaml")
    assert eventually(followed, ["b"])


def test_what_changes_between_the_first_reading_and_the_following_is_noticed(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_INTERVAL", 0.005)
    files.write("a.yaml", service("a"))
    files.read()
    files.write("a.yaml", service("b"))
    stop = threading.Event()
    follower = threading.Thread(target=files.manifests.follow, args=(stop, lambda: None))
    follower.start()
    try:
        assert eventually(files, ["b"])
    finally:
        stop.set()
        follower.join(PATIENCE)


def test_when_the_folder_goes_what_was_read_stays_and_is_followed_when_it_is_back(followed: Files) -> None:
    away = followed.folder.with_name("away")
    followed.folder.rename(away)
    assert not eventually_told(followed)
    away.rename(followed.folder)
    followed.write("b.yaml", service("b"))
    assert eventually(followed, ["a", "b"])


def eventually_told(files: Files) -> bool:
    """Whether anything changed within the time of several looks at the files."""
    files.woken.clear()
    return files.woken.wait(0.05)
