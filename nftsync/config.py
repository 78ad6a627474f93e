"""Reads /etc/nftsync/nftsync.toml into a frozen Config.

Every key has a default, so you can try nftsync without a file. An unknown key or a wrong type is an
error that names the file, the key and the value. A firewall must not silently ignore a setting.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

from nftsync.objects.address import Address, Network, collapse
from nftsync.objects.names import Malformed, Name, NftsyncError, quote
from nftsync.objects.nft import parse_nic
from nftsync.objects.service import Service

DEFAULT_PATH = Path("/etc/nftsync/nftsync.toml")
KUBECONFIG = Path("/etc/nftsync/kubeconfig")

_NFT = Name("arbf-operators", "nft")

T = TypeVar("T")


class InputError(NftsyncError):
    """The input of a person is not usable; the message names the fault."""


class ConfigError(InputError):
    """The configuration is not usable; the message names file, key and value."""


@dataclass(frozen=True, slots=True)
class Caps:
    """The most pinholes, of all Services together and of those of one namespace. 0: no cap."""

    pinholes: int = 100_000
    pinholes_per_namespace: int = 50_000


@dataclass(frozen=True, slots=True)
class Filters:
    """Selects our Services. An empty collection filters nothing.

    load_balancer_classes: spec.loadBalancerClass values; "" stands for Services without one. A
    Service of unknown class always passes: version 1 has admitted it (see files.memory_v1).
    """

    namespaces: frozenset[str] = frozenset()
    exclude_namespaces: frozenset[str] = frozenset()
    load_balancer_classes: frozenset[str] = frozenset()

    def admit(self, service: Service) -> bool:
        namespace = service.name.namespace
        return service.load_balancer_class is None or (
            (not self.namespaces or namespace in self.namespaces)
            and namespace not in self.exclude_namespaces
            and (not self.load_balancer_classes or service.load_balancer_class in self.load_balancer_classes)
        )


class PoolMode(StrEnum):
    """The setting `pools`: which addresses are legal while MetalLB's configuration is unknown."""

    AUTO = "auto"  # every address, until nftsync sees a configuration; from then on its pools decide
    REQUIRED = "required"  # no address
    IGNORED = "ignored"  # every address; nftsync does not read the pools


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """The local configuration's rules for legal addresses.

    advertised_only: whether only pools count that MetalLB announces over BGP.
    allowed: prefixes, empty for no restriction.  reserved: addresses that nftsync never opens.
    """

    pool_mode: PoolMode = PoolMode.AUTO
    advertised_only: bool = False
    allowed: tuple[Network, ...] = ()
    reserved: frozenset[Address] = frozenset()


_ALL = Filters()
_ADDRESS_POLICY = AddressPolicy()


@dataclass(frozen=True, slots=True)
class Config:
    """The local configuration of one router. resync_interval, confirm_seconds: seconds."""

    kubeconfig: Path = KUBECONFIG
    unsafe_kubeconfig: bool = False  # whether a kubeconfig may have the keys of kubeconfig.UNSAFE
    router_name: str = field(default_factory=socket.gethostname)
    resync_interval: float = 60.0
    caps: Caps = field(default_factory=Caps)
    confirm_seconds: float = 0.0  # 0: no settings need a confirmation
    nft: Name = _NFT
    public_nic: str | None = None  # overrides the Nft resource's
    local_chain: Path = Path("/etc/nftables.d/local-chain.nft")
    state: Path = Path("/var/lib/nftsync")
    runtime: Path = Path("/run/nftsync")
    metrics: tuple[str, int] | None = ("127.0.0.1", 9469)  # address and port; None: no endpoint
    metrics_services: int = 1000  # number of Services with series of their own
    own_tables: bool = True  # nobody else can change the tables, if nft and the kernel support it
    filters: Filters = _ALL
    address_policy: AddressPolicy = _ADDRESS_POLICY
    bgp_peers: tuple[Network, ...] = ()  # may speak BGP on the public side; empty for everybody
    text: str = field(default="", compare=False, repr=False)  # of the file


def load(path: Path | None) -> Config:
    """The configuration in `path`. None: the default path, where a missing file means the defaults.

    Raises ConfigError.
    """
    chosen = path or DEFAULT_PATH
    try:
        text = chosen.read_text(encoding="utf-8")
    except FileNotFoundError:
        if path is None:
            return _with_credential(Config())
        raise ConfigError(f"{chosen}: there is no such file") from None
    except OSError as fault:
        raise ConfigError(f"{chosen}: {fault.strerror}") from fault
    except ValueError as fault:  # UnicodeDecodeError names the byte
        raise ConfigError(f"{chosen}: {fault}") from fault
    return _with_credential(parse(text, str(chosen)))


def parse(text: str, name: str) -> Config:
    """The configuration in a file's text. name: of the file, for messages. Raises ConfigError."""
    try:
        document = tomllib.loads(text)
    except ValueError as fault:  # tomllib.TOMLDecodeError names line and column
        raise ConfigError(f"{name}: {fault}") from fault
    except RecursionError:
        raise ConfigError(f"{name}: it is nested too deep") from None
    return replace(_config(_Section(name, "", document)), text=text)


def _with_credential(chosen: Config) -> Config:
    """Use root's kubeconfig if systemd hands it to the unit, because the unit's user cannot read it.

    Source: systemd.exec(5), LoadCredential=.
    """
    handed = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), "kubeconfig")
    return replace(chosen, kubeconfig=handed) if chosen.kubeconfig == KUBECONFIG and handed.exists() else chosen


class _Section:
    """A table of the file. take() removes each key that it reads; end() refuses the others."""

    def __init__(self, file: str, path: str, values: Mapping[str, Any]) -> None:
        self._file = file
        self._path = path
        self._values = dict(values)
        self._known: list[str] = []

    def take(self, key: str, parse: Callable[[Any], T], default: T) -> T:
        self._known.append(key)
        if key not in self._values:
            return default
        value = self._values.pop(key)
        try:
            return parse(value)
        except (ValueError, TypeError) as fault:
            raise ConfigError(f"{self._where(key)} = {quote(value)}: {fault}") from fault

    def section(self, key: str) -> _Section:
        values: dict[str, Any] = self.take(key, _table, {})
        return _Section(self._file, f"{self._path}{key}.", values)

    def names(self) -> list[str]:
        """The keys that nobody has taken yet."""
        return list(self._values)

    def end(self) -> None:
        for key, value in self._values.items():
            known = ", ".join(sorted(self._known))
            raise ConfigError(f"{self._where(key)} = {quote(value)}: there is no such key; known keys: {known}")

    def _where(self, key: str) -> str:
        return f"{self._file}: {ascii(self._path + key)[1:-1]}"


def _config(top: _Section) -> Config:
    default = Config()
    nft, paths, metrics, filters, caps = (top.section(key) for key in ("nft", "paths", "metrics", "filters", "caps"))
    router_name = top.take("router_name", _text, "") or default.router_name
    bgp_peers = top.take("bgp_peers", _prefixes, list[Network]())
    config = Config(
        kubeconfig=top.take("kubeconfig", _path, default.kubeconfig),
        unsafe_kubeconfig=top.take("unsafe_kubeconfig", _flag, default.unsafe_kubeconfig),
        router_name=router_name,
        resync_interval=top.take("resync_interval", _seconds, default.resync_interval),
        confirm_seconds=top.take("confirm_seconds", _seconds_or_none, default.confirm_seconds),
        nft=Name(
            nft.take("namespace", _kubernetes_name, default.nft.namespace),
            nft.take("name", _kubernetes_name, default.nft.name),
        ),
        public_nic=_override(top.section("overrides"), router_name),
        local_chain=paths.take("local_chain", _path, default.local_chain),
        state=paths.take("state", _path, default.state),
        runtime=paths.take("runtime", _path, default.runtime),
        metrics=metrics.take("address", _endpoint, default.metrics),
        metrics_services=metrics.take("services", _count, default.metrics_services),
        caps=Caps(
            caps.take("pinholes", _cap, default.caps.pinholes),
            caps.take("pinholes_per_namespace", _cap, default.caps.pinholes_per_namespace),
        ),
        own_tables=top.take("own_tables", _flag, default.own_tables),
        filters=Filters(
            filters.take("namespaces", _names, frozenset()),
            filters.take("exclude_namespaces", _names, frozenset()),
            filters.take("load_balancer_classes", _texts, frozenset()),
        ),
        address_policy=AddressPolicy(
            top.take("pools", _pool_mode, PoolMode.AUTO),
            top.take("advertised_pools_only", _flag, False),
            collapse(top.take("allowed_prefixes", _prefixes, list[Network]())),
            frozenset(network.network_address for network in bgp_peers if network.num_addresses == 1),
        ),
        bgp_peers=collapse(bgp_peers),
    )
    for section in (nft, paths, metrics, caps, filters, top):
        section.end()
    return config


def _override(overrides: _Section, router_name: str) -> str | None:
    """[overrides.<router name>]: one file can serve several routers.

    This checks all of them and returns this router's part.
    """
    chosen = None
    for router in overrides.names():
        section = overrides.section(router)
        public_nic: str | None = section.take("public_nic", _nic, None)
        section.end()
        if router == router_name:
            chosen = public_nic
    return chosen


# --- values: each raises ValueError with the valid form ------------------------------------------------


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("this is not a table")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("this is not a printable text in quotes")
    return value


def _path(value: Any) -> Path:
    if not Path(_text(value)).is_absolute():
        raise ValueError("this is not an absolute path")
    return Path(value)


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 1 <= value <= 86400:
        raise ValueError("this is not a number of seconds from 1 to 86400")
    return float(value)


def _seconds_or_none(value: Any) -> float:
    if type(value) not in (int, float) or not (value == 0 or 1 <= value <= 86400):
        raise ValueError("this is neither 0 nor a number of seconds from 1 to 86400")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 100_000:
        raise ValueError("this is not a whole number from 0 to 100000")
    return value


def _cap(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 10_000_000:
        raise ValueError("this is not a whole number from 0 to 10000000")
    return value


def _kubernetes_name(value: Any) -> str:
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?", _text(value)):
        raise ValueError("this is not a Kubernetes name")
    return str(value)


def _texts(value: Any) -> frozenset[str]:
    if not isinstance(value, list):
        raise ValueError("this is not a list of texts")
    return frozenset(_text(each) for each in value)


def _names(value: Any) -> frozenset[str]:
    if not isinstance(value, list):
        raise ValueError("this is not a list of names")
    return frozenset(_kubernetes_name(each) for each in value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("this is neither true nor false")
    return value


def _pool_mode(value: Any) -> PoolMode:
    try:
        return PoolMode(_text(value))
    except ValueError:
        raise ValueError(f"this is not one of {', '.join(PoolMode)}") from None


def _prefixes(value: Any) -> list[Network]:
    if not isinstance(value, list):
        raise ValueError("this is not a list of prefixes")
    return [_prefix(each) for each in value]


def _prefix(value: Any) -> Network:
    text = _text(value)
    try:
        if "%" in text or not re.fullmatch(r"[^/]+(?:/[0-9]{1,3})?", text):
            raise ValueError
        network = ip_network(text)
    except ValueError:
        network = None
    if network is None or (isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None):
        raise ValueError(f"{quote(text)} is not a prefix without host bits such as 192.0.2.0/24 or 2001:db8::/32")
    return network


def _nic(value: Any) -> str | None:
    try:
        return parse_nic(value)
    except Malformed as fault:
        raise ValueError("this is not the name of a network interface that can be public") from fault


def _endpoint(value: Any) -> tuple[str, int] | None:
    """ "127.0.0.1:9469", "[::1]:9469", or "" for none."""
    text = _text(value)
    if not text:
        return None
    match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([0-9.]+)):([0-9]{1,5})", text)
    if not match or not 0 <= int(match[3]) <= 65535:
        raise ValueError('this is not an address and port such as "127.0.0.1:9469" or "[::1]:9469"')
    return str(ip_address(match[1] or match[2])), int(match[3])
