"""The operator's own chain is taken out of its file verbatim, and no brace or quote in it reaches beyond our table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftsync.ruleset.hostnames import host_names
from nftsync.ruleset.localchain import LocalChainError, by_name, parse_local_chain
from nftsync.ruleset.model import Ruleset
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import tables
from nftsync.ruleset.text import render
from tests.support import ROOT, Netns

RULES = '\ttcp dport 9 accept # a } brace\n\tip saddr { 192.0.2.1, 192.0.2.2 } counter drop comment "a } # brace"\n'

TAKEN = {
    f"chain local-chain {{\n{RULES}}}\n": RULES,
    f"# mine }}\n\nchain local-chain {{\n{RULES}}}\n# end {{\n": RULES,
    "chain local-chain {}": "",
    "chain local-chain { }": "",
    "chain\n\tlocal-chain\t{\n}\n": "",
    "chain local-chain { };": "",
    "chain local-chain { accept }": "accept\n",
    "chain local-chain { accept; drop; }": "accept; drop;\n",
    "chain local-chain { accept # }\n}": "accept # }\n",
    "chain local-chain {\n\n\taccept\n\n}": "\n\taccept\n\n",
    "chain local-chain {\r\n\taccept\r\n}\r\n": "\r\n\taccept\r\n",
    'chain local-chain { comment "type filter hook input"; }': 'comment "type filter hook input";\n',
    "chain local-chain { # type filter hook input\n}": "# type filter hook input\n",
    'chain local-chain { log prefix "include add @x " # include "x"\n}': 'log prefix "include add @x " # include "x"\n',
    "chain local-chain { iifname include0 accept }": "iifname include0 accept\n",
    "": "",
    " \n\t# nothing yet { }\n": "",
}

REFUSED = {
    "chain local-chain {": "the last '}' is missing",
    "chain local-chain { ip saddr { 192.0.2.1 accept }": "the last '}' is missing",
    "chain local-chain { accept # }": "the last '}' is missing",
    "chain local-chain { accept }\n}": "line 2: a '}' closes nothing",
    "}": "line 1: a '}' closes nothing",
    "chain local-chain { } }; flush ruleset; table x {": "line 1: a '}' closes nothing",
    'chain local-chain {\n\tlog prefix "x\n}': "line 2: a quote is not closed",
    'chain local-chain { comment "a\nb" }': "line 1: a quote is not closed",
    "chain local-chain { accept }\nchain other { accept }": "it holds more than one block",
    "chain local-chain { accept } table inet x { }": "it holds more than one block",
    "chain other { accept }": "it must be 'chain local-chain { … }' and nothing else, not 'chain other'",
    "chain local-chain2 { accept }": "not 'chain local-chain2'",
    "table inet x { chain local-chain { accept } }": "not 'table inet x'",
    "flush ruleset\nchain local-chain { }": "it must be 'chain local-chain { … }' and nothing else",
    "define x = 5; chain local-chain { }": "it must be 'chain local-chain { … }' and nothing else",
    "accept\n": "there is something outside of chain local-chain: 'accept'",
    ";": "there is something outside",
    "chain local-chain { }\nflush ruleset\n": "there is something outside of chain local-chain: 'flush ruleset'",
    'chain local-chain { } include "x"': "there is something outside",
    "chain local-chain { type filter hook input priority 0; policy accept; }": (
        "not a base chain: remove its hook and its policy"
    ),
    "chain local-chain {\n\taccept\n\ttype  filter\n hook input priority 0;\n}": "remove its hook and its policy",
    "chain local-chain { accept; policy drop; }": "remove its hook and its policy",
    "chain local-chain { accept\0 }": "it holds a NUL character",
    'chain local-chain {\n\tinclude "/etc/extra.nft"\n}': "line 2: nft reads an included file only when it loads",
    '# mine\nchain local-chain { accept; include "/etc/nftables.d/*.nft"\n}': "line 2: nft reads an included file",
    'chain local-chain {\n\taccept\n\tinclude"x"\n}': "line 3: nft reads an included file",
    "chain local-chain {\n\n\tip saddr gateway.example accept\n}": "line 3: nft looks up the host name",
    "chain local-chain {\n\tadd @services4 { ip daddr . meta l4proto . th dport }\n}": "line 2: the sets of table inet",
    "chain local-chain {\n\tset update ip saddr @pools4\n}": "line 2: the sets of table inet nftsync",
}


@pytest.mark.parametrize(("text", "body"), TAKEN.items())
def test_the_body_of_the_chain_is_kept_verbatim(text: str, body: str) -> None:
    assert parse_local_chain(text).text == body


@pytest.mark.parametrize(("text", "wrong"), REFUSED.items())
def test_what_is_not_exactly_one_such_chain_is_refused_with_the_reason(text: str, wrong: str) -> None:
    with pytest.raises(LocalChainError) as refused:
        parse_local_chain(text)
    assert wrong in str(refused.value)
    assert str(refused.value).isprintable()


def test_the_shipped_file_is_a_chain_without_rules() -> None:
    body = parse_local_chain((ROOT / "etc/local-chain.nft").read_text(encoding="utf-8")).text
    assert [line for line in body.splitlines() if not line.strip().startswith("#")] == []


pieces = st.sampled_from(
    [
        "chain", " ", "local-chain", "{", "}", '"', "#", "\n", ";", "\\", "accept", "drop",
        "type filter hook input priority 0;",
        "ip saddr", "192.0.2.1", "flush ruleset", "table inet x", "counter", "'", "\r", "\x0b", "\x85", "\u2028",
        "$", "@", "*",
        "\t", "include",
    ]
)  # fmt: skip
texts = st.lists(pieces, max_size=20).map("".join)


@given(st.text() | texts | texts.map("chain local-chain {{\n{}\n}}".format))
def test_no_text_ends_in_anything_but_a_body_or_a_sentence(text: str) -> None:
    try:
        body = parse_local_chain(text).text
    except LocalChainError as refused:
        message = str(refused)
        assert message.isprintable()
    else:
        assert not body or body.endswith("\n")
        assert body.strip() in text


def test_whatever_is_taken_no_body_reaches_beyond_our_table(shared_netns: Netns) -> None:
    """Every body that was taken is loaded by the real nft, or refused by it; the table beside ours never changes."""
    beside = "table inet beside {\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 192.0.2.1 }\n\t}\n}\n"
    shared_netns.nft(beside)
    taken = set(TAKEN.values())

    @given(texts.map("chain local-chain {{\n{}\n}}".format))
    def attempt(text: str) -> None:
        try:
            taken.add(parse_local_chain(text).text)
        except LocalChainError:
            return

    attempt()
    assert len(taken) > len(set(TAKEN.values()))
    loaded = 0
    for body in sorted(taken):
        text = "add table inet nftsync\ndelete table inet nftsync\n" + render(
            Ruleset(tables(Settings(local_chain=body)))
        )
        loaded += not shared_netns.command("nft", "-f", "-", text=text, check=False)
        names = shared_netns.command("nft", "list", "tables").splitlines()
        assert set(names) <= {"table inet beside", "table inet nftsync"}
        assert shared_netns.command("nft", "list", "table", "inet", "beside") == beside
        if "table inet nftsync" in names:
            listing = shared_netns.command("nft", "-t", "list", "table", "inet", "nftsync")
            assert re.findall(r"^\tchain (\S+) ", listing, re.MULTILINE) == list(tables(Settings())["inet"].chains)
    assert loaded >= len(set(TAKEN.values())) - 1, "all but the one with carriage returns"


def test_a_file_that_ends_within_a_comment_still_closes_our_chain(netns: Netns, tmp_path: Path) -> None:
    body = parse_local_chain("chain local-chain { accept # mine\n}").text
    netns.nft(render(Ruleset(tables(Settings(local_chain=body)))))
    assert "chain forward" in netns.command("nft", "list", "ruleset")


PLACES = {
    "chain local-chain {\n\taccept\n}": (1, 0),
    "# mine\n\nchain local-chain\n{\n\n\taccept\n}": (4, 0),
    "chain local-chain { accept }": (0, 20),
    "": (0, 0),
}


@pytest.mark.parametrize(("text", "place"), PLACES.items())
def test_the_place_of_the_body_in_the_file_is_known(text: str, place: tuple[int, int]) -> None:
    body = parse_local_chain(text)
    assert (body.line, body.column) == place
    lines = text.split("\n")[body.line :]
    assert body.text.rstrip("\n").split("\n")[0] in (lines[0][body.column :], lines[0][body.column : -2])


HOST_NAMES = {
    "ip saddr gateway.example accept": ["gateway.example"],
    "ip saddr != { a.example, 192.0.2.1, gw } drop": ["a.example", "gw"],
    "ip6 daddr {\n\t2001:db8::1,\n\tlocalhost\n} accept": ["localhost"],
    'ip saddr "gw" accept': ["gw"],
    "ip saddr vmap { gw : accept, b.example:drop, 192.0.2.1 : drop }": ["gw", "b.example"],
    "ip saddr . tcp dport { a.example . ssh, 192.0.2.1 . http } accept": ["a.example"],
    "define x = a.example\n ip saddr $x accept": ["a.example"],
    "ct original ip saddr gw accept": ["gw"],
    "ip saddr !=gw drop": ["gw"],
    "ip saddr gt gw drop": ["gw"],
    "ip saddr & 255.0.0.0 == gw drop": ["gw"],
    "ip saddr == \\\n gw drop": ["gw"],
    'define x = "gw"\n ip saddr $x accept': ["gw"],
    "iifname . ip saddr { eth0 . a.example } accept": ["a.example"],
    "define x = { 192.0.2.1,\n a.example }\n ip saddr $x accept": ["a.example"],
}
NO_HOST_NAMES = [
    "ip saddr 192.0.2.1 accept # a.example",
    "ip saddr { 192.0.2.0/24, 198.51.100.1-198.51.100.9 } accept",
    "ip6 saddr { fe80::/10, abcd::1, 2001:db8::1-2001:db8::9 } accept",
    'ip saddr @pools4 iifname eth0.lan log prefix "ip saddr gw" accept comment "saddr gw"',
    'ip saddr . iifname { 192.0.2.1 . "eth0.100" } accept',
    'ip saddr . tcp dport { 192.0.2.1 . 22 comment "gw.example" } accept',
    'define lan = "eth0.lan"\n iifname $lan accept',
    "define lan = eth0.lan\n iifname $lan accept",
    "define friends = { 192.0.2.1, 192.0.2.2 }\n ip saddr $friends accept",
    "ip saddr and 255.255.255.0 @pools4 accept",
    "iifname . ip saddr { eth0 . 192.0.2.1, eth1 . 192.0.2.2 } accept",
    "tcp dport . ip6 daddr vmap { http . 2001:db8::1 : accept }",
    "define x = { ssh . 192.0.2.1 }\n tcp dport . ct original ip daddr $x accept",
    "ip saddr &",
    "ip",
    "saddr",
    "define",
    "define x = $x\n ip saddr $x",
    "ether saddr aa:bb:cc:dd:ee:ff accept",
    "meter x { ip saddr limit rate 3/minute } accept",
    "meter y { ip saddr . tcp dport timeout 5s counter } accept",
    "fib saddr . iif oif missing drop",
    "fib daddr type local accept",
    "tcp dport { ssh, https } accept",
    "ip protocol icmp ip saddr & 255.0.0.0 == 10.0.0.0 accept",
    "define web = { http, https }\n tcp dport $web accept",
    "meta mark set ip saddr map { 192.0.2.1 : 1 }",
    "ip saddr",
    "ip saddr . {",
]


@pytest.mark.parametrize("rules", [*HOST_NAMES, *NO_HOST_NAMES])
def test_host_names_are_told_from_all_other_words(rules: str) -> None:
    found = list(host_names(rules))
    assert [name for name, _ in found] == HOST_NAMES.get(rules, [])
    assert all(rules[place:].lstrip('"').startswith(name) for name, place in found)


BY_NAME = {
    'iif "vpn0" accept': 'iifname "vpn0" accept',
    "iif vpn0 oif != { vpn1, vpn2 } drop": "iifname vpn0 oifname != { vpn1, vpn2 } drop",
    'meta iif . tcp dport { "vpn0" . 22 } accept': 'meta iifname . tcp dport { "vpn0" . 22 } accept',
    "iif vmap { vpn0 : accept, vpn1 : drop }": "iifname vmap { vpn0 : accept, vpn1 : drop }",
    "fib saddr . iif oif missing iif vpn0 drop": "fib saddr . iif oif missing iifname vpn0 drop",
    "fib daddr . iif type local oif eq vpn0 accept": "fib daddr . iif type local oifname eq vpn0 accept",
}
AS_IT_IS = [
    "iif != 5 drop",
    'iif != { "lo", 5 } drop',
    "iif 1-3 accept",
    "iif & 3 == 1 accept",
    'iifname "iif" oifname "oif" accept comment "iif vpn0" # iif vpn0',
    "iiftype ether accept",
    "fib saddr . iif oif missing drop",
]


@pytest.mark.parametrize("body", [*BY_NAME, *AS_IT_IS])
def test_interfaces_by_their_names_need_not_be_there(netns: Netns, body: str) -> None:
    named = by_name(body)
    assert named == BY_NAME.get(body, body)

    def check(chain: str) -> str:
        text = render(Ruleset(tables(Settings(local_chain=f"{chain}\n"))))
        return netns.command("nft", "--check", "--file", "-", text=text, check=False)

    assert check(named) == ""
    assert ("Interface does not exist" in check(body)) is (body in BY_NAME)
