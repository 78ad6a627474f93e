"""What packets add to the local chain's meters, quotas and limits is no drift and survives every resync."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftsync.cli.diff import differences
from nftsync.kernel.nft import Kernel
from nftsync.plan.result import Outcome
from tests.lab.lab import CLIENT, PUBLIC, Lab, Probe
from tests.labtools import SERVICE4, SERVICE6, needs_root, nft, rules, service
from tests.router import LabRouter, config_in
from tests.support import Netns

pytestmark = needs_root

PROBES = [Probe("tcp", str(address), 4444) for address in PUBLIC]
METERS = "meter four { ip saddr limit rate 2/week } accept\nmeter six { ip6 saddr limit rate 2/week } accept"
QUOTAS = "meta nfproto ipv4 quota 300 bytes accept\nmeta nfproto ipv6 quota 300 bytes accept"
COUNTING = {
    "meters": METERS,
    "meters with a time": METERS.replace("saddr", "saddr timeout 1h"),
    "meters that count bytes": METERS.replace("limit rate 2/week", "quota 300 bytes"),
    "meters with two fields": METERS.replace("saddr", "saddr . tcp dport"),
    "quotas": QUOTAS,
    "limits": QUOTAS.replace("quota 300 bytes", "limit rate 2/week"),
    "limits of elements": f"ip saddr {{ {CLIENT[0]} limit rate 2/week, 192.0.2.1 limit rate 1/week }} accept\n"
    f"ip6 saddr {{ {CLIENT[1]} limit rate 2/week, 2001:db8::1 limit rate 1/week }} accept",
}


def chain(rules_of_it: str) -> str:
    return f"chain local-chain {{\n{re.sub('(?m)^', 'tcp dport 4444 ', rules_of_it)}\ntcp dport 4444 drop\n}}\n"


def named_meters(patch: pytest.MonkeyPatch) -> None:
    """nft as version 1.1 translates a `meter`: to a named set, which stays when the rule goes."""
    apply = Kernel.apply

    def translated(self: Kernel, text: str) -> None:
        kinds = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}
        meters = re.findall(r"meter (\w+) \{ (ip6?) saddr limit", text)
        sets = "".join(f"set {name} {{ type {kinds[ip]}; size 65535; flags dynamic; }}\n" for name, ip in meters)
        apply(
            self,
            re.sub(r"meter (\w+) ", r"update @\1 ", re.sub(r"(?m)^\tchain local-chain \{$", rf"{sets}\g<0>", text)),
        )

    patch.setattr(Kernel, "apply", translated)


@pytest.fixture
def router(lab: Lab, tmp_path: Path) -> Iterator[LabRouter]:
    with LabRouter(lab, config_in(tmp_path), listed=False) as made:
        yield made


def begin(router: LabRouter, rules_of_it: str) -> None:
    router.local_chain.write_text(chain(rules_of_it))
    router.lists(nft(), service("web", SERVICE4, SERVICE6))
    assert router.synced().outcome is Outcome.APPLIED


def used_up(lab: Lab) -> bool:
    """Whether no probe passes, of either family."""
    return not lab.deliver(PROBES * 3)


@pytest.mark.parametrize("name", COUNTING)
def test_what_packets_have_used_up_stays_used_up_over_resyncs_and_restarts(
    lab: Lab, router: LabRouter, name: str
) -> None:
    begin(router, COUNTING[name])
    assert set(lab.deliver(PROBES * 20)) == set(PROBES), "the first packets of both families pass"
    for _ in range(3):
        result = router.synced(resync=True)
        assert (result.outcome, result.drift) == (Outcome.UNCHANGED, False)
        assert used_up(lab)
    router.restart()
    assert not router.synced(resync=True).drift
    assert used_up(lab)


@pytest.mark.parametrize("named", [False, True], ids=["anonymous", "named"])
def test_a_meter_goes_with_its_rule_and_its_name_is_free_for_another(
    lab: Lab, router: LabRouter, monkeypatch: pytest.MonkeyPatch, *, named: bool
) -> None:
    if named:
        named_meters(monkeypatch)
    begin(router, METERS)
    lab.deliver(PROBES * 20)
    assert not router.synced(resync=True).drift
    assert used_up(lab)
    swapped = METERS.replace("four", "x").replace("six", "four").replace("x {", "six {")
    for body, listed in ((swapped, True), ("counter", False)):
        router.local_chain.write_text(chain(body))
        assert router.synced(resync=True).outcome is Outcome.APPLIED
        assert ("set four" in rules(lab)) is (named and listed)
        assert not lab.router.nft("list meters").count("meter four") or listed
        result = router.synced(resync=True)
        assert (result.outcome, result.drift) == (Outcome.UNCHANGED, False)


@pytest.mark.parametrize("named", [False, True], ids=["anonymous", "named"])
def test_a_chain_that_stays_because_no_other_can_be_loaded_keeps_its_meters(
    lab: Lab, router: LabRouter, monkeypatch: pytest.MonkeyPatch, *, named: bool
) -> None:
    if named:
        named_meters(monkeypatch)
    begin(router, METERS)
    lab.deliver(PROBES * 20)
    good = rules(lab)
    router.save_local_chain("\t\tjump nowhere\n")
    router.local_chain.unlink()
    router.local_chain.mkdir()
    router.restart()
    router.lists(nft(), service("web", SERVICE4, SERVICE6))
    router.synced()
    assert "the chain in the kernel stays" in str(router.rejections())
    assert rules(lab) == good
    assert used_up(lab)


@pytest.mark.parametrize("command", [
    "add set inet nftsync theirs { type ipv4_addr; }",
    "add set inet nftsync theirs { type ipv4_addr; flags dynamic; }",
    "add rule inet nftsync local-chain meter theirs { ip saddr counter } accept",
    "add rule inet nftsync local-chain quota 1 mbytes accept",
    "flush chain inet nftsync local-chain",
])  # fmt: skip
def test_a_set_or_rule_that_somebody_adds_beside_a_meter_is_drift(lab: Lab, router: LabRouter, command: str) -> None:
    begin(router, METERS)
    good = rules(lab, "--terse")
    lab.deliver(PROBES * 20)
    lab.router.nft(command)
    assert router.synced(resync=True).drift
    assert rules(lab, "--terse") == good
    assert not router.synced(resync=True).drift


@pytest.mark.parametrize("more", ["", ",timeout\n\t\ttimeout 1h"])
def test_diff_shows_no_elements_that_packets_added(netns: Netns, more: str) -> None:
    """nft 1.1 makes a named set of a meter. This is one."""
    text = f"table inet nftsync {{\n\tset m {{\n\t\ttype ipv4_addr\n\t\tflags dynamic{more}\n\t}}\n}}\n"
    netns.nft(text + "add element inet nftsync m { 192.0.2.1 counter, 192.0.2.2 limit rate 1/second }\n")
    assert netns.run(differences, text) == ""
    assert "-\tset m" in netns.run(differences, "table inet nftsync {\n}\n")


def test_another_limit_in_an_element_of_a_rule_is_drift(lab: Lab, router: LabRouter) -> None:
    begin(router, COUNTING["limits of elements"])
    good = rules(lab)
    body = chain(COUNTING["limits of elements"].replace("2/week", "3/week"))
    lab.router.nft(f"flush chain inet nftsync local-chain\ntable inet nftsync {{\n{body}}}\n")
    assert router.synced(resync=True).drift
    assert rules(lab) == good
