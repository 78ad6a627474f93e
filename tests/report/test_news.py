"""Notices: the sentences of the log and of Events, bounded whatever happened."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

from nftsync.cluster.outbox import utc_now
from nftsync.objects.names import Name, ObjectRef, Reason, Rejection
from nftsync.objects.ratelimit import RateLimit
from nftsync.plan.result import Change, changes_between, summary
from nftsync.policy.pinholes import Pinhole
from nftsync.report.events import EventQueue, EventReason, Notice, Request, of_changes, of_rejections

WEB = ObjectRef("Service", "shop/web", "uid-web")
LIMIT = RateLimit(1024 * 1024, "second", 0, packets=False)


def pinhole(address: str = "192.0.2.1", port: int = 80, limit: RateLimit | None = None, *sources: str) -> Pinhole:
    version = 6 if ":" in address else 4
    networks = tuple(map(ip_network, sources)) or None
    return Pinhole(f"{address} . tcp . {port}", version, networks, limit, Name("shop", "web"), "uid-web")


def told(*changes: Change) -> list[tuple[EventReason, str]]:
    return [(each.topic, each.message) for each in of_changes(changes)]


def test_opened_and_closed_name_addresses_protocols_and_ports() -> None:
    opened = (pinhole(), pinhole(port=443), pinhole("2001:db8::1"))
    assert told(Change(WEB, opened=opened, closed=(pinhole("192.0.2.9", 25),))) == [
        (EventReason.OPENED, "opened 192.0.2.1 tcp 80, tcp 443; 2001:db8::1 tcp 80"),
        (EventReason.CLOSED, "closed 192.0.2.9 tcp 25"),
    ]


def test_an_egress_limit_is_told_beside_the_other() -> None:
    sending = replace(pinhole(), limit_egress=LIMIT)
    [(_, opened)] = told(Change(WEB, opened=(sending,)))
    assert opened == f"opened 192.0.2.1 tcp 80, each limited to {LIMIT} outwards"
    both = replace(sending, limit=LIMIT)
    [change] = changes_between({sending.key: sending}, {both.key: both})
    [(topic, changed)] = told(change)
    assert topic == EventReason.LIMIT_CHANGED
    assert changed == f"changed 192.0.2.1 tcp 80, each limited to {LIMIT} and to {LIMIT} outwards"
    [change] = changes_between({both.key: both}, {both.key: replace(both, limit_egress=None)})
    assert change.limit_changed


def test_a_limit_is_told_when_it_comes_changes_and_goes() -> None:
    [(_, opened)] = told(Change(WEB, opened=(pinhole(limit=LIMIT),)))
    assert opened == f"opened 192.0.2.1 tcp 80, each limited to {LIMIT}"
    [(topic, changed)] = told(Change(WEB, altered=(pinhole(limit=LIMIT),), limit_changed=True))
    assert (topic, changed) == (EventReason.LIMIT_CHANGED, f"changed 192.0.2.1 tcp 80, each limited to {LIMIT}")
    [(topic, removed)] = told(Change(WEB, altered=(pinhole(),), limit_changed=True))
    assert (topic, removed) == (EventReason.LIMIT_CHANGED, "changed 192.0.2.1 tcp 80, not limited any more")


def test_other_sources_are_told_by_who_may_come_in_now() -> None:
    [(topic, narrowed)] = told(Change(WEB, altered=(pinhole("192.0.2.1", 80, None, "198.51.100.0/24"),)))
    assert (topic, narrowed) == (EventReason.CHANGED, "changed 192.0.2.1 tcp 80: open to 198.51.100.0/24")
    assert told(Change(WEB, altered=(pinhole(),)))[0][1].endswith("open to everybody")
    nobody = Pinhole("192.0.2.1 . tcp . 80", 4, (), None, Name("shop", "web"))
    assert told(Change(WEB, altered=(nobody,)))[0][1].endswith("open to nobody of this address family")


def test_a_change_between_two_states_is_told_to_the_service_that_it_concerns() -> None:
    before = {each.key: each for each in (pinhole(port=80), pinhole(port=81), pinhole(port=82))}
    after = {each.key: each for each in (pinhole(port=80), pinhole(port=81, limit=LIMIT), pinhole(port=83))}
    changes = changes_between(before, after)
    assert summary(changes) == "pinholes: 1 opened, 1 closed, 1 changed"
    assert [(each.about, each.topic) for each in of_changes(changes)] == [
        (WEB, EventReason.OPENED),
        (WEB, EventReason.CLOSED),
        (WEB, EventReason.LIMIT_CHANGED),
    ]


def test_ten_thousand_pinholes_and_sources_are_one_bounded_sentence_and_a_note_that_the_api_takes() -> None:
    """The API counts a note's bytes, not its characters."""
    networks = tuple(ip_network(f"10.{number >> 8}.{number & 255}.0/24") for number in range(10_000))
    many = tuple(
        pinhole(f"2001:db8:aaaa:bbbb:cccc:dddd:eeee:{number // 100:x}", 65000 + number % 100)
        for number in range(10_000)
    )
    shut = Pinhole("192.0.2.1 . tcp . 80", 4, networks, None, Name("shop", "web"), "uid-web")
    news = list(of_changes([Change(WEB, opened=many, closed=many, altered=(shut,))]))
    assert [each.topic for each in news] == [EventReason.OPENED, EventReason.CLOSED, EventReason.CHANGED]
    assert "and 92 more" in news[0].message
    assert news[2].message.endswith("and 9992 more")
    for each in (*news, Notice(WEB, EventReason.REJECTED, "ü" * 5000)):
        assert len(each.message) < 6000
        queue = EventQueue("edge1", utc_now)
        queue.put(each)
        request = queue.next(0.0)
        assert isinstance(request, Request)
        note = str(request.body["note"])
        assert len(note.encode()) <= 1024
        assert note.endswith(("…", "(router edge1)"))


def test_only_rejections_that_came_or_went_are_news() -> None:
    old = Rejection(WEB, Reason.INVALID_RATELIMIT, "ratelimit 'x' is no rate: write e.g. 10 mbytes/second")
    stays = Rejection(WEB, Reason.CONFLICT, "192.0.2.1 tcp 80 belongs to the older Service shop/a")
    new = Rejection(ObjectRef("Nft", "arbf-operators/nft", "u"), Reason.INVALID_SETTINGS, "public_nic 'lo'")
    came, went = of_rejections([old, stays], [stays, new, new])
    assert (came.about, came.topic, came.warning) == (new.object, EventReason.SETTINGS_REFUSED, True)
    assert came.message == "rejected: invalid_settings: public_nic 'lo'"
    assert (went.about, went.topic, went.warning) == (WEB, EventReason.ACCEPTED, False)
    assert went.message.startswith("no longer rejected: invalid_ratelimit: ratelimit 'x'")
    assert list(of_rejections([stays, new], [new, stays])) == []


def test_each_kind_of_refusal_has_its_topic() -> None:
    topics = {
        reason: next(of_rejections([], [Rejection(WEB, reason, "why")])).topic
        for reason in Reason
    }  # fmt: skip
    special = {reason: topic for reason, topic in topics.items() if topic is not EventReason.REJECTED}
    assert special == {
        Reason.INVALID_SETTINGS: EventReason.SETTINGS_REFUSED,
        Reason.MISSING_SETTINGS: EventReason.SETTINGS_REFUSED,
        Reason.INVALID_LOCAL_CHAIN: EventReason.LOCAL_CHAIN_REFUSED,
        Reason.INVALID_POOLS: EventReason.POOLS_REFUSED,
        Reason.REFUSED_BY_METALLB: EventReason.POOLS_REFUSED,
    }
