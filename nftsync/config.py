"""Reads /etc/nftsync/nftsync.toml into a frozen Config.

Every key has a default, so you can try nftsync without a file. An unknown key or a wrong type is an
error that names the file, the key and the value. A firewall must not silently ignore a setting.
"""

import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from ipaddress import IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from nftsync.objects.address import Address, Network, collapse
from nftsync.objects.names import NAME, Malformed, Name, NftsyncError, quote
from nftsync.objects.nft import Nics, parse_nic, parse_nics
from nftsync.objects.service import Service

DEFAULT_PATH = Path("/etc/nftsync/nftsync.toml")
KUBECONFIG = Path("/etc/nftsync/kubeconfig")

_NFT = Name("arbf-operators", "nft")

Keys = Mapping[str, "Callable[[Any], Any] | Keys"]  # a parser raises ValueError


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
    nics: Nics = field(default_factory=Nics)  # override the Nft resource's
    local_chain: Path = Path("/etc/nftables.d/local-chain.nft")
    state: Path = Path("/var/lib/nftsync")
    runtime: Path = Path("/run/nftsync")
    metrics: tuple[str, int] | None = ("127.0.0.1", 9469)  # address and port; None: no endpoint
    metrics_services: int = 1000  # number of Services with series of their own
    ingress_qdisc: bool = True  # whether the public NIC gets an ingress qdisc for its rate limits
    own_tables: bool = True  # nobody else can change the tables, if nft and the kernel support it
    stateless: bool = False  # packets of the pools bypass connection tracking
    service_filter: Filters = field(default_factory=Filters)
    address_policy: AddressPolicy = field(default_factory=AddressPolicy)
    bgp_peers: tuple[Network, ...] = ()  # may speak BGP on the public side; empty for everybody
    text: str = field(default="", compare=False, repr=False)  # of the file


def load(path: Path | None) -> Config:
    """The configuration in `path`. None: the default path, where a missing file means the defaults.

    Raises ConfigError.
    """
    file = path or DEFAULT_PATH
    try:
        config = parse(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        if path is not None:
            raise ConfigError(f"{file}: there is no such file") from None
        config = Config()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except ValueError as error:  # UnicodeDecodeError names the byte
        raise ConfigError(f"{file}: {error}") from error
    # systemd hands root's kubeconfig to the unit, because the unit's user cannot read it. Source:
    # systemd.exec(5), LoadCredential=.
    handed = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), "kubeconfig")
    return replace(config, kubeconfig=handed) if config.kubeconfig == KUBECONFIG and handed.exists() else config


def parse(text: str, name: str) -> Config:
    """The configuration in a file's text. name: of the file, for messages. Raises ConfigError."""
    try:
        document = tomllib.loads(text)
    except ValueError as error:  # tomllib.TOMLDecodeError names line and column
        raise ConfigError(f"{name}: {error}") from error
    except RecursionError:
        raise ConfigError(f"{name}: it is nested too deep") from None
    values = _values(f"{name}: ", document, _KEYS)
    try:
        return replace(_config(values), text=text)
    except Malformed as error:
        raise ConfigError(f"{name}: overrides: {error}") from None


def _values(prefix: str, table: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """The parsed values of a table. prefix: the file and the table's path, for messages."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        where = f"{prefix}{ascii(key)[1:-1]}"
        expected = keys.get(key, keys.get("*"))
        try:
            if expected is None:
                raise ValueError(f"there is no such key; known keys: {', '.join(sorted(keys))}")
            if callable(expected):
                values[key] = expected(value)
            elif isinstance(value, dict):
                values[key] = _values(f"{where}.", value, expected)
            else:
                raise ValueError("this is not a table")
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{where} = {quote(value)}: {error}") from error
    return values


def _config(top: dict[str, Any]) -> Config:
    """The configuration of a file's values. Keys that the file does not have keep their defaults."""
    default = Config()
    metrics = top.pop("metrics", {})
    router_name = top.pop("router_name", "") or default.router_name
    bgp_peers = top.pop("bgp_peers", [])
    settings = {  # the other keys of the file are fields of Config
        **top.pop("paths", {}),
        "nics": parse_nics(top.pop("overrides", {}).get(router_name, {})),
        "router_name": router_name,
        "nft": default.nft._replace(**top.pop("nft", {})),
        "metrics": metrics.get("address", default.metrics),
        "metrics_services": metrics.get("services", default.metrics_services),
        "caps": Caps(**top.pop("caps", {})),
        "service_filter": Filters(**{key: frozenset(names) for key, names in top.pop("filters", {}).items()}),
        "address_policy": AddressPolicy(
            top.pop("pools", PoolMode.AUTO),
            top.pop("advertised_pools_only", False),
            collapse(top.pop("allowed_prefixes", [])),
            frozenset(network.network_address for network in bgp_peers if network.num_addresses == 1),
        ),
        "bgp_peers": collapse(bgp_peers),
    }
    return replace(default, **settings, **top)


# Parsers of values. Each raises ValueError with the valid form.


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("this is not a printable text in quotes")
    return value


def _path(value: Any) -> Path:
    if not Path(_text(value)).is_absolute():
        raise ValueError("this is not an absolute path")
    return Path(value)


def _seconds(value: Any, *, or_none: bool = False) -> float:
    if type(value) not in (int, float) or not (1 <= value <= 86400 or (or_none and value == 0)):
        raise ValueError(f"this is {'neither 0 nor' if or_none else 'not'} a number of seconds from 1 to 86400")
    return float(value)


def _whole(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"this is not a whole number from 0 to {most}")
    return value


def _kubernetes_name(value: Any) -> str:
    if not NAME.fullmatch(_text(value)):
        raise ValueError("this is not a Kubernetes name")
    return str(value)


def _list(value: Any, parse: Callable[[Any], Any], what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"this is not a list of {what}")
    return list(map(parse, value))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("this is neither true nor false")
    return value


def _pool_mode(value: Any) -> PoolMode:
    if value not in tuple(PoolMode):
        raise ValueError(f"this is not one of {', '.join(PoolMode)}")
    return PoolMode(value)


def _prefix(value: Any) -> Network:
    text = _text(value)
    try:
        if not re.fullmatch(r"[^/%]+(?:/[0-9]{1,3})?", text):
            raise ValueError
        network = ip_network(text)
        if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
            raise ValueError
    except ValueError:
        form = "a prefix without host bits such as 192.0.2.0/24 or 2001:db8::/32"
        raise ValueError(f"{quote(text)} is not {form}") from None
    return network


def _nic(value: Any) -> str:
    try:
        return parse_nic(value)
    except Malformed as error:
        raise ValueError("this is not the name of a network interface that can be public") from error


def _endpoint(value: Any) -> tuple[str, int] | None:
    """ "127.0.0.1:9469", "[::1]:9469", or "" for none."""
    if not _text(value):
        return None
    match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([0-9.]+)):([0-9]{1,5})", value)
    if not match or not 0 <= int(match[3]) <= 65535:
        raise ValueError('this is not an address and port such as "127.0.0.1:9469" or "[::1]:9469"')
    return str(ip_address(match[1] or match[2])), int(match[3])


_cap = partial(_whole, most=10_000_000)
_names = partial(_list, parse=_kubernetes_name, what="names")
_texts = partial(_list, parse=_text, what="texts")
_nics = partial(_list, parse=_nic, what="names of interfaces")
_prefixes = partial(_list, parse=_prefix, what="prefixes")

# Every key of the file with the parser of its value; a table with its own keys. "*" is any key.
_KEYS: Keys = {
    "kubeconfig": _path,
    "unsafe_kubeconfig": _flag,
    "router_name": _text,
    "resync_interval": _seconds,
    "confirm_seconds": partial(_seconds, or_none=True),
    "ingress_qdisc": _flag,
    "own_tables": _flag,
    "stateless": _flag,
    "pools": _pool_mode,
    "advertised_pools_only": _flag,
    "allowed_prefixes": _prefixes,
    "bgp_peers": _prefixes,
    "nft": {"namespace": _kubernetes_name, "name": _kubernetes_name},
    "paths": {"local_chain": _path, "state": _path, "runtime": _path},
    "metrics": {"address": _endpoint, "services": partial(_whole, most=100_000)},
    "caps": {"pinholes": _cap, "pinholes_per_namespace": _cap},
    "filters": {"namespaces": _names, "exclude_namespaces": _names, "load_balancer_classes": _texts},
    # by router name: one file can serve several routers
    "overrides": {"*": {"public_nic": _nic, "public_nics": _nics, "inside_nics": _nics}},
}
