"""Who owns an address, protocol and port that several Services claim."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import permutations
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftsync.config import AddressPolicy, Filters
from nftsync.objects.address import Range
from nftsync.objects.metallb import MetalLBConfig, Pool
from nftsync.objects.names import Name, ObjectRef, Reason, Rejection
from nftsync.objects.ratelimit import RateLimit
from nftsync.objects.service import Port, Protocol, Service
from nftsync.policy import pinholes as module
from nftsync.policy.guard import UNGUARDED, Guard
from nftsync.policy.pinholes import Pinhole, PinholeIndex, pinholes_of
from tests.support import services

ALL = Filters()
HTTP = Port(Protocol.TCP, 80)
HTTPS = Port(Protocol.TCP, 443)
KEY = "192.0.2.1 . tcp . 80"
OLD, NEW = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"


def service(name: str, created: str = "", uid: str = "", *ports: Port, **fields: Any) -> Service:
    plain = Service(
        Name("default", name), uid, created, "", (ip_address("192.0.2.1"),), ports or (HTTP,), None, None, ()
    )
    return replace(plain, **fields)


def owners(desired: PinholeIndex) -> dict[str, str]:
    return {key: hole.service.name for key, hole in desired.pinholes.items()}


def losers(desired: PinholeIndex) -> list[str]:
    return [rejection.object.name for rejection in desired.rejections() if rejection.reason is Reason.CONFLICT]


@pytest.mark.parametrize(
    "by_age",
    [
        (service("z", OLD, "u9"), service("a", NEW, "u1")),
        (service("z", OLD, "u1"), service("a", OLD, "u2")),
        (service("z", OLD, "u1"), service("a", "", "u0")),
        (service("a", OLD, ""), service("b", OLD, "")),
        (service("z", OLD, "u1"), service("a", OLD, "")),
        (service("c", OLD, "u3"), service("b", OLD, "u4"), service("a", NEW, "u1"), service("d", "", "u0")),
    ],
)
def test_the_older_service_owns_a_pinhole_in_whatever_order_they_arrive(by_age: tuple[Service, ...]) -> None:
    for order in permutations(by_age):
        desired = PinholeIndex(order, ALL)
        assert owners(desired) == {KEY: by_age[0].name.name}
        assert losers(desired) == sorted(f"default/{each.name.name}" for each in by_age[1:])


def test_a_conflict_is_one_sentence_that_names_the_owner() -> None:
    desired = PinholeIndex([service("web", OLD, "u1"), service("copy", NEW, "u2")], ALL)
    assert list(desired.rejections()) == [
        Rejection(
            ObjectRef("Service", "default/copy", "u2"),
            Reason.CONFLICT,
            "192.0.2.1 tcp 80 belongs to the older Service default/web; this Service gets it when that one is deleted",
        )
    ]


def test_when_the_owner_goes_the_next_in_age_inherits() -> None:
    desired = PinholeIndex([service("a", OLD), service("b", NEW), service("c", "")], ALL)
    assert set(desired.put(Name("default", "a"), None)) == {KEY}
    assert owners(desired) == {KEY: "b"}
    assert losers(desired) == ["default/c"]
    desired.put(Name("default", "b"), None)
    assert owners(desired) == {KEY: "c"}
    assert losers(desired) == []
    desired.put(Name("default", "c"), None)
    assert desired.pinholes == {}


def test_when_the_owner_moves_to_another_port_the_next_inherits_what_it_left() -> None:
    desired = PinholeIndex([service("a", OLD), service("b", NEW)], ALL)
    assert set(desired.put(Name("default", "a"), service("a", OLD, "", HTTPS))) == {KEY, "192.0.2.1 . tcp . 443"}
    assert owners(desired) == {KEY: "b", "192.0.2.1 . tcp . 443": "a"}
    assert losers(desired) == []


def test_an_heir_brings_its_own_ranges_and_limit() -> None:
    limit = RateLimit(5, "second", 5, packets=True)
    sources = (ip_network("198.51.100.0/24"),)
    desired = PinholeIndex([service("a", OLD), service("b", NEW, limit=limit, sources=sources)], ALL)
    desired.put(Name("default", "a"), None)
    assert desired.pinholes[KEY] == Pinhole(KEY, 4, sources, limit, Name("default", "b"))


def test_services_share_an_address_with_different_ports_or_protocols() -> None:
    dns = Port(Protocol.UDP, 53)
    both = service("c", NEW, "", HTTP, HTTPS)
    desired = PinholeIndex([service("a", OLD, "", HTTP), service("b", NEW, "", HTTPS, dns), both], ALL)
    assert owners(desired) == {KEY: "a", "192.0.2.1 . tcp . 443": "b", "192.0.2.1 . udp . 53": "b"}
    assert losers(desired) == ["default/c", "default/c"]


def test_a_service_that_the_filters_no_longer_admit_gives_up_its_pinholes() -> None:
    desired = PinholeIndex((), Filters(load_balancer_classes=frozenset({""})))
    desired.put(Name("default", "a"), service("a", OLD))
    assert owners(desired) == {KEY: "a"}
    assert set(desired.put(Name("default", "a"), service("a", OLD, load_balancer_class="other"))) == {KEY}
    assert desired.pinholes == {}
    assert list(desired.services) == []


def test_sources_of_the_other_family_leave_a_pinhole_that_nobody_passes() -> None:
    both = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
    holes = pinholes_of(service("a", addresses=both, sources=(ip_network("2001:db8::/32"),)))
    assert {hole.version: hole.sources for hole in holes.values()} == {4: (), 6: (ip_network("2001:db8::/32"),)}


def test_taking_away_what_was_never_there_changes_nothing() -> None:
    desired = PinholeIndex([service("a")], ALL)
    assert list(desired.put(Name("default", "b"), None)) == []
    assert owners(desired) == {KEY: "a"}


# --- what the guard refuses ------------------------------------------------------------------------------


def guard_of(*legal: str, reserved: tuple[str, ...] = ()) -> Guard:
    """A guard that admits these addresses of a pool's."""
    ranges = tuple(Range(ip_address(each), ip_address(each)) for each in legal)
    known = MetalLBConfig((Pool("a", "IPAddressPool metallb-system/a", ranges, advertised=True),))
    return Guard.of(AddressPolicy(reserved=frozenset(map(ip_address, reserved))), known)


def test_a_refused_address_is_rejected_once_however_many_ports_it_has_and_the_others_open() -> None:
    both = (ip_address("192.0.2.1"), ip_address("203.0.113.9"))
    desired = PinholeIndex([service("a", OLD, "u1", HTTP, HTTPS, addresses=both)], ALL, guard_of("192.0.2.1"))
    assert owners(desired) == {KEY: "a", "192.0.2.1 . tcp . 443": "a"}
    assert list(desired.rejections()) == [
        Rejection(
            ObjectRef("Service", "default/a", "u1"),
            Reason.OUTSIDE_POOLS,
            "203.0.113.9 is outside of MetalLB's usable pools (a: 192.0.2.1); it stays closed",
            "203.0.113.9",
        )
    ]


def test_a_service_without_ports_is_told_that_its_address_is_refused() -> None:
    desired = PinholeIndex([replace(service("a"), ports=())], ALL, guard_of("192.0.2.2"))
    assert [each.reason for each in desired.rejections()] == [Reason.OUTSIDE_POOLS]


def test_a_reserved_address_is_rejected_for_what_it_is() -> None:
    desired = PinholeIndex([service("a")], ALL, guard_of("192.0.2.1", reserved=("192.0.2.1",)))
    assert owners(desired) == {}
    assert [(each.reason, each.part) for each in desired.rejections()] == [(Reason.RESERVED_ADDRESS, "192.0.2.1")]


def test_an_older_service_that_is_refused_an_address_takes_nothing_from_a_younger_one() -> None:
    old = service("old", OLD, "u1", addresses=(ip_address("203.0.113.9"), ip_address("192.0.2.1")))
    young = service("young", NEW, "u2", addresses=(ip_address("203.0.113.9"), ip_address("192.0.2.2")))
    for order in permutations((old, young)):
        desired = PinholeIndex(order, ALL, guard_of("192.0.2.1", "192.0.2.2"))
        assert owners(desired) == {KEY: "old", "192.0.2.2 . tcp . 80": "young"}
        assert [(each.object.name, each.reason) for each in desired.rejections()] == [
            ("default/old", Reason.OUTSIDE_POOLS),
            ("default/young", Reason.OUTSIDE_POOLS),
        ], "nobody lost to anybody"


def test_an_older_service_that_moves_to_a_refused_address_leaves_its_old_one_to_the_younger() -> None:
    guard = guard_of("192.0.2.1")
    desired = PinholeIndex([service("old", OLD), service("young", NEW)], ALL, guard)
    assert owners(desired) == {KEY: "old"}
    moved = service("old", OLD, addresses=(ip_address("203.0.113.9"),))
    assert set(desired.put(moved.name, moved)) == {KEY}
    assert owners(desired) == {KEY: "young"}
    assert [(each.object.name, each.reason) for each in desired.rejections()] == [("default/old", Reason.OUTSIDE_POOLS)]


def test_a_service_that_the_filters_do_not_admit_is_not_told_what_the_guard_refuses() -> None:
    desired = PinholeIndex([service("a")], Filters(exclude_namespaces=frozenset({"default"})), guard_of())
    assert list(desired.rejections()) == []


# --- the shortcut equals the whole computation ----------------------------------------------------------


def oracle(
    held: dict[Name, Service], filters: Filters, guard: Guard
) -> tuple[dict[str, tuple[Name, Any, Any]], set[tuple[Name, str]]]:
    """Simply: sort all Services by age; the first to ask gets it, and the others are told.

    Refused addresses are not asked for.
    """
    age = lambda each: (not each.created, each.created, not each.uid, each.uid, each.name)  # noqa: E731
    owned: dict[str, tuple[Name, Any, Any]] = {}
    refused = set()
    for each in sorted(filter(filters.admit, held.values()), key=age):
        for address in filter(guard.admits, each.addresses):
            for protocol, port in each.ports:
                key = f"{address} . {protocol.value} . {port}"
                if key not in owned:
                    family = (
                        None
                        if each.sources is None
                        else [str(net) for net in each.sources if net.version == address.version]
                    )
                    owned[key] = (each.name, family, each.limit)
                elif owned[key][0] != each.name:
                    refused.add((each.name, key.replace(" . ", " ")))
    return owned, refused


changes = st.lists(st.tuples(services(), st.booleans()), max_size=14)
some_filters = st.builds(
    Filters,
    st.sampled_from([frozenset(), frozenset({"default"})]),
    st.sampled_from([frozenset(), frozenset({"other"})]),
    st.sampled_from([frozenset(), frozenset({""})]),
)


in_use = st.sampled_from(["192.0.2.1", "192.0.2.2", "203.0.113.9", "2001:db8::1", "64:ff9b::102:304", "::102:304"])
some_guards = st.just(UNGUARDED) | st.builds(
    lambda legal, reserved: guard_of(*legal, reserved=tuple(reserved)),
    st.lists(in_use, unique=True),
    st.lists(in_use, unique=True, max_size=2),
)


@settings(max_examples=250)
@given(changes, some_filters, some_guards)
def test_after_any_sequence_of_changes_everything_is_as_if_computed_from_scratch(
    sequence: list[tuple[Service, bool]], filters: Filters, guard: Guard
) -> None:
    desired, held = PinholeIndex((), filters, guard), dict[Name, Service]()
    for changed, stays in sequence:
        before = dict(desired.pinholes)
        if stays:
            held[changed.name] = changed
        else:
            held.pop(changed.name, None)
        keys = set(desired.put(changed.name, held.get(changed.name)))

        scratch = PinholeIndex(held.values(), filters, guard)
        assert desired.pinholes == scratch.pinholes
        assert list(desired.rejections()) == list(scratch.rejections())
        assert sorted(map(repr, desired.services)) == sorted(map(repr, scratch.services))
        differing = {
            key for key in before.keys() | desired.pinholes.keys() if before.get(key) != desired.pinholes.get(key)
        }
        assert differing <= keys, "every pinhole that changed is named"

        owned, refused = oracle(held, filters, guard)
        found = {
            key: (hole.service, None if hole.sources is None else [str(net) for net in hole.sources], hole.limit)
            for key, hole in desired.pinholes.items()
        }
        assert found == owned
        conflicts = [each for each in desired.rejections() if each.reason is Reason.CONFLICT]
        assert {
            (tuple(each.object.name.split("/")), each.message.partition(" belongs")[0]) for each in conflicts
        } == refused
        assert len(conflicts) == len(refused)

        closed = [each for each in desired.rejections() if each.reason is not Reason.CONFLICT]
        assert sorted((each.object.name, each.part, each.reason) for each in closed) == sorted(
            (
                str(each.name),
                str(address),
                Reason.RESERVED_ADDRESS if address in guard.reserved else Reason.OUTSIDE_POOLS,
            )
            for each in filter(filters.admit, held.values())
            for address in each.addresses
            if not guard.admits(address)
        ), "one for each Service and address that is refused"
        assert [str(each) for each in desired.rejections()] == [
            str(each) for name in sorted(held) for each in desired.rejections_of(name)
        ]


# --- what it costs -------------------------------------------------------------------------------------


class Counter:
    """Counts how many pinholes are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        monkeypatch.setattr(module, "pinholes_of", self)

    def __call__(self, service: Service, guard: Guard) -> dict[str, Pinhole]:
        holes = pinholes_of(service, guard)
        self.made += len(holes)
        return holes


def test_two_thousand_services_that_claim_one_key_cost_as_much_each_as_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(monkeypatch)
    desired = PinholeIndex((), ALL)
    crowd = [service(f"s{number}", f"{2000 + number}-01-01T00:00:00Z") for number in range(2000)]
    for each in [*crowd[::2], *crowd[1::2]]:
        desired.put(each.name, each)
    for each in crowd[:1000]:
        desired.put(each.name, None)
    assert owners(desired) == {KEY: "s1000"}
    assert counter.made <= 5 * 3000


def test_a_change_does_not_look_at_services_that_have_nothing_to_do_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = [service(f"s{number}", OLD, "", Port(Protocol.TCP, number + 1)) for number in range(2000)]
    desired = PinholeIndex(crowd, ALL)
    counter = Counter(monkeypatch)
    desired.put(crowd[7].name, service("s7", OLD, "", Port(Protocol.UDP, 7)))
    assert counter.made <= 5


def test_giving_up_many_ports_to_one_heir_costs_as_much_as_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = tuple(Port(Protocol.TCP, number) for number in range(1, 2001))
    desired = PinholeIndex([service("a", OLD, "", *ports), service("b", NEW, "", *ports)], ALL)
    counter = Counter(monkeypatch)
    desired.put(Name("default", "a"), None)
    assert set(owners(desired).values()) == {"b"}
    assert counter.made <= 5 * len(ports)


def test_it_says_when_rejections_may_have_changed_and_is_silent_while_good_services_come_and_go() -> None:
    desired, random = PinholeIndex((), ALL), Random(1)
    for _ in range(500):
        name = Name("default", random.choice("abcdef"))
        refused = (Rejection(ObjectRef("Service", str(name)), Reason.INVALID_PORT, "x"),)
        fields = {"rejections": refused} if random.random() < 0.2 else {}
        version = service(name.name, random.choice((OLD, NEW)), name.name, random.choice((HTTP, HTTPS)), **fields)
        before, counted = list(desired.rejections()), desired.rejections_changed
        desired.put(name, version if random.random() < 0.7 else None)
        assert list(desired.rejections()) == before or desired.rejections_changed != counted
    counted = desired.rejections_changed
    for number in range(100):
        good = service(f"good{number}", OLD, "u", addresses=(ip_address(f"198.51.100.{number}"),))
        desired.put(good.name, good)
        desired.put(good.name, None)
    assert desired.rejections_changed == counted
