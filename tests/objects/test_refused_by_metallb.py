"""What MetalLB's parsers refuse is refused here: labels in selectors, aggregation lengths, AddressPools."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from nftsync.objects.metallb import (
    AddressPool,
    MetalLBConfig,
    configuration,
    parse_advertisement,
    parse_former_pool,
    parse_pool,
    parse_state,
)
from nftsync.objects.metallb_v0 import parse_config_map, parse_configuration
from nftsync.objects.names import Malformed, Reason


def raw(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "metallb-system", "name": name, "uid": f"uid-{name}"}, "spec": spec}


def pool(name: str, *addresses: str, **spec: Any) -> AddressPool:
    return parse_pool(raw(name, addresses=list(addresses), **spec), None)


def former(name: str, *addresses: str, protocol: object = "bgp", **spec: Any) -> AddressPool:
    return parse_former_pool(raw(name, addresses=list(addresses), protocol=protocol, **spec), None)


def judged(pools: Iterable[AddressPool], *advertisements: dict[str, Any]) -> MetalLBConfig | str:
    """The configuration, or what is wrong with it."""
    parsed = [parse_advertisement(raw(f"adv{number}", **spec), None) for number, spec in enumerate(advertisements)]
    found, rejections = configuration(pools, parsed, [], [])
    assert {rejection.reason for rejection in rejections} <= {Reason.INVALID_POOLS}
    return found or "; ".join(f"{rejection.object}: {rejection.message}" for rejection in rejections)


# --- labels --------------------------------------------------------------------------------------------

GOOD_KEYS = ["a", "A_b.c-d", "1", "x" * 63, "example.com/app", "a-b.c/D", f"{'y.' * 126}y/a"]
BAD_KEYS = [
    "-a", "a-", "_", "x" * 64, "a b", "ü", "a\n", "/a", "a/", "a/b/c", "A/b", "a..b/c", "-a/b", f"{'y.' * 127}y/a",
]  # fmt: skip
GOOD_VALUES = ["", "b", "B_c.d-e", "1", "x" * 63]
BAD_VALUES = ["-b", "b-", "_", "x" * 64, "a b", "a/b", "ü", "b\n"]

SELECTORS: list[dict[str, Any]] = [{"matchLabels": {key: "b"}} for key in BAD_KEYS]
SELECTORS += [{"matchLabels": {"a": value}} for value in BAD_VALUES]
SELECTORS += [{"matchExpressions": [{"key": key, "operator": "Exists"}]} for key in BAD_KEYS]
SELECTORS += [{"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b", value]}]} for value in BAD_VALUES]


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_a_selector_with_an_invalid_label_refuses_the_object_that_holds_it(selector: dict[str, Any]) -> None:
    for field in ("namespaceSelectors", "serviceSelectors"):
        (rejection,) = pool("a", "192.0.2.0/24", serviceAllocation={field: [selector]}).rejections
        assert rejection.message.startswith(f"spec.serviceAllocation.{field}: ")
        assert rejection.message.endswith((" is not a label's key", " is not a label's value"))
    for field in ("ipAddressPoolSelectors", "nodeSelectors"):
        refused = judged([pool("a", "192.0.2.0/24")], {field: [{}, selector]})
        assert isinstance(refused, str)
        assert refused.startswith(f"BGPAdvertisement metallb-system/adv0: spec.{field}: ")


def test_every_label_that_the_api_takes_is_good() -> None:
    for key in GOOD_KEYS:
        for value in GOOD_VALUES:
            selectors = [
                {"matchLabels": {key: value}, "matchExpressions": [{"key": key, "operator": "In", "values": [value]}]}
            ]
            found = pool("a", "192.0.2.0/24", serviceAllocation={"serviceSelectors": selectors})
            assert isinstance(judged([found], {"ipAddressPoolSelectors": selectors}), MetalLBConfig)


# --- aggregation lengths -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addresses", "spec", "message"),
    [
        (["192.0.2.0/24"], {"aggregationLength": 33}, "aggregationLength 33 is not a number up to 32"),
        (["192.0.2.0/24"], {"aggregationLengthV6": 129}, "aggregationLengthV6 129 is not a number up to 128"),
        (["192.0.2.0/24"], {"aggregationLength": "24"}, "aggregationLength '24' is not a number up to 32"),
        (["192.0.2.0/24"], {"aggregationLength": True}, "aggregationLength True is not a number up to 32"),
        (["192.0.2.0/24"], {"aggregationLength": 23}, "23 is shorter than the prefix length 24 of a range"),
        (["10.0.0.0/8", "192.0.2.0/24"], {"aggregationLength": 16}, "16 is shorter than the prefix length 24"),
        (["192.0.2.1-192.0.2.6"], {"aggregationLength": 30}, "30 is shorter than the prefix length 31"),
        (["2001:db8::/64"], {"aggregationLengthV6": 63}, "63 is shorter than the prefix length 64"),
        (["192.0.2.0/24"], {"aggregationLength": -1}, "-1 is shorter than the prefix length 24"),
        (["::ffff:192.0.2.0/120"], {}, "32 is shorter than the prefix length 120"),
    ],
)
def test_an_aggregation_length_out_of_range_refuses_the_advertisement(
    addresses: list[str], spec: dict[str, Any], message: str
) -> None:
    refused = judged([pool("a", *addresses)], spec)
    assert isinstance(refused, str)
    assert refused.startswith("BGPAdvertisement metallb-system/adv0: ")
    assert message in refused


@pytest.mark.parametrize(
    ("addresses", "spec"),
    [
        (["192.0.2.0/24"], {"aggregationLength": 24}),
        (["192.0.2.0/24"], {"aggregationLength": None, "aggregationLengthV6": 0}),
        (["192.0.2.1-192.0.2.6"], {"aggregationLength": 31}),
        (["2001:db8::/64"], {"aggregationLength": 1, "aggregationLengthV6": 64}),
        (["192.0.2.0/24"], {"aggregationLength": 8, "ipAddressPools": ["another"]}),
        (["192.0.2.1-::ffff:192.0.2.1"], {}),
    ],
)
def test_an_aggregation_length_that_fits_the_advertised_ranges_is_good(
    addresses: list[str], spec: dict[str, Any]
) -> None:
    assert isinstance(judged([pool("a", *addresses)], spec), MetalLBConfig)


@pytest.mark.parametrize("length", ["33", "0x21", "23", "0b10111", "027", "0x", "9" * 5000])
def test_an_aggregation_length_of_the_config_map_is_judged_too(length: str) -> None:
    text = "address-pools: [{{name: a, protocol: bgp, addresses: [192.0.2.0/24], bgp-advertisements: [{}]}}]"
    with pytest.raises(Malformed):
        parse_configuration(text.format(f"{{aggregation-length: {length}}}"), "here")
    for good in ("{aggregation-length: 24}", "{aggregation-length: 0o30}", "{aggregation-length-v6: 1}", "{}"):
        assert parse_configuration(text.format(good), "here").pools[0].advertised


# --- AddressPool ---------------------------------------------------------------------------------------


def test_address_pools_count_alone_and_beside_ip_address_pools() -> None:
    old, flat, new = former("old", "192.0.2.0/24"), former("flat", "198.51.100.0/24", protocol="layer2"), None
    new = pool("new", "203.0.113.0/24")
    for pools, advertised in (
        ([old], {"old": True}),
        ([old, flat], {"flat": False, "old": True}),
        ([old, flat, new], {"new": False, "flat": False, "old": True}),
    ):
        found = judged(pools)
        assert isinstance(found, MetalLBConfig)
        assert {each.name: each.advertised for each in found.pools} == advertised
        assert found.of_pool_objects
    found = judged([old, flat, new], {})
    assert isinstance(found, MetalLBConfig)
    assert {each.name: each.advertised for each in found.pools} == {"new": True, "flat": False, "old": True}
    assert [each.source for each in found.pools] == [
        "IPAddressPool metallb-system/new", "AddressPool metallb-system/flat", "AddressPool metallb-system/old",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"protocol": "BGP"}, "the protocol 'BGP' of the pool is neither bgp nor layer2"),
        ({"protocol": None}, "the protocol None of the pool is neither bgp nor layer2"),
        ({"protocol": []}, "the protocol a list of the pool is neither bgp nor layer2"),
        ({"addresses": []}, "spec.addresses is empty"),
        ({"addresses": ["x"]}, "'x' is neither a CIDR nor a range of addresses"),
        ({"protocol": "layer2", "bgpAdvertisements": [{}]}, "the pool is layer2, so it can't have BGP advertisements"),
        ({"bgpAdvertisements": [{"aggregationLength": 33}]}, "aggregationLength 33 is not a number up to 32"),
        ({"bgpAdvertisements": [{}, {"aggregationLength": 8}]}, "8 is shorter than the prefix length 24"),
        ({"bgpAdvertisements": ["x"]}, "an entry of spec.bgpAdvertisements is not an object but 'x'"),
    ],
)
def test_an_address_pool_that_metallb_refuses_makes_the_whole_invalid(spec: dict[str, Any], message: str) -> None:
    bad = parse_former_pool(raw("old", **{"protocol": "bgp", "addresses": ["192.0.2.0/24"], **spec}), None)
    refused = judged([pool("new", "203.0.113.0/24"), bad])
    assert isinstance(refused, str)
    assert refused.startswith("AddressPool metallb-system/old: ")
    assert message in refused


def test_pools_of_both_kinds_share_neither_a_name_nor_an_address() -> None:
    delete = "; delete this AddressPool if your MetalLB is 0.14 or newer"
    assert judged([former("a", "192.0.2.0/24"), pool("a", "203.0.113.0/24")]) == (
        f"AddressPool metallb-system/a: IPAddressPool metallb-system/a has the same name{delete}"
    )
    assert judged([former("a", "192.0.2.9/32"), pool("b", "192.0.2.0/24")]) == (
        f"AddressPool metallb-system/a: 192.0.2.9-192.0.2.9 overlaps 192.0.2.0-192.0.2.255 of the pool 'b'{delete}"
    )
    both = judged([former("a", "192.0.2.9/32"), former("b", "192.0.2.0/24")])
    assert isinstance(both, str)
    assert delete not in both


# --- the ConfigMap's marks, and what MetalLB says itself -----------------------------------------------


@pytest.mark.parametrize(
    ("name", "labels", "data", "marked", "similar"),
    [
        ("config", None, {}, True, False),
        ("metallb", {"app.kubernetes.io/name": "metallb"}, {"config": "address-pools: []"}, True, True),
        ("metallb", {"app.kubernetes.io/name": "metallb"}, {"config": "x: ["}, True, False),
        ("metallb-frr", {"app.kubernetes.io/name": "metallb"}, {"frr.conf": ""}, False, False),
        ("mine", None, {"config": "peers: []\naddress-pools:\n- x"}, False, True),
        ("mine", None, {"config": "\ufeffaddress-pools: []"}, False, True),
        ("mine", None, {"config": '{"peers": [],"address-pools": []}'}, False, True),
        ("mine", None, {"config": "a: {x: my-address-pools: []}"}, False, False),
        ("mine", {"app.kubernetes.io/name": "other"}, {"config": "a: 1\n"}, False, False),
        ("mine", "x", {"config": "address-pools: []"}, False, False),
    ],
)
def test_a_config_map_looks_like_metallbs_by_name_label_or_text(
    name: str,
    labels: object,
    data: object,
    marked: bool,  # noqa: FBT001
    similar: bool,  # noqa: FBT001
) -> None:
    found = parse_config_map({"metadata": {"name": name, "labels": labels}, "data": data}, None)
    assert (found.is_marked, found.is_similar) == (marked, similar)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (None, ""),
        ({}, ""),
        ({"result": "Valid", "conditions": []}, ""),
        ({"conditions": [{"status": "False", "reason": "ConfigurationError", "message": "bad pool"}]}, "bad pool"),
        ({"conditions": [{"status": "True", "reason": "ConfigurationError", "message": "x"}]}, ""),
        ({"conditions": [{"status": "False", "reason": "SyncError", "message": "x"}]}, ""),
        ({"result": "Invalid", "errorSummary": "a\nb"}, "a\nb"),
        ({"conditions": "x"}, ""),
        ([], ""),
        ({"result": "Invalid", "errorSummary": "x" * 5000}, "x" * 1000),
    ],
)
def test_of_a_configuration_state_the_errors_of_the_configuration_are_taken(status: object, error: str) -> None:
    assert parse_state({"metadata": {"name": "controller"}, "status": status}, None).error == error
