"""A real API server for tests: etcd and kube-apiserver on loopback, with certificates, data and ports of their own.

    with ApiServer() as server:
        server.apply(MANIFESTS / "crd.yaml", MANIFESTS / "rbac.yaml")
        server.admin.get("/api/v1/services")        # as cluster administrator
        server.kubeconfig("nftsync")                # as the shipped ServiceAccount, with the shipped rights
        server.kill(); server.restart()             # same port, same data
        server.compact()                            # versions handed out so far are gone: a real 410

Unless a test starts kube-controller-manager, none runs. Then a token Secret is filled here as its token controller
would, a deleted Namespace stays Terminating, nothing collects garbage, and Services get no endpoints.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import urllib3
import yaml

from tests.apiserver.client import Client, RefusedError, parsed, refusal_of
from tests.apiserver.settled import grants_rights, knows_bearer, serves_kind, serves_no_kind
from tests.programs.cache import NEW, OLD, build, kubernetes

HERE = Path(__file__).parent
MANIFESTS = HERE.parents[1] / "packaging" / "kubernetes"

NAMESPACE = "arbf-operators"
ROUTER = "nftsync"  # the ServiceAccount of rbac.yaml
ROUTER_SECRET = "nftsync-token"
NFTS = f"/apis/nft.acnodal.com/v1alpha1/namespaces/{NAMESPACE}/nfts"

_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_ADMIN_TOKEN = "admin"
_ISSUER = "https://kubernetes.default.svc"
# Below the ports that the kernel gives to outgoing connections (ip_local_port_range): a port of a killed server can't
# be taken by somebody's connection, nor by a client that connects to itself, before the server is back.
_PORTS = range(20000, 30000)
# The parent may have died before the kernel was asked to tell of its death.
_UNLESS_ORPHANED = '[ "$PPID" = "$0" ] && exec "$@"'
_START_SECONDS = 120.0  # a few on an idle machine
PATIENCE = 60.0  # seconds until something that always happens is taken to have failed: a busy machine is no fault

T = TypeVar("T")


class HarnessError(Exception):
    """The API server can't be had, or is not as it should be; says why and what to do."""


def eventually(condition: Callable[[], T | None], what: str, seconds: float = PATIENCE) -> T:
    """The first true value of `condition`, tried every 20 ms. Raises HarnessError after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise HarnessError(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(0.02)
    return value


# --- programs -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the programs of one Kubernetes are. kube_controller_manager: None if there is none."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path | None = None


def versions() -> tuple[str, ...]:
    """The servers that tests run against; "given" for that of $KUBEBUILDER_ASSETS."""
    return ("given",) if os.environ.get("KUBEBUILDER_ASSETS") else (OLD, NEW)


def programs_of(version: str) -> Programs:
    """The programs of one of versions(); what is missing is built. Raises HarnessError or ProgramsError."""
    if version == "given":
        return _programs_in(Path(os.environ["KUBEBUILDER_ASSETS"]))
    build([kubernetes(version)])
    return _programs_in(kubernetes(version))


def _programs_in(folder: Path) -> Programs:
    """Debian's etcd is for a folder without one: a server of its age."""
    etcd = shutil.which(folder / "etcd") or shutil.which("etcd")
    if etcd is None:
        raise HarnessError("there is no etcd: install the package etcd-server")
    if not os.access(folder / "kube-apiserver", os.X_OK):
        raise HarnessError(f"there is no kube-apiserver in {folder}")
    manager = folder / "kube-controller-manager"
    return Programs(Path(etcd), folder / "kube-apiserver", manager if manager.exists() else None)


# --- the server ---------------------------------------------------------------------------------------


class ApiServer:
    """etcd and kube-apiserver, from entering the context to leaving it, and never after the process that entered it.

    options: further flags of kube-apiserver. With `--watch-cache=false` a watch from a compacted version is a 410;
    otherwise kube-apiserver remembers what etcd has forgotten until it is restarted.  programs: the newest unless
    others are given.  address: where it listens.

    The processes are killed with the *thread* that started them (prctl(2), PR_SET_PDEATHSIG): call start and
    restart() from one that lives on.
    """

    def __init__(
        self, options: Sequence[str] = (), programs: Programs | None = None, address: str = "127.0.0.1"
    ) -> None:
        self._options = tuple(options)
        self._programs = programs
        self._address = address

    def __enter__(self) -> Self:
        programs = self.programs = self._programs or programs_of(versions()[-1])
        self._etcd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._manager: subprocess.Popen[bytes] | None = None
        self._reservations: list[socket.socket] = []
        self._temporary = tempfile.TemporaryDirectory(prefix="nftsync-apiserver-")
        self.folder = Path(self._temporary.name)
        atexit.register(self.close)
        try:
            self._etcd_url = f"http://127.0.0.1:{self._reserve_port()}"
            port = self._reserve_port()
            self.url = f"https://{self._address}:{port}"
            self._make_keys()
            self._command = self._server_command(programs.kube_apiserver, port)
            self.admin = self.client(_ADMIN_TOKEN)
            self._etcd = self._spawn("etcd", self._etcd_command(programs.etcd))
            self.restart()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes and remove all data. May be called twice."""
        atexit.unregister(self.close)
        _kill(self._manager)
        self._manager = None
        self.kill()
        _kill(self._etcd)
        self._etcd = None
        for reservation in self._reservations:
            reservation.close()
        self._reservations.clear()
        self._temporary.cleanup()

    def kill(self) -> None:
        """End kube-apiserver as a power cut would: no goodbye to its clients. etcd stays."""
        _kill(self._server)
        self._server = None

    def restart(self) -> None:
        """Start kube-apiserver, after killing the one that runs, on the same port and data; ready on return."""
        self.kill()
        self._server = self._spawn("kube-apiserver", self._command)
        try:
            eventually(self._ready, "kube-apiserver is not ready", _START_SECONDS)
        except HarnessError as fault:
            raise HarnessError(f"{fault}\n{self._log_end('etcd')}\n{self._log_end('kube-apiserver')}") from None

    def manage(self) -> bool:
        """Have kube-controller-manager run, over restarts of the server too. False if this Kubernetes has none."""
        program = self.programs.kube_controller_manager
        if program is not None and self._manager is None:
            self._manager = self._spawn("kube-controller-manager", self._manager_command(program))
        return program is not None

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the servers that run: etcd, then kube-apiserver."""
        return tuple(process.pid for process in (self._etcd, self._server) if process)

    # --- what tests do with it ----------------------------------------------------------------------------

    def client(self, token: str) -> Client:
        """A client that bears this token."""
        return Client(self.url, self.folder / "tls.crt", token)

    def kubeconfig(self, user: str = ROUTER, token_file: Path | None = None) -> Path:
        """A kubeconfig for "nftsync" (the shipped ServiceAccount with the shipped Secret) or "admin".

        token_file: where the token is to be, for tests that change it; otherwise it is in the kubeconfig.
        """
        token = _ADMIN_TOKEN if user == "admin" else self.issue_token()
        identity = {"token": token}
        if token_file is not None:
            token_file.write_text(token, encoding="ascii")
            identity = {"tokenFile": str(token_file)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "test", "cluster": {"server": self.url, "certificate-authority": str(self.folder / "tls.crt")}}
            ],
            "users": [{"name": user, "user": identity}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        path = self.folder / f"{user}{'-token-file' if token_file else ''}.kubeconfig"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        path.chmod(0o600)
        return path

    def apply(self, *manifests: Path) -> None:
        """Create every object of these YAML files, or patch it as `kubectl apply` would.

        On return the server serves their kinds and grants their rights.
        """
        for manifest in manifests:
            for document in yaml.safe_load_all(manifest.read_text(encoding="utf-8")):
                if document:
                    self.apply_object(document)

    def apply_object(self, document: Mapping[str, Any]) -> None:
        """The same for one object."""
        collection = self._collection(document)
        try:
            self.admin.post(collection, document)
        except RefusedError as refusal:
            if refusal.status != 409:
                raise
            self.admin.patch(f"{collection}/{document['metadata']['name']}", document)
        if document["kind"] == "CustomResourceDefinition":
            eventually(lambda: serves_kind(self.admin, document), f"{document['metadata']['name']} is not served")
        elif document["apiVersion"].startswith("rbac."):
            self._until_rights_count()

    def delete_kind(self, name: str) -> None:
        """Delete a CustomResourceDefinition, if there is one, with all objects.

        On return the server no longer serves the kind.
        """
        path = f"{_DEFINITIONS}/{name}"
        try:
            definition = self.admin.get(path)
            self.admin.delete(path)
        except RefusedError as refusal:
            if refusal.status != 404:
                raise
            return
        eventually(lambda: refusal_of(lambda: self.admin.get(path)) == 404, f"{name} is not deleted")
        eventually(lambda: serves_no_kind(self.admin, definition), f"{name} is still served")

    def issue_token(self, secret: str = ROUTER_SECRET) -> str:
        """The token of a Secret of the shipped ServiceAccount, made and filled if need be as the cluster would.

        On return the server takes it, and grants what its bearer may do.
        """
        token = self._token_of(secret)
        bearer = self.client(token)
        eventually(lambda: knows_bearer(bearer), f"the token of Secret {secret} is not taken")
        self._until_rights_count()
        return token

    def _token_of(self, secret: str) -> str:
        secrets = f"/api/v1/namespaces/{NAMESPACE}/secrets"
        try:
            found = self.admin.get(f"{secrets}/{secret}")
        except RefusedError as refusal:
            if refusal.status != 404:
                raise
            metadata = {"name": secret, "annotations": {"kubernetes.io/service-account.name": ROUTER}}
            found = self.admin.post(secrets, {"metadata": metadata, "type": "kubernetes.io/service-account-token"})
        if self._manager is not None:
            found = eventually(lambda: _filled(self.admin.get(f"{secrets}/{secret}")), f"Secret {secret} has no token")
        if filled := _filled(found):
            return base64.b64decode(filled["data"]["token"]).decode()
        uid = self.admin.get(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{ROUTER}")["metadata"]["uid"]
        token = self._signed_token(secret, uid)
        content = {
            "metadata": {"annotations": {"kubernetes.io/service-account.uid": uid}},
            "data": {
                "token": base64.b64encode(token.encode()).decode(),
                "namespace": base64.b64encode(NAMESPACE.encode()).decode(),
                "ca.crt": base64.b64encode((self.folder / "tls.crt").read_bytes()).decode(),
            },
        }
        self.admin.patch(f"{secrets}/{secret}", content)
        return token

    @contextmanager
    def token_controller(self) -> Iterator[None]:
        """Fills in the routers' Secret once that is there: kube-controller-manager, or its part played here."""
        if self.manage():
            yield
            return

        def fill() -> None:
            secret = f"/api/v1/namespaces/{NAMESPACE}/secrets/{ROUTER_SECRET}"
            eventually(lambda: refusal_of(lambda: self.admin.get(secret)) is None, "the Secret is there")
            self.issue_token()

        thread = threading.Thread(target=fill)
        thread.start()
        yield
        thread.join()

    def revoke_token(self, secret: str = ROUTER_SECRET) -> None:
        """Delete the Secret. kube-apiserver takes a token for up to 10 s more, from its cache, unless restarted."""
        self.admin.delete(f"/api/v1/namespaces/{NAMESPACE}/secrets/{secret}")

    def compact(self) -> None:
        """Make etcd forget every version so far: a `continue` token of before is a 410; for a watch see `options`."""
        key = base64.b64encode(b"/nftsync-tests/compacted").decode()
        for _ in range(2):  # a watch from the version just before the compacted one still works
            answer = self._etcd_request("put", {"key": key, "value": key})
        self._etcd_request("compaction", {"revision": answer["header"]["revision"], "physical": True})

    # --- how it is done -----------------------------------------------------------------------------------

    def _until_rights_count(self) -> None:
        eventually(lambda: grants_rights(self.admin, NAMESPACE), f"rights in {NAMESPACE} are not granted")

    def _reserve_port(self) -> int:
        """A port that is free, and that no other harness on this machine takes until we close.

        The reservation is an abstract Unix socket: like ports these belong to the network namespace, and the kernel
        frees it with our process.
        """
        for port in random.sample(_PORTS, 200):
            reservation = socket.socket(socket.AF_UNIX)
            try:
                reservation.bind(f"\0nftsync-tests/port/{port}")
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            except OSError:
                reservation.close()
                continue
            self._reservations.append(reservation)
            return port
        raise HarnessError("there is no free port on 127.0.0.1")

    def _make_keys(self) -> None:
        """kube-apiserver's certificate, the key that signs tokens of ServiceAccounts, and the administrator's token."""
        tls = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=kube-apiserver"]
        names = ["-addext", f"subjectAltName=IP:{self._address}", "-days", "2"]
        self._openssl("req", "-x509", *tls, *names, "-keyout", "tls.key", "-out", "tls.crt")
        self._openssl("genrsa", "-out", "tokens.key", "2048")
        admin = f'{_ADMIN_TOKEN},admin,admin,"system:masters"\n'
        (self.folder / "users.csv").write_text(admin, encoding="ascii")

    def _openssl(self, *arguments: str, data: bytes = b"") -> bytes:
        command = ["openssl", *arguments]
        finished = subprocess.run(command, cwd=self.folder, input=data, capture_output=True, check=False)
        if finished.returncode:
            raise HarnessError(f"{' '.join(command)}: {finished.stderr.decode(errors='replace')}")
        return finished.stdout

    def _signed_token(self, secret: str, uid: str) -> str:
        """A JWT (RFC 7519, RS256) as the token controller of kube-controller-manager makes it for a Secret."""
        claims = {
            "iss": "kubernetes/serviceaccount",
            "jti": os.urandom(8).hex(),  # no two are the same
            "kubernetes.io/serviceaccount/namespace": NAMESPACE,
            "kubernetes.io/serviceaccount/secret.name": secret,
            "kubernetes.io/serviceaccount/service-account.name": ROUTER,
            "kubernetes.io/serviceaccount/service-account.uid": uid,
            "sub": f"system:serviceaccount:{NAMESPACE}:{ROUTER}",
        }
        parts = [_base64url(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT"}, claims)]
        signature = self._openssl("dgst", "-sha256", "-sign", "tokens.key", data=".".join(parts).encode())
        return ".".join([*parts, _base64url(signature)])

    def _etcd_command(self, program: Path) -> list[str]:
        return [
            str(program),
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            "--listen-peer-urls=http://127.0.0.1:0",
        ]

    def _server_command(self, program: Path, port: int) -> list[str]:
        return [
            str(program),
            f"--etcd-servers={self._etcd_url}",
            f"--bind-address={self._address}",
            "--advertise-address=127.0.0.1",  # otherwise it looks for the machine's address
            "--endpoint-reconciler-type=none",  # which refuses a loopback address
            f"--secure-port={port}",
            f"--tls-cert-file={self.folder / 'tls.crt'}",
            f"--tls-private-key-file={self.folder / 'tls.key'}",
            f"--token-auth-file={self.folder / 'users.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/12",
            f"--service-account-issuer={_ISSUER}",
            f"--service-account-signing-key-file={self.folder / 'tokens.key'}",
            f"--service-account-key-file={self.folder / 'tokens.key'}",
            "--disable-admission-plugins=ServiceAccount",  # waits for a controller manager
            *self._options,
        ]

    def _manager_command(self, program: Path) -> list[str]:
        controllers = ("serviceaccount-token", "serviceaccount", "namespace", "garbage-collector", "endpointslice")
        return [
            str(program),
            f"--kubeconfig={self.kubeconfig('admin')}",
            f"--service-account-private-key-file={self.folder / 'tokens.key'}",
            f"--root-ca-file={self.folder / 'tls.crt'}",
            f"--controllers={','.join(f'{each}-controller' for each in controllers)}",
            "--leader-elect=false",
            "--secure-port=0",
        ]

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a process that dies with us, however we die, and not of a Ctrl-C before the tests have cleaned up."""
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", _UNLESS_ORPHANED, str(os.getpid()), *command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _ready(self) -> bool:
        for name, process in (("etcd", self._etcd), ("kube-apiserver", self._server)):
            if process is None or process.poll() is not None:
                raise HarnessError(f"{name} has ended")
        return self._answers("/readyz") and self._serves_its_kinds()

    def _serves_its_kinds(self) -> bool:
        """After /readyz says ok, a new server can still answer 429 for a while: it reads its objects."""
        try:
            definitions = self.admin.get(_DEFINITIONS)["items"]
        except RefusedError:
            return False
        return all(serves_kind(self.admin, definition) for definition in definitions)

    def _answers(self, path: str) -> bool:
        try:
            self.admin.get(path)
        except (RefusedError, urllib3.exceptions.HTTPError):
            return False
        return True

    def _log_end(self, name: str) -> str:
        lines = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-20:])

    def _collection(self, document: Mapping[str, Any]) -> str:
        """The path that lists objects of this one's kind, in its namespace."""
        version, kind = document["apiVersion"], document["kind"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"

        def find() -> dict[str, Any] | None:
            if not self._answers(root):
                return None
            resources = self.admin.get(root)["resources"]
            return next((each for each in resources if each["kind"] == kind and "/" not in each["name"]), None)

        resource = eventually(find, f"{root} has no kind {kind}")
        namespace = f"/namespaces/{document['metadata']['namespace']}" if resource["namespaced"] else ""
        return f"{root}{namespace}/{resource['name']}"

    def _etcd_request(self, method: str, body: object) -> Any:
        """A request to etcd's JSON gateway, which spares us etcdctl."""
        response = urllib3.PoolManager(retries=False).request(
            "POST", f"{self._etcd_url}/v3/kv/{method}", body=json.dumps(body), timeout=30.0
        )
        answer = parsed(response.data)
        if response.status != 200:
            raise HarnessError(f"etcd, {method}: {response.status}: {answer}")
        return answer


def _filled(secret: dict[str, Any]) -> dict[str, Any] | None:
    """The Secret, once it has its token."""
    return secret if "token" in (secret.get("data") or {}) else None


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.kill()
        process.wait()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
