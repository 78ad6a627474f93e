"""The recipes of docs/recipes.md, as they are written there, let their packets pass and no others."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from nftsync.config import Filters
from nftsync.objects.address import AddressSet, parse_range
from nftsync.objects.nft import parse_nft
from nftsync.objects.service import parse_service
from nftsync.policy.pinholes import PinholeIndex
from nftsync.ruleset.localchain import parse_local_chain
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset
from tests.lab.features import ESP_KEYS
from tests.lab.lab import CLIENT, NODE, PUBLIC, SERVICES, Lab, Origin, Probe, Protocol, TcpServer
from tests.labtools import (
    PATIENCE,
    SERVICE4,
    SERVICE6,
    Daemon,
    Firewall,
    Raw,
    eventually,
    needs_root,
    nft,
    service,
)
from tests.support import ROOT, side

pytestmark = needs_root

PUBLIC_NIC, OTHER_NIC = "enp1s0", "enp2s0"  # as the page names them; the lab calls the other one cluster0
GROUPS = ("224.0.0.5", "224.0.0.6", "224.0.0.18", "ff02::5", "ff02::6", "ff02::12")
NEIGHBOUR = {"4": "198.51.100.2", "6": "2001:db8:100::2", "link": "fe80::2"}
STRANGER = {"4": "198.51.100.9", "6": "2001:db8:100::9", "link": "fe80::9"}
MANAGEMENT = {"4": "192.0.2.7", "6": "2001:db8:192::7"}
INSIDE = {"4": "172.30.250.7", "6": "2001:db8:250::7"}
OWN = {"4": "198.51.100.1", "6": "2001:db8:100::1", "link": "fe80::1"}
TRANSPORTS: tuple[Protocol, ...] = ("tcp", "udp")
POOL = AddressSet.of(parse_range(each) for each in SERVICES)
FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])


# --- the page -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A section of the page: alternative blocks for the local chain, tables of your own, and commands."""

    chains: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


def _read(section: str) -> Recipe:
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return Recipe(
        tuple(text for kind, text in blocks if kind == "nft" and not text.startswith("table ")),
        tuple(text for kind, text in blocks if kind == "nft" and text.startswith("table ")),
        tuple(line for kind, text in blocks if kind == "sh" for line in text.splitlines()),
    )


PAGE = {
    heading: _read(section)
    for heading, section in re.findall(
        r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", (ROOT / "docs/recipes.md").read_text(), re.MULTILINE | re.DOTALL
    )
}
RECIPES = {heading: recipe for heading, recipe in PAGE.items() if recipe != Recipe()}


# --- the packets --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Packets that one block of a recipe is for, and others that resemble them. By default they come from outside."""

    passes: Sequence[Probe]
    dropped: Sequence[Probe]
    origin: Origin = "client"
    elsewhere: bool = True  # whether the same packets are dropped if they come in by the other interface
    block: int = 0
    uncounted: Sequence[str] = field(default=())  # parts of rules that other tests try


def vary(probes: Sequence[Probe], **changes: Any) -> list[Probe]:
    return [replace(probe, **changes) for probe in probes]


def from_strangers(probes: Sequence[Probe]) -> list[Probe]:
    """The same packets from other hosts of the same network."""
    known = {address: STRANGER[kind] for kind, address in NEIGHBOUR.items()}
    return [replace(probe, source=known[str(probe.source)]) for probe in probes]


def both(protocol: Protocol, *ports: int, sources: dict[str, str] = NEIGHBOUR, **fields: Any) -> list[Probe]:
    """To the router's own addresses of both families."""
    return [
        Probe(protocol, OWN[kind], port, source=sources[kind], **fields)
        for port in ports or (0,)
        for kind in ("4", "6")
    ]


VRRP = [
    Probe("vrrp", "224.0.0.18", source=NEIGHBOUR["4"], ttl=255),
    Probe("ah", "224.0.0.18", source=NEIGHBOUR["4"], ttl=255),
    Probe("vrrp", "ff02::12", source="fe80::2", ttl=255),
]
OSPF = [
    *(Probe("ospf", each, source=NEIGHBOUR["4"], ttl=1) for each in ("224.0.0.5", "224.0.0.6", OWN["4"])),
    *(Probe("ospf", each, source="fe80::2", ttl=1) for each in ("ff02::5", "ff02::6", "fe80::1")),
]
BFD = [
    replace(probe, port=port, ttl=ttl)
    for port, ttl in ((3784, 255), (3785, 255), (3785, 254))
    for probe in (*both("udp"), Probe("udp", "fe80::1", source="fe80::2"))
]
DHCP = [Probe("udp", "fe80::1", 546, source="fe80::2", sport=547)]
MANAGED = [*both("tcp", 22, 9100, sources=MANAGEMENT), *both("udp", 123, 161, sources=MANAGEMENT)]
IPSEC = [*both("udp", 500, 4500), *both("esp")]
OUTWARDS = [
    Probe(protocol, str(CLIENT[family]), 443, source=source)
    for protocol in TRANSPORTS
    for family, source in enumerate(INSIDE.values())
]
BGP = [Probe("tcp", OWN[kind], 179, source=str(NODE[kind == "6"])) for kind in ("4", "6")]

CASES = {
    "VRRP": Case(VRRP, [
        *from_strangers(VRRP), *vary(VRRP, ttl=254), *vary(VRRP, protocol="ospf"),
        *vary(VRRP[:2], destination="224.0.0.5"), *vary(VRRP[2:], destination="ff02::5"),
    ]),
    "OSPF": Case(OSPF, [
        *from_strangers(OSPF), *vary(OSPF, protocol="vrrp"),
        *vary(OSPF[:1], destination="224.0.0.18"), *vary(OSPF[3:4], destination="ff02::12"),
    ]),
    "BFD": Case(BFD, [
        *from_strangers(BFD), *vary(BFD[:3], ttl=254), *vary(BFD, ttl=253), *vary(BFD, port=4784),
        *vary(BFD, protocol="tcp"), *vary(BFD, sport=3784, port=53),
    ], uncounted=["ip daddr 198.51.100.2"]),
    "DHCPv6 client": Case(DHCP, [
        *vary(DHCP, source="2001:db8:100::2"), *vary(DHCP, destination=OWN["6"]), *vary(DHCP, sport=546),
        *vary(DHCP, port=547), *vary(DHCP, port=53),
    ]),
    "Management network": Case(MANAGED, [
        *both("tcp", 22, 9100), *both("udp", 123, 161),
        *both("tcp", 23, 9101, 9469, 123, sources=MANAGEMENT), *both("udp", 22, 53, sources=MANAGEMENT),
        *vary(MANAGED[::2], destination=SERVICE4), *vary(MANAGED[1::2], destination=SERVICE6),
    ], elsewhere=False),
    "WireGuard": Case(both("udp", 51820), [*both("udp", 51819, 51821), *both("tcp", 51820)]),
    "IPsec": Case(IPSEC, [
        *from_strangers(IPSEC), *both("udp", 501, 4501), *both("tcp", 500), *both("gre"),
        # not encrypted, as if they came out of the tunnel
        Probe("udp", str(NODE[0]), 53, source="10.9.0.1"), Probe("udp", str(NODE[1]), 53, source="2001:db8:9::1"),
    ], uncounted=["ipsec"]),
    "GRE": Case(both("gre"), [*from_strangers(both("gre")), *both("esp"), *both("udp", 4789)]),
    "Another inside interface": Case(OUTWARDS, [
        *vary(OUTWARDS[::2], source="172.31.0.7"), *vary(OUTWARDS[1::2], source="2001:db8:251::7"),
    ], origin="node"),
    "Another inside interface, for BGP": Case(BGP, [
        *vary(BGP, port=22), *vary(BGP[:1], source="172.30.250.3"), *vary(BGP[1:], source="2001:db8:250::3"),
        *vary(BGP[:1], destination=str(CLIENT[0])), *vary(BGP[1:], destination=str(CLIENT[1])),
    ], origin="node", block=1),
}  # fmt: skip
APART = {
    "Block a source",
    "Slow down ssh guessing",
    "FTP",
    "DNS without connection tracking",
    "Docker",
}  # recipes with tests of their own


def test_each_recipe_of_the_page_is_tried() -> None:
    tried = [(name.split(",")[0], case.block) for name, case in CASES.items()]
    apart = [(name, 0) for name in APART if RECIPES[name].chains]
    assert sorted(tried + apart) == sorted(
        (name, block) for name, recipe in RECIPES.items() for block in range(len(recipe.chains))
    )
    assert {name for name, recipe in RECIPES.items() if recipe.tables or recipe.commands} <= APART


# --- the router ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def router() -> Iterator[tuple[Lab, Firewall]]:
    """A router that hears the groups of its routing protocols, with link-local addresses, and knows the way back."""
    with ExitStack() as opened:
        lab = opened.enter_context(Lab(PUBLIC_NIC))
        for nic in (PUBLIC_NIC, "cluster0"):
            lab.router.ip(f"address add fe80::1/64 dev {nic} nodad")
            index = lab.router.call(socket.if_nametoindex, nic)
            for group in GROUPS:
                opened.enter_context(_member(lab, group, index))
        lab.router.ip("route add 192.0.2.0/24 via 198.51.100.2", "route add 2001:db8:53::/48 via 2001:db8:100::2")
        yield lab, Firewall(lab)


def _member(lab: Lab, group: str, index: int) -> socket.socket:
    if ip_address(group).version == 4:
        joined = lab.router.socket(socket.AF_INET, socket.SOCK_DGRAM)
        request = socket.inet_aton(group) + bytes(4) + struct.pack("@i", index)
        joined.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
    else:
        joined = lab.router.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        request = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", index)
        joined.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
    return joined


def load(firewall: Firewall, recipe: str = "", services: Sequence[Raw] = (), *, enable_ssh: bool = False) -> None:
    """Our tables with a recipe in the local chain. Both interfaces count as public, and BGP is closed."""
    parse_local_chain(f"chain local-chain {{\n{recipe}}}\n")  # raises if the daemon refuses it
    parsed = [parse_service(raw, None) for raw in services]
    pinholes = PinholeIndex([each for each in parsed if each], Filters()).pinholes.values()
    switches = {"enable_ssh": enable_ssh, "enable_bgp": False, "enable_rateshape": False}
    settings = Settings.of(
        parse_nft(nft(PUBLIC_NIC, **switches), None).spec,
        side(PUBLIC_NIC, "cluster0"),
        local_chain=recipe.replace(OTHER_NIC, "cluster0"),
        cluster=POOL,
    )
    firewall.change(ruleset(pinholes, settings))


def arrived(lab: Lab, probes: Sequence[Probe], origin: Origin = "client") -> list[Probe]:
    """The probes that arrive."""
    heard = {id(probe) for probe in lab.deliver(probes, origin)}
    return [probe for probe in probes if id(probe) in heard]


def idle_rules(lab: Lab) -> list[str]:
    """The rules of the local chain that no packet has matched."""
    listed = lab.router.run(["nft", "list", "chain", "inet", "nftsync", "local-chain"]).stdout.splitlines()
    return [line.strip() for line in listed if "counter packets 0 " in line]


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_passes_its_packets_and_no_others(lab: Lab, firewall: Firewall, name: str) -> None:
    case = CASES[name]
    rules = RECIPES[name.split(",")[0]].chains[case.block]
    load(firewall)
    assert arrived(lab, case.passes, case.origin) == [], "without the recipe"
    load(firewall, rules)
    assert arrived(lab, case.dropped, case.origin) == []
    if case.elsewhere:
        assert arrived(lab, case.passes, "node" if case.origin == "client" else "client") == []
    assert arrived(lab, case.passes, case.origin) == list(case.passes)
    assert [rule for rule in idle_rules(lab) if not any(part in rule for part in case.uncounted)] == []


def test_hosts_inside_need_no_recipe_for_routing_protocols(lab: Lab, firewall: Firewall) -> None:
    firewall.load([], nft(PUBLIC_NIC))
    inside = [*VRRP, *OSPF, *BFD, *BGP, *both("udp", 3780, sources=INSIDE)]
    assert arrived(lab, inside, "node") == inside
    assert arrived(lab, [*VRRP, *OSPF, *BFD], "client") == []


def test_ipv6_neighbour_discovery_router_advertisements_and_mld_need_no_recipe(lab: Lab, firewall: Firewall) -> None:
    load(firewall)
    messages = {
        130: socket.inet_pton(socket.AF_INET6, "::"),  # MLD query
        134: bytes.fromhex("4000070800000000 00000000"),  # router advertisement
        135: socket.inet_pton(socket.AF_INET6, "fe80::1"),  # neighbour solicitation
        136: socket.inet_pton(socket.AF_INET6, "fe80::2"),  # neighbour advertisement
    }
    lab.client.ip("address replace fe80::2/64 dev eth0 nodad")
    index = lab.client.call(socket.if_nametoindex, "eth0")
    with (
        lab.client.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender,
        lab.router.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as receiver,
    ):
        sender.bind(("fe80::2", 0, 0, index))
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        receiver.settimeout(PATIENCE)
        for kind, body in messages.items():
            sender.sendto(struct.pack("!BBHI", kind, 0, 0, 0) + body, ("ff02::1", 0, 0, index))
        heard = set[int]()
        while not messages.keys() <= heard:
            packet, (source, *_) = receiver.recvfrom(2000)
            heard |= {packet[0]} if source.startswith("fe80::2") else set()


def test_the_daemon_takes_all_recipes_at_once_and_sees_no_drift_while_they_count(lab: Lab, tmp_path: Path) -> None:
    lab.router.nft("flush ruleset")
    rules = "".join(block for recipe in RECIPES.values() for block in recipe.chains).replace(OTHER_NIC, "cluster0")
    with Daemon(lab, tmp_path, interval=1) as daemon:
        peers = ", ".join(f'"{address}"' for address in CLIENT)
        daemon.configure(f"bgp_peers = [{peers}]\n{daemon.config.read_text()}")
        daemon.local_chain.write_text(f"chain local-chain {{\n{rules}}}\n")
        daemon.put(nft(PUBLIC_NIC))
        daemon.start()
        held = lab.router.run(["nft", "list", "chain", "inet", "nftsync", "local-chain"]).stdout
        assert held.count("counter packets 0 bytes 0") == len(rules.splitlines())
        before = daemon.metric("nftsync_syncs_total", {"result": "unchanged"})
        known = [*VRRP, *both("udp", 4784), *both("tcp", 22)]
        assert arrived(lab, known) == known
        assert eventually(lambda: daemon.metric("nftsync_syncs_total", {"result": "unchanged"}) >= before + 2)
        assert daemon.metric("nftsync_drift_repairs_total") == 0
        assert len(idle_rules(lab)) == len(rules.splitlines()) - 2, "VRRP's rules have counted"
        assert daemon.stop() == 0


def test_an_ipv4_neighbours_bfd_echo_turns_round_at_the_router(lab: Lab, firewall: Firewall) -> None:
    own = NEIGHBOUR["4"]
    echo = Probe("udp", own, 3785, source=own, ttl=255)
    strange = [replace(echo, port=3786), replace(echo, source=STRANGER["4"])]
    assert _returns(lab, firewall, "", [echo, *strange]) == set()
    assert _returns(lab, firewall, RECIPES["BFD"].chains[0], [echo, *strange]) == {(own, 3785, 254)}


def _returns(lab: Lab, firewall: Firewall, recipe: str, probes: Sequence[Probe]) -> set[tuple[str, int, int]]:
    """Source, destination port and TTL of UDP packets that come back to the client before the answer to a ping."""
    load(firewall, recipe)
    found = set[tuple[str, int, int]]()
    with lab.client.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as ear:
        ear.bind(("eth0", 0x0800))
        ear.settimeout(PATIENCE)
        lab.deliver([*probes, Probe("icmp", OWN["4"])])
        while True:
            packet, (_, _, kind, *_) = ear.recvfrom(65536)
            if packet[9] == 1 and packet[20] == 0:
                return found
            if packet[9] == 17 and kind != socket.PACKET_OUTGOING:
                found.add((socket.inet_ntoa(packet[12:16]), int.from_bytes(packet[22:24]), packet[8]))


@pytest.mark.needs_kernel("esp")
@FAMILIES
def test_only_what_came_out_of_an_ipsec_tunnel_goes_where_the_recipe_says(
    lab: Lab, firewall: Firewall, family: int
) -> None:
    inner = ("10.9.0.1", "2001:db8:9::1")[family]
    kind = (socket.AF_INET, socket.AF_INET6)[family]
    with ExitStack() as opened:
        _encrypt(lab, family, inner, opened)
        (rules,) = RECIPES["IPsec"].chains
        load(firewall, "".join(rule for rule in rules.splitlines(keepends=True) if "ipsec" not in rule))
        receiver = opened.enter_context(lab.node.socket(kind, socket.SOCK_DGRAM))
        receiver.bind((str(NODE[family]), 5000))
        receiver.settimeout(PATIENCE)
        sender = opened.enter_context(lab.client.socket(kind, socket.SOCK_DGRAM))
        sender.bind((inner, 0))
        sender.sendto(b"without the rules for decrypted packets", (str(NODE[family]), 5000))
        load(firewall, rules)
        sender.sendto(b"with it", (str(NODE[family]), 5000))
        assert receiver.recv(100) == b"with it"


def _encrypt(lab: Lab, family: int, inner: str, opened: ExitStack) -> None:
    """ESP between the client's `inner` address and the node's network."""
    outside, here = str(CLIENT[family]), str(PUBLIC[family])
    width, nodes = (("32", "172.30.250.0/24"), ("128", "2001:db8:250::/64"))[family]
    selector = f"src {inner}/{width} dst {nodes}"
    template = f"tmpl src {outside} dst {here} proto esp mode tunnel"
    for namespace, directions in ((lab.client, ("out",)), (lab.router, ("in", "fwd"))):
        namespace.ip(f"xfrm state add src {outside} dst {here} proto esp spi 0x100 mode tunnel {ESP_KEYS}")
        opened.callback(namespace.ip, "xfrm state flush")
        namespace.ip(*(f"xfrm policy add {selector} dir {each} {template}" for each in directions))
        opened.callback(namespace.ip, "xfrm policy flush")
    lab.client.ip(f"address add {inner}/{width} dev lo")
    opened.callback(lab.client.ip, f"address del {inner}/{width} dev lo")


def test_a_blocked_source_reaches_no_service_and_its_neighbours_do(lab: Lab, firewall: Firewall) -> None:
    blocked = [
        Probe(protocol, address, 80, source=source)
        for protocol in TRANSPORTS
        for address, sources in (
            (SERVICE4, ("192.0.2.66", "192.0.2.128", "192.0.2.255")),
            (SERVICE6, ("2001:db8:bad::1",)),
        )
        for source in sources
    ]
    others = [Probe("tcp", SERVICE4, 80, source=each) for each in ("192.0.2.65", "192.0.2.67", "192.0.2.127")]
    others.append(Probe("tcp", SERVICE6, 80, source="2001:db8:bae::1"))
    web = service("web", SERVICE4, SERVICE6, ports=[("TCP", 80), ("UDP", 80)])
    load(firewall, services=[web])
    assert arrived(lab, blocked) == blocked
    load(firewall, RECIPES["Block a source"].chains[0], [web])
    assert arrived(lab, [*blocked, *others]) == others
    assert idle_rules(lab) == []


@FAMILIES
def test_a_source_begins_a_few_ssh_connections_at_once_and_its_neighbours_begin_theirs(
    lab: Lab, firewall: Firewall, family: int
) -> None:
    own, guesser = str(PUBLIC[family]), ("192.0.2.66", "2001:db8:66::1")[family]
    neighbour = ("192.0.2.67", "2001:db8:66:1::1")[family]
    load(firewall, RECIPES["Slow down ssh guessing"].chains[0], enable_ssh=True)
    guesses = [Probe("tcp", own, 22, source=guesser) for _ in range(60)]
    same_network = Probe("tcp", own, 22, source=(guesser, "2001:db8:66::2")[family])
    others = [Probe("tcp", own, 22, source=neighbour) for _ in range(5)]
    passed = arrived(lab, [*guesses, same_network, *others])
    assert passed[:5] == guesses[:5]
    assert passed[-5:] == others
    assert len(passed) < 30
    assert not any(probe is same_network for probe in passed)


@FAMILIES
def test_passive_ftp_opens_the_one_connection_that_the_server_has_announced(
    lab: Lab, firewall: Firewall, family: int
) -> None:
    address, recipe = (SERVICE4, SERVICE6)[family], RECIPES["FTP"]
    (chain,), (table,) = recipe.chains, recipe.tables
    ftp = service("ftp", SERVICE4, SERVICE6, ports=[("TCP", 21)])
    load(firewall, services=[ftp])
    assert not _ftp_transfers(lab, address, 50001), "without the recipe"
    load(firewall, chain, [ftp])
    assert not _ftp_transfers(lab, address, 50002), "without the helper"
    lab.router.nft(table)
    load(firewall, "", [ftp])
    assert not _ftp_transfers(lab, address, 50003), "without the rule"
    load(firewall, chain, [ftp])
    assert _ftp_transfers(lab, address, 50004)
    assert not lab.arrives("tcp", address, 50004), "another connection to the same port"
    assert not lab.arrives("tcp", address, 50005)


def _ftp_transfers(lab: Lab, address: str, port: int) -> bool:
    """Ask an FTP server for a passive connection to `port`. Whether bytes go over it and come back."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    numbers = ",".join([*address.split("."), *map(str, divmod(port, 256))])
    command, answer = (
        ("EPSV", f"229 Entering Extended Passive Mode (|||{port}|)")
        if ":" in address
        else ("PASV", f"227 Entering Passive Mode ({numbers})")
    )
    with (
        TcpServer(lab.node, port),
        lab.node.call(socket.create_server, ("", 21), family=kind) as listener,
        lab.tcp_connect(address, 21, PATIENCE) as control,
    ):
        listener.settimeout(PATIENCE)
        with listener.accept()[0] as server:
            server.settimeout(PATIENCE)
            server.sendall(b"220 welcome\r\n")  # the helper waits for the line before the answer
            assert control.recv(100) == b"220 welcome\r\n"
            control.sendall(f"{command}\r\n".encode())
            assert server.recv(100) == f"{command}\r\n".encode()
            server.sendall(f"{answer}\r\n".encode())
            assert control.recv(100) == f"{answer}\r\n".encode()
            try:
                with lab.tcp_connect(address, port, 1.5) as data:
                    data.settimeout(PATIENCE)
                    data.sendall(b"list")
                    return data.recv(100) == b"list"
            except TimeoutError:
                return False


@FAMILIES
def test_untracked_dns_answers_come_from_the_named_servers_alone(lab: Lab, firewall: Firewall, family: int) -> None:
    recipe = RECIPES["DNS without connection tracking"]
    (chain,), (table,) = recipe.chains, recipe.tables
    server, stranger = (("192.0.2.53", "192.0.2.54"), ("2001:db8:53::53", "2001:db8:53::54"))[family]
    own = str(PUBLIC[family])

    def answers(port: int, **fields: Any) -> bool:
        """Whether the router hears the answer to a question that it asks from this port."""
        with lab.router.socket((socket.AF_INET, socket.AF_INET6)[family], socket.SOCK_DGRAM) as resolver:
            resolver.bind((own, port))
            resolver.sendto(b"?", (server, 53))
            return lab.arrives("udp", own, port, **{"source": server, "sport": 53, **fields})

    load(firewall)
    assert answers(40001), "conntrack knows the question"
    lab.router.nft(table)
    assert not answers(40002), "untracked, without the recipe"
    load(firewall, chain)
    assert answers(40003)
    assert answers(60999)
    assert not answers(40004, source=stranger)
    assert not answers(40005, sport=5353)
    assert not answers(1024)
    assert not lab.arrives("tcp", own, 40003, source=server, sport=53)


def test_services_pass_beside_docker_when_its_chain_for_users_accepts_them(lab: Lab, firewall: Firewall) -> None:
    web = service("web", SERVICE4, SERVICE6)
    load(firewall, services=[web])
    probes = [Probe("tcp", address, port) for address in (SERVICE4, SERVICE6) for port in (80, 81)]
    web_alone = probes[::2]
    assert arrived(lab, probes) == web_alone
    for family in ("ip", "ip6"):  # as iptables-nft holds what Docker sets up
        lab.router.nft(f"""table {family} filter {{
            chain DOCKER-USER {{ }}
            chain FORWARD {{ type filter hook forward priority 0; policy drop; counter jump DOCKER-USER; }}
        }}""")
    assert arrived(lab, probes) == [], "Docker's policy drops them"
    for command in RECIPES["Docker"].commands:
        lab.router.nft(_as_nft(command.replace(OTHER_NIC, "cluster0")))
    assert arrived(lab, probes) == web_alone
    with TcpServer(lab.node, 80), lab.tcp_connect(SERVICE4, 80) as four, lab.tcp_connect(SERVICE6, 80) as six:
        for connection in (four, six):  # the answers pass, too
            connection.sendall(b"hello")
            assert connection.recv(100) == b"hello"


def _as_nft(command: str) -> str:
    """The rule that iptables-nft makes of `iptables -I CHAIN -i NIC -o NIC -j ACCEPT`."""
    words = re.fullmatch(r"(ip6?)tables -I (\S+) -i (\S+) -o (\S+) -j ACCEPT", command)
    assert words, command
    family, chain, come, go = words.groups()
    return f'insert rule {family} filter {chain} iifname "{come}" oifname "{go}" counter accept'
