"""A lab whose router has a ruleset without a daemon: for tests of packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab
from tests.labtools import Firewall


@pytest.fixture(scope="module")
def router() -> Iterator[tuple[Lab, Firewall]]:
    with Lab() as made:
        yield made, Firewall(made)


@pytest.fixture
def lab(router: tuple[Lab, Firewall]) -> Lab:
    return router[0]


@pytest.fixture
def firewall(router: tuple[Lab, Firewall]) -> Firewall:
    """Each test starts without rules and buckets.

    Probes have source ports of their own, so no tracked connection recurs.
    """
    lab, firewall = router
    lab.router.nft("flush ruleset")
    firewall.holds = firewall.kernel.read().ruleset
    return firewall
