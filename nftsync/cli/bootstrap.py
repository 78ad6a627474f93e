"""`nftsync bootstrap`: set up a cluster for its routers, and make the routers' kubeconfig.

It uses an administrator's kubeconfig. It does not write an object that is correct already. With
server-side apply, it does not overwrite other people's settings.
Source: Kubernetes, "Server-Side Apply"; "Manually create an API token for a ServiceAccount".
"""

import base64
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tenacity import RetryError, Retrying, retry_if_exception, retry_if_not_result, stop_after_delay, wait_fixed

from nftsync.cluster.api import Api
from nftsync.cluster.backoff import ApiError
from nftsync.cluster.kubeconfig import UNSAFE, Kubeconfig
from nftsync.objects.fields import removed
from nftsync.objects.names import NFT, NftsyncError, quote
from nftsync.objects.nft import METALLB_NAMESPACE, NftSpec, parse_nft

INSTALLED = Path("/usr/share/nftsync")  # where the package puts these files
CHECKOUT = Path(__file__).parents[2] / "packaging" / "kubernetes"
FILES = ("crd.yaml", "rbac.yaml", "nft.yaml", "ratelimit-policy.yaml")
OPTIONAL = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")  # Kubernetes 1.30 has them
ADMINISTRATORS = ("Nft", "ValidatingAdmissionPolicyBinding")  # once they exist: their settings are choices
NAME = "nftsync"  # the ServiceAccount, and the kubeconfig's cluster, user and context
PATIENCE = 20.0  # seconds to wait until the cluster serves a new kind, or fills in a token

# Servers before 1.25 do not know fieldValidation. The others warn of unknown fields that they remove.
_QUERY = {"fieldManager": "nftsync-bootstrap", "fieldValidation": "Warn"}


class BootstrapError(NftsyncError):
    """The bootstrap failed; the message names the reason."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object that a cluster needs. str() is its kind and name."""

    raw: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return str(self.raw["kind"])

    @property
    def path(self) -> str:
        """Its path in the API."""
        metadata = self.raw["metadata"]
        within = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
        return f"{self.root}{within}/{self.plural}/{metadata['name']}"

    @property
    def root(self) -> str:
        """The path of its API group, which lists the kinds."""
        version = self.raw["apiVersion"]
        return "/api/v1" if version == "v1" else f"/apis/{version}"

    @property
    def plural(self) -> str:
        """The plural of its kind, for the kinds in FILES."""
        return re.sub("y$", "ie", self.kind.lower()) + "s"

    def __str__(self) -> str:
        metadata = self.raw["metadata"]
        return f"{self.kind} {'/'.join(metadata[key] for key in ('namespace', 'name') if key in metadata)}"


def text() -> str:
    """All objects as YAML, for `kubectl apply -f -`. Raises BootstrapError and OSError."""
    for folder in (CHECKOUT, INSTALLED):
        if all((folder / name).is_file() for name in FILES):
            return "---\n".join((folder / name).read_text(encoding="utf-8") for name in FILES)
    raise BootstrapError(f"the objects for a cluster are not installed: there is no {', '.join(FILES)} in {INSTALLED}")


def administrators() -> Path:
    """The path of kubectl's default kubeconfig."""
    named = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(named) if named else Path.home() / ".kube" / "config"


def bootstrap(kubeconfig: Path, told: Callable[[str], None], server: str | None = None) -> str:
    """Apply the missing or different objects. Returns the routers' kubeconfig, the same each time.

    kubeconfig: the administrator's.  told: called with a line about each object.
    server: the API server's address for routers; None for that of the administrator's kubeconfig.
    Raises BootstrapError, ApiError and OSError.
    """
    if not kubeconfig.exists():
        remedy = "name an administrator's kubeconfig with --kubeconfig FILE"
        raise BootstrapError(f"{kubeconfig}: there is no such file: {remedy}")
    manifests = [Manifest(raw) for raw in yaml.safe_load_all(text()) if raw]
    allowed = UNSAFE.keys() - {"insecure-skip-tls-verify"}
    with closing(Api(kubeconfig, allowed=allowed)) as api:
        api.warned = lambda text: told(f"warning of the API server: {text}")
        spec = _spec(api, manifests)
        manifests = [_fitted(manifest, spec) for manifest in manifests]
        for manifest in manifests:
            told(f"{manifest}: {(_try if manifest.kind in OPTIONAL else _apply)(api, manifest)}")
        [secret] = (manifest for manifest in manifests if manifest.kind == "Secret")
        token = _token(api, secret)
    return _kubeconfig(Kubeconfig.read(kubeconfig, allowed), server, token, secret.raw["metadata"]["namespace"])


def _spec(api: Api, manifests: Iterable[Manifest]) -> NftSpec | None:
    """The settings of the cluster's Nft, None without usable ones. Raises ApiError."""
    [nft] = (manifest for manifest in manifests if manifest.kind == NFT.name)
    present = _present(api, nft)
    return parse_nft(present, None).spec if present else None


def _fitted(manifest: Manifest, spec: NftSpec | None) -> Manifest:
    """The manifest with the namespace and the ConfigMap of MetalLB that the cluster's Nft names."""
    raw, metadata = manifest.raw, manifest.raw["metadata"]
    if spec is None:
        return manifest
    if (manifest.kind, metadata["name"]) == ("Namespace", METALLB_NAMESPACE):
        return Manifest({**raw, "metadata": {**metadata, "name": spec.metallb_namespace}})
    if metadata.get("namespace") != METALLB_NAMESPACE:
        return manifest
    raw = {**raw, "metadata": {**metadata, "namespace": spec.metallb_namespace}}
    if spec.metallb_configmap and manifest.kind == "Role":
        named = {"resourceNames": [spec.metallb_configmap]}
        raw["rules"] = [rule | named if "resourceNames" in rule else rule for rule in raw["rules"]]
    return Manifest(raw)


def _apply(api: Api, manifest: Manifest) -> str:
    """Apply one object. Returns the result as a phrase. Raises ApiError and BootstrapError."""
    present = _present(api, manifest)
    if present is not None:
        if manifest.kind in ADMINISTRATORS:
            return "; ".join(("exists, unchanged", *removed(present, manifest.kind).texts))
        if manifest.kind == "Secret" and present.get("type") != manifest.raw["type"]:
            raise BootstrapError(f"{manifest} exists and is not a ServiceAccount's token: delete or rename it")
        if _covers(present, manifest.raw):
            return "exists, correct"
    patiently = _patiently(retry_if_exception(_is_absent))  # a new kind is absent until the server serves it
    try:
        patiently(api.request, "PATCH", manifest.path, _QUERY, manifest.raw, "application/apply-patch+yaml")
    except ApiError as error:
        if error.status != 409:
            raise
        problem = "exists with other settings, which nftsync does not overwrite"
        raise BootstrapError(f"{manifest} {problem}: {error}") from error
    if manifest.kind == "Nft":
        return f"created: an example with public_nic {manifest.raw['spec']['public_nic']}"
    return "created" if present is None else "changed"


def _try(api: Api, manifest: Manifest) -> str:
    """Apply one object that routers can do without. Returns the result as a phrase. Raises ApiError.

    A cluster can lack its kind or a part of it. An administrator can lack the right, or prefer other
    settings. None of these keeps the routers from their kubeconfig.
    """
    try:
        if manifest.plural not in (each["name"] for each in api.request("GET", manifest.root)["resources"]):
            return "left out: this cluster does not have the kind, which came with Kubernetes 1.30"
        return _apply(api, manifest)
    except BootstrapError as error:
        return str(error).removeprefix(f"{manifest} ")
    except ApiError as error:
        if error.status not in (403, 404, 422):
            raise
        return f"left out: {error}"


def _covers(found: object, wanted: object) -> bool:
    """True if an object of the cluster has the wanted fields.

    The server can add fields. A list must be equal, because an addition could be a right.
    """
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            _covers(found[key], value) if key in found else not value  # it leaves out false values
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_covers, found, wanted))
    return found == wanted


def _present(api: Api, manifest: Manifest) -> Any:
    try:
        return api.request("GET", manifest.path)
    except ApiError as error:
        if _is_absent(error):
            return None
        raise


def _is_absent(error: BaseException) -> bool:
    return isinstance(error, ApiError) and error.status == 404


def _patiently(retry: Any) -> Retrying:
    """Calls a function again while tenacity's condition `retry` holds, up to PATIENCE."""
    return Retrying(retry=retry, stop=stop_after_delay(PATIENCE), wait=wait_fixed(0.2), reraise=True)


def _token(api: Api, secret: Manifest) -> str:
    """The token that the cluster fills in. Raises ApiError and BootstrapError."""

    def encoded() -> Any:
        return (api.request("GET", secret.path).get("data") or {}).get("token")

    try:
        return base64.b64decode(_patiently(retry_if_not_result(bool))(encoded), validate=True).decode("ascii")
    except RetryError:
        raise BootstrapError(
            f"the cluster filled in no token in {secret} within {PATIENCE:.0f} s: "
            "check that its kube-controller-manager runs, and run this again"
        ) from None
    except ValueError:
        raise BootstrapError(f"{secret} holds an invalid token: delete the Secret and run this again") from None


def _kubeconfig(administrator: Kubeconfig, server: str | None, token: str, namespace: str) -> str:
    url = server or administrator.server
    if not url.startswith("https://"):
        raise BootstrapError(f"{quote(url)} is not an https:// address: routers could not verify the server")
    cluster = {"server": url}
    if authority := administrator.configuration.ssl_ca_cert:
        cluster["certificate-authority-data"] = base64.b64encode(Path(authority).read_bytes()).decode()
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": NAME, "cluster": cluster}],
        "users": [{"name": NAME, "user": {"token": token}}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME, "namespace": namespace}}],
        "current-context": NAME,
    }
    return str(yaml.safe_dump(document, sort_keys=False))
