"""The smallest transaction from one ruleset to another, in a real kernel: exact, in place, and all or nothing."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftsync.kernel.nft import KernelError
from nftsync.objects.address import AddressSet, Range
from nftsync.ruleset.model import INET, NETDEV, Chain, Ruleset, Set, Table
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset, tables
from nftsync.ruleset.text import render, transaction
from tests.support import LOCAL_CHAINS, NICS, Fresh, Netns, absent, rulesets, same, side

CLEAR = "".join(f"add table {family} nftsync\ndelete table {family} nftsync\n" for family in (INET, NETDEV))
OPEN = "192.0.2.1 . tcp . 80"
SETTINGS = Settings(side("pub0"), enable_rateshape=True)


def with_elements(shown: Settings, family: str = INET, **sets: dict[str, str]) -> Ruleset:
    return Ruleset(tables(shown), {family: {name.replace("_", "-"): members for name, members in sets.items()}})


SMALL = with_elements(SETTINGS, services4={OPEN: ""})


# --- text ----------------------------------------------------------------------------------------------


def test_nothing_differs_then_nothing_is_sent() -> None:
    assert transaction(SMALL, SMALL) == ""
    assert transaction(Ruleset(), Ruleset()) == ""


def test_one_service_more_or_less_is_one_line() -> None:
    more = with_elements(SETTINGS, services4={OPEN: "", "192.0.2.2 . udp . 53": "", "192.0.2.0 . tcp . 1": ""})
    assert (
        transaction(SMALL, more) == "add element inet nftsync services4 { 192.0.2.0 . tcp . 1, 192.0.2.2 . udp . 53 }\n"
    )
    assert (
        transaction(more, SMALL)
        == "delete element inet nftsync services4 { 192.0.2.0 . tcp . 1, 192.0.2.2 . udp . 53 }\n"
    )


def test_an_element_whose_statement_changed_is_deleted_before_it_is_added() -> None:
    slow = with_elements(SETTINGS, NETDEV, limited4={OPEN: "limit rate over 1 kbytes/second burst 1 bytes"})
    fast = with_elements(SETTINGS, NETDEV, limited4={OPEN: "limit rate over 2 kbytes/second burst 1 bytes"})
    assert transaction(slow, fast) == (
        f"delete element netdev nftsync limited4 {{ {OPEN} }}\n"
        f"add element netdev nftsync limited4 {{ {OPEN} limit rate over 2 kbytes/second burst 1 bytes }}\n"
    )


def test_every_delete_of_a_table_comes_before_its_adds() -> None:
    before = with_elements(SETTINGS, services4={OPEN: ""}, sources4={f"{OPEN} . 10.0.0.0/8": ""})
    after = with_elements(SETTINGS, services6={"2001:db8::1 . tcp . 80": ""}, sources4={f"{OPEN} . 10.0.0.0/9": ""})
    verbs = [line.split()[0] for line in transaction(before, after).splitlines()]
    assert verbs == ["delete", "delete", "add", "add"]


def test_a_chain_that_differs_is_refilled_and_nothing_else_is_touched() -> None:
    changed = Ruleset(tables(replace(SETTINGS, local_chain="\t\ttcp dport 9 accept\n")), SMALL.elements)
    assert transaction(SMALL, changed) == (
        "add table inet nftsync\nflush chain inet nftsync local-chain\n"
        "table inet nftsync {\n\tchain local-chain {\n\t\ttcp dport 9 accept\n\t}\n}\n"
    )


def test_a_chain_whose_nic_went_is_removed_and_made_again_when_another_comes() -> None:
    gone, other = replace(SETTINGS, side=absent("pub0")), replace(SETTINGS, side=side("pub1"))
    assert transaction(Ruleset(tables(SETTINGS)), Ruleset(tables(gone))).endswith(
        "add table netdev nftsync\nflush chain netdev nftsync ratelimit\ndelete chain netdev nftsync ratelimit\n"
    )
    moved = transaction(Ruleset(tables(SETTINGS)), Ruleset(tables(other)))
    assert moved.index("delete chain netdev nftsync ratelimit") < moved.index('hook ingress device "pub1"')


def test_a_table_is_deleted_only_when_none_is_wanted() -> None:
    assert transaction(SMALL, Ruleset()) == "delete table inet nftsync\ndelete table netdev nftsync\n"
    plain = Ruleset(tables(replace(SETTINGS, enable_rateshape=False)), SMALL.elements)
    deleted = [line for line in transaction(SMALL, plain).splitlines() if line.startswith("delete table")]
    assert deleted == ["delete table netdev nftsync"]


def test_a_table_that_is_new_is_made_even_if_it_is_empty() -> None:
    assert transaction(Ruleset(), Ruleset({INET: Table()})) == "add table inet nftsync\n"


# --- kernel --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def router(shared_netns: Netns) -> Netns:
    shared_netns.command("ip", "link", "set", "lo", "up")
    shared_netns.add_nics(*NICS)
    return shared_netns


def load(router: Netns, shown: Ruleset) -> None:
    router.run(router.kernel.apply, CLEAR + render(shown))


def afresh(router: Netns, shown: Ruleset) -> Fresh:
    load(router, shown)
    return Fresh.of(router)


@settings(max_examples=60)
@given(rulesets(), rulesets())
def test_a_transaction_leads_from_any_ruleset_to_exactly_any_other(
    router: Netns, before: Ruleset, after: Ruleset
) -> None:
    expected = afresh(router, after)
    load(router, before)
    text = transaction(before, after)
    if text:
        router.run(router.kernel.apply, text)
    same(router, after, expected)


@settings(max_examples=40)
@given(rulesets(), rulesets())
def test_what_is_found_in_the_kernel_is_adopted_and_then_nothing_differs(
    router: Netns, before: Ruleset, after: Ruleset
) -> None:
    expected = afresh(router, after)
    load(router, before)
    router.run(router.kernel.apply, transaction(router.run(router.kernel.read).ruleset, after))
    found = router.run(router.kernel.read)
    same(router, after, expected)
    assert transaction(Ruleset(after.tables, found.ruleset.elements), after) == ""


@settings(max_examples=20)
@given(rulesets())
def test_a_ruleset_from_nothing_equals_the_rendered_one_and_goes_without_a_trace(router: Netns, after: Ruleset) -> None:
    expected = afresh(router, after)
    router.run(router.kernel.apply, CLEAR + transaction(Ruleset(), after))
    same(router, after, expected)
    router.run(router.kernel.apply, transaction(router.run(router.kernel.read).ruleset, Ruleset()))
    assert router.listing() == ""


# --- state is kept -------------------------------------------------------------------------------------


def counters(router: Netns, name: str) -> dict[str, int]:
    listed = json.loads(router.command("nft", "-j", "list", "set", "inet", "nftsync", name))["nftables"]
    members = next(each["set"]["elem"] for each in listed if "set" in each)
    return {" . ".join(map(str, each["elem"]["val"]["concat"])): each["elem"]["counter"]["packets"] for each in members}


CHANGES: dict[str, Settings] = {
    "only elements": SETTINGS,
    "the local chain": replace(SETTINGS, local_chain=LOCAL_CHAINS[2]),
    "the switches": replace(SETTINGS, enable_bgp=True, enable_ssh=False, enable_dropall=False),
    "the public NIC": Settings(side("pub1"), enable_rateshape=True),
    "no NIC": replace(SETTINGS, side=absent("pub0")),
    "no rate shaping": replace(SETTINGS, enable_rateshape=False),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("adopted", [False, True])
def test_elements_that_did_not_change_keep_their_counters_whatever_else_changes(
    router: Netns,
    change: str,
    adopted: bool,  # noqa: FBT001
) -> None:
    before = with_elements(SETTINGS, services4={OPEN: "", "192.0.2.1 . tcp . 81": ""})
    after = with_elements(CHANGES[change], services4={OPEN: "", "192.0.2.1 . tcp . 82": ""})
    load(router, before)
    router.nft(
        f"delete element inet nftsync services4 {{ {OPEN} }}\n"
        f"add element inet nftsync services4 {{ {OPEN} counter packets 7 bytes 700 }}\n"
    )
    assert counters(router, "services4") == {OPEN: 7, "192.0.2.1 . tcp . 81": 0}
    standing = router.run(router.kernel.read).ruleset if adopted else before
    router.run(router.kernel.apply, transaction(standing, after))
    assert counters(router, "services4") == {OPEN: 7, "192.0.2.1 . tcp . 82": 0}


LIMITED = "127.0.0.1 . udp . 9999"
SLOW = "limit rate over 1/week burst 3 packets"


def passing(count: int) -> int:
    """How many of so many datagrams to the limited port arrive."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 9999))
        receiver.setblocking(False)  # on loopback a datagram has arrived, or was dropped, when sendto returns
        arrived = 0
        for _ in range(count):
            sender.sendto(b"x", ("127.0.0.1", 9999))
            try:
                arrived += len(receiver.recv(16))
            except BlockingIOError:
                continue
        return arrived


@pytest.mark.parametrize("device", [True, False], ids=["the hook stays", "the hook is made anew"])
def test_a_bucket_that_is_empty_stays_empty_while_others_come_and_go(router: Netns, device: bool) -> None:  # noqa: FBT001
    shaped = Settings(side("lo"), enable_rateshape=True, enable_dropall=False)
    counted = {"dropped4": {LIMITED: ""}, "ingress4": {"127.0.0.1": ""}}
    before = with_elements(shaped, NETDEV, limited4_packets={LIMITED: SLOW}, **counted)
    load(router, before)
    assert router.run(passing, 10) == 3
    more = {LIMITED: SLOW, "127.0.0.1 . udp . 9998": SLOW}
    after = with_elements(replace(shaped, local_chain=LOCAL_CHAINS[1]), NETDEV, limited4_packets=more, **counted)
    if not device:
        unhooked = Ruleset(tables(replace(shaped, side=absent("lo"))), before.elements)
        router.run(router.kernel.apply, transaction(before, unhooked))
        assert router.run(passing, 10) == 10, "nothing is limited without the hook"
        before = unhooked
    router.run(router.kernel.apply, transaction(before, after))
    assert router.run(passing, 10) == 0
    router.run(router.kernel.apply, transaction(router.run(router.kernel.read).ruleset, after))
    assert router.run(passing, 10) == 0
    changed = with_elements(
        replace(shaped, local_chain=LOCAL_CHAINS[1]),
        NETDEV,
        limited4_packets={LIMITED: SLOW.replace("3", "4")},
        **counted,
    )
    router.run(router.kernel.apply, transaction(after, changed))
    assert router.run(passing, 10) == 4, "an element that did change has a new bucket: the test can see one"


# --- intruders -----------------------------------------------------------------------------------------

INTRUDERS = {
    "a rule": "insert rule inet nftsync input accept",
    "a chain with a rule": "add chain inet nftsync evil; add rule inet nftsync evil accept",
    "a base chain": "add chain inet nftsync evil { type filter hook forward priority -10; policy drop; }",
    "a chain that ours jump to": "add chain inet nftsync evil; insert rule inet nftsync global jump evil",
    "chains that jump to each other": (
        "add chain inet nftsync one; add chain inet nftsync two; add rule inet nftsync one jump two; "
        "insert rule inet nftsync input jump one"
    ),
    "a set": "add set inet nftsync evil { type ipv4_addr; }; add element inet nftsync evil { 192.0.2.1 }",
    "a set that a rule uses": (
        "add set inet nftsync evil { type ipv4_addr; flags timeout; }; "
        "insert rule inet nftsync operator-svc ip saddr @evil accept"
    ),
    "an element": "add element inet nftsync services4 { 192.0.2.66 . tcp . 22 }",
    "an element of another protocol": (
        "add element inet nftsync services4 { 192.0.2.66 . icmp . 22, 192.0.2.66 . 200 . 22 }"
    ),
    "an element with a range": (
        "add element inet nftsync sources4 { 192.0.2.0-192.0.2.9 . tcp . 1-1000 . 10.0.0.1-10.0.0.6 }"
    ),
    "an element that stands for all others": "add element inet nftsync services4 { * }",
    "an element gone": f"delete element inet nftsync services4 {{ {OPEN} }}",
    "another limit": (
        f"delete element netdev nftsync limited4 {{ {OPEN} }}; "
        f"add element netdev nftsync limited4 {{ {OPEN} limit rate over 9 mbytes/day burst 1 bytes }}"
    ).replace("9 mbytes/day", "9 kbytes/day"),
    "rules flushed": "flush chain inet nftsync forward",
    "a table flushed": "flush table inet nftsync",
    "elements flushed": "flush set inet nftsync services4",
    "a table deleted": "delete table inet nftsync",
    "both tables deleted": "delete table inet nftsync; delete table netdev nftsync",
    "everything flushed": "flush ruleset",
    "another policy": "add chain inet nftsync input { policy accept; }",
    "another set of the name": (
        "flush chain inet nftsync operator-svc; delete set inet nftsync services4; "
        "add set inet nftsync services4 { type ipv4_addr . inet_service; }"
    ),
    "a set with a default time-out": (
        "flush chain inet nftsync operator-svc; delete set inet nftsync services6; "
        "add set inet nftsync services6 { type ipv6_addr . inet_proto . inet_service; timeout 5s; counter; }"
    ),
    "a map that a rule uses": (
        "add map inet nftsync evil { type ipv4_addr : verdict; }; insert rule inet nftsync input ip saddr vmap @evil"
    ),
    "a map that refers to a chain": (
        "add chain inet nftsync evil; add map inet nftsync verdicts { type ipv4_addr : verdict; }; "
        "add element inet nftsync verdicts { 192.0.2.1 : jump evil }"
    ),
    "a map of a counter": (
        "add counter inet nftsync hits; add map inet nftsync evil { type ipv4_addr : counter; "
        'elements = { 192.0.2.1 : "hits" }; }'
    ),
    "a named limit and a quota": (
        "add limit inet nftsync evil { rate 1/second; }; add quota inet nftsync full { 1 mbytes; }; "
        'insert rule inet nftsync input limit name "evil" accept'
    ),
    "a helper": 'add ct helper inet nftsync evil { type "ftp" protocol tcp; }',
    "a dormant table": "add table inet nftsync { flags dormant; }",
    "a hook gone": "flush chain netdev nftsync ratelimit; delete chain netdev nftsync ratelimit",
    "a hook elsewhere": (
        "flush chain netdev nftsync ratelimit; delete chain netdev nftsync ratelimit; "
        'add chain netdev nftsync ratelimit { type filter hook ingress device "pub1" priority 0; policy accept; }'
    ),
}


@pytest.mark.parametrize("intruder", INTRUDERS)
def test_whatever_somebody_else_did_to_our_tables_is_undone_and_seen(router: Netns, intruder: str) -> None:
    wanted = Ruleset(
        SMALL.tables,
        {
            INET: {"services4": {OPEN: ""}},
            NETDEV: {"limited4": {OPEN: "limit rate over 1 kbytes/second burst 1 bytes"}},
        },
    )
    expected = afresh(router, wanted)
    untouched = router.run(router.kernel.read)
    same(router, wanted, expected)
    router.nft(INTRUDERS[intruder].replace("; ", "\n") if "{ type" not in INTRUDERS[intruder] else INTRUDERS[intruder])
    found = router.run(router.kernel.read)
    assert (found.rules, found.ruleset.elements) != (untouched.rules, untouched.ruleset.elements), "it can be seen"
    router.run(router.kernel.apply, transaction(found.ruleset, wanted))
    same(router, wanted, expected)


def test_other_tables_are_untouched_even_those_with_our_name_in_another_family(router: Netns) -> None:
    others = "table ip nftsync {\n\tchain input {\n\t\taccept\n\t}\n}\n"
    others += "table inet other {\n\tset services4 {\n\t\ttype ipv4_addr\n\t}\n}\n"
    router.nft(others)
    load(router, SMALL)
    router.run(router.kernel.apply, transaction(SMALL, Ruleset(tables(replace(SETTINGS, local_chain=LOCAL_CHAINS[1])))))
    router.run(router.kernel.apply, transaction(router.run(router.kernel.read).ruleset, Ruleset()))
    assert router.command("nft", "list", "ruleset") == others
    router.nft("delete table ip nftsync\ndelete table inet other\n")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sources4", f"{OPEN} . 10.0.0.0/9"),  # overlaps another element: the kernel refuses
        ("services4", "2001:db8::1 . tcp . 80"),  # nft refuses
        ("services4", "nowhere"),
    ],
)
def test_an_element_that_is_refused_leaves_everything_as_it_was(router: Netns, name: str, key: str) -> None:
    before = with_elements(SETTINGS, services4={OPEN: ""}, sources4={f"{OPEN} . 10.0.0.0/8": ""})
    expected = afresh(router, before)
    elements: dict[str, Any] = {each: dict(members) for each, members in before.elements[INET].items()}
    elements[name][key] = ""
    elements["services4"] = {"192.0.2.3 . tcp . 80": ""} | elements["services4"]
    bad = Ruleset(tables(replace(SETTINGS, enable_dropall=False, local_chain=LOCAL_CHAINS[1])), {INET: elements})
    with pytest.raises(KernelError) as refused:
        router.run(router.kernel.apply, transaction(before, bad))
    assert str(refused.value)
    assert "\n" not in str(refused.value)
    same(router, before, expected)


def test_a_set_that_is_declared_differently_is_replaced_while_rules_refer_to_it(router: Netns) -> None:
    table = tables(SETTINGS)[INET]
    plain = Table({**table.sets, "services4": Set("ipv4_addr . inet_proto . inet_service")}, table.chains)
    wanted = ruleset([], SETTINGS)
    expected = afresh(router, wanted)
    before = Ruleset({**tables(SETTINGS), INET: plain})
    load(router, before)
    router.run(router.kernel.apply, transaction(before, wanted))
    same(router, wanted, expected)


def test_a_table_of_another_version_is_changed_in_place(router: Netns) -> None:
    old = Table(
        {"services4": Set("ipv4_addr . inet_service")},
        {
            "operator-svc": Chain("\t\tip daddr . th dport @services4 accept\n"),
            "other": Chain("\t\tjump operator-svc\n"),
        },
    )
    before = Ruleset({INET: old}, {INET: {"services4": {"192.0.2.1 . 80": ""}}})
    wanted = ruleset([], SETTINGS)
    expected = afresh(router, wanted)
    load(router, before)
    router.run(router.kernel.apply, transaction(before, wanted))
    same(router, wanted, expected)


# --- the cluster's addresses ---------------------------------------------------------------------------

_LAST = {4: 2**32 - 1, 6: 2**128 - 1}
_MAKE: dict[int, Any] = {4: IPv4Address, 6: IPv6Address}


@st.composite
def _ranges(draw: st.DrawFn) -> Range:
    """Ranges that meet each other and the ends of the address space often."""
    version = draw(st.sampled_from((4, 6)))
    last = _LAST[version]
    marks = [0, 1 << 16, (1 << 32) - 1, 0xFFFF << 32, last >> 1, last]  # some IPv6 addresses are written as IPv4 is
    ends = st.builds(lambda mark, offset: min(max(mark + offset, 0), last), st.sampled_from(marks), st.integers(-5, 5))
    first, second = sorted((draw(ends | st.integers(0, last)), draw(ends | st.integers(0, last))))
    shape = draw(st.sampled_from(("range", "address", "prefix")))
    if shape == "address":
        second = first
    elif shape == "prefix":
        host = last >> draw(st.integers(0, last.bit_length()))
        first, second = first & ~host, first | host
    return Range(_MAKE[version](first), _MAKE[version](second))


_clusters = st.lists(_ranges(), max_size=6).map(AddressSet.of)


def held_in_pools(router: Netns) -> list[tuple[int, int, int]]:
    """What the kernel's pools4 and pools6 hold, as family, first and last address."""
    found = []
    for version in (4, 6):
        listed = json.loads(router.command("nft", "-j", "list", "set", "inet", "nftsync", f"pools{version}"))[
            "nftables"
        ]
        for each in next(item["set"] for item in listed if "set" in item).get("elem", ()):
            if isinstance(each, dict) and "prefix" in each:
                network = ip_network(f"{each['prefix']['addr']}/{each['prefix']['len']}")
                ends = [network.network_address, network.broadcast_address]
            else:
                ends = [ip_address(end) for end in (each["range"] if isinstance(each, dict) else (each, each))]
            found.append((version, int(ends[0]), int(ends[1])))
    return sorted(found)


@settings(max_examples=80)
@given(st.lists(_clusters, min_size=1, max_size=6), st.booleans())
def test_after_each_of_many_transactions_the_kernel_holds_exactly_the_addresses_that_are_the_clusters(
    router: Netns,
    clusters: list[AddressSet],
    adopted: bool,  # noqa: FBT001
) -> None:
    standing = Ruleset()
    router.run(router.kernel.apply, CLEAR)
    for cluster in clusters:
        wanted = ruleset([], replace(SETTINGS, cluster=cluster))
        text = transaction(standing, wanted)
        if text:
            router.run(router.kernel.apply, text)
        assert held_in_pools(router) == [(each.version, int(each.first), int(each.last)) for each in cluster.ranges]
        found = router.run(router.kernel.read).ruleset
        assert transaction(Ruleset(wanted.tables, found.elements), wanted) == ""
        standing = found if adopted else wanted


@pytest.mark.parametrize(("family", "everything"), [(4, "0.0.0.0/0"), (6, "::/0")])
def test_a_cluster_of_the_whole_address_space_is_one_element_and_shrinks_to_either_end(
    router: Netns, family: int, everything: str
) -> None:
    first, last = _MAKE[family](0), _MAKE[family](_LAST[family])
    router.run(router.kernel.apply, CLEAR)
    standing = Ruleset()
    for part in (
        Range(first, last),
        Range(last, last),
        Range(first, last - 1),
        Range(first, first),
        Range(first + 1, last),
    ):
        wanted = ruleset([], replace(SETTINGS, cluster=AddressSet.of([part])))
        if part == (first, last):
            assert wanted.elements[INET][f"pools{family}"] == {everything: ""}
        router.run(router.kernel.apply, transaction(standing, wanted))
        assert held_in_pools(router) == [(family, int(part.first), int(part.last))]
        standing = wanted
