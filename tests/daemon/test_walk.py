"""How many modules a reader has to know to follow one Service through the running daemon."""

from __future__ import annotations

import pytest

from tests import walk as walking
from tests.labtools import needs_root

pytestmark = needs_root

MOST = 39  # lower it when a module leaves the way


@pytest.fixture(scope="module")
def walk() -> walking.Walk:
    """That of the Service which met the fewest: something else may happen at the same time."""
    with walking.router() as (daemon, file):
        return min(walking.walks(daemon, file, 4), key=lambda each: len(each.modules))


def test_a_walk_leads_to_the_kernel_and_back_to_the_cluster(walk: walking.Walk) -> None:
    print(walk)
    threads = {thread for _, thread, _ in walk.there}
    assert threads == {
        "watch-Service",
        "MainThread",
        "journal",
    }, "one watches, one owns the state, one waits for the disk"
    assert len({module for _, _, module in walk.there}) >= 5
    assert len({module for _, _, module in walk.back}) >= 3


def test_one_service_enters_few_modules_there_and_back(walk: walking.Walk) -> None:
    assert len(walk.modules) <= MOST, walk
