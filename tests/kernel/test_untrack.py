"""Addresses that bypass connection tracking lose their old entries, and nobody else does."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from nftsync.kernel.conntrack import connections_of, forget
from nftsync.kernel.netlink import PROTOCOL, Netlink
from nftsync.objects.address import AddressSet, parse_range
from tests.lab.lab import CLIENT, NODE, PUBLIC, SERVICES, Lab
from tests.labtools import SERVICE4, SERVICE6, needs_root

pytestmark = needs_root

POOLS = AddressSet.of(map(parse_range, SERVICES))
EVERYTHING = AddressSet.of(map(parse_range, ("0.0.0.0/0", "::/0")))


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The router tracks connections, and translates port 8080 of its own address to a Service."""
    with Lab() as made:
        made.router.nft(
            "table inet t { chain f { type filter hook forward priority 0; ct state new accept; }; }\n"
            "table ip n { chain p { type nat hook prerouting priority -100; "
            f"udp dport 8080 dnat to {SERVICE4}:80; }}; }}"
        )
        yield made


def tracked(lab: Lab, addresses: AddressSet) -> int:
    with lab.router.call(Netlink, PROTOCOL) as kernel:
        return sum(1 for version in (4, 6) for _ in connections_of(kernel, version, addresses))


def test_entries_of_the_addresses_go_and_the_others_stay(lab: Lab) -> None:
    ours = [(lab.client, SERVICE4, 80), (lab.client, SERVICE6, 80), (lab.client, str(PUBLIC[0]), 8080)]
    own = [(lab.node, SERVICE4, str(CLIENT[0])), (lab.node, SERVICE6, str(CLIENT[1]))]
    others = [(lab.node, str(CLIENT[0]), 53), (lab.node, str(CLIENT[1]), 53), (lab.client, str(NODE[0]), 53)]
    for namespace, address, port in (*ours, *others):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with namespace.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", (address, port))
    for namespace, source, address in own:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        namespace.ip(f"address add {source} dev lo")
        with namespace.socket(family, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            sender.sendto(b"x", (address, 53))
    assert tracked(lab, POOLS) == len(ours) + len(own)
    assert tracked(lab, EVERYTHING) == len(ours) + len(own) + len(others)
    lab.router.call(forget, POOLS)
    assert tracked(lab, POOLS) == 0
    assert tracked(lab, EVERYTHING) == len(others)


def test_without_addresses_nothing_is_forgotten(lab: Lab) -> None:
    with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (SERVICE4, 80))
    lab.router.call(forget, AddressSet())
    assert tracked(lab, POOLS) == 1
