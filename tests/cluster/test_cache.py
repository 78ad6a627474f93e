"""The latest state of each object, and which of them changed since somebody looked."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from nftsync.cluster.cache import ObjectCache
from nftsync.objects.names import Malformed, Name
from tests.labtools import PATIENCE


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
    """A cache whose clock ticks once a look, and that counts how often it woke somebody."""

    def __init__(self, parse: Callable[[Any, Thing | None], Thing | None] = parse) -> None:
        self.wakes = 0
        ticks = itertools.count(1)
        self.cache: ObjectCache[Thing] = ObjectCache(parse, self._wake, lambda: float(next(ticks)))

    def _wake(self) -> None:
        self.wakes += 1

    def values(self) -> dict[str, object]:
        return {name.name: found and found.value for name, found in self.cache.drain().objects.items()}


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_a_burst_of_changes_is_one_change_to_the_latest_state(counted: Counted) -> None:
    for number in range(100):
        counted.cache.put(thing("a", number))
    changes = counted.cache.drain()
    assert changes.objects == {Name("x", "a"): Thing("u1", 99)}
    assert changes.since == 1.0, "when the earliest of them was received"
    assert counted.wakes == 100
    assert counted.values() == {}


def test_since_is_that_of_the_changes_that_were_not_taken_yet(counted: Counted) -> None:
    counted.cache.put(thing("a", 1))
    counted.cache.drain()
    counted.cache.put(thing("a", 2))
    counted.cache.put(thing("a", 3))
    assert counted.cache.drain().since == 2.0


def test_an_object_that_parses_to_what_it_was_did_not_change(counted: Counted) -> None:
    counted.cache.put(thing("a", 1))
    counted.cache.drain()
    counted.cache.put(thing("a", 1) | {"status": "changed"})
    assert counted.values() == {}


def test_each_object_is_parsed_with_its_own_former_version() -> None:
    seen = []

    def watching(raw: Any, before: Thing | None) -> Thing | None:
        seen.append(before and before.value)
        return parse(raw, before)

    cache = Counted(watching).cache
    for raw in (thing("a", 1), thing("b", 2), thing("a", 3), thing("a", None), thing("a", 4)):
        cache.put(raw)
    assert seen == [None, None, 1, 3, None]


def test_an_object_that_is_no_longer_ours_is_gone(counted: Counted) -> None:
    counted.cache.put(thing("a", 1))
    counted.cache.drain()
    counted.cache.put(thing("a", None))
    assert counted.values() == {"a": None}
    assert counted.cache.objects() == []
    counted.cache.put(thing("b", None))
    assert counted.values() == {}


def test_a_deleted_object_is_gone(counted: Counted) -> None:
    counted.cache.put(thing("a", 1))
    counted.cache.delete(thing("a", 1))
    assert counted.values() == {"a": None}
    counted.cache.delete(thing("a", 1))
    assert counted.values() == {}


def test_a_late_message_about_a_former_bearer_of_the_name_changes_nothing(counted: Counted) -> None:
    counted.cache.put(thing("a", 2, uid="new"))
    counted.cache.drain()
    counted.cache.delete(thing("a", 1, uid="old"))
    assert counted.values() == {}
    assert [each.value for each in counted.cache.objects()] == [2]


def test_a_list_replaces_everything_by_difference(counted: Counted) -> None:
    for name, value in (("same", 1), ("changed", 2), ("gone", 3)):
        counted.cache.put(thing(name, value))
    counted.cache.drain()
    with counted.cache.relist() as relist:
        for name, value in (("same", 1), ("changed", 20), ("new", 4)):
            relist.put(thing(name, value))
        assert counted.wakes == 3, "nobody is woken for a part of a list"
    assert counted.wakes == 4
    assert counted.values() == {"changed": 20, "gone": None, "new": 4}


def test_only_a_complete_list_makes_it_synced(counted: Counted) -> None:
    counted.cache.put(thing("a", 1))
    assert not counted.cache.synced.is_set()
    with suppress(OSError), counted.cache.relist() as relist:
        relist.put(thing("b", 2))
        raise OSError("cut off")
    assert not counted.cache.synced.is_set()
    assert sorted(str(each.value) for each in counted.cache.objects()) == [
        "1",
        "2",
    ], "what the rest was is not known: it stays"
    with counted.cache.relist():
        pass
    assert counted.cache.synced.is_set()
    assert counted.cache.objects() == []


def test_a_listed_object_that_can_not_be_parsed_keeps_its_former_version(counted: Counted) -> None:
    counted.cache.put(thing("a", 1))
    with counted.cache.relist() as relist:
        with pytest.raises(Malformed):
            relist.put(thing("a", "broken"))
        with pytest.raises(Malformed):
            relist.put({"metadata": {}})
    assert [each.value for each in counted.cache.objects()] == [1]


@pytest.mark.parametrize("raw", [None, 5, [], {}, {"metadata": {"name": "A"}}])
def test_what_can_not_be_named_is_malformed_and_wakes_nobody(counted: Counted, raw: object) -> None:
    for receive in (counted.cache.put, counted.cache.delete):
        with pytest.raises(Malformed):
            receive(raw)
    assert counted.wakes == 0


def test_no_change_is_lost_between_threads() -> None:
    woken = threading.Event()
    cache: ObjectCache[Thing] = ObjectCache(parse, woken.set, lambda: 0.0)
    names, rounds = [f"n{number}" for number in range(4)], 300

    def write(name: str) -> None:
        for number in range(rounds):
            cache.put(thing(name, number))
            if number % 50 == 7:
                cache.delete(thing(name, number))
        cache.put(thing(name, "last"))

    writers = [threading.Thread(target=write, args=(name,)) for name in names]
    seen: dict[Name, object] = {}
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers) or woken.is_set():
        woken.wait(0.01)
        woken.clear()
        seen.update({name: found and found.value for name, found in cache.drain().objects.items()})
    assert seen == {Name("x", name): "last" for name in names}


def test_a_reader_does_not_wait_while_a_large_object_is_parsed() -> None:
    parsing, read = threading.Event(), threading.Event()

    def slow(raw: Any, before: Thing | None) -> Thing | None:
        parsing.set()
        assert read.wait(PATIENCE)
        return parse(raw, before)

    cache: ObjectCache[Thing] = ObjectCache(slow)
    writer = threading.Thread(target=cache.put, args=(thing("a", 1),))
    writer.start()
    assert parsing.wait(PATIENCE)

    def look() -> None:
        assert cache.objects() == []
        read.set()

    threading.Thread(target=look, daemon=True).start()
    writer.join()
    assert [each.value for each in cache.objects()] == [1]
