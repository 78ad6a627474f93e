"""Services, the Nft resource and MetalLB's objects from YAML files.

For the demo, for previews, and for a router without a cluster. A file can hold Lists, as
`kubectl get … -o yaml` prints them. If it is unreadable, its previous objects stay.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from nftsync.cluster.cache import Inputs, Relist
from nftsync.cluster.kubeconfig import Stamp, stamp
from nftsync.cluster.watch import JOIN, WatchState
from nftsync.config import InputError
from nftsync.objects import yaml as yamltext
from nftsync.objects.names import (
    KINDS,
    LEGACY,
    Malformed,
    Name,
    ObjectRef,
    Reason,
    Rejection,
    identify,
)
from nftsync.objects.nft import METALLB_NAMESPACE, RouterStatus
from nftsync.report.events import Notice

SUFFIXES = (".yaml", ".yml", ".json")
POLL_INTERVAL = 1.0  # seconds between looks at the files

log = logging.getLogger(__name__)


class ManifestError(InputError):
    """There is no file or folder at a given path."""


@dataclass(frozen=True, slots=True)
class _Manifest:
    """An object of a supported kind. where: its file, and its number in that file, from 1."""

    kind: str
    raw: dict[str, Any]
    path: Path
    where: str


class Manifests:
    """Reads files into caches and follows their changes. A path is a file or a folder of files.

    nft: the one Nft resource that counts. It names the namespace in which MetalLB's objects
    count. An object without a namespace counts.
    inputs: the caches, the same for each namespace.
    wake: called after each reading but the first: a reading can change the rejections alone.
    """

    def __init__(
        self, paths: Sequence[Path], nft: Name, inputs: Inputs, wake: Callable[[], None] = lambda: None
    ) -> None:
        self._paths = paths
        self._nft = nft
        self.inputs = replace(inputs, rejections=lambda: self.rejections)
        self._caches = inputs.by_kind()
        self._names: dict[Path, list[tuple[str, Name]]] = {}  # by file, in its last readable version
        self._seen: list[tuple[Path, Stamp]] = []  # the files' signature when they were last read
        self.rejections: tuple[Rejection, ...] = ()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.follow, args=(self._stop, wake), name="manifests", daemon=True)

    def start(self) -> Self:
        """Read all files, and follow them in a thread. Raises ManifestError as read() does."""
        self.read()
        self._thread.start()
        return self

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def watches(self) -> Mapping[str, str]:
        return {"files": WatchState.WATCHING}

    def stale(self) -> Mapping[str, str]:
        return {}

    def tell(self, news: Sequence[Notice]) -> None:
        """Files have no Events."""

    def report(self, status: RouterStatus) -> None:
        """Files have no status."""

    def stop(self, *, farewell: bool = False) -> None:  # noqa: ARG002  # files have no status
        self._stop.set()
        self._thread.join(JOIN)

    def read(self) -> None:
        """Read all files into the caches. Raises ManifestError if there is nothing at a path."""
        rejections: list[Rejection] = []
        self._seen = self._signature()  # before the reading: a later change causes another
        with ExitStack() as stack:
            relists = {kind: stack.enter_context(cache.relist()) for kind, cache in self._caches.items()}
            names: dict[Path, list[tuple[str, Name]]] = {}
            manifests: list[_Manifest] = []
            for path in self._files():
                names[path] = []
                try:
                    manifests.extend(_manifests(path))
                except (OSError, ValueError) as error:
                    names[path] = self._names.get(path, [])
                    for kind, name in names[path]:
                        relists[kind].names.add(name)
                    reason = error.strerror if isinstance(error, OSError) else str(error)
                    message = f"{reason}; its previous objects stay" if names[path] else f"{reason}"
                    rejections.append(Rejection(ObjectRef("File", _printable(path)), Reason.UNREADABLE, message))
            # The Nft resource comes first: it names the namespace of MetalLB's objects.
            for manifest in sorted(manifests, key=lambda manifest: manifest.kind != "Nft"):
                self._put(manifest, relists[manifest.kind], names[manifest.path], rejections)
        self._names = names
        self.rejections = tuple(rejections)

    def _put(
        self, manifest: _Manifest, relist: Relist, names: list[tuple[str, Name]], rejections: list[Rejection]
    ) -> None:
        namespace, only = self._counting(manifest.kind)
        metadata = manifest.raw.get("metadata")
        if namespace is not None and isinstance(metadata, dict) and metadata.get("namespace") is None:
            metadata["namespace"] = namespace
        try:
            name, uid = identify(manifest.raw)
            counts = namespace in (None, name.namespace) and only in (None, name.name)
            if counts and name in relist.names:
                message = f"{manifest.where} holds it again: the first one counts"
                rejections.append(Rejection(ObjectRef(manifest.kind, str(name), uid), Reason.DUPLICATE, message))
            elif counts:
                relist.put(manifest.raw)
                names.append((manifest.kind, name))
        except Malformed as error:
            rejections.append(Rejection(ObjectRef(manifest.kind, manifest.where), Reason.MALFORMED, str(error)))

    def _counting(self, kind: str) -> tuple[str | None, str | None]:
        """The namespace and the name of the objects of a kind that count; None for every one."""
        if kind == "Service":
            return None, None
        if kind == "Nft":
            return self._nft
        specs = (nft.spec for nft in self.inputs.nfts.objects())
        spec = next(filter(None, specs), None)
        namespace, config_map = (spec.metallb_namespace, spec.metallb_configmap) if spec else (METALLB_NAMESPACE, "")
        return namespace, config_map or None if kind == LEGACY.name else None

    def follow(self, stop: threading.Event, wake: Callable[[], None]) -> None:
        """Read the files again after each change, until `stop` is set. Run it in its own thread."""
        while not stop.wait(POLL_INTERVAL):
            if self._signature() != self._seen:
                try:
                    self.read()
                    wake()
                except ManifestError as error:
                    log.warning("%s; the objects of the last reading stay", error)

    def _signature(self) -> list[tuple[Path, Stamp]]:
        try:
            return [(path, stamp(path)) for path in self._files()]
        except ManifestError:
            return []

    def _files(self) -> Iterator[Path]:
        for path in self._paths:
            try:
                if path.is_dir():
                    yield from sorted(file for file in path.rglob("*") if _is_manifest(file, path))
                else:
                    path.stat()
                    yield path
            except OSError as error:
                absent = isinstance(error, FileNotFoundError)
                reason = "there is no such file or folder" if absent else error.strerror
                raise ManifestError(f"{path}: {reason}") from error


def _is_manifest(path: Path, folder: Path) -> bool:
    # Editors, git and mounted ConfigMaps keep copies in hidden files and folders.
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix in SUFFIXES and not hidden and path.is_file()


def _load(path: Path) -> list[object]:
    with path.open("rb") as file:
        content = file.read(yamltext.MAX_BYTES + 1)
    text = content.decode("utf-8")
    if path.suffix == ".json":
        try:
            return [json.loads(text, object_pairs_hook=_object)]
        except RecursionError:
            raise ValueError("it is nested too deep") from None
    return yamltext.documents(text)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object. Raises ValueError for a duplicate key, because readers differ about those."""
    mapping: dict[str, object] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"the key {key[:60]!a} stands twice in one object")
        mapping[key] = value
    return mapping


def _flatten(loaded: list[object]) -> Iterator[object]:
    """The objects of documents, also those inside Lists.

    The items of a ServiceList have no kind of their own, so they get it from the List.
    """
    for document in loaded:
        match document:
            case {"items": list(items), "kind": str(kind), **rest} if kind.endswith("List"):
                shared = {"apiVersion": rest.get("apiVersion"), "kind": kind.removesuffix("List")}
                yield from ({**shared, **item} if shared["kind"] and isinstance(item, dict) else item for item in items)
            case _:
                yield document


def _manifests(path: Path) -> Iterator[_Manifest]:
    """A file's objects of supported kinds. Raises OSError or ValueError."""
    for number, raw in enumerate(_flatten(_load(path)), start=1):
        match raw:
            case {"apiVersion": str(version), "kind": str(kind)} if isinstance(raw, dict) and kind in KINDS:
                group = KINDS[kind].group
                if version.startswith(f"{group}/") if group else version == "v1":
                    yield _Manifest(kind, raw, path, f"{_printable(path)} #{number}")


def _printable(path: Path) -> str:
    return ascii(str(path))[1:-1]
