"""The readback of the kernel shows the same as other programs see there.

A program that changes nf_tables all the time can't hold it up.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from nftsync.kernel import readback
from nftsync.kernel.nft import Kernel, KernelError
from nftsync.ruleset.model import INET, Ruleset
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import tables
from nftsync.ruleset.text import render
from tests.lab.namespace import Namespace
from tests.labtools import needs_root
from tests.storm import storm
from tests.support import NICS, Fresh, Netns, side

pytestmark = needs_root

CLEAR = "add table inet nftsync\nadd table netdev nftsync\ndelete table inet nftsync\ndelete table netdev nftsync\n"


@pytest.fixture(scope="module")
def router(shared_netns: Netns) -> Netns:
    shared_netns.command("ip", "link", "set", "lo", "up")
    return shared_netns


def load(router: Netns, local_chain: str = "") -> str:
    """Load the tables with this local chain; returns how their rules are read back."""
    router.nft(CLEAR + render(Ruleset(tables(Settings(side(NICS[0]), local_chain=local_chain)))))
    return Fresh.of(router).rules


# --- elements -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "elements"), {
    "services4": (
        "192.0.2.1 . tcp . 80", "192.0.2.1 . udp . 65535", "0.0.0.0 . sctp . 0", "255.255.255.255 . 47 . 1",
        "192.0.2.1 . 0 . 7",
    ),
    "services6": (
        "2001:db8:: . tcp . 80", ":: . udp . 1", f"{ip_address('::192.0.2.1')} . tcp . 80",
        f"{ip_address('::ffff:192.0.2.1')} . tcp . 80", "1:: . 255 . 2",
    ),
    "sources4": (
        "192.0.2.1 . tcp . 80 . 0.0.0.0/0", "192.0.2.1 . tcp . 81 . 10.0.0.0/8", "192.0.2.1 . tcp . 82 . 10.0.0.1",
        "192.0.2.0-192.0.2.9 . tcp . 1-1000 . 10.0.0.1-10.0.0.6", "192.0.2.0/28 . 17-20 . 5 . 10.0.0.1", "*",
    ),
    "sources6": (
        "2001:db8::1 . tcp . 80 . ::/0", "2001:db8::1 . tcp . 81 . 2001:db8::/33",
        "::1-::5 . udp . 9 . fe80::1-fe80::9",
    ),
    "errors4": ("0x0a000001 . 6 . 80", "0x00000000 . 0 . 0", "0xffffffff . 255 . 65535"),
    "errors6": ("0x20010db8000000000000000000000001 . 17 . 53", f"0x{'0' * 32} . 132 . 256"),
    "pools4": ("0.0.0.0-0.0.0.6", "10.0.0.0/24", "10.0.1.0/24", "10.0.2.7", "10.0.2.9-10.0.2.11", "224.0.0.0/3"),
    "pools6": ("::/127", "2001:db8::/32", "2001:db9::1", "ffff::/16"),
}.items())  # fmt: skip
def test_elements_of_every_shape_are_read_as_they_were_written_and_can_be_taken_away_again(
    router: Netns, name: str, elements: tuple[str, ...]
) -> None:
    load(router)
    router.nft(f"add element inet nftsync {name} {{ {', '.join(elements)} }}")
    found = router.run(router.kernel.read).ruleset.elements[INET][name]
    assert found == dict.fromkeys(elements, "")
    router.nft(f"delete element inet nftsync {name} {{ {', '.join(found)} }}")
    assert not router.run(router.kernel.read).ruleset.elements[INET][name]


def test_what_only_a_saboteur_can_make_is_one_error(router: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    """A type of elements that is not what they are: nft does not let anybody, netlink does."""
    load(router)
    router.nft("add element inet nftsync services4 { 192.0.2.1 . tcp . 80 }")
    monkeypatch.setitem(readback._WIDTHS, "ipv4_addr", 3)
    with pytest.raises(KernelError, match=r"^our tables hold something that nft does not make"):
        router.run(router.kernel.read)


# --- rules --------------------------------------------------------------------------------------------

LOCAL_CHAINS = (
    "",
    "accept",
    "drop",
    "tcp dport 22 accept",
    "tcp dport 23 accept",
    "udp dport 22 accept",
    "tcp dport { 22, 80 } accept",
    "tcp dport { 22, 81 } accept",
    "tcp dport != { 22, 80 } accept",
    "tcp dport vmap { 22 : accept, 80 : drop }",
    "tcp dport vmap { 22 : drop, 80 : accept }",
    "tcp dport vmap { 22 : accept, 81 : drop }",
    "ip saddr { 10.0.0.0/8 } accept",
    "ip saddr { 10.0.0.0-10.0.0.255 } accept",
    "meta mark set tcp dport map { 22 : 1, 80 : 2 }",
    "meta mark set tcp dport map { 22 : 2, 80 : 1 }",
    "tcp dport 22 accept\ntcp dport 23 drop",
    "tcp dport 23 drop\ntcp dport 22 accept",
    "counter accept",
    "limit rate 1/second accept",
    "limit rate over 1/second accept",
    "limit rate 2/second accept",
    "quota 1 mbytes accept",
    "quota 2 mbytes accept",
    "jump global",
    "jump operator-cr",
    'iifname "pub0" accept',
    'iifname "pub1" accept',
    'oifname "pub0" accept',
    "tcp dport { 22, 80 } accept\ntcp dport { 22, 81 } drop",
    "tcp dport { 22, 81 } accept\ntcp dport { 22, 80 } drop",
    'log prefix "a" accept',
    'log prefix "b" accept',
)


def test_every_difference_between_rules_is_seen(router: Netns) -> None:
    read = {chain: load(router, f"{chain}\n") for chain in LOCAL_CHAINS}
    assert len(set(read.values())) == len(LOCAL_CHAINS)
    assert read == {chain: load(router, f"{chain}\n") for chain in reversed(LOCAL_CHAINS)}, "and there are no others"


def test_what_rules_count_changes_nothing(router: Netns) -> None:
    before = load(router, "counter limit rate 100/second quota 1 mbytes counter accept\n")
    with router.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(3):
            sender.sendto(b"x", ("127.0.0.1", 9))
    assert "packets 0 " not in router.nft("list chain inet nftsync local-chain")
    assert Fresh.of(router).rules == before


# --- while others go on changing nf_tables ------------------------------------------------------------


@pytest.mark.parametrize("rate", [50, 0])
def test_who_changes_another_table_all_the_time_holds_up_no_reading(rate: int) -> None:
    """rate: changes a second, 0 for as many as there can be."""
    namespace = Namespace()
    try:
        kernel = namespace.call(Kernel)
        elements = {f"10.1.{n // 250}.{n % 250 + 1} . tcp . 80": "" for n in range(10_000)}
        kernel.apply(render(Ruleset(tables(Settings(side("pub0"))), {INET: {"services4": elements}})))
        rules = kernel.read_tables().rules
        with storm(namespace, rate):
            for _ in range(10):
                found = kernel.read()
                assert found.ruleset.elements[INET]["services4"] == elements
                assert found.rules == rules
    finally:
        namespace.close()
