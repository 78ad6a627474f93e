"""Parses MetalLB's configuration up to 0.12: one YAML text under the key `config` of a ConfigMap.

This module is as strict as MetalLB: an unknown key anywhere is an error. It reads only addresses and
peers. Of the other keys (communities, BFD profiles, timers) it checks only the shape.

The ConfigMap's name is a flag of MetalLB: `config` in its manifests, the release's in Helm's chart.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

from nftsync.objects.aggregation import is_advertised, parse_addresses, parse_lengths
from nftsync.objects.metallb import ConfigMap, Judged, MetalLBConfig, Pool, overlaps, parse_peer_address
from nftsync.objects.names import (
    CONFIG_MAP,
    LEGACY,
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


# Helm's label, and the key that only MetalLB's text has.
_LABEL = ("app.kubernetes.io/name", "metallb")
_SIMILAR = re.compile(r"(?:^\ufeff?|[{,])[ \t]*[\"']?address-pools[\"']?[ \t]*:", re.MULTILINE)


def parse_config_map(raw: object, _before: ConfigMap | None) -> ConfigMap:
    """A ConfigMap from its API object, MetalLB's or another one. Raises Malformed."""
    name, uid = identify(raw)
    ref = ObjectRef(LEGACY.name, str(name), uid)
    is_marked = name.name == CONFIG_MAP
    try:
        resource = mapping(raw, "the object")
        text = mapping(resource.get("data"), "data").get(CONFIG_MAP)
        key, label = _LABEL
        labels = mapping(mapping(resource.get("metadata"), "metadata").get("labels"), "metadata.labels")
    except Malformed as error:
        return ConfigMap(name, uid, None, is_marked, False, partial(_refused, ref, str(error)))
    is_marked = is_marked or (text is not None and labels.get(key) == label)
    if not isinstance(text, str):
        return ConfigMap(name, uid, None, is_marked, False, partial(_refused, ref, "there is no text under this key"))
    return ConfigMap(name, uid, text, is_marked, _SIMILAR.search(text) is not None, partial(_judged, ref, text))


@lru_cache(2)  # each change of another object asks again
def _judged(ref: ObjectRef, text: str) -> Judged:
    try:
        return parse_configuration(text, str(ref)), ()
    except Malformed as error:
        return _refused(ref, str(error))


def _refused(ref: ObjectRef, complaint: str) -> Judged:
    return None, (Rejection(ref, Reason.INVALID_POOLS, f"{CONFIG_MAP}: {complaint}"),)


def parse_configuration(text: str, source: str) -> MetalLBConfig:
    """The configuration in a text. Raises Malformed with a sentence."""
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
        what = f"the pool {quote(name)}"
        ranges, prefixes = parse_addresses(pool.get("addresses"), f"addresses of {what}")
        advertisements = sequence(pool.get(_ADVERTISEMENTS), _ADVERTISEMENTS)
        lengths = [parse_lengths(_numbers(mapping(each, "an advertisement")), _LENGTHS) for each in advertisements]
        yield Pool(str(name), source, ranges, is_advertised(protocol, prefixes, lengths, what))


_ADVERTISEMENTS = "bgp-advertisements"
_LENGTHS = ("aggregation-length", "aggregation-length-v6")


def _numbers(entry: Mapping[str, object]) -> dict[str, object]:
    """The entry with its aggregation lengths as numbers."""
    lengths = {key: entry.get(key) for key in _LENGTHS}
    return {key: _number(str(value)) if value is not None else None for key, value in lengths.items()}


def _number(text: str) -> int:
    """A whole number of YAML 1.1, of the form in _SCALARS. Raises Malformed."""
    plain = text.replace("_", "")
    try:
        return int(plain, 8 if re.fullmatch(r"[-+]?0[0-7]+", plain) else 0)
    except ValueError:  # no digits, or thousands of them
        raise Malformed(f"{quote(text)} is not a whole number") from None


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
