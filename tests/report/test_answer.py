"""An explanation tells of other tables only where they matter, and stays short."""

from __future__ import annotations

from nftsync.report.answer import explain
from nftsync.report.explanation import ExplainReason, Verdict
from nftsync.report.others import OtherChain, OtherTables
from tests.labtools import service
from tests.report.test_explain import WEB, view

FORWARD = OtherChain("inet", "theirs", "forward", "forward", 0, "drop")
RULES = OtherChain("inet", "theirs", "forward", "forward", 0, drops=2)
INGRESS = OtherChain("netdev", "theirs", "in", "ingress", 0, drops=1, devices=("public0",))


def beside(*chains: OtherChain, unread: tuple[str, ...] = ()) -> OtherTables:
    return OtherTables(chains, unread)


def test_a_policy_makes_the_verdict_depend_and_comes_first() -> None:
    found = explain(view(WEB, others=lambda: beside(FORWARD)), ["172.30.254.1:80"])
    assert (found.verdict, found.reason) == (Verdict.DEPENDS, ExplainReason.OTHER_TABLES)
    assert found.lines[0] == (
        "nftsync lets it pass, but table inet theirs, chain forward (hook forward, priority filter) "
        "drops packets by its policy: see `nft list table inet theirs`"
    )
    assert found.rule.startswith("operator-svc: ")


def test_rules_that_drop_leave_the_verdict_and_come_last() -> None:
    limited = service("slow", "172.30.254.2", limit="1 mbytes/second")
    for raw, target, verdict in ((WEB, "172.30.254.1:80", "passes"), (limited, "172.30.254.2:80", "limited")):
        found = explain(view(raw, others=lambda: beside(RULES)), [target])
        assert (found.verdict, found.reason) == (verdict, ExplainReason.OPEN)
        assert (
            "chain forward (hook forward, priority filter) has 2 rules that drop or reject packets" in found.lines[-1]
        )
        assert found.also == (ExplainReason.OTHER_TABLES,)


def test_only_hooks_families_and_interfaces_on_the_packets_way_count() -> None:
    others = beside(
        OtherChain("ip6", "six", "c", "forward", 0, "drop"),
        OtherChain("ip", "in", "c", "input", 0, "drop"),
        OtherChain("netdev", "inside", "c", "ingress", 0, "drop", devices=("cluster0",)),
    )
    found = explain(view(WEB, others=lambda: others), ["172.30.254.1:80"])
    assert (found.verdict, found.also) == (Verdict.PASSES, ())
    assert explain(view(WEB, others=lambda: others), ["[2001:db8:254::1]:80"]).verdict is Verdict.DEPENDS
    assert explain(view(WEB, others=lambda: others), ["198.51.100.1:22"]).verdict is Verdict.DEPENDS
    at_nic = explain(view(WEB, others=lambda: beside(INGRESS)), ["default/web"])
    assert "chain in (hook ingress at public0, priority filter) has 1 rule that drops or rejects" in at_nic.lines[-1]


def test_a_packet_that_nftsync_drops_asks_for_no_other_table() -> None:
    def never() -> OtherTables:
        raise AssertionError("it need not be read")

    assert explain(view(WEB, others=never), ["172.30.254.1:81"]).verdict is Verdict.DROPPED


def test_many_chains_are_counted_and_unread_parts_are_told() -> None:
    others = OtherTables((RULES,) * 9, ("table ip long is too long",))
    found = explain(view(WEB, others=lambda: others), ["172.30.254.1:80"])
    assert len([line for line in found.lines if "has 2 rules" in line]) == 5
    assert found.lines[-2:] == (
        "… and 4 more chains of other tables can drop it: run `nftsync check`",
        "table ip long is too long",
    )
