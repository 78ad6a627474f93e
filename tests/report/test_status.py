"""The Nft's status as a value: conditions, their summary over several routers, and the way to the API and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nftsync.objects.metallb import MetalLBConfig
from nftsync.objects.nft import Condition, Confirmation, Figures, NftStatus, RouterStatus, parse_status
from nftsync.plan.result import Outcome, SyncResult
from nftsync.policy.confirm import Confirming
from nftsync.report.conditions import conditions as conditions_of
from nftsync.report.conditions import describe, stamped, stopped, summary
from nftsync.ruleset.settings import Settings
from tests.report.views import standing
from tests.support import json_values, side

GOOD = standing()
NOW = "2026-01-02T03:04:05Z"
EARLIER = "2026-01-01T00:00:00Z"


def router(name: str = "edge1", conditions: tuple[Condition, ...] = GOOD, **fields: Any) -> RouterStatus:
    return RouterStatus(
        name, **{"version": "1.0", "generation": 1, "hash": "aa" * 16, "conditions": conditions, **fields}
    )


def by_type(conditions: tuple[Condition, ...]) -> dict[str, Condition]:
    assert len({each.type for each in conditions}) == len(conditions), "a type stands twice"
    return {each.type: each for each in conditions}


def test_a_router_in_order_has_these_conditions() -> None:
    assert {each.type: each.holds for each in GOOD} == {
        "Ready": True,
        "Running": True,
        "PoolsGuarded": True,
        "PublicInterfaces": True,
        "RateShaping": True,
        "LocalChainValid": True,
        "Confirmed": True,
        "Stale": False,
    }
    assert all(each.reason.isalpha() and each.message for each in GOOD)


def test_what_is_wrong_stands_in_the_message_and_the_reason_is_one_word() -> None:
    stale = {"settings": "y", "pools": "x"}
    found = by_type(
        standing("the kernel says no", pools=None, nic_missing=True, local_chain="line 3: syntax error", stale=stale)
    )
    assert [
        found[kind].holds
        for kind in ("Ready", "PoolsGuarded", "PublicInterfaces", "RateShaping", "LocalChainValid", "Stale")
    ] == [False] * 5 + [True]
    assert found["Ready"].message == "the kernel says no"
    assert found["PoolsGuarded"].message == "no MetalLB configuration was seen"
    absence = "enp9s0 is not there: every interface counts as public, and no ingress limit is in force"
    assert found["RateShaping"].message == absence
    assert absence in found["PublicInterfaces"].message
    assert found["LocalChainValid"].message == "line 3: syntax error"
    assert found["Stale"].message == "pools: x; settings: y"
    assert {each.reason for each in found.values()} == {
        "NotSynced", "Running", "Unguarded", "NicMissing", "NotAttached", "Refused", "NotNeeded", "LastGoodHolds",
    }  # fmt: skip


def test_limits_that_the_kernel_refuses_are_not_a_fault_of_the_interfaces() -> None:
    settings = Settings(side("enp1s0"), enable_rateshape=True, limits_refused=True)
    told = by_type(conditions_of(SyncResult(Outcome.FAILED, "no", settings=settings), {}))
    assert not told["RateShaping"].holds
    assert told["RateShaping"].message == "the kernel refuses the rate limits; the earlier ones stay"
    assert told["PublicInterfaces"].holds


@pytest.mark.parametrize("state", Confirmation)
def test_settings_that_wait_or_were_taken_back_are_not_confirmed(state: Confirmation) -> None:
    found = by_type(standing(confirming=Confirming(state=state, cut="enable_ssh was switched off")))["Confirmed"]
    assert found.holds == (state in (Confirmation.NOT_NEEDED, Confirmation.CONFIRMED))
    assert found.reason == state
    assert found.message.startswith("enable_ssh was switched off")


def test_a_router_whose_daemon_was_stopped_is_neither_ready_nor_running_and_its_ruleset_is_as_it_was() -> None:
    before = router(conditions=standing(nic_missing=True, stale={"pools": "x"}), services=3, pinholes=5)
    after = stopped(before)
    assert replace(after, conditions=()) == replace(before, conditions=())
    turned = {each.type: each for each in after.conditions if each not in before.conditions}
    assert {kind: (each.holds, each.reason) for kind, each in turned.items()} == {
        "Ready": (False, "Stopped"), "Running": (False, "Stopped"),
    }  # fmt: skip
    assert all("its last ruleset stays" in each.message for each in turned.values())
    assert [each.type for each in after.conditions] == [each.type for each in before.conditions]


def test_to_be_guarded_by_no_pool_is_told_apart_from_being_guarded_and_from_not_being() -> None:
    found = {
        (each.holds, each.reason)
        for told in (standing(), standing(pools=MetalLBConfig()), standing(pools=None))
        for each in told
        if each.type == "PoolsGuarded"
    }
    assert found == {(True, "Guarded"), (True, "NoPools"), (False, "Unguarded")}


@pytest.mark.parametrize("long", ["x" * 100_000, "ü" * 10_000])
def test_messages_are_bounded_however_much_is_wrong(long: str) -> None:
    """Also where sixty-four routers say something long."""
    stale = {f"source {number}": long for number in range(100)}
    confirming = Confirming(state=Confirmation.WAITING, cut=long)
    told = standing(long, pools=None, nic_missing=True, local_chain=long, stale=stale, confirming=confirming)
    together = summary([router(f"edge{number}", told, hash=f"{number:032}") for number in range(64)], disagree=True)
    for each in (*told, *together):
        assert len(each.message) <= 512
        ours = each.type in ("PoolsGuarded", "PublicInterfaces", "RateShaping") and each in told
        assert each.type == "Running" or ours or each.message.endswith("…")


# --- all routers together -----------------------------------------------------------------------------


def test_what_holds_on_every_router_holds_together() -> None:
    together = by_type(summary([router("edge1"), router("edge2")], disagree=False))
    assert list(together) == [*(each.type for each in GOOD), "RoutersAgree"]
    assert {kind: each.holds for kind, each in together.items() if kind != "Stale"} == dict.fromkeys(
        set(together) - {"Stale"}, True
    )
    assert not together["Stale"].holds


def test_one_bad_router_is_enough_and_every_bad_one_is_named() -> None:
    bad = [
        router("edge2", standing("no kernel")),
        router("edge3", standing("no list", stale={"pools": "old"})),
    ]
    together = by_type(summary([router("edge1"), *bad], disagree=False))
    assert (together["Ready"].holds, together["Ready"].reason) == (False, "NotSynced")
    assert together["Ready"].message == "edge2: no kernel; edge3: no list"
    assert (together["Stale"].holds, together["Stale"].message) == (True, "edge3: pools: old")
    assert together["LocalChainValid"].holds


def test_hashes_that_differ_are_shown() -> None:
    together = by_type(summary([router("edge1", hash="a" * 32), router("edge2", hash="b" * 32)], disagree=True))
    assert (together["RoutersAgree"].holds, together["RoutersAgree"].reason) == (False, "Differ")
    assert together["RoutersAgree"].message == "rulesets differ: edge1 aaaaaaaa, edge2 bbbbbbbb"


def test_any_router_sums_up_the_same() -> None:
    """Otherwise two of them would correct each other for ever."""
    one, other = router("edge1", standing(nic_missing=True)), router("edge2", standing(local_chain="y"))
    written = (
        parse_status(describe(one, (), [one, other])).routers + parse_status(describe(other, (), [one, other])).routers
    )
    assert summary(written, disagree=False) == summary([one, other], disagree=False)


def test_conditions_that_somebody_puts_into_an_entry_get_into_no_summary() -> None:
    """A second RoutersAgree, or one without a type, would make the API server refuse every router's status."""
    strange = tuple(Condition(kind, holds=False, reason="Why") for kind in ("RoutersAgree", "", "x" * 400))
    together = by_type(summary([router("edge1"), router("edge2", conditions=(*strange, *GOOD))], disagree=False))
    assert list(together) == [*(each.type for each in GOOD), "RoutersAgree"]
    assert together["RoutersAgree"].holds


def test_the_figures_on_top_are_the_largest_and_the_generation_is_what_all_have_seen() -> None:
    routers = [
        router("a", services=3, pinholes=9, generation=2),
        router("b", services=4, pinholes=8, rejected=1, generation=5),
    ]
    written: Any = describe(routers[0], summary(routers, disagree=False), routers)
    assert Figures.of(routers) == Figures(4, 9, 1, 2) == parse_status(written).figures
    assert [entry["name"] for entry in written["routers"]] == ["a"], "each router applies its own entry only"


# --- times --------------------------------------------------------------------------------------------


def test_a_condition_keeps_its_time_while_it_says_the_same_and_gets_a_new_one_when_it_turns() -> None:
    before = tuple(replace(each, since=EARLIER) for each in GOOD)
    after = standing("no")
    stamps = {each.type: each.since for each in stamped(after, before, NOW)}
    assert stamps == {**dict.fromkeys((each.type for each in GOOD), EARLIER), "Ready": NOW}


def test_another_message_alone_is_no_transition() -> None:
    before = [Condition("Ready", holds=False, reason="NotSynced", message="one", since=EARLIER)]
    [after] = stamped([Condition("Ready", holds=False, reason="Other", message="two")], before, NOW)
    assert (after.since, after.message) == (EARLIER, "two")


def test_a_condition_without_a_time_gets_one() -> None:
    """The Ansible operator wrote some; an empty one would be refused by the schema."""
    assert [each.since for each in stamped(GOOD, GOOD, NOW)] == [NOW] * len(GOOD)


# --- to and from the API ------------------------------------------------------------------------------

texts = st.text(max_size=40)
conditions = st.builds(Condition, texts, st.booleans(), texts, texts, texts)
counts = st.integers(0, 2**63 - 1)
names = st.text(min_size=1, max_size=20)
routers_with_hash = st.builds(
    RouterStatus,
    names,
    texts,
    counts,
    st.text(min_size=1, max_size=32),
    texts,
    counts,
    counts,
    counts,
    st.lists(conditions, max_size=4).map(tuple),
)


@given(routers_with_hash, st.lists(conditions, max_size=4).map(tuple))
def test_what_is_written_is_read_back_the_same(written: RouterStatus, together: tuple[Condition, ...]) -> None:
    found = parse_status(describe(written, together, [written]))
    assert found.routers == (written,)
    assert found.conditions == together


def test_a_router_that_applied_nothing_yet_has_neither_hash_nor_time_in_it() -> None:
    """An empty time is none that the schema takes."""
    written: Any = describe(router(hash="", last_change=""), (), [router()])
    assert not {"hash", "lastChange"} & written["routers"][0].keys()


@st.composite
def statuses(draw: st.DrawFn) -> Any:
    """Nearly a status: the right keys with anything in them."""
    anything = json_values
    condition = anything | st.fixed_dictionaries(
        {},
        optional={
            key: anything for key in ("type", "status", "reason", "message", "lastTransitionTime", "observedGeneration")
        },
    )
    entry = anything | st.fixed_dictionaries(
        {},
        optional={
            **{
                key: anything
                for key in ("version", "observedGeneration", "hash", "lastChange", "services", "pinholes", "rejected")
            },
            "name": anything | st.just("edge1"),
            "conditions": anything | st.lists(condition, max_size=3),
        },
    )
    status = st.fixed_dictionaries(
        {},
        optional={
            "services": anything,
            "routers": anything | st.lists(entry, max_size=4),
            "conditions": anything | st.lists(condition, max_size=3),
        },
    )
    return draw(anything | status)


@given(statuses())
@example({"routers": [{"name": "edge1", "observedGeneration": 10**400, "conditions": [{"type": ["x"]}]}]})
@example({"routers": "x" * 100_000, "conditions": None})
def test_nothing_that_stands_in_a_status_can_stop_a_router(raw: Any) -> None:
    """Whatever was read can be summed up and written again, within its bounds."""
    found = parse_status(raw)
    assert isinstance(found, NftStatus)
    assert all(each.name for each in found.routers)
    routers = [*(each for each in found.routers if each.name != "me"), router("me")]
    together = stamped(summary(routers, disagree=found.disagree), found.conditions, NOW)
    written = describe(routers[-1], together, routers)
    assert parse_status(written).routers == (routers[-1],)
    assert all(each.since for each in together)


def test_a_flood_of_routers_and_conditions_is_read_in_part() -> None:
    entry = {
        "name": "x",
        "conditions": [{"type": f"T{number}", "status": "True", "message": "m" * 10_000} for number in range(1000)],
    }
    found = parse_status({"routers": [{**entry, "name": f"r{number}"} for number in range(1000)]})
    assert len(found.routers) == 64
    assert {len(each.conditions) for each in found.routers} == {64}
    assert all(len(each.message) <= 512 for router in found.routers for each in router.conditions)


def test_entries_that_are_none_are_passed_over_and_the_others_stay() -> None:
    good = {"name": "edge1", "hash": "aa"}
    found = parse_status({"routers": [None, 7, {"name": ""}, {"name": 3}, {"name": "x", "conditions": 5}, good]})
    assert [each.name for each in found.routers] == ["edge1"]


def test_a_status_of_the_ansible_operator_is_read() -> None:
    old = {
        "conditions": [
            {"type": "Running", "status": "True", "ansibleResult": {"ok": 21}},
            {"type": "Failure", "status": "False"},
        ]
    }
    assert parse_status(old) == NftStatus((), (Condition("Running", True, ""), Condition("Failure", False, "")))
