"""MetalLB's objects and its old ConfigMap mean the same here as in MetalLB.

An error in one of them refuses it as a whole.
"""

from __future__ import annotations

import json
import tracemalloc
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftsync.objects.address import parse_range
from nftsync.objects.metallb import (
    AddressPool,
    Advertisement,
    ConfigMap,
    MetalLBConfig,
    Peer,
    Pool,
    configuration,
    parse_advertisement,
    parse_former_pool,
    parse_peer,
    parse_pool,
    parse_state,
)
from nftsync.objects.metallb_v0 import MAX_CHARACTERS, parse_config_map, parse_configuration
from nftsync.objects.names import Malformed, Reason
from nftsync.objects.yaml import documents
from tests.support import count_yaml_events, json_values


def raw(name: str = "services", labels: Any = None, **spec: Any) -> dict[str, Any]:
    """An object of MetalLB's as the API has it."""
    return {
        "metadata": {"namespace": "metallb-system", "name": name, "uid": f"uid-{name}", "labels": labels},
        "spec": spec,
    }


def pool(name: str, *addresses: str, **labels: str) -> AddressPool:
    return parse_pool(raw(name, labels, addresses=list(addresses)), None)


def advertisement(**spec: Any) -> Advertisement:
    return parse_advertisement(raw("advertisement", **spec), None)


def ranges(found: AddressPool | Pool) -> list[str]:
    return [str(each) for each in found.ranges]


def told(found: AddressPool | Advertisement | Peer | ConfigMap) -> str:
    """The one sentence with which an object is refused."""
    (rejection,) = found.rejections
    assert rejection.reason is Reason.INVALID_POOLS
    assert rejection.object.name == str(found.name)
    assert rejection.object.uid == found.uid
    assert str(rejection).isprintable()
    return rejection.message


# --- IPAddressPool -------------------------------------------------------------------------------------


def test_a_pool_has_its_ranges_in_order_and_its_labels() -> None:
    found = parse_pool(
        raw(labels={"zone": "b", "tier": "a"}, addresses=["2001:db8::/64", "192.0.2.64/26", "192.0.2.1 - 192.0.2.9"]),
        None,
    )
    assert ranges(found) == [
        "192.0.2.1-192.0.2.9",
        "192.0.2.64-192.0.2.127",
        "2001:db8::-2001:db8::ffff:ffff:ffff:ffff",
    ]
    assert found.labels == (("tier", "a"), ("zone", "b"))
    assert (str(found.name), found.uid, found.rejections) == ("metallb-system/services", "uid-services", ())


def test_what_a_pool_says_of_who_may_have_its_addresses_does_not_change_which_they_are() -> None:
    allocation = {
        "priority": 50,
        "namespaces": ["a", "b"],
        "namespaceSelectors": [{"matchLabels": {"a": "b"}}],
        "serviceSelectors": [{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}],
    }
    plain = raw(addresses=["192.0.2.0/24"])
    told_more = raw(addresses=["192.0.2.0/24"], serviceAllocation=allocation, autoAssign=False, avoidBuggyIPs=True)
    assert parse_pool(told_more, None) == parse_pool(plain, None)


INVALID_POOLS: dict[str, tuple[dict[str, Any], str]] = {
    "no spec": ({}, "spec.addresses is empty: a pool needs a CIDR or a range of addresses"),
    "no addresses": ({"addresses": []}, "spec.addresses is empty: a pool needs a CIDR or a range of addresses"),
    "null": ({"addresses": None}, "spec.addresses is empty: a pool needs a CIDR or a range of addresses"),
    "a text": ({"addresses": "192.0.2.0/24"}, "spec.addresses is not a list but '192.0.2.0/24'"),
    "one that is good and one that is not": (
        {"addresses": ["192.0.2.0/24", "x/24"]}, "'x/24' is neither a CIDR nor a range of addresses",
    ),
    "a number": ({"addresses": [5]}, "5 is neither a CIDR nor a range of addresses"),
    "a namespace twice": (
        {"addresses": ["192.0.2.0/24"], "serviceAllocation": {"namespaces": ["a", "a"]}},
        "spec.serviceAllocation.namespaces holds 'a' twice",
    ),
    "a selector twice": (
        {"addresses": ["192.0.2.0/24"], "serviceAllocation": {"serviceSelectors": 2 * [{"matchLabels": {"a": "b"}}]}},
        "spec.serviceAllocation.serviceSelectors holds a selector twice",
    ),
    "an expression twice": (
        {
            "addresses": ["192.0.2.0/24"],
            "serviceAllocation": {
                "namespaceSelectors": [{"matchExpressions": 2 * [{"key": "a", "operator": "Exists"}]}],
            },
        },
        "spec.serviceAllocation.namespaceSelectors holds an expression twice",
    ),
    "an allocation that is a list": (
        {"addresses": ["192.0.2.0/24"], "serviceAllocation": []}, "spec.serviceAllocation is not an object but a list",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", INVALID_POOLS)
def test_an_invalid_pool_has_no_addresses_and_says_what_is_wrong(fault: str) -> None:
    spec, message = INVALID_POOLS[fault]
    found = parse_pool(raw(**spec), None)
    assert told(found) == message
    assert found.ranges == ()


def test_labels_that_are_no_texts_make_a_pool_invalid() -> None:
    assert told(parse_pool(raw(labels={"a": 5}, addresses=["192.0.2.0/24"]), None)) == (
        "metadata.labels: the label 'a' is not a text but 5"
    )


PARSERS = (parse_pool, parse_former_pool, parse_advertisement, parse_peer, parse_state)


@pytest.mark.parametrize("parse", [*PARSERS, parse_config_map])
@pytest.mark.parametrize("nameless", [None, [], "x", {}, {"metadata": {"name": "A b"}}, {"metadata": {"name": None}}])
def test_an_object_without_a_name_is_malformed(parse: Any, nameless: object) -> None:
    with pytest.raises(Malformed):
        parse(nameless, None)


# --- BGPAdvertisement ----------------------------------------------------------------------------------

LABELLED = pool("blue", "192.0.2.0/24", color="blue", tier="edge")
PLAIN = pool("plain", "198.51.100.0/24")


def by(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {
        "ipAddressPoolSelectors": [{"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}]
    }


def by_label(**labels: str) -> dict[str, Any]:
    return {"ipAddressPoolSelectors": [{"matchLabels": labels}]}


@pytest.mark.parametrize(
    ("spec", "blue", "plain"),
    [
        ({}, True, True),
        ({"ipAddressPools": [], "ipAddressPoolSelectors": []}, True, True),
        ({"peers": ["a"], "nodeSelectors": [{"matchLabels": {"a": "b"}}], "aggregationLength": 24}, True, True),
        ({"ipAddressPools": ["blue"]}, True, False),
        ({"ipAddressPools": ["blue", "plain"]}, True, True),
        ({"ipAddressPools": ["another"]}, False, False),
        (by_label(color="blue"), True, False),
        (by_label(color="blue", tier="edge"), True, False),
        (by_label(color="blue", tier="core"), False, False),
        ({"ipAddressPoolSelectors": [{}]}, True, True),
        (by("color", "In", "red", "blue"), True, False),
        (by("color", "In", "red"), False, False),
        (by("color", "NotIn", "red"), True, True),
        (by("color", "NotIn", "blue", "red"), False, True),
        (by("color", "Exists"), True, False),
        (by("color", "DoesNotExist"), False, True),
        (
            {"ipAddressPoolSelectors": [{"matchLabels": {"color": "red"}}, {"matchLabels": {"tier": "edge"}}]},
            True,
            False,
        ),
        ({"ipAddressPools": ["plain"], **by_label(color="blue")}, True, True),
        (
            {
                "ipAddressPoolSelectors": [
                    {
                        "matchLabels": {"color": "blue"},
                        "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}],
                    }
                ]
            },
            False,
            False,
        ),
    ],
)
def test_an_advertisement_covers_what_it_names_or_selects_and_everything_if_it_does_neither(
    spec: dict[str, Any],
    blue: bool,  # noqa: FBT001
    plain: bool,  # noqa: FBT001
) -> None:
    found = advertisement(**spec)
    assert found.rejections == ()
    assert (found.covers(LABELLED), found.covers(PLAIN)) == (blue, plain)
    configured, _ = configuration([LABELLED, PLAIN], [found], [], [])
    assert configured is not None
    assert {each.name: each.advertised for each in configured.pools} == {"blue": blue, "plain": plain}


def test_a_pool_that_no_advertisement_covers_is_not_advertised() -> None:
    configured, _ = configuration([PLAIN], [], [], [])
    assert configured is not None
    assert [each.advertised for each in configured.pools] == [False]
    configured, _ = configuration([PLAIN], [advertisement(ipAddressPools=["x"]), advertisement()], [], [])
    assert configured is not None
    assert [each.advertised for each in configured.pools] == [True]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"ipAddressPools": "blue"}, "spec.ipAddressPools is not a list but 'blue'"),
        ({"ipAddressPools": ["blue", "blue"]}, "spec.ipAddressPools holds 'blue' twice"),
        ({"ipAddressPools": [5]}, "spec.ipAddressPools holds 5, which is not a text"),
        ({"peers": ["a", "a"]}, "spec.peers holds 'a' twice"),
        ({"nodeSelectors": 2 * [{"matchLabels": {"a": "b"}}]}, "spec.nodeSelectors holds a selector twice"),
        ({"ipAddressPoolSelectors": 2 * [{}]}, "spec.ipAddressPoolSelectors holds a selector twice"),
        ({"ipAddressPoolSelectors": ["x"]}, "an entry of spec.ipAddressPoolSelectors is not an object but 'x'"),
        (by_label(color=5), "spec.ipAddressPoolSelectors: the label 'color' is not a text but 5"),  # type: ignore[arg-type]
        (by("", "Exists"), "spec.ipAddressPoolSelectors: '' is not a label's key"),
        (
            by("a", "Surrounds", "b"),
            "spec.ipAddressPoolSelectors: the operator 'Surrounds' is not In, NotIn, Exists or DoesNotExist",
        ),
        (by("a", "In"), "spec.ipAddressPoolSelectors: In and NotIn need values, Exists and DoesNotExist have none"),
        (by("a", "NotIn"), "spec.ipAddressPoolSelectors: In and NotIn need values, Exists and DoesNotExist have none"),
        (
            by("a", "Exists", "b"),
            "spec.ipAddressPoolSelectors: In and NotIn need values, Exists and DoesNotExist have none",
        ),
        (
            by("a", "DoesNotExist", "b"),
            "spec.ipAddressPoolSelectors: In and NotIn need values, Exists and DoesNotExist have none",
        ),
        (by("a", "In", "b", "b"), "spec.ipAddressPoolSelectors: values holds 'b' twice"),
    ],
)
def test_an_invalid_advertisement_says_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    assert told(advertisement(**spec)) == message


# --- BGPPeer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"), ("2001:DB8::1", "2001:db8::1"), ("fe80::1", "fe80::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)  # fmt: skip
def test_of_a_peer_the_address_is_taken_and_nothing_else(text: str, address: str) -> None:
    found = parse_peer(raw("peer", peerAddress=text, password="secret", myASN="x", holdTime=5), None)
    assert found == Peer(found.name, "uid-peer", ip_address(address))
    assert "secret" not in repr(found)


@pytest.mark.parametrize("spec", [{}, {"peerAddress": None}, {"peerAddress": ""}, {"interface": "net0"}])
def test_a_peer_that_is_known_by_its_interface_has_no_address_and_is_valid(spec: dict[str, Any]) -> None:
    found = parse_peer(raw("peer", **spec), None)
    assert (found.address, found.rejections) == (None, ())


@pytest.mark.parametrize(
    "value", ["192.0.2.1/32", "192.0.2.1:179", " 192.0.2.1", "fe80::1%eth0", "peer.example.com", 5, [], {}]
)
def test_a_peers_address_that_is_none_is_refused(value: object) -> None:
    assert told(parse_peer(raw("peer", peerAddress=value), None)).endswith(" is not an IP address")


# --- all of them together ------------------------------------------------------------------------------


def test_nothing_at_all_is_no_configuration_and_no_fault() -> None:
    assert configuration([], [], [], []) == (None, ())
    assert configuration([], [advertisement()], [parse_peer(raw("peer", peerAddress="192.0.2.1"), None)], []) == (
        None,
        (),
    )


def test_a_configuration_has_the_pools_by_name_and_the_addresses_of_all_peers() -> None:
    addresses = ("192.0.2.1", "2001:db8::1", "192.0.2.1", None)
    peers = [parse_peer(raw(f"peer{number}", peerAddress=text), None) for number, text in enumerate(addresses)]
    found, rejections = configuration([PLAIN, LABELLED], [advertisement(ipAddressPools=["blue"])], peers, [])
    assert rejections == ()
    assert found == MetalLBConfig(
        (
            Pool("blue", "IPAddressPool metallb-system/blue", (parse_range("192.0.2.0/24"),), advertised=True),
            Pool("plain", "IPAddressPool metallb-system/plain", (parse_range("198.51.100.0/24"),), advertised=False),
        ),
        frozenset({ip_address("192.0.2.1"), ip_address("2001:db8::1")}),
    )


@pytest.mark.parametrize(
    ("pools", "messages"),
    [
        (
            [pool("a", "192.0.2.0/24", "192.0.2.9/32")],
            ["a: 192.0.2.9-192.0.2.9 overlaps 192.0.2.0-192.0.2.255 of the pool 'a'"],
        ),
        (
            [pool("a", "192.0.2.0/24", "192.0.2.0/24")],
            ["a: 192.0.2.0-192.0.2.255 overlaps 192.0.2.0-192.0.2.255 of the pool 'a'"],
        ),
        (
            [pool("a", "192.0.2.0-192.0.2.9"), pool("b", "192.0.2.9-192.0.2.12")],
            ["b: 192.0.2.9-192.0.2.12 overlaps 192.0.2.0-192.0.2.9 of the pool 'a'"],
        ),
        (
            [pool("small", "2001:db8::5/128"), pool("large", "2001:db8::/32")],
            [
                "small: 2001:db8::5-2001:db8::5 overlaps "
                "2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff of the pool 'large'"
            ],
        ),
        (
            [pool("a", "192.0.2.0/24"), pool("b", "192.0.2.1/32"), pool("c", "192.0.2.200/32")],
            [
                "b: 192.0.2.1-192.0.2.1 overlaps 192.0.2.0-192.0.2.255 of the pool 'a'",
                "c: 192.0.2.200-192.0.2.200 overlaps 192.0.2.0-192.0.2.255 of the pool 'a'",
            ],
        ),
        ([pool("a", "192.0.2.0/25"), pool("b", "192.0.2.128/25")], []),
        ([pool("a", "0.0.0.0/0"), pool("b", "::/0")], []),
    ],
)
def test_ranges_that_overlap_in_a_pool_or_between_pools_make_the_whole_invalid(
    pools: list[AddressPool], messages: list[str]
) -> None:
    found, rejections = configuration(pools, [], [], [])
    assert [f"{each.object.name.partition('/')[2]}: {each.message}" for each in rejections] == messages
    assert {each.reason for each in rejections} <= {Reason.INVALID_POOLS}
    assert (found is None) == bool(messages)


spans = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), min_size=1, max_size=4)


@given(st.lists(spans, min_size=1, max_size=4))
def test_a_configuration_is_refused_exactly_if_two_of_its_ranges_share_an_address(
    described: list[list[tuple[int, int]]],
) -> None:
    pools = [
        pool(f"p{number}", *(f"192.0.2.{start}-192.0.2.{start + length}" for start, length in each))
        for number, each in enumerate(described)
    ]
    addresses = [start + step for each in described for start, length in each for step in range(length + 1)]
    found, rejections = configuration(pools, [], [], [])
    assert (found is None) == bool(rejections) == (len(set(addresses)) < len(addresses))


INVALID_OBJECTS = {
    "pool": ([pool("bad", "x")], [], []),
    "advertisement": ([], [advertisement(ipAddressPools=[5])], []),
    "peer": ([], [], [parse_peer(raw("peer", peerAddress="x"), None)]),
}


@pytest.mark.parametrize("kind", INVALID_OBJECTS)
def test_one_invalid_object_makes_the_whole_invalid(kind: str) -> None:
    pools, advertisements, peers = INVALID_OBJECTS[kind]
    found, rejections = configuration([PLAIN, *pools], [advertisement(), *advertisements], peers, [])
    assert found is None
    assert [each.reason for each in rejections] == [Reason.INVALID_POOLS]


LEGACY = (
    "address-pools:\n- {name: old, protocol: bgp, addresses: [203.0.113.0/24]}\npeers:\n- {peer-address: 203.0.113.1}\n"
)


def legacy(text: object, name: str = "config") -> ConfigMap:
    metadata = {"namespace": "metallb-system", "name": name, "uid": "uid-config"}
    return parse_config_map({"metadata": metadata, "data": {"config": text}}, None)


def test_the_config_map_counts_if_there_is_no_pool_object() -> None:
    source = "ConfigMap metallb-system/config"
    wanted = MetalLBConfig(
        (Pool("old", source, (parse_range("203.0.113.0/24"),), True),), frozenset({ip_address("203.0.113.1")})
    )
    assert configuration([], [], [], [legacy(LEGACY)]) == (wanted, ())
    assert configuration([], [advertisement()], [], [legacy(LEGACY)]) == (wanted, ())


def test_pool_objects_win_over_the_config_map_whatever_it_says() -> None:
    for text in (LEGACY, "rubbish"):
        found, rejections = configuration([PLAIN], [], [], [legacy(text)])
        assert rejections == ()
        assert found is not None
        assert [each.name for each in found.pools] == ["plain"]
        assert found.peers == frozenset()
    found, rejections = configuration([pool("bad", "x")], [], [], [legacy(LEGACY)])
    assert found is None, "not even if they are invalid"
    assert [each.object.kind for each in rejections] == ["IPAddressPool"]


def test_an_invalid_config_map_is_no_configuration_and_says_so() -> None:
    found, rejections = configuration([], [], [], [legacy("rubbish")])
    assert found is None
    assert [str(each) for each in rejections] == [
        "ConfigMap metallb-system/config: invalid_pools: config: the text is not an object but 'rubbish'"
    ]


# --- the ConfigMap -------------------------------------------------------------------------------------

FULL = """
peers:
- my-asn: 64500
  peer-asn: 64501
  peer-address: 192.0.2.1
  source-address: 192.0.2.2
  peer-port: 1179
  hold-time: 180s
  keepalive-time: 60s
  router-id: 192.0.2.3
  password: secret
  bfd-profile: fast
  ebgp-multihop: true
  node-selectors:
  - match-labels: {a: b}
    match-expressions:
    - {key: a, operator: In, values: [b, c]}
- {my-asn: 64500, peer-asn: 64501, peer-address: "2001:db8::1"}
bgp-communities:
  ours: 64512:1
bfd-profiles:
- {name: fast, receive-interval: 35, transmit-interval: 35, detect-multiplier: 3, echo-interval: 50, echo-mode: false,
   passive-mode: true, minimum-ttl: 254}
address-pools:
- name: announced
  protocol: bgp
  avoid-buggy-ips: yes
  auto-assign: false
  addresses: ["2001:db8:1::/64", 198.51.100.0/25]
  bgp-advertisements:
  - {aggregation-length: 32, aggregation-length-v6: 128, localpref: 100, communities: [ours, 64512:2]}
- name: flat
  protocol: layer2
  addresses:
  - 198.51.100.200 - 198.51.100.209
"""


def test_everything_that_metallb_0_12_knew_is_understood() -> None:
    found = parse_configuration(FULL, "here")
    announced, flat = found.pools
    assert (announced.name, announced.source, announced.advertised) == ("announced", "here", True)
    assert ranges(announced) == ["198.51.100.0-198.51.100.127", "2001:db8:1::-2001:db8:1:0:ffff:ffff:ffff:ffff"]
    assert (flat.name, flat.source, flat.advertised) == ("flat", "here", False)
    assert ranges(flat) == ["198.51.100.200-198.51.100.209"]
    assert found.peers == {ip_address("192.0.2.1"), ip_address("2001:db8::1")}


LEVELS = {
    "the text": "peerz: []",
    "an entry of peers": "peers:\n- {peer-address: 192.0.2.1, peerz: 1}",
    "an entry of node-selectors": "peers:\n- {peer-address: 192.0.2.1, node-selectors: [{peerz: {}}]}",
    "an entry of match-expressions": (
        "peers:\n- {peer-address: 192.0.2.1, node-selectors: [{match-expressions: "
        "[{key: a, operator: Exists, peerz: 1}]}]}"
    ),
    "an entry of address-pools": "address-pools:\n- {name: a, protocol: bgp, addresses: [192.0.2.0/24], peerz: 1}",
    "an entry of bgp-advertisements": (
        "address-pools:\n- {name: a, protocol: bgp, addresses: [192.0.2.0/24], bgp-advertisements: [{peerz: 1}]}"
    ),
    "an entry of bfd-profiles": "bfd-profiles:\n- {name: a, peerz: 1}",
}


@pytest.mark.parametrize("level", LEVELS)
def test_a_key_that_metallb_does_not_know_is_refused_at_every_level(level: str) -> None:
    message = f"config: {level} has a key 'peerz', which MetalLB does not know"
    assert told(legacy(LEVELS[level])) == message
    without = (
        LEVELS[level]
        .replace(", peerz: 1", "")
        .replace("peerz: 1", "")
        .replace(", peerz: {}", "")
        .replace("peerz: {}", "")
    )
    assert legacy(without.replace("peerz: []", "{}")).configuration is not None, "without it, it is good"


@pytest.mark.parametrize("spelled", ["Peers", "address_pools", "addressPools", "bgpCommunities", "peer"])
def test_a_key_in_another_spelling_is_another_key(spelled: str) -> None:
    assert told(legacy(f"{spelled}: []")) == f"config: the text has a key '{spelled}', which MetalLB does not know"


INVALID_TEXTS = {
    "address-pools: 5": "address-pools is not a list but '5'",
    "address-pools: {a: b}": "address-pools is not a list but a dict",
    "address-pools: [x]": "an entry of address-pools is not an object but 'x'",
    "address-pools: [{}]": "an address pool has no name",
    "address-pools: [null]": "an address pool has no name",
    "address-pools: [{name: ''}]": "an address pool has no name",
    "address-pools: [{name: [a]}]": "'name' is not a text but a list",
    "address-pools: [{name: a}]": "addresses of the pool 'a' is empty: a pool needs a CIDR or a range of addresses",
    "address-pools: [{name: a, protocol: bgp, addresses: [192.0.2.1]}]": (
        "'192.0.2.1' is neither a CIDR nor a range of addresses: for one address write 192.0.2.1/32"
    ),
    "address-pools: [{name: a, addresses: [192.0.2.0/24]}]": (
        "the protocol None of the pool 'a' is neither bgp nor layer2"
    ),
    "address-pools: [{name: a, protocol: BGP, addresses: [192.0.2.0/24]}]": (
        "the protocol 'BGP' of the pool 'a' is neither bgp nor layer2"
    ),
    "address-pools: [{name: a, protocol: layer2, addresses: [192.0.2.0/24], bgp-advertisements: [{localpref: 1}]}]": (
        "the pool 'a' is layer2, so it can't have BGP advertisements"
    ),
    (
        "address-pools: [{name: a, protocol: bgp, addresses: [192.0.2.0/24]}, "
        "{name: a, protocol: bgp, addresses: [192.0.3.0/24]}]"
    ): ("the pool 'a' is defined twice"),
    (
        "address-pools: [{name: a, protocol: bgp, addresses: [192.0.2.0/24]}, "
        "{name: b, protocol: bgp, addresses: [192.0.2.8/32]}]"
    ): ("192.0.2.8-192.0.2.8 overlaps 192.0.2.0-192.0.2.255 of the pool 'a'"),
    "peers: [{peer-address: x}]": "peer-address 'x' is not an IP address",
    "peers: [{my-asn: 1}]": "peer-address None is not an IP address",
    "peers: [{peer-address: 192.0.2.1, my-asn: ten}]": "'my-asn' is not a whole number but 'ten'",
    "peers: [{peer-address: 192.0.2.1, ebgp-multihop: 1}]": "'ebgp-multihop' is not true or false but '1'",
    "bgp-communities: [a]": "bgp-communities is not an object but a list",
    "bgp-communities: {a: [b]}": "'a' is not a text but a list",
    "bfd-profiles: [{receive-interval: true}]": "'receive-interval' is not a whole number but 'true'",
    # What YAML makes of a text, and what is never expanded or constructed.
    "peers: []\npeers: []": "line 2: the key 'peers' occurs twice",
    "peers:\n- {peer-address: 192.0.2.1, peer-address: 192.0.2.2}": "line 2: the key 'peer-address' occurs twice",
    "peers: &a []": "line 1: anchors and aliases are not allowed: write the value out",
    "peers: *a": "line 1: anchors and aliases are not allowed: write the value out",
    "<<: {peers: []}": "line 1: merge keys are not allowed: write the values out",
    "peers: !!set {}": "line 1: the tag 'tag:yaml.org,2002:set' is not allowed",
    "peers: !!python/object/apply:os.system [id]": (
        "line 1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed"
    ),
    "peers: " + 70 * "[": "line 1: it is nested more than 64 deep",
    "peers: []\n---\npeers: []": "there is more than one YAML document",
    "foo:<>$@$2r24j90": "the text is not an object but 'foo:<>$@$2r24j90'",
    "[]": "the text is not an object but a list",
}


@pytest.mark.parametrize("text", INVALID_TEXTS)
def test_an_invalid_text_is_refused_with_a_sentence(text: str) -> None:
    found = legacy(text)
    assert found.configuration is None
    message = told(found)
    assert message.startswith("config: ")
    assert message.removeprefix("config: ") == INVALID_TEXTS[text]


@pytest.mark.parametrize(
    "text", ["", "\n", "# nothing\n", "---\n", "{}", "null", "peers:\naddress-pools:\n", "peers: []"]
)
def test_an_empty_text_is_a_valid_configuration_without_pools(text: str) -> None:
    assert legacy(text).configuration == MetalLBConfig()


@pytest.mark.parametrize("data", [{}, None, {"config.yaml": FULL}, {"config": None}, {"config": 5}, {"config": {}}])
def test_a_config_map_without_the_text_is_invalid_not_empty(data: object) -> None:
    found = parse_config_map({"metadata": {"name": "config"}, "data": data}, None)
    assert found is not None
    assert told(found) == "config: there is no text under this key"


def test_a_config_map_whose_data_are_no_object_is_refused() -> None:
    found = parse_config_map({"metadata": {"name": "config"}, "data": [5]}, None)
    assert found is not None
    assert told(found) == "config: data is not an object but a list"


def test_a_community_stays_the_text_it_is() -> None:
    assert documents("a: 64512:1\nb: 1:20\nc: [0123]") == [{"a": "64512:1", "b": "1:20", "c": ["0123"]}]
    assert parse_configuration("bgp-communities: {a: 64512:1, b: 1:20}", "here") == MetalLBConfig()


def test_a_pool_whose_name_is_a_number_is_called_by_it() -> None:
    text = "address-pools:\n- {name: 123, protocol: bgp, addresses: [192.0.2.0/24]}"
    assert [each.name for each in parse_configuration(text, "here").pools] == ["123"]


def test_a_text_that_is_larger_than_any_that_a_cluster_keeps_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    comment = "#" * MAX_CHARACTERS
    assert legacy(comment).configuration == MetalLBConfig()
    read = count_yaml_events(monkeypatch)
    assert told(legacy(comment + "#")) == "config: the text is larger than 1 MiB"
    assert told(legacy("[" * (MAX_CHARACTERS + 1))) == "config: the text is larger than 1 MiB"
    assert not read


def bomb() -> str:
    """Each level merges the one before nine times: PyYAML would go through 9**20 pairs."""
    merges = "".join(
        f"{_anchor(n)}: &{_anchor(n)} {{<<: [{','.join(9 * [f'*{_anchor(n - 1)}'])}]}}\n" for n in range(1, 21)
    )
    return f"a: &a {{k: v}}\n{merges}"


def _anchor(number: int) -> str:
    return chr(ord("a") + number)


def test_a_merge_key_bomb_of_less_than_a_kilobyte_is_refused_at_once_and_costs_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, read = bomb(), count_yaml_events(monkeypatch)
    assert len(text.encode()) < 1000
    assert told(legacy(text)) == "config: line 1: anchors and aliases are not allowed: write the value out"
    assert read["events"] < 10, "up to the first anchor"
    tracemalloc.start()
    try:
        legacy(text)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["peers: [{<<: {peer-address: 192.0.2.1}}]", "peers: [{'a': 1, <<: [{}, {}]}]"])
def test_a_merge_key_is_refused_where_nothing_has_an_anchor_too(text: str) -> None:
    assert told(legacy(text)) == "config: line 1: merge keys are not allowed: write the values out"


# --- hostile input -------------------------------------------------------------------------------------

FIELDS = (
    "addresses", "serviceAllocation", "namespaces", "namespaceSelectors", "serviceSelectors", "peers", "nodeSelectors",
    "ipAddressPools", "ipAddressPoolSelectors", "matchLabels", "matchExpressions", "key", "operator", "values",
    "peerAddress",
)  # fmt: skip
specs = st.recursive(
    json_values | st.sampled_from(["192.0.2.0/24", "192.0.2.9-192.0.2.12", "In", "Exists", "blue"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=10,
)
named = st.builds(
    lambda name, labels, uid: {"name": name, "labels": labels, "uid": uid},
    st.sampled_from(["a", "b", "config"]),
    json_values | st.dictionaries(st.text(max_size=3), st.text(max_size=3)),
    json_values,
)
objects = json_values | st.builds(
    lambda metadata, spec, data: {"metadata": metadata, "spec": spec, "data": data},
    named | json_values,
    specs | st.dictionaries(st.sampled_from(FIELDS), specs, max_size=5),
    json_values,
)


@settings(max_examples=300)
@given(
    st.lists(objects, max_size=3),
    st.lists(objects, max_size=2),
    st.lists(objects, max_size=2),
    st.lists(objects, max_size=1),
)
def test_whatever_the_objects_hold_nothing_but_malformed_is_raised_and_every_message_is_one_line(
    pools: list[Any], advertisements: list[Any], peers: list[Any], config_maps: list[Any]
) -> None:
    def parsed(parse: Any, found: list[Any]) -> list[Any]:
        taken, messages = [], []
        for each in found:
            try:
                taken.append(parse(each, None))
            except Malformed as refused:
                messages.append(str(refused))
        assert all(message.isprintable() for message in messages)
        return [each for each in taken if each is not None]

    found, rejections = configuration(
        parsed(parse_pool, pools),
        parsed(parse_advertisement, advertisements),
        parsed(parse_peer, peers),
        parsed(parse_config_map, config_maps),
    )
    assert not (found and rejections), "good as a whole or not at all"
    assert all(str(each).isprintable() and len(str(each)) < 1000 for each in rejections)


KEYS = (
    "peers", "address-pools", "bgp-communities", "bfd-profiles", "name", "protocol", "addresses", "bgp-advertisements",
    "peer-address", "my-asn", "node-selectors", "match-labels", "match-expressions", "values", "communities",
    "ebgp-multihop",
)  # fmt: skip
configs = st.recursive(
    json_values | st.sampled_from(["192.0.2.0/24", "192.0.2.9", "bgp", "layer2", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given((configs | st.dictionaries(st.sampled_from(KEYS[:4]), configs)).map(json.dumps) | st.text())
def test_whatever_the_text_is_it_is_a_configuration_or_one_printable_sentence(text: str) -> None:
    found = legacy(text)
    if found.configuration is None:
        assert len(told(found)) < 1000
    else:
        assert found.rejections == ()
