"""The fields and kinds that an API server knows: finds misspelt and misplaced ones in files.

A server refuses an unknown field, or says that it removes it. Nothing does so for a file.
Never refuse an object of a live API server by these tables: a newer server knows more fields.
Source: core/v1 and meta/v1 of Kubernetes 1.20 to 1.37, also the fields that went away; MetalLB's
config/crd 0.13 to 0.16; packaging/kubernetes/crd.yaml.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Any

from nftsync.objects.names import KINDS, NFT, POOL, SERVICE, Kind, mapping, quote
from nftsync.objects.service import EGRESS_ANNOTATION, RATELIMIT_ANNOTATION, SOURCE_RANGES_ANNOTATION

# A dict of fields, a list with the shape of its entries, a tuple of the legal texts, or None for any
# value. The key `...` stands for any other key.
Shape = Any

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

_ALIKE, _VERY_ALIKE = 0.75, 0.9  # of difflib's ratio, from 0 to 1
_LONGEST = 64  # characters of a word that is compared
_MANY = 100  # keys in which nftsync looks for a misspelt apiVersion or kind
_MOST = 5  # complaints about one object


def _any(*names: str) -> dict[Any, Shape]:
    return dict.fromkeys(names)


_SELECTORS = [_any("matchLabels") | {"matchExpressions": [_any("key", "operator", "values")]}]
_ANNOTATIONS = {...: None} | _any(RATELIMIT_ANNOTATION, EGRESS_ANNOTATION, SOURCE_RANGES_ANNOTATION)
_METADATA = {"annotations": _ANNOTATIONS} | _any(
    "name", "generateName", "namespace", "selfLink", "uid", "resourceVersion", "generation", "creationTimestamp",
    "deletionTimestamp", "deletionGracePeriodSeconds", "labels", "ownerReferences", "finalizers", "clusterName",
    "managedFields",
)  # fmt: skip
_SERVICE = {
    "type": ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    "ports": [_any("name", "protocol", "appProtocol", "port", "targetPort", "nodePort")],
    "sessionAffinityConfig": {"clientIP": _any("timeoutSeconds")},
} | _any(
    "selector", "clusterIP", "clusterIPs", "externalIPs", "sessionAffinity", "loadBalancerIP",
    "loadBalancerSourceRanges", "externalName", "externalTrafficPolicy", "healthCheckNodePort",
    "publishNotReadyAddresses", "ipFamilies", "ipFamilyPolicy", "allocateLoadBalancerNodePorts", "loadBalancerClass",
    "internalTrafficPolicy", "trafficDistribution", "topologyKeys", "ipFamily",
)  # fmt: skip
_SERVICE_STATUS = {"loadBalancer": {"ingress": [_any("ip", "hostname", "ipMode", "ports")]}, "conditions": None}
_NFT = _any(
    "public_nic", "public_nics", "inside_nics", "enable_bgp", "enable_dropall", "enable_rateshape", "enable_ssh",
    "metallb-namespace", "metallb-configmap",
)  # fmt: skip
_POOL = _any("addresses", "autoAssign", "avoidBuggyIPs") | {
    "serviceAllocation": _any("priority", "namespaces")
    | {"namespaceSelectors": _SELECTORS, "serviceSelectors": _SELECTORS},
}
_OLD_POOL = _any("addresses", "autoAssign", "protocol") | {
    "bgpAdvertisements": [_any("aggregationLength", "aggregationLengthV6", "communities", "localPref")],
}
_ADVERTISEMENT = dict.fromkeys(("ipAddressPoolSelectors", "nodeSelectors", "serviceSelectors"), _SELECTORS) | _any(
    "aggregationLength", "aggregationLengthV6", "asPathPrepend", "communities", "ipAddressPools", "localPref", "peers"
)
_PEER = {"nodeSelectors": _SELECTORS, "passwordSecret": _any("name", "namespace")} | _any(
    "bfdProfile", "connectTime", "disableMP", "dualStackAddressFamily", "dynamicASN", "ebgpMultiHop",
    "enableGracefulRestart", "holdTime", "interface", "keepaliveTime", "localASN", "myASN", "password", "peerASN",
    "peerAddress", "peerPort", "routerID", "sourceAddress", "vrf",
)  # fmt: skip


def _object(spec: Shape, status: Shape = None) -> dict[Any, Shape]:
    return {"apiVersion": None, "kind": None, "metadata": _METADATA, "spec": spec, "status": status}


SHAPES: Mapping[str, dict[Any, Shape]] = {
    "Service": _object(_SERVICE, _SERVICE_STATUS),
    "Nft": _object(_NFT),
    "IPAddressPool": _object(_POOL),
    "BGPAdvertisement": _object(_ADVERTISEMENT),
    "BGPPeer": _object(_PEER),
    "AddressPool": _object(_OLD_POOL),
    "ConfigMap": {"metadata": _METADATA} | _any("apiVersion", "kind", "data", "binaryData", "immutable"),
}
_CORE = {  # the kinds of v1
    "Binding", "ComponentStatus", "ConfigMap", "Endpoints", "Event", "LimitRange", "List", "Namespace", "Node",
    "PersistentVolume", "PersistentVolumeClaim", "Pod", "PodTemplate", "RangeAllocation", "ReplicationController",
    "ResourceQuota", "Secret", "Service", "ServiceAccount", "Status",
}  # fmt: skip
# MetalLB's kinds that nftsync need not read.
_OTHERS = ("BFDProfile", "Community", "L2Advertisement", "ServiceBGPStatus", "ServiceL2Status")
_IDENTITY = {"metadata", "metadata.name", "metadata.namespace"}


@dataclass(frozen=True, slots=True)
class Recognized:
    """A kind that nftsync reads, or that the author of an object seems to mean.

    kind: a key of KINDS; "" if none is likely.
    complaint: a phrase about the kind or its version; "" if API servers serve it.
    """

    kind: str
    complaint: str = ""


@dataclass(frozen=True, slots=True)
class Complaints:
    """Phrases about the unknown and misplaced fields of an object.

    renames: True if one of them may hold a part of the object's name, or if there are more of them.
    """

    texts: tuple[str, ...] = ()
    renames: bool = False


def recognize(raw: Mapping[str, object]) -> Recognized | None:
    """The kind of an object; None for a kind that nftsync does not read."""
    version, wrong_version = _header(raw, "apiVersion")
    kind, wrong_kind = _header(raw, "kind")
    group, slash, number = version.partition("/")
    group, number = (group, number) if slash else ("", version)
    is_object = bool(near("metadata", islice(raw, _MANY)))  # unlike a kubeconfig or a Helm chart
    if kind.endswith("List") and (kind == "List" or kind.removesuffix("List") in KINDS):
        return None if raw.get("items", ...) is None else Recognized("", f"{kind} has no list of items")
    if kind in KINDS:
        # Another program can have a kind of the same name.
        ours = (_is_kubernetes(group) or _is_like(group, KINDS[kind])) and (is_object or not wrong_version)
        return Recognized(kind, wrong_version or _wrong_version(kind, group, number, version)) if ours else None
    if is_object and not kind:
        ours = any(group == kind.group for kind in KINDS.values())
        return Recognized("", "; ".join(filter(None, (wrong_version, wrong_kind)))) if ours else None
    known = [each.name for each in KINDS.values() if not group or _is_like(group, each)]
    meant = near(kind, (*known, *(_OTHERS if _is_like(group, POOL) else ())))
    if not meant and group == NFT.group:
        meant = NFT.name  # its only kind
    is_core = version == SERVICE.api_version and kind.removesuffix("List") not in _CORE
    if not is_object or kind in _OTHERS or not (meant or is_core or group == POOL.group):
        return None
    unknown = f"there is no kind {_bare(kind)} in {_bare(version)}{_did_you_mean(meant)}"
    return Recognized("" if meant in _OTHERS else meant, "; ".join(filter(None, (unknown, wrong_version))))


def removed(raw: Mapping[str, object], kind: str) -> Complaints:
    """The complaints about fields that `kubectl apply` sent and that the API server did not keep.

    raw: an object of a live API server. An unknown field that it has is one of a newer API.
    """
    try:
        annotations = mapping(mapping(raw.get("metadata"), "metadata").get("annotations"), "annotations")
        applied = json.loads(str(annotations.get(LAST_APPLIED, "{}")))
        return complaints(mapping(applied, "the annotation"), kind, raw)
    except (ValueError, RecursionError):  # everybody can write an annotation
        return Complaints()


def complaints(raw: Mapping[str, object], kind: str, kept: Mapping[str, object] | None = None) -> Complaints:
    """The complaints about an object of a kind. Each names the field that its author seems to mean.

    kept: an object whose fields count as known.
    """
    shape = SHAPES.get(kind, {...: None})
    # A value can be a list, which has no place in a set.
    known_too = {(path, quote(word)) for path, word, _ in _unknown(kept, shape, "")}
    unknown = (each for each in _unknown(raw, shape, "") if (each[0], quote(each[1])) not in known_too)
    found = list(islice(unknown, _MOST))
    is_more = next(unknown, None) is not None
    places = dict(_places(shape, "")) if found else {}
    texts, meant = [], set()
    for path, word, known in found:
        if isinstance(known, tuple):
            texts.append(f"{path} {quote(word)} is not a known value{_did_you_mean(near(word, known))}")
        else:
            field = _meant(path, word, known, places)
            meant.add(field)
            texts.append(f"unknown field {_join(path, _bare(word))}{_did_you_mean(field)}")
    return Complaints(tuple(texts), is_more or not meant.isdisjoint(_IDENTITY))


def near(word: object, words: Iterable[str], alike: float = _ALIKE) -> str:
    """The word that is spelt most like another one, whatever its case; "" if none is alike."""
    if not isinstance(word, str):
        return ""
    plain, sought = {_plain(each): each for each in words}, _plain(word)
    found = [sought] if sought in plain else get_close_matches(sought, plain, 1, alike)
    return plain[found[0]] if found else ""


def _header(raw: Mapping[str, object], field: str) -> tuple[str, str]:
    """The text of a field, or of the field that is spelt like it; "" and a complaint without one."""
    value = raw.get(field)
    if value is None:
        value = raw.get(near(field, islice(raw, _MANY)))
    if isinstance(value, str) and value:
        return value, ""
    return "", f"{field} is missing" if value in (None, "") else f"{field} {quote(value)} is not a text"


def _wrong_version(kind: str, group: str, number: str, version: str) -> str:
    """A complaint unless API servers serve the kind in this version."""
    wanted = KINDS[kind]
    if group == wanted.group and number in (wanted.version, wanted.older or wanted.version):
        return ""
    return f"there is no {kind} in apiVersion {_bare(version)}{_did_you_mean(wanted.api_version)}"


def _is_kubernetes(group: str) -> bool:
    """True for a group of Kubernetes itself. It has no kind of our names but in the group ""."""
    return "." not in group or group.endswith(".k8s.io")


def _is_like(group: str, kind: Kind) -> bool:
    return group == kind.group or bool(near(group, (kind.group,)))


def _unknown(value: object, shape: Shape, path: str) -> Iterator[tuple[str, Any, Any]]:
    """The path of each unknown field, its name, and the names of the known fields there.

    For an unknown text: its path, the text and the legal texts.
    """
    if isinstance(shape, tuple):
        if value not in (None, "", *shape):
            yield path, value, shape
    elif isinstance(shape, list) and isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _unknown(entry, shape[0], f"{path}[{number}]")
    elif isinstance(shape, dict) and isinstance(value, dict):
        for key, part in value.items():
            if key in shape:
                yield from _unknown(part, shape[key], _join(path, key))
            elif ... not in shape:
                yield path, key, list(shape)


def _places(shape: Shape, path: str) -> Iterator[tuple[str, str]]:
    """The paths of all known fields, each with its last part, the innermost first."""
    if isinstance(shape, list):
        yield from _places(shape[0], f"{path}[]")
    elif isinstance(shape, dict):
        for key, part in shape.items():
            if isinstance(key, str):
                yield from _places(part, _join(path, key))
                yield _join(path, key), key


def _meant(path: str, key: str, siblings: list[str], places: Mapping[str, str]) -> str:
    """The path of the known field that the author of an unknown one seems to mean; "" if none is alike."""
    here = {_join(path, sibling): sibling for sibling in siblings}
    for known, alike in ((here, _VERY_ALIKE), (places, 1.0), (here, _ALIKE), (places, _ALIKE)):
        if word := near(key, known.values(), alike):
            return next(place for place, name in known.items() if name == word)
    return ""


def _plain(word: str) -> str:
    return word[:_LONGEST].lower().replace("-", "").replace("_", "")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _bare(word: str) -> str:
    return quote(word)[1:-1]


def _did_you_mean(word: str) -> str:
    return f" (did you mean {word}?)" if word else ""
