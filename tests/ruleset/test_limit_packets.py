"""Limits hold for packets in fragments, for packets that the router redirects, and for answers.

All buckets fill so slowly that a test sees one bucket. So no assertion needs a clock.
"""

from __future__ import annotations

import pytest

from nftsync.kernel import counters
from tests.lab.fragments import send_fragmented
from tests.lab.lab import CLIENT, PUBLIC, Lab, Probe
from tests.labtools import SERVICE4, SERVICE6, Firewall, needs_root, nft, packets, service, wanted
from tests.support import filled

pytestmark = needs_root

KBYTE = 1024
FREE4, FREE6 = "172.30.254.2", "2001:db8:254::2"
ADDRESSES = [SERVICE4, SERVICE6]
UDP80 = [("UDP", 80)]
DATAGRAM = 40_000  # bytes


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


# --- packets that the router redirects ------------------------------------------------------------------


def redirect(lab: Lab) -> None:
    """Send what comes for udp 8080 of the router to the Services' udp 80, as an operator's own table does."""
    rules = (
        f"ip daddr {PUBLIC[0]} udp dport 8080 dnat ip to {SERVICE4}:80; "
        f"ip6 daddr {PUBLIC[1]} udp dport 8080 dnat ip6 to [{SERVICE6}]:80; "
        f"ip daddr {PUBLIC[0]} udp dport 8081 dnat ip to {FREE4}:80; "
        f"ip6 daddr {PUBLIC[1]} udp dport 8081 dnat ip6 to [{FREE6}]:80; "
    )
    lab.router.nft(f"table inet others {{ chain pre {{ type nat hook prerouting priority dstnat; {rules} }}; }}")


LIMITS = {"4 kbytes/week burst 1 kbytes": 5, "1/week burst 3 packets": 3}  # and how many kbytes or packets pass


@pytest.mark.parametrize(("limit", "passing"), LIMITS.items())
@pytest.mark.parametrize(("family", "address"), [(0, SERVICE4), (1, SERVICE6)])
def test_a_limit_holds_for_packets_that_the_router_redirects_to_the_service(  # noqa: PLR0913 - two tables of cases
    lab: Lab, firewall: Firewall, family: int, address: str, limit: str, passing: int
) -> None:
    redirect(lab)
    slow = service("slow", SERVICE4, SERVICE6, ports=UDP80, limit=limit)
    firewall.load([slow, service("free", FREE4, FREE6, ports=UDP80)], nft(), "accept\n")
    router = str(PUBLIC[family])
    assert len(lab.deliver([Probe("udp", router, 8080, length=KBYTE)] * 20)) == passing
    assert len(lab.deliver([Probe("udp", router, 8081, length=KBYTE)] * 20)) == 20
    assert packets(lab, f"dropped-dnat{6 if family else 4}", f"{address} . udp . 80") == 20 - passing


def test_a_redirect_on_the_side_of_the_cluster_is_not_limited(lab: Lab, firewall: Firewall) -> None:
    lab.router.nft(
        "table ip others { chain pre { type nat hook prerouting priority dstnat; "
        f"ip daddr {FREE4} udp dport 80 dnat to {SERVICE4}; }}; }}"
    )
    firewall.load([service("slow", SERVICE4, ports=UDP80, limit="1/week burst 3 packets")], nft())
    assert len(lab.deliver([Probe("udp", FREE4, 80)] * 9, "node")) == 0  # they leave where they came in
    assert packets(lab, "dropped-dnat4", f"{SERVICE4} . udp . 80") == 0


# --- what a Service sends -------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "passing"), LIMITS.items())
@pytest.mark.parametrize(("family", "address", "free"), [(0, SERVICE4, FREE4), (1, SERVICE6, FREE6)])
def test_an_egress_limit_holds_for_what_a_service_sends_and_for_nothing_else(  # noqa: PLR0913 - two tables of cases
    lab: Lab, firewall: Firewall, family: int, address: str, free: str, limit: str, passing: int
) -> None:
    slow = service("slow", SERVICE4, SERVICE6, ports=UDP80, egress=limit)
    firewall.load([slow, service("free", FREE4, FREE6, ports=UDP80)], nft(), "accept\n")
    client = str(CLIENT[family])

    def sent(source: str, sport: int) -> int:
        return len(lab.deliver([Probe("udp", client, 5000, source=source, sport=sport, length=KBYTE)] * 20, "node"))

    assert (sent(address, 80), sent(address, 81), sent(free, 80)) == (passing, 20, 20)
    assert len(lab.deliver([Probe("udp", address, 80, length=KBYTE)] * 20)) == 20, "the other direction"
    assert packets(lab, f"dropped-egress{6 if family else 4}", f"{address} . udp . 80") == 20 - passing


def test_the_two_directions_have_buckets_of_their_own(lab: Lab, firewall: Firewall) -> None:
    limits = {"limit": "1/week burst 3 packets", "egress": "1/week burst 4 packets"}
    firewall.load([service("slow", SERVICE4, ports=UDP80, **limits)], nft())
    assert len(lab.deliver([Probe("udp", SERVICE4, 80)] * 20)) == 3
    answers = [Probe("udp", str(CLIENT[0]), 5000, source=SERVICE4, sport=80)] * 20
    assert len(lab.deliver(answers, "node")) == 4


@pytest.mark.parametrize(("family", "address"), [(0, SERVICE4), (1, SERVICE6)])
def test_an_egress_limit_holds_for_answers_to_redirected_packets(
    lab: Lab, firewall: Firewall, family: int, address: str
) -> None:
    redirect(lab)
    firewall.load([service("slow", SERVICE4, SERVICE6, ports=UDP80, egress="1/week burst 3 packets")], nft())
    assert lab.arrives("udp", str(PUBLIC[family]), 8080, sport=5000)
    answers = [Probe("udp", str(CLIENT[family]), 5000, source=address, sport=80)] * 20
    assert len(lab.deliver(answers, "node")) == 3


@pytest.mark.parametrize(("family", "address"), [(0, SERVICE4), (1, SERVICE6)])
def test_an_egress_limit_holds_for_answers_while_no_public_nic_is_there(
    lab: Lab, firewall: Firewall, family: int, address: str
) -> None:
    slow = service("slow", SERVICE4, SERVICE6, ports=UDP80, egress="1/week burst 3 packets")
    firewall.change(wanted([slow], nft("eth9"), links=[]))
    assert lab.arrives("udp", address, 80, sport=5000)
    answers = [Probe("udp", str(CLIENT[family]), 5000, source=address, sport=80)] * 20
    assert len(lab.deliver(answers, "node")) == 3


def test_an_egress_limit_does_nothing_without_enable_rateshape(lab: Lab, firewall: Firewall) -> None:
    slow = service("slow", SERVICE4, ports=UDP80, egress="1/week burst 3 packets")
    answers = [Probe("udp", str(CLIENT[0]), 5000, source=SERVICE4, sport=80)] * 20
    for shaped, passing in ((False, 20), (True, 3), (False, 20)):
        firewall.load([slow], nft(enable_rateshape=shaped))
        assert len(lab.deliver(answers, "node")) == passing


def test_every_limit_is_read_back_as_it_was_written(lab: Lab, firewall: Firewall) -> None:
    firewall.load(
        [
            service("bytes", SERVICE4, SERVICE6, limit="2 mbytes/second", egress="1 kbytes/minute burst 9 bytes"),
            service("packets", FREE4, FREE6, limit="7/second burst 8 packets", egress="5/hour"),
        ],
        nft(),
    )
    found = firewall.kernel.read().ruleset
    assert filled(found.elements) == filled(firewall.holds.elements)
    assert {family: table.sets for family, table in found.tables.items()} == {
        family: table.sets for family, table in firewall.holds.tables.items()
    }
    of_limits = [name for sets in found.elements.values() for name in sets if name.startswith(("limited", "fragments"))]
    assert all(members for sets in found.elements.values() for name, members in sets.items() if name in of_limits)
    assert len(of_limits) == 16
