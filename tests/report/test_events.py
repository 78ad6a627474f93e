"""Events on their way to the cluster: what is sent, what is counted, and what is too much. Time is simulated."""

from __future__ import annotations

import re
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import pytest

from nftsync.objects.names import ObjectRef
from nftsync.report.events import CONTROLLER, Bucket, EventQueue, EventReason, Notice, Request

NOON = datetime(2026, 1, 2, 12, 0, 0, 123456, UTC)
PATH = "/apis/events.k8s.io/v1/namespaces/shop/events"


def service(name: str = "web", uid: str | None = None) -> ObjectRef:
    return ObjectRef("Service", f"shop/{name}", uid or f"uid-{name}")


def news(
    about: ObjectRef | None = None,
    message: str = "opened",
    topic: EventReason = EventReason.OPENED,
    *,
    warning: bool = False,
) -> Notice:
    return Notice(about or service(), topic, message, warning)


def queue(length: int = 1000) -> EventQueue:
    return EventQueue("edge1", lambda: NOON, length=length)


def send(events: EventQueue, now: float) -> list[Request]:
    """All that goes out at this time, each accepted."""
    sent = []
    while isinstance(due := events.next(now), Request):
        sent.append(due)
        events.sent(now)
    return sent


# --- buckets ------------------------------------------------------------------------------------------


def test_a_bucket_gives_its_burst_then_one_each_interval_and_never_saves_more() -> None:
    bucket = Bucket(25, 300.0, 25, 0.0)
    assert sum(bucket.take(0.0) for _ in range(100)) == 25
    assert bucket.wait() == pytest.approx(300.0)
    assert not bucket.take(299.0)
    assert bucket.take(300.5)
    assert not bucket.take(301.0)
    assert sum(bucket.take(1e9) for _ in range(100)) == 25


def test_all_objects_together_get_five_events_a_second_after_the_first_25_and_none_is_lost() -> None:
    events = queue()
    for number in range(500):
        events.put(news(service(f"s{number}")))
    assert len(send(events, 100.0)) == 25
    wait = events.next(100.0)
    assert wait == pytest.approx(0.2)
    assert sum(len(send(events, 100.0 + tenth / 10)) for tenth in range(1, 101)) in (49, 50, 51)
    assert events.dropped == 0


def test_trying_again_costs_no_token() -> None:
    """Else an API server that is away for a minute would cost the Events of the next one."""
    events = queue()
    events.put(news())
    first = events.next(0.0)
    assert isinstance(first, Request)
    again = [events.next(float(second)) for second in range(1, 200)]
    assert {each.method for each in again if isinstance(each, Request)} == {"POST"}
    assert len(send(events, 200.0)) == 1


# --- the queue ----------------------------------------------------------------------------------------


def test_the_queue_drops_its_oldest_and_counts_them() -> None:
    events = queue(length=10)
    for number in range(25):
        events.put(news(service(f"s{number}"), message=f"number {number}"))
    assert (len(events), events.dropped) == (10, 15)
    names = [request.body["regarding"]["name"] for request in send(events, 0.0)]  # type: ignore[index]
    assert names == [f"s{number}" for number in range(15, 25)]


def test_what_somebody_has_to_mend_is_dropped_last_and_nothing_is_sent_out_of_turn() -> None:
    events = queue(length=4)
    for number in range(9):
        events.put(news(service(f"s{number}"), warning=number in (1, 4)))
    assert (len(events), events.dropped) == (4, 5)
    assert [each.body["regarding"]["name"] for each in send(events, 0.0)] == ["s1", "s4", "s7", "s8"]  # type: ignore[index]
    for number in range(9):
        events.put(news(service(f"w{number}"), warning=True))
    assert [each.body["regarding"]["name"] for each in send(events, 1.0)] == ["w5", "w6", "w7", "w8"]  # type: ignore[index]


def test_news_that_come_while_one_is_sent_push_out_another_one() -> None:
    """The lock is free while a request is on its way: what was accepted then is what was sent."""
    events = queue(length=3)
    events.put(news(service("first")))
    assert isinstance(events.next(0.0), Request)
    for number in range(5):
        events.put(news(service(f"s{number}")))
    events.sent(0.0)
    assert events.dropped == 2
    assert [each.body["regarding"]["name"] for each in send(events, 0.0)] == ["s2", "s3", "s4"]  # type: ignore[index]
    events.put(news(service("first")))
    [counted] = send(events, 1.0)
    assert counted.method == "PATCH", "the first one was counted as sent"


def test_what_the_server_never_takes_goes_alone_and_what_it_takes_from_nobody_goes_with_all() -> None:
    events = queue()
    for number in range(4):
        events.put(news(service(f"s{number}")))
    assert isinstance(events.next(0.0), Request)
    events.drop()
    assert (len(events), events.dropped) == (3, 1)
    [following, *_] = send(events, 0.0)
    assert following.body["regarding"]["name"] == "s1"  # type: ignore[index]
    for number in range(4):
        events.put(news(service(f"t{number}")))
    assert isinstance(events.next(0.0), Request)
    events.clear()
    assert (len(events), events.dropped, events.next(0.0)) == (0, 5, float("inf"))


@pytest.mark.parametrize(
    "about",
    [
        None,
        ObjectRef("File", "/etc/nftables.d/local-chain.nft"),
        ObjectRef("Nft", "arbf-operators/nft"),
        ObjectRef("Pod", "shop/x", "u"),
    ],
)
def test_what_no_event_can_be_about_makes_none(about: ObjectRef | None) -> None:
    """A file, the router itself, an object that is gone, or a kind that we know nothing of."""
    events = queue()
    events.put(Notice(about, EventReason.REJECTED, "x", warning=True))
    assert (len(events), events.dropped, events.next(0.0)) == (0, 0, float("inf"))


# --- the Event ----------------------------------------------------------------------------------------


def test_an_event_says_all_that_the_api_requires() -> None:
    events = queue()
    events.put(news(message="rejected: invalid_ratelimit: x", topic=EventReason.REJECTED, warning=True))
    [request] = send(events, 0.0)
    assert (request.method, request.path, request.content_type) == ("POST", PATH, "application/json")
    body: Any = request.body
    assert re.fullmatch(r"web\.[0-9a-f]{16}", body["metadata"].pop("name"))
    assert body == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": "shop"},
        "eventTime": "2026-01-02T12:00:00.123456Z",
        "reportingController": CONTROLLER,
        "reportingInstance": "edge1",
        "action": "Evaluate",
        "reason": "Rejected",
        "type": "Warning",
        "note": "rejected: invalid_ratelimit: x (router edge1)",
        "regarding": {"apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web", "uid": "uid-web"},
    }


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("Nft", "nft.acnodal.com/v1alpha1"),
        ("ConfigMap", "v1"),
        ("IPAddressPool", "metallb.io/v1beta1"),
        ("BGPPeer", "metallb.io/v1beta2"),
    ],
)
def test_an_event_names_the_api_version_of_its_object(kind: str, version: str) -> None:
    events = queue()
    events.put(news(ObjectRef(kind, "shop/x", "u")))
    [request] = send(events, 0.0)
    assert request.body["regarding"]["apiVersion"] == version  # type: ignore[index]


@pytest.mark.parametrize(
    "message", ["x" * 5000, "ü" * 5000, "🧱" * 5000, "x" * 1020 + "🧱"], ids=["ascii", "two", "four", "last"]
)
def test_a_note_has_at_most_1024_bytes_and_no_half_character(message: str) -> None:
    events = EventQueue("r" * 300, lambda: NOON)
    events.put(news(message=message))
    [request] = send(events, 0.0)
    note = str(request.body["note"])
    assert 1010 <= len(note.encode()) <= 1024
    assert note.endswith("…")
    assert note[:-1] == message[: len(note) - 1]
    assert len(str(request.body["reportingInstance"]).encode()) <= 128


@pytest.mark.parametrize(
    "name", ["p" * 253, "p" * 235 + "-" + "p" * 17, "p" * 236 + "." + "p" * 16], ids=["long", "dash", "dot"]
)
def test_the_name_of_an_event_is_one_that_the_api_takes_however_long_the_objects_is(name: str) -> None:
    events = queue()
    events.put(news(ObjectRef("IPAddressPool", f"metallb-system/{name}", "u")))
    [request] = send(events, 0.0)
    made = str(request.body["metadata"]["name"])  # type: ignore[index]
    assert len(made) <= 253
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", made)


# --- series -------------------------------------------------------------------------------------------


def test_the_same_news_within_360_seconds_count_on_and_afterwards_make_a_new_event() -> None:
    events = queue()
    steps = [0.0, 350.0, 700.0, 1050.0, 1411.0, 1412.0]
    requests = []
    for now in steps:
        events.put(news())
        requests.extend(send(events, now))
    assert [each.method for each in requests] == ["POST", "PATCH", "PATCH", "PATCH", "POST", "PATCH"]
    first = f"{PATH}/{requests[0].body['metadata']['name']}"  # type: ignore[index]
    assert {each.path for each in requests[1:4]} == {first}
    assert requests[2].content_type == "application/merge-patch+json"
    assert requests[2].body == {"series": {"count": 3, "lastObservedTime": "2026-01-02T12:00:00.123456Z"}}
    second = f"{PATH}/{requests[4].body['metadata']['name']}"  # type: ignore[index]
    assert requests[5].path == second != first
    assert requests[5].body["series"]["count"] == 2  # type: ignore[index]


def test_other_words_another_topic_or_an_object_made_anew_are_other_events() -> None:
    events = queue()
    for each in (news(), news(message="other"), news(topic=EventReason.CLOSED), news(service(uid="new"))):
        events.put(each)
    assert [each.method for each in send(events, 0.0)] == ["POST"] * 4


def test_an_event_that_was_never_accepted_is_no_series() -> None:
    events = queue()
    events.put(news())
    assert isinstance(events.next(0.0), Request)
    [request] = send(events, 1.0)
    assert request.method == "POST"


def test_an_event_that_is_gone_begins_anew() -> None:
    """Events live an hour, and anybody may delete them."""
    events = queue()
    events.put(news())
    send(events, 0.0)
    events.put(news())
    patch = events.next(10.0)
    assert isinstance(patch, Request)
    assert patch.method == "PATCH"
    events.begin_anew()
    [post] = send(events, 10.0)
    assert post.method == "POST"
    events.put(news())
    [counted] = send(events, 20.0)
    assert counted.path == f"{PATH}/{post.body['metadata']['name']}"  # type: ignore[index]


def test_memory_is_bounded_whatever_the_number_of_objects() -> None:
    events = queue()

    def flood(first: int) -> int:
        for number in range(first, first + 50_000):
            events.put(news(service(f"s{number}")))
            due = events.next(number * 0.2)
            if isinstance(due, Request):
                events.sent(number * 0.2)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        once, twice = flood(0), flood(50_000)
    finally:
        tracemalloc.stop()
    assert events.dropped == 0
    assert twice < once * 1.1
    assert twice < 16 << 20
