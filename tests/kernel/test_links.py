"""What addresses the router has, who speaks BGP with it, and that who listens for changes goes on listening."""

from __future__ import annotations

import errno
import os
import resource
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from nftsync.kernel import interfaces as links
from nftsync.kernel import routes
from nftsync.kernel.interfaces import LinkError, Links, listen
from nftsync.kernel.links import read_links
from nftsync.objects.address import AddressSet, parse_range
from tests.lab.lab import CLIENT, CLUSTER, NODE, PUBLIC, Lab, TcpServer
from tests.lab.namespace import Namespace
from tests.lab.probe import Pair
from tests.labtools import PATIENCE, eventually, needs_root

pytestmark = needs_root


def test_after_more_changes_than_the_socket_holds_it_looks_anew_and_hears_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    woken, stop, real = threading.Semaphore(0), threading.Event(), links._listen
    faults = [OSError(errno.ENOBUFS, "No buffer space available")]

    def listening(*arguments: object) -> None:
        if faults:
            raise faults.pop()
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(links, "_listen", listening)
    monkeypatch.setattr(links, "_CHECK", 0.05)
    namespace = Namespace()
    thread = threading.Thread(target=namespace.call, args=(listen, woken.release, stop))
    try:
        thread.start()
        assert woken.acquire(timeout=PATIENCE), "what was lost is looked up"
        number = iter(range(1000))

        def heard() -> bool:
            namespace.ip(f"link add v{next(number)} type veth")
            return woken.acquire(timeout=0.1)

        assert eventually(heard)
    finally:
        stop.set()
        thread.join()
        namespace.close()


def test_it_listens_in_a_process_that_has_a_thousand_files_open(namespace: Namespace) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    woken, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=namespace.call, args=(listen, woken.set, stop))
    held: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
        while not held or held[-1] < 1100:
            held.append(os.dup(0))
        thread.start()
        number = iter(range(1000))

        def heard() -> bool:
            namespace.ip(f"link add w{next(number)} type veth")
            return woken.wait(0.1)

        assert eventually(heard)
        assert thread.is_alive()
    finally:
        stop.set()
        thread.join()
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_that_the_kernel_can_not_tell_of_sessions_is_no_error_but_that_it_does_not_is(
    network: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[Exception] = [
        NetlinkError(errno.ENOENT), OSError(errno.EPROTONOSUPPORT, ""), OSError(errno.EAFNOSUPPORT, ""),
        NetlinkError(errno.ENOBUFS), OSError(errno.EMFILE, "too many open files"),
    ]  # fmt: skip

    def broken() -> None:
        raise faults.pop(0)

    monkeypatch.setattr(links, "DiagSocket", broken)
    for _ in range(3):
        assert network.bgp_peers() == frozenset()
    for _ in range(2):
        with pytest.raises(LinkError, match="list TCP connections"):
            network.bgp_peers()


def test_a_refusal_of_the_kernel_is_a_link_error() -> None:
    namespace = Namespace()
    network = namespace.call(Links)
    try:
        namespace.ip("link set lo up")
        (lo,) = (link.index for link in namespace.call(read_links) if link.name == "lo")
        network.add_ingress(lo)
        with pytest.raises(LinkError, match="add an ingress qdisc"):
            network.add_ingress(lo)
    finally:
        network.close()
        namespace.close()


# --- addresses of the router --------------------------------------------------------------------------

OWN = {"127.0.0.1", "127.255.255.255", "::1"}  # every network namespace here has lo up, and lo's networks
OWN_NETWORKS = {"127.0.0.0/8", "::1/128"}


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    made.sysctl({"ipv6/conf/default/disable_ipv6": 0, "ipv6/conf/default/accept_dad": 0})
    made.ip("link set lo up", "link add v0 type veth peer name v1", "link set v0 addrgenmode none up")
    yield made
    made.close()


@pytest.fixture
def network(namespace: Namespace) -> Iterator[Links]:
    made = namespace.call(Links)
    yield made
    made.close()


def texts(values: Iterable[object]) -> set[str]:
    return set(map(str, values))


@pytest.mark.parametrize(
    ("given", "addresses", "networks"),
    [
        ("192.0.2.1/24 broadcast +", {"192.0.2.1", "192.0.2.255"}, {"192.0.2.0/24"}),
        ("192.0.2.1/24 broadcast 192.0.2.127", {"192.0.2.1", "192.0.2.127", "192.0.2.255"}, {"192.0.2.0/24"}),
        ("192.0.2.1/32", {"192.0.2.1"}, {"192.0.2.1/32"}),
        ("192.0.2.0/31", {"192.0.2.0"}, {"192.0.2.0/31"}),
        ("192.0.2.1 peer 198.51.100.9/32", {"192.0.2.1"}, {"192.0.2.1/32", "198.51.100.9/32"}),
        ("192.0.2.1 peer 198.51.100.8/31", {"192.0.2.1"}, {"192.0.2.0/31", "198.51.100.8/31"}),
        ("192.0.2.1/31 scope host", {"192.0.2.1"}, {"192.0.2.0/31"}),
        ("2001:db8::1/64 nodad", {"2001:db8::1", "2001:db8::"}, {"2001:db8::/64"}),
        ("2001:db8::1/128 nodad", {"2001:db8::1"}, {"2001:db8::1/128"}),
        ("2001:db8::1 peer 2001:db8:9::9/128 nodad", {"2001:db8::1"}, {"2001:db8::1/128", "2001:db8:9::9/128"}),
        ("2001:db8::1/64 nodad preferred_lft 0", {"2001:db8::1", "2001:db8::"}, {"2001:db8::/64"}),
        ("fe80::1/64 nodad", {"fe80::1", "fe80::"}, {"fe80::/64"}),
    ],
)
def test_the_routers_addresses_and_networks_are_those_that_it_was_given(
    namespace: Namespace, network: Links, given: str, addresses: set[str], networks: set[str]
) -> None:
    before = network.local()
    assert (texts(before.addresses), texts(before.networks)) == (OWN, OWN_NETWORKS)
    namespace.ip(f"address add {given} dev v0")
    held = network.local()
    assert texts(held.addresses) == OWN | addresses
    assert texts(held.networks) == OWN_NETWORKS | networks
    namespace.ip("address flush dev v0")
    assert network.local() == before


def test_a_networks_broadcast_address_is_the_routers_even_if_nobody_named_it(
    namespace: Namespace, network: Links
) -> None:
    namespace.ip("address add 192.0.2.1/24 dev v0")
    routes = namespace.run(["ip", "route", "show", "table", "local", "type", "broadcast"]).stdout
    assert "broadcast 192.0.2.255 " in routes, "the kernel takes it for its own"
    assert ip_address("192.0.2.255") in network.local().addresses


def test_addresses_of_every_interface_count_and_all_of_each(namespace: Namespace, network: Links) -> None:
    namespace.ip(
        "address add 192.0.2.1/32 dev v0", "address add 192.0.2.2/32 dev v0",  # v1 is down
        "address add 198.51.100.1/32 dev v1", "address add 203.0.113.1/32 dev lo",
        "address add 2001:db8::7 dev lo nodad",
    )  # fmt: skip
    given = {"192.0.2.1", "192.0.2.2", "198.51.100.1", "203.0.113.1", "2001:db8::7"}
    assert texts(network.local().addresses) == OWN | given


@pytest.mark.parametrize("address", ["192.0.2.{}/32", "2001:db8::{}/128"])
def test_a_listener_is_woken_by_an_address_that_comes_and_by_one_that_goes(namespace: Namespace, address: str) -> None:
    woken, stop = threading.Semaphore(0), threading.Event()
    thread = threading.Thread(target=namespace.call, args=(listen, woken.release, stop))
    number = iter(range(1, 200))

    def quiet() -> bool:
        return not woken.acquire(timeout=0.3)  # a veth's carrier, and what was added until it listened

    def heard() -> bool:
        namespace.ip(f"address add {address.format(next(number))} dev v0")
        return woken.acquire(timeout=0.1)

    try:
        thread.start()
        assert eventually(heard), "it listens"
        assert eventually(quiet)
        namespace.ip(f"address add {address.format(254)} dev v0")
        assert woken.acquire(timeout=PATIENCE)
        assert eventually(quiet)
        namespace.ip(f"address del {address.format(254)} dev v0")
        assert woken.acquire(timeout=PATIENCE)
    finally:
        stop.set()
        thread.join()


# --- BGP sessions -------------------------------------------------------------------------------------


def bgp_peers(lab: Lab) -> set[str]:
    network: Links = lab.router.call(Links)
    try:
        return texts(lab.router.call(network.bgp_peers))
    finally:
        network.close()


def connect(here: Namespace, there: Pair, family: int, port: int = 179, sport: int = 0) -> socket.socket:
    """A TCP connection to another namespace's address of that family (0: IPv4, 1: IPv6)."""
    return here.call(socket.create_connection, (str(there[family]), port), 3.0, (("0.0.0.0", "::")[family], sport))


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_a_peer_that_dialled_the_router_is_seen_while_the_session_stands(lab: Lab, family: int) -> None:
    with TcpServer(lab.router, 179):  # on a socket of both families: IPv4 peers have mapped addresses there
        assert bgp_peers(lab) == set()
        with connect(lab.node, CLUSTER, family), connect(lab.client, PUBLIC, 1 - family):
            both = {str(NODE[family]), str(CLIENT[1 - family])}
            assert eventually(lambda: bgp_peers(lab) == both)
        assert eventually(lambda: bgp_peers(lab) == set())


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_a_peer_that_the_router_dialled_is_seen_while_the_session_stands(lab: Lab, family: int) -> None:
    with TcpServer(lab.client, 179):
        with connect(lab.router, CLIENT, family):
            assert bgp_peers(lab) == {str(CLIENT[family])}
        assert eventually(lambda: bgp_peers(lab) == set())


def test_a_peer_of_a_listener_for_ipv4_alone_and_one_dialled_through_a_mapped_address_are_seen(lab: Lab) -> None:
    own = str(CLUSTER[0])
    with lab.router.call(socket.create_server, (own, 179)), connect(lab.node, CLUSTER, 0):
        assert bgp_peers(lab) == {str(NODE[0])}
    with TcpServer(lab.node, 179), lab.router.socket(socket.AF_INET6, socket.SOCK_STREAM) as mapped:
        mapped.connect((f"::ffff:{NODE[0]}", 179))
        assert bgp_peers(lab) == {str(NODE[0])}


def test_what_is_no_established_session_on_port_179_is_no_bgp_peer(lab: Lab) -> None:
    with ExitStack() as opened:
        for port in (1179, 178, 180, 45824, 22):  # 45824 is 179 with its bytes exchanged
            opened.enter_context(TcpServer(lab.router, port))
            opened.enter_context(connect(lab.node, CLUSTER, port % 2, port))
        opened.enter_context(TcpServer(lab.node, 1179))
        opened.enter_context(connect(lab.router, NODE, 0, 1179))
        datagrams = opened.enter_context(lab.router.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.connect((str(NODE[0]), 179))
        dialling = opened.enter_context(lab.router.socket(socket.AF_INET, socket.SOCK_STREAM))
        dialling.setblocking(False)
        lab.node.nft("table inet t { chain c { type filter hook input priority 0; tcp dport 179 drop; }; }")
        dialling.connect_ex((str(NODE[0]), 179))
        opened.enter_context(TcpServer(lab.router, 179))  # listens, and nobody has called
        opened.enter_context(TcpServer(lab.client, 179))
        opened.enter_context(connect(lab.node, CLIENT, 0))  # goes through the router, and is not its own
        assert bgp_peers(lab) == set()


# --- the links, and the routes that lead out ------------------------------------------------------------


def test_links_are_read_with_their_names_masters_carriers_and_addresses(namespace: Namespace) -> None:
    namespace.ip(
        "link add ens18 type veth peer name other", "link property add dev ens18 altname enp6s18 altname wan",
        "link add br0 type bridge", "link set ens18 master br0", "link add m0 link br0 type macvlan",
        "address add 192.0.2.1/24 dev m0", "address add fe80::7/64 dev br0 nodad",
    )  # fmt: skip
    found = {link.name: link for link in namespace.call(read_links)}
    index = {name: link.index for name, link in found.items()}
    assert found["ens18"].altnames == {"enp6s18", "wan"}
    assert (found["ens18"].kind, found["ens18"].master, found["ens18"].lower) == ("veth", index["br0"], 0)
    assert (found["m0"].kind, found["m0"].lower, found["m0"].addressed) == ("macvlan", index["br0"], True)
    assert (found["br0"].kind, found["br0"].addressed) == ("bridge", False), "a link-local address is none"


def test_uplinks_have_a_default_route_or_one_that_bgp_learned_out_of_the_pools(namespace: Namespace) -> None:
    names = ("up0", "up1", "up2", "in0", "in1")
    namespace.ip(
        *(f"link add {name} type veth peer name p{name}" for name in names),
        *(f"link set {name} up" for name in [*names, *(f"p{name}" for name in names)]),
        *(f"address add 10.0.{number}.1/24 dev {name}" for number, name in enumerate(names)),
        "address add 2001:db8:2::1/64 dev up2 nodad",
        "route add default via 10.0.0.2", "route add default table 77 nexthop via 10.0.0.2 nexthop via 10.0.1.2",
        "route add 203.0.113.0/24 via 10.0.1.2 proto bgp", "route add 2001:db8:99::/48 via 2001:db8:2::2 proto bird",
        "route add 172.30.254.1 via 10.0.3.2 proto bgp", "route add 198.51.100.0/24 via 10.0.4.2 proto static",
    )  # fmt: skip
    legal = AddressSet.of([parse_range("172.30.254.0/24")])
    index = {link.index: link.name for link in namespace.call(read_links)}
    found = {(index[uplink.index], uplink.what) for uplink in namespace.call(routes.uplinks, legal)}
    assert found == {
        ("up0", "a default route"), ("up1", "a default route"), ("up1", "a route to 203.0.113.0/24 by BGP"),
        ("up2", "a route to 2001:db8:99::/48 by BIRD"),
    }  # fmt: skip
    assert {uplink.what for uplink in namespace.call(routes.uplinks, None)} == {
        "a default route"
    }, "pools are not known"
