"""Objects that change without end: people hear of them at once, then in sums, and of all others as before."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from nftsync.objects.names import ObjectRef, Reason
from nftsync.report.damper import CALM, LAST, NAMESPACE, URGENT, Damper
from nftsync.report.events import OBJECT, EventReason, Notice

BURST, INTERVAL = OBJECT
CROWD, PAUSE = NAMESPACE
HOUR = 3600


def service(name: str = "web", namespace: str = "shop", uid: str = "u") -> ObjectRef:
    return ObjectRef("Service", f"{namespace}/{name}", uid)


def opened(about: ObjectRef) -> Notice:
    return Notice(about, EventReason.OPENED, "opened")


def rejected(about: ObjectRef, reason: Reason = Reason.CONFLICT, message: str = "") -> Notice:
    return Notice(about, EventReason.REJECTED, message, warning=True, refusal=reason)


def as_they_are(objects: Collection[ObjectRef]) -> Mapping[tuple[str, str], str]:
    return {(about.kind, about.name): "open: all" for about in objects if about.kind == "Service"}


class Told:
    """What people hear while the clock of a damper runs."""

    def __init__(self) -> None:
        self.damper = Damper()
        self.now = 1000.0
        self.at_once: list[Notice] = []
        self.sums: list[Notice] = []

    def says(self, *notices: Notice) -> int:
        """The number of these that people hear at once."""
        heard = [said for each in notices if (said := self.damper.let(each, self.now))]
        self.at_once += heard
        return len(heard)

    def passes(self, seconds: float, *each_second: Notice) -> None:
        """Let time pass: these come every second."""
        for _ in range(int(seconds)):
            self.now += 1
            self.says(*each_second)
            self.sums += self.damper.summaries(self.now, as_they_are)


@pytest.fixture
def told() -> Told:
    return Told()


def test_a_few_changes_are_told_one_by_one_and_never_summed_up(told: Told) -> None:
    for _ in range(10):
        told.passes(600, opened(service()), opened(service()))
        told.passes(2 * HOUR)
        told.at_once.clear()
        assert told.says(*[opened(service())] * 20) == 20
        told.sums.clear()
        told.passes(2 * HOUR)
        assert not told.sums


def test_a_hundred_changes_a_second_for_an_hour_are_25_notices_and_one_in_five_minutes(told: Told) -> None:
    told.passes(HOUR, *[opened(service())] * 100)
    assert len(told.at_once) == BURST - 1
    assert len(told.sums) <= HOUR / INTERVAL
    assert {each.topic for each in told.sums} == {EventReason.FLAPPING}


@pytest.mark.parametrize("period", [2, 31, 45, 120])
def test_slow_flapping_is_bounded_as_well(told: Told, period: int) -> None:
    for _ in range(12 * HOUR // period):
        told.passes(period)
        told.says(opened(service()))
    assert len(told.at_once) + len(told.sums) <= BURST + 12 * HOUR / INTERVAL


def test_when_it_is_calm_its_final_state_and_the_number_of_all_held_notices_are_told_once(told: Told) -> None:
    told.passes(100, *[opened(service())] * 10)
    told.passes(CALM + 1)
    [final] = told.sums
    assert final.topic is EventReason.SETTLED
    assert final.about == service()
    assert final.message == "has settled: 976 notices held back within 127 s; now: open: all"
    told.passes(24 * HOUR)
    assert told.sums == [final]
    assert told.damper.flapping == 0


def test_the_last_notice_before_the_silence_says_that_sums_follow(told: Told) -> None:
    told.says(*[opened(service())] * 100)
    *before, last = [each.message for each in told.at_once]
    assert set(before) == {"opened"}
    assert last == "opened (it changes often: its next changes are told in sums)"


def test_the_numbers_of_all_summaries_add_up(told: Told) -> None:
    told.passes(HOUR, *[opened(service())] * 7)
    told.passes(CALM + 1)
    assert len(told.at_once) + sum(map(_number, told.sums)) == HOUR * 7


def _number(summary: Notice) -> int:
    return int(summary.message.partition(": ")[2].split()[0])


def test_an_object_that_is_deleted_and_made_again_is_the_same_one(told: Told) -> None:
    heard = sum(told.says(opened(service(uid=f"u{number}"))) for number in range(1000))
    assert heard == BURST - 1
    told.passes(CALM + 1)
    assert [each.about for each in told.sums] == [service(uid="u999")]


def test_the_first_rejection_of_each_reason_is_told_at_once_though_the_object_flaps(told: Told) -> None:
    told.says(*[opened(service())] * 1000)
    assert told.says(rejected(service())) == 1
    assert told.says(*[rejected(service(), message=str(number)) for number in range(1000)]) == 0
    assert told.says(rejected(service(), Reason.OUTSIDE_POOLS)) == 1
    assert told.says(rejected(service("other"))) == 1


def test_a_flapping_object_silences_no_other_one(told: Told) -> None:
    told.passes(HOUR, *[opened(service())] * 100)
    assert told.says(opened(service("quiet")), opened(service("quiet", "elsewhere"))) == 2


def test_objects_of_ever_new_names_are_bounded_by_their_namespace_and_nobody_elses(told: Told) -> None:
    for number in range(20 * HOUR):
        if number % 20 == 0:
            told.passes(1)
        told.says(opened(service(f"s{number}")))
    assert len(told.at_once) + len(told.sums) <= CROWD + HOUR / PAUSE
    assert {str(each.about) for each in told.sums} == {"Namespace shop"}
    assert len(told.sums) <= HOUR / INTERVAL + 1
    assert told.says(opened(service("quiet", "elsewhere"))) == 1
    assert told.says(rejected(service("new"))) == 1, "a part of the namespace's share is for warnings"


def test_rejected_objects_of_ever_new_names_leave_room_for_the_summary(told: Told) -> None:
    for number in range(10_000):
        told.says(rejected(service(f"s{number}")))
    assert len(told.at_once) == CROWD - LAST
    told.passes(CALM + 1)
    assert [_number(each) for each in told.sums] == [10_000 - (CROWD - LAST)]


def test_a_thousand_new_services_with_five_hundred_rejections_are_all_told(told: Told) -> None:
    warnings = [rejected(service(f"bad{number}")) for number in range(500)]
    assert told.says(*warnings, *(opened(service(f"s{number}")) for number in range(1000))) == 1500
    assert CROWD - URGENT >= 1500


def test_the_memory_is_bounded_whatever_flaps(told: Told) -> None:
    for number in range(30_000):
        told.says(*[opened(service(f"s{number % 300}", f"n{number // 300}"))] * 30)
    assert told.damper.flapping <= 4096 + 100
    assert told.damper._objects.cache_info().currsize <= 4096
    assert told.damper._namespaces.cache_info().currsize <= 4096


def test_files_and_the_router_have_a_share_of_their_own(told: Told) -> None:
    file = Notice(ObjectRef("File", "/etc/x"), EventReason.LOCAL_CHAIN_REFUSED, "x", warning=True)
    assert told.says(*[file] * 100) == BURST, "the first one is urgent and costs no token of the file"
    assert told.says(Notice(None, EventReason.MANAGEMENT_CUT, "x", warning=True)) == 1
