"""Which addresses may be opened, and which message the others get.

Also: which pools hold while MetalLB's are invalid or gone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftsync.cluster.cache import Inputs, MetalLBCaches
from nftsync.config import AddressPolicy, Config, PoolMode
from nftsync.daemon.observe import Observer
from nftsync.objects.address import Address, AddressSet, Network, parse_range
from nftsync.objects.metallb import MetalLBConfig, Pool
from nftsync.objects.metallb_v0 import parse_configuration
from nftsync.objects.names import OF_POOLS, Reason
from nftsync.objects.nft import NftSpec, Nics
from nftsync.plan.memory import Facts
from nftsync.plan.snapshot import Interfaces, Known, Origin, Snapshot
from nftsync.policy.guard import GRACE_PERIOD, MAX_GRACE_PERIOD, UNGUARDED, Guard
from nftsync.report.events import of_rejections


def pool(name: str, *texts: str, advertised: bool = True) -> Pool:
    return Pool(name, f"IPAddressPool metallb-system/{name}", tuple(map(parse_range, texts)), advertised)


def addresses(*texts: str) -> frozenset[Address]:
    return frozenset(map(ip_address, texts))


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, texts))


def ranges(found: AddressSet | None) -> list[str] | None:
    return None if found is None else [each.element for each in found.ranges]


INSIDE, INSIDE6, OUTSIDE, OUTSIDE6 = "192.0.2.7", "2001:db8::7", "203.0.113.9", "2001:db8:ffff::9"
EVERY = (INSIDE, INSIDE6, OUTSIDE, OUTSIDE6)
PEER, PEER6 = "192.0.2.250", "2001:db8::250"
KNOWN = MetalLBConfig(
    (
        pool("public", "192.0.2.0/24"),
        pool("public6", "2001:db8::/64"),
        pool("flat", "198.51.100.0/24", advertised=False),
    ),
    addresses(PEER, PEER6),
)


def admitted(guard: Guard, *texts: str) -> list[str]:
    found = [text for text in texts if guard.admits(ip_address(text))]
    assert found == [text for text in texts if guard.refusal(ip_address(text)) is None]
    return found


# --- when pools hold -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool_mode", "known", "guarded", "opened"),
    [
        (PoolMode.AUTO, None, False, EVERY),
        (PoolMode.AUTO, KNOWN, True, (INSIDE, INSIDE6)),
        (PoolMode.AUTO, MetalLBConfig(), True, ()),
        (PoolMode.REQUIRED, None, True, ()),
        (PoolMode.REQUIRED, KNOWN, True, (INSIDE, INSIDE6)),
        (PoolMode.REQUIRED, MetalLBConfig(), True, ()),
        (PoolMode.IGNORED, None, False, EVERY),
        (PoolMode.IGNORED, KNOWN, False, EVERY),
        (PoolMode.IGNORED, MetalLBConfig(), False, EVERY),
    ],
)
def test_pools_hold_once_they_are_known_and_nothing_is_open_before_if_they_are_required(
    pool_mode: PoolMode,
    known: MetalLBConfig | None,
    guarded: bool,  # noqa: FBT001
    opened: tuple[str, ...],
) -> None:
    guard = Guard.of(AddressPolicy(pool_mode), known)
    assert guard.guarded == guarded
    assert tuple(admitted(guard, *EVERY)) == opened


def test_nothing_is_refused_by_who_knows_nothing() -> None:
    assert Guard.of(AddressPolicy(), None) == UNGUARDED
    assert admitted(UNGUARDED, *EVERY, "255.255.255.255", "::") == [*EVERY, "255.255.255.255", "::"]


@pytest.mark.parametrize("pool_mode", PoolMode)
def test_pools_that_are_ignored_are_as_good_as_unknown(pool_mode: PoolMode) -> None:
    ignored = Guard.of(AddressPolicy(PoolMode.IGNORED), KNOWN)
    assert (ignored.pools, ignored.legal, ignored.reserved, ranges(ignored.cluster)) == (None, None, frozenset(), [])
    assert (Guard.of(AddressPolicy(pool_mode), KNOWN) == ignored) == (pool_mode is PoolMode.IGNORED)


def test_if_only_advertised_pools_count_the_others_are_not_there() -> None:
    flat = "198.51.100.1"
    assert admitted(Guard.of(AddressPolicy(), KNOWN), INSIDE, flat) == [INSIDE, flat]
    guard = Guard.of(AddressPolicy(advertised_only=True), KNOWN)
    assert admitted(guard, INSIDE, flat) == [INSIDE]
    assert guard.pools is not None
    assert [each.name for each in guard.pools] == ["public", "public6"]
    assert guard.refusal(ip_address(flat)) == (
        Reason.OUTSIDE_POOLS,
        "198.51.100.1 is outside of MetalLB's usable pools (public: 192.0.2.0/24; public6: 2001:db8::/64); it "
        "stays closed",
    )


@pytest.mark.parametrize(
    ("address_policy", "known", "legal"),
    [
        (AddressPolicy(allowed=networks("192.0.2.0/25")), None, ["192.0.2.0/25"]),
        (
            AddressPolicy(PoolMode.IGNORED, allowed=networks("10.0.0.0/8", "2001:db8::/32")),
            KNOWN,
            ["10.0.0.0/8", "2001:db8::/32"],
        ),
        (AddressPolicy(allowed=networks("192.0.2.0/25")), KNOWN, ["192.0.2.0/25"]),
        (AddressPolicy(allowed=networks("192.0.0.0/8")), KNOWN, ["192.0.2.0/24"]),
        (
            AddressPolicy(allowed=networks("192.0.2.128/25", "198.51.100.8/29", "2001:db8::/127")),
            KNOWN,
            ["192.0.2.128/25", "198.51.100.8/29", "2001:db8::/127"],
        ),
        (AddressPolicy(allowed=networks("198.51.100.0/24"), advertised_only=True), KNOWN, []),
        (AddressPolicy(allowed=networks("10.0.0.0/8")), KNOWN, []),
        (AddressPolicy(PoolMode.REQUIRED, allowed=networks("0.0.0.0/0")), None, []),
        (AddressPolicy(), None, None),
    ],
)
def test_allowed_prefixes_cut_what_pools_say_and_hold_alone_where_no_pool_does(
    address_policy: AddressPolicy, known: MetalLBConfig | None, legal: list[str] | None
) -> None:
    assert ranges(Guard.of(address_policy, known).legal) == legal


# --- what is never opened ------------------------------------------------------------------------------


@pytest.mark.parametrize("pool_mode", PoolMode)
def test_the_routers_own_addresses_and_its_peers_are_refused_as_reserved_wherever_they_would_be_legal(
    pool_mode: PoolMode,
) -> None:
    named, own = addresses("192.0.2.251"), addresses("192.0.2.1", "2001:db8::1")
    guard = Guard.of(AddressPolicy(pool_mode, reserved=named), KNOWN, own)
    never = {*named, *own, *(KNOWN.peers if pool_mode is not PoolMode.IGNORED else ())}
    for address in never:
        assert not guard.admits(address)
        assert guard.refusal(address) == (
            Reason.RESERVED_ADDRESS, f"{address} is an address of the router or of a BGP peer; it stays closed",
        )  # fmt: skip
    assert guard.reserved == never


def test_peers_that_nobody_read_are_not_known() -> None:
    assert admitted(Guard.of(AddressPolicy(PoolMode.IGNORED), KNOWN), PEER) == [PEER]
    assert admitted(Guard.of(AddressPolicy(), None), PEER) == [PEER]


def test_an_own_address_that_is_not_legal_anyway_is_refused_as_outside_and_changes_no_guard() -> None:
    """What is added to the router far from the pools wakes nobody."""
    guard = Guard.of(AddressPolicy(), KNOWN, addresses("10.0.0.1"))
    assert guard == Guard.of(AddressPolicy(), KNOWN)
    refusal = guard.refusal(ip_address("10.0.0.1"))
    assert refusal is not None
    assert refusal[0] is Reason.OUTSIDE_POOLS


some_addresses = st.frozensets(st.sampled_from([*map(ip_address, EVERY), ip_address(PEER), ip_address("198.51.100.1")]))
boundaries = st.builds(
    AddressPolicy,
    st.sampled_from(PoolMode),
    st.booleans(),
    st.sampled_from([(), networks("192.0.2.0/25"), networks("0.0.0.0/0", "2001:db8::/65")]),
    some_addresses,
)


@given(boundaries, st.sampled_from([None, KNOWN, MetalLBConfig()]), some_addresses)
def test_what_is_reserved_is_admitted_by_no_guard_and_what_is_refused_is_explained(
    address_policy: AddressPolicy, known: MetalLBConfig | None, own: frozenset[Address]
) -> None:
    guard = Guard.of(address_policy, known, own)
    for address in map(ip_address, (*EVERY, PEER, PEER6, "198.51.100.1")):
        refusal = guard.refusal(address)
        assert (refusal is None) == guard.admits(address)
        if address in address_policy.reserved | own:
            assert refusal is not None
        if refusal is not None:
            legal = guard.legal is None or address in guard.legal
            assert refusal[0] is (Reason.RESERVED_ADDRESS if legal else Reason.OUTSIDE_POOLS)
            assert refusal[1].startswith(f"{address} is ") or f" pool for {address};" in refusal[1]
            assert refusal[1].endswith("; it stays closed")


few = st.integers(0, 31).flatmap(lambda first: st.integers(first, 31).map(lambda last: f"10.0.0.{first}-10.0.0.{last}"))
nets = st.tuples(st.integers(0, 31), st.integers(27, 32)).map(
    lambda each: ip_network((f"10.0.0.{each[0]}", each[1]), strict=False)
)
single = st.integers(0, 31).map(lambda number: ip_address(f"10.0.0.{number}"))


@given(
    st.sampled_from(PoolMode),
    st.none() | st.lists(few, max_size=3),
    st.lists(nets, max_size=2),
    st.frozensets(single, max_size=3),
    st.lists(nets, max_size=2),
)
def test_an_address_is_admitted_exactly_if_a_pool_holds_it_it_is_allowed_and_nobody_keeps_it_back(
    pool_mode: PoolMode,
    held: list[str] | None,
    allowed: list[Network],
    own: frozenset[Address],
    attached: list[Network],
) -> None:
    known = None if held is None else MetalLBConfig((pool("a", *held),))
    guard = Guard.of(AddressPolicy(pool_mode, allowed=tuple(allowed)), known, own, attached)
    unguarded = pool_mode is PoolMode.IGNORED or (held is None and pool_mode is PoolMode.AUTO)
    for address in (ip_address(f"10.0.0.{number}") for number in range(32)):
        in_pool = unguarded or any(each.first <= address <= each.last for each in map(parse_range, held or ()))  # type: ignore[operator]
        legal = in_pool and (not allowed or any(address in each for each in allowed))
        assert guard.admits(address) == (legal and address not in own)
        assert legal or address not in guard.cluster, "what is not legal is never cut off"


# --- what is said --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address_policy", "known", "message"),
    [
        (
            AddressPolicy(), MetalLBConfig((pool("a", "192.0.2.0/24", "2001:db8::1-2001:db8::5"),)),
            "203.0.113.9 is outside of MetalLB's usable pools (a: 192.0.2.0/24, 2001:db8::1-2001:db8::5); it "
            "stays closed",
        ),
        (AddressPolicy(), MetalLBConfig(), "MetalLB has no usable pool for 203.0.113.9; it stays closed"),
        (
            AddressPolicy(PoolMode.REQUIRED), None,
            "MetalLB has no usable pool for 203.0.113.9; it stays closed",
        ),
        (
            AddressPolicy(allowed=networks("10.0.0.0/8")), None,
            "203.0.113.9 is outside of allowed_prefixes; it stays closed",
        ),
        (
            AddressPolicy(allowed=networks("10.0.0.0/8")), MetalLBConfig((pool("a", "203.0.113.0/24"),)),
            "203.0.113.9 is outside of allowed_prefixes; it stays closed",
        ),
        (
            AddressPolicy(allowed=networks("203.0.113.0/24")), MetalLBConfig((pool("a", "192.0.2.0/24"),)),
            "203.0.113.9 is outside of MetalLB's usable pools (a: 192.0.2.0/24); it stays closed",
        ),
    ],
)  # fmt: skip
def test_a_refusal_says_which_address_and_what_would_have_let_it_pass(
    address_policy: AddressPolicy, known: MetalLBConfig | None, message: str
) -> None:
    assert Guard.of(address_policy, known).refusal(ip_address(OUTSIDE)) == (Reason.OUTSIDE_POOLS, message)


def test_of_a_thousand_pools_a_refusal_names_five() -> None:
    pools = tuple(
        pool(f"pool-{n}", *(f"10.{n // 250}.{n % 250}.{m}/32" for m in range(0, 200, 2))) for n in range(1000)
    )
    refusal = Guard.of(AddressPolicy(), MetalLBConfig(pools)).refusal(ip_address(OUTSIDE))
    assert refusal is not None
    assert refusal[1].startswith("203.0.113.9 is outside of MetalLB's usable pools (pool-0: 10.0.0.0, 10.0.0.2, ")
    assert refusal[1].endswith("; and 995 more); it stays closed")
    assert len(refusal[1]) < 600


def test_a_pools_name_from_a_stranger_is_printable_and_short_in_a_refusal() -> None:
    hostile = pool("x" * 100_000 + "\n", "2001:db8::/64"), pool("\x1b[31m\u202e\ud800'\"", "192.0.2.0/24")
    refusal = Guard.of(AddressPolicy(), MetalLBConfig(hostile)).refusal(ip_address(OUTSIDE))
    assert refusal is not None
    assert refusal[1].isprintable()
    assert len(refusal[1]) < 300


# --- what is the cluster's alone -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pools", "attached", "cluster"),
    [
        (("192.0.2.0/24",), (), ["192.0.2.0/24"]),
        (("192.0.2.0/24",), ("203.0.113.0/24", "2001:db8::/64"), ["192.0.2.0/24"]),
        (("192.0.2.0/24",), ("192.0.2.0/24",), []),
        (("192.0.2.0/24", "2001:db8::/32"), ("2001:db8::/32",), ["192.0.2.0/24"]),
        (("192.0.0.0/22",), ("192.0.2.0/24",), ["192.0.0.0/23", "192.0.3.0/24"]),
        (("192.0.0.0/24", "192.0.1.0-192.0.2.255"), ("192.0.0.0/23",), ["192.0.2.0/24"]),
        (("192.0.2.128/26",), ("192.0.2.0/24",), ["192.0.2.128/26"]),
        (("192.0.1.0-192.0.2.9",), ("192.0.2.0/24",), ["192.0.1.0-192.0.2.9"]),
        (("192.0.2.0/24",), ("192.0.2.1/32",), ["192.0.2.0/24"]),
        (("2001:db8::/64",), ("2001:db8::1/128",), ["2001:db8::/64"]),
        (("192.0.2.0/24",), ("192.0.2.4/31",), ["192.0.2.0/30", "192.0.2.6-192.0.2.255"]),
        (("10.0.0.0/8",), ("10.1.0.0/16", "10.1.2.0/24"), ["10.0.0.0/16", "10.2.0.0-10.255.255.255"]),
        (("0.0.0.0/0",), ("0.0.0.0/0",), []),
        (("0.0.0.0/0", "::/0"), ("255.255.255.254/31",), ["0.0.0.0-255.255.255.253", "::/0"]),
    ],
)
def test_networks_beside_the_router_that_a_pool_swallows_whole_are_not_the_clusters_and_stay_legal(
    pools: tuple[str, ...], attached: tuple[str, ...], cluster: list[str]
) -> None:
    known = MetalLBConfig(tuple(pool(f"pool-{number}", text) for number, text in enumerate(pools)))
    guard = Guard.of(AddressPolicy(), known, attached=networks(*attached))
    assert ranges(guard.cluster) == cluster
    assert guard.legal == AddressSet.of(map(parse_range, pools))


def test_an_own_address_inside_a_pool_does_not_split_what_is_the_clusters() -> None:
    guard = Guard.of(AddressPolicy(), KNOWN, addresses("192.0.2.1"), networks("192.0.2.1/32"))
    assert ranges(guard.cluster) == ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/64"]


def test_where_no_address_is_illegal_none_is_the_clusters_alone() -> None:
    assert Guard.of(AddressPolicy(), None, attached=networks("192.0.2.0/24")).cluster == AddressSet()
    assert Guard.of(AddressPolicy(PoolMode.IGNORED), KNOWN).cluster == AddressSet()
    assert ranges(Guard.of(AddressPolicy(PoolMode.IGNORED, allowed=networks("192.0.2.0/24")), None).cluster) == [
        "192.0.2.0/24"
    ]


# --- the last good configuration -----------------------------------------------------------------------


class _NoNetwork:
    """Nothing is there, and nobody asks."""

    def look(self, _: Nics) -> Interfaces:
        return Interfaces()

    def settle(self, _: Collection[str], ours: frozenset[int]) -> frozenset[int]:
        return ours

    def routed(self, _: Address) -> bool | None:
        return None


class Seen:
    """MetalLB's objects, what an observer remembers of them, and a clock that stands still."""

    def __init__(self, known: MetalLBConfig | None = None) -> None:
        self.now = 1000.0
        self.metallb = MetalLBCaches.empty(lambda: None, lambda: self.now)
        self._config = Config(local_chain=Path("/nowhere/local-chain.nft"))
        self._facts = Facts(spec=NftSpec(Nics(("eth0",))), pools=known)
        inputs = replace(Inputs.empty(), metallb=lambda _namespace, _config_map: self.metallb)
        self._observer = Observer(self._config, inputs, _NoNetwork(), self._facts, lambda: self.now)
        self.pools = self._observer.pools

    def observe(self) -> tuple[bool, float | None]:
        """Look; returns whether MetalLB's lists are complete, and when the earliest of the news was received."""
        nothing = Snapshot(self._config, Origin.UNKNOWN, Known(None, Origin.UNKNOWN), Known(None, Origin.UNKNOWN))
        snapshot, _, since = self._observer.observe(self._facts, nothing, look=False)
        assert snapshot.pools.value == self.pools.known
        return snapshot.pools.listed, since

    @property
    def grace(self) -> float:
        """Seconds until it shows whether what is gone was all that goes."""
        return self._observer.deadline - self.now

    def sync(self) -> Seen:
        """Every kind was listed once."""
        for cache in self.metallb.caches:
            with cache.relist():
                pass
        return self

    def put(self, name: str, *texts: str) -> None:
        self.metallb.pools.put(raw(name, list(texts)))

    def delete(self, name: str) -> None:
        self.metallb.pools.delete(raw(name, []))

    def look(self) -> list[str]:
        """Look; returns the names of the pools that hold."""
        self.observe()
        return [each.name for each in self.pools.known.pools] if self.pools.known else []

    def told(self) -> list[str]:
        assert {each.reason for each in self.pools.rejections} <= set(OF_POOLS)
        return [f"{each.object}: {each.message}" for each in self.pools.rejections]


def raw(name: str, texts: list[str]) -> dict[str, Any]:
    return {"metadata": {"namespace": "metallb-system", "name": name, "uid": name}, "spec": {"addresses": texts}}


def test_what_is_not_complete_changes_nothing() -> None:
    for complete in range(5):
        seen = Seen(KNOWN)
        for cache in seen.metallb.caches[:complete]:
            with cache.relist():
                pass
        seen.put("new", "10.0.0.0/8")
        assert seen.observe() == (False, None)
        assert seen.pools.known == KNOWN


def test_the_first_complete_look_takes_what_is_there_and_says_since_when() -> None:
    seen = Seen().sync()
    seen.put("a", "192.0.2.0/24")
    seen.now += 5
    assert seen.observe() == (True, 1000.0)
    assert seen.look() == ["a"]
    assert seen.observe() == (True, None), "nothing is new"


def test_where_nothing_is_there_nothing_is_known_and_nothing_is_wrong() -> None:
    seen = Seen().sync()
    assert seen.look() == []
    assert seen.pools.known is None
    assert seen.told() == []
    assert seen.observe() == (True, None)


def test_an_invalid_later_configuration_keeps_the_last_good_one_and_says_so() -> None:
    seen = Seen().sync()
    seen.put("a", "192.0.2.0/24")
    assert seen.look() == ["a"]
    good = seen.pools.known
    seen.put("b", "192.0.2.9/32", "x/24")
    assert seen.look() == ["a"]
    assert seen.pools.known == good
    assert seen.told() == [
        "IPAddressPool metallb-system/b: 'x/24' is neither a CIDR nor a range of addresses; the last good pools stay"
    ]
    seen.put("b", "192.0.2.9/32")
    assert seen.look() == ["a"]
    assert seen.told() == [
        "IPAddressPool metallb-system/b: 192.0.2.9-192.0.2.9 overlaps 192.0.2.0-192.0.2.255 of the pool 'a'"
        "; the last good pools stay"
    ]
    seen.put("b", "198.51.100.0/24")
    assert seen.look() == ["a", "b"]
    assert seen.told() == []


def test_an_invalid_first_configuration_leaves_nothing_known_and_says_so() -> None:
    seen = Seen().sync()
    seen.put("a")
    assert seen.look() == []
    assert seen.pools.known is None
    assert seen.told() == [
        "IPAddressPool metallb-system/a: spec.addresses is empty: a pool needs a CIDR or a range of "
        "addresses; no pools are known"
    ]


def test_what_was_known_before_the_start_stays_until_there_is_something_good() -> None:
    seen = Seen(KNOWN).sync()
    assert seen.look() == ["public", "public6", "flat"]
    seen.put("a", "x")
    assert seen.look() == ["public", "public6", "flat"]
    assert seen.told()[0].endswith("; the last good pools stay")
    seen.put("a", "192.0.2.0/24")
    seen.look()
    seen.now += GRACE_PERIOD
    assert seen.look() == ["a"]


def test_when_everything_vanishes_at_once_or_one_by_one_the_last_good_pools_stay_for_good() -> None:
    for one_by_one in (False, True):
        seen = Seen().sync()
        for name, text in (("a", "192.0.2.0/24"), ("b", "198.51.100.0/24"), ("c", "203.0.113.0/24")):
            seen.put(name, text)
        assert seen.look() == ["a", "b", "c"]
        for name in "bca":
            seen.delete(name)
            if one_by_one:
                seen.now += GRACE_PERIOD * 0.9
                assert seen.look() == ["a", "b", "c"]
        seen.now += 1_000_000
        assert seen.look() == ["a", "b", "c"]
        assert seen.grace == float("inf")
        assert seen.told() == [
            "IPAddressPool metallb-system: there is no IPAddressPool any more; the last good pools stay"
        ]


def test_one_pool_that_goes_is_gone_when_no_other_went_for_a_moment() -> None:
    seen = Seen().sync()
    seen.put("a", "192.0.2.0/24")
    seen.put("b", "198.51.100.0/24")
    seen.look()
    assert seen.grace == float("inf")
    seen.delete("b")
    assert seen.look() == ["a", "b"]
    assert seen.grace == pytest.approx(GRACE_PERIOD)
    seen.now += GRACE_PERIOD / 2
    assert seen.look() == ["a", "b"]
    assert seen.grace == pytest.approx(GRACE_PERIOD / 2)
    seen.now += GRACE_PERIOD / 2
    assert seen.grace == pytest.approx(0)
    seen.now += GRACE_PERIOD / 2
    assert seen.look() == ["a"]
    assert seen.grace == float("inf")


def test_a_pool_that_goes_and_comes_back_was_never_gone() -> None:
    seen = Seen().sync()
    seen.put("a", "192.0.2.0/24")
    seen.put("b", "198.51.100.0/24")
    seen.look()
    seen.delete("b")
    seen.look()
    seen.put("b", "203.0.113.0/24")
    assert seen.look() == ["a", "b"]
    assert seen.grace == float("inf")
    assert seen.pools.known is not None
    assert str(seen.pools.known.pools[1].ranges[0]) == "203.0.113.0-203.0.113.255", "an edit counts at once"


def test_a_pool_that_shrinks_is_smaller_at_once() -> None:
    seen = Seen().sync()
    seen.put("a", "192.0.2.0/24")
    seen.look()
    seen.put("a", "192.0.2.0/28")
    assert seen.look() == ["a"]
    assert seen.pools.known is not None
    assert [each.element for each in seen.pools.known.pools[0].ranges] == ["192.0.2.0/28"]


def test_another_namespace_is_looked_at_even_if_nothing_changed_in_it() -> None:
    seen = Seen().sync()
    seen.put("a", "x")
    seen.look()
    assert len(seen.told()) == 1
    seen.metallb = Seen().sync().metallb
    seen.look()
    assert seen.told() == [], "what was wrong in the one before is forgotten"


def test_while_pools_go_on_changing_one_that_is_gone_is_gone_within_the_second() -> None:
    seen = Seen().sync()
    seen.put("a", "192.0.2.0/24")
    seen.put("b", "198.51.100.0/24")
    seen.look()
    seen.delete("b")
    began = seen.now
    while "b" in seen.look():
        seen.now += GRACE_PERIOD / 3
        seen.put("a", f"192.0.2.{int(seen.now * 10) % 100}/32")
    assert seen.now - began == pytest.approx(MAX_GRACE_PERIOD, abs=GRACE_PERIOD / 3)
    assert seen.now - began < 1


LEFT_BEHIND = "address-pools:\n- name: old\n  protocol: bgp\n  addresses: [203.0.113.0/24]\n"


def config_map(text: str) -> dict[str, Any]:
    return {"metadata": {"namespace": "metallb-system", "name": "config", "uid": "c"}, "data": {"config": text}}


def test_the_config_map_that_pool_objects_have_replaced_does_not_come_to_power_again_when_they_go() -> None:
    for restarted in (False, True):
        seen = Seen().sync()
        seen.metallb.config_maps.put(config_map(LEFT_BEHIND))
        assert seen.look() == ["old"]
        seen.put("a", "192.0.2.0/24")
        seen.look()
        seen.now += GRACE_PERIOD
        assert seen.look() == ["a"]
        if restarted:
            seen = Seen(seen.pools.known).sync()
            seen.metallb.config_maps.put(config_map(LEFT_BEHIND))
        else:
            seen.delete("a")
        assert seen.look() == ["a"]
        seen.now += 1_000_000
        assert seen.look() == ["a"]
        assert seen.metallb.objects().judge(seen.pools.known)[0] is None
        assert seen.told() == [
            "IPAddressPool metallb-system: there is no IPAddressPool any more; the last good pools stay"
        ]


def announced(seen: Seen) -> list[str]:
    seen.observe()
    return [each.name for each in seen.pools.known.pools if each.advertised] if seen.pools.known else []


PART = {"metadata": {"namespace": "metallb-system", "name": "x", "uid": "x"}}


def test_what_can_not_be_read_after_a_restart_stays_as_it_was_known() -> None:
    seen = Seen(
        MetalLBConfig((pool("a", "192.0.2.0/24"), pool("b", "198.51.100.0/24", advertised=False)), addresses(PEER))
    )
    for cache in seen.metallb.caches:
        cache.unreadable()
    with seen.metallb.pools.relist() as relist:
        for name, text in (("a", "192.0.2.0/25"), ("b", "198.51.100.0/24"), ("new", "203.0.113.0/24")):
            relist.put(raw(name, [text]))
    assert announced(seen) == ["a"]
    seen.now += 1_000_000
    assert announced(seen) == ["a"]
    assert seen.pools.known is not None
    assert seen.pools.known.peers == addresses(PEER)
    assert str(seen.pools.known.pools[0].ranges[0]) == "192.0.2.0-192.0.2.127", "what can be read counts"


def test_what_can_be_read_again_counts_even_if_it_is_nothing() -> None:
    seen = Seen(MetalLBConfig((pool("a", "192.0.2.0/24"),), addresses(PEER)))
    for cache in seen.metallb.caches:
        cache.unreadable()
    seen.put("a", "192.0.2.0/24")
    assert announced(seen) == ["a"]
    for cache in seen.metallb.caches[1:]:
        with cache.relist():
            pass
    assert announced(seen) == ["a"], "all may be going"
    seen.now += GRACE_PERIOD
    assert announced(seen) == []
    assert seen.pools.known is not None
    assert seen.pools.known.peers == frozenset()


def test_advertisements_and_peers_that_are_gone_for_a_moment_leave_everything_as_it_is() -> None:
    seen = Seen().sync()
    seen.put("a", "192.0.2.0/24")
    seen.metallb.advertisements.put({**PART, "spec": {}})
    seen.metallb.peers.put({**PART, "spec": {"peerAddress": PEER}})
    assert announced(seen) == ["a"]
    before = seen.pools.known
    for cache in seen.metallb.caches:
        cache.unreadable()
        seen.now += 10
        assert announced(seen) == ["a"]
    assert seen.pools.known == before


def test_what_is_asked_for_once_is_what_stands_there_now_and_the_last_good_one_where_that_is_none() -> None:
    seen = Seen().sync()
    seen.put("a", "192.0.2.0/24")
    found, _ = seen.metallb.objects().judge(KNOWN)
    assert found is not None
    assert [each.name for each in found.pools] == ["a"], "nobody waits for what was known to be gone"
    seen.put("b", "x")
    found, rejections = seen.metallb.objects().judge(KNOWN)
    assert found is None
    assert [each.message for each in rejections] == [
        "'x' is neither a CIDR nor a range of addresses; the last good pools stay"
    ]


# --- AddressPools, kinds that are gone, ConfigMaps of any name, and what MetalLB says itself -----------


def former(name: str, *texts: str) -> dict[str, Any]:
    return {**raw(name, []), "spec": {"addresses": list(texts), "protocol": "bgp"}}


def test_address_pools_hold_alone_and_beside_ip_address_pools_and_close_when_they_are_deleted() -> None:
    seen = Seen().sync()
    seen.metallb.former_pools.put(former("old", "192.0.2.0/24"))
    assert announced(seen) == ["old"]
    seen.put("new", "198.51.100.0/24")
    assert seen.look() == ["new", "old"]
    seen.metallb.former_pools.delete(former("old"))
    assert seen.look() == ["new", "old"]
    seen.now += GRACE_PERIOD
    assert seen.look() == ["new"]
    assert seen.told() == []


FORMER = Pool("old", "AddressPool metallb-system/old", (parse_range("192.0.2.0/24"),), advertised=True)


def test_address_pools_of_before_stay_after_a_restart_without_their_kind_and_it_is_said() -> None:
    for kept, texts in ((["new", "old"], ["192.0.2.0/25"]), (["new"], ["192.0.2.0/24"])):
        seen = Seen(MetalLBConfig((FORMER,)))
        for cache in seen.metallb.caches:
            cache.unreadable()
        with seen.metallb.pools.relist() as relist:
            relist.put(raw("new", texts))
        seen.observe()
        seen.now += MAX_GRACE_PERIOD
        assert seen.look() == kept, "unless other pools have taken their place"
        said = "AddressPool metallb-system: nftsync cannot read this kind in the cluster"
        assert any(each.startswith(said) for each in seen.told()) == ("old" in kept)


def test_kinds_that_are_gone_are_told_with_what_stays() -> None:
    known = MetalLBConfig((pool("a", "192.0.2.0/24"),), addresses(PEER))
    seen = Seen(known)
    for cache in seen.metallb.caches:
        cache.unreadable()
    assert seen.look() == ["a"]
    words = "nftsync cannot read this kind in the cluster, or all of it in the files; its last good objects stay"
    assert seen.told() == [
        f"{kind} metallb-system: {words}" for kind in ("BGPAdvertisement", "BGPPeer", "IPAddressPool")
    ]
    assert {each.reason for each in seen.pools.rejections} == {Reason.MISSING_POOLS}
    assert seen.pools.known == known


def test_a_cluster_that_never_had_the_other_kinds_hears_nothing_of_them() -> None:
    seen = Seen()
    for cache in seen.metallb.caches:
        cache.unreadable()
    assert seen.told() == []
    with seen.metallb.pools.relist() as relist:
        relist.put(raw("a", ["192.0.2.0/24"]))
    assert seen.look() == ["a"]
    assert seen.told() == []
    with seen.metallb.former_pools.relist() as relist:
        relist.put(former("old", "198.51.100.0/24"))
    assert announced(seen) == ["old"]
    assert seen.told() == []


def test_when_the_config_map_goes_its_pools_stay_and_it_is_said() -> None:
    seen = Seen().sync()
    seen.metallb.config_maps.put(config_map(LEFT_BEHIND))
    assert seen.look() == ["old"]
    seen.metallb.config_maps.delete(config_map(LEFT_BEHIND))
    assert seen.look() == ["old"]
    assert seen.told() == ["ConfigMap metallb-system: there is no ConfigMap any more; the last good pools stay"]


def named(name: str, text: str = LEFT_BEHIND, *, labelled: bool = False) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "metallb"} if labelled else {}
    return {
        "metadata": {"namespace": "metallb-system", "name": name, "uid": name, "labels": labels},
        "data": {"config": text},
    }


MARKED = LEFT_BEHIND.replace("old", "marked").replace("203.0.113", "192.0.2")
OTHERS = [named("kube-root-ca", "x"), named("leader", "{}"), {**named("no-key"), "data": {"ca.crt": "x"}}]


@pytest.mark.parametrize(
    ("config_maps", "wanted", "pools"),
    [
        ([named("config", MARKED)], "", ["marked"]),
        ([named("metallb", MARKED, labelled=True)], "", ["marked"]),
        ([named("mine")], "", ["old"]),
        ([named("config", MARKED), named("stranger")], "", ["marked"]),
        ([named("metallb", MARKED, labelled=True), named("a"), named("b")], "", ["marked"]),
        ([named("a"), named("b", MARKED)], "b", ["marked"]),
        ([named("a"), named("config")], "b", []),
        ([], "", []),
    ],
)
def test_the_config_map_is_found_by_its_name_label_or_text_or_is_the_one_with_the_given_name(
    config_maps: list[dict[str, Any]], wanted: str, pools: list[str]
) -> None:
    seen = Seen().sync()
    seen.metallb = replace(seen.metallb, config_map=wanted)
    for each in (*config_maps, *OTHERS):
        seen.metallb.config_maps.put(each)
    assert seen.look() == pools
    assert seen.told() == []


@pytest.mark.parametrize(
    "config_maps",
    [
        [named("config"), named("metallb", labelled=True)],
        [named("a", labelled=True), named("b", MARKED, labelled=True)],
        [named("a"), named("b", MARKED)],
    ],
)
def test_of_several_config_maps_none_counts_until_one_is_named(config_maps: list[dict[str, Any]]) -> None:
    seen = Seen(KNOWN).sync()
    for each in config_maps:
        seen.metallb.config_maps.put(each)
    seen._observer.pools.known = None  # pool objects never were there
    assert seen.look() == []
    names = ", ".join(each["metadata"]["name"] for each in config_maps)
    first = config_maps[0]["metadata"]["name"]
    assert seen.told() == [
        f"ConfigMap metallb-system/{first}: each of {names} can be MetalLB's: write the name in "
        "spec.metallb-configmap of the Nft; no pools are known"
    ]


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("stranger", [named("config", MARKED), named("a", MARKED, labelled=True), named("a", MARKED)])
def test_a_strangers_config_map_does_not_replace_the_one_that_counts(stranger: dict[str, Any], *, gone: bool) -> None:
    seen = Seen().sync()
    seen.metallb.config_maps.put(named("mine"))
    assert seen.look() == ["old"]
    if gone:
        seen.metallb.config_maps.delete(named("mine"))
        assert seen.look() == ["old"]
    seen.metallb.config_maps.put(stranger)
    for restarted in (False, True):
        if restarted:
            again = Seen(seen.pools.known).sync()
            again.metallb.config_maps.put(stranger)
            seen = again
        seen.look()
        seen.now += 1_000_000
        assert seen.look() == ["old"]
        name = stranger["metadata"]["name"]
        assert seen.told() == [
            f"ConfigMap metallb-system/{name}: each of {name}, mine can be MetalLB's: write the name in "
            "spec.metallb-configmap of the Nft; the last good pools stay"
        ]
    seen.metallb = replace(seen.metallb, config_map=name)
    seen.look()
    seen.now += 1_000_000
    assert seen.look() == ["marked"]


def test_the_text_of_a_config_map_that_does_not_count_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody who may write ConfigMaps there can write 1 MiB every second."""
    read: list[str] = []

    def counting(text: str, source: str) -> MetalLBConfig:
        read.append(source.rpartition("/")[2])
        return parse_configuration(text, source)

    monkeypatch.setattr("nftsync.objects.metallb_v0.parse_configuration", counting)
    seen = Seen().sync()
    seen.metallb.config_maps.put(named("mine", f"{LEFT_BEHIND}# of this test"))
    assert seen.look() == ["old"]
    for number in range(9):
        strangers = (named("config", f"{MARKED}# {number}"), named("a", f"{MARKED}# {number}"))
        for each in (*strangers, *OTHERS):
            seen.metallb.config_maps.put(each)
        assert seen.look() == ["old"]
    seen.put("a", "192.0.2.0/24")
    seen.look()
    seen.now += GRACE_PERIOD
    assert seen.look() == ["a"]
    assert read == ["mine"]


def test_a_given_config_map_that_is_invalid_is_told_whatever_it_looks_like() -> None:
    seen = Seen().sync()
    seen.metallb = replace(seen.metallb, config_map="mine")
    seen.metallb.config_maps.put({**named("mine"), "data": {}})
    assert seen.look() == []
    assert seen.told() == ["ConfigMap metallb-system/mine: config: there is no text under this key; no pools are known"]


def state(name: str, *errors: str) -> dict[str, Any]:
    conditions = [{"status": "False", "reason": "ConfigurationError", "message": error} for error in errors]
    return {**raw(name, []), "status": {"conditions": conditions}}


def test_what_metallb_says_of_its_configuration_is_told_once_and_decides_nothing() -> None:
    seen = Seen().sync()
    seen.put("a", "192.0.2.0/24")
    for name in ("controller", "speaker-1", "speaker-2"):
        seen.metallb.states.put(state(name, "bad\ncommunity"))
    seen.metallb.states.put(state("speaker-3"))
    assert seen.look() == ["a"]
    assert seen.told() == [
        "ConfigurationState metallb-system/controller: MetalLB refuses its configuration: 'bad\\ncommunity' "
        "(and 2 more objects say so)"
    ]
    assert {each.reason for each in seen.pools.rejections} == {Reason.REFUSED_BY_METALLB}
    for name in ("controller", "speaker-1", "speaker-2"):
        seen.metallb.states.put(state(name))
    assert seen.look() == ["a"]
    assert seen.told() == []


def test_another_node_that_says_the_same_is_no_news() -> None:
    seen = Seen().sync()
    seen.put("a", "192.0.2.0/24")
    seen.metallb.states.put(state("controller", "bad"))
    seen.look()
    before = seen.pools.rejections
    for node in range(9):
        seen.metallb.states.put(state(f"speaker-{node}", "bad"))
        seen.look()
    assert "(and 9 more objects say so)" in seen.told()[0]
    assert list(of_rejections(before, seen.pools.rejections)) == []


def test_where_no_pool_is_advertised_the_words_say_so() -> None:
    flat = MetalLBConfig((pool("flat", "192.0.2.0/24", advertised=False),))
    guard = Guard.of(AddressPolicy(advertised_only=True), flat)
    words = "no pool is advertised over BGP (advertised_pools_only)"
    assert guard.no_pool == words
    refusal = guard.refusal(ip_address(INSIDE))
    assert refusal == (Reason.OUTSIDE_POOLS, f"{words}; {INSIDE} stays closed")
    assert Guard.of(AddressPolicy(advertised_only=True), MetalLBConfig()).no_pool == ""
    assert Guard.of(AddressPolicy(advertised_only=True), KNOWN).no_pool == ""
