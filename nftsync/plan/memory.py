"""What the kernel accepted last: of each Service the version that counts, and the facts that decide beside them.

It is the only thing that outlives the process. A process that starts plans with it until each list is complete. This module
turns it into records and back; files.journal keeps the records.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from nftsync.objects.address import Address, Local, Network, parse_range
from nftsync.objects.metallb import MetalLBConfig, Pool, parse_peer_address
from nftsync.objects.names import NAME, Name
from nftsync.objects.nft import NftSpec, describe_spec, parse_spec
from nftsync.objects.ratelimit import parse_ratelimit
from nftsync.objects.service import Port, Protocol, Service


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides beside the Services, as it was when the kernel accepted it last.

    spec: the settings that hold without a confirmation, None before the first ones.  rolled_back: later ones that nobody confirmed.
    pools: MetalLB's last good configuration, None if there was none.  pools_listed: whether its lists were ever complete.
    local_chain: the last body that the kernel took from the operator's file.  config: the text of the configuration file.
    local: the router's addresses, None if they are not known.  peers: addresses of BGP peers.
    as_of: when the cluster was last known to ask for all this, RFC 3339, "" for never.
    """

    spec: NftSpec | None = None
    rolled_back: NftSpec | None = None
    pools: MetalLBConfig | None = None
    pools_listed: bool = False
    local_chain: str = ""
    config: str = ""
    local: Local | None = None
    peers: frozenset[Address] = frozenset()
    as_of: str = ""


@dataclass(slots=True)
class Memory:
    """services: the version of each that the kernel has taken.  The loop's thread alone changes it, after the kernel accepted."""

    services: dict[Name, Service] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)

    @property
    def named(self) -> dict[Name, Service]:
        """Those that a list can name. An address that an earlier version knew without its Service is none (see files.memory_v1)."""
        return {name: service for name, service in self.services.items() if name.namespace}


@dataclass(frozen=True, slots=True)
class BootFacts:
    """What means nothing after a reboot.

    rules: digest of the rules that this boot's last transaction left, "" if somebody else may have changed them.  ingress: index of
    the NIC whose ingress qdisc is ours.  former: addresses that had pinholes before they left the pools.
    base: whether the base alone was loaded, so that what is remembered, and could not be read then, still has to be.
    """

    rules: str = ""
    ingress: int | None = None
    former: frozenset[Address] = frozenset()
    base: bool = False


# --- records: one JSON value a line -------------------------------------------------------------------

_ADDRESS = re.compile(r"[0-9a-f.:-]{1,64}")
_DIGESTS = re.compile(r"[0-9a-f]{1,128} [0-9a-f]{1,128}")

GONE = "gone"
SERVICE = "service"
FACTS = "facts"


def service_record(name: Name, service: Service | None) -> str:
    """A Service's accepted version; None for one that is gone."""
    if service is None:
        return _json([GONE, *name])
    described = {
        "name": list(name),
        "uid": service.uid,
        "created": service.created,
        "class": service.load_balancer_class,
        "addresses": list(map(str, service.addresses)),
        "ports": [list(port) for port in service.ports],
        "sources": None if service.sources is None else list(map(str, service.sources)),
        "limit": str(service.limit or ""),
    }
    return _json([SERVICE, described])


def facts_record(facts: Facts) -> str:
    specs = {"spec": facts.spec, "rolled_back": facts.rolled_back}
    described = {
        **{name: None if spec is None else describe_spec(spec) for name, spec in specs.items()},
        "pools": None if facts.pools is None else describe_pools(facts.pools),
        "pools_listed": facts.pools_listed,
        "local_chain": facts.local_chain,
        "config": facts.config,
        "local": None if facts.local is None else [_sorted(facts.local.addresses), _sorted(facts.local.networks)],
        "peers": _sorted(facts.peers),
        "as_of": facts.as_of,
    }
    return _json([FACTS, described])


def replay(memory: Memory, record: str) -> None:
    """Take a record up. Raises ValueError, TypeError, KeyError or AttributeError if it is not one that this version writes."""
    kind, *content = json.loads(record)
    if kind == SERVICE:
        service = _service(*content)
        memory.services[service.name] = service
    elif kind == GONE:
        memory.services.pop(_name(*content), None)
    elif kind == FACTS:
        memory.facts = _facts(*content)
    else:
        raise ValueError(f"a record of the kind {kind!a}")


def _service(raw: dict[str, Any]) -> Service:
    sources, limit = raw["sources"], raw["limit"]
    return Service(
        name=_name(*raw["name"]),
        uid=_text(raw["uid"]),
        created=_text(raw["created"]),
        load_balancer_class=None if raw["class"] is None else _text(raw["class"]),
        addresses=tuple(map(_address, raw["addresses"])),
        ports=tuple(Port(Protocol(protocol), _port(number)) for protocol, number in raw["ports"]),
        sources=None if sources is None else tuple(map(_network, sources)),
        limit=None if limit == "" else parse_ratelimit(_text(limit)),
        rejections=(),
    )


def _facts(raw: dict[str, Any]) -> Facts:
    spec, rolled_back = (None if raw[name] is None else parse_spec(raw[name]) for name in ("spec", "rolled_back"))
    return Facts(
        spec=spec,
        rolled_back=rolled_back,
        pools=None if raw["pools"] is None else parse_pools(raw["pools"]),
        pools_listed=raw["pools_listed"] is True,
        local_chain=_text(raw["local_chain"]),
        config=_text(raw["config"]),
        local=None if raw["local"] is None else _local(*raw["local"]),
        peers=frozenset(map(_address, raw["peers"])),
        as_of=_text(raw["as_of"]),
    )


def _local(addresses: list[object], networks: list[object]) -> Local:
    return Local(frozenset(map(_address, addresses)), frozenset(map(_network, networks)))


def describe_pools(known: MetalLBConfig) -> dict[str, object]:
    pools = [
        {"name": pool.name, "source": pool.source, "ranges": list(map(str, pool.ranges)), "advertised": pool.advertised}
        for pool in known.pools
    ]
    return {"pools": pools, "peers": _sorted(known.peers)}


def parse_pools(raw: dict[str, Any]) -> MetalLBConfig:
    """What describe_pools() gave. Raises ValueError, TypeError or KeyError."""
    pools = tuple(
        Pool(_text(pool["name"]), _text(pool["source"]), tuple(map(parse_range, pool["ranges"])), pool["advertised"] is True)
        for pool in raw["pools"]
    )
    return MetalLBConfig(pools, frozenset(parse_peer_address(peer, "peers") for peer in raw["peers"]))


def boot_facts_record(facts: BootFacts) -> str:
    return _json({"rules": facts.rules, "ingress": facts.ingress, "former": _sorted(facts.former), "base": facts.base})


def parse_boot_facts(record: str) -> BootFacts:
    """Raises ValueError, TypeError or KeyError if it is not what boot_facts_record() gave."""
    raw = json.loads(record)
    rules, ingress = _text(raw["rules"]), raw["ingress"]
    if rules and not _DIGESTS.fullmatch(rules):
        raise ValueError("rules are no digests")
    if type(ingress) not in (int, type(None)):
        raise TypeError("ingress is no index")
    return BootFacts(rules, ingress, frozenset(map(_address, raw["former"])), raw["base"] is True)


def _sorted(values: frozenset[Any]) -> list[str]:
    return sorted(map(str, values))


def _name(namespace: object, name: object) -> Name:
    """Of a Service; or of what an earlier version knew without its Service, in no namespace."""
    if not (NAME if namespace else _ADDRESS).fullmatch(_text(name)) or (namespace and not NAME.fullmatch(_text(namespace))):
        raise ValueError(f"{namespace!a}/{name!a} is no name")
    return Name(_text(namespace), _text(name))


def _address(value: object) -> Address:
    return ip_address(_plain(value))


def _network(value: object) -> Network:
    return ip_network(_plain(value))


def _plain(value: object) -> str:
    if "%" in _text(value):  # a zone could hold anything
        raise ValueError(f"{value!a} has a zone")
    return _text(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!a} is no text")
    return value


def _port(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 65535:
        raise ValueError(f"{value!a} is no port")
    return value


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))
