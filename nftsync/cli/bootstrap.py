"""`nftsync bootstrap`: what a cluster needs for its routers, applied with an administrator's kubeconfig, and the routers' own one.

What stands as it should is not written again; with server-side apply, what somebody else has set otherwise is not overwritten.
Source: Kubernetes, "Server-Side Apply"; "Manually create an API token for a ServiceAccount".
"""

from __future__ import annotations

import base64
import binascii
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nftsync.cluster.api import Api
from nftsync.cluster.backoff import ApiError
from nftsync.cluster.kubeconfig import UNSAFE, Kubeconfig
from nftsync.objects.kinds import NFT
from nftsync.objects.names import quote

INSTALLED = Path("/usr/share/nftsync")  # by the package
CHECKOUT = Path(__file__).parents[2] / "packaging" / "kubernetes"
FILES = ("crd.yaml", "rbac.yaml", "nft.yaml")
NAME = "nftsync"  # of the ServiceAccount, and in the kubeconfig of cluster, user and context
PATIENCE = 20.0  # seconds that the cluster may take to serve a new kind, or to fill in a token

_MANAGER = "nftsync-bootstrap"
_PLURALS = {
    "Namespace": "namespaces",
    "ServiceAccount": "serviceaccounts",
    "Secret": "secrets",
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "CustomResourceDefinition": "customresourcedefinitions",
    NFT.name: NFT.plural,
}


class BootstrapError(Exception):
    """What was asked for can't be done; the message says why."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object that a cluster needs."""

    raw: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return str(self.raw["kind"])

    @property
    def collection(self) -> str:
        """The path of the API where its like are."""
        version, namespace = self.raw["apiVersion"], self.raw["metadata"].get("namespace")
        root = "/api/v1" if version == "v1" else f"/apis/{version}"
        return f"{root}{f'/namespaces/{namespace}' if namespace else ''}/{_PLURALS[self.kind]}"

    @property
    def path(self) -> str:
        return f"{self.collection}/{self.raw['metadata']['name']}"

    def __str__(self) -> str:
        namespace = self.raw["metadata"].get("namespace")
        return f"{self.kind} {f'{namespace}/' if namespace else ''}{self.raw['metadata']['name']}"


def text() -> str:
    """All of it as YAML, for `kubectl apply -f -`. Raises BootstrapError."""
    folder = _folder()
    try:
        return "---\n".join((folder / name).read_text(encoding="utf-8") for name in FILES)
    except OSError as fault:
        raise BootstrapError(f"{fault.filename}: {fault.strerror}") from fault


def _folder() -> Path:
    for folder in (CHECKOUT, INSTALLED):
        if all((folder / name).is_file() for name in FILES):
            return folder
    raise BootstrapError(f"what a cluster needs is not installed: there is no {', '.join(FILES)} in {INSTALLED}")


def administrators() -> Path:
    """The kubeconfig that kubectl would take."""
    named = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(named) if named else Path.home() / ".kube" / "config"


def bootstrap(kubeconfig: Path, told: Callable[[str], None], server: str | None = None) -> str:
    """Apply what is not there as it should be; returns the routers' kubeconfig, the same one each time.

    kubeconfig: the administrator's.  told: called with what was done, a line each.  server: where routers find the API server.
    Raises BootstrapError and ApiError.
    """
    if not kubeconfig.exists():
        raise BootstrapError(f"{kubeconfig}: there is no such file: name an administrator's kubeconfig with --kubeconfig FILE")
    manifests = [Manifest(raw) for raw in yaml.safe_load_all(text()) if raw]
    allowed = UNSAFE.keys() - {"insecure-skip-tls-verify"}
    api = Api(kubeconfig, allowed=allowed)
    try:
        api.connect()
        for manifest in manifests:
            told(f"{manifest}: {_apply(api, manifest)}")
        [secret] = (each for each in manifests if each.kind == "Secret")
        token = _token(api, secret)
    finally:
        api.close()
    return _kubeconfig(Kubeconfig.read(kubeconfig, allowed), server, token, secret.raw["metadata"]["namespace"])


def _apply(api: Api, manifest: Manifest) -> str:
    """What became of it. Raises ApiError and BootstrapError."""
    before = _found(api, manifest)
    if manifest.kind == "Nft" and before is not None:
        return "stays as it is"
    if before is not None and manifest.kind == "Secret" and before.get("type") != manifest.raw["type"]:
        raise BootstrapError(f"{manifest} is there and is no ServiceAccount's token: delete or rename it")
    if before is not None and _covers(before, manifest.raw):
        return "is as it should be"
    query = {"fieldManager": _MANAGER}
    try:
        _patiently(lambda: api.request("PATCH", manifest.path, query, manifest.raw, "application/apply-patch+yaml"))
    except ApiError as fault:
        if fault.status == 409:
            raise BootstrapError(f"{manifest} is there and says otherwise, which is not overwritten: {fault}") from fault
        raise
    if before is None:
        example = f": an example, whose public_nic is {manifest.raw['spec']['public_nic']}" if manifest.kind == "Nft" else ""
        return f"created{example}"
    return "changed"


def _covers(found: object, wanted: object) -> bool:
    """Whether an object of the cluster says what is wanted. The server adds fields; nobody may add to a list of rights."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            _covers(found[key], each) if key in found else not each  # it leaves out what is false
            for key, each in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_covers, found, wanted))
    return found == wanted


def _found(api: Api, manifest: Manifest) -> Any:
    try:
        return api.request("GET", manifest.path)
    except ApiError as fault:
        if fault.status == 404:
            return None
        raise


def _patiently(ask: Callable[[], Any]) -> Any:
    """A kind whose definition is new answers 404 until it is served."""
    ends = time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except ApiError as fault:
            if fault.status != 404 or time.monotonic() > ends:
                raise
        time.sleep(0.2)


def _token(api: Api, secret: Manifest) -> str:
    """What the cluster has filled in. Raises BootstrapError."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        found = api.request("GET", secret.path)
        encoded = (found.get("data") or {}).get("token")
        if encoded:
            try:
                return base64.b64decode(encoded, validate=True).decode("ascii")
            except (binascii.Error, ValueError):
                raise BootstrapError(f"{secret} holds a token that is none: delete it and run this again") from None
        time.sleep(0.2)
    raise BootstrapError(
        f"the cluster has filled in no token in {secret} within {PATIENCE:.0f} s: does its kube-controller-manager run? "
        "Run this again when it does"
    )


def _kubeconfig(administrator: Kubeconfig, server: str | None, token: str, namespace: str) -> str:
    cluster = {"server": server or administrator.server}
    authority = administrator.configuration.ssl_ca_cert
    if authority:
        try:
            cluster["certificate-authority-data"] = base64.b64encode(Path(authority).read_bytes()).decode()
        except OSError as fault:
            raise BootstrapError(f"{quote(authority)}: {fault.strerror}") from fault
    if not cluster["server"].startswith("https://"):
        raise BootstrapError(f"{quote(cluster['server'])} is no https:// address: nobody could verify what routers are told there")
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": NAME, "cluster": cluster}],
        "users": [{"name": NAME, "user": {"token": token}}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME, "namespace": namespace}}],
        "current-context": NAME,
    }
    return str(yaml.safe_dump(document, sort_keys=False))
