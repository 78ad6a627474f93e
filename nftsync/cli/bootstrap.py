"""`nftsync bootstrap`: set up a cluster for its routers, and make the routers' kubeconfig.

It uses an administrator's kubeconfig. It does not write an object that is correct already. With
server-side apply, it does not overwrite other people's settings.
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
from nftsync.objects.names import NFT, NftsyncError, quote

INSTALLED = Path("/usr/share/nftsync")  # where the package puts these files
CHECKOUT = Path(__file__).parents[2] / "packaging" / "kubernetes"
FILES = ("crd.yaml", "rbac.yaml", "nft.yaml")
NAME = "nftsync"  # the ServiceAccount, and the kubeconfig's cluster, user and context
PATIENCE = 20.0  # seconds to wait until the cluster serves a new kind, or fills in a token

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


class BootstrapError(NftsyncError):
    """The bootstrap failed; the message names the reason."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object that a cluster needs."""

    raw: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return str(self.raw["kind"])

    @property
    def collection(self) -> str:
        """The API's path of all objects of its kind in its namespace."""
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
    """All objects as YAML, for `kubectl apply -f -`. Raises BootstrapError."""
    folder = _folder()
    try:
        return "---\n".join((folder / name).read_text(encoding="utf-8") for name in FILES)
    except OSError as fault:
        raise BootstrapError(f"{fault.filename}: {fault.strerror}") from fault


def _folder() -> Path:
    for folder in (CHECKOUT, INSTALLED):
        if all((folder / name).is_file() for name in FILES):
            return folder
    raise BootstrapError(f"the objects for a cluster are not installed: there is no {', '.join(FILES)} in {INSTALLED}")


def administrators() -> Path:
    """The path of kubectl's default kubeconfig."""
    named = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(named) if named else Path.home() / ".kube" / "config"


def bootstrap(kubeconfig: Path, told: Callable[[str], None], server: str | None = None) -> str:
    """Apply the missing or different objects. Returns the routers' kubeconfig, the same each time.

    kubeconfig: the administrator's.  told: called with a line about each object.
    server: the API server's address for routers; None for that of the administrator's kubeconfig.
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
    """Apply one object. Returns the result as a phrase. Raises ApiError and BootstrapError."""
    before = _found(api, manifest)
    if manifest.kind == "Nft" and before is not None:
        return "exists, unchanged"
    if before is not None and manifest.kind == "Secret" and before.get("type") != manifest.raw["type"]:
        raise BootstrapError(f"{manifest} exists and is not a ServiceAccount's token: delete or rename it")
    if before is not None and _covers(before, manifest.raw):
        return "exists, correct"
    query = {"fieldManager": _MANAGER}
    try:
        _patiently(lambda: api.request("PATCH", manifest.path, query, manifest.raw, "application/apply-patch+yaml"))
    except ApiError as fault:
        if fault.status == 409:
            raise BootstrapError(f"{manifest} exists with other settings, which nftsync does not overwrite: {fault}") from fault
        raise
    if before is None:
        example = f": an example with public_nic {manifest.raw['spec']['public_nic']}" if manifest.kind == "Nft" else ""
        return f"created{example}"
    return "changed"


def _covers(found: object, wanted: object) -> bool:
    """True if an object of the cluster has the wanted fields.

    The server can add fields. A list must be equal, because an addition could be a right.
    """
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            _covers(found[key], each) if key in found else not each  # it leaves out false values
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
    """Try again on 404, up to PATIENCE: a new kind answers 404 until the server serves it."""
    ends = time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except ApiError as fault:
            if fault.status != 404 or time.monotonic() > ends:
                raise
        time.sleep(0.2)


def _token(api: Api, secret: Manifest) -> str:
    """The token that the cluster fills in. Raises ApiError and BootstrapError."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        found = api.request("GET", secret.path)
        encoded = (found.get("data") or {}).get("token")
        if encoded:
            try:
                return base64.b64decode(encoded, validate=True).decode("ascii")
            except (binascii.Error, ValueError):
                raise BootstrapError(f"{secret} holds an invalid token: delete the Secret and run this again") from None
        time.sleep(0.2)
    raise BootstrapError(
        f"the cluster filled in no token in {secret} within {PATIENCE:.0f} s: "
        "check that its kube-controller-manager runs, and run this again"
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
        raise BootstrapError(f"{quote(cluster['server'])} is not an https:// address: routers could not verify the server")
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": NAME, "cluster": cluster}],
        "users": [{"name": NAME, "user": {"token": token}}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME, "namespace": namespace}}],
        "current-context": NAME,
    }
    return str(yaml.safe_dump(document, sort_keys=False))
