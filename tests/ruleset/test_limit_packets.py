"""Limits hold for packets in fragments, for packets that the router redirects, and for answers.

All buckets fill so slowly that a test sees one bucket. So no assertion needs a clock.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nftsync.kernel import counters
from tests.lab.fragments import send_fragmented
from tests.lab.lab import Lab, Probe
from tests.labtools import SERVICE4, SERVICE6, Firewall, needs_root, nft, service

pytestmark = needs_root

KBYTE = 1024
FREE4, FREE6 = "172.30.254.2", "2001:db8:254::2"
ADDRESSES = [SERVICE4, SERVICE6]
UDP80 = [("UDP", 80)]
DATAGRAM = 40_000  # bytes


@pytest.fixture(scope="module")
def router() -> Iterator[tuple[Lab, Firewall]]:
    with Lab() as made:
        yield made, Firewall(made)


@pytest.fixture
def lab(router: tuple[Lab, Firewall]) -> Lab:
    return router[0]


@pytest.fixture
def firewall(router: tuple[Lab, Firewall]) -> Firewall:
    """Each test starts without rules and buckets."""
    lab, firewall = router
    lab.router.nft("flush ruleset")
    firewall.holds = firewall.kernel.read().ruleset
    return firewall


class Counted:
    """Counts what passes the limits on the public NIC, before the kernel puts fragments together."""

    def __init__(self, lab: Lab, address: str) -> None:
        self._lab = lab
        word = "ip6" if ":" in address else "ip"
        lab.router.nft(
            f"table inet counted {{ counter passed {{ }}; chain early {{ "
            f'type filter hook prerouting priority -450; iifname "{lab.public_nic}" {word} daddr {address} '
            "counter name passed; }; }"
        )

    def now(self) -> tuple[int, int]:
        """Packets and bytes."""
        words = self._lab.router.run(["nft", "list", "counter", "inet", "counted", "passed"]).stdout.split()
        return int(words[words.index("packets") + 1]), int(words[words.index("bytes") + 1])


@pytest.mark.parametrize("extension", ["", "options"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_of_fragments_at_most_twice_a_limit_in_bytes_passes(
    lab: Lab, firewall: Firewall, address: str, extension: str
) -> None:
    firewall.load([service("slow", SERVICE4, SERVICE6, ports=UDP80, limit="2 kbytes/week burst 6 kbytes")], nft())
    counted = Counted(lab, address)
    sent = send_fragmented(lab, Probe("udp", address, 80, length=DATAGRAM), 20, options=bool(extension))
    passed = counted.now()[1]
    assert sent > 20 * DATAGRAM
    assert sum(count.packets for count in lab.router.call(counters.read).fragments.values()) > 500
    assert 8 * KBYTE - 1500 < passed <= 2 * 8 * KBYTE


@pytest.mark.parametrize("extension", ["", "options"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_of_fragments_at_most_twice_a_limit_in_packets_passes(
    lab: Lab, firewall: Firewall, address: str, extension: str
) -> None:
    firewall.load([service("slow", SERVICE4, SERVICE6, ports=UDP80, limit="1/week burst 9 packets")], nft())
    counted = Counted(lab, address)
    send_fragmented(lab, Probe("udp", address, 80, length=DATAGRAM), 20, options=bool(extension))
    assert counted.now()[0] == 18


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_datagram_within_its_limit_arrives_in_fragments(lab: Lab, firewall: Firewall, address: str) -> None:
    firewall.load([service("slow", SERVICE4, SERVICE6, ports=UDP80, limit="2 kbytes/week burst 20 kbytes")], nft())
    with lab._counter("udp", address, 80) as arrived:
        send_fragmented(lab, Probe("udp", address, 80, length=9000))
        assert arrived()[0] > 0


@pytest.mark.parametrize("address", [FREE4, FREE6])
def test_fragments_to_an_address_without_a_limit_all_pass(lab: Lab, firewall: Firewall, address: str) -> None:
    slow = service("slow", SERVICE4, SERVICE6, ports=UDP80, limit="2 kbytes/week burst 1 kbytes")
    firewall.load([slow, service("free", FREE4, FREE6, ports=UDP80)], nft())
    counted = Counted(lab, address)
    sent = send_fragmented(lab, Probe("udp", address, 80, length=DATAGRAM), 10)
    assert counted.now()[1] == sent


@pytest.mark.parametrize("address", ADDRESSES)
def test_fragments_have_the_smallest_limit_of_the_ports_at_their_address(
    lab: Lab, firewall: Firewall, address: str
) -> None:
    firewall.load(
        [
            service("wide", SERVICE4, SERVICE6, ports=UDP80, limit="90 kbytes/week"),
            service("burst", SERVICE4, SERVICE6, ports=[("UDP", 81)], limit="1 kbytes/week burst 90 kbytes"),
            service("small", SERVICE4, SERVICE6, ports=[("UDP", 82)], limit="1 kbytes/minute burst 3 kbytes"),
        ],
        nft(),
    )
    counted = Counted(lab, address)
    send_fragmented(lab, Probe("udp", address, 80, length=DATAGRAM), 20)
    first_fragments = 20 * 80
    assert 4 * KBYTE - 1500 < counted.now()[1] <= 4 * KBYTE + first_fragments
