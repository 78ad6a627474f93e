"""Over the caps new Services are refused as a whole, and nobody who is in loses anything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftsync.caps import Caps, Room
from nftsync.desired import Desired, Filters
from nftsync.explain import Cause
from nftsync.lab import Lab
from nftsync.objects import Name, Port, Protocol, Reason, Service, parse_service
from tests.labtools import Daemon, eventually, needs_root, nft, service

SMALL = Caps(pinholes=10, pinholes_per_namespace=6)


def asked(name: str, ports: int, namespace: str = "default", created: int = 0) -> Service:
    raw: Any = service(name, f"172.30.254.{sum(map(ord, name)) % 200}", ports=[("TCP", 1000 + each) for each in range(ports)])
    raw["metadata"]["namespace"] = namespace
    raw["metadata"]["creationTimestamp"] = f"2024-01-01T00:{created:02}:00Z"
    parsed = parse_service(raw, None)
    assert parsed
    return parsed


def put(desired: Desired, *services: Service) -> None:
    for each in services:
        desired.put(each.name, each)


def counts(desired: Desired) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in desired.pinholes.values():
        found[each.service.name] = found.get(each.service.name, 0) + 1
    return found


def refused(desired: Desired) -> set[str]:
    return {str(each.object.name).split("/")[1] for each in desired.rejections() if each.reason is Reason.OVER_CAP}


def test_room_is_counted_by_namespace_and_in_all() -> None:
    room = Room(SMALL)
    assert room.take("a", 6)
    assert "the namespace a may have 6 pinholes" in room.cap_for("a", 1)
    assert not room.take("a", 1)
    assert room.take("b", 4)
    assert "there may be 10 pinholes" in room.cap_for("c", 1)
    assert not room.take("c", 1)
    assert room.take("a", 0)
    assert room.take("a", -1)
    assert room.take("c", 1)


def test_zero_is_as_many_as_are_asked_for() -> None:
    room = Room(Caps(0, 0))
    assert room.take("a", 10**9)


def test_who_comes_too_late_opens_nothing_and_is_told_and_others_stay() -> None:
    desired = Desired(Filters(), caps=SMALL)
    put(desired, asked("a", 4, created=9), asked("b", 3, created=1), asked("c", 2, created=5))
    assert counts(desired) == {"a": 4, "c": 2}
    assert refused(desired) == {"b"}
    (told,) = (each for each in desired.rejections() if each.reason is Reason.OVER_CAP)
    assert told.message == (
        "the namespace default may have 6 pinholes (pinholes_per_namespace), and with this Service there would be more; "
        "it opens nothing until there is room"
    )
    put(desired, asked("d", 4, namespace="other"), asked("e", 1, namespace="third"))
    assert counts(desired) == {"a": 4, "c": 2, "d": 4}
    assert refused(desired) == {"b", "e"}


def test_when_others_go_the_oldest_who_fit_come_in() -> None:
    desired = Desired(Filters(), caps=SMALL)
    put(desired, asked("a", 4), asked("b", 2))
    put(desired, asked("young", 2, created=9), asked("old", 3, created=1), asked("oldest", 5, created=0))
    assert refused(desired) == {"young", "old", "oldest"}
    changed = set(desired.put(Name("default", "a"), None))
    assert counts(desired) == {"b": 2, "old": 3}
    assert {key.split(" . ")[0] for key in changed} >= {str(asked("old", 3).addresses[0])}
    desired.put(Name("default", "b"), None)
    assert counts(desired) == {"old": 3, "young": 2}
    desired.put(Name("default", "oldest"), None)
    assert refused(desired) == set()


def test_who_wants_more_than_there_is_keeps_what_it_had() -> None:
    desired = Desired(Filters(), caps=SMALL)
    put(desired, asked("a", 3), asked("b", 3), asked("a", 4))
    assert counts(desired) == {"a": 3, "b": 3}
    assert refused(desired) == {"a"}
    assert any("what was open of it before stays" in each.message for each in desired.rejections())
    put(desired, asked("a", 2))
    assert counts(desired) == {"a": 2, "b": 3}
    assert refused(desired) == set()


names = st.sampled_from(["a", "b", "c", "d", "e"])
steps = st.lists(st.tuples(names, st.sampled_from(["x", "y"]), st.integers(0, 5), st.integers(0, 9)), max_size=30)


@given(steps)
def test_after_any_changes_the_caps_hold_and_who_is_in_is_in_when_all_is_computed_anew(changes: Any) -> None:
    desired, present = Desired(Filters(), caps=SMALL), dict[Name, Service]()
    for name, namespace, ports, created in changes:
        key = Name(namespace, name)
        if ports:
            present[key] = asked(name, ports, namespace, created)
        else:
            present.pop(key, None)
        before = set(desired.pinholes)
        desired.put(key, present.get(key))
        lost = before - desired.pinholes.keys()
        mine = {f"{asked(name, 5, namespace).addresses[0]} . tcp . {1000 + each}" for each in range(5)}
        assert lost <= mine, "nobody else loses anything"
        of_namespace = [sum(len(each.ports) for each in desired.services if each.name.namespace == one) for one in ("x", "y")]
        assert max(of_namespace) <= SMALL.pinholes_per_namespace
        assert sum(of_namespace) <= SMALL.pinholes
        anew = Desired.of(present.values(), Filters(), caps=SMALL, before=desired)
        assert anew.pinholes == desired.pinholes
        assert set(anew.rejections()) == set(desired.rejections())


def test_from_scratch_the_oldest_come_first() -> None:
    services = [asked(name, 3, created=created) for created, name in enumerate("dcba")]
    assert counts(Desired.of(reversed(services), Filters(), caps=SMALL)) == {"d": 3, "c": 3}


# --- through the daemon -------------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Lab() as lab, Daemon(lab, tmp_path, interval=1, extra="[caps]\npinholes_per_namespace = 5\n") as made:
        made.put(nft(), *(service(f"s{number}", f"172.30.254.{number}") for number in range(1, 6)))
        yield made


@needs_root
def test_one_namespace_does_not_take_the_room_of_another(daemon: Daemon) -> None:
    daemon.start()
    late = service("late", "172.30.254.50")
    other: Any = service("other", "172.30.254.60")
    other["metadata"]["namespace"] = "elsewhere"
    daemon.put(late, other)
    assert eventually(lambda: daemon.lab.arrives("tcp", "172.30.254.60", 80))
    assert eventually(lambda: daemon.metric("nftsync_rejections", {"reason": "over_cap"}) == 1)
    assert not daemon.lab.arrives("tcp", "172.30.254.50", 80)
    assert daemon.lab.arrives("tcp", "172.30.254.5", 80)
    told = daemon.command("explain", "172.30.254.50:80")
    assert "the namespace default may have 5 pinholes" in told.stdout
    assert Cause.OVER_CAP in daemon.command("explain", "--json", "172.30.254.50:80").stdout
    time.sleep(1.5)  # a resync changes nothing of it
    assert daemon.lab.arrives("tcp", "172.30.254.5", 80)
    daemon.remove(service("s3", "172.30.254.3"))
    assert eventually(lambda: daemon.lab.arrives("tcp", "172.30.254.50", 80))
    assert not daemon.lab.arrives("tcp", "172.30.254.3", 80)


def test_twenty_thousand_of_one_namespace_leave_room_for_others() -> None:
    caps = Caps(pinholes=20_000, pinholes_per_namespace=15_000)
    one = asked("a", 1)
    many = [
        replace(one, name=Name("greedy", f"s{number}"), uid=f"u{number}", ports=(Port(Protocol.TCP, 1 + number),))
        for number in range(20_000)
    ]
    began = time.monotonic()
    desired = Desired(Filters(), caps=caps)
    put(desired, *many, *(asked(f"n{number}", 5, namespace="modest") for number in range(10)))
    print(f"20,000 Services of one namespace: {time.monotonic() - began:.2f} s")
    assert sum(each.name.namespace == "greedy" for each in desired.services) == 15_000
    assert sum(each.name.namespace == "modest" for each in desired.services) == 10
