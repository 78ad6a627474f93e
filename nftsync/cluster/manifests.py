"""Services, the Nft resource and MetalLB's objects from YAML files.

For the demo, for previews, and for a router without a cluster. A file can hold Lists, as
`kubectl get … -o yaml` prints them. If it is unreadable, its previous objects stay. No API server
checks a file, so this module refuses the kinds and fields that a server would refuse.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from nftsync.cluster.cache import Inputs, Relist
from nftsync.cluster.kubeconfig import Stamp, stamp
from nftsync.cluster.manifestfile import read_objects
from nftsync.cluster.watch import JOIN, WatchState
from nftsync.config import InputError
from nftsync.objects.fields import Recognized, complaints, recognize
from nftsync.objects.names import LEGACY, Malformed, Name, ObjectRef, Reason, Rejection, identify
from nftsync.objects.nft import METALLB_NAMESPACE, RouterStatus
from nftsync.report.events import Notice

SUFFIXES = (".yaml", ".yml", ".json")
POLL_INTERVAL = 1.0  # seconds between looks at the files

Objects = set[tuple[str, Name]]  # kinds and names
Unclear = set[tuple[str, Path]]  # kinds and files

log = logging.getLogger(__name__)


class ManifestError(InputError):
    """There is no file or folder at a given path."""


@dataclass(frozen=True, slots=True)
class _Manifest:
    """An object of a supported kind. where: its file, and its number in that file, from 1.

    kind: "" if the author of the object seems to mean none of ours.
    complaint: why its kind or version is refused; "" if it is not.
    """

    kind: str
    complaint: str
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
        self._names: Mapping[Path, Objects] = {}  # of each file's last readable version
        self._unclear: Unclear | None = None  # see _Reading
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
        self._seen = self._signature()  # before the reading: a later change causes another
        with ExitStack() as stack:
            relists = {kind: stack.enter_context(cache.relist()) for kind, cache in self._caches.items()}
            reading = _Reading(relists, self._names, self._unclear, self._counting)
            manifests: list[_Manifest] = []
            for path in self._files():
                try:
                    manifests.extend(_manifests(path, held=bool(self._names.get(path))))
                except (OSError, ValueError) as error:
                    reading.unreadable(path, error)
            # The Nft resource comes first: it names the namespace of MetalLB's objects.
            for manifest in sorted(manifests, key=lambda manifest: manifest.kind != "Nft"):
                reading.take(manifest)
            reading.finish()
        self._names, self._unclear = reading.names, reading.unclear
        self.rejections = tuple(reading.rejections)

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


class _Reading:
    """One reading of all files into the caches.

    relists: by kind.  before: the objects of each file in its previous reading.
    were_unclear: the kinds of which this process has never known all objects of a file; None before
    its first reading.
    counting: see Manifests._counting().
    """

    def __init__(
        self,
        relists: Mapping[str, Relist],
        before: Mapping[Path, Objects],
        were_unclear: Unclear | None,
        counting: Callable[[str], tuple[str | None, str | None]],
    ) -> None:
        self._relists = relists
        self._before = before
        self._were_unclear = were_unclear
        self._counting = counting
        self._refused: dict[tuple[str, Name], tuple[Path, Rejection]] = {}
        # The files with an object whose name is not clear, and what to tell of them.
        self._doubtful: dict[Path, list[Rejection]] = defaultdict(list)
        self.names: dict[Path, Objects] = defaultdict(set)
        self.unclear: Unclear = set()
        self.rejections: list[Rejection] = []

    def unreadable(self, path: Path, error: OSError | ValueError) -> None:
        """Keep the previous objects of a file."""
        self._keep(path, self._before.get(path, ()))
        reason = error.strerror if isinstance(error, OSError) else str(error)
        self._doubtful[path].append(Rejection(ObjectRef("File", _printable(path)), Reason.UNREADABLE, f"{reason}"))

    def take(self, manifest: _Manifest) -> None:
        """Put an object into its cache, or refuse it and keep its previous version."""
        kind, where = manifest.kind, manifest.where
        if not kind:
            self._refuse_unnamed(manifest, Reason.UNKNOWN_KIND, manifest.complaint)
            return
        namespace, only = self._counting(kind)
        metadata = manifest.raw.get("metadata")
        if namespace is not None and isinstance(metadata, dict) and metadata.get("namespace") is None:
            metadata["namespace"] = namespace
        found = complaints(manifest.raw, kind)
        complaint = "; ".join(filter(None, (manifest.complaint, *found.texts)))
        reason = Reason.UNKNOWN_KIND if manifest.complaint else Reason.UNKNOWN_FIELD
        try:
            name, uid = identify(manifest.raw)
        except Malformed as error:
            self._refuse_unnamed(manifest, reason if complaint else Reason.MALFORMED, complaint or str(error))
            return
        if found.renames:
            self._doubtful[manifest.path]  # nothing more to tell
        elif namespace not in (None, name.namespace) or only not in (None, name.name):
            return  # it does not count
        relist, ref = self._relists[kind], ObjectRef(kind, str(name), uid)
        if name in relist.names:
            message = f"{where} holds it again: the first one counts"
            self.rejections.append(Rejection(ref, Reason.DUPLICATE, message))
        elif complaint:
            if (kind, name) in self._before.get(manifest.path, ()):
                relist.names.add(name)  # another file with this object comes second
            self._refused[kind, name] = manifest.path, Rejection(ref, reason, f"{where}: {complaint}")
        else:
            relist.put(manifest.raw)
            self.names[manifest.path].add((kind, name))

    def finish(self) -> None:
        """Keep the previous versions of refused objects, unless another file has replaced them."""
        for (kind, name), (path, rejection) in self._refused.items():
            replaced = self._held(kind, name) and (kind, name) not in self._before.get(path, ())
            stays = not replaced and self._keep(path, [(kind, name)])
            if not stays and not replaced:
                self.unclear.add((kind, path))  # the previous process may have known a good one
            end = "its previous version stays" if stays else "it does not count"
            self.rejections.append(replace(rejection, message=f"{rejection.message}; {end}"))
        remembered = [(kind, name) for kind, relist in self._relists.items() for name in relist.remembered]
        remembered = [(kind, name) for kind, name in remembered if not self._held(kind, name)]
        told: list[Rejection] = []
        for path, rejections in self._doubtful.items():
            before = self._before.get(path, set())
            stay = self._keep(path, [*(each for each in before if not self._held(*each)), *remembered])
            end = "; its previous objects stay" if stay or before & self.names[path] else ""
            told += [replace(each, message=f"{each.message}{end}") for each in rejections]
            self.unclear.update((kind, path) for kind in self._relists)
        self.rejections[:0] = told
        if self._were_unclear is not None:
            self.unclear &= self._were_unclear
        for kind, _ in self.unclear:
            self._relists[kind].is_partial = True

    def _held(self, kind: str, name: Name) -> bool:
        return name in self._relists[kind].names

    def _refuse_unnamed(self, manifest: _Manifest, reason: Reason, complaint: str) -> None:
        """Refuse an object that has no valid name: it can be any of its file."""
        ref = ObjectRef(manifest.kind or "File", manifest.where)
        self._doubtful[manifest.path].append(Rejection(ref, reason, complaint))

    def _keep(self, path: Path, objects: Iterable[tuple[str, Name]]) -> bool:
        """Keep the previous versions of objects. Returns True if there are any."""
        kept = [(kind, name) for kind, name in objects if self._relists[kind].keep(name)]
        self.names[path].update(kept)
        return bool(kept)


def _is_manifest(path: Path, folder: Path) -> bool:
    # Editors, git and mounted ConfigMaps keep copies in hidden files and folders.
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    # A link that leads nowhere is told, because its objects are not gone: a share can be away.
    return path.suffix in SUFFIXES and not hidden and (path.is_file() or (path.is_symlink() and not path.exists()))


def _manifests(path: Path, *, held: bool) -> Iterator[_Manifest]:
    """A file's objects of supported kinds. Raises OSError or ValueError.

    held: whether it has held any. Then it does not turn into Helm's values, but it can be damaged.
    """
    for number, raw in enumerate(read_objects(path), start=1):
        if not isinstance(raw, dict):
            continue
        known = recognize(raw)
        if known is None and held and raw and raw.keys().isdisjoint(("apiVersion", "kind")):
            known = Recognized("", "apiVersion and kind are missing")
        if known:
            yield _Manifest(known.kind, known.complaint, raw, path, f"{_printable(path)} #{number}")


def _printable(path: Path) -> str:
    return ascii(str(path))[1:-1]
