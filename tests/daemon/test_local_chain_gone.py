"""The kernel took a local chain once and takes it no longer, as when an interface is gone.

Such a chain opens no door and shuts none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nftsync.plan.result import Outcome
from tests.lab.lab import Lab
from tests.labtools import SERVICE4, elements, needs_root, nft, rules, service
from tests.router import LabRouter, config_in

pytestmark = needs_root

BY_INDEX, BY_NAME = 'iif "vpn0" tcp dport 81 accept', 'iifname "vpn0" tcp dport 81 accept'
CULPRIT = "'nft' (pid 1)"


@pytest.fixture
def router(lab: Lab, tmp_path: Path) -> Iterator[LabRouter]:
    lab.router.ip("link add vpn0 type veth peer name vpn1")
    with LabRouter(lab, config_in(tmp_path), nft()) as made:
        made.local_chain.write_text(f"chain local-chain {{\n\t{BY_INDEX}\n}}\n")
        made.put(service("web", SERVICE4))
        assert made.sync().outcome is Outcome.APPLIED
        assert BY_INDEX in rules(lab)
        yield made


def as_asked_for(lab: Lab) -> None:
    assert lab.arrives("tcp", SERVICE4, 80)
    assert not lab.arrives("tcp", SERVICE4, 81)


def test_an_interface_that_goes_changes_nothing_while_the_tables_stand(lab: Lab, router: LabRouter) -> None:
    lab.router.ip("link del vpn0")
    router.put(service("more", "172.30.254.2"))
    assert router.sync().outcome is Outcome.APPLIED
    assert router.sync(resync=True).outcome is Outcome.UNCHANGED
    assert set(elements(lab, "services4")) == {f"{SERVICE4} . tcp . 80", "172.30.254.2 . tcp . 80"}


@pytest.mark.parametrize("listed", [True, False], ids=["the API answers", "the API is silent"])
def test_tables_that_are_flushed_while_the_interface_is_gone_come_back(
    lab: Lab,
    router: LabRouter,
    listed: bool,  # noqa: FBT001
) -> None:
    lab.router.ip("link del vpn0")
    if not listed:
        router.reload(listed=False)
    lab.router.nft("flush ruleset")
    assert router.sync(resync=True, changed_by=CULPRIT).drift
    assert BY_NAME in rules(lab)
    as_asked_for(lab)
    [refused] = [str(each) for each in router.rejections()]
    assert "its interfaces by name" in refused
    lab.router.ip("link add vpn0 type veth peer name vpn1")
    router.sync(resync=True)
    assert BY_INDEX in rules(lab), "when the interface is back it is verbatim again"
    assert router.rejections() == ()


@pytest.mark.parametrize("stands", [True, False], ids=["something stands", "nothing stands"])
def test_without_one_that_can_be_loaded_what_stands_stays_and_an_open_door_is_shut(
    lab: Lab,
    tmp_path: Path,
    stands: bool,  # noqa: FBT001
) -> None:
    with LabRouter(lab, config_in(tmp_path), nft()) as router:
        router.put(service("web", SERVICE4))
        if stands:
            router.sync()
        good = rules(lab)
        refused = "\t\tjump nowhere\n"
        router.save_local_chain(refused)
        router.local_chain.mkdir()
        router.restart()
        result = router.sync()
        assert result.outcome is Outcome.APPLIED
        assert ("the chain in the kernel stays" if stands else "no local chain is in force") in str(router.rejections())
        if stands:
            assert rules(lab) == good
        as_asked_for(lab)
        assert router.saved_local_chain() == refused, "it may be taken another time"
