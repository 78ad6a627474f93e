"""Which rules of a local chain accept packets of established connections to a closed endpoint."""

from __future__ import annotations

import pytest

from nftsync.ruleset.established import accepting_rule

ACCEPTING = [
    "ct state established,related accept",
    "ct state established, related accept",
    "ct state { established, related } accept",
    "ct state {established,related} counter accept",
    "ct state related,established counter packets 5 bytes 7 accept",
    "ct state != new accept",
    "ct state != { new, invalid } accept",
    "ct state != invalid accept",
    "ct state & (established | related) != 0 accept",
    "ct state & established == established accept",
    "ct state established|related accept",
    "ct state 6 accept",
    "ct state new,established accept",
    "ct state vmap { established : accept, related : accept, invalid : drop }",
    "ct state vmap { invalid : drop, established : accept }",
    "ct state vmap { established : goto global, new : continue }",
    'ct state . iifname vmap { established . "public0" : accept, new . "lan0" : accept }',
    "ct status assured accept",
    "ct status { seen-reply, assured } accept",
    "ct direction original accept",
    "ct direction reply ct state established accept",
    "ct mark 0x1 accept",
    "accept",
    "counter accept",
    'counter comment "drop it" accept',
    'log prefix "x" accept',
    "meta l4proto tcp accept",
    "meta l4proto { tcp, udp } ct state established accept",
    "ip protocol tcp accept",
    "tcp flags ack accept",
    "tcp flags & (fin | syn | rst | ack) == ack accept",
    "tcp dport 80 ct state established accept",
    "tcp dport { 22, 80-90 } ct state established accept",
    "ip saddr 192.0.2.0/24 ct state established accept",
    'iifname "public0" ct state established accept',
    'iifname { "lan0", "public0" } ct state established accept',
    'iifname "pub*" ct state established accept',
    'iifname != "lan0" ct state established accept',
    'oifname "cluster0" ct state established accept',
    "ct state established jump { accept }",
    "ct state established \\\n\t\taccept",
    "ct state {\n\t\testablished,\n\t\trelated\n\t} accept",
    "jump global",
    "ip6 daddr 2001:db8::1 drop; ct state established accept",
]
OTHERS = [
    "",
    "# ct state established accept",
    'drop comment "ct state established accept"',
    "ct state established drop",
    "ct state new accept",
    "ct state new,related accept",
    "ct state { new } accept",
    "ct state != established accept",
    "ct state != { established, related } accept",
    "ct state & (established | related) == 0 accept",
    "ct state invalid drop",
    "ct state 8 accept",
    "ct state vmap { new : accept, established : continue }",
    "ct state vmap { established : jump operator-svc }",
    "ct state established ct state new accept",
    "ct status expected accept",
    'iifname "lan0" accept',
    'iifname "lan0" ct state established accept',
    'iifname { "lan0", "lan1" } ct state established,related accept',
    'oifname "public0" ct state established accept',
    "tcp dport 4444 accept",
    "tcp dport 22 ct state established accept",
    "udp dport { 53, 123 } ct state established accept",
    "ip saddr 192.0.2.0/24 accept",
    "tcp dport vmap { 80 : accept }",
    "icmp type echo-request accept",
    "ct state established meta l4proto icmp accept",
    "fib daddr type local ct state established accept",
    "drop\n\tct state established accept",
    "counter return\n\taccept",
    "jump operator-svc",
]


@pytest.mark.parametrize("body", ACCEPTING)
def test_a_rule_that_accepts_established_packets_is_named(body: str) -> None:
    found = accepting_rule(f"\t{body}\n", {"public0"}, 80)
    assert found is not None
    assert found.line == 1


@pytest.mark.parametrize("body", OTHERS)
def test_a_rule_that_accepts_none_to_a_closed_port_is_not_named(body: str) -> None:
    assert accepting_rule(f"\t{body}\n", {"public0"}, 80) is None


@pytest.mark.parametrize(
    "line", ['iifname "wan9" ct state established accept', "tcp dport 22 ct state established accept"]
)
def test_without_knowing_the_interfaces_or_the_port_a_rule_for_some_counts(line: str) -> None:
    assert accepting_rule(line) == (1, line)


def test_the_line_is_that_of_the_chain_and_a_long_rule_is_cut() -> None:
    body = "\t# { mine }\n\n\ttcp dport {\n\t\t22,\n\t\t23\n\t} drop\n\tct state established,related accept\n"
    assert accepting_rule(body) == (7, "ct state established, related accept")
    long = accepting_rule(f"ct state established ip saddr {{ {', '.join(f'192.0.2.{n}' for n in range(60))} }} accept")
    assert long is not None
    assert len(long.text) == 80
