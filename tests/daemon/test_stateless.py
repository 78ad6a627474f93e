"""Stateless pools, switched on and off while connections go on."""

from __future__ import annotations

import re
import signal
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from nftsync.kernel.conntrack import connections_of
from nftsync.kernel.netlink import PROTOCOL, Netlink
from nftsync.objects.address import AddressSet, parse_range
from tests.lab.lab import CLIENT, SERVICES, Lab, TcpServer
from tests.labtools import SERVICE4, SERVICE6, Daemon, answers, eventually, needs_root, nft, rules, service

pytestmark = needs_root

WEB = service("web", SERVICE4, SERVICE6, ports=[("TCP", 80), ("UDP", 53)])
POOL = {
    "apiVersion": "metallb.io/v1beta1",
    "kind": "IPAddressPool",
    "metadata": {"namespace": "metallb-system", "name": "services", "uid": "uid-services"},
    "spec": {"addresses": ["172.30.254.0/24", "2001:db8:254::/64"]},
}
CHUNK = 60_000  # bytes


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Lab() as lab, Daemon(lab, tmp_path, interval=600) as made:
        made.put(nft(), WEB, POOL)
        yield made.start()


def switch(daemon: Daemon, *, on: bool) -> None:
    """Change the setting and reload."""
    text = daemon.config.read_text().removeprefix("stateless = true\n")
    daemon.configure(f"stateless = true\n{text}" if on else text)
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: ("notrack" in rules(daemon.lab)) is on), daemon.log()


def transfer(connection: socket.socket) -> None:
    """Send and receive more bytes than a TCP window."""
    for _ in range(100):
        connection.sendall(bytes(CHUNK))
        left = CHUNK
        while left:
            left -= len(connection.recv(left))


def tracked(lab: Lab) -> int:
    """The number of entries with an address of the pools. The router also tracks the test's own scrapes."""
    pools = AddressSet.of(map(parse_range, SERVICES))
    with lab.router.call(Netlink, PROTOCOL) as kernel:
        return sum(1 for version in (4, 6) for _ in connections_of(kernel, version, pools))


@pytest.mark.parametrize("address", [SERVICE4, SERVICE6])
def test_connections_outlive_every_switch_between_tracked_and_stateless(daemon: Daemon, address: str) -> None:
    lab = daemon.lab
    with TcpServer(lab.node, 80), lab.tcp_connect(address, 80, 5.0) as connection:
        assert answers(connection)
        assert tracked(lab) > 0
        switch(daemon, on=True)
        assert answers(connection)
        assert eventually(lambda: tracked(lab) == 0), "what was tracked is forgotten"
        transfer(connection)
        switch(daemon, on=False)
        assert answers(connection)
        switch(daemon, on=True)
        assert answers(connection)


def send_answer(lab: Lab, address: str) -> None:
    """A SYN-ACK of the Service whose SYN came by another router."""
    family, client = (socket.AF_INET6, CLIENT[1]) if ":" in address else (socket.AF_INET, CLIENT[0])
    lab.node.ip(f"address replace {address} dev lo")
    head, tail = struct.pack("!HHIIBBH", 80, 40_000, 1, 2, 5 << 4, 0x12, 65535), bytes(2)
    ends = ip_address(address).packed + client.packed + struct.pack("!HH", 20, socket.IPPROTO_TCP)
    value = -int.from_bytes(ends + head + bytes(2) + tail, "big") % 0xFFFF
    with lab.node.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as sender:
        sender.bind((address, 0))
        sender.sendto(head + struct.pack("!H", value or 0xFFFF) + tail, (str(client), 0))


@pytest.mark.parametrize("address", [SERVICE4, SERVICE6])
def test_people_are_told_of_answers_that_are_dropped_as_invalid(daemon: Daemon, address: str) -> None:
    lab, name = daemon.lab, "nftsync_invalid_drops_total"
    packet = f"[{address}]:80" if ":" in address else f"{address}:80"

    def explained() -> str:
        return daemon.command("explain", packet).stdout

    assert daemon.metric(name) == 0
    assert "dropped as invalid (0 packets so far); for routers in pairs set stateless = true" in explained()
    send_answer(lab, address)
    assert eventually(lambda: daemon.metric(name) == 1), explained()
    assert "dropped as invalid (1 packets so far)" in explained()
    assert "stateless" not in daemon.command("status").stdout
    switch(daemon, on=True)
    send_answer(lab, address)
    assert "stateless: its packets are not tracked, so its answers pass at every router" in explained()
    assert re.search("^stateless +packets of the pools bypass", daemon.command("status").stdout, re.MULTILINE)
    assert daemon.metric(name) == 1
