"""The memory: each Service's version that the kernel accepted last, and the other facts.

Only the memory outlives the process. A new process plans with it until each list is complete.
This module turns the memory into records and back; files.journal keeps the records.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from nftsync.objects.address import Address, Local, Range
from nftsync.objects.metallb import MetalLBConfig, Pool, parse_peer_address
from nftsync.objects.names import NAME, Name
from nftsync.objects.nft import NftSpec, describe_spec, parse_spec
from nftsync.objects.ratelimit import RateLimit, parse_ratelimit
from nftsync.objects.service import Port, Protocol, Service
from nftsync.plan.closed import Closing, is_key
from nftsync.policy.public import is_writable


@dataclass(frozen=True, slots=True)
class Facts:
    """The inputs other than Services, as they were when the kernel accepted them last.

    spec: the settings that need no confirmation, None before the first settings.
    rolled_back: later settings that nobody confirmed.
    pools: MetalLB's last good configuration, None if there was none.
    pools_listed: whether MetalLB's lists were ever complete.
    local_chain: the last body that the kernel accepted from the operator's file.
    config: the text of the configuration file.
    local: the router's addresses, None if unknown.  peers: addresses of BGP peers.
    public, inside: names of the interfaces that counted as public or inside, by the settings in spec.
    devices, trunks: those with the ingress hook, and those of them that carry VLANs (see PublicSide).
    as_of: last time at which the cluster asked for all this, RFC 3339, "" for never.
    """

    spec: NftSpec | None = None
    rolled_back: NftSpec | None = None
    pools: MetalLBConfig | None = None
    pools_listed: bool = False
    local_chain: str = ""
    config: str = ""
    local: Local | None = None
    peers: frozenset[Address] = frozenset()
    public: frozenset[str] = frozenset()
    inside: frozenset[str] = frozenset()
    devices: tuple[str, ...] = ()
    trunks: frozenset[str] = frozenset()
    as_of: str = ""


@dataclass(slots=True)
class Memory:
    """services: each Service's version that the kernel has accepted.

    Only the loop's thread changes the memory, and only after the kernel has accepted.
    closed: the closed endpoints, each with the time of its closing in Unix seconds; the oldest first.
    superseded: each Service's version before that, as the records have it. A process that was
    killed can leave it in the kernel, because its record was written before the transaction.
    """

    services: dict[Name, Service] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    closed: dict[str, int] = field(default_factory=dict)
    superseded: dict[Name, Service] = field(default_factory=dict, compare=False)

    @property
    def named(self) -> dict[Name, Service]:
        """The Services with names, which a list can contain.

        Version 1 knew some addresses without their Service. They have no name here
        (see files.memory_v1).
        """
        return {name: service for name, service in self.services.items() if name.namespace}


@dataclass(frozen=True, slots=True)
class BootFacts:
    """Facts that a reboot makes void.

    rules: digest of the rules after this boot's last transaction, "" if others may have changed them.
    ingress: indices of the interfaces with nftsync's ingress qdisc.
    base: True if nftsync loaded only the base because it could not read the memory. The daemon must
    still load the remembered rules.
    """

    rules: str = ""
    ingress: frozenset[int] = frozenset()
    base: bool = False


# Records: one JSON value a line.

_ADDRESS = re.compile(r"[0-9a-f.:-]{1,64}")
_DIGESTS = re.compile(r"[0-9a-f]{1,128} [0-9a-f]{1,128}")

GONE = "gone"
SERVICE = "service"
FACTS = "facts"
CLOSED = "closed"


def service_record(name: Name, service: Service | None) -> str:
    """The record of a Service's accepted version. service: None for a deleted Service."""
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
        "limit_egress": str(service.limit_egress or ""),
    }
    return _json([SERVICE, described])


def facts_record(facts: Facts) -> str:
    described = {
        "spec": None if facts.spec is None else describe_spec(facts.spec),
        "rolled_back": None if facts.rolled_back is None else describe_spec(facts.rolled_back),
        "pools": None if facts.pools is None else describe_pools(facts.pools),
        "pools_listed": facts.pools_listed,
        "local_chain": facts.local_chain,
        "config": facts.config,
        "local": None if facts.local is None else [_sorted(facts.local.addresses), _sorted(facts.local.networks)],
        "peers": _sorted(facts.peers),
        "public": _sorted(facts.public),
        "inside": _sorted(facts.inside),
        "devices": list(facts.devices),
        "trunks": _sorted(facts.trunks),
        "as_of": facts.as_of,
    }
    return _json([FACTS, described])


def closing_records(change: Closing) -> Iterator[str]:
    """The records of a change of the closed endpoints: one for each time, None for forgotten endpoints."""
    by_time = defaultdict[int | None, list[str]](list)
    for key, when in change.added.items():
        by_time[when].append(key)
    by_time[None].extend(change.forgotten)
    return (_json([CLOSED, when, *keys]) for when, keys in by_time.items() if keys)


def replay(memory: Memory, record: str) -> None:
    """Apply a record to the memory.

    Raises ValueError, TypeError, KeyError or AttributeError if this version writes no such record.
    """
    kind, *content = json.loads(record)
    if kind == SERVICE:
        service = _service(*content)
        _supersede(memory, service.name)
        memory.services[service.name] = service
    elif kind == GONE:
        _supersede(memory, _name(*content))
    elif kind == FACTS:
        memory.facts = _facts(*content)
    elif kind == CLOSED:
        _closing(*content).apply(memory.closed)
    else:
        raise ValueError(f"a record of the kind {kind!a}")


def _supersede(memory: Memory, name: Name) -> None:
    if name in memory.services:
        memory.superseded[name] = memory.services.pop(name)


def _closing(when: object, *keys: object) -> Closing:
    if not all(is_key(_text(key)) for key in keys):
        raise ValueError("it names no address, protocol and port")
    texts = [_text(key) for key in keys]
    if when is None:
        return Closing(forgotten=texts)
    if type(when) is not int or when < 0:
        raise ValueError(f"{when!a} is no time")
    return Closing(dict.fromkeys(texts, when))


def _service(raw: dict[str, Any]) -> Service:
    return Service(
        name=_name(*raw["name"]),
        uid=_text(raw["uid"]),
        created=_text(raw["created"]),
        load_balancer_class=None if raw["class"] is None else _text(raw["class"]),
        addresses=tuple(map(ip_address, map(_without_zone, raw["addresses"]))),
        ports=tuple(Port(Protocol(protocol), _port(number)) for protocol, number in raw["ports"]),
        sources=None if raw["sources"] is None else tuple(map(ip_network, map(_without_zone, raw["sources"]))),
        limit=_limit(raw["limit"]),
        rejections=(),
        limit_egress=_limit(raw.get("limit_egress", "")),  # older records lack it
    )


def _limit(value: object) -> RateLimit | None:
    return None if value == "" else parse_ratelimit(_text(value))


def _facts(raw: dict[str, Any]) -> Facts:
    return Facts(
        spec=None if raw["spec"] is None else parse_spec(raw["spec"]),
        rolled_back=None if raw["rolled_back"] is None else parse_spec(raw["rolled_back"]),
        pools=None if raw["pools"] is None else parse_pools(raw["pools"]),
        pools_listed=raw["pools_listed"] is True,
        local_chain=_text(raw["local_chain"]),
        config=_text(raw["config"]),
        local=None if raw["local"] is None else _local(*raw["local"]),
        peers=frozenset(map(ip_address, map(_without_zone, raw["peers"]))),
        public=frozenset(map(_nic, raw.get("public", ()))),  # former versions knew none
        inside=frozenset(map(_nic, raw.get("inside", ()))),
        devices=tuple(map(_nic, raw.get("devices", ()))),
        trunks=frozenset(map(_nic, raw.get("trunks", ()))),
        as_of=_text(raw["as_of"]),
    )


def _local(addresses: list[object], networks: list[object]) -> Local:
    return Local(
        frozenset(map(ip_address, map(_without_zone, addresses))),
        frozenset(map(ip_network, map(_without_zone, networks))),
    )


def describe_pools(known: MetalLBConfig) -> dict[str, object]:
    pools = [
        {"name": pool.name, "source": pool.source, "ranges": list(map(str, pool.ranges)), "advertised": pool.advertised}
        for pool in known.pools
    ]
    return {"pools": pools, "peers": _sorted(known.peers)}


def parse_pools(raw: dict[str, Any]) -> MetalLBConfig:
    """The inverse of describe_pools(). Raises ValueError, TypeError or KeyError."""
    pools = tuple(
        Pool(
            _text(pool["name"]),
            _text(pool["source"]),
            tuple(map(_range, pool["ranges"])),
            pool["advertised"] is True,
        )
        for pool in raw["pools"]
    )
    return MetalLBConfig(pools, frozenset(parse_peer_address(peer, "peers") for peer in raw["peers"]))


def _range(value: object) -> Range:
    """The inverse of str(): a network of IPv6 can end with IPv4-mapped addresses, unlike a text in a pool."""
    first, last = map(ip_address, _without_zone(value).split("-"))
    if first.version != last.version or int(first) > int(last):
        raise ValueError(f"{value!a} is no range")
    return Range(first, last)


def boot_facts_record(facts: BootFacts) -> str:
    return _json({"rules": facts.rules, "ingress": sorted(facts.ingress), "base": facts.base})


def parse_boot_facts(record: str) -> BootFacts:
    """The inverse of boot_facts_record(). Raises ValueError, TypeError or KeyError."""
    raw = json.loads(record)
    rules, ingress = _text(raw["rules"]), raw["ingress"]
    if rules and not _DIGESTS.fullmatch(rules):
        raise ValueError("rules are no digests")
    former_version = [] if ingress is None else [ingress]
    indices = ingress if isinstance(ingress, list) else former_version
    if any(type(index) is not int for index in indices):
        raise TypeError("ingress is no index")
    return BootFacts(rules, frozenset(indices), raw["base"] is True)


def _sorted(values: frozenset[Any]) -> list[str]:
    return sorted(map(str, values))


def _name(namespace: object, name: object) -> Name:
    """A Service's name. Without a namespace: an address that version 1 knew without its Service."""
    if not (NAME if namespace else _ADDRESS).fullmatch(_text(name)) or (
        namespace and not NAME.fullmatch(_text(namespace))
    ):
        raise ValueError(f"{namespace!a}/{name!a} is no name")
    return Name(_text(namespace), _text(name))


def _without_zone(value: object) -> str:
    if "%" in _text(value):  # a zone could hold anything
        raise ValueError(f"{value!a} has a zone")
    return _text(value)


def _nic(value: object) -> str:
    if not is_writable(_text(value)):
        raise ValueError(f"{value!a} is no interface")
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
