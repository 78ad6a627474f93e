"""The ruleset that pinholes and settings give: its text, and that the kernel holds what the text says."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings

from nftsync.config import Filters
from nftsync.objects.names import Name
from nftsync.objects.nft import NftSpec, Nics
from nftsync.objects.ratelimit import RateLimit, parse_ratelimit
from nftsync.objects.service import Port, Protocol, Service
from nftsync.policy.pinholes import Pinhole, PinholeIndex
from nftsync.policy.public import Link, public_side
from nftsync.ruleset.model import INET, NETDEV, Chain, Ruleset, Set, Table, quoted
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import elements, pinhole_key, ruleset, tables
from nftsync.ruleset.text import render
from tests.support import NICS, Fresh, Netns, absent, filled, rulesets, same, side

WEB = Name("shop", "web")
BYTES = RateLimit(1024, "second", 0, packets=False)
PACKETS = RateLimit(5, "second", 5, packets=True)
ANYBODY4 = Pinhole("192.0.2.1 . tcp . 80", 4, None, None, WEB)
QUOTED = {4: "0xc0000201 . 6 . 80", 6: "0x20010db8000000000000000000000001 . 6 . 80"}  # tcp 80 of the addresses below
ANYBODY6 = Pinhole("2001:db8::1 . tcp . 80", 6, None, None, WEB)


def hole(address: str = "192.0.2.1", sources: tuple[str, ...] | None = None, limit: RateLimit | None = None) -> Pinhole:
    ranges = None if sources is None else tuple(ip_network(each) for each in sources)
    return Pinhole(f"{address} . tcp . 80", ip_address(address).version, ranges, limit, WEB)


def chain(shown: Settings, name: str, family: str = INET) -> str:
    return tables(shown)[family].chains[name].rules


# --- text ----------------------------------------------------------------------------------------------


def test_a_ruleset_is_rendered_as_nft_lists_it() -> None:
    shown = Ruleset(
        {
            INET: Table(
                {"a": Set("ipv4_addr", "interval", "counter"), "b": Set("ipv6_addr")},
                {
                    "c": Chain("\t\taccept\n"),
                    "d": Chain("\t\tjump c\n", "type filter hook input priority 0; policy drop;"),
                },
            )
        },
        {INET: {"a": {"192.0.2.2": "", "192.0.2.1": ""}}},
    )
    assert render(shown, name="x") == (
        "table inet x {\n"
        "\tset a {\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\tcounter\n"
        "\t\telements = { 192.0.2.1,\n\t\t\t     192.0.2.2 }\n\t}\n\n"
        "\tset b {\n\t\ttype ipv6_addr\n\t}\n\n"
        "\tchain c {\n\t\taccept\n\t}\n\n"
        "\tchain d {\n\t\ttype filter hook input priority 0; policy drop;\n\t\tjump c\n\t}\n"
        "}\n"
    )


def test_nothing_is_rendered_as_nothing() -> None:
    assert render(Ruleset()) == ""


def test_equal_input_in_another_order_gives_identical_text() -> None:
    holes = [
        hole("192.0.2.1"),
        hole("192.0.2.2", ("10.0.0.0/8", "198.51.100.0/24")),
        hole("2001:db8::1", None, PACKETS),
    ]
    shown = Settings(enable_rateshape=True)
    assert render(ruleset(holes, shown)) == render(ruleset(reversed(holes), shown))


@pytest.mark.parametrize(
    ("pinhole", "found"),
    [
        (hole(), {INET: {"services4": {"192.0.2.1 . tcp . 80": ""}}}),
        (hole("2001:db8::1"), {INET: {"services6": {"2001:db8::1 . tcp . 80": ""}}}),
        (
            hole("192.0.2.1", ("10.0.0.0/8",)),
            {INET: {"sources4": {"192.0.2.1 . tcp . 80 . 10.0.0.0/8": ""}, "closed4": {"192.0.2.1 . tcp . 80": ""}}},
        ),
        (
            hole("192.0.2.1", ("198.51.100.7/32",)),
            {INET: {"sources4": {"192.0.2.1 . tcp . 80 . 198.51.100.7": ""}, "closed4": {"192.0.2.1 . tcp . 80": ""}}},
        ),
        (
            hole("2001:db8::1", ("2001:db8:7::1/128",)),
            {
                INET: {
                    "sources6": {"2001:db8::1 . tcp . 80 . 2001:db8:7::1": ""},
                    "closed6": {"2001:db8::1 . tcp . 80": ""},
                }
            },
        ),
        (hole("192.0.2.1", ()), {INET: {"closed4": {"192.0.2.1 . tcp . 80": ""}}}),
        (hole("192.0.2.1", (), PACKETS), {INET: {"closed4": {"192.0.2.1 . tcp . 80": ""}}}),
        (
            hole("192.0.2.1", None, BYTES),
            {
                INET: {
                    "services4": {"192.0.2.1 . tcp . 80": ""},
                    "limited-dnat4": {"192.0.2.1 . tcp . 80": "limit rate over 1 kbytes/second burst 1 bytes"},
                    "dropped-dnat4": {"192.0.2.1 . tcp . 80": ""},
                },
                NETDEV: {
                    "limited4": {"192.0.2.1 . tcp . 80": "limit rate over 1 kbytes/second burst 1 bytes"},
                    "dropped4": {"192.0.2.1 . tcp . 80": ""},
                    "fragments4": {"192.0.2.1": "limit rate over 1 kbytes/second burst 1 bytes"},
                    "ingress4": {"192.0.2.1": ""},
                },
            },
        ),
        (
            hole("2001:db8::1", None, PACKETS),
            {
                INET: {
                    "services6": {"2001:db8::1 . tcp . 80": ""},
                    "limited-dnat6-packets": {"2001:db8::1 . tcp . 80": "limit rate over 5/second burst 5 packets"},
                    "dropped-dnat6": {"2001:db8::1 . tcp . 80": ""},
                },
                NETDEV: {
                    "limited6-packets": {"2001:db8::1 . tcp . 80": "limit rate over 5/second burst 5 packets"},
                    "dropped6": {"2001:db8::1 . tcp . 80": ""},
                    "fragments6-packets": {"2001:db8::1": "limit rate over 5/second burst 5 packets"},
                    "ingress6": {"2001:db8::1": ""},
                },
            },
        ),
    ],
)
def test_a_pinhole_is_these_elements(pinhole: Pinhole, found: Any) -> None:
    shown = filled(elements([pinhole], Settings(enable_rateshape=True)))
    errors = shown.get(INET, {}).pop(f"errors{pinhole.version}", {})
    assert shown == found
    assert list(errors) == ([] if pinhole.sources == () else [QUOTED[pinhole.version]])


@pytest.mark.parametrize(
    ("key", "element"),
    [
        ("192.0.2.1 . tcp . 80", "0xc0000201 . 6 . 80"),
        ("10.0.0.255 . udp . 65535", "0x0a0000ff . 17 . 65535"),
        ("2001:db8::1 . sctp . 1", "0x20010db8000000000000000000000001 . 132 . 1"),
        ("64:ff9b::102:304 . tcp . 80", "0x0064ff9b000000000000000001020304 . 6 . 80"),
    ],
)
def test_an_icmp_error_quotes_a_pinhole_in_numbers(key: str, element: str) -> None:
    assert quoted(key) == element
    assert pinhole_key(element) == key


def test_without_rate_shaping_nothing_is_limited_and_there_is_no_netdev_table() -> None:
    shown = ruleset([hole("192.0.2.1", None, BYTES)], Settings(enable_rateshape=False))
    assert filled(shown.elements) == {
        INET: {"services4": {"192.0.2.1 . tcp . 80": ""}, "errors4": {"0xc0000201 . 6 . 80": ""}}
    }
    assert list(shown.tables) == [INET]


@settings(max_examples=40)
@given(rulesets())
def test_whatever_has_a_limit_has_a_counter_of_what_the_limit_dropped(shown: Ruleset) -> None:
    sets = shown.elements.get(NETDEV, {})
    for version in (4, 6):
        limited = {*sets.get(f"limited{version}", ()), *sets.get(f"limited{version}-packets", ())}
        assert limited == set(sets.get(f"dropped{version}", ()))


def test_only_what_is_switched_on_reaches_the_router_itself() -> None:
    nic = Settings(side("enp1s0"), enable_bgp=True, enable_ssh=True)
    assert chain(nic, "operator-cr") == "\t\ttcp dport 179 accept\n\t\ttcp dport 22 accept\n"
    assert (
        chain(Settings(side("enp1s0"), enable_bgp=False, enable_ssh=True), "operator-cr") == "\t\ttcp dport 22 accept\n"
    )
    assert chain(Settings(side("enp1s0"), enable_bgp=False, enable_ssh=False), "operator-cr") == ""


def test_bfd_is_open_to_listed_bgp_peers_of_each_family_and_to_nobody_else() -> None:
    ports = "{ 3784 . 255, 3785 . 254-255, 4784 . 1-255 } accept"
    peers = (ip_network("2001:db8::/64"), ip_network("192.0.2.1/32"))
    bfd = [
        line.strip()
        for line in chain(Settings(side("enp1s0"), enable_bgp=True, bgp_peers=peers), "operator-cr").splitlines()
        if "udp" in line
    ]
    assert bfd == [
        f"ip saddr {{ 192.0.2.1/32 }} udp dport . ip ttl {ports}",
        f"ip6 saddr {{ 2001:db8::/64 }} udp dport . ip6 hoplimit {ports}",
    ]
    assert "udp" not in chain(Settings(side("enp1s0"), enable_bgp=False, bgp_peers=peers), "operator-cr")
    assert "udp" not in chain(Settings(side("enp1s0"), enable_bgp=True), "operator-cr")


@pytest.mark.parametrize("base", ["input", "forward"])
def test_every_base_chain_ends_in_an_explicit_verdict_and_its_policy_is_drop(base: str) -> None:
    for dropall, verdict in ((True, "drop"), (False, "accept")):
        shown = tables(Settings(side("enp1s0"), enable_dropall=dropall))[INET].chains[base]
        assert shown.rules.splitlines()[-1] == f"\t\t{verdict}"
        assert shown.hook.endswith("policy drop;")


def test_the_local_chain_comes_before_everything_that_decides() -> None:
    settings = Settings(side("enp1s0"), enable_rateshape=True)
    before = {"goto from-public", "jump egress-limits", "jump dnat-limits", ""}  # limits, and the chain below
    for base in ("input", "forward", "from-public"):
        rules = chain(settings, base).split("\t\tjump local-chain\n")[0].split("\n")
        assert {" ".join(rule.split()[-2:]) for rule in rules} <= before
        assert "\t\tjump local-chain\n" in chain(settings, base)


def test_without_a_public_nic_every_interface_but_lo_counts_as_public() -> None:
    for anybody in (Settings(), Settings(absent("enp1s0"))):
        assert "iif" not in chain(anybody, "forward")
        assert "accept" not in chain(anybody, "from-inside")
    assert chain(Settings(side("enp1s0")), "from-inside").endswith("\t\taccept\n")


def test_packets_tell_a_public_interface_by_index_by_name_and_by_the_port_of_a_vrf() -> None:
    links = [Link(7, "enp1s0", frozenset({"wan"})), Link(8, "enp6s0")]
    settings = Settings(public_side(links, Nics(("wan",))))
    shown = ruleset([], settings)
    assert shown.elements[INET]["public"] == {'"enp1s0"': ""}
    assert shown.elements[INET]["public-links"] == {"7": ""}
    matches = ("iif @public-links", "iifname @public", "meta sdif != 0 meta sdifname @public")
    for name, action in (("forward", "goto from-public"), ("input", "jump operator-cr"), ("from-inside", "return")):
        for match in matches:
            assert f"\t\t{match} {action}\n" in chain(settings, name)


def test_with_inside_nics_nobody_else_counts_as_inside() -> None:
    settings = Settings(public_side([Link(7, "enp1s0"), Link(8, "enp6s0")], Nics(("enp1s0",), ("enp6s0",))))
    assert ruleset([], settings).elements[INET]["inside"] == {'"enp6s0"': ""}
    assert chain(settings, "from-inside").endswith("\t\tiifname @inside accept\n\t\tmeta sdifname @inside accept\n")
    missing = Settings(public_side([Link(8, "enp6s0")], Nics(("enp1s0",), ("enp6s0",))))
    assert "\t\tiifname != @inside goto from-public\n" in chain(missing, "forward")


def test_no_packet_from_a_source_port_is_let_in_for_that_alone() -> None:
    shown = render(Ruleset(tables(Settings(side("enp1s0"), enable_bgp=True, enable_rateshape=True))))
    assert all(
        line.endswith(" drop") for line in shown.splitlines() if "sport" in line
    ), "only egress limits ask for it"


def test_the_nic_is_hooked_only_while_it_is_there() -> None:
    shown = tables(Settings(absent("enp1s0"), enable_rateshape=True))[NETDEV]
    assert "ratelimit" not in shown.chains
    hooked = tables(Settings(side("enp1s0"), enable_rateshape=True))[NETDEV]
    assert hooked.chains["ratelimit"].hook == 'type filter hook ingress device "enp1s0" priority 0; policy accept;'


def test_settings_follow_the_resource_and_the_interfaces() -> None:
    spec = NftSpec(Nics(("enp1s0",)), enable_bgp=False, enable_ssh=False, enable_dropall=False, enable_rateshape=True)
    assert Settings.of(spec, side("enp1s0"), local_chain="x") == Settings(
        side("enp1s0"), enable_bgp=False, enable_dropall=False, enable_rateshape=True, enable_ssh=False, local_chain="x"
    )
    assert Settings.of(spec, side("enp2s0"), local_chain="").devices == ("enp2s0",)
    assert Settings.of(spec, absent("enp1s0"), local_chain="").devices == ()


def test_without_settings_the_strictest_hold() -> None:
    strict = Settings.of(None, side("enp2s0"), local_chain="x")
    assert strict == Settings(
        side("enp2s0"), enable_bgp=False, enable_dropall=True, enable_rateshape=False, local_chain="x"
    )


# --- kernel --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def router(shared_netns: Netns) -> Netns:
    shared_netns.add_nics(*NICS)
    return shared_netns


@settings(max_examples=40)
@given(rulesets())
def test_what_is_rendered_is_what_the_kernel_holds_after_nft_loaded_it(router: Netns, shown: Ruleset) -> None:
    router.nft(
        "add table inet nftsync\nadd table netdev nftsync\ndelete table inet nftsync\ndelete table netdev nftsync\n"
        + render(shown)
    )
    same(router, shown, Fresh.of(router))


def test_every_kind_of_pinhole_survives_the_way_from_the_service_to_the_kernel_and_back(router: Netns) -> None:
    limited = [parse_ratelimit(text) for text in ("2 mbytes/second burst 512 kbytes", "400/minute burst 10 packets")]
    ranges = (
        None,
        (ip_network("0.0.0.0/0"),),
        tuple(map(ip_network, ("64:ff9b::102:304/128", "::102:300/120", "10.0.0.1/32"))),
    )
    services = [
        Service(
            Name("shop", f"web-{number}"), "", "", "",
            (ip_address(f"192.0.2.{number}"), ip_address(f"::192.0.2.{number}")),
            tuple(Port(protocol, port) for protocol in Protocol for port in (1, 80, 65535)), sources, limit, (),
        )
        for number, (sources, limit) in enumerate(((s, li) for s in ranges for li in (None, *limited)), start=1)
    ]  # fmt: skip
    shown = ruleset(PinholeIndex(services, Filters()).pinholes.values(), Settings(side("pub0"), enable_rateshape=True))
    router.nft(
        "add table inet nftsync\nadd table netdev nftsync\ndelete table inet nftsync\ndelete table netdev nftsync\n"
        + render(shown)
    )
    same(router, shown, Fresh.of(router))
    found = router.run(router.kernel.read)
    assert sum(len(members) for sets in found.ruleset.elements.values() for members in sets.values()) > 200
