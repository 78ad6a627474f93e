"""Over a cap new Services wait as a whole, and whoever is in stays in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftsync.cli.preview import preview, read
from nftsync.cluster.cache import Inputs
from nftsync.config import AddressPolicy, Caps, Config, Filters
from nftsync.objects.address import Address, Network, Range
from nftsync.objects.metallb import MetalLBConfig, Pool
from nftsync.objects.names import Name, Reason, Rejection
from nftsync.objects.service import Port, Protocol, Service
from nftsync.plan.memory import Memory, replay, service_record
from nftsync.plan.result import SyncResult
from nftsync.policy import quota as module
from nftsync.policy.guard import UNGUARDED, Guard
from nftsync.policy.pinholes import PinholeIndex
from nftsync.policy.quota import UNCAPPED, seniority, size
from nftsync.report.explain import explain_service
from nftsync.report.explanation import ExplainReason, Verdict, View
from tests.lab.lab import Lab
from tests.labtools import Daemon, Raw, elements, eventually, needs_root, nft, service, write_manifests
from tests.router import LabRouter, config_in

ALL = Filters()
SMALL = Caps(pinholes=6, pinholes_per_namespace=4)
FRIENDS = (ip_network("192.0.2.0/24"), ip_network("198.51.100.0/24"), ip_network("2001:db8:1::/48"))
SERVED = ("10.0.0.0/8",)
OLD, NEW = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"


def claim(name: str, ports: int = 1, created: str = NEW, namespace: str = "shop", **fields: Any) -> Service:
    """Each name has an address of its own."""
    address = ip_address(f"192.0.2.{ord(name[0]) - ord('a') + 1}")
    wanted = tuple(Port(Protocol.TCP, number) for number in range(1, ports + 1))
    return replace(
        Service(Name(namespace, name), f"u{name}", created, "", (address,), wanted, None, None, ()), **fields
    )


def put(desired: PinholeIndex, *services: Service) -> set[str]:
    return set().union(*(desired.put(each.name, each) for each in services))


def opened(desired: PinholeIndex) -> dict[str, int]:
    """How many pinholes each Service has."""
    return dict(Counter(hole.service.name for hole in desired.pinholes.values()))


def told(desired: PinholeIndex) -> dict[str, Rejection]:
    return {each.object.name: each for each in desired.rejections() if each.reason is Reason.OVER_CAP}


# --- one Service at a time ------------------------------------------------------------------------------


def test_what_would_exceed_the_namespaces_cap_is_refused_as_a_whole_and_is_told_what_to_do() -> None:
    desired = PinholeIndex((), ALL, caps=SMALL)
    put(desired, claim("a", 3))
    assert put(desired, claim("b", 2, OLD)) == set()
    assert opened(desired) == {"a": 3}
    refused = told(desired)["shop/b"]
    assert refused.object.uid == "ub"
    assert refused.message == (
        "this Service counts as 2 pinholes, so namespace shop would exceed the cap of 4 "
        "(pinholes_per_namespace in [caps] of the "
        "router's configuration); it stays closed; delete Services or raise the cap: it opens when there is room"
    )


def test_the_cap_of_all_services_together_counts_over_namespaces() -> None:
    desired = PinholeIndex((), ALL, caps=SMALL)
    put(desired, claim("a", 4), claim("b", 2, namespace="other"), claim("c", 1, OLD, namespace="third"))
    assert opened(desired) == {"a": 4, "b": 2}
    assert "all Services together would exceed the cap of 6 (pinholes in [caps]" in told(desired)["third/c"].message


@pytest.mark.parametrize("caps", [Caps(0, 0), Caps(2000, 0), Caps(0, 2000)])
def test_zero_is_no_cap_and_what_is_exactly_the_cap_fits(caps: Caps) -> None:
    desired = PinholeIndex((), ALL, caps=caps)
    put(desired, claim("a", 1500), claim("b", 500))
    assert opened(desired) == {"a": 1500, "b": 500}
    assert told(desired) == {}


def test_an_earlier_version_stays_open_while_the_newer_one_waits() -> None:
    desired = PinholeIndex((), ALL, caps=SMALL)
    put(desired, claim("a", 3), claim("b", 1))
    larger = claim("a", 4, sources=())
    assert put(desired, larger) == set()
    assert opened(desired) == {"a": 3, "b": 1}
    assert all(hole.sources is None for hole in desired.pinholes.values()), "all of the newer version waits"
    assert "its open pinholes stay open" in told(desired)["shop/a"].message
    assert set(desired.services) == {larger, claim("b", 1)}
    desired.put(Name("shop", "b"), None)
    assert opened(desired) == {"a": 4}
    assert told(desired) == {}


def test_who_asks_for_no_more_than_before_always_gets_it() -> None:
    held = {each.name: each for each in (claim("a", 4), claim("b", 4))}
    desired = PinholeIndex(held.values(), ALL, caps=Caps(1, 1), admitted=held)
    assert opened(desired) == {"a": 4, "b": 4}
    moved = claim("a", 4, addresses=(ip_address("198.51.100.1"),))
    assert len(put(desired, moved, claim("b", 3))) == 12
    assert opened(desired) == {"a": 4, "b": 3}
    assert told(desired) == {}


def test_when_there_is_room_the_oldest_that_fit_come_in_and_a_large_one_blocks_nobody() -> None:
    desired = PinholeIndex((), ALL, caps=SMALL)
    put(desired, claim("a", 4), claim("y", 1, NEW), claim("h", 9, OLD), claim("o", 2, OLD), claim("n", 2, NEW))
    assert opened(desired) == {"a": 4}
    changed = set(desired.put(Name("shop", "a"), None))
    assert opened(desired) == {"o": 2, "n": 2}
    assert len(changed) == 8, "what opens is among the keys that may have changed"
    assert told(desired).keys() == {"shop/h", "shop/y"}


def test_room_in_total_lets_in_whoever_waited_for_that_in_another_namespace() -> None:
    desired = PinholeIndex((), ALL, caps=SMALL)
    put(desired, claim("a", 4), claim("b", 1, namespace="other"), claim("c", 3, namespace="other"))
    assert told(desired).keys() == {"other/c"}
    desired.put(Name("shop", "a"), None)
    assert opened(desired) == {"b": 1, "c": 3}


def test_another_service_that_bears_the_name_comes_anew() -> None:
    desired = PinholeIndex((), ALL, caps=SMALL)
    put(desired, claim("a", 2), claim("b", 2), claim("c", 2, OLD))
    put(desired, claim("a", 2, uid="another"))
    assert opened(desired) == {"b": 2, "c": 2}, "the older one that waits comes first"
    put(desired, claim("b", 0, uid="empty"))
    assert opened(desired) == {"a": 2, "c": 2}
    assert told(desired) == {}


def test_a_claim_that_is_lost_or_refused_counts_so_nobody_grows_by_what_others_do() -> None:
    lost, refused = (
        claim("l", 2, addresses=(ip_address("192.0.2.1"),)),
        claim("r", 1, addresses=(ip_address("203.0.113.1"),)),
    )
    pool = Range(ip_address("192.0.2.0"), ip_address("192.0.2.255"))
    guard = Guard.of(AddressPolicy(), MetalLBConfig((Pool("a", "IPAddressPool x/a", (pool,), advertised=True),)))
    desired = PinholeIndex((), ALL, guard, Caps(5, 0))
    put(desired, claim("a", 2, OLD), lost, refused, claim("n", 1, OLD))
    assert opened(desired) == {"a": 2}
    assert told(desired).keys() == {"shop/n"}
    anew = PinholeIndex(desired.services, ALL, UNGUARDED, Caps(5, 0), desired.admitted)
    assert opened(anew) == {"a": 2, "r": 1}
    anew.put(Name("shop", "a"), None)
    assert opened(anew) == {"l": 2, "r": 1, "n": 1}


# --- from scratch ----------------------------------------------------------------------------------------


def test_from_scratch_the_oldest_are_in_whatever_order_they_come_in() -> None:
    services = [claim("c", 2, NEW), claim("b", 2, OLD), claim("a", 2, OLD)]
    for order in (services, services[::-1]):
        assert opened(PinholeIndex(order, ALL, caps=SMALL)) == {"a": 2, "b": 2}


def test_from_scratch_whoever_is_in_stays_in_before_all_who_say_that_they_are_older() -> None:
    before = PinholeIndex([claim("y", 2, NEW), claim("z", 2, NEW)], ALL, caps=SMALL)
    forged = [claim("a", 2, OLD), claim("b", 2, "0001-01-01T00:00:00Z"), claim("c", 2, OLD, namespace="other")]
    for caps, reached in ((SMALL, 6), (Caps(1, 1), 4), (Caps(6, 0), 6)):
        anew = PinholeIndex([*forged, *before.services], ALL, caps=caps, admitted=before.admitted)
        assert {"y": 2, "z": 2}.items() <= opened(anew).items()
        assert len(anew.pinholes) == reached


def test_a_larger_cap_lets_in_the_oldest_that_wait() -> None:
    before = PinholeIndex((), ALL, caps=SMALL)
    put(before, claim("y", 4, NEW), claim("a", 2, NEW), claim("b", 2, OLD))
    anew = PinholeIndex(before.services, ALL, caps=Caps(6, 6), admitted=before.admitted)
    assert opened(anew) == {"y": 4, "b": 2}


some_services = st.builds(
    lambda name, namespace, ports, created, uid, addresses, sources: claim(
        name, ports, created, namespace, uid=uid, addresses=tuple(map(ip_address, addresses)), sources=sources
    ),
    st.sampled_from("abcd"),
    st.sampled_from(["shop", "other", "third"]),
    st.integers(0, 4),
    st.sampled_from(["", OLD, NEW]),
    st.sampled_from(["u1", "u1", "u2"]),
    st.lists(st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"]), unique=True, max_size=2),
    st.sampled_from([None, None, None, (), FRIENDS[:1], FRIENDS]),
)
some_caps = st.builds(Caps, st.sampled_from([0, 1, 5, 9, 15]), st.sampled_from([0, 2, 4, 6, 11]))
some_filters = st.sampled_from([ALL, Filters(exclude_namespaces=frozenset({"third"}))])


def counts(address: Address, sources: tuple[Network, ...] | None) -> int:
    """What a pair of address and port counts for."""
    return max(1, 0 if sources is None else 5 * len([each for each in sources if each.version == address.version]))


def exceeding(caps: Caps, versions: Mapping[Name, Service]) -> set[str]:
    """The namespaces that have more than they may, or all of them if they have it together."""
    by_namespace = Counter[str]()
    for each in versions.values():
        by_namespace[each.name.namespace] += sum(
            counts(address, each.sources) for address in each.addresses for _ in each.ports
        )
    if caps.pinholes and by_namespace.total() > caps.pinholes:
        return set(by_namespace)
    return {
        name
        for name, count in by_namespace.items()
        if caps.pinholes_per_namespace and count > caps.pinholes_per_namespace
    }


def oracle(held: Mapping[Name, Service], present: Mapping[Name, Service], caps: Caps) -> dict[Name, Service]:
    """Simply: the present Services stay, and smaller versions are taken.

    Then all others by age, if they do not exceed a cap.
    """
    found = {}
    for name, each in held.items():
        now = present.get(name)
        if now is not None and now.uid == each.uid:
            found[name] = now if size(now) <= size(each) else each
    for each in sorted(present.values(), key=lambda each: (not each.created, each.created, each.uid, each.name)):
        before = found.get(each.name)
        if before != each and (size(each) <= size(before) or not exceeding(caps, found | {each.name: each})):
            found[each.name] = each
    return found


@settings(max_examples=400)
@given(st.lists(st.tuples(some_services, st.sampled_from([True, True, False])), max_size=20), some_caps, some_filters)
def test_after_any_changes_everything_is_as_if_computed_from_scratch_and_nobody_was_evicted(
    changes: list[tuple[Service, bool]], caps: Caps, filters: Filters
) -> None:
    desired, present = PinholeIndex((), filters, caps=caps), dict[Name, Service]()
    for changed, stays in changes:
        held, pinholes = dict(desired.admitted), dict(desired.pinholes)
        present.pop(changed.name, None)
        if stays:
            present[changed.name] = changed
        ours = {name: each for name, each in present.items() if filters.admit(each)}
        keys = set(desired.put(changed.name, present.get(changed.name)))
        for admitted in (held, desired.admitted):  # all at once, and then once more: nothing changes any more
            scratch = PinholeIndex(present.values(), filters, caps=caps, admitted=admitted)
            assert scratch.admitted == desired.admitted
            assert scratch.pinholes == desired.pinholes
            assert list(scratch.rejections()) == list(desired.rejections())
            assert (
                sorted(map(repr, scratch.services))
                == sorted(map(repr, desired.services))
                == sorted(map(repr, ours.values()))
            )
        assert {
            key for key in pinholes.keys() | desired.pinholes.keys() if pinholes.get(key) != desired.pinholes.get(key)
        } <= keys
        assert desired.admitted == oracle(held, ours, caps)
        assert not exceeding(caps, desired.admitted)
        assert held.keys() - desired.admitted.keys() <= {changed.name}, "nobody else is out"
        waiting = {name for name, each in ours.items() if desired.admitted.get(name) != each}
        assert (
            told(desired).keys()
            == {str(name) for name in waiting}
            == {str(name) for name in ours if desired.held_back(name)}
        )


@settings(max_examples=200)
@given(
    st.lists(some_services, max_size=8, unique_by=lambda each: each.name),
    st.lists(some_services, max_size=8, unique_by=lambda each: each.name),
    some_caps,
    some_caps,
)
def test_whatever_changes_at_once_only_those_who_are_gone_are_out(
    first: list[Service], second: list[Service], caps: Caps, later: Caps
) -> None:
    before = PinholeIndex(first, ALL, caps=caps)
    present = {each.name: each for each in second}
    after = PinholeIndex(second, ALL, caps=later, admitted=before.admitted)
    assert after.admitted == oracle(before.admitted, present, later)
    assert {name for name, each in before.admitted.items() if name in present and present[name].uid == each.uid} <= (
        after.admitted.keys()
    )


# --- who is in after a start ------------------------------------------------------------------------------


def remembered(desired: PinholeIndex) -> Mapping[Name, Service]:
    """Who is in, as the next process knows it."""
    memory = Memory()
    for name, version in desired.admitted.items():
        replay(memory, service_record(name, version))
    return memory.services


@settings(max_examples=300)
@given(
    st.lists(some_services, max_size=8, unique_by=lambda each: each.name), some_caps, st.sets(st.sampled_from("abcd"))
)
def test_after_a_start_what_is_open_stays_open_and_what_was_not_opens_only_below_the_caps(
    services: list[Service], caps: Caps, late: set[str]
) -> None:
    before = PinholeIndex([each for each in services if each.name.name not in late], ALL, caps=caps)
    after = PinholeIndex(services, ALL, caps=caps, admitted=remembered(before))
    assert before.admitted.items() <= after.admitted.items()
    assert before.pinholes.keys() <= after.pinholes.keys()
    opened = {after.pinholes[key].service.namespace for key in after.pinholes.keys() - before.pinholes.keys()}
    assert not opened & exceeding(caps, after.admitted)


def test_after_a_start_the_version_of_a_service_that_is_open_is_in() -> None:
    before = PinholeIndex([claim("a", 3), claim("b", 1)], ALL, caps=SMALL)
    services = [claim("a", 4, OLD), claim("b", 1), claim("f", 1, OLD)]
    after = PinholeIndex(services, ALL, caps=SMALL, admitted=remembered(before))
    assert after.admitted == before.admitted
    assert opened(after) == {"a": 3, "b": 1}


def test_after_a_start_who_asks_for_what_others_have_open_and_says_that_he_is_older_puts_nobody_out() -> None:
    first, second = claim("x"), replace(claim("y"), ports=(Port(Protocol.TCP, 2),))
    caps = Caps(2, 0)
    before = PinholeIndex([first, second], ALL, caps=caps)
    both = claim("f", 2, OLD, addresses=(*first.addresses, *second.addresses))
    services = [first, second, both, claim("g", 1, OLD), claim("h", 1, OLD)]
    after = PinholeIndex(services, ALL, caps=caps, admitted=remembered(before))
    assert after.admitted == before.admitted
    assert after.pinholes == before.pinholes


@settings(max_examples=200)
@given(
    st.lists(some_services, max_size=8, unique_by=lambda each: each.name),
    st.lists(some_services, max_size=8, unique_by=lambda each: each.name),
)
def test_below_the_caps_it_does_not_matter_who_was_in(services: list[Service], others: list[Service]) -> None:
    before = {each.name: each for each in others}
    for caps in (UNCAPPED, Caps(1000, 1000)):
        after = PinholeIndex(services, ALL, caps=caps, admitted=before)
        assert after.admitted == {each.name: each for each in services}
        assert after.pinholes == PinholeIndex(services, ALL).pinholes


# --- what it costs ---------------------------------------------------------------------------------------


def test_a_change_without_new_room_looks_at_nobody_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    desired = PinholeIndex((), ALL, caps=Caps(0, 100))
    put(
        desired,
        *(claim(f"s{number}", 1, addresses=(ip_address(f"198.51.{number // 250}.1"),)) for number in range(5000)),
    )
    looked = Counter[str]()

    def counted(each: Service | None) -> int:
        looked["size"] += 1
        return size(each)

    monkeypatch.setattr(module, "size", counted)
    put(desired, claim("new", 1), claim("s1", 1, limit=None), claim("far", 3, namespace="other"))
    desired.put(Name("other", "far"), None)
    desired.put(Name("shop", "new"), None)
    assert looked["size"] < 30
    desired.put(Name("shop", "s0"), None)
    assert looked["size"] < 60, "one comes in, and then there is no room again"
    assert desired.held_back(Name("shop", "s100")) is None


def test_room_elsewhere_costs_nothing_for_those_who_do_not_fit_into_their_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desired = PinholeIndex((), ALL, caps=Caps(0, 101))
    put(
        desired,
        *(claim(f"s{number}", 2, addresses=(ip_address(f"198.51.{number // 250}.1"),)) for number in range(5000)),
    )
    looked = Counter[str]()
    monkeypatch.setattr(module, "size", lambda each: looked.update(size=1) or size(each))
    put(desired, claim("far", 1, namespace="other"))
    desired.put(Name("other", "far"), None)
    assert looked["size"] < 30


def test_twenty_thousand_services_of_one_namespace_keep_nobody_else_out_and_are_looked_at_a_few_times_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crowd = [
        claim(f"s{number:05}", 5, OLD, "greedy", addresses=(ip_address(f"10.{number // 250}.{number % 250}.1"),))
        for number in range(20_000)
    ]
    others = [claim(name, 2, NEW, "modest") for name in "abcdefghij"]
    looked = Counter[str]()
    monkeypatch.setattr(module, "size", lambda each: looked.update(size=1) or size(each))
    desired = PinholeIndex((), ALL, caps=Caps())
    put(desired, *crowd, *others)
    assert looked["size"] <= 4 * 20_010
    in_force = Counter(hole.service.namespace for hole in desired.pinholes.values())
    assert in_force == {"greedy": 50_000, "modest": 20}
    assert len(told(desired)) == 10_000
    looked.clear()
    for each in crowd[:10_000]:
        desired.put(each.name, None)
    assert looked["size"] <= 10 * 10_000, "10,000 go and as many come in"
    assert told(desired) == {}
    assert {hole.service for hole in desired.pinholes.values()} == {each.name for each in (*crowd[10_000:], *others)}


# --- what people are told ---------------------------------------------------------------------------------


def test_render_obeys_the_caps_by_age(tmp_path: Path) -> None:
    young, old = service("young", "172.30.254.1"), service("old", "172.30.254.2")
    young["metadata"]["creationTimestamp"], old["metadata"]["creationTimestamp"] = NEW, OLD
    folder = write_manifests(tmp_path / "manifests", nft(), young, old)
    chosen = Config(caps=Caps(1, 0))
    shown = preview(chosen, read(chosen, [folder]))
    assert [hole.service.name for hole in shown.pinholes.values()] == ["old"]
    assert [(each.object.name, each.reason) for each in shown.rejections] == [("default/young", Reason.OVER_CAP)]
    found = explain_service(View(shown, {each.name: each for each in shown.index.services}), Name("default", "young"))
    assert (found.verdict, found.reason) == (Verdict.DROPPED, ExplainReason.OVER_CAP)
    assert "(pinholes in [caps]" in "\n".join(found.lines)


def test_a_service_of_which_a_newer_version_waits_is_explained_as_open_in_part() -> None:
    desired = PinholeIndex((), ALL, caps=SMALL)
    put(desired, claim("a", 3), claim("a", 5))
    shown = replace(preview(Config(), Inputs.empty()), index=desired, pinholes=desired.pinholes)
    found = explain_service(View(shown, {each.name: each for each in desired.services}), Name("shop", "a"))
    assert (found.verdict, found.reason) == (Verdict.DEPENDS, ExplainReason.OVER_CAP)
    assert found.lines[0] == "Service shop/a: 3 of 5 pairs of address and port are open"


# --- in a kernel ------------------------------------------------------------------------------------------


class Capped(LabRouter):
    """A router whose kernel has, after each sync, what the process believes."""

    def synced(self, *, resync: bool = False, changed_by: str = "") -> SyncResult:
        result = super().synced(resync=resync, changed_by=changed_by)
        assert elements(self.lab, "services4").keys() == self.pinholes().keys()
        return result

    def opened(self) -> Counter[str]:
        """How many pinholes the kernel has at the addresses of each number."""
        return Counter(key.split(" . ")[0] for key in elements(self.lab, "services4"))

    def waiting(self) -> set[str]:
        return self.refused(Reason.OVER_CAP)


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Capped]:
    with Lab(services=SERVED) as lab, Capped(lab, config_in(tmp_path, caps=Caps(0, 50)), nft()) as made:
        yield made


def at(number: int) -> str:
    return f"10.200.{number // 250}.{number % 250 + 1}"


def greedy(number: int, ports: int = 1, year: int = 2024) -> Raw:
    raw = service(f"s{number:03}", at(number), ports=[("TCP", 80 + each) for each in range(ports)])
    raw["metadata"] |= {
        "namespace": "greedy",
        "creationTimestamp": f"{year}-01-01T00:{number // 60:02}:{number % 60:02}Z",
    }
    return raw


@needs_root
def test_of_two_hundred_services_fifty_are_in_and_stay_in_whatever_comes(router: Capped) -> None:
    lab, modest = router.lab, service("modest", at(900))
    router.put(*map(greedy, range(200)), modest)
    router.synced()
    first = {at(number) for number in range(50)} | {at(900)}
    assert router.opened().keys() == first
    assert len(router.waiting()) == 150
    assert lab.arrives("tcp", at(49), 80)
    assert lab.arrives("tcp", at(900), 80)
    assert not lab.arrives("tcp", at(50), 80)

    router.put(*(greedy(number, year=1999) for number in range(300, 350)))  # they say that they are older
    router.synced()
    assert router.opened().keys() == first
    assert router.synced(resync=True).changes == ()
    assert router.opened().keys() == first
    router.put(greedy(7, ports=2))
    router.synced()
    assert router.opened().keys() == first
    assert "greedy/s007" in router.waiting()

    router.restart(caps=Caps(0, 50))
    assert router.synced().changes == (), "a restart lets nobody else in and nobody out"
    assert router.opened().keys() == first
    assert "greedy/s007" in router.waiting()
    router.put(service("late", at(901)))
    router.synced()
    assert lab.arrives("tcp", at(901), 80)

    router.delete(greedy(3))
    result = router.synced()
    assert {change.service.name for change in result.changes} == {"greedy/s003", "greedy/s300"}
    assert lab.arrives("tcp", at(300), 80)
    assert not lab.arrives("tcp", at(3), 80)


@needs_root
def test_after_a_start_those_who_were_in_are_in_before_all_who_came_meanwhile_and_say_that_they_are_older(
    router: Capped,
) -> None:
    router.put(*map(greedy, range(60)))
    router.synced()
    first = {at(number) for number in range(50)}
    assert router.opened().keys() == first
    router.restart(listed=False)
    router.put(*(greedy(number, year=1999) for number in range(300, 320)))
    router.delete(greedy(0))
    router.sync()
    assert router.opened().keys() == first, "nothing was heard of it yet"
    router.lists()
    router.synced()
    assert router.opened().keys() == first - {at(0)} | {at(300)}, "the oldest comes into the free place"
    assert len(router.waiting()) == 29


@needs_root
def test_after_a_start_the_version_that_was_open_stays_while_a_newer_one_waits(router: Capped) -> None:
    router.put(*map(greedy, range(50)))
    router.synced()
    router.put(greedy(3, ports=2))
    router.synced()
    assert router.waiting() == {"greedy/s003"}
    router.restart(listed=False)
    router.put(greedy(4, ports=3))
    router.lists()
    router.synced()
    assert router.waiting() == {"greedy/s003", "greedy/s004"}
    assert router.opened() == dict.fromkeys(map(at, range(50)), 1)
    router.delete(greedy(0))
    router.synced()
    assert router.opened()[at(3)] == 2


@needs_root
def test_another_service_that_bears_the_name_after_a_start_comes_anew(router: Capped) -> None:
    router.put(*map(greedy, range(51)))
    router.synced()
    router.restart(listed=False)
    another = greedy(0, year=2025)
    another["metadata"]["uid"] = "another"
    router.put(another)
    router.lists()
    router.synced()
    assert router.opened().keys() == {at(number) for number in range(1, 51)}
    assert router.waiting() == {"greedy/s000"}


@needs_root
def test_a_start_with_a_smaller_cap_closes_nothing(router: Capped) -> None:
    router.put(*map(greedy, range(60)))
    router.synced()
    first = router.opened()
    router.restart(listed=False, caps=Caps(0, 10))
    router.sync()
    assert router.opened() == first
    router.lists()
    router.synced()
    assert router.opened() == first
    router.delete(greedy(0))
    router.synced()
    assert router.opened() == first - Counter([at(0)]), "and nobody comes in"


@needs_root
def test_a_reload_with_a_larger_cap_lets_in_the_oldest_and_one_with_a_smaller_cap_closes_nothing(
    router: Capped,
) -> None:
    router.put(*map(greedy, range(60)))
    router.synced()
    assert len(router.opened()) == 50
    router.reload(caps=Caps(0, 55))
    router.synced()
    assert router.opened().keys() == {at(number) for number in range(55)}
    assert router.lab.arrives("tcp", at(54), 80)
    router.reload(caps=Caps(10, 10))
    router.synced()
    router.synced(resync=True)
    assert router.opened().keys() == {at(number) for number in range(55)}
    router.restart(caps=Caps(10, 10))
    router.synced()
    assert router.opened().keys() == {at(number) for number in range(55)}, "nor does a restart with it"
    router.delete(greedy(0))
    router.synced()
    assert router.opened().keys() == {at(number) for number in range(1, 55)}, "there are still more than the cap"
    router.reload(caps=Caps(0, 0))
    router.synced()
    assert router.opened().keys() == {at(number) for number in range(1, 60)}
    assert router.waiting() == set()


@needs_root
def test_twenty_thousand_services_of_one_namespace_do_not_keep_ten_of_another_out(router: Capped) -> None:
    router.reload(caps=Caps())
    crowd = [
        service(f"g{number}", f"10.{number // 250}.{number % 250}.1", ports=[("TCP", port) for port in range(80, 85)])
        for number in range(20_000)
    ]
    for each in crowd:
        each["metadata"]["namespace"] = "greedy"
    router.put(*crowd)
    router.sync()
    modest = [service(f"m{number}", at(number)) for number in range(10)]
    router.put(*modest)
    router.sync()
    assert len(router.pinholes()) == 50_010
    assert all(router.lab.arrives("tcp", at(number), 80) for number in range(10))
    assert len(router.waiting()) == 10_000


@needs_root
def test_a_service_with_more_source_ranges_than_the_kernel_takes_in_time_holds_nobody_up(router: Capped) -> None:
    """The kernel needs the square of their number.

    Without a cap, these hold up a processor for the better part of a minute.
    """
    router.reload(caps=Caps())
    ranges = [f"{20 + number // 32768}.{number // 128 % 256}.{number % 128 * 2}.1/32" for number in range(2500)]
    ports = [("TCP", 1000 + number) for number in range(20)]
    router.put(service("greedy", at(1), ports=ports, sources=ranges), service("modest", at(2)))
    router.synced()
    assert elements(router.lab, "sources4") == {}, "the kernel is not asked for any"
    assert router.opened().keys() == {at(2)}
    assert router.waiting() == {"default/greedy"}
    router.put(service("greedy", at(1), ports=ports, sources=ranges[:400]))
    router.sync()
    assert router.waiting() == set()
    assert len(elements(router.lab, "sources4")) == 8000


@needs_root
def test_the_daemon_says_who_waits_and_why_and_keeps_who_is_in_over_a_restart(tmp_path: Path) -> None:
    first, second, late = greedy(1, year=2024), greedy(2, year=2024), greedy(3, year=1999)
    with Lab(services=SERVED) as lab, Daemon(lab, tmp_path, extra="[caps]\npinholes_per_namespace = 2\n") as daemon:
        daemon.put(nft(), first, second)
        daemon.start()
        daemon.put(late)
        assert eventually(lambda: daemon.metric("nftsync_rejections", {"reason": "over_cap"}) == 1)
        told_of = daemon.command("explain", f"{at(3)}:80").stdout
        assert "namespace greedy would exceed the cap of 2 (pinholes_per_namespace in [caps]" in told_of
        daemon.stop()
        daemon.start()
        assert [lab.arrives("tcp", at(number), 80) for number in (1, 2, 3)] == [True, True, False]
        daemon.remove(first)
        assert eventually(lambda: lab.arrives("tcp", at(3), 80))
        assert not lab.arrives("tcp", at(1), 80)


def test_seniority_is_a_total_order() -> None:
    by_age = [claim("z", created=OLD), claim("a", created=NEW), claim("b", created=NEW), claim("a", created="")]
    assert sorted([by_age[2], by_age[0], by_age[3], by_age[1]], key=seniority) == by_age
