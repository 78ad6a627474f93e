"""The kubeconfig, read with the official client, and read again when it or a named file changes.

The client alone would read a token file once only, keep its trailing newline, and continue without
credentials if an exec plug-in fails. Its import costs half a second and 70 MB, so the first
reading imports it instead of this module.
"""

import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from nftsync.cluster.backoff import ApiError, RestartCause
from nftsync.objects.names import quote


class KubeconfigError(ApiError):
    """The kubeconfig, or a file that it names, is not usable."""

    _cause = RestartCause.KUBECONFIG


Stamp = tuple[int, int, int] | None

# The kernel finds a dead peer after 60 s: of silence and probes, or of unacknowledged data (tcp(7)).
SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000),
]

# Keys of a kubeconfig's cluster or user that need permission, each with its danger.
UNSAFE = {
    "insecure-skip-tls-verify": "an attacker between router and API server could open ports",
    "exec": "it runs a program",
    "auth-provider": "newer clients do not support it",
}

# Keys whose values are paths, each after its section.
_FILES = (
    ("users", "tokenFile"),
    ("users", "client-certificate"),
    ("users", "client-key"),
    ("clusters", "certificate-authority"),
)


def allowed(*, unsafe: bool) -> Collection[str]:
    """The unsafe keys that a kubeconfig may have: all or none."""
    return UNSAFE if unsafe else ()


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    """One reading of a kubeconfig.

    configuration: the official client's.
    stamps: every file behind it, with its stamp from before the reading.
    """

    configuration: Any
    stamps: Mapping[Path, Stamp]

    @classmethod
    def read(cls, path: Path, allowed: Collection[str] = ()) -> Self:
        """Read a kubeconfig. Raises KubeconfigError. allowed: keys of UNSAFE that it may have."""
        stamps = {path: stamp(path)}
        document = _read_yaml(path)
        names = (entry.get(key) for section, key in _FILES for _, entry in _entries(document, section))
        files = [path.parent / name for name in names if isinstance(name, str)]
        stamps |= {file: stamp(file) for file in files}
        kubeconfig = cls(_load(path), stamps)
        try:
            urlsplit(kubeconfig.server)
        except ValueError as error:
            raise KubeconfigError(f"{path}: the server's address is not a URL: {error}") from error
        _refuse_unsafe(path, document, allowed)
        is_named = any(user for _, user in _entries(document, "users"))
        if is_named and not kubeconfig.configuration.cert_file and not kubeconfig.identification():
            raise KubeconfigError(f"{path}: the user of the current context has no usable token or certificate")
        return kubeconfig

    def changed(self) -> bool:
        """True if it, or a file that it names, was written or replaced since the reading."""
        return any(stamp(path) != before for path, before in self.stamps.items())

    @property
    def server(self) -> str:
        """The API server's address for messages, without user name and password."""
        parts = urlsplit(self.configuration.host)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def identification(self) -> dict[str, str]:
        """The headers with our credentials. Each call renews an exec plug-in's token if needed.

        Raises KubeconfigError if the token is not printable ASCII.
        """
        headers = {}
        for setting in self.configuration.auth_settings().values():
            value = str(setting["value"] or "").strip()
            if not value.isascii() or not value.isprintable():
                raise KubeconfigError("the kubeconfig's token is not printable ASCII: write the token again")
            if " " in value:  # an empty token file leaves the word "Bearer" alone
                headers[setting["key"]] = value
        return headers

    def pools(self, track: Callable[[socket.socket], None]) -> Any:
        """A urllib3.PoolManager that hands each of its sockets to `track` once it is connected."""
        from kubernetes import client

        pools = client.ApiClient(self.configuration).rest_client.pool_manager
        pools.connection_pool_kw["socket_options"] = SOCKET_OPTIONS
        pools.pool_classes_by_scheme = {
            scheme: _tracking(pool_class, track) for scheme, pool_class in pools.pool_classes_by_scheme.items()
        }
        return pools


def _tracking(pool_class: Any, track: Callable[[socket.socket], None]) -> Any:
    connection_class = pool_class.ConnectionCls

    def connect(connection: Any) -> None:
        connection_class.connect(connection)
        track(connection.sock)

    tracked = type(connection_class.__name__, (connection_class,), {"connect": connect})
    return type(pool_class.__name__, (pool_class,), {"ConnectionCls": tracked})


def _refuse_unsafe(path: Path, document: dict[str, Any], allowed: Collection[str]) -> None:
    contexts = _entries(document, "contexts")
    context = next((context for name, context in contexts if name == document.get("current-context")), {})
    for section in ("clusters", "users"):
        chosen = (entry for name, entry in _entries(document, section) if name == context.get(section[:-1]))
        for key, entry in product(UNSAFE, chosen):
            if entry.get(key) and key not in allowed:
                way_out = "" if allowed else "; set unsafe_kubeconfig in the configuration to allow it"
                raise KubeconfigError(f"{path}: nftsync refuses {key}: {UNSAFE[key]}{way_out}")


def _load(path: Path) -> Any:
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        config.load_kube_config(str(path), client_configuration=configuration, persist_config=False)
    except OSError as error:
        raise KubeconfigError(f"{error.filename or path}: {error.strerror}") from error
    except (config.ConfigException, ValueError) as error:
        raise KubeconfigError(f"{path}: {quote(str(error), 300)}") from error
    except (TypeError, KeyError, AttributeError) as error:  # the client's answer to a wrong shape
        raise KubeconfigError(f"{path}: this is not a kubeconfig (kind: Config)") from error
    return configuration


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise KubeconfigError(f"{path}: {error.strerror}: put the router's kubeconfig there") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)  # its text can quote a token
        raise KubeconfigError(f"{path}: this is not YAML{f' (line {mark.line + 1})' if mark else ''}") from None
    return document if isinstance(document, dict) else {}  # the client complains about another shape


def _entries(document: dict[str, Any], section: str) -> list[tuple[object, dict[str, Any]]]:
    """The clusters, users or contexts of a kubeconfig: the name and the description of each."""
    entries = document.get(section)
    named = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    described = ((entry.get("name"), entry.get(section[:-1])) for entry in named)
    return [(name, description) for name, description in described if isinstance(description, dict)]


def stamp(path: Path) -> Stamp:
    """A value that changes with every write or replacement; None if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
