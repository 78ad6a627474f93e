"""Services and the Nft resource from YAML files: offline, for the demo, for previews, for a router without a cluster.

A path is a file or a folder of them; `kubectl get … -o yaml` Lists are understood. A file that can't be read is a Rejection, and
what it held before stays.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nftsync import yamltext
from nftsync.objects import Malformed, Name, ObjectRef, Reason, Rejection, identify

if TYPE_CHECKING:
    from nftsync.inbox import Inbox, Listing
    from nftsync.nftresource import Nft
    from nftsync.objects import Service

SUFFIXES = (".yaml", ".yml", ".json")
POLL_INTERVAL = 1.0  # seconds between looks at the files

log = logging.getLogger(__name__)


class ManifestError(Exception):
    """A path that was asked for is not there."""


class Manifests:
    """Reads files into two inboxes and follows their changes.

    nft: the one Nft resource that counts; one without a namespace is taken to be in that namespace.
    """

    def __init__(self, paths: Sequence[Path], nft: Name, services: Inbox[Service], nfts: Inbox[Nft]) -> None:
        self._paths = paths
        self._nft = nft
        self._inboxes: dict[str, Inbox[Any]] = {"Service": services, "Nft": nfts}
        self._held: dict[Path, list[tuple[str, Name]]] = {}  # what each file held when it was last readable
        self._seen: list[tuple[str, int, int, int]] = []  # the files' signature when they were last read
        self.rejections: tuple[Rejection, ...] = ()

    def read(self) -> None:
        """Read all files; afterwards both inboxes are synced. Raises ManifestError if a path is not there."""
        rejections: list[Rejection] = []
        self._seen = self._signature()  # before they are read: what changes meanwhile is read again
        with ExitStack() as stack:
            listings = {kind: stack.enter_context(inbox.listing()) for kind, inbox in self._inboxes.items()}
            held: dict[Path, list[tuple[str, Name]]] = {}
            for path in self._files():
                try:
                    loaded = _load(path)
                except (OSError, ValueError) as fault:
                    reason = fault.strerror if isinstance(fault, OSError) else str(fault)
                    stays = "; what it held before stays" if self._held.get(path) else ""
                    rejections.append(Rejection(ObjectRef("File", ascii(str(path))[1:-1]), Reason.UNREADABLE, f"{reason}{stays}"))
                    held[path] = self._held.get(path, [])
                    for kind, name in held[path]:
                        listings[kind].names.add(name)
                else:
                    held[path] = list(self._put(path, loaded, listings, rejections))
        self._held = held
        self.rejections = tuple(rejections)

    def _put(
        self, path: Path, loaded: list[object], listings: dict[str, Listing], rejections: list[Rejection]
    ) -> Iterator[tuple[str, Name]]:
        for number, raw in enumerate(_flatten(loaded), start=1):
            kind = _kind(raw)
            if not isinstance(raw, dict) or kind is None:
                continue
            where = ObjectRef(kind, f"{ascii(str(path))[1:-1]} #{number}")
            metadata = raw.get("metadata")
            if kind == "Nft" and isinstance(metadata, dict) and metadata.get("namespace") is None:
                metadata["namespace"] = self._nft.namespace
            try:
                name, uid = identify(raw)
                if kind == "Nft" and name != self._nft:
                    continue
                if name in listings[kind].names:
                    message = f"{where.name} holds it again: the first one counts"
                    rejections.append(Rejection(ObjectRef(kind, str(name), uid), Reason.DUPLICATE, message))
                    continue
                listings[kind].put(raw)
            except Malformed as fault:
                rejections.append(Rejection(where, Reason.MALFORMED, str(fault)))
            else:
                yield kind, name

    def follow(self, stop: threading.Event) -> None:
        """Read the files again whenever one of them changes, until `stop`. Blocks: for a thread of its own."""
        while not stop.wait(POLL_INTERVAL):
            if self._signature() != self._seen:
                try:
                    self.read()
                except ManifestError as fault:
                    log.warning("%s; what was read before stays", fault)

    def _signature(self) -> list[tuple[str, int, int, int]]:
        """Changes when a file does."""
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
    """Hidden files and folders are not: editors, git and mounted ConfigMaps keep copies in them."""
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
    """A JSON object of which no key stands twice: readers differ in which one counts."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:60]!a} stands twice in one object")
        found[key] = value
    return found


def _flatten(loaded: list[object]) -> Iterator[object]:
    """The objects of documents, those inside Lists too; items of a ServiceList say nothing of their own kind."""
    for document in loaded:
        items, kind = (document.get("items"), document.get("kind")) if isinstance(document, dict) else (None, None)
        if not isinstance(document, dict) or not isinstance(items, list) or not isinstance(kind, str) or not kind.endswith("List"):
            yield document
            continue
        kind = kind.removesuffix("List")
        for item in items:
            yield {"apiVersion": document.get("apiVersion"), "kind": kind, **item} if kind and isinstance(item, dict) else item


def _kind(raw: object) -> str | None:
    """"Service" or "Nft"; None for everything that is not ours."""
    if not isinstance(raw, dict):
        return None
    version, kind = raw.get("apiVersion"), raw.get("kind")
    if kind == "Service" and version == "v1":
        return "Service"
    if kind == "Nft" and isinstance(version, str) and version.startswith("nft.acnodal.com/"):
        return "Nft"
    return None
