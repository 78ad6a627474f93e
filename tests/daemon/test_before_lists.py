"""The time until the API server has told of everything.

The rules follow the last good settings, around the elements that stand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftsync.config import AddressPolicy, PoolMode
from nftsync.plan.result import Outcome
from nftsync.ruleset.model import INET, Ruleset
from nftsync.ruleset.tables import ruleset
from nftsync.ruleset.text import render
from tests.lab.lab import PUBLIC, Lab
from tests.labtools import SERVICE4, SERVICE6, elements, eventually, needs_root, nft, rules, service
from tests.router import LabRouter, config_in

pytestmark = needs_root

WEB = service("web", SERVICE4, SERVICE6, limit="400/second")
WAITING = "the first lists are not complete"
CULPRIT = "'nft' (pid 1)"
SSH = "tcp dport 22 accept"


@pytest.fixture
def router(lab: Lab, tmp_path: Path) -> Iterator[LabRouter]:
    with LabRouter(lab, config_in(tmp_path), nft(), WEB) as made:
        assert made.sync().outcome is Outcome.APPLIED
        yield made


def as_asked_for(lab: Lab) -> None:
    assert lab.arrives("tcp", SERVICE4, 80)
    assert lab.arrives("tcp", SERVICE6, 80)
    assert not lab.arrives("tcp", SERVICE4, 81)


def waits(router: LabRouter, *, changed_by: str = "") -> str:
    """Sync; returns what is waited for."""
    result = router.sync(resync=bool(changed_by), changed_by=changed_by)
    assert (result.outcome, result.listed) == (Outcome.WAITING, False), result
    assert result.drift is bool(changed_by)
    return result.message


def test_what_stands_as_it_should_is_not_touched(lab: Lab, router: LabRouter) -> None:
    before = rules(lab, "--handle")
    router.restart(listed=False)
    for _ in range(3):
        assert waits(router) == WAITING
    assert rules(lab, "--handle") == before


def test_where_the_cluster_never_said_anything_nothing_is_applied(lab: Lab, tmp_path: Path) -> None:
    with LabRouter(lab, config_in(tmp_path), nft(), listed=False) as router:
        assert waits(router) == f"nothing is applied yet, this router does not filter: {WAITING}"
    assert not rules(lab)


@pytest.mark.parametrize("kept", [True, False], ids=["the memory is kept", "it is lost"])
def test_what_somebody_flushes_before_this_process_has_heard_of_anything_is_put_back(
    lab: Lab,
    router: LabRouter,
    kept: bool,  # noqa: FBT001
) -> None:
    good = rules(lab)
    if not kept:
        router.forget()
    router.restart(listed=False)
    assert waits(router) == WAITING
    lab.router.nft("flush ruleset")
    assert waits(router, changed_by=CULPRIT) == f"{CULPRIT} changed nftsync's tables; nftsync repaired them; {WAITING}"
    assert not lab.arrives("tcp", SERVICE4, 81)
    assert lab.arrives("tcp", SERVICE4, 80), "nobody has denied it"
    assert "tcp dport 22 accept" in rules(lab)
    if kept:
        assert rules(lab) == good
    router.restart()
    router.sync()
    assert rules(lab) == good


def test_another_cluster_that_says_nothing_keeps_what_stands_and_it_is_put_back_when_it_was_taken_away(
    lab: Lab, router: LabRouter
) -> None:
    good = rules(lab)
    router.reload(listed=False)
    assert waits(router) == WAITING
    lab.router.nft("flush ruleset")
    assert waits(router, changed_by=CULPRIT) == f"{CULPRIT} changed nftsync's tables; nftsync repaired them; {WAITING}"
    assert rules(lab) == good
    router.reload()
    assert router.sync().outcome is Outcome.UNCHANGED


def test_a_nic_that_has_another_name_after_a_reboot_opens_nothing_though_nobody_answers(
    lab: Lab, router: LabRouter
) -> None:
    good, settings = rules(lab), router.settings_in_force()
    assert settings
    booted = ruleset(router.pinholes().values(), settings)
    lab.unplug()
    lab.plug("wan0")
    # As the boot unit leaves it, which can't know.
    lab.router.nft("flush ruleset\n" + render(Ruleset({INET: booted.tables[INET]}, booted.elements)))
    assert lab.arrives("tcp", SERVICE4, 81)
    router.restart(listed=False)
    assert waits(router) == f"rules renewed; {WAITING}"
    as_asked_for(lab)
    lab.unplug()
    lab.plug("public0")
    assert waits(router) == f"rules renewed; {WAITING}"
    as_asked_for(lab)
    router.restart()
    router.sync()
    assert rules(lab) == good


@pytest.mark.parametrize("process", ["the same", "another"])
def test_a_rule_that_somebody_adds_meanwhile_is_taken_away(lab: Lab, router: LabRouter, process: str) -> None:
    good = rules(lab)
    if process == "another":
        router.restart(listed=False)
    else:
        router.reload(listed=False)
    waits(router)
    lab.router.nft("insert rule inet nftsync forward accept")
    assert waits(router, changed_by=CULPRIT) == f"{CULPRIT} changed nftsync's tables; nftsync repaired them; {WAITING}"
    assert rules(lab) == good
    assert set(elements(lab, "services4")) == {f"{SERVICE4} . tcp . 80"}


def test_a_table_that_somebody_switched_off_is_made_anew_with_all_that_it_held(lab: Lab, router: LabRouter) -> None:
    router.put(pool("a", "172.30.254.0/24"))
    router.put(service("narrow", "172.30.254.2", sources=["192.0.2.0/24"]))
    router.sync()
    good = rules(lab)
    assert "172.30.254.0/24" in good, "the pool"
    lab.router.nft("add table inet nftsync { flags dormant; }\nadd table netdev nftsync { flags dormant; }")
    assert lab.arrives("tcp", SERVICE4, 81)
    router.restart(listed=False)
    waits(router)
    assert rules(lab) == good
    assert lab.arrives("tcp", SERVICE4, 80)
    assert not lab.arrives("tcp", SERVICE4, 81)


def test_a_table_of_another_version_stays_until_it_is_known_what_belongs_into_it(lab: Lab, router: LabRouter) -> None:
    lab.router.nft(
        "flush chain inet nftsync operator-svc; flush chain inet nftsync from-inside; "
        "delete set inet nftsync sources4; "
        "add set inet nftsync sources4 { type ipv4_addr . inet_proto . inet_service; }"
    )
    before = rules(lab, "--handle")
    router.forget()
    router.restart(listed=False)
    assert waits(router) == WAITING
    assert rules(lab, "--handle") == before, "nobody knows what belongs into it"
    router.restart()
    router.sync()
    as_asked_for(lab)


def test_a_new_version_of_the_local_chain_holds_and_one_that_the_kernel_refuses_does_not(
    lab: Lab, router: LabRouter
) -> None:
    router.restart(listed=False)
    router.local_chain.write_text("chain local-chain {\n\ttcp dport 81 accept\n}\n")
    waits(router)
    assert lab.arrives("tcp", SERVICE4, 81)
    router.local_chain.write_text("chain local-chain {\n\tjump nowhere\n}\n")
    waits(router)
    assert lab.arrives("tcp", SERVICE4, 81), "the last good one stays"
    assert "local-chain.nft" in json.dumps([str(each) for each in router.rejections()])


@pytest.mark.parametrize("process", ["the same", "another"])
def test_settings_that_nobody_confirms_are_taken_back_though_nobody_answers(
    lab: Lab, router: LabRouter, process: str
) -> None:
    router.reload(confirm_seconds=1)
    router.put(nft(enable_ssh=False))
    assert router.sync().outcome is Outcome.APPLIED
    assert SSH not in rules(lab)
    if process == "another":
        router.restart(listed=False)
    else:
        router.reload(listed=False)
    assert eventually(lambda: router.next_deadline() == float("inf") or not waits(router))
    waits(router)
    assert SSH in rules(lab)
    as_asked_for(lab)


def test_settings_that_were_taken_back_are_not_tried_again_by_the_next_process(lab: Lab, router: LabRouter) -> None:
    router.reload(confirm_seconds=0.2)
    router.put(nft(enable_ssh=False))
    router.sync()
    assert eventually(lambda: router.next_deadline() == 0)
    router.sync()
    assert SSH in rules(lab)
    for listed in (False, True):
        router.restart(listed=listed)
        router.sync()
        assert SSH in rules(lab)
        assert router.confirmation()[0] == "RolledBack"
        assert "enable_ssh was switched off; nobody ran" in router.confirmation()[1]
    router.put(nft())
    router.sync()
    router.restart()
    router.sync()
    assert router.confirmation()[0] == "NotNeeded"
    assert not lab.arrives("tcp", str(PUBLIC[0]), 23)


def pool(name: str, addresses: str) -> dict[str, object]:
    metadata = {"namespace": "metallb-system", "name": name, "uid": name}
    return {
        "apiVersion": "metallb.io/v1beta1",
        "kind": "IPAddressPool",
        "metadata": metadata,
        "spec": {"addresses": [addresses]},
    }


@pytest.mark.parametrize("change", ["pools are ignored", "another cluster, which says nothing"])
def test_a_doubt_about_pools_that_nobody_can_end_keeps_nobody_awake(router: LabRouter, change: str) -> None:
    router.put(pool("a", "172.30.254.0/24"), pool("b", "10.9.0.0/24"))
    router.sync()
    router.delete(pool("b", ""))
    router.sync()
    assert router.next_deadline() < 1
    if change == "pools are ignored":
        router.reload(address_policy=AddressPolicy(PoolMode.IGNORED))
    else:
        router.reload(listed=False)
    router.sync()
    time.sleep(0.7)  # longer than any doubt
    assert router.next_deadline() == float("inf")
