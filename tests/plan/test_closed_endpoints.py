"""Which endpoints count as closed, for how long, and how they come back from the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftsync.objects.names import Name
from nftsync.plan import closed as module
from nftsync.plan.closed import OLD, Closing, closing, cut, is_key, old
from nftsync.plan.memory import Memory, closing_records, replay
from nftsync.policy.pinholes import Pinhole

KEYS = [f"192.0.2.{number} . tcp . 80" for number in range(1, 9)]
A, B, C, D = KEYS[:4]
NOW = 1_800_000_000

key_sets = st.frozensets(st.sampled_from(KEYS))


def after(closed: Mapping[str, int], change: Closing) -> dict[str, int]:
    result = dict(closed)
    change.apply(result)
    return result


def test_what_was_open_and_is_not_any_more_is_closed_until_it_is_open_again() -> None:
    held = after({}, closing({}, [A, B], [B, C], NOW))
    assert held == {A: NOW}
    held = after(held, closing(held, [B, C], [B], NOW + 1))
    assert held == {A: NOW, C: NOW + 1}
    assert after(held, closing(held, [B], [B, A], NOW + 2)) == {C: NOW + 1}


def test_an_endpoint_that_closes_once_more_is_the_latest() -> None:
    assert list(after({A: 1, B: 2}, closing({A: 1, B: 2}, [A], [], NOW))) == [B, A]


@pytest.mark.parametrize(("age", "idle", "stays"), [(OLD, [A], False), (OLD - 1, [A], True), (OLD + 9, [], True)])
def test_an_endpoint_is_forgotten_only_if_it_is_old_and_no_connection_of_it_is_left(
    age: int,
    idle: list[str],
    stays: bool,  # noqa: FBT001
) -> None:
    held = {A: NOW - age, B: NOW}
    assert (A in after(held, closing(held, [], [], NOW, idle))) is stays
    assert old(held, NOW) == ({A} if age >= OLD else set())


def test_a_clock_that_was_set_back_forgets_nothing() -> None:
    held = {A: NOW}
    assert after(held, closing(held, [], [], NOW - 10 * OLD, [A])) == held


def test_an_idle_endpoint_that_was_never_closed_or_closes_now_is_no_matter() -> None:
    held = {A: NOW - OLD}
    assert after(held, closing(held, [A], [], NOW, [A, B])) == {A: NOW}


def test_over_the_limit_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX", 3)
    held = {A: 1, B: 2, C: 3}
    assert list(after(held, closing(held, [D], [], NOW))) == [B, C, D]
    assert list(after(held, closing(held, [D, A], [], NOW))) == [C, A, D]
    assert list(after(held, closing(held, [D], [A], NOW))) == [B, C, D], "the one that opens makes room"
    assert len(after(held, closing(held, KEYS, [], NOW))) == 3


def test_the_many_endpoints_of_one_address_do_not_crowd_out_the_few_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tenant can change a Service's ports without end."""
    monkeypatch.setattr(module, "MAX", 64)
    few = {f"192.0.2.9 . {protocol} . {port}": 1 for protocol in ("tcp", "udp") for port in (80, 443)}
    held = dict(few)
    for number in range(1000):
        ports = [f"192.0.2.1 . tcp . {number + 1}", f"192.0.2.1 . udp . {number + 1}"]
        held = after(held, closing(held, ports, [], NOW + number))
        assert few.items() <= held.items()
        assert len(held) <= 64
    assert list(held)[-2:] == ports, "of the address with many, the latest stay"
    wide = [f"192.0.2.1 . sctp . {number}" for number in range(1, 1000)]
    held = after(held, closing(held, wide, [], NOW))
    assert few.items() <= held.items()
    assert 63 <= len(held) <= 64


@pytest.mark.parametrize("addresses", [1, 100])
def test_not_each_closing_endpoint_needs_a_look_at_all_of_them(monkeypatch: pytest.MonkeyPatch, addresses: int) -> None:
    monkeypatch.setattr(module, "MAX", 640)
    ranked, rank = list[int](), module._excess

    def counted(keys: Sequence[str]) -> list[str]:
        ranked.append(len(keys))
        return rank(keys)

    monkeypatch.setattr(module, "_excess", counted)
    held = dict[str, int]()
    for number in range(1, 2001):
        key = f"192.0.2.{number % addresses} . tcp . {number}"
        held = after(held, closing(held, [key], [], NOW))
        assert len(held) >= min(number, 630)
        assert key in held
    assert len(ranked) <= 2000 / 10


@given(st.lists(st.tuples(key_sets, key_sets, key_sets), max_size=8))
def test_records_bring_back_what_the_changes_made_and_a_change_can_be_undone(
    steps: list[tuple[frozenset[str], frozenset[str], frozenset[str]]],
) -> None:
    memory, held, when = Memory(), dict[str, int](), NOW
    for before, opened, idle in steps:
        change = closing(held, before, opened, when, idle)
        back = change.undone(held)
        held = after(held, change)
        for record in closing_records(change):
            replay(memory, record)
        assert memory.closed == held
        assert list(memory.closed) == list(held)
        assert held.keys().isdisjoint(opened)
        assert before - opened <= held.keys()
        undone = after(held, back)
        assert undone == after({}, Closing(after({}, Closing(undone))))
        assert after(undone, change) == held
        when += OLD // 2
    whole = Memory()
    for record in closing_records(Closing(held)):
        replay(whole, record)
    assert whole.closed == held


def hole(key: str, sources: tuple[object, ...] | None) -> Pinhole:
    return Pinhole(key, 4, sources, None, Name("shop", "web"))  # type: ignore[arg-type]


@given(st.dictionaries(st.sampled_from(KEYS), st.integers(1, 9)), *2 * [st.tuples(key_sets, key_sets)])
def test_two_changes_that_wait_for_the_disk_are_one(
    held: dict[str, int], first: tuple[frozenset[str], frozenset[str]], second: tuple[frozenset[str], frozenset[str]]
) -> None:
    changes = [
        Closing(dict.fromkeys(sorted(added - forgotten), when), sorted(forgotten))
        for when, (added, forgotten) in ((10, first), (11, second))
    ]
    one = changes[0].then(changes[1])
    assert after(held, one) == after(after(held, changes[0]), changes[1])
    assert not one.added.keys() & set(one.forgotten), "each endpoint is in one record"


def test_connections_end_where_an_endpoint_closes_or_its_sources_change() -> None:
    before = {A: hole(A, None), B: hole(B, ("x",)), C: hole(C, ("x",))}
    now = {A: hole(A, ("y",)), B: hole(B, ("x",)), C: hole(C, None)}
    assert cut([D], before, now) == {D: (), A: ("y",)}


@pytest.mark.parametrize("key", ["192.0.2.1 . tcp . 80", "2001:db8::1 . udp . 65535", "2001:db8::1 . sctp . 1"])
def test_the_key_of_a_pinhole_is_one(key: str) -> None:
    assert is_key(key)
