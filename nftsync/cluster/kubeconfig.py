"""The kubeconfig, read with the official client, and read again when it or a named file changes.

The client alone would read a token file once only, keep its trailing newline, and continue without
credentials if an exec plug-in fails. Its import costs half a second and 70 MB, so the first
reading imports it instead of this module.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nftsync.cluster.backoff import ApiError, RestartCause
from nftsync.objects.names import quote


class KubeconfigError(ApiError):
    """The kubeconfig, or a file that it names, is not usable."""

    _cause = RestartCause.KUBECONFIG


Stamp = tuple[int, int, int] | None

# Keys of a kubeconfig's cluster or user that need permission, each with its danger.
UNSAFE = {
    "insecure-skip-tls-verify": "an attacker between router and API server could open ports",
    "exec": "it runs a program",
    "auth-provider": "newer clients do not support it",
}


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
    def read(cls, path: Path, allowed: Collection[str] = ()) -> Kubeconfig:
        """Read a kubeconfig. Raises KubeconfigError. allowed: keys of UNSAFE that it may have."""
        stamps = {path: _stamp(path)}
        document = _read_yaml(path)
        stamps |= {named: _stamp(named) for named in _named_files(document, path.parent)}
        kubeconfig = cls(_load(path), stamps)
        try:
            urlsplit(kubeconfig.server)
        except ValueError as fault:
            raise KubeconfigError(f"{path}: the server's address is not a URL: {fault}") from fault
        _refuse_unsafe(path, document, allowed)
        identified = any(user.get("user") for user in _entries(document, "users"))
        if identified and not kubeconfig.configuration.cert_file and not kubeconfig.identification():
            raise KubeconfigError(f"{path}: the user of the current context has no usable token or certificate")
        return kubeconfig

    def changed(self) -> bool:
        """True if it, or a file that it names, was written or replaced since the reading."""
        return any(_stamp(path) != stamp for path, stamp in self.stamps.items())

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


def _refuse_unsafe(path: Path, document: object, allowed: Collection[str]) -> None:
    """Raises KubeconfigError if the current context has an unsafe key outside `allowed`."""
    current = document.get("current-context") if isinstance(document, dict) else None
    context = next(
        (entry.get("context") for entry in _entries(document, "contexts") if entry.get("name") == current), None
    )
    for section in ("clusters", "users"):
        name = context.get(section[:-1]) if isinstance(context, dict) else None
        for described in (
            entry.get(section[:-1]) for entry in _entries(document, section) if entry.get("name") == name
        ):
            for key, reason in UNSAFE.items():
                if isinstance(described, dict) and described.get(key) and key not in allowed:
                    way_out = "" if allowed else "; set unsafe_kubeconfig in the configuration to allow it"
                    raise KubeconfigError(f"{path}: nftsync refuses {key}: {reason}{way_out}")


def _load(path: Path) -> Any:
    """The official client's Configuration, loaded. Raises KubeconfigError."""
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        config.load_kube_config(str(path), client_configuration=configuration, persist_config=False)
    except OSError as fault:
        raise KubeconfigError(f"{fault.filename or path}: {fault.strerror}") from fault
    except (config.ConfigException, ValueError) as fault:
        raise KubeconfigError(f"{path}: {quote(str(fault), 300)}") from fault
    except (TypeError, KeyError, AttributeError) as fault:  # the client's answer to a wrong shape
        raise KubeconfigError(f"{path}: this is not a kubeconfig (kind: Config)") from fault
    return configuration


def _read_yaml(path: Path) -> object:
    import yaml

    try:
        return yaml.safe_load(path.read_bytes())
    except OSError as fault:
        raise KubeconfigError(f"{path}: {fault.strerror}: put the router's kubeconfig there") from fault
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        mark = getattr(fault, "problem_mark", None)  # its text can quote a token
        raise KubeconfigError(f"{path}: this is not YAML{f' (line {mark.line + 1})' if mark else ''}") from None


def _entries(document: object, section: str) -> list[dict[str, Any]]:
    entries = document.get(section) if isinstance(document, dict) else None
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _named_files(document: object, folder: Path) -> Iterator[Path]:
    """Every file that a user or cluster of the kubeconfig names, relative to its folder."""
    keys = {"users": ("tokenFile", "client-certificate", "client-key"), "clusters": ("certificate-authority",)}
    for section, files in keys.items():
        for entry in _entries(document, section):
            described = entry.get(section[:-1])
            for key in files:
                if isinstance(described, dict) and isinstance(described.get(key), str):
                    yield folder / described[key]


def _stamp(path: Path) -> Stamp:
    """A value that changes with every write or replacement, also behind a symbolic link.

    None if there is no such file.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
