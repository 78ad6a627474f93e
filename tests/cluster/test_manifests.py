"""Services and the Nft resource from files: what is read, what is refused, and what stays when a file breaks."""

from __future__ import annotations

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
        "- 5\n---\ntext\n---\n"
        "apiVersion: example.com/v1\nkind: Nft\nmetadata: {name: nft}\n---\nkind: [Service]\napiVersion: v1\n---\n"
        "kind: {a: b}\nitems: []\n",
    )
    assert files.read() == []
    assert files.nfts.objects() == []
    assert files.told() == []


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
    b"\xff\xfe": "utf-8",
    "a: 1\na: 2": "line 2: the key 'a' occurs twice",
    "a: *x": "line 1: anchors and aliases are not allowed",
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


def test_a_file_that_was_never_readable_holds_nothing(files: Files) -> None:
    files.write("a.yaml", "a: [")
    assert files.read() == []
    assert "stays" not in files.manifests.rejections[0].message


@pytest.mark.parametrize(
    "text", ["[" * 100000, '{"a": 1, "a": 2}', '{"a": ' + "9" * 5000 + "}", '{"a": 1} x', "", "\ufeff{}"]
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
