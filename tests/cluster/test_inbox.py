"""The latest state of each object, and which of them changed since somebody looked."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from nftsync.cluster.cache import Inbox
from nftsync.objects.names import Malformed, Name


@dataclass(frozen=True)
class Thing:
    uid: str
    value: object
    before: object = None


def parse(raw: Any, before: Thing | None) -> Thing | None:
    """Nothing if its value is None; keeps of its former version what it was."""
    if raw["value"] == "broken":
        raise Malformed("its value is broken")
    return None if raw["value"] is None else Thing(raw["metadata"].get("uid", ""), raw["value"])


def thing(name: str, value: object, uid: str = "u1") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "x", "uid": uid}, "value": value}


class Counted:
    """An inbox whose clock ticks once a look, and that counts how often it woke somebody."""

    def __init__(self, parse: Callable[[Any, Thing | None], Thing | None] = parse) -> None:
        self.wakes = 0
        ticks = itertools.count(1)
        self.inbox: Inbox[Thing] = Inbox(parse, self._wake, lambda: float(next(ticks)))

    def _wake(self) -> None:
        self.wakes += 1

    def values(self) -> dict[str, object]:
        return {name.name: found and found.value for name, found in self.inbox.take().objects.items()}


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_a_burst_of_changes_is_one_change_to_the_latest_state(counted: Counted) -> None:
    for number in range(100):
        counted.inbox.put(thing("a", number))
    changes = counted.inbox.take()
    assert changes.objects == {Name("x", "a"): Thing("u1", 99)}
    assert changes.since == 1.0, "when the earliest of them was received"
    assert counted.wakes == 100
    assert counted.values() == {}


def test_since_is_that_of_the_changes_that_were_not_taken_yet(counted: Counted) -> None:
    counted.inbox.put(thing("a", 1))
    counted.inbox.take()
    counted.inbox.put(thing("a", 2))
    counted.inbox.put(thing("a", 3))
    assert counted.inbox.take().since == 2.0


def test_an_object_that_parses_to_what_it_was_did_not_change(counted: Counted) -> None:
    counted.inbox.put(thing("a", 1))
    counted.inbox.take()
    counted.inbox.put(thing("a", 1) | {"status": "changed"})
    assert counted.values() == {}


def test_each_object_is_parsed_with_its_own_former_version() -> None:
    seen = []

    def watching(raw: Any, before: Thing | None) -> Thing | None:
        seen.append(before and before.value)
        return parse(raw, before)

    inbox = Counted(watching).inbox
    for raw in (thing("a", 1), thing("b", 2), thing("a", 3), thing("a", None), thing("a", 4)):
        inbox.put(raw)
    assert seen == [None, None, 1, 3, None]


def test_an_object_that_is_no_longer_ours_is_gone(counted: Counted) -> None:
    counted.inbox.put(thing("a", 1))
    counted.inbox.take()
    counted.inbox.put(thing("a", None))
    assert counted.values() == {"a": None}
    assert counted.inbox.objects() == []
    counted.inbox.put(thing("b", None))
    assert counted.values() == {}


def test_a_deleted_object_is_gone(counted: Counted) -> None:
    counted.inbox.put(thing("a", 1))
    counted.inbox.delete(thing("a", 1))
    assert counted.values() == {"a": None}
    counted.inbox.delete(thing("a", 1))
    assert counted.values() == {}


def test_a_late_message_about_a_former_bearer_of_the_name_changes_nothing(counted: Counted) -> None:
    counted.inbox.put(thing("a", 2, uid="new"))
    counted.inbox.take()
    counted.inbox.delete(thing("a", 1, uid="old"))
    assert counted.values() == {}
    assert [each.value for each in counted.inbox.objects()] == [2]


def test_a_list_replaces_everything_by_difference(counted: Counted) -> None:
    for name, value in (("same", 1), ("changed", 2), ("gone", 3)):
        counted.inbox.put(thing(name, value))
    counted.inbox.take()
    with counted.inbox.listing() as listing:
        for name, value in (("same", 1), ("changed", 20), ("new", 4)):
            listing.put(thing(name, value))
        assert counted.wakes == 3, "nobody is woken for a part of a list"
    assert counted.wakes == 4
    assert counted.values() == {"changed": 20, "gone": None, "new": 4}


def test_only_a_complete_list_makes_it_synced(counted: Counted) -> None:
    counted.inbox.put(thing("a", 1))
    assert not counted.inbox.synced.is_set()
    with suppress(OSError), counted.inbox.listing() as listing:
        listing.put(thing("b", 2))
        raise OSError("cut off")
    assert not counted.inbox.synced.is_set()
    assert sorted(str(each.value) for each in counted.inbox.objects()) == ["1", "2"], "what the rest was is not known: it stays"
    with counted.inbox.listing():
        pass
    assert counted.inbox.synced.is_set()
    assert counted.inbox.objects() == []


def test_a_listed_object_that_can_not_be_parsed_keeps_its_former_version(counted: Counted) -> None:
    counted.inbox.put(thing("a", 1))
    with counted.inbox.listing() as listing:
        with pytest.raises(Malformed):
            listing.put(thing("a", "broken"))
        with pytest.raises(Malformed):
            listing.put({"metadata": {}})
    assert [each.value for each in counted.inbox.objects()] == [1]


@pytest.mark.parametrize("raw", [None, 5, [], {}, {"metadata": {"name": "A"}}])
def test_what_can_not_be_named_is_malformed_and_wakes_nobody(counted: Counted, raw: object) -> None:
    for receive in (counted.inbox.put, counted.inbox.delete):
        with pytest.raises(Malformed):
            receive(raw)
    assert counted.wakes == 0


def test_no_change_is_lost_between_threads() -> None:
    woken = threading.Event()
    inbox: Inbox[Thing] = Inbox(parse, woken.set, lambda: 0.0)
    names, rounds = [f"n{number}" for number in range(4)], 300

    def write(name: str) -> None:
        for number in range(rounds):
            inbox.put(thing(name, number))
            if number % 50 == 7:
                inbox.delete(thing(name, number))
        inbox.put(thing(name, "last"))

    writers = [threading.Thread(target=write, args=(name,)) for name in names]
    seen: dict[Name, object] = {}
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers) or woken.is_set():
        woken.wait(0.01)
        woken.clear()
        seen.update({name: found and found.value for name, found in inbox.take().objects.items()})
    assert seen == {Name("x", name): "last" for name in names}
