"""The limit of later fragments: as strict as every limit at its address, and right after every change."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from hypothesis import given
from hypothesis import strategies as st

from nftsync.objects.names import Name
from nftsync.objects.ratelimit import TIME_UNITS, RateLimit, parse_ratelimit
from nftsync.plan.result import Applied
from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.limits import Limits, limits_at, strictest
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import elements
from tests.support import side

SHAPED = Settings(side("enp1s0"), enable_rateshape=True)
ADDRESSES = ("192.0.2.1", "192.0.2.2", "2001:db8::1")

_bytes = st.builds(
    RateLimit, st.integers(1, 2**14), st.sampled_from(sorted(TIME_UNITS)), st.integers(0, 2**13), st.just(False)
)
_packets = st.builds(
    RateLimit, st.integers(1, 10**6), st.sampled_from(sorted(TIME_UNITS)), st.integers(1, 2**14), st.just(True)
)
_limits = _bytes | _packets


def per_week(limit: RateLimit) -> int:
    return limit.rate * 604800 // TIME_UNITS[limit.per]


@given(st.lists(_limits, min_size=1, max_size=5))
def test_the_strictest_limit_has_at_most_each_rate_and_at_most_each_bucket(limits: Sequence[RateLimit]) -> None:
    found = list(strictest(limits))
    assert {limit.packets for limit in found} == {limit.packets for limit in limits}
    for one in found:
        for other in (limit for limit in limits if limit.packets is one.packets):
            assert per_week(one) <= per_week(other)
            assert one.bucket <= other.bucket
        assert parse_ratelimit(str(one)) == one


@given(_limits)
def test_a_single_limit_is_its_own_strictest(limit: RateLimit) -> None:
    assert [one.statement for one in strictest([limit, limit])] == [limit.statement]


def test_a_slow_limit_with_a_large_unit_gets_a_shorter_one_beside_a_small_bucket() -> None:
    minute, second = parse_ratelimit("60 mbytes/minute"), parse_ratelimit("2 mbytes/second burst 1 mbytes")
    assert list(map(str, strictest([minute, second]))) == ["1 mbytes/second burst 2 mbytes"]


# --- after every change ---------------------------------------------------------------------------------

_holes = st.builds(
    lambda address, port, limit, egress, closed: Pinhole(
        f"{address} . udp . {port}",
        6 if ":" in address else 4,
        () if closed else None,
        limit,
        Name("default", "a"),
        limit_egress=egress,
    ),
    st.sampled_from(ADDRESSES),
    st.integers(1, 4),
    st.none()
    | st.sampled_from(list(map(parse_ratelimit, ("5/second", "9/minute", "1 kbytes/second", "3 kbytes/day")))),
    st.none() | st.just(parse_ratelimit("5/second")),
    st.booleans(),
)


@given(st.lists(st.tuples(st.lists(_holes, max_size=4), st.sets(st.sampled_from(ADDRESSES)), st.integers(1, 4))))
def test_after_every_change_addresses_have_the_limits_that_all_pinholes_together_give(
    changes: Sequence[tuple[Sequence[Pinhole], set[str], int]],
) -> None:
    applied = Applied.of({}, {}, SHAPED)
    held: dict[str, str] = {}
    for added, removed, port in changes:
        after = {hole.key: hole for hole in added}
        keys = after.keys() | {f"{address} . udp . {port}" for address in removed}
        before = {key: applied.pinholes[key] for key in keys if key in applied.pinholes}
        beside = applied.limits_beside(before, after)
        old, new = (_of_addresses(list(holes.values()), beside) for holes in (before, after))
        held = {key: said for key, said in held.items() if key not in old} | new
        applied.replace(before, after)
        assert held == _of_addresses(list(applied.pinholes.values()))
        assert applied.limits == limits_at(applied.pinholes.values())


def _of_addresses(holes: Sequence[Pinhole], beside: Limits = MappingProxyType({})) -> dict[str, str]:
    found = elements(holes, SHAPED, beside)
    return {
        f"{name} {key}": said
        for sets in found.values()
        for name, members in sets.items()
        if name.startswith(("fragments", "egress"))
        for key, said in members.items()
    }
