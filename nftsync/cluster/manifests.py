"""Services, the Nft resource and MetalLB's objects from YAML files.

For the demo, for previews, and for a router without a cluster. A path is a file or a folder of
files; a file can hold Lists, as `kubectl get … -o yaml` prints them. An unreadable file becomes a
Rejection, and its previous objects stay.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from nftsync.cluster.cache import Inputs, Relist
from nftsync.cluster.source import JOIN
from nftsync.cluster.watch import WatchState
from nftsync.config import InputError
from nftsync.objects import yaml as yamltext
from nftsync.objects.kinds import KINDS
from nftsync.objects.metallb import CONFIG_MAP
from nftsync.objects.names import Malformed, Name, ObjectRef, Reason, Rejection, identify
from nftsync.objects.nft import METALLB_NAMESPACE
from nftsync.objects.status import RouterStatus
from nftsync.report.notices import Notice

SUFFIXES = (".yaml", ".yml", ".json")
POLL_INTERVAL = 1.0  # seconds between looks at the files

log = logging.getLogger(__name__)


class ManifestError(InputError):
    """There is no file or folder at a given path."""


@dataclass(frozen=True, slots=True)
class _Found:
    """An object of a supported kind, with its file and its number in that file, from 1."""

    kind: str
    raw: dict[str, Any]
    path: Path
    number: int

    @property
    def where(self) -> str:
        return f"{_printable(self.path)} #{self.number}"


class Manifests:
    """Reads files into caches and follows their changes.

    nft: the one Nft resource that counts. It names the namespace in which MetalLB's objects
    count. An object without a namespace counts.
    inputs: the caches, the same for each namespace.
    """

    def __init__(self, paths: Sequence[Path], nft: Name, inputs: Inputs) -> None:
        self._paths = paths
        self._nft = nft
        self.inputs = replace(inputs, rejections=lambda: self.rejections)
        self._caches = inputs.by_kind()
        self._held: dict[Path, list[tuple[str, Name]]] = {}  # of the last readable version
        self._seen: list[tuple[str, int, int, int]] = []  # the files' signature when they were last read
        self.rejections: tuple[Rejection, ...] = ()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, wake: Callable[[], None]) -> Self:
        """Read all files, and follow them in a thread. See read() and follow()."""
        self.read()
        self._thread = threading.Thread(target=self.follow, args=(self._stop, wake), name="manifests", daemon=True)
        self._thread.start()
        return self

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def watches(self) -> Mapping[str, str]:
        return {"files": WatchState.WATCHING}

    def stale(self) -> Mapping[str, str]:
        return {}

    def tell(self, news: Sequence[Notice]) -> None:
        """Files have no Events."""

    def report(self, status: RouterStatus) -> None:
        """Files have no status."""

    def farewell(self) -> None:
        """Files have no status."""

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(JOIN)

    def read(self) -> None:
        """Read all files; afterwards every cache is synced.

        Raises ManifestError if there is no file or folder at a path.
        """
        rejections: list[Rejection] = []
        self._seen = self._signature()  # before the reading: a later change causes another
        with ExitStack() as stack:
            relists = {kind: stack.enter_context(cache.relist()) for kind, cache in self._caches.items()}
            held: dict[Path, list[tuple[str, Name]]] = {}
            found: list[_Found] = []
            for path in self._files():
                held[path] = []
                try:
                    found.extend(_objects(path))
                except (OSError, ValueError) as fault:
                    reason = fault.strerror if isinstance(fault, OSError) else str(fault)
                    stays = "; its previous objects stay" if self._held.get(path) else ""
                    rejections.append(
                        Rejection(ObjectRef("File", _printable(path)), Reason.UNREADABLE, f"{reason}{stays}")
                    )
                    held[path] = self._held.get(path, [])
                    for kind, name in held[path]:
                        relists[kind].names.add(name)
            # The Nft resource comes first: it names the namespace of MetalLB's objects.
            for each in sorted(found, key=lambda each: each.kind != "Nft"):
                counted = self._put(each, relists[each.kind], rejections)
                if counted is not None:
                    held[each.path].append((each.kind, counted))
        self._held = held
        self.rejections = tuple(rejections)

    def _put(self, found: _Found, relist: Relist, rejections: list[Rejection]) -> Name | None:
        """Put an object into its cache. None if it does not count."""
        namespace = self._namespace(found.kind)
        metadata = found.raw.get("metadata")
        if namespace is not None and isinstance(metadata, dict) and metadata.get("namespace") is None:
            metadata["namespace"] = namespace
        try:
            name, uid = identify(found.raw)
            if (namespace is not None and name.namespace != namespace) or (found.kind == "Nft" and name != self._nft):
                return None
            if found.kind == "ConfigMap" and name.name != CONFIG_MAP:
                return None
            if name in relist.names:
                message = f"{found.where} holds it again: the first one counts"
                rejections.append(Rejection(ObjectRef(found.kind, str(name), uid), Reason.DUPLICATE, message))
                return None
            relist.put(found.raw)
        except Malformed as fault:
            rejections.append(Rejection(ObjectRef(found.kind, found.where), Reason.MALFORMED, str(fault)))
            return None
        return name

    def _namespace(self, kind: str) -> str | None:
        """The namespace in which objects of a kind count; None for every namespace."""
        if kind == "Service":
            return None
        if kind == "Nft":
            return self._nft.namespace
        specs = (nft.spec for nft in self.inputs.nfts.objects())
        return next((spec.metallb_namespace for spec in specs if spec is not None), METALLB_NAMESPACE)

    def follow(self, stop: threading.Event, wake: Callable[[], None]) -> None:
        """Read the files again after each change, until `stop` is set. Run it in its own thread.

        wake: called after each reading, because a reading can change the rejections alone.
        """
        while not stop.wait(POLL_INTERVAL):
            if self._signature() != self._seen:
                try:
                    self.read()
                    wake()
                except ManifestError as fault:
                    log.warning("%s; the objects of the last reading stay", fault)

    def _signature(self) -> list[tuple[str, int, int, int]]:
        """A value that changes with the files; empty if a path is not readable."""
        signature = []
        try:
            for path in self._files():
                status = path.stat()
                signature.append((str(path), status.st_mtime_ns, status.st_size, status.st_ino))
        except (OSError, ManifestError):
            return []
        return signature

    def _files(self) -> Iterator[Path]:
        for path in self._paths:
            try:
                if path.is_dir():
                    yield from sorted(each for each in path.rglob("*") if _is_manifest(each, path))
                    continue
                path.stat()
            except FileNotFoundError:
                raise ManifestError(f"{path}: there is no such file or folder") from None
            except OSError as fault:
                raise ManifestError(f"{path}: {fault.strerror}") from fault
            yield path


def _is_manifest(path: Path, folder: Path) -> bool:
    """True for YAML and JSON files, except hidden ones.

    Editors, git and mounted ConfigMaps keep copies in hidden files and folders.
    """
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix in SUFFIXES and not hidden and path.is_file()


def _load(path: Path) -> list[object]:
    """The documents of a file. Raises OSError or ValueError."""
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
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:60]!a} stands twice in one object")
        found[key] = value
    return found


def _flatten(loaded: list[object]) -> Iterator[object]:
    """The objects of documents, also those inside Lists.

    The items of a ServiceList have no kind of their own, so they get it from the List.
    """
    for document in loaded:
        items, kind = (document.get("items"), document.get("kind")) if isinstance(document, dict) else (None, None)
        if (
            not isinstance(document, dict)
            or not isinstance(items, list)
            or not isinstance(kind, str)
            or not kind.endswith("List")
        ):
            yield document
            continue
        kind = kind.removesuffix("List")
        for item in items:
            yield (
                {"apiVersion": document.get("apiVersion"), "kind": kind, **item}
                if kind and isinstance(item, dict)
                else item
            )


def _objects(path: Path) -> Iterator[_Found]:
    """A file's objects. Raises OSError or ValueError."""
    for number, raw in enumerate(_flatten(_load(path)), start=1):
        kind = _kind(raw)
        if kind is not None:
            assert isinstance(raw, dict)
            yield _Found(kind, raw, path, number)


def _kind(raw: object) -> str | None:
    """The kind of an object, or None if nftsync does not use it."""
    if not isinstance(raw, dict):
        return None
    version, kind = raw.get("apiVersion"), raw.get("kind")
    if not isinstance(version, str) or not isinstance(kind, str):
        return None
    if kind not in KINDS:
        return None
    group = KINDS[kind].group
    return kind if (version.startswith(f"{group}/") if group else version == "v1") else None


def _printable(path: Path) -> str:
    return ascii(str(path))[1:-1]
