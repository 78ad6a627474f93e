"""The chains of other programs that can drop packets are found, whatever their form, and nothing else is."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftsync.kernel import netlink, others
from nftsync.report.others import OtherChain, OtherTables
from tests.labtools import needs_root
from tests.support import Netns

pytestmark = needs_root

FORWARD = "type filter hook forward priority"


def chain(rules: str, hook: str = f"{FORWARD} 0; policy accept;", name: str = "c") -> str:
    return f"chain {name} {{\n{hook}\n{rules}\n}}\n"


def table(*parts: str, family: str = "inet", name: str = "other") -> str:
    return f"table {family} {name} {{\n{''.join(parts)}}}\n"


TARGET = chain("tcp dport 1 drop\ntcp dport 2 reject", hook="", name="target")
DROPPING = {
    "a policy": (table(chain("", f"{FORWARD} 0; policy drop;")), "drop", 0),
    "a rule": (table(chain("tcp dport 1 drop")), "accept", 1),
    "a reject": (table(chain("reject with icmpx admin-prohibited")), "accept", 1),
    "a reset": (table(chain("tcp dport 1 reject with tcp reset")), "accept", 1),
    "a jump": (table(TARGET, chain("jump target")), "accept", 2),
    "a goto": (table(TARGET, chain("goto target")), "accept", 2),
    "two jumps to one chain": (table(TARGET, chain("tcp dport 1 jump target\ntcp dport 2 jump target")), "accept", 2),
    "a jump of a jump": (table(TARGET, chain("jump target", "", "middle"), chain("jump middle")), "accept", 2),
    "a verdict map": (table(chain("tcp dport vmap { 1 : accept, 2 : drop }")), "accept", 1),
    "a verdict map that jumps": (table(TARGET, chain("tcp dport vmap { 1 : accept, 2 : goto target }")), "accept", 2),
    "a named verdict map": (
        table("map m { type ipv4_addr : verdict; elements = { 192.0.2.1 : drop }\n}\n", chain("ip saddr vmap @m")),
        "accept", 1,
    ),
    "an interval map": (table(chain("ip saddr vmap { 192.0.2.0/24 : drop, 198.51.100.0/24 : accept }")), "accept", 1),
    "a limit": (table(chain("limit rate over 1/second drop")), "accept", 1),
    "another table of our name": (table(chain("drop"), family="ip", name="nftsync"), "accept", 1),
}  # fmt: skip
HARMLESS = {
    "accepts": table(chain("tcp dport 1 accept\ntcp dport vmap { 1 : accept, 2 : return }\ncounter")),
    "a switched off table": table("flags dormant\n", chain("drop", f"{FORWARD} 0; policy drop;")),
    "output": table(chain("drop", "type filter hook output priority 0; policy drop;")),
    "a chain that nobody jumps to": table(TARGET, chain("accept")),
    "a bridge that passes frames on": table(chain("drop"), family="bridge"),
    "marks": table(chain("meta mark set tcp dport map { 1 : 0, 2 : 1 }")),
    "our own table": table(chain("drop", f"{FORWARD} 0; policy drop;"), name="nftsync"),
}


@pytest.fixture
def router(netns: Netns) -> Iterator[Netns]:
    netns.command("ip", "link", "set", "lo", "up")
    yield netns
    netns.nft("flush ruleset")


@pytest.mark.parametrize("name", DROPPING)
def test_a_chain_that_can_drop_packets_is_found_and_its_rules_are_counted(router: Netns, name: str) -> None:
    text, policy, drops = DROPPING[name]
    router.nft(text)
    (found,) = router.run(others.read).chains
    assert (found.hook, found.policy, found.drops) == ("forward", policy, drops)
    assert f"`nft list table {found.family} {found.table}`" in next(OtherTables((found,)).warnings())


@pytest.mark.parametrize("name", HARMLESS)
def test_a_chain_that_drops_nothing_at_our_hooks_is_not_found(router: Netns, name: str) -> None:
    router.nft(HARMLESS[name])
    assert router.run(others.read) == OtherTables()


def test_family_hook_priority_and_devices_are_as_nft_lists_them(router: Netns) -> None:
    hooks = {
        ("ip", "input"): "filter + 10", ("ip6", "prerouting"): "dstnat", ("inet", "postrouting"): "srcnat - 3",
        ("inet", "forward"): "-222", ("bridge", "input"): "0", ("bridge", "output"): "-199",
        ("netdev", "ingress"): "filter", ("inet", "ingress"): "mangle",
    }  # fmt: skip
    for (family, hook), priority in hooks.items():
        device = "device lo " if hook == "ingress" else ""
        number = {"mangle": "-150", "dstnat": "-100", "srcnat - 3": "97"}.get(priority, priority)
        router.nft(
            table(chain("drop", f"type filter hook {hook} {device}priority {number};"), family=family, name=f"t-{hook}")
        )
    found = router.run(others.read).chains
    shown = {(each.family, each.hook): str(each) for each in found}
    assert shown == {
        (family, hook): f"table {family} t-{hook}, chain c (hook {hook}"
        + (" at lo" if hook == "ingress" else "")
        + f", priority {priority})"
        for (family, hook), priority in hooks.items()
    }


def test_a_table_of_a_hundred_thousand_rules_takes_bounded_time_and_hides_no_other_table(router: Netns) -> None:
    rules = "".join(f"ip saddr 10.{n >> 8 & 255}.{n & 255}.1 tcp dport 22 accept\n" for n in range(100_000))
    router.nft(table(chain(rules), name="long") + table(chain("drop"), name="a") + table(chain("drop"), name="z"))
    began = time.process_time()
    found = router.run(others.read)
    assert time.process_time() - began < 20 * others.MOST_SECONDS, "of a busy machine"
    assert [each.table for each in found.chains] == ["a", "z"]
    (unread,) = found.unread
    assert unread.startswith("table inet long is too long")


def test_no_time_left_is_said_and_the_policies_are_still_known(router: Netns) -> None:
    router.nft(table(chain("accept\n" * 600, f"{FORWARD} 0; policy drop;")))
    clock = iter([0.0, 0.1, 0.2])
    found = router.run(lambda: others.read(lambda: next(clock, 9.0), rules=512))
    assert [each.policy for each in found.chains] == ["drop"]
    assert "is too long" in found.unread[0]


def test_names_that_another_program_chose_are_printable() -> None:
    found = OtherTables((OtherChain("inet", "a\x1b[2J\n", "c`x", "forward", 0, "drop"),))
    assert all(said.isprintable() for said in (*found.warnings(), *found.lines()))


def test_legacy_tables_are_told_because_nftables_can_not_show_them(tmp_path: Path) -> None:
    assert list(others.legacy(tmp_path)) == []
    (tmp_path / "ip_tables_names").write_text("nat\nfilter\n")
    (tmp_path / "ip6_tables_names").write_text("")
    assert list(others.legacy(tmp_path)) == [
        "legacy iptables has tables that nftsync can't read (nat, filter): see `iptables-legacy-save`"
    ]


def test_a_reject_of_iptables_nft_counts(router: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of this machine may lack the extension, so the answer is made of its bytes."""

    def attribute(kind: int, value: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)

    target = attribute(1, b"target\0") + attribute(2, attribute(1, b"REJECT\0") + attribute(2, bytes(4)))
    rule = attribute(1, b"filter\0") + attribute(2, b"FORWARD\0") + attribute(4, attribute(1, target))
    message = struct.pack(">BBH", socket.AF_INET, 0, 0) + rule
    real = netlink.Netlink.messages

    def messages(kernel: netlink.Netlink, kind: int, body: bytes) -> Iterator[bytes]:
        return iter([message]) if kind == netlink.GET_RULES else real(kernel, kind, body)

    router.nft(table(chain("", name="FORWARD"), family="ip", name="filter"))
    monkeypatch.setattr(netlink.Netlink, "messages", messages)
    (found,) = router.run(others.read).chains
    assert (found.chain, found.drops) == ("FORWARD", 1)


def test_without_the_right_to_read_it_is_a_sentence_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise netlink.DumpError(1)

    monkeypatch.setattr(netlink.Netlink, "messages", refuse)
    (said,) = others.read().unread
    assert "can't be read" in said
