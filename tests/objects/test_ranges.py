"""Ranges of addresses are read as MetalLB reads them, counted as sets are, and written as nft lists them."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftsync.objects.address import Address, AddressSet, Network, Range, parse_range
from nftsync.ruleset.model import NAME
from tests.support import Netns

LAST4, LAST6 = "255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"


def between(first: str, last: str) -> Range:
    return Range(ip_address(first), ip_address(last))


# --- what is read --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("192.0.2.0/24", "192.0.2.0", "192.0.2.255"),
        ("192.0.2.77/24", "192.0.2.0", "192.0.2.255"),
        ("192.0.2.7/32", "192.0.2.7", "192.0.2.7"),
        ("192.0.2.7/31", "192.0.2.6", "192.0.2.7"),
        ("10.11.12.13/0", "0.0.0.0", LAST4),
        ("2001:DB8::5/64", "2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"),
        ("2001:db8:0:0::1/128", "2001:db8::1", "2001:db8::1"),
        ("::/0", "::", LAST6),
        ("64:ff9b::192.0.2.1/128", "64:ff9b::c000:201", "64:ff9b::c000:201"),
    ],
)
def test_a_cidr_is_all_addresses_of_its_prefix_and_host_bits_do_not_count(text: str, first: str, last: str) -> None:
    assert parse_range(text) == between(first, last)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("192.0.2.9-192.0.2.12", "192.0.2.9", "192.0.2.12"),
        ("192.0.2.9 - 192.0.2.12", "192.0.2.9", "192.0.2.12"),
        (" \t192.0.2.9  -\t192.0.2.12 \n", "192.0.2.9", "192.0.2.12"),
        ("192.0.2.9-192.0.2.9", "192.0.2.9", "192.0.2.9"),
        ("192.0.1.255-192.0.2.0", "192.0.1.255", "192.0.2.0"),
        (f"0.0.0.0-{LAST4}", "0.0.0.0", LAST4),
        ("2001:db8::9 -2001:DB8::a", "2001:db8::9", "2001:db8::a"),
        (f"::-{LAST6}", "::", LAST6),
    ],
)
def test_a_range_holds_both_its_ends_and_blanks_around_them_do_not_count(text: str, first: str, last: str) -> None:
    assert parse_range(text) == between(first, last)


def test_addresses_that_end_in_0_or_255_are_addresses_like_others() -> None:
    assert parse_range("192.0.2.0/32") == between("192.0.2.0", "192.0.2.0")
    assert parse_range("192.0.2.0-192.0.2.255") == parse_range("192.0.2.0/24")


NEITHER = "is neither a CIDR nor a range of addresses"

REFUSED = {
    "192.0.2.1": f"'192.0.2.1' {NEITHER}: for one address write 192.0.2.1/32",
    "2001:db8::1": f"'2001:db8::1' {NEITHER}: for one address write 2001:db8::1/128",
    "": f"'' {NEITHER}",
    " 192.0.2.0/24": f"' 192.0.2.0/24' {NEITHER}",
    "192.0.2.0/24 ": f"'192.0.2.0/24 ' {NEITHER}",
    "192.0.2.0/24\n": f"'192.0.2.0/24\\n' {NEITHER}",
    "192.0.2.0 /24": f"'192.0.2.0 /24' {NEITHER}",
    "192.0.2.0/ 24": f"'192.0.2.0/ 24' {NEITHER}",
    "192.0.2.0/255.255.255.0": f"'192.0.2.0/255.255.255.0' {NEITHER}",
    "192.0.2.0/0.0.0.255": f"'192.0.2.0/0.0.0.255' {NEITHER}",
    "192.0.2.0/33": f"'192.0.2.0/33' {NEITHER}",
    "2001:db8::/129": f"'2001:db8::/129' {NEITHER}",
    "192.0.2.0/": f"'192.0.2.0/' {NEITHER}",
    "/24": f"'/24' {NEITHER}",
    "192.0.2/24": f"'192.0.2/24' {NEITHER}",
    "192.0.2.010/32": f"'192.0.2.010/32' {NEITHER}",
    "192.0.2.0/+24": f"'192.0.2.0/+24' {NEITHER}",
    "192.0.2.0/2_4": f"'192.0.2.0/2_4' {NEITHER}",
    "192.0.2.0/24/24": f"'192.0.2.0/24/24' {NEITHER}",
    "192.0.2.0/\u0662\u0664": f"'192.0.2.0/\\u0662\\u0664' {NEITHER}",
    "\u0661\u0669\u0662.0.2.0/24": f"'\\u0661\\u0669\\u0662.0.2.0/24' {NEITHER}",
    "fe80::%eth0/64": f"'fe80::%eth0/64' {NEITHER}",
    "192.0.2.9-192.0.2.8": "the range '192.0.2.9-192.0.2.8' begins after its end",
    "2001:db8::a-2001:db8::9": "the range '2001:db8::a-2001:db8::9' begins after its end",
    "192.0.2.9-2001:db8::9": "the range '192.0.2.9-2001:db8::9' begins in one address family and ends in another",
    "::-192.0.2.9": "the range '::-192.0.2.9' begins in one address family and ends in another",
    "192.0.2.9-12": "'12' in the range '192.0.2.9-12' is not an IP address",
    "192.0.2.9-": "'' in the range '192.0.2.9-' is not an IP address",
    "-": "'' in the range '-' is not an IP address",
    "10.0.0.1-10.0.0.2-10.0.0.3": "'10.0.0.2-10.0.0.3' in the range '10.0.0.1-10.0.0.2-10.0.0.3' is not an IP address",
    "192.0.2.0/24-192.0.3.0/24": "'192.0.2.0/24' in the range '192.0.2.0/24-192.0.3.0/24' is not an IP address",
    "192.0.2.9-192.0.2.1_2": "'192.0.2.1_2' in the range '192.0.2.9-192.0.2.1_2' is not an IP address",
    "192.0.2.9-192.0.2.012": "'192.0.2.012' in the range '192.0.2.9-192.0.2.012' is not an IP address",
    "192.0.2.9-192.0.2.\u0661": "'192.0.2.\\u0661' in the range '192.0.2.9-192.0.2.\\u0661' is not an IP address",
    "192.0.2.9\u2013192.0.2.12": (f"'192.0.2.9\\u2013192.0.2.12' {NEITHER}"),
    "fe80::1%a-fe80::2%a": "'fe80::1%a' in the range 'fe80::1%a-fe80::2%a' is not an IP address",
    "fe80::1%\n-fe80::2": "'fe80::1%' in the range 'fe80::1%\\n-fe80::2' is not an IP address",
    "::-::ffff:192.0.2.9": "the range '::-::ffff:192.0.2.9' begins in one address family and ends in another",
    "::ffff:192.0.2.9-192.0.2.8": "the range '::ffff:192.0.2.9-192.0.2.8' begins after its end",
}


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("::ffff:192.0.2.0/120", "192.0.2.0", "192.0.2.255"),
        ("::ffff:192.0.2.77/120", "192.0.2.0", "192.0.2.255"),
        ("::FFFF:c000:0207/128", "192.0.2.7", "192.0.2.7"),
        ("::ffff:0:0/96", "0.0.0.0", LAST4),
        ("::ffff:192.0.2.1-::ffff:192.0.2.9", "192.0.2.1", "192.0.2.9"),
        ("192.0.2.1-::ffff:192.0.2.9", "192.0.2.1", "192.0.2.9"),
        ("::ffff:192.0.2.1 - 192.0.2.9", "192.0.2.1", "192.0.2.9"),
        ("::ffff:10.0.0.0/90", "::ffc0:0:0", "::ffff:ffff:ffff"),
    ],
)
def test_ipv4_mapped_addresses_are_ipv4_as_metallb_reads_them(text: str, first: str, last: str) -> None:
    assert parse_range(text) == between(first, last)


@pytest.mark.parametrize("text", REFUSED)
def test_whatever_else_a_text_is_it_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(REFUSED[text])}$"):
        parse_range(text)


@pytest.mark.parametrize(
    "value", [None, 5, True, 1.5, b"10.0.0.0/8", ["10.0.0.0/8"], {}, "1" * 129, "10.0.0.0/8" + " " * 10**6]
)
def test_what_is_no_short_text_is_refused_with_a_short_sentence(value: object) -> None:
    with pytest.raises(ValueError, match=f"{NEITHER}$") as refused:
        parse_range(value)
    assert len(str(refused.value)) < 200


pieces = st.sampled_from(
    [
        "192.0.2.0", "192.0.2.9", "0.0.0.0", LAST4, "2001:db8::", "::", LAST6, "::ffff:", "ffff", ":", ".", "/",
        "-", "8", "24",
        "32", "128", "0", "1", " ", "\t", "\n", "\r", "\x00", "\x85", "\u00a0", "\u2028", "\u0663", "_", "+", "%",
        "%eth0", "e",
        "x", "'", '"', "\\", "\ud800", "–", "\x1b[31m",
    ]
)  # fmt: skip


@settings(max_examples=1000)
@given(st.text() | st.lists(pieces, max_size=8).map("".join))
def test_any_text_is_a_range_or_one_printable_line_that_refuses_it(text: str) -> None:
    try:
        found = parse_range(text)
    except ValueError as refused:
        message = str(refused)
        assert message.isprintable()
        assert message.isascii() or "…" in message
        assert 0 < len(message) < 300
    else:
        assert type(found.first) is type(found.last)
        assert int(found.first) <= int(found.last)
        assert not (isinstance(found.first, IPv6Address) and found.first.scope_id)
        assert parse_range(str(found)) == found


# --- what is written -----------------------------------------------------------------------------------


BITS = {4: 32, 6: 128}
KIND: dict[int, type[IPv4Address | IPv6Address]] = {4: IPv4Address, 6: IPv6Address}
# Where windows of a few addresses begin: both ends of the address space, and somewhere in the middle.
STARTS = [(version, start) for version, bits in BITS.items() for start in (0, 1, 0xC0000200, 2**bits - 24)]
WIDTH = 24

versions = st.sampled_from([4, 6])


@st.composite
def small(draw: st.DrawFn) -> Range:
    """A few addresses near others' few addresses."""
    version, start = draw(st.sampled_from(STARTS))
    ends = sorted(draw(st.tuples(st.integers(0, WIDTH - 1), st.integers(0, WIDTH - 1))))
    return Range(*(KIND[version](start + end) for end in ends))


@st.composite
def large(draw: st.DrawFn) -> Range:
    """Any range; often a prefix, often one that reaches to an end of the address space."""
    version = draw(versions)
    whole = 2 ** BITS[version] - 1
    if draw(st.booleans()):
        return Range.of(
            ip_network((KIND[version](draw(st.integers(0, whole))), draw(st.integers(0, BITS[version]))), strict=False)
        )
    edge = st.sampled_from([0, 1, whole - 1, whole])
    ends = sorted(draw(st.tuples(edge | st.integers(0, whole), edge | st.integers(0, whole))))
    return Range(*(KIND[version](end) for end in ends))


def listed(element: str) -> Range:
    """What nft means by an element of an interval set."""
    if "-" in element:
        return between(*element.split("-"))
    return Range.of(ip_network(element))


@given(small() | large())
def test_an_element_means_the_range_it_was_written_for_in_nfts_shortest_way(each: Range) -> None:
    assert listed(each.element) == each
    prefix = [network for network in _prefixes(each) if Range.of(network) == each]
    shape = "-" if not prefix else "" if each.first == each.last else "/"
    assert {mark for mark in "-/" if mark in each.element} == set(shape), "an address, a prefix, or else first-last"


def _prefixes(each: Range) -> list[Network]:
    bits = BITS[each.version]
    return [ip_network((each.first, length), strict=False) for length in range(bits + 1)]


@settings(max_examples=60)
@given(st.lists(small() | large(), min_size=1, max_size=6).map(AddressSet.of))
def test_what_is_read_back_from_a_kernel_are_exactly_these_elements(shared_netns: Netns, wanted: AddressSet) -> None:
    held = {version: [each.element for each in wanted.ranges if each.version == version] for version in BITS}
    sets = (
        f"set s{version} {{ type ipv{version}_addr; flags interval; elements = {{ {', '.join(elements)} }} }}\n"
        for version, elements in held.items()
        if elements
    )
    shared_netns.nft(f"table inet {NAME}\ndelete table inet {NAME}\ntable inet {NAME} {{\n{''.join(sets)}}}\n")
    found = shared_netns.run(shared_netns.kernel.read).ruleset.elements["inet"]
    assert {name: sorted(elements) for name, elements in found.items()} == {
        f"s{version}": sorted(elements) for version, elements in held.items() if elements
    }


# --- sets ----------------------------------------------------------------------------------------------


def members(ranges: tuple[Range, ...]) -> set[Address]:
    """Every single address of small ranges."""
    return {KIND[each.version](number) for each in ranges for number in range(int(each.first), int(each.last) + 1)}


def is_normal(found: AddressSet) -> bool:
    """Sorted, IPv4 first, and no range could be written together with the next."""
    pairs = zip(found.ranges, found.ranges[1:], strict=False)
    return all(a.version < b.version or (a.version == b.version and int(a.last) + 1 < int(b.first)) for a, b in pairs)


few = st.lists(small(), max_size=6)
universe = [KIND[version](start + number) for version, start in STARTS for number in range(WIDTH)]


@given(few)
def test_a_set_of_ranges_holds_exactly_their_addresses(ranges: list[Range]) -> None:
    found, wanted = AddressSet.of(ranges), members(tuple(ranges))
    assert members(found.ranges) == wanted
    assert {address for address in universe if address in found} == wanted
    assert is_normal(found)


@given(few, few)
def test_union_intersection_and_difference_are_those_of_the_sets_of_addresses(
    one: list[Range], other: list[Range]
) -> None:
    mine, theirs = AddressSet.of(one), AddressSet.of(other)
    for found, wanted in (
        (mine | theirs, members(mine.ranges) | members(theirs.ranges)),
        (mine & theirs, members(mine.ranges) & members(theirs.ranges)),
        (mine - theirs, members(mine.ranges) - members(theirs.ranges)),
    ):
        assert members(found.ranges) == wanted
        assert is_normal(found)


@given(st.permutations(list(range(5))), st.lists(small() | large(), min_size=5, max_size=5))
def test_sets_of_the_same_addresses_are_equal_however_they_came_about(order: list[int], ranges: list[Range]) -> None:
    found = AddressSet.of(ranges)
    assert AddressSet.of(ranges[each] for each in order) == found
    assert AddressSet.of((*found.ranges, *ranges)) == found
    assert AddressSet.of(ranges[:2]) | AddressSet.of(ranges[2:]) == found
    assert found & found == found
    assert found - found == AddressSet()


@given(large(), large())
def test_what_is_cut_out_and_what_is_left_are_the_whole_for_ranges_of_any_size(one: Range, other: Range) -> None:
    mine, theirs = AddressSet((one,)), AddressSet((other,))
    assert (mine - theirs) | (mine & theirs) == mine
    assert (mine - theirs) & theirs == AddressSet()
    assert one.overlaps(other) == other.overlaps(one) == bool((mine & theirs).ranges)
    assert one.covers(other) == ((mine & theirs) == theirs)


@pytest.mark.parametrize("whole", ["0.0.0.0/0", "::/0"])
def test_the_ends_of_the_address_space_are_addresses_like_others(whole: str) -> None:
    everything = AddressSet((parse_range(whole),))
    first, last = everything.ranges[0]
    ends = AddressSet.of([Range(first, first), Range(last, last)])
    assert first in everything
    assert last in everything
    assert everything - everything == AddressSet()
    assert everything - ends == AddressSet((Range(first + 1, last - 1),))
    assert (everything - ends) | ends == everything
    assert everything & ends == ends
    assert first not in everything - ends
    assert last not in everything - ends


def test_families_never_mix_where_their_numbers_are_the_same() -> None:
    v4, v6 = parse_range("0.0.0.0/0"), parse_range(f"::-{IPv6Address(2**32 - 1)}")
    assert ip_address("::1") not in AddressSet((v4,))
    assert ip_address("0.0.0.1") not in AddressSet((v6,))
    assert AddressSet((v4,)) & AddressSet((v6,)) == AddressSet()
    assert AddressSet((v4,)) - AddressSet((v6,)) == AddressSet((v4,))
    assert AddressSet.of([v6, v4]).ranges == (v4, v6)
    assert parse_range(f"{LAST4}/32") in AddressSet.of([parse_range(f"{LAST4}/32"), parse_range("::/128")]).ranges


@pytest.mark.parametrize("stranger", [None, "192.0.2.1", 3221225985, parse_range("192.0.2.1/32")])
def test_what_is_no_address_is_in_no_set(stranger: object) -> None:
    assert stranger not in AddressSet.of([parse_range("0.0.0.0/0"), parse_range("::/0")])
