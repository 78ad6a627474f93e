"""Counters, buckets and packets under way survive every change that does not concern them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nftsync.kernel.commits import SOMEBODY
from nftsync.kernel.nft import Kernel, KernelError
from nftsync.plan.plan import Found
from nftsync.plan.result import Outcome
from nftsync.ruleset.model import INET
from nftsync.ruleset.text import render
from tests.lab.lab import CLIENT, PUBLIC, Lab, Probe
from tests.labtools import (
    SERVICE4,
    SERVICE6,
    Raw,
    but_closed,
    eventually,
    needs_root,
    nft,
    packets,
    rules,
    service,
    tables,
    wanted,
)
from tests.load import traffic
from tests.router import LabRouter, config_in

pytestmark = needs_root

CHANGES = 2000
CONTROL_SECONDS = 60.0
BYTES4, PACKETS4 = "172.30.254.11", "172.30.254.12"
COUNTED = service("counted", SERVICE4)
SLOW_BYTES = service("slow-bytes", BYTES4, limit="4 kbytes/week burst 1 kbytes")
SLOW_PACKETS = service("slow-packets", PACKETS4, limit="1/week burst 4 packets")
OTHER = service("other", "172.30.254.77", ports=[("TCP", 80), ("UDP", 80)], limit="1/second burst 5 packets")


@pytest.fixture
def router(lab: Lab, tmp_path: Path) -> Iterator[LabRouter]:
    with LabRouter(lab, config_in(tmp_path), listed=False) as made:
        yield made


def begin(router: LabRouter, *objects: Raw) -> None:
    router.lists(*objects)
    assert router.synced().outcome is Outcome.APPLIED


def add_another_service(router: LabRouter) -> None:
    router.put(OTHER)
    router.synced()


def change_and_remove_another_service(router: LabRouter) -> None:
    router.put(OTHER)
    router.synced()
    router.put(service("other", "172.30.254.78", sources=["192.0.2.0/24"], limit="2 mbytes/second"))
    router.synced()
    router.delete(OTHER)
    router.synced()


def switch_ssh_and_bgp_off(router: LabRouter) -> None:
    router.put(nft(enable_ssh=False, enable_bgp=False))
    router.synced()


def let_everything_pass_and_drop_it_again(router: LabRouter) -> None:
    for dropall in (False, True):
        router.put(nft(enable_dropall=dropall))
        router.synced()


def change_the_local_chain(router: LabRouter) -> None:
    for body in ("udp dport 7 drop", "udp dport 7 counter accept"):
        router.local_chain.write_text(f"chain local-chain {{ {body} }}")
        router.synced()


def resync(router: LabRouter) -> None:
    assert router.synced(resync=True).outcome is Outcome.UNCHANGED


def restart_the_daemon(router: LabRouter) -> None:
    router.restart()
    router.synced()


def restart_the_daemon_with_other_settings(router: LabRouter) -> None:
    router.restart()
    router.put(nft(enable_bgp=False))
    router.synced()


def repair_what_somebody_else_did(router: LabRouter) -> None:
    router.lab.router.nft("add rule inet nftsync global accept")
    assert router.synced(resync=True).drift


def write_the_same_service_again_with_another_unimportant_field(router: LabRouter) -> None:
    router.put(service("counted", SERVICE4, externalTrafficPolicy="Local"))
    router.synced()


@pytest.mark.parametrize("change", [
    add_another_service,
    change_and_remove_another_service,
    switch_ssh_and_bgp_off,
    let_everything_pass_and_drop_it_again,
    change_the_local_chain,
    resync,
    restart_the_daemon,
    restart_the_daemon_with_other_settings,
    repair_what_somebody_else_did,
    write_the_same_service_again_with_another_unimportant_field,
], ids=lambda change: change.__name__)  # fmt: skip
def test_counters_and_buckets_survive(lab: Lab, router: LabRouter, change: Callable[[LabRouter], None]) -> None:
    begin(router, nft(), COUNTED, SLOW_BYTES, SLOW_PACKETS)
    assert len(lab.deliver([Probe("tcp", SERVICE4, 80)] * 7)) == 7
    for address, fits in ((BYTES4, 5), (PACKETS4, 4)):
        assert len(lab.deliver([Probe("tcp", address, 80, length=1024)] * 20)) == fits
    change(router)
    assert packets(lab, "services4", f"{SERVICE4} . tcp . 80") == 7
    for address in (BYTES4, PACKETS4):
        assert not lab.deliver([Probe("tcp", address, 80, length=1024)] * 20), f"{address} has a full bucket again"


class Flaky(Kernel):
    """The kernel, out of memory for so many transactions."""

    failures = 0

    def apply(self, text: str) -> None:
        if self.failures:
            self.failures -= 1
            raise KernelError("Could not process rule: Cannot allocate memory")
        super().apply(text)


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_local_chain_is_in_force_in_the_end_when_the_kernel_refused_for_another_reason(
    lab: Lab, router: LabRouter, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    begin(router, nft(), COUNTED)
    monkeypatch.setattr("tests.router.Kernel", Flaky)
    router.restart()
    monkeypatch.setattr(Flaky, "failures", failures)
    router.local_chain.write_text("chain local-chain {\n\tip saddr 192.0.2.1 drop\n}\n")
    for _ in range(3):
        router.sync(resync=True)
    assert "ip saddr 192.0.2.1 drop" in rules(lab)
    assert router.rejections() == ()


def test_a_new_limit_has_a_new_bucket_and_keeps_the_count_and_the_neighbours_bucket(
    lab: Lab, router: LabRouter
) -> None:
    begin(router, nft(), SLOW_BYTES, SLOW_PACKETS)
    for address in (BYTES4, PACKETS4):
        lab.deliver([Probe("tcp", address, 80, length=1024)] * 20)
    router.put(service("slow-packets", PACKETS4, limit="1/week burst 6 packets"))
    router.synced()
    assert packets(lab, "services4", f"{PACKETS4} . tcp . 80") == 4
    assert len(lab.deliver([Probe("tcp", PACKETS4, 80)] * 20)) == 6
    assert not lab.deliver([Probe("tcp", BYTES4, 80, length=1024)] * 20)


def test_counters_survive_when_rate_shaping_goes_off_and_on(lab: Lab, router: LabRouter) -> None:
    begin(router, nft(), COUNTED, SLOW_PACKETS)
    lab.deliver([Probe("tcp", SERVICE4, 80)] * 7)
    for on in (False, True):
        router.put(nft(enable_rateshape=on))
        router.synced()
        assert ("netdev nftsync" in tables(lab)) is on
        assert packets(lab, "services4", f"{SERVICE4} . tcp . 80") == 7


# --- drift --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [
    f"delete element inet nftsync services4 {{ {SERVICE4} . tcp . 80 }}",
    "add element inet nftsync services6 { 2001:db8:254::66 . tcp . 22 }",
    "flush set inet nftsync services4",
    "add element inet nftsync sources4 { 172.30.254.1 . tcp . 22 . 10.0.0.0/8 }",
    "insert rule inet nftsync forward accept",
    "flush chain inet nftsync operator-svc",
    "add chain inet nftsync theirs { type filter hook input priority -5; policy accept; }",
    "add chain inet nftsync theirs; add rule inet nftsync global jump theirs",
    "add set inet nftsync theirs { type ipv4_addr; }; add element inet nftsync theirs { 192.0.2.1 }",
    "add map inet nftsync theirs { type ipv4_addr : verdict; }",
    "add chain inet nftsync input { policy accept; }",
    "add table inet nftsync { flags dormant; }",
    f"delete element netdev nftsync limited4 {{ {BYTES4} . tcp . 80 }}",
    f"add element netdev nftsync limited4 {{ {SERVICE4} . tcp . 80 limit rate over 1 bytes/week burst 1 bytes }}",
    "flush chain netdev nftsync operator-tc",
    "delete table netdev nftsync",
    "delete table inet nftsync",
    "flush ruleset",
])  # fmt: skip
def test_the_next_resync_repairs(lab: Lab, router: LabRouter, change: str) -> None:
    begin(router, nft(), COUNTED, SLOW_BYTES)
    good = rules(lab)
    lab.router.nft(change)
    assert rules(lab) != good
    result = router.synced(resync=True)
    assert (result.outcome, result.drift) == (Outcome.APPLIED, True)
    assert but_closed(rules(lab)) == but_closed(good)
    again = router.synced(resync=True)
    assert (again.outcome, again.drift) == (Outcome.UNCHANGED, False)


@pytest.mark.parametrize("change", ["insert rule inet nftsync forward accept", "flush ruleset"])
@pytest.mark.parametrize(
    "repaired_by", ["this process", "this process, which does not know who it was", "the next process"]
)
def test_what_somebody_does_just_before_it_is_read_back_as_ours_is_found_out(
    lab: Lab, router: LabRouter, monkeypatch: pytest.MonkeyPatch, change: str, repaired_by: str
) -> None:
    read = Kernel.read_tables

    def meddled(kernel: Kernel) -> Found:
        lab.router.nft(change)
        return read(kernel)

    begin(router, nft(), COUNTED)
    with monkeypatch.context() as patched:
        patched.setattr(Kernel, "read_tables", meddled)
        router.put(nft(enable_bgp=False))
        router.synced()
    assert lab.arrives("tcp", SERVICE4, 81)
    if repaired_by == "the next process":
        router.restart()
        assert router.synced().outcome is Outcome.APPLIED
    else:
        lab.router.nft("add table inet nftsync; add chain inet nftsync theirs")  # and something else
        told = "nft (pid 1)" if repaired_by == "this process" else SOMEBODY
        result = router.sync(resync=True, changed_by=told)
        assert (result.outcome, result.drift) == (Outcome.APPLIED, True)
        assert result.message.startswith(f"{told} changed nftsync's tables; nftsync repaired them")
    assert not lab.arrives("tcp", SERVICE4, 81)
    assert lab.arrives("tcp", SERVICE4, 80)
    assert "chain theirs" not in rules(lab)


def test_what_others_committed_meanwhile_leaves_nothing_behind_for_the_next_process(
    lab: Lab, router: LabRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they touched our tables is not known, so the next process makes sure."""
    read = Kernel.read_tables

    def busy(kernel: Kernel) -> Found:
        lab.router.nft("add table inet theirs")
        return read(kernel)

    begin(router, nft(), COUNTED)
    assert router.rules_are_known()
    with monkeypatch.context() as patched:
        patched.setattr(Kernel, "read_tables", busy)
        router.put(nft(enable_bgp=False))
        router.synced()
    assert not router.rules_are_known()
    good = rules(lab, "--handle")
    assert router.synced(resync=True).outcome is Outcome.UNCHANGED
    assert rules(lab, "--handle") == good, "this one knows"
    assert router.rules_are_known()


def test_a_table_that_comes_back_while_a_service_changes_is_repaired_and_counted(lab: Lab, router: LabRouter) -> None:
    begin(router, nft(), COUNTED)
    lab.router.nft("delete table inet nftsync")
    router.put(OTHER)
    assert router.synced().outcome is Outcome.APPLIED
    assert router.sync(resync=True, changed_by="nft (pid 7)").drift


# --- under load ---------------------------------------------------------------------------------------

ALLOWED = (f"{SERVICE4} 80", f"{SERVICE6} 80", "172.30.254.2 80", "2001:db8:254::2 80")
FORBIDDEN = (
    f"{SERVICE4} 81",
    f"{SERVICE6} 81",
    "172.30.254.3 80",
    "2001:db8:254::99 80",
    f"{PUBLIC[0]} 5000",
    f"{PUBLIC[1]} 5000",
)
STANDING = (
    service("open", SERVICE4, SERVICE6, ports=[("UDP", 80), ("TCP", 81)]),
    service(
        "narrow",
        "172.30.254.2",
        "2001:db8:254::2",
        ports=[("UDP", 80)],
        sources=[f"{CLIENT[0]}/32", "2001:db8:100::/64"],
    ),
    service("others", "172.30.254.3", ports=[("UDP", 80)], sources=["192.0.2.0/24"]),
)


def step(router: LabRouter, number: int) -> None:
    """One of the changes that a cluster and its operators make; each makes the kernel's ruleset another one."""
    turn, address = number // 8, f"10.9.{number // 8 % 200}.{number % 8}"
    name = f"churn{number // 8 % 50}"
    match number % 8:
        case 0:
            router.put(service(name, address, f"2001:db8:9::{turn % 200:x}", ports=[("UDP", 80), ("TCP", 443)]))
        case 1:
            router.put(service(name, address, limit=f"{turn + 1} mbytes/minute", ports=[("UDP", 80)]))
        case 2:
            router.put(service(name, address, limit=f"{turn + 1}/second burst 5 packets"))
        case 3:
            router.put(service(name, address, sources=[f"10.{turn % 250}.0.0/16", "2001:db8::/32"]))
        case 4:
            router.put(service(f"{name}-b", address, "172.30.254.3", ports=[("TCP", 1 + turn)]))
        case 5:
            router.delete(service(f"{name}-b"))
        case 6 if turn % 2:
            router.delete(service(name))
        case 6:
            router.put(service(name, address, ports=[("SCTP", 1 + turn)]))
        case _:
            switched = {"enable_ssh": turn % 2 == 0, "enable_bgp": turn % 4 < 2, "enable_rateshape": turn % 8 < 4}
            router.put(nft(**switched))
            if turn % 5 == 0:
                router.local_chain.write_text(f"chain local-chain {{ tcp dport {1 + turn} drop }}")


def test_two_thousand_changes_under_load_let_nothing_forbidden_pass_and_lose_nothing_allowed(
    lab: Lab, router: LabRouter
) -> None:
    begin(router, nft(), *STANDING)
    applied = 0
    with traffic(lab, [*ALLOWED, *FORBIDDEN]) as running:
        assert eventually(lambda: running.through(len(ALLOWED)))
        for number in range(CHANGES):
            step(router, number)
            applied += router.synced(resync=number % 100 == 0).outcome is Outcome.APPLIED
        tallies = running.end()
    assert applied == CHANGES
    allowed = dict(zip(ALLOWED, tallies, strict=False))
    forbidden = dict(zip(FORBIDDEN, tallies[len(ALLOWED) :], strict=True))
    assert {destination: tally.arrived for destination, tally in forbidden.items() if tally.arrived} == {}
    assert {destination: tally for destination, tally in allowed.items() if tally.arrived != tally.sent} == {}
    assert min(tally.sent for tally in tallies) > CHANGES


def test_a_table_that_is_deleted_and_added_with_a_policy_alone_is_caught_leaking_under_the_same_load(lab: Lab) -> None:
    kernel: Kernel = lab.router.call(Kernel)
    crowd = [service(f"crowd{number}", f"10.9.{number // 250}.{number % 250}") for number in range(500)]
    ruleset = wanted([*STANDING, *crowd], nft(enable_rateshape=False))
    chains = {
        name: replace(chain, rules=chain.rules.removesuffix("\t\tdrop\n")) if chain.hook else chain
        for name, chain in ruleset.tables[INET].chains.items()
    }
    table = replace(ruleset.tables[INET], chains=chains)
    text = render(replace(ruleset, tables={INET: table}))
    kernel.apply(text)
    deadline, replaced = time.monotonic() + CONTROL_SECONDS, 0
    with traffic(lab, [*ALLOWED, *FORBIDDEN]) as running:
        assert eventually(lambda: running.through(len(ALLOWED)))
        while not running.through(len(ALLOWED) + 1) and time.monotonic() < deadline:
            kernel.apply(f"delete table inet nftsync\n{text}")
            replaced += 1
        tallies = running.end()
    assert sum(tally.arrived for tally in tallies[len(ALLOWED) :]) > 0, f"{replaced} times, and nothing got through"
