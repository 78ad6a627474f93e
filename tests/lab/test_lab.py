"""The lab tells the truth: what is let through arrives, what is dropped does not, and nothing is left of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.lab import CLIENT, NODE, PUBLIC, Flood, Lab, LabError, Namespace, Probe, Protocol, TcpServer
from tests.labtools import PATIENCE, flooded

PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp", "sctp", "icmp")
SERVICE4, SERVICE6 = "172.30.254.1", "2001:db8:254::1"
OTHER4 = "172.30.254.2"
MBYTE = 1 << 20
OWN_NAMESPACE = Path("/proc/thread-self/ns/net")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def outside() -> Iterator[Namespace]:
    namespace = Namespace()
    yield namespace
    namespace.close()


def every_protocol(*destinations: str, port: int = 80) -> list[Probe]:
    return [Probe(protocol, destination, port) for destination in destinations for protocol in PROTOCOLS]


def open_files() -> list[str]:
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def tie(outside: Namespace, path: str) -> Callable[[], bool]:
    """Tie a veth pair between a namespace and another one; the result tells whether that one is gone."""
    outside.ip(f"link add witness type veth peer name witness netns {path}")
    return lambda: outside.run(["ip", "link", "show", "witness"], check=False).returncode != 0


def test_without_a_firewall_every_protocol_of_both_families_arrives_at_services_and_router(lab: Lab) -> None:
    probes = every_protocol(SERVICE4, SERVICE6, *map(str, PUBLIC), *map(str, NODE))
    assert lab.deliver(probes) == probes


def test_probes_go_from_the_node_to_the_client_too(lab: Lab) -> None:
    probes = every_protocol(*map(str, CLIENT), *map(str, PUBLIC))
    assert lab.deliver(probes, origin="node") == probes


def test_exactly_the_probes_that_the_firewall_forbids_are_missing(lab: Lab) -> None:
    lab.router.nft("""
        table inet t {
            chain forward {
                type filter hook forward priority filter
                ip daddr 172.30.254.1 meta l4proto . th dport { tcp . 80, sctp . 81 } accept
                ip6 daddr 2001:db8:254::1 udp dport 80 accept
                ip6 daddr 2001:db8:254::1 icmpv6 type echo-request accept
                ip saddr 203.0.113.7 udp sport 53 accept
                drop
            }
            chain input {
                type filter hook input priority filter
                ip daddr 198.51.100.1 tcp dport 179 accept
                drop
            }
        }
    """)
    allowed = [
        Probe("tcp", SERVICE4, 80),
        Probe("sctp", SERVICE4, 81),
        Probe("udp", SERVICE6, 80),
        Probe("icmp", SERVICE6),
        Probe("udp", SERVICE4, 9, source="203.0.113.7", sport=53),
        Probe("tcp", str(PUBLIC[0]), 179),
    ]
    forbidden = [
        Probe("udp", SERVICE4, 80),
        Probe("sctp", SERVICE4, 80),
        Probe("tcp", SERVICE4, 81),
        Probe("icmp", SERVICE4),
        Probe("tcp", SERVICE6, 80),
        Probe("tcp", OTHER4, 80),
        Probe("udp", SERVICE4, 9, source="203.0.113.7", sport=54),
        Probe("udp", SERVICE4, 9, source="203.0.113.8", sport=53),
        Probe("tcp", str(PUBLIC[0]), 22),
        Probe("tcp", str(PUBLIC[1]), 179),
        Probe("icmp", str(PUBLIC[1])),
    ]
    mixed = [probe for pair in zip(forbidden * 100, allowed * 100, strict=False) for probe in pair]
    assert lab.deliver(mixed) == [probe for probe in mixed if probe in allowed]


def test_what_a_netdev_chain_drops_is_missing(lab: Lab) -> None:
    lab.router.nft(f"""
        table netdev t {{
            chain ingress {{
                type filter hook ingress device "{lab.public_nic}" priority 0
                ip daddr {OTHER4} drop
            }}
        }}
    """)
    assert lab.arrives("udp", SERVICE4, 80)
    assert not lab.arrives("udp", OTHER4, 80)


def test_what_is_rejected_has_not_arrived_though_the_node_gets_the_error_that_quotes_it(lab: Lab) -> None:
    lab.router.nft("table inet t { chain c { type filter hook forward priority 0; udp dport 80 reject; }; }")
    assert not lab.arrives("udp", SERVICE4, 80, source=OTHER4)


def test_conntrack_finds_every_probe_valid_and_new(lab: Lab) -> None:
    rule = "ct state new accept; drop"
    lab.router.nft(f"table inet t {{ chain c {{ type filter hook forward priority 0; {rule}; }}; }}")
    probes = every_protocol(SERVICE4, SERVICE6)
    assert lab.deliver(probes) == probes


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("destination", [SERVICE4, SERVICE6])
def test_a_probe_has_the_length_that_was_asked_for(lab: Lab, protocol: Protocol, destination: str) -> None:
    lab.router.nft("table inet t { chain c { type filter hook forward priority 0; meta length 1000 drop; }; }")
    assert not lab.arrives(protocol, destination, 80, length=1000)
    assert lab.arrives(protocol, destination, 80, length=999)


def test_a_bucket_lets_through_its_rate_and_burst_to_the_packet(lab: Lab) -> None:
    rule = "udp dport 80 limit rate over 10000 bytes/hour burst 5000 bytes drop"
    lab.router.nft(f"table inet t {{ chain c {{ type filter hook forward priority 0; {rule}; }}; }}")
    assert len(lab.deliver([Probe("udp", SERVICE4, 80, length=1000)] * 100)) == 15


def test_thousands_of_probes_arrive_in_the_order_in_which_they_were_sent(lab: Lab) -> None:
    probes = [Probe("udp", f"172.30.254.{number % 256}", number) for number in range(1, 5000)]
    assert lab.deliver(probes) == probes


def test_two_labs_at_once_do_not_disturb_each_other(lab: Lab) -> None:
    with Lab(public_nic="enp1s0") as other:
        other.router.nft("table inet t { chain c { type filter hook forward priority 0; drop; }; }")
        heard: list[list[Probe]] = []
        probes = every_protocol(SERVICE4, SERVICE6) * 100
        thread = threading.Thread(target=lambda: heard.append(other.deliver(probes)))
        thread.start()
        assert lab.deliver(probes) == probes
        thread.join()
        assert heard == [[]]
    assert lab.arrives("tcp", SERVICE4, 80)


def test_the_caller_stays_in_its_own_namespace() -> None:
    own = OWN_NAMESPACE.readlink()
    with Lab() as lab:
        lab.deliver(every_protocol(SERVICE4))
        assert lab.router.call(OWN_NAMESPACE.readlink) != own
        with pytest.raises(ZeroDivisionError), lab.router.entered():
            raise ZeroDivisionError
        assert OWN_NAMESPACE.readlink() == own


def test_nothing_is_left_after_an_exception_in_the_with_block(outside: Namespace) -> None:
    descriptors = open_files()
    children: list[subprocess.Popen[str]] = []
    ties: list[Callable[[], bool]] = []

    def fail() -> None:
        with Lab() as lab:
            ties.append(tie(outside, lab.router.path))
            assert not ties[0]()
            assert lab.arrives("tcp", SERVICE4, 80)
            children.append(lab.router.popen(["sleep", "600"]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert children[0].returncode is not None
    assert eventually(ties[0])
    assert open_files() == descriptors


def test_nothing_is_left_when_the_lab_cannot_be_built() -> None:
    descriptors = open_files()
    with pytest.raises(LabError, match="a-name-that-is-too-long"):
        Lab(public_nic="a-name-that-is-too-long")
    assert open_files() == descriptors


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_process_is_killed(outside: Namespace, number: signal.Signals) -> None:
    program = textwrap.dedent("""
        import time
        from tests.lab.lab import Lab
        with Lab() as lab:
            lab.router.popen(["sleep", "600"])
            print(lab.router.path, flush=True)
            time.sleep(600)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout
        path = process.stdout.readline().strip()
        gone = tie(outside, path)
        assert not gone()
        process.send_signal(number)
    assert eventually(gone)  # which it would not be if `sleep` were still in it


def test_a_command_that_fails_is_reported_with_what_it_said(lab: Lab) -> None:
    with pytest.raises(LabError, match="syntax error"):
        lab.router.nft("nonsense")
    with pytest.raises(LabError, match="no-such-command"):
        lab.router.run(["no-such-command"])
    assert lab.router.run(["false"], check=False).returncode == 1


def test_a_public_nic_can_go_and_come_back_under_another_name(lab: Lab) -> None:
    assert lab.arrives("tcp", SERVICE6, 80)
    lab.unplug()
    with pytest.raises(LabError, match="public0"):
        lab.router.ip("link show public0")
    lab.plug("wan0")
    assert lab.arrives("tcp", SERVICE6, 80)
    assert lab.router.run(["ip", "link", "show", "wan0"]).stdout


def test_an_address_that_is_routed_later_arrives_too(lab: Lab) -> None:
    assert not lab.arrives("tcp", "192.0.2.1", 80)
    lab.route("192.0.2.1")
    assert lab.arrives("tcp", "192.0.2.1", 80)


@pytest.mark.parametrize("destination", [SERVICE4, SERVICE6])
def test_a_connection_is_echoed_until_the_firewall_cuts_it(lab: Lab, destination: str) -> None:
    with TcpServer(lab.node, 80) as server, lab.tcp_connect(destination, 80) as connection:
        connection.sendall(b"hello")
        assert connection.recv(100) == b"hello"
        assert server.received == 5
        lab.router.nft("table inet t { chain c { type filter hook forward priority 0; drop; }; }")
        connection.settimeout(0.3)
        connection.sendall(b"anyone?")
        with pytest.raises(TimeoutError):
            connection.recv(100)
        with pytest.raises(TimeoutError):
            lab.tcp_connect(destination, 80, timeout=0.3)
        assert server.received == 5


def test_a_connection_to_a_port_without_a_server_is_refused(lab: Lab) -> None:
    with pytest.raises(ConnectionRefusedError):
        lab.tcp_connect(SERVICE4, 80)


@pytest.mark.parametrize(("gso", "larger"), [(True, True), (False, False)])
def test_without_offload_no_packet_is_larger_than_the_wire_takes(*, gso: bool, larger: bool) -> None:
    with Lab(gso=gso) as lab, TcpServer(lab.node, 80, echo=False) as server:
        rule = "meta length > 1500 counter name larger"
        lab.router.nft(
            f"table inet t {{ counter larger {{ }}; chain c {{ type filter hook forward priority 0; {rule}; }}; }}"
        )
        with lab.tcp_connect(SERVICE4, 80) as connection:
            connection.sendall(bytes(4 * MBYTE))
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
        assert server.received == 4 * MBYTE
        listed = lab.router.run(["nft", "list", "counter", "inet", "t", "larger"]).stdout
        assert ("packets 0 bytes" not in listed) == larger


@pytest.mark.parametrize(
    ("protocol", "destination"), [("udp", SERVICE4), ("udp", SERVICE6), ("tcp", SERVICE4), ("sctp", SERVICE6)]
)
def test_a_limit_on_the_ingress_hook_is_measured_within_three_percent(
    lab: Lab, protocol: Protocol, destination: str
) -> None:
    rule = f"{protocol} dport 80 limit rate over 1 mbytes/second burst 256 kbytes drop"
    hook = f'type filter hook ingress device "{lab.public_nic}" priority 0'
    lab.router.nft(f"table netdev t {{ chain c {{ {hook}; {rule}; }}; }}")
    measured = flooded(lambda: lab.flood(destination, 80, seconds=1.0, protocol=protocol), MBYTE, 0.03)
    assert measured.sent_packets > 10 * measured.arrived_packets


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_flood_at_a_rate_arrives_at_that_rate_where_nothing_limits_it(lab: Lab, protocol: Protocol) -> None:
    def measure() -> Flood:
        measured = lab.flood(SERVICE4, 80, seconds=0.5, protocol=protocol, settle=0.0, rate=500_000)
        assert measured.arrived_packets == measured.sent_packets
        return measured

    flooded(measure, 500_000, 0.05)
    assert lab.arrives(protocol, SERVICE4, 80)
