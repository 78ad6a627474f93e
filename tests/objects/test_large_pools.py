"""The work for an object of MetalLB grows with its size, and not faster: everybody's packets wait for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftsync.objects.address import Range
from nftsync.objects.aggregation import parse_addresses
from nftsync.objects.metallb import configuration, parse_advertisement, parse_pool
from nftsync.objects.names import Name


def raw(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "metallb-system", "name": "a"}, "spec": spec}


def calls(work: Callable[[], object]) -> int:
    """The number of calls, also of functions in C."""
    count = 0

    def profile(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def test_a_range_of_hundreds_of_prefixes_costs_no_more_than_one_of_a_few() -> None:
    few, many = "2001:db8::-2001:db8::ffff", "2001:db8::1-2001:db8:ffff:ffff:ffff:ffff:ffff:fffe"
    cost = calls(lambda: parse_addresses([few], "addresses"))
    assert calls(lambda: parse_addresses([many], "addresses")) < 2 * cost


@given(st.sampled_from((32, 128)).flatmap(lambda bits: st.tuples(*[st.integers(0, 2**bits - 1)] * 2, st.just(bits))))
def test_the_shortest_prefix_of_a_range_is_that_of_the_standard_library(ends: tuple[int, int, int]) -> None:
    first, second, bits = ends
    kind = IPv4Address if bits == 32 else IPv6Address
    part = Range(kind(min(first, second)), kind(max(first, second)))
    shortest = min(network.prefixlen for network in summarize_address_range(*part))
    read, prefixes = parse_addresses([str(part)], "addresses")
    if read[0].version == part.version:  # and not IPv4-mapped
        assert prefixes == {(part.version, shortest)}


@pytest.mark.parametrize("field", ["ipAddressPoolSelectors", "nodeSelectors"])
def test_ten_times_the_selectors_cost_ten_times_the_work(field: str) -> None:
    def parse(number: int) -> None:
        selectors = [{"matchLabels": {"a": str(each)}} for each in range(number)]
        assert parse_advertisement(raw(**{field: selectors}), None).rejections == ()

    assert calls(lambda: parse(500)) < 15 * calls(lambda: parse(50))


def test_of_a_pool_with_many_overlaps_the_first_one_is_told() -> None:
    pools = [parse_pool(raw(addresses=["192.0.2.0/24"] * 1000), None)]
    found, [rejection] = configuration(pools, [], [], [])
    assert found is None
    assert rejection.object.name == str(Name("metallb-system", "a"))
    assert rejection.message == "192.0.2.0-192.0.2.255 overlaps 192.0.2.0-192.0.2.255 of the pool 'a'"
