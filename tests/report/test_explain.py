"""Every question gets an answer or a sentence, and every answer says why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftsync.config import AddressPolicy, Filters
from nftsync.daemon import answers
from nftsync.kernel.netlink import DumpError
from nftsync.objects.address import Address, AddressSet, Local, parse_range
from nftsync.objects.metallb import MetalLBConfig, Pool
from nftsync.objects.names import Name
from nftsync.objects.service import Protocol, parse_service
from nftsync.plan.result import Outcome, SyncResult
from nftsync.report.explain import explain_packet, explain_service
from nftsync.report.explanation import ExplainReason, Explanation, Verdict, View
from nftsync.report.query import PacketQuery, parse_query
from nftsync.report.traffic import Count, Reading
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset
from nftsync.ruleset.text import render
from tests.labtools import PUBLIC_NIC, Raw, service
from tests.report.views import result_of
from tests.support import absent, side

POOL = "172.30.254.0/24"
OWN = ip_address("198.51.100.1")
PEER = ip_address("172.30.254.250")
PINHOLE4 = "operator-svc: ip daddr . meta l4proto . th dport @services4 accept"
SOURCES4 = "operator-svc: ip daddr . meta l4proto . th dport . ip saddr @sources4 accept"
CLOSED4 = "operator-svc: ip daddr . meta l4proto . th dport @closed4 counter drop"
POOLS4 = "operator-svc: meta l4proto { tcp, udp, sctp } ct direction original ip daddr @pools4 counter drop"
WEB = service("web", "172.30.254.1", "2001:db8:254::1", ports=[("TCP", 80), ("UDP", 53)])


def view(*services: Raw, **fields: Any) -> View:
    """The view of a router's daemon: MetalLB's pool is POOL and an IPv6 one.

    fields: of Settings, View or result_of().
    """
    of_view = {
        name: fields.pop(name) for name in ("routed", "drops", "drops_egress", "invalid", "others") if name in fields
    }
    of_result = {name: fields.pop(name) for name in ("filters", "address_policy", "quarantined") if name in fields}
    pools = Pool(
        "services", "IPAddressPool metallb-system/services", (parse_range(POOL), parse_range("2001:db8:254::/64")), True
    )
    known = MetalLBConfig((pools,), frozenset({PEER}))
    parsed = [each for raw in services if (each := parse_service(raw, None))]
    result = result_of(parsed, None, pools=known, local=Local(frozenset({OWN})), **of_result)
    switches: dict[str, Any] = {"enable_rateshape": True, "cluster": result.guard.cluster} | fields
    result = replace(result, settings=Settings(**{"side": side(PUBLIC_NIC), **switches}))
    return View(result, {each.name: each for each in parsed}, **of_view)


def ask(shown: View, *words: str) -> Explanation:
    """The answer as the command would give it. A rule that it names is one of the ruleset's."""
    query = parse_query(words)
    found = explain_service(shown, query) if isinstance(query, Name) else explain_packet(shown, query)
    if found.rule:
        assert shown.result.settings
        chain, _, rule = found.rule.partition(": ")
        text = render(ruleset(shown.result.index.pinholes.values(), shown.result.settings))
        assert f"\t\t{rule}\n" in text.split(f"\tchain {chain} {{\n")[1].split("\t}\n")[0]
    assert json.loads(json.dumps(found.as_json()))["reason"] == found.reason
    assert found.text().startswith(f"{found.verdict}: {found.lines[0]}")
    return found


def short(found: Explanation) -> tuple[str, str, str]:
    return str(found.verdict), str(found.reason), found.lines[0]


# --- the question -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "source", "destination", "protocol", "port"),
    [
        ("192.0.2.1:80", None, "192.0.2.1", Protocol.TCP, 80),
        ("192.0.2.1:53/udp", None, "192.0.2.1", Protocol.UDP, 53),
        ("192.0.2.1:53/UDP", None, "192.0.2.1", Protocol.UDP, 53),
        ("[2001:db8::1]:443/tcp", None, "2001:db8::1", Protocol.TCP, 443),
        ("[2001:DB8:0::1]:65535/sctp", None, "2001:db8::1", Protocol.SCTP, 65535),
        ("203.0.113.7 192.0.2.1:80", "203.0.113.7", "192.0.2.1", Protocol.TCP, 80),
        ("2001:db8:113::7 [2001:db8::1]:1", "2001:db8:113::7", "2001:db8::1", Protocol.TCP, 1),
    ],
)
def test_a_packet_is_an_address_and_a_port_after_a_source_or_not(
    words: str, source: str | None, destination: str, protocol: Protocol, port: int
) -> None:
    expected = PacketQuery(ip_address(source) if source else None, ip_address(destination), protocol, port)
    assert parse_query(words.split()) == expected


def test_a_name_with_a_slash_is_a_service() -> None:
    assert parse_query(["default/web"]) == Name("default", "web")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "name a packet or a Service; write [SOURCE] ADDRESS:PORT"),
        (["a/b", "c/d", "e/f"], "names neither a packet nor a Service"),
        (["192.0.2.1"], "'192.0.2.1' names neither a packet nor a Service; write [SOURCE] ADDRESS:PORT"),
        (["192.0.2.1:0"], "names neither"),
        (["192.0.2.1:080"], "names neither"),
        (["192.0.2.1:65536"], "names neither"),
        (["192.0.2.1:８０"], "names neither"),  # full-width digits
        (["192.0.2.1:80\n"], "names neither"),
        (["192.0.2.1:80/icmp"], "names neither"),
        (["192.0.2.1:http"], "names neither"),
        (["192.0.2.1 :80"], "names neither"),
        (["2001:db8::1:80"], "names neither"),
        (["[fe80::1%eth0]:80"], "names neither"),
        (["192.0.2.010:80"], "'192.0.2.010' is not an IP address"),
        (["192.0.2.256:80"], "'192.0.2.256' is not an IP address"),
        (["[2001:db8::1::]:80"], "is not an IP address"),
        (["[::ffff:192.0.2.1]:80"], "write 192.0.2.1"),
        (["127.0.0.1:80"], "can never be a Service's address"),
        (["Default/web"], "names neither"),
        (["default/web/x"], "names neither"),
        (["192.0.2.9", "default/web"], "names neither"),
        (["eth0", "192.0.2.1:80"], "'eth0' is not an address that a packet comes from"),
        (["fe80::1%eth0", "[2001:db8::1]:80"], "is not an address that a packet comes from"),
        (["203.0.113.１", "192.0.2.1:80"], "is not an address that a packet comes from"),
        (
            ["203.0.113.7", "[2001:db8::1]:80"],
            "no packet goes from 203.0.113.7 to 2001:db8::1: one is IPv4, the other IPv6",
        ),
    ],
)
def test_what_is_no_question_is_told_what_is_wrong_and_what_is_right(words: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=r"\A.*\Z") as raised:
        parse_query(words)
    assert complaint in str(raised.value)
    assert str(raised.value).isprintable()


like = st.from_regex(r"\[?[0-9a-f.:%]{0,20}\]?:[0-9]{0,6}(/[a-z]*)?")
odd = (
    st.text()
    | like
    | st.sampled_from(["192.0.2.1", "192.0.2.9:80/udp", "2001:db8::1", "[2001:db8::2]:1", "a/b", ":", "[]:1"])
)


@given(st.lists(odd, max_size=3))
def test_hostile_words_are_a_question_or_a_value_error(words: list[str]) -> None:
    try:
        query = parse_query(words)
    except ValueError as fault:
        assert str(fault).isprintable()  # noqa: PT017  # both ways out are right
    else:
        assert isinstance(query, Name) or 1 <= query.port <= 65535


# --- packets through the router -----------------------------------------------------------------------


def test_an_open_pinhole_names_its_service_and_the_rule() -> None:
    found = ask(view(WEB), "172.30.254.1:53/udp")
    assert short(found) == ("passes", "open", "Service default/web opens 172.30.254.1 udp 53 to everybody")
    assert (found.service, found.rule, found.also) == (Name("default", "web"), PINHOLE4, ())
    six = ask(view(WEB), "[2001:db8:254::1]:80")
    assert six.rule == PINHOLE4.replace("ip daddr", "ip6 daddr").replace("services4", "services6")


def test_source_ranges_let_some_in_and_without_a_source_it_depends() -> None:
    own = view(service("own", "172.30.254.1", "2001:db8:254::1", sources=["203.0.113.0/24", "192.0.2.7/32"]))
    opens = "Service default/own opens 172.30.254.1 tcp 80 to 192.0.2.7/32, 203.0.113.0/24 alone"
    assert short(ask(own, "203.0.113.7", "172.30.254.1:80")) == ("passes", "open", opens)
    assert short(ask(own, "172.30.254.1:80")) == ("depends", "open", opens)
    assert ask(own, "172.30.254.1:80").rule == SOURCES4
    refused = ask(own, "192.0.2.8", "172.30.254.1:80")
    assert short(refused) == ("dropped", "refused_source", opens)
    assert refused.rule == CLOSED4
    other_family = ask(own, "[2001:db8:254::1]:80")
    assert short(other_family)[:2] == ("dropped", "refused_source")
    assert "to nobody: no valid range is of this family" in other_family.lines[0]
    everybody = view(service("own", "172.30.254.1", sources=["0.0.0.0/1", "128.0.0.0/1"]))
    assert ask(everybody, "172.30.254.1:80").verdict is Verdict.PASSES


def test_a_service_whose_ranges_are_all_invalid_is_open_to_nobody_and_says_so() -> None:
    found = ask(view(service("own", "172.30.254.1", sources=["nonsense"])), "172.30.254.1:80")
    assert short(found)[:2] == ("dropped", "invalid")
    assert any("invalid_source_range: source range 'nonsense' has no prefix length" in line for line in found.lines)


def test_an_address_that_no_service_has() -> None:
    found = ask(view(WEB), "172.30.254.99:80")
    assert short(found) == ("dropped", "no_such_address", "no Service has the address 172.30.254.99")
    assert (found.rule, found.service, len(found.lines)) == (POOLS4, None, 1)
    outside = ask(view(WEB), "203.0.113.9:80")
    assert outside.reason is ExplainReason.NO_SUCH_ADDRESS
    assert "203.0.113.9 is outside of MetalLB's usable pools (services: 172.30.254.0/24" in outside.lines[1]
    assert outside.rule == "operator-svc: drop"


def test_an_address_outside_of_the_pools() -> None:
    stray = service("stray", "203.0.113.9")
    found = ask(view(stray), "203.0.113.9:80")
    assert short(found)[:2] == ("dropped", "outside_pools")
    assert found.lines[0].startswith(
        "Service default/stray asks for 203.0.113.9 tcp 80, "
        "but 203.0.113.9 is outside of MetalLB's usable pools (services: 172.30.254.0"
    )
    assert (found.service, found.rule) == (Name("default", "stray"), "operator-svc: drop")
    announced = ask(view(stray, address_policy=AddressPolicy(advertised_only=True)), "203.0.113.9:80")
    assert announced.lines[0].endswith("; only pools announced over BGP count (advertised_pools_only)")


def test_a_reserved_address() -> None:
    found = ask(view(service("thief", str(PEER)), address_policy=AddressPolicy(advertised_only=True)), f"{PEER}:80")
    assert short(found)[:2] == ("dropped", "reserved_address")
    assert found.lines[0].endswith("but 172.30.254.250 is an address of the router or of a BGP peer; it stays closed")


def test_a_port_that_no_service_asks_for_names_those_that_are() -> None:
    found = ask(view(WEB), "172.30.254.1:443")
    line = "no Service asks for 172.30.254.1 tcp 443; at this address asks Service default/web for tcp 80, udp 53"
    assert short(found) == ("dropped", "no_such_port", line)
    many = service("many", "172.30.254.1", ports=[("TCP", port) for port in range(1, 9)])
    assert ask(view(many), "172.30.254.1:443").lines[0].endswith("for tcp 1, tcp 2, tcp 3, tcp 4, tcp 5 and 3 more")


def test_a_service_whose_ports_were_all_refused_says_what_was() -> None:
    found = ask(view(service("bad", "172.30.254.1", ports=[("TCP", 70000)])), "172.30.254.1:80")
    assert short(found)[:2] == ("dropped", "invalid")
    assert "invalid_port: spec.ports: port 70000 is not a whole number from 1 to 65535" in found.lines[1]


def test_services_that_the_filters_do_not_admit() -> None:
    filters = Filters(exclude_namespaces=frozenset({"default"}))
    found = ask(view(WEB, filters=filters), "172.30.254.1:80")
    line = "Service default/web asks for 172.30.254.1 tcp 80, but namespaces and exclude_namespaces leave default out"
    assert short(found) == ("dropped", "filtered_namespace", line)
    classes = Filters(load_balancer_classes=frozenset({"", "example.com/a"}))
    other = ask(view(service("web", "172.30.254.1", loadBalancerClass="b\n'"), filters=classes), "172.30.254.1:80")
    assert short(other)[:2] == ("dropped", "other_class")
    assert "its class \"b\\n'\" is not in load_balancer_classes ('', 'example.com/a')" in other.lines[0]


def test_of_several_services_that_ask_those_that_count_are_told_of_first() -> None:
    early, late = service("a", "203.0.113.9"), service("z", "203.0.113.9")
    early["metadata"]["namespace"] = "alpha"
    found = ask(view(early, late, filters=Filters(exclude_namespaces=frozenset({"alpha"}))), "203.0.113.9:80")
    assert (found.reason, found.service) == (ExplainReason.OUTSIDE_POOLS, Name("default", "z"))
    assert found.lines[1].startswith(
        "Service alpha/a asks for 203.0.113.9 tcp 80, but namespaces and exclude_namespaces"
    )


def test_a_service_that_the_kernel_does_not_take_is_in_quarantine() -> None:
    shown = view(WEB, quarantined={Name("default", "web"): "no"})
    line = "Service default/web asks for 172.30.254.1 tcp 80, but the kernel refuses this Service: no; "
    found = ask(shown, "172.30.254.1:80")
    assert short(found)[:2] == ("dropped", "quarantined")
    assert found.lines[0].startswith(line)
    assert ask(shown, "default/web").reason == "quarantined"


def test_a_service_that_is_newer_than_what_is_applied_waits_for_the_next_sync() -> None:
    found = ask(replace(view(), services=view(WEB).services), "172.30.254.1:80")
    line = "Service default/web asks for 172.30.254.1 tcp 80, but it is not applied yet; the next sync applies it"
    assert short(found) == ("dropped", "waiting", line)


def test_what_has_no_route_is_not_forwarded() -> None:
    found = ask(view(WEB, routed=lambda _: False), "172.30.254.1:80")
    line = "the router has no route to 172.30.254.1, or only one back through the public NIC"
    assert short(found) == ("dropped", "no_route", line)
    assert found.lines[1] == "Service default/web opens 172.30.254.1 tcp 80 to everybody"
    assert (found.service, found.rule) == (Name("default", "web"), "")
    assert ask(view(WEB, routed=lambda _: True), "172.30.254.1:80").reason is ExplainReason.OPEN
    assert ask(view(WEB, routed=lambda _: False), "172.30.254.1:443").reason is ExplainReason.NO_SUCH_PORT


def test_without_enable_dropall_everything_passes_and_the_answer_still_says_what_would_be() -> None:
    loose = view(service("own", "172.30.254.1", sources=["203.0.113.0/24"]), enable_dropall=False)
    for words in (
        ["172.30.254.1:80"],
        ["192.0.2.7", "172.30.254.1:80"],
        ["172.30.254.1:443"],
        ["192.0.2.9:1"],
        [f"{OWN}:80"],
    ):
        found = ask(loose, *words)
        assert short(found) == ("passes", "everything_passes", "everything passes: enable_dropall is false")
        assert found.rule == ("input: accept" if words == [f"{OWN}:80"] else "operator-svc: accept")
    assert (
        ask(loose, "172.30.254.1:80").lines[1]
        == "Service default/own opens 172.30.254.1 tcp 80 to 203.0.113.0/24 alone"
    )
    assert ask(loose, "203.0.113.1", "172.30.254.1:80").reason is ExplainReason.OPEN


def test_nothing_is_known_while_nothing_is_applied() -> None:
    waiting = "there is no usable Nft resource arbf-operators/nft"
    shown = replace(view(WEB), result=SyncResult(Outcome.WAITING, waiting, filters=True))
    for question in ("172.30.254.1:80", "default/web"):
        found = ask(shown, question)
        assert short(found)[:2] == ("depends", "waiting")
        assert found.lines[0].startswith(
            "nothing is applied yet: there is no usable Nft resource arbf-operators/nft; until then"
        )


def test_where_no_table_of_ours_stands_everything_passes_and_it_is_said_why() -> None:
    shown = replace(view(WEB), result=SyncResult(Outcome.WAITING, "the first lists are not complete"))
    for question in ("172.30.254.1:81", "default/web"):
        assert short(ask(shown, question)) == (
            "passes",
            "waiting",
            "everything passes: the first lists are not complete",
        )


# --- limits, the local chain, the NIC -----------------------------------------------------------------

SLOW = service("slow", "172.30.254.1", limit="2 mbytes/second burst 512 kbytes")
LIMIT = "2 mbytes/second burst 512 kbytes"


def test_an_egress_limit_is_told_with_what_it_has_dropped_and_whether_it_is_in_force() -> None:
    sending = service("slow", "172.30.254.1", egress=LIMIT)
    found = ask(view(sending, drops_egress=lambda _: 12), "172.30.254.1:80")
    assert (found.verdict, found.reason) == (Verdict.PASSES, ExplainReason.OPEN), "the way in is not limited"
    assert found.lines[1] == f"its limit for what it sends is {LIMIT}; packets dropped over it: 12"
    off = ask(view(sending, enable_rateshape=False), "172.30.254.1:80")
    assert off.lines[1] == f"its limit for what it sends, {LIMIT}, is not in force: enable_rateshape is false"
    gone = ask(view(sending, side=absent(PUBLIC_NIC)), "172.30.254.1:80")
    assert gone.lines[1] == f"its limit for what it sends, {LIMIT}, is not in force: every interface counts as public"


def test_a_limit_is_told_with_what_it_has_dropped() -> None:
    asked: list[str] = []

    def drops(key: str) -> int:
        asked.append(key)
        return 12

    found = ask(view(SLOW, drops=drops), "172.30.254.1:80")
    assert (found.verdict, found.reason, found.rule) == (Verdict.LIMITED, ExplainReason.OPEN, PINHOLE4)
    assert found.lines[1] == f"its limit is {LIMIT}; packets dropped over it: 12"
    assert asked == ["172.30.254.1 . tcp . 80"]
    assert ask(view(SLOW), "172.30.254.1:80").lines[1] == f"its limit is {LIMIT}"
    narrow = service("slow", "172.30.254.1", limit=LIMIT, sources=["203.0.113.0/24"])
    assert ask(view(narrow), "172.30.254.1:80").verdict is Verdict.DEPENDS
    assert ask(view(narrow), "203.0.113.1", "172.30.254.1:80").verdict is Verdict.LIMITED
    assert ask(view(narrow), "192.0.2.1", "172.30.254.1:80").verdict is Verdict.DROPPED
    assert ask(view(narrow, enable_dropall=False), "192.0.2.1", "172.30.254.1:80").verdict is Verdict.LIMITED


def test_a_limit_is_not_in_force_without_rate_shaping_or_without_the_public_nic() -> None:
    off = ask(view(SLOW, enable_rateshape=False), "172.30.254.1:80")
    assert (off.verdict, off.reason, off.also) == (Verdict.PASSES, ExplainReason.OPEN, ())
    assert off.lines[1] == f"its limit, {LIMIT}, is not in force: enable_rateshape is false"
    refused = ask(view(SLOW, limits_refused=True), "172.30.254.1:80")
    assert (refused.verdict, refused.reason, refused.also) == (Verdict.PASSES, ExplainReason.OPEN, ())
    assert refused.lines[1] == f"its limit, {LIMIT}, is not in force: the kernel refuses the rate limits"
    missing = ask(view(SLOW, side=absent(PUBLIC_NIC)), "172.30.254.1:80")
    assert (missing.verdict, missing.reason, missing.also) == (
        Verdict.PASSES,
        ExplainReason.NIC_MISSING,
        (ExplainReason.NIC_MISSING,),
    )
    assert missing.lines[1] == f"its limit, {LIMIT}, is not in force: the public NIC is not there"
    assert (
        missing.lines[2] == "public0 is not there: every interface counts as public, and no ingress limit is in force"
    )
    unlimited = ask(view(WEB, side=absent(PUBLIC_NIC)), "172.30.254.1:80")
    assert (unlimited.verdict, unlimited.reason, unlimited.also) == (
        Verdict.PASSES,
        ExplainReason.OPEN,
        (ExplainReason.NIC_MISSING,),
    )


def test_a_pinhole_that_lets_nobody_in_has_no_limit() -> None:
    closed = service("slow", "172.30.254.1", limit=LIMIT, sources=["nonsense"])
    found = ask(view(closed, enable_dropall=False), "172.30.254.1:80")
    assert (found.verdict, found.reason) == (Verdict.PASSES, ExplainReason.EVERYTHING_PASSES)


def test_a_refused_limit_is_told_beside_what_is_open() -> None:
    before = parse_service(SLOW, None)
    after = parse_service(service("slow", "172.30.254.1", limit="fast"), before)
    assert after
    shown = replace(view(SLOW), services={after.name: after})
    for question in ("172.30.254.1:80", "default/slow"):
        assert ask(shown, question).lines[-1].endswith(f"the previous limit, {LIMIT}, stays")
        assert ask(shown, question).verdict is Verdict.LIMITED
    assert ask(shown, "default/slow").reason is ExplainReason.INVALID


def test_the_local_chain_comes_first_unless_it_holds_comments_alone() -> None:
    found = ask(view(WEB, local_chain="\t\ttcp dport 80 drop\n"), "172.30.254.1:80")
    assert (found.verdict, found.reason, found.also) == (
        Verdict.PASSES,
        ExplainReason.OPEN,
        (ExplainReason.LOCAL_CHAIN,),
    )
    assert found.lines[-1] == "the local chain comes first and is not empty: your own rule may decide differently"
    assert ask(view(WEB, local_chain="\n\t# ip saddr 192.0.2.1 accept\n"), "172.30.254.1:80").also == ()
    assert ask(view(local_chain="udp dport 7 accept\n"), f"{OWN}:7/udp").also == (ExplainReason.LOCAL_CHAIN,)


def test_a_dropped_packet_s_explanation_names_the_local_chain_s_rule_for_established_packets() -> None:
    chain = "\tudp dport 7 accept\n\tct state { established, related } accept\n"
    line = (
        "line 2 of the local chain accepts packets of an existing connection: ct state { established, related } accept"
    )
    found = ask(view(WEB, local_chain=chain), "172.30.254.1:81")
    assert (found.verdict, found.also) == (Verdict.DROPPED, (ExplainReason.LOCAL_CHAIN,))
    assert found.lines[-1] == line
    assert line not in ask(view(WEB, local_chain=chain), "172.30.254.1:80").lines, "it passes anyway"
    ported = "tcp dport 80 ct state established accept\n"
    assert len(ask(view(WEB, local_chain=ported), "172.30.254.1:81").also) == 1
    assert "existing connection" not in ask(view(WEB, local_chain=ported), "172.30.254.1:81").lines[-1]


# --- packets to the router ----------------------------------------------------------------------------


def test_the_router_itself_opens_ssh_and_bgp_as_the_switches_say() -> None:
    shown = view(enable_bgp=True)
    assert short(ask(shown, f"{OWN}:22")) == (
        "passes", "router_port",
        "198.51.100.1 is the router's own address; enable_ssh opens 198.51.100.1 tcp 22 to everybody",
    )  # fmt: skip
    assert ask(shown, f"{OWN}:22").rule == "operator-cr: tcp dport 22 accept"
    assert short(ask(shown, f"{OWN}:179"))[:2] == ("passes", "router_port")
    closed = view(enable_bgp=False, enable_ssh=False)
    for words in (f"{OWN}:22", f"{OWN}:179", f"{OWN}:80", f"{OWN}:22/udp", f"{OWN}:179/sctp"):
        found = ask(closed, words)
        assert short(found)[:2] == ("dropped", "router_port")
        assert "is not open there" in found.lines[0]
        assert found.rule == "input: drop"


def test_bgp_peers_alone_may_speak_bgp() -> None:
    shown = view(enable_bgp=True, bgp_peers=(ip_network("192.0.2.0/28"), ip_network("2001:db8:179::/64")))
    rule = "operator-cr: ip saddr { 192.0.2.0/28 } tcp dport 179 accept"
    within = ask(shown, "192.0.2.1", f"{OWN}:179")
    assert (within.verdict, within.rule) == (Verdict.PASSES, rule)
    assert "enable_bgp opens 198.51.100.1 tcp 179 to 192.0.2.0/28, 2001:db8:179::/64 alone" in within.lines[0]
    unknown = ask(shown, f"{OWN}:179")
    assert (unknown.verdict, unknown.reason, unknown.rule) == (Verdict.DEPENDS, ExplainReason.ROUTER_PORT, rule)
    without = ask(shown, "192.0.2.99", f"{OWN}:179")
    assert (without.verdict, without.reason, without.rule) == (
        Verdict.DROPPED,
        ExplainReason.ROUTER_PORT,
        "input: drop",
    )
    one_family = view(enable_bgp=True, bgp_peers=(ip_network("2001:db8:179::/64"),))
    assert ask(one_family, f"{OWN}:179").verdict is Verdict.DROPPED
    loose = view(enable_bgp=True, enable_dropall=False, bgp_peers=(ip_network("192.0.2.0/28"),))
    assert ask(loose, f"{OWN}:179").reason is ExplainReason.EVERYTHING_PASSES


@pytest.mark.parametrize(("port", "ttl"), [(3784, "255"), (3785, "254-255"), (4784, "1-255")])
def test_listed_bgp_peers_alone_may_speak_bfd(port: int, ttl: str) -> None:
    shown = view(enable_bgp=True, bgp_peers=(ip_network("192.0.2.0/28"), ip_network("2001:db8:179::/64")))
    within = ask(shown, "192.0.2.1", f"{OWN}:{port}/udp")
    assert (within.verdict, within.rule) == (
        Verdict.PASSES,
        "operator-cr: ip saddr { 192.0.2.0/28 } udp dport . ip ttl { 3784 . 255, 3785 . 254-255, 4784 . 1-255 } accept",
    )
    assert f"enable_bgp (BFD, TTL {ttl}) opens 198.51.100.1 udp {port} to 192.0.2.0/28" in within.lines[0]
    assert short(ask(shown, "192.0.2.99", f"{OWN}:{port}/udp"))[:2] == ("dropped", "router_port")
    assert short(ask(shown, "192.0.2.1", f"{OWN}:{port}/tcp"))[:2] == ("dropped", "router_port")
    for closed in (view(enable_bgp=True), view(enable_bgp=False, bgp_peers=(ip_network("192.0.2.0/28"),))):
        assert short(ask(closed, "192.0.2.1", f"{OWN}:{port}/udp"))[:2] == ("dropped", "router_port")


# --- Services -----------------------------------------------------------------------------------------


def test_a_service_is_explained_address_by_address_and_port_by_port() -> None:
    found = ask(view(WEB), "default/web")
    assert (found.verdict, found.reason, found.service, found.rule) == (
        Verdict.PASSES,
        ExplainReason.OPEN,
        Name("default", "web"),
        "",
    )
    assert found.lines == (
        "Service default/web: 4 of 4 pairs of address and port are open",
        "Service default/web opens 172.30.254.1 tcp 80 to everybody",
        "Service default/web opens 172.30.254.1 udp 53 to everybody",
        "Service default/web opens 2001:db8:254::1 tcp 80 to everybody",
        "Service default/web opens 2001:db8:254::1 udp 53 to everybody",
    )


def test_a_service_with_source_ranges_is_open_to_whom_it_names() -> None:
    found = ask(
        view(service("own", "172.30.254.1", sources=["203.0.113.0/24"], limit=LIMIT), drops=lambda _: 3), "default/own"
    )
    assert (found.verdict, found.reason) == (Verdict.LIMITED, ExplainReason.OPEN)
    opens = "Service default/own opens 172.30.254.1 tcp 80 to 203.0.113.0/24 alone"
    assert found.lines[1] == f"{opens}; its limit is {LIMIT}; packets dropped over it: 3"
    one_family = ask(view(service("own", "172.30.254.1", "2001:db8:254::1", sources=["203.0.113.0/24"])), "default/own")
    assert (one_family.verdict, one_family.reason) == (Verdict.DEPENDS, ExplainReason.REFUSED_SOURCE)


def test_what_an_older_service_owns_is_lost_and_the_owner_is_named() -> None:
    old = service("old", "172.30.254.1", ports=[("TCP", 80)])
    old["metadata"]["creationTimestamp"] = "2024-01-01T00:00:00Z"
    shown = view(old, WEB)
    found = ask(shown, "default/web")
    assert (found.verdict, found.reason) == (Verdict.DEPENDS, ExplainReason.LOST_TO_OLDER)
    assert found.lines[0] == "Service default/web: 3 of 4 pairs of address and port are open"
    assert found.lines[1] == (
        "Service default/web asks for 172.30.254.1 tcp 80, but the older Service default/old has it. "
        "Service default/web gets it when default/old is deleted"
    )
    assert ask(shown, "default/old").verdict is Verdict.PASSES
    assert ask(shown, "172.30.254.1:80").service == Name("default", "old")


OTHERS_CLASS = service("web")
OTHERS_CLASS["spec"]["loadBalancerClass"] = "example.com/lb"


@pytest.mark.parametrize(
    ("raw", "fields", "reason", "line"),
    [
        (service("web"), {}, ExplainReason.NO_ADDRESS_YET, "opens nothing: MetalLB has not given it an address yet"),
        (
            OTHERS_CLASS,
            {},
            ExplainReason.OTHER_CLASS,
            "it has no address, and only the load balancer of its class 'example.com/lb' may give it one",
        ),
        (
            OTHERS_CLASS,
            {"filters": Filters(load_balancer_classes=frozenset({"example.com/lb"}))},
            ExplainReason.NO_ADDRESS_YET,
            "MetalLB has not given it an address yet",
        ),
        (
            service("web", "172.30.254.1", ports=[]),
            {},
            ExplainReason.INVALID,
            "opens nothing: its refused parts leave no address and port",
        ),
        (
            service("web", "010.0.0.1"),
            {},
            ExplainReason.INVALID,
            "opens nothing: its refused parts leave no address and port",
        ),
        (service("web", limit="fast"), {}, ExplainReason.NO_ADDRESS_YET, "MetalLB has not given it an address yet"),
        (
            WEB | {"spec": {"type": "LoadBalancer", "ports": 80}},
            {},
            ExplainReason.INVALID,
            "its refused parts leave no address",
        ),
        (
            service("web"),
            {"filters": Filters(namespaces=frozenset({"x"}))},
            ExplainReason.FILTERED_NAMESPACE,
            "leave default out",
        ),
        (service("web", "203.0.113.9"), {}, ExplainReason.OUTSIDE_POOLS, "0 of 1 pairs of address and port are open"),
        (service("web", str(PEER)), {}, ExplainReason.RESERVED_ADDRESS, "0 of 1 pairs of address and port are open"),
        (WEB, {"filters": Filters(load_balancer_classes=frozenset({"x"}))}, ExplainReason.OTHER_CLASS, "0 of 4 pairs"),
        (WEB, {"routed": lambda _: False}, ExplainReason.NO_ROUTE, "0 of 4 pairs of address and port are open"),
        (
            WEB | {"spec": {"type": "ClusterIP"}},
            {},
            ExplainReason.NOT_A_SERVICE,
            "there is no Service default/web of type LoadBalancer",
        ),
    ],
)
def test_a_service_that_opens_nothing_says_why(
    raw: Raw, fields: dict[str, Any], reason: ExplainReason, line: str
) -> None:
    found = ask(view(raw, **fields), "default/web")
    assert (found.verdict, found.reason) == (Verdict.DROPPED, reason)
    assert line in found.lines[0]


def test_a_service_of_which_a_part_was_refused_is_not_wholly_open() -> None:
    found = ask(view(service("web", "172.30.254.1", ports=[("TCP", 80), ("TCP", 0)])), "default/web")
    assert (found.verdict, found.reason) == (Verdict.DEPENDS, ExplainReason.INVALID)
    assert found.lines[-1].startswith("Service default/web: invalid_port: spec.ports: port 0 is not")


def test_a_service_is_open_to_all_without_enable_dropall() -> None:
    found = ask(view(service("own", "172.30.254.1", sources=["203.0.113.0/24"]), enable_dropall=False), "default/own")
    assert (found.verdict, found.reason) == (Verdict.PASSES, ExplainReason.EVERYTHING_PASSES)


def test_a_service_is_routed_address_by_address() -> None:
    routed: Callable[[Address], bool] = lambda address: isinstance(address, IPv4Address)  # noqa: E731
    found = ask(view(WEB, routed=routed), "default/web")
    assert (found.verdict, found.reason) == (Verdict.DEPENDS, ExplainReason.NO_ROUTE)
    assert found.lines[3].startswith("the router has no route to 2001:db8:254::1, or only one back")


# --- how it is shown ----------------------------------------------------------------------------------


def test_text_and_json_hold_the_same() -> None:
    found = ask(view(SLOW, local_chain="tcp dport 9 drop\n"), "172.30.254.1:80")
    assert found.text().splitlines() == [
        "limited: Service default/slow opens 172.30.254.1 tcp 80 to everybody",
        f"decided by {PINHOLE4}",
        f"its limit is {LIMIT}",
        "the local chain comes first and is not empty: your own rule may decide differently",
    ]
    assert json.loads(json.dumps(found.as_json())) == {
        "verdict": "limited",
        "reason": "open",
        "also": ["local_chain"],
        "service": "default/slow",
        "rule": PINHOLE4,
        "lines": list(found.lines),
    }
    assert ask(view(), "172.30.254.1:80").as_json()["service"] is None


# --- large Services -----------------------------------------------------------------------------------


def test_of_a_large_service_the_first_pairs_are_told_one_by_one_and_all_are_counted() -> None:
    ports = [("TCP", number) for number in range(1, 1001)]
    large = service("large", "172.30.254.1", "172.30.254.2", "203.0.113.1", ports=ports, limit="400/second")
    elder = service("elder", "172.30.254.2", ports=[("TCP", 1000)], created="2020-01-01T00:00:00Z")
    asked = Counter[str]()
    found = ask(view(large, elder, routed=lambda address: asked.update([str(address)])), "default/large")
    assert asked.total() <= 3000, "once for each pair"
    assert short(found)[0] == Verdict.DEPENDS
    assert found.lines[0] == "Service default/large: 1999 of 3000 pairs of address and port are open"
    assert sum(" opens 172.30.254.1 tcp " in line for line in found.lines) == 200
    assert "… and 2795 more pairs" in found.lines
    assert found.reason is ExplainReason.LOST_TO_OLDER, "that of the first one"
    unrouted = ask(view(large, routed=lambda address: str(address) != "172.30.254.2"), "default/large")
    assert unrouted.lines[0] == "Service default/large: 1000 of 3000 pairs of address and port are open"
    everything = ask(view(large, enable_dropall=False), "default/large")
    assert everything.lines[0] == "Service default/large: 3000 of 3000 pairs of address and port are open"
    assert everything.verdict is not Verdict.DROPPED


def test_what_is_closed_in_a_large_service_is_found_and_has_its_reason() -> None:
    large = service("large", "172.30.254.1", ports=[("TCP", number) for number in range(1, 1001)])
    elder = service("elder", "172.30.254.1", ports=[("TCP", 999)], created="2020-01-01T00:00:00Z")
    found = ask(view(large, elder), "default/large")
    assert short(found) == (
        "depends",
        "lost_to_older",
        "Service default/large: 999 of 1000 pairs of address and port are open",
    )
    assert any(
        "asks for 172.30.254.1 tcp 999, but the older Service default/elder has it" in line for line in found.lines
    )
    assert "… and 799 more pairs" in found.lines
    assert len(found.lines) == 1 + 200 + 1 + 1


CROWD = (
    service(
        "web",
        "172.30.254.1",
        "2001:db8:254::1",
        "203.0.113.1",
        str(PEER),
        sources=["198.51.100.0/24"],
        limit="400/second",
    ),
    service("own", "172.30.254.2", "2001:db8:254::2", ports=[("TCP", 80), ("UDP", 53)]),
    service("nobody", "172.30.254.3", sources=["nonsense"]),
    service("late", "172.30.254.1", "172.30.254.4", created="2025-01-01T00:00:00Z"),
)


@pytest.mark.parametrize("switches", [{}, {"enable_dropall": False}, {"side": absent(PUBLIC_NIC)}])
@pytest.mark.parametrize("unrouted", ["", "172.30.254.2", "172.30.254.4"])
@pytest.mark.parametrize("name", ["web", "own", "nobody", "late"])
def test_pairs_that_are_only_counted_are_counted_as_those_that_are_told(
    name: str, unrouted: str, switches: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = view(*CROWD, **switches, routed=lambda address: str(address) != unrouted)
    told = explain_service(shown, Name("default", name))
    monkeypatch.setattr("nftsync.report.explain._DETAILED", 1)
    monkeypatch.setattr("nftsync.report.explain._NAMED", 0)
    counted = explain_service(shown, Name("default", name))
    assert (counted.verdict, counted.lines[0]) == (told.verdict, told.lines[0])


def test_of_many_limited_pinholes_the_kernel_is_asked_once_and_once_for_each_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: Counter[str] = Counter()

    def read() -> Reading:
        asked["counters"] += 1
        return Reading({"dropped4": {}, "dropped6": {}}, {}, {})

    def routed(address: Address) -> bool:
        asked[str(address)] += 1
        return True

    monkeypatch.setattr("nftsync.kernel.counters.read", read)
    addresses = [f"172.30.254.{number}" for number in range(1, 21)]
    shown = view(service("large", *addresses, ports=[("TCP", port) for port in range(1, 151)], limit="400/second"))
    source = SimpleNamespace(inputs=SimpleNamespace(services=SimpleNamespace(objects=shown.services.values)))
    observer = SimpleNamespace(network=SimpleNamespace(routed=routed))
    daemon: Any = SimpleNamespace(observer=observer, source=source, last=shown.result)
    found = answers.answer(daemon, {"command": "explain", "words": ["default/large"]})
    assert found["verdict"] == "limited"
    assert found["lines"][0] == "Service default/large: 3000 of 3000 pairs of address and port are open"
    assert asked == Counter(["counters", *addresses])


def test_the_kernel_is_asked_once_for_what_all_limits_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read() -> Reading:
        asked.append(1)
        a, b = (("a", b""), ("b", b""))
        counts = {
            "dropped4": {a: Count(7, 0)}, "dropped6": {b: Count(9, 0)}, "dropped-dnat4": {a: Count(1, 0)},
            "dropped-egress4": {a: Count(2, 0)}, "services4": {a: Count(99, 0)},
        }  # fmt: skip
        return Reading(counts, {}, {}, {}, {("global", 5): Count(11, 0)})

    monkeypatch.setattr("nftsync.kernel.counters.read", read)
    drops, drops_egress, invalid = answers._counts()
    assert not asked, "only who has a limit asks"
    assert [drops(key) for key in ("a", "b", "c")] == [8, 9, None]
    assert [drops_egress(key) for key in ("a", "b", "c")] == [2, None, None]
    assert invalid() == 11
    assert len(asked) == 1


def test_where_the_kernel_does_not_tell_what_was_dropped_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Reading:
        raise DumpError(1)

    monkeypatch.setattr("nftsync.kernel.counters.read", refuse)
    drops, drops_egress, invalid = answers._counts()
    assert (drops("a"), drops_egress("a"), invalid()) == (None, None, None)


# --- connection tracking -------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["172.30.254.1:80", "[2001:db8:254::1]:53/udp", "default/web"])
def test_what_passes_tells_that_answers_are_dropped_whose_connection_began_at_another_router(words: str) -> None:
    found = ask(view(WEB, invalid=lambda: 12), words)
    assert found.also == (ExplainReason.TRACKED,)
    assert found.lines[-1] == (
        "answers of a connection that began at another router are dropped as invalid (12 packets so far); "
        "for routers in pairs set stateless = true"
    )
    assert ask(view(WEB, invalid=lambda: 12), "172.30.254.9:80").also == (), "nothing passes there"
    assert ask(view(WEB), words).also == (), "nobody knows"


@pytest.mark.parametrize("words", ["172.30.254.1:80", "[2001:db8:254::1]:53/udp", "default/web"])
def test_stateless_pools_tell_that_answers_pass_at_every_router(words: str) -> None:
    found = ask(view(WEB, stateless=True, invalid=lambda: 12), words)
    assert found.also == (ExplainReason.STATELESS,)
    assert found.lines[-1] == "stateless: its packets are not tracked, so its answers pass at every router"


def test_a_closed_port_of_a_stateless_pool_is_dropped_by_a_rule_of_its_own() -> None:
    found = ask(view(WEB, stateless=True), "172.30.254.1:81")
    assert found.rule == "operator-svc: ip daddr @pools4 counter drop"
    assert found.also == ()


def test_a_service_outside_of_stateless_pools_stays_tracked() -> None:
    found = ask(view(WEB, stateless=True, cluster=AddressSet(), invalid=lambda: 0), "default/web")
    assert found.also == (ExplainReason.TRACKED,)


def test_pools_stay_tracked_while_every_interface_is_public() -> None:
    found = ask(view(WEB, stateless=True, side=absent(PUBLIC_NIC), invalid=lambda: 0), "172.30.254.1:80")
    assert ExplainReason.TRACKED in found.also
    assert "stateless is not in force while every interface counts as public" in found.lines


def test_where_no_pool_is_advertised_the_answer_says_that_and_not_that_there_is_none() -> None:
    flat = Pool("flat", "IPAddressPool metallb-system/flat", (parse_range(POOL),), advertised=False)
    own, policy = parse_service(WEB, None), AddressPolicy(advertised_only=True)
    assert own
    shown = view(WEB)
    result = result_of([own], shown.result.settings, pools=MetalLBConfig((flat,)), address_policy=policy)
    lines = " ".join(explain_service(replace(shown, result=result), own.name).lines)
    assert "no pool is advertised over BGP (advertised_pools_only); 172.30.254.1 stays closed" in lines
    assert "only pools announced" not in lines
