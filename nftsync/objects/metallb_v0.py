"""Parses MetalLB's configuration up to 0.12: one YAML text in the ConfigMap `config`.

This module is as strict as MetalLB: an unknown key anywhere is an error. It reads only addresses and
peers. Of the other keys (communities, BFD profiles, timers) it checks only the shape.
"""

import re
from collections.abc import Iterator
from typing import Any

from nftsync.objects.metallb import ConfigMap, MetalLBConfig, Pool, overlaps, parse_addresses, parse_peer_address
from nftsync.objects.names import (
    CONFIG_MAP,
    Malformed,
    ObjectRef,
    Reason,
    Rejection,
    identify,
    mapping,
    quote,
    require,
    sequence,
)
from nftsync.objects.yaml import Plain, documents

MAX_CHARACTERS = 1 << 20  # etcd keeps no larger object

# The shape of the text: each key and its type. A list stands for any number of its one entry, and
# `...` stands for any key.
_SHAPE = {
    "address-pools": [{
        "name": str, "protocol": str, "addresses": [str], "avoid-buggy-ips": bool, "auto-assign": bool,
        "bgp-advertisements": [
            {"aggregation-length": int, "aggregation-length-v6": int, "localpref": int, "communities": [str]}
        ],
    }],
    "peers": [{
        "my-asn": int, "peer-asn": int, "peer-address": str, "source-address": str, "peer-port": int, "hold-time": str,
        "keepalive-time": str, "router-id": str, "password": str, "bfd-profile": str, "ebgp-multihop": bool,
        "node-selectors": [{
            "match-labels": {...: str}, "match-expressions": [{"key": str, "operator": str, "values": [str]}],
        }],
    }],
    "bgp-communities": {...: str},
    "bfd-profiles": [{
        "name": str, "receive-interval": int, "transmit-interval": int, "detect-multiplier": int,
        "echo-interval": int, "echo-mode": bool, "passive-mode": bool, "minimum-ttl": int,
    }],
}  # fmt: skip

# Each type's name, and the texts without quotes that MetalLB's YAML 1.1 reader takes for it.
_SCALARS = {
    str: ("a text", None),
    int: ("a whole number", re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9A-Fa-f_]+|0b[01_]+|0o?[0-7_]+)")),
    bool: ("true or false", re.compile(r"y|Y|n|N|[Yy]es|YES|[Nn]o|NO|[Oo]n|ON|[Oo]ff|OFF|[Tt]rue|TRUE|[Ff]alse|FALSE")),
}


def parse_config_map(raw: object, _before: ConfigMap | None) -> ConfigMap | None:
    """The ConfigMap from its API object; None for another name than MetalLB's. Raises Malformed."""
    name, uid = identify(raw)
    if name.name != CONFIG_MAP:
        return None
    try:
        text = mapping(mapping(raw, "the object").get("data"), "data").get(CONFIG_MAP)
        return ConfigMap(name, uid, parse_configuration(text, f"ConfigMap {name}"))
    except Malformed as error:
        rejection = Rejection(ObjectRef("ConfigMap", str(name), uid), Reason.INVALID_POOLS, f"{CONFIG_MAP}: {error}")
        return ConfigMap(name, uid, rejections=(rejection,))


def parse_configuration(text: object, source: str) -> MetalLBConfig:
    """The configuration in a text. Raises Malformed with a sentence."""
    if not isinstance(text, str):
        raise Malformed("there is no text under this key")
    require(len(text) <= MAX_CHARACTERS, "the text is larger than 1 MiB")
    document, *others = documents(text, plain=True) or [None]
    require(not others, "there is more than one YAML document")
    _check(document, _SHAPE, "the text")
    config = mapping(document, "the text")
    pools = tuple(_pools(sequence(config.get("address-pools"), "address-pools"), source))
    for _, message in overlaps(pools):
        raise Malformed(message)
    peers = (mapping(peer, "a peer") for peer in sequence(config.get("peers"), "peers"))
    return MetalLBConfig(
        pools, frozenset(parse_peer_address(peer.get("peer-address"), "peer-address") for peer in peers)
    )


def _pools(entries: list[object], source: str) -> Iterator[Pool]:
    names = set()
    for entry in entries:
        pool = mapping(entry, "an address pool")
        name, protocol = pool.get("name") or "", pool.get("protocol")
        require(bool(name), "an address pool has no name")
        require(name not in names, f"the pool {quote(name)} is defined twice")
        names.add(name)
        ranges = parse_addresses(pool.get("addresses"), f"addresses of the pool {quote(name)}")
        require(
            protocol in ("bgp", "layer2"),
            f"the protocol {quote(protocol)} of the pool {quote(name)} is neither bgp nor layer2",
        )
        advertisements = sequence(pool.get("bgp-advertisements"), "bgp-advertisements")
        require(protocol == "bgp" or not advertisements, f"the layer2 pool {quote(name)} can't have bgp-advertisements")
        yield Pool(str(name), source, ranges, protocol == "bgp")


def _check(value: object, shape: Any, what: str) -> None:
    """Raise Malformed if a value has another shape.

    null has every shape. A text may be in quotes or not.
    """
    if isinstance(shape, list):
        for entry in sequence(value, what):
            _check(entry, shape[0], f"an entry of {what}")
    elif isinstance(shape, dict):
        for key, part in mapping(value, what).items():
            known = key in shape or ... in shape
            require(known, f"{what} has a key {quote(key)}, which MetalLB does not know")
            _check(part, shape.get(key, shape.get(...)), key)
    elif value is not None:
        name, plain = _SCALARS[shape]
        if not isinstance(value, Plain if plain else str) or (plain and not plain.fullmatch(value)):
            raise Malformed(f"{quote(what)} is not {name} but {quote(value)}")
