"""Until the API server has told of everything, the rules follow the last good settings, around the elements that stand."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nftsync.config import Boundary, Enforcement
from nftsync.files.lastgood import LastGood
from nftsync.plan.result import Outcome
from nftsync.ruleset.elements import ruleset
from nftsync.ruleset.tables import FILTER, Ruleset
from nftsync.ruleset.text import render
from tests.lab.lab import PUBLIC, Lab
from tests.labtools import SERVICE4, SERVICE6, elements, eventually, needs_root, nft, rules, service
from tests.reconciling import Router

pytestmark = needs_root

WEB = service("web", SERVICE4, SERVICE6, limit="400/second")
WAITING = "the first lists are not complete"
CULPRIT = "'nft' (pid 1)"
SSH = 'iifname "public0" tcp dport 22 accept'


@pytest.fixture
def router(lab: Lab, tmp_path: Path) -> Router:
    made = Router(lab, tmp_path)
    made.put(WEB)
    assert made.sync().outcome is Outcome.APPLIED
    return made


def as_asked_for(lab: Lab) -> None:
    assert lab.arrives("tcp", SERVICE4, 80)
    assert lab.arrives("tcp", SERVICE6, 80)
    assert not lab.arrives("tcp", SERVICE4, 81)


def waits(router: Router, *, meddler: str = "") -> str:
    """Sync; returns what is waited for."""
    result = router.sync(resync=bool(meddler), meddler=meddler)
    assert (result.outcome, result.listed) == (Outcome.WAITING, False), result
    assert result.drift is bool(meddler)
    return result.message


def test_what_stands_as_it_should_is_not_touched(lab: Lab, router: Router) -> None:
    before = rules(lab, "--handle")
    router.start(listed=False)
    for _ in range(3):
        assert waits(router) == WAITING
    assert rules(lab, "--handle") == before


def test_where_the_cluster_never_said_anything_nothing_is_applied(lab: Lab, tmp_path: Path) -> None:
    router = Router(lab, tmp_path)
    router.start(listed=False)
    assert waits(router) == WAITING
    assert not rules(lab)


@pytest.mark.parametrize("kept", [True, False], ids=["the last good ruleset is kept", "it is lost"])
def test_what_somebody_flushes_before_this_process_has_heard_of_anything_is_put_back(lab: Lab, router: Router, kept: bool) -> None:  # noqa: FBT001
    good, settings = rules(lab), router.reconciler.settings
    assert settings
    if kept:
        last_good = LastGood()
        last_good.write(router.folder, router.reconciler.opened().values(), settings)
        last_good.finish(lambda: None)
    router.start(listed=False)
    assert waits(router) == WAITING
    lab.router.nft("flush ruleset")
    assert waits(router, meddler=CULPRIT) == f"{CULPRIT} had changed our tables: repaired; {WAITING}"
    assert not lab.arrives("tcp", SERVICE4, 81)
    assert lab.arrives("tcp", SERVICE4, 80) is kept
    assert SSH in rules(lab)
    router.start()
    router.sync()
    assert rules(lab) == good


def test_another_cluster_that_says_nothing_keeps_what_stands_and_it_is_put_back_when_it_was_taken_away(
    lab: Lab, router: Router
) -> None:
    good = rules(lab)
    router.reload(listed=False)
    assert waits(router) == WAITING
    lab.router.nft("flush ruleset")
    assert waits(router, meddler=CULPRIT) == f"{CULPRIT} had changed our tables: repaired; {WAITING}"
    assert rules(lab) == good
    router.reload()
    assert router.sync().outcome is Outcome.UNCHANGED


def test_a_nic_that_has_another_name_after_a_reboot_opens_nothing_though_nobody_answers(lab: Lab, router: Router) -> None:
    good, settings = rules(lab), router.reconciler.settings
    assert settings
    booted = ruleset(router.reconciler.opened().values(), replace(settings, index=None))
    lab.unplug()
    lab.plug("wan0")
    # As the boot unit leaves it, which can't know.
    lab.router.nft("flush ruleset\n" + render(Ruleset({FILTER: booted.tables[FILTER]}, booted.elements)))
    assert lab.arrives("tcp", SERVICE4, 81)
    router.start(listed=False)
    assert waits(router) == f"rules renewed; {WAITING}"
    as_asked_for(lab)
    lab.unplug()
    lab.plug("public0")
    assert router.reconciler.links_changed()
    assert waits(router) == f"rules renewed; {WAITING}"
    as_asked_for(lab)
    router.start()
    router.sync()
    assert rules(lab) == good


@pytest.mark.parametrize("process", ["the same", "another"])
def test_a_rule_that_somebody_adds_meanwhile_is_taken_away(lab: Lab, router: Router, process: str) -> None:
    good = rules(lab)
    if process == "another":
        router.start(listed=False)
    else:
        router.reload(listed=False)
    waits(router)
    lab.router.nft("insert rule inet nftsync forward accept")
    assert waits(router, meddler=CULPRIT) == f"{CULPRIT} had changed our tables: repaired; {WAITING}"
    assert rules(lab) == good
    assert set(elements(lab, "services4")) == {f"{SERVICE4} . tcp . 80"}


def test_a_table_that_somebody_switched_off_is_made_anew_with_all_that_it_held(lab: Lab, router: Router) -> None:
    router.metallb().pools.put(pool("a", "172.30.254.0/24"))
    router.put(service("narrow", "172.30.254.2", sources=["192.0.2.0/24"]))
    router.sync()
    good = rules(lab)
    assert "172.30.254.0/24" in good, "the pool"
    lab.router.nft("add table inet nftsync { flags dormant; }\nadd table netdev nftsync { flags dormant; }")
    assert lab.arrives("tcp", SERVICE4, 81)
    router.start(listed=False)
    waits(router)
    assert rules(lab) == good
    assert lab.arrives("tcp", SERVICE4, 80)
    assert not lab.arrives("tcp", SERVICE4, 81)


def test_a_table_of_another_version_stays_until_it_is_known_what_belongs_into_it(lab: Lab, router: Router) -> None:
    lab.router.nft("flush chain inet nftsync operator-svc; delete set inet nftsync sources4; "
                   "add set inet nftsync sources4 { type ipv4_addr . inet_proto . inet_service; }")  # fmt: skip
    before = rules(lab, "--handle")
    router.start(listed=False)
    assert waits(router) == WAITING
    assert rules(lab, "--handle") == before
    router.start()
    router.sync()
    as_asked_for(lab)


def test_a_new_version_of_the_local_chain_holds_and_one_that_the_kernel_refuses_does_not(lab: Lab, router: Router) -> None:
    router.start(listed=False)
    router.local_chain.write_text("chain local-chain {\n\ttcp dport 81 accept\n}\n")
    waits(router)
    assert lab.arrives("tcp", SERVICE4, 81)
    router.local_chain.write_text("chain local-chain {\n\tjump nowhere\n}\n")
    waits(router)
    assert lab.arrives("tcp", SERVICE4, 81), "the last good one stays"
    assert "local-chain.nft" in json.dumps([str(each) for each in router.reconciler.rejections()])


@pytest.mark.parametrize("process", ["the same", "another"])
def test_settings_that_nobody_confirms_are_taken_back_though_nobody_answers(lab: Lab, router: Router, process: str) -> None:
    router.confirm_seconds = 1
    router.reload()
    router.settings(nft(enable_ssh=False))
    assert router.sync().outcome is Outcome.APPLIED
    assert SSH not in rules(lab)
    if process == "another":
        router.start(listed=False)
    else:
        router.reload(listed=False)
    assert eventually(lambda: router.reconciler.wakes_in == float("inf") or not waits(router))
    waits(router)
    assert SSH in rules(lab)
    as_asked_for(lab)


def test_settings_that_were_taken_back_are_not_tried_again_by_the_next_process(lab: Lab, router: Router) -> None:
    router.confirm_seconds = 0.2
    router.reload()
    router.settings(nft(enable_ssh=False))
    router.sync()
    assert eventually(lambda: router.reconciler.wakes_in == 0)
    router.sync()
    assert SSH in rules(lab)
    for listed in (False, True):
        router.start(listed=listed)
        router.sync()
        assert SSH in rules(lab)
        assert router.reconciler.in_force.confirming.state == "RolledBack"
        assert "enable_ssh was switched off; nobody ran" in str(router.reconciler.in_force.confirming)
    router.settings(nft())
    router.sync()
    router.start()
    router.sync()
    assert router.reconciler.in_force.confirming.state == "NotNeeded"
    assert not lab.arrives("tcp", str(PUBLIC[0]), 23)


def pool(name: str, addresses: str) -> dict[str, object]:
    metadata = {"namespace": "metallb-system", "name": name, "uid": name}
    return {"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool", "metadata": metadata, "spec": {"addresses": [addresses]}}


@pytest.mark.parametrize("change", ["pools are ignored", "another cluster, which says nothing"])
def test_a_doubt_about_pools_that_nobody_can_end_keeps_nobody_awake(router: Router, change: str) -> None:
    pools = router.metallb().pools
    pools.put(pool("a", "172.30.254.0/24"))
    pools.put(pool("b", "10.9.0.0/24"))
    router.sync()
    pools.delete(pool("b", ""))
    router.sync()
    assert router.reconciler.wakes_in < 1
    if change == "pools are ignored":
        router.boundary = Boundary(Enforcement.IGNORED)
        router.reload()
    else:
        router.reload(listed=False)
    router.sync()
    time.sleep(0.7)  # longer than any doubt
    assert router.reconciler.wakes_in == float("inf")
