"""Only addresses of MetalLB's pools are opened, and closed ones are cut off.

The router's other traffic is not touched.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from nftsync import config
from nftsync.config import AddressPolicy
from nftsync.kernel.interfaces import LinkError, Links
from nftsync.kernel.nft import Kernel, KernelError
from nftsync.plan.result import Outcome
from nftsync.policy.guard import GRACE_PERIOD
from tests.lab.lab import CLIENT, CLUSTER, NODE, PUBLIC, Lab, Probe, Protocol, TcpServer
from tests.lab.probe import _checksum, packet
from tests.labtools import (
    PATIENCE,
    SERVICE4,
    SERVICE6,
    Daemon,
    Raw,
    answers,
    elements,
    eventually,
    needs_root,
    nft,
    rules,
    service,
    tables,
)
from tests.router import LabRouter

pytestmark = needs_root

OTHER4, OTHER6 = "172.30.254.2", "2001:db8:254::2"
EMPTY4, EMPTY6 = "172.30.254.99", "2001:db8:254::99"  # the cluster's, but no Service has them
OUTSIDE4, OUTSIDE6 = "203.0.113.9", "2001:db8:113::9"
ROUTED4, ROUTED6 = "10.9.9.9", "2001:db8:9::9"  # a host behind the router that the router reaches through the node
BGP = 179
ALL_PORTS = [("TCP", 80), ("UDP", 53)]
WEB = service("web", SERVICE4, SERVICE6, ports=ALL_PORTS)
OTHER = service("other", OTHER4, OTHER6, ports=[("TCP", 443), ("UDP", 5353)])
STRAY = service("stray", OUTSIDE4, OUTSIDE6)
WEB_KEYS = {f"{address} . {port}" for address in (SERVICE4, SERVICE6) for port in ("tcp . 80", "udp . 53")}
STRAY_KEYS = {f"{address} . tcp . 80" for address in (OUTSIDE4, OUTSIDE6)}
OUTSIDE = {"reason": "outside_pools"}
RESERVED = {"reason": "reserved_address"}
UNCHECKED = "addresses are not checked"


def metallb(kind: str, name: str, version: str = "v1beta1", /, **spec: Any) -> Raw:
    """An object of MetalLB's as the API has it."""
    metadata = {"namespace": "metallb-system", "name": name, "uid": f"uid-{name}"}
    return {"apiVersion": f"metallb.io/{version}", "kind": kind, "metadata": metadata, "spec": spec}


def pool(name: str, *addresses: str) -> Raw:
    return metallb("IPAddressPool", name, addresses=list(addresses))


def config_map(text: str) -> Raw:
    metadata = {"namespace": "metallb-system", "name": "config", "uid": "uid-config"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config": text}}


CLUSTER_POOL = pool("services", "172.30.254.0/24", "2001:db8:254::/64")
EVERYTHING = pool("services", "0.0.0.0/0", "::/0")


@pytest.fixture
def daemon(lab: Lab, tmp_path: Path) -> Iterator[Daemon]:
    """Not started; it would find the settings, a Service in the pools to come, and one outside of them."""
    with Daemon(lab, tmp_path, interval=1) as made:
        made.put(nft(), WEB, STRAY)
        yield made


def configure(daemon: Daemon, *lines: str) -> None:
    """Write a configuration with these top-level lines."""
    paths = (
        f'[paths]\nlocal_chain = "{daemon.local_chain}"\nstate = "{daemon.state}"\nruntime = "{daemon.folder}/run"\n'
    )
    daemon.configure("\n".join([f"resync_interval = {daemon.interval}", *lines, paths]))


def reload(daemon: Daemon, *lines: str) -> None:
    configure(daemon, *lines)
    daemon.signal(signal.SIGHUP)


def opened(lab: Lab) -> set[str]:
    """The pinholes that are open to everybody."""
    return {key for version in (4, 6) for key in elements(lab, f"services{version}")}


def closed(lab: Lab) -> set[str]:
    """The endpoints that are closed for connections in either direction."""
    return {key for version in (4, 6) for key in elements(lab, f"closed{version}")}


def at(address: str) -> set[str]:
    """The pinholes that the two Services ask for at an address."""
    return {key for key in WEB_KEYS | STRAY_KEYS if key.startswith(f"{address} ")}


class Router(LabRouter):
    """Syncs with success after each change. lines: of its configuration file."""

    def __init__(self, lab: Lab, folder: Path, *lines: str) -> None:
        path = folder / "nftsync.toml"
        paths = f'[paths]\nlocal_chain = "{folder / "local-chain.nft"}"\nstate = "{folder / "state"}"\n'
        path.write_text("\n".join(["own_tables = false", *lines, paths]))
        super().__init__(lab, config.load(path))

    def put(self, *objects: Raw) -> None:
        super().put(*objects)
        self.synced()

    def delete(self, *objects: Raw) -> None:
        super().delete(*objects)
        self.synced()

    def refusals(self) -> dict[str, str]:
        """The reason of each rejection, by the first word of its sentence: of an address, the address."""
        return {each.message.split()[0]: str(each.reason) for each in self.rejections()}

    def allow(self, *prefixes: str) -> None:
        """Another version of the configuration, with these allowed_prefixes."""
        self.reload(address_policy=AddressPolicy(allowed=tuple(map(ip_network, prefixes))))
        self.synced()

    def pools(self) -> set[str]:
        """What the kernel holds in pools4 and pools6."""
        held = self.lab.router.call(self.kernel.read).ruleset.elements["inet"]
        return {key for version in (4, 6) for key in held.get(f"pools{version}", {})}


@pytest.fixture
def router(lab: Lab, tmp_path: Path) -> Iterator[Router]:
    made = Router(lab, tmp_path)
    yield made
    made.close()


# --- the setting `pools` ------------------------------------------------------------------------------


def test_auto_without_metallb_opens_every_address_and_says_once_that_nothing_is_checked(
    lab: Lab, daemon: Daemon
) -> None:
    daemon.start()
    assert opened(lab) == WEB_KEYS | STRAY_KEYS
    before = daemon.metric("nftsync_syncs_total", {"result": "unchanged"})
    assert eventually(lambda: daemon.metric("nftsync_syncs_total", {"result": "unchanged"}) >= before + 2)
    assert daemon.get("/metrics").body.count("\nnftsync_pools_guarded 0.0\n") == 1
    assert daemon.log().count(UNCHECKED) == 1
    assert daemon.metric("nftsync_rejections", OUTSIDE) == 0


def test_auto_closes_a_service_outside_as_soon_as_there_is_a_pool(lab: Lab, daemon: Daemon) -> None:
    lab.route(OUTSIDE4)
    daemon.start()
    assert lab.arrives("tcp", OUTSIDE4, 80)
    daemon.put(CLUSTER_POOL)
    assert eventually(lambda: opened(lab) == WEB_KEYS), daemon.log()
    assert lab.arrives("tcp", SERVICE4, 80)
    assert not lab.arrives("tcp", OUTSIDE4, 80)
    assert eventually(lambda: daemon.metric("nftsync_rejections", OUTSIDE) == 2)
    assert daemon.metric("nftsync_pools_guarded") == 1
    assert eventually(
        lambda: f"{OUTSIDE4} is outside of MetalLB's usable pools (services: 172.30.254.0/24" in daemon.log()
    )


def test_the_last_good_pools_stay_when_their_object_is_deleted_and_over_a_restart(lab: Lab, daemon: Daemon) -> None:
    daemon.put(CLUSTER_POOL)
    daemon.start()
    assert opened(lab) == WEB_KEYS
    daemon.remove(CLUSTER_POOL)
    late = service("late", "203.0.113.10")
    daemon.put(late)
    assert eventually(lambda: daemon.metric("nftsync_rejections", OUTSIDE) == 3), daemon.log()
    assert opened(lab) == WEB_KEYS
    assert daemon.stop() == 0
    daemon.start()
    assert opened(lab) == WEB_KEYS
    assert daemon.metric("nftsync_pools_guarded") == 1
    assert UNCHECKED not in daemon.log()


def test_required_opens_nothing_until_there_are_pools(lab: Lab, daemon: Daemon) -> None:
    configure(daemon, 'pools = "required"')
    daemon.start()
    assert opened(lab) == set()
    assert not lab.arrives("tcp", SERVICE4, 80)
    assert daemon.metric("nftsync_rejections", OUTSIDE) == 4
    assert daemon.metric("nftsync_pools_guarded") == 1
    daemon.put(CLUSTER_POOL)
    assert eventually(lambda: opened(lab) == WEB_KEYS), daemon.log()
    assert lab.arrives("tcp", SERVICE4, 80)
    assert eventually(lambda: daemon.metric("nftsync_rejections", OUTSIDE) == 2)


def test_ignored_opens_whatever_the_pools_say(lab: Lab, daemon: Daemon) -> None:
    configure(daemon, 'pools = "ignored"')
    daemon.put(CLUSTER_POOL)
    daemon.start()
    assert opened(lab) == WEB_KEYS | STRAY_KEYS
    daemon.put(pool("services", "192.0.2.0/24"), OTHER)
    assert eventually(lambda: f"{OTHER4} . tcp . 443" in opened(lab))
    assert opened(lab) >= WEB_KEYS | STRAY_KEYS
    assert daemon.metric("nftsync_pools_guarded") == 0
    assert daemon.metric("nftsync_rejections", OUTSIDE) == 0


def test_the_clusters_addresses_are_in_the_kernel_as_ranges(router: Router) -> None:
    router.put(nft())
    assert router.pools() == set()
    router.put(pool("a", "192.0.2.7-192.0.2.9", "2001:db8::/127", "172.30.254.0/25"), pool("b", "172.30.254.128/25"))
    assert router.pools() == {"192.0.2.7-192.0.2.9", "2001:db8::/127", "172.30.254.0/24"}


def test_somebody_elses_change_of_the_pools_in_the_kernel_is_repaired(lab: Lab, router: Router) -> None:
    router.put(nft(), WEB, CLUSTER_POOL)
    held = router.pools()
    lab.router.nft(
        "delete element inet nftsync pools4 { 172.30.254.0/24 }\n"
        "add element inet nftsync pools4 { 10.0.0.0/8, 172.30.254.7-172.30.254.9 }\n"
        "add element inet nftsync pools6 { ff00::/8, ::1.2.3.4 }\n"
    )
    assert router.pools() != held
    result = router.sync(resync=True)
    assert (result.outcome, result.drift) == (Outcome.APPLIED, True)
    assert router.pools() == held


# --- edits --------------------------------------------------------------------------------------------


def test_an_edited_pool_opens_and_closes_with_the_next_sync(lab: Lab, router: Router) -> None:
    router.put(nft(), WEB, STRAY, CLUSTER_POOL)
    assert opened(lab) == WEB_KEYS
    for addresses, expected in (
        (("203.0.113.0/24", "2001:db8:113::/64"), STRAY_KEYS),
        ((f"{SERVICE4}-{SERVICE4}", f"{OUTSIDE6}/128"), at(SERVICE4) | at(OUTSIDE6)),
        (("172.30.254.0/24", "2001:db8:254::/64", f"{OUTSIDE4}/32", f"{OUTSIDE6}/128"), WEB_KEYS | STRAY_KEYS),
    ):
        router.put(pool("services", *addresses))
        assert opened(lab) == expected
        assert set(router.refusals()) == {key.split()[0] for key in (WEB_KEYS | STRAY_KEYS) - expected}


def test_the_daemon_takes_up_an_edited_pool_before_the_next_resync(lab: Lab, daemon: Daemon) -> None:
    daemon.interval = 600
    configure(daemon)
    daemon.put(CLUSTER_POOL)
    daemon.start()
    assert opened(lab) == WEB_KEYS
    daemon.put(pool("services", "203.0.113.0/24", "2001:db8:113::/64"))
    assert eventually(lambda: opened(lab) == STRAY_KEYS)
    daemon.put(CLUSTER_POOL)
    assert eventually(lambda: opened(lab) == WEB_KEYS)


def test_of_two_pools_the_one_that_is_deleted_closes(lab: Lab, router: Router) -> None:
    second = pool("second", "203.0.113.0/24", "2001:db8:113::/64")
    router.put(nft(), WEB, STRAY, CLUSTER_POOL, second)
    assert opened(lab) == WEB_KEYS | STRAY_KEYS
    router.delete(second)
    assert eventually(lambda: router.synced() and opened(lab) == WEB_KEYS)
    assert router.pools() == {"172.30.254.0/24", "2001:db8:254::/64"}
    assert closed(lab) == STRAY_KEYS, "whoever came there is cut off"


@pytest.mark.parametrize(
    "broken",
    [
        [pool("services", "172.30.254.0/33")],
        [pool("services", "0.0.0.0/0", "nonsense")],
        [pool("services")],
        [pool("services", "0.0.0.0/0", "203.0.113.0/24")],
        [pool("another", "172.30.254.7-172.30.254.9"), pool("third", "203.0.113.0/24")],
        [metallb("BGPPeer", "peer", "v1beta2", peerAddress="nowhere")],
    ],
    ids=["a bad CIDR", "a good and a bad CIDR", "no addresses", "overlaps itself", "overlaps another", "a bad peer"],
)
def test_after_an_invalid_edit_the_last_good_pools_stay_and_it_is_reported(
    lab: Lab, router: Router, broken: list[Raw]
) -> None:
    router.put(nft(), WEB, STRAY, CLUSTER_POOL)
    good, held = rules(lab), router.pools()
    assert "invalid_pools" not in router.refusals().values()
    router.put(*broken)
    invalid = [each for each in router.rejections() if each.reason == "invalid_pools"]
    assert invalid
    assert all("the last good pools stay" in each.message for each in invalid)
    assert (rules(lab), router.pools()) == (good, held)
    router.put(OTHER)
    assert f"{OTHER4} . tcp . 443" in opened(lab)
    router.delete(OTHER)
    for raw in broken:
        if raw["metadata"]["name"] != "services":
            router.delete(raw)
    router.put(CLUSTER_POOL)
    assert "invalid_pools" not in router.refusals().values()
    assert eventually(lambda: router.synced() and opened(lab) == WEB_KEYS)
    assert router.pools() >= held


def test_a_daemon_that_starts_with_invalid_pools_holds_the_last_good_ones(lab: Lab, daemon: Daemon) -> None:
    daemon.put(CLUSTER_POOL)
    assert daemon.once().returncode == 0
    daemon.put(pool("services", "0.0.0.0/0", "nonsense"))
    daemon.start()
    assert opened(lab) == WEB_KEYS
    assert daemon.metric("nftsync_rejections", {"reason": "invalid_pools"}) == 1
    assert daemon.metric("nftsync_rejections", OUTSIDE) == 2


def test_the_last_good_pools_are_known_after_a_restart_whatever_they_hold(lab: Lab, tmp_path: Path) -> None:
    for attempt in range(2):
        router = Router(lab, tmp_path)
        try:
            router.put(
                nft(),
                WEB,
                STRAY,
                *([] if attempt else [pool("services", "172.30.254.0/24", "::/80", "2001:db8:254::/64")]),
            )
            assert opened(lab) == WEB_KEYS
        finally:
            router.close()


def test_pools_that_the_kernel_does_not_take_yet_are_known_after_a_restart(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise KernelError("no space left")

    router = Router(lab, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Kernel, "apply", full)
        patched.setattr(Kernel, "apply_lines", full)
        with pytest.raises(AssertionError, match="no space left"):
            router.put(nft(), WEB, STRAY, CLUSTER_POOL)
    router.close()
    router = Router(lab, tmp_path)
    try:
        router.put(nft(), WEB, STRAY)
        assert opened(lab) == WEB_KEYS
    finally:
        router.close()


# --- what is closed is cut off ------------------------------------------------------------------------


def deleted(router: Router) -> None:
    router.delete(WEB)


def no_load_balancer(router: Router) -> None:
    router.put(service("web", SERVICE4, SERVICE6, ports=ALL_PORTS, type="ClusterIP"))


def narrowed(router: Router) -> None:
    router.put(service("web", SERVICE4, SERVICE6, ports=ALL_PORTS, sources=["192.0.2.0/24", "2001:db8:999::/48"]))


def on_other_ports(router: Router) -> None:
    router.put(service("web", SERVICE4, SERVICE6, ports=[("TCP", 81), ("UDP", 54)]))


def outside_the_pools(router: Router) -> None:
    """Of the cluster's pool only what the other Service needs is left."""
    router.put(pool("services", f"{OTHER4}/32", f"{OTHER6}/128"))


def not_allowed(router: Router) -> None:
    router.allow(f"{OTHER4}/32", f"{OTHER6}/128")


WAYS = [deleted, no_load_balancer, narrowed, on_other_ports, outside_the_pools, not_allowed]
CLOSINGS = pytest.mark.parametrize("close", WAYS, ids=lambda each: each.__name__)


def reopen(router: Router) -> None:
    router.allow()
    router.put(WEB, CLUSTER_POOL)


@CLOSINGS
@pytest.mark.parametrize(("address", "other"), [(SERVICE4, OTHER4), (SERVICE6, OTHER6)])
def test_closing_a_service_cuts_its_tcp_connections_and_no_other(
    lab: Lab, router: Router, address: str, other: str, close: Callable[[Router], None]
) -> None:
    router.put(nft(), WEB, OTHER, CLUSTER_POOL)
    with (
        TcpServer(lab.node, 80) as server, TcpServer(lab.node, 443),
        lab.tcp_connect(address, 80) as connection, lab.tcp_connect(other, 443) as neighbour,
    ):  # fmt: skip
        assert answers(connection)
        assert answers(neighbour)
        close(router)
        received = server.received
        assert not answers(connection, 0.7), "TCP has sent it again by then"
        assert answers(neighbour)
        assert server.received == received
        reopen(router)
        assert select.select([connection], [], [], PATIENCE)[
            0
        ], "only packets were dropped: the connection goes on when it may"


@pytest.mark.parametrize(("address", "other"), [(SERVICE4, OTHER4), (SERVICE6, OTHER6)])
@pytest.mark.parametrize("line", [f'allowed_prefixes = ["{OTHER4}/32", "{OTHER6}/128"]', ""], ids=["prefixes", "pool"])
def test_what_is_no_longer_legal_after_a_restart_is_cut_off(
    lab: Lab, tmp_path: Path, address: str, other: str, line: str
) -> None:
    narrowed = CLUSTER_POOL if line else pool("services", f"{OTHER4}/32", f"{OTHER6}/128")
    before = Router(lab, tmp_path)
    before.put(nft(), WEB, OTHER, CLUSTER_POOL)
    before.close()
    with (
        TcpServer(lab.node, 80), TcpServer(lab.node, 443),
        lab.tcp_connect(address, 80) as connection, lab.tcp_connect(other, 443) as neighbour,
    ):  # fmt: skip
        assert answers(connection)
        assert answers(neighbour)
        restarted = Router(lab, tmp_path, line)
        try:
            restarted.put(nft(), WEB, OTHER, narrowed)
            if not line:
                time.sleep(GRACE_PERIOD)
                restarted.synced()
            assert not answers(connection, 0.7), "TCP has sent it again by then"
            assert answers(neighbour)
        finally:
            restarted.close()


@CLOSINGS
@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_closing_a_service_cuts_its_udp_flows_and_no_other(
    lab: Lab, router: Router, family: int, close: Callable[[Router], None]
) -> None:
    router.put(nft(), WEB, OTHER, CLUSTER_POOL)
    flows = [
        Probe("udp", (SERVICE4, SERVICE6)[family], 53, sport=4000),
        Probe("udp", (OTHER4, OTHER6)[family], 5353, sport=4000),
    ]
    replies = [Probe("udp", str(CLIENT[family]), 4000, source=each.destination, sport=each.port) for each in flows]
    assert lab.deliver(flows) == flows
    assert lab.deliver(replies, "node") == replies
    close(router)
    assert lab.deliver(flows * 3) == flows[1:] * 3
    reopen(router)
    assert lab.deliver(flows) == flows


@CLOSINGS
def test_without_dropall_nothing_is_cut(lab: Lab, router: Router, close: Callable[[Router], None]) -> None:
    router.put(nft(enable_dropall=False), WEB, CLUSTER_POOL)
    flow = Probe("udp", SERVICE6, 53, sport=4000)
    with TcpServer(lab.node, 80), lab.tcp_connect(SERVICE4, 80) as connection:
        assert answers(connection)
        assert lab.deliver([flow]) == [flow]
        close(router)
        assert answers(connection)
        assert lab.deliver([flow]) == [flow]
        assert lab.arrives("tcp", EMPTY4, 80)


def test_switching_dropall_on_cuts_what_has_no_pinhole(lab: Lab, router: Router) -> None:
    router.put(nft(enable_dropall=False), OTHER, CLUSTER_POOL)
    with (
        TcpServer(lab.node, 80) as server, TcpServer(lab.node, 443),
        lab.tcp_connect(SERVICE4, 80) as connection, lab.tcp_connect(OTHER4, 443) as neighbour,
    ):  # fmt: skip
        assert answers(connection)
        router.put(nft())
        received = server.received
        assert not answers(connection, 0.7)
        assert answers(neighbour)
        assert server.received == received


# --- a pool that is wider than the cluster ------------------------------------------------------------

BEHIND = [*map(str, NODE), ROUTED4, ROUTED6, EMPTY4, EMPTY6]


@pytest.fixture
def wide(lab: Lab, router: Router) -> Router:
    """A router with a pool of everything, and a host behind it in no network of its own."""
    for address in (ROUTED4, ROUTED6):
        lab.route(address)
    lab.node.ip(*(f"address add {address} dev lo nodad" for address in (ROUTED6, EMPTY6)))  # to have sockets with them
    router.put(nft(), WEB, EVERYTHING)
    return router


def test_networks_that_the_router_is_in_are_not_the_clusters_because_a_pool_swallows_them(wide: Router) -> None:
    held = wide.cluster_addresses()
    for address in (*PUBLIC, *CLIENT, *CLUSTER, *NODE):
        assert address not in held
        assert wide.admits(address) == (address in (*CLIENT, *NODE))
    for text in (
        SERVICE4,
        SERVICE6,
        EMPTY4,
        EMPTY6,
        ROUTED4,
        ROUTED6,
        OUTSIDE4,
        OUTSIDE6,
        "0.0.0.1",
        "255.255.255.254",
    ):
        assert ip_address(text) in held
    assert wide.pools() == {each.element for each in held.ranges}


def test_a_network_that_a_pool_holds_in_part_is_the_clusters_in_that_part(router: Router) -> None:
    router.put(nft(), pool("half", "172.30.250.128/25", "2001:db8:250::8000:0/113", "198.51.100.0/24"))
    assert router.pools() == {"172.30.250.128/25", "2001:db8:250::8000:0/113"}


@pytest.mark.parametrize("behind", BEHIND)
def test_a_tcp_connection_from_behind_the_router_gets_its_answers(lab: Lab, wide: Router, behind: str) -> None:
    assert not lab.arrives("tcp", behind, 4001, sport=7000), "nobody has asked for that"
    outside = str(CLIENT[":" in behind])
    with (
        TcpServer(lab.client, 7000),
        lab.node.call(socket.create_connection, (outside, 7000), 3.0, (behind, 0)) as connection,
    ):
        assert answers(connection)
        wide.synced(resync=True)
        wide.put(OTHER)
        assert answers(connection)


@pytest.mark.parametrize("behind", BEHIND)
def test_a_udp_question_from_behind_the_router_gets_its_answer(lab: Lab, wide: Router, behind: str) -> None:
    outside = str(CLIENT[":" in behind])
    answer = Probe("udp", behind, 4000, sport=53)
    assert not lab.arrives("udp", behind, 4001, sport=53), "nobody has asked for that"
    assert lab.arrives("udp", outside, 53, source=behind, sport=4000, origin="node")
    assert lab.deliver([answer] * 3) == [answer] * 3
    assert wide.pools()


@pytest.mark.parametrize("inside", [str(NODE[0]), str(NODE[1])])
def test_what_the_local_chain_let_in_to_a_network_beside_the_router_goes_on(
    lab: Lab, router: Router, inside: str
) -> None:
    router.local_chain.write_text(
        "chain local-chain { ct state new meta l4proto { tcp, udp } th dport 7000-7001 accept; }"
    )
    router.put(nft(), WEB, EVERYTHING)
    flow = Probe("udp", inside, 7001, sport=4000)
    with TcpServer(lab.node, 7000), lab.tcp_connect(inside, 7000) as connection:
        assert answers(connection)
        assert lab.deliver([flow]) == [flow]
        assert lab.arrives("udp", str(CLIENT[":" in inside]), 4000, source=inside, sport=7001, origin="node")
        assert lab.deliver([flow] * 3) == [flow] * 3
        router.synced(resync=True)
        assert answers(connection)


@pytest.mark.parametrize(("address", "empty"), [(SERVICE4, EMPTY4), (SERVICE6, EMPTY6)])
def test_with_a_pool_of_everything_services_are_open_and_nothing_beside_them(
    lab: Lab, wide: Router, address: str, empty: str
) -> None:
    assert wide.refusals() == {}
    with TcpServer(lab.node, 80), lab.tcp_connect(address, 80) as connection:
        assert answers(connection)
    assert lab.arrives("udp", address, 53)
    assert not lab.arrives("tcp", address, 81)
    assert not lab.arrives("tcp", empty, 80)
    assert lab.arrives("tcp", str(PUBLIC[":" in address]), 22)


@pytest.mark.parametrize("pools", [CLUSTER_POOL, EVERYTHING], ids=["the cluster's", "everything"])
def test_an_echo_to_a_pools_address_is_not_dropped(lab: Lab, router: Router, pools: Raw) -> None:
    router.put(nft(), WEB, pools)
    probes = [Probe("icmp", address) for address in (SERVICE4, SERVICE6, EMPTY4, EMPTY6)]
    assert lab.deliver(probes) == probes


def too_big(lab: Lab, flow: Probe) -> None:
    """The client's error message about an answer of a flow: it has to be shorter (RFC 1191, RFC 8201)."""
    version = ip_address(flow.destination).version
    answer = Probe(
        flow.protocol, str(CLIENT[version == 6]), flow.sport or 0, source=flow.destination, sport=flow.port, length=1400
    )
    quoted = packet(answer, NODE, 0, bytes(12))[:600]
    if version == 4:
        head, tail = struct.pack("!BB", 3, 4), struct.pack("!HH", 0, 1300) + quoted
        family, number, content = socket.AF_INET, socket.IPPROTO_ICMP, head + _checksum(head + bytes(2) + tail) + tail
    else:  # the kernel works out the checksum
        family, number, content = socket.AF_INET6, socket.IPPROTO_ICMPV6, struct.pack("!BBHI", 2, 0, 0, 1300) + quoted
    with lab.client.socket(family, socket.SOCK_RAW, number) as sender:
        sender.sendto(content, (flow.destination, 0))


@pytest.mark.parametrize("address", [SERVICE4, SERVICE6])
def test_the_errors_that_path_mtu_discovery_needs_come_to_a_pools_address(
    lab: Lab, router: Router, address: str
) -> None:
    router.put(nft(), WEB, CLUSTER_POOL)
    lab.node.nft("""
        table inet heard {
            counter errors { }
            chain prerouting {
                type filter hook prerouting priority raw
                icmp type destination-unreachable icmp code frag-needed counter name errors
                icmpv6 type packet-too-big counter name errors
            }
        }
    """)

    def heard() -> int:
        listed = json.loads(lab.node.run(["nft", "-j", "list", "counter", "inet", "heard", "errors"]).stdout)
        return int(next(each["counter"]["packets"] for each in listed["nftables"] if "counter" in each))

    flow = Probe("udp", address, 53, sport=4000)
    assert lab.deliver([flow]) == [flow]
    for times in (1, 2):
        too_big(lab, flow)
        assert eventually(lambda times=times: heard() == times), times  # type: ignore[misc]
        router.delete(WEB)  # the second time the flow itself is cut
    assert lab.deliver([flow]) == []


# --- never opened -------------------------------------------------------------------------------------

LAN4, LAN6 = "192.0.2.129", "2001:db8:77::1"
BROADCAST = "192.0.2.255"


@pytest.fixture
def lan(lab: Lab) -> Lab:
    """The router has one more NIC, with a broadcast address as most set-ups give it.

    The lab's other NICs have none of their own.
    """
    lab.router.ip(
        "link add lan0 type veth peer name lan1", "link set lan0 up", "link set lan1 up",
        f"address add {LAN4}/25 broadcast {BROADCAST} dev lan0", f"address add {LAN6}/64 dev lan0 nodad",
    )  # fmt: skip
    return lab


@pytest.mark.parametrize(
    ("line", "objects"),
    [
        ('pools = "auto"', []),
        ('pools = "auto"', [EVERYTHING]),
        ('pools = "required"', [EVERYTHING]),
        ('pools = "ignored"', [EVERYTHING]),
        ('allowed_prefixes = ["0.0.0.0/0", "::/0"]', []),
    ],
)
def test_the_routers_own_addresses_are_never_opened_whatever_pools_say(
    lan: Lab, tmp_path: Path, line: str, objects: list[Raw]
) -> None:
    own = [*map(str, PUBLIC), *map(str, CLUSTER), LAN4, LAN6, BROADCAST]
    router = Router(lan, tmp_path, line)
    try:
        router.put(nft(), WEB, service("hijack", *own, ports=[("TCP", 22)]), *objects)
        assert opened(lan) == WEB_KEYS
        assert router.refusals() == dict.fromkeys(own, "reserved_address")
    finally:
        router.close()


def test_the_broadcast_address_of_a_network_beside_the_router_is_never_opened_even_if_no_nic_names_it(
    lab: Lab, router: Router
) -> None:
    broadcasts = ["198.51.100.255", "172.30.250.255"]
    router.put(nft(), WEB, service("hijack", *broadcasts), EVERYTHING)
    assert opened(lab) == WEB_KEYS
    assert router.refusals() == dict.fromkeys(broadcasts, "reserved_address")


def test_an_address_that_the_router_is_given_closes_at_once_and_opens_again_when_it_goes(
    lab: Lab, daemon: Daemon
) -> None:
    daemon.interval = 600
    configure(daemon)
    daemon.put(CLUSTER_POOL)
    daemon.start()
    assert opened(lab) == WEB_KEYS
    for address in (SERVICE4, SERVICE6):
        lab.router.ip(f"address add {address} dev cluster0{' nodad' if ':' in address else ''}")
        assert eventually(lambda address=address: not any(key.startswith(address) for key in opened(lab))), daemon.log()  # type: ignore[misc]
        assert eventually(lambda: daemon.metric("nftsync_rejections", RESERVED) == 1)
        lab.router.ip(f"address del {address} dev cluster0")
        assert eventually(lambda: opened(lab) == WEB_KEYS), daemon.log()
        assert eventually(lambda: daemon.metric("nftsync_rejections", RESERVED) == 0)


LEGACY = """
peers:
- peer-address: 172.30.254.1
  my-asn: 64512
  peer-asn: 64513
address-pools:
- name: default
  protocol: bgp
  addresses:
  - 172.30.254.0/24
  - 2001:db8:254::/64
"""


@pytest.mark.parametrize(
    ("lines", "objects"),
    [
        ([], [config_map(LEGACY)]),
        ([], [CLUSTER_POOL, metallb("BGPPeer", "router", "v1beta2", peerAddress=SERVICE4, peerASN=64512, myASN=64513)]),
        ([], [metallb("BGPPeer", "router", "v1beta2", peerAddress=SERVICE4, peerASN=64512, myASN=64513)]),
        ([f'bgp_peers = ["{SERVICE4}/32", "2001:db8:254::/64"]'], [CLUSTER_POOL]),
        ([f'bgp_peers = ["{SERVICE4}/32"]', 'pools = "ignored"'], []),
    ],
    ids=[
        "the ConfigMap's peers",
        "a BGPPeer",
        "a BGPPeer without pools",
        "one address in bgp_peers",
        "one address in bgp_peers without pools",
    ],
)
def test_the_address_of_a_bgp_peer_is_never_opened(
    lab: Lab, tmp_path: Path, lines: list[str], objects: list[Raw]
) -> None:
    router = Router(lab, tmp_path, *lines)
    try:
        router.put(nft(), WEB, *objects)
        assert opened(lab) == at(SERVICE6)
        assert router.refusals() == {SERVICE4: "reserved_address"}
        assert not lab.arrives("tcp", SERVICE4, 80)
        assert lab.arrives("tcp", SERVICE6, 80)
    finally:
        router.close()


@pytest.mark.parametrize("beside", ["172.30.254.0/32", "172.30.0.0/16"])
def test_a_peers_one_address_is_never_opened_if_its_neighbour_or_network_is_a_peer_too(
    lab: Lab, tmp_path: Path, beside: str
) -> None:
    router = Router(lab, tmp_path, f'bgp_peers = ["{SERVICE4}/32", "{beside}"]')
    try:
        router.put(nft(), WEB, CLUSTER_POOL)
        assert router.refusals() == {SERVICE4: "reserved_address"}
    finally:
        router.close()


def test_a_bgp_peer_in_ipv6_notation_of_an_ipv4_address_is_never_opened(lab: Lab, router: Router) -> None:
    router.put(nft(), WEB, CLUSTER_POOL)
    router.put(metallb("BGPPeer", "router", "v1beta2", peerAddress=f"::ffff:{SERVICE4}"))
    assert "invalid_pools" in router.refusals().values() or at(SERVICE4).isdisjoint(opened(lab))


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("dials", ["node", "router"])
def test_whoever_has_a_bgp_session_with_the_router_is_never_opened(
    lab: Lab, daemon: Daemon, dials: str, family: int
) -> None:
    router, node = str(CLUSTER[family]), str(NODE[family])
    key = f"{node} . tcp . {BGP}"
    daemon.put(EVERYTHING, service("hijack", node, ports=[("TCP", BGP)]))
    daemon.start()
    assert key in opened(lab)
    there, peer, target = (lab.router, lab.node, router) if dials == "node" else (lab.node, lab.router, node)
    with TcpServer(there, BGP), peer.call(socket.create_connection, (target, BGP), 3.0):
        assert eventually(lambda: key not in opened(lab)), daemon.log()
        assert eventually(lambda: daemon.metric("nftsync_rejections", RESERVED) == 1)
        assert not lab.arrives("tcp", node, BGP)
        assert opened(lab) >= WEB_KEYS
    unchanged = {"result": "unchanged"}
    resyncs = daemon.metric("nftsync_syncs_total", unchanged)
    assert eventually(lambda: daemon.metric("nftsync_syncs_total", unchanged) > resyncs + 2)
    assert key not in opened(lab), "a peer whose session is down is one all the same"


def refuse(*_: object) -> Any:
    raise LinkError("the kernel refused to say")


def test_before_the_routers_own_addresses_are_known_nothing_is_opened(
    lab: Lab, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = f"{CLUSTER[0]}"
    with monkeypatch.context() as patched:
        patched.setattr(Links, "local", refuse)
        with pytest.raises(
            AssertionError, match="the last ruleset stays: nftsync could not read the router's own addresses"
        ):
            router.put(nft(), WEB, EVERYTHING, service("hijack", own))
        assert tables(lab) == set()
    router.synced()
    assert opened(lab) == WEB_KEYS
    assert router.refusals() == {own: "reserved_address"}
    monkeypatch.setattr(Links, "local", refuse)
    router.put(service("more", own, ports=[("TCP", 22)]))
    router.synced(resync=True)
    assert opened(lab) == WEB_KEYS, "what was known before holds"


def test_while_the_kernel_does_not_tell_of_bgp_sessions_those_that_were_known_hold(
    lab: Lab, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Links, "bgp_peers", lambda _: frozenset({ip_address(SERVICE4)}))
    router.put(nft(), WEB, CLUSTER_POOL)
    assert opened(lab) == at(SERVICE6)
    monkeypatch.setattr(Links, "bgp_peers", refuse)
    router.synced(resync=True)
    assert opened(lab) == at(SERVICE6)


# --- bgp_peers ----------------------------------------------------------------------------------------

PEER4, PEER6 = "192.0.2.7", "2001:db8:179::7"
STRANGER4, STRANGER6 = "203.0.113.7", "2001:db8:999::7"
SPEAKERS = [PEER4, PEER6, STRANGER4, STRANGER6, *map(str, CLIENT)]


@pytest.mark.parametrize(
    ("line", "enabled", "admitted"),
    [
        ('bgp_peers = ["192.0.2.0/24", "2001:db8:179::/48"]', True, [PEER4, PEER6]),
        (f'bgp_peers = ["{PEER4}/32"]', True, [PEER4]),
        (f'bgp_peers = ["{PEER6}"]', True, [PEER6]),
        ("bgp_peers = []", True, SPEAKERS),
        ("bgp_peers = []", False, []),
        ('bgp_peers = ["192.0.2.0/24", "2001:db8:179::/48"]', False, []),
    ],
)
def test_bgp_is_open_on_the_public_side_for_the_peers_that_are_named(
    lab: Lab,
    tmp_path: Path,
    line: str,
    enabled: bool,  # noqa: FBT001
    admitted: list[str],
) -> None:
    router = Router(lab, tmp_path, line)
    try:
        router.put(nft(enable_bgp=enabled), WEB, CLUSTER_POOL)
        probes = [Probe("tcp", str(PUBLIC[":" in source]), BGP, source=source) for source in SPEAKERS]
        assert [str(each.source) for each in lab.deliver(probes)] == admitted
        beside: list[tuple[Protocol, int]] = [("udp", BGP), ("sctp", BGP), ("tcp", 178), ("tcp", 180), ("udp", 3784)]
        assert lab.deliver([Probe(kind, str(PUBLIC[0]), port, source=PEER4) for kind, port in beside]) == []
    finally:
        router.close()


@pytest.mark.parametrize(
    "peers", [["0.0.0.0/0", "::/0"], ["192.0.2.0/25", "192.0.2.192/26", "255.255.255.255", "::1.2.3.4/128"]]
)
def test_whatever_bgp_peers_are_a_resync_finds_in_the_kernel_what_was_put_there(
    lab: Lab, tmp_path: Path, peers: list[str]
) -> None:
    router = Router(lab, tmp_path, f"bgp_peers = {json.dumps(peers)}")
    try:
        router.put(nft(), WEB, CLUSTER_POOL)
        result = router.sync(resync=True)
        assert (result.outcome, result.drift) == (Outcome.UNCHANGED, False)
    finally:
        router.close()


@pytest.mark.parametrize("enabled", [True, False])
def test_bgp_and_bfd_come_in_from_the_clusters_side(lab: Lab, tmp_path: Path, enabled: bool) -> None:  # noqa: FBT001
    router = Router(lab, tmp_path, f'bgp_peers = ["{PEER4}/32", "{PEER6}/128"]')
    try:
        router.put(nft(enable_bgp=enabled), WEB, EVERYTHING)
        wanted: list[tuple[Protocol, int]] = [("tcp", BGP), ("udp", 3784), ("udp", 3785), ("udp", 4784)]
        probes = [Probe(kind, str(own), port) for own in (*CLUSTER, *PUBLIC) for kind, port in wanted]
        assert lab.deliver(probes, "node") == probes
    finally:
        router.close()


# --- reload -------------------------------------------------------------------------------------------


def test_a_reload_takes_up_other_allowed_prefixes(lab: Lab, daemon: Daemon) -> None:
    daemon.put(CLUSTER_POOL)
    daemon.start()
    assert opened(lab) == WEB_KEYS
    reload(daemon, 'allowed_prefixes = ["172.30.0.0/16"]')
    assert eventually(lambda: opened(lab) == at(SERVICE4)), daemon.log()
    assert eventually(lambda: f"{SERVICE6} is outside of allowed_prefixes" in daemon.log())
    assert "2001:db8:254::/64" not in lab.router.run(["nft", "list", "set", "inet", "nftsync", "pools6"]).stdout
    reload(daemon, 'allowed_prefixes = ["2001:db8::/32", "203.0.113.0/24"]')
    assert eventually(lambda: opened(lab) == at(SERVICE6)), daemon.log()
    reload(daemon)
    assert eventually(lambda: opened(lab) == WEB_KEYS), daemon.log()


def test_a_reload_takes_up_another_setting_of_pools(lab: Lab, daemon: Daemon) -> None:
    configure(daemon, 'pools = "ignored"')
    daemon.start()
    assert opened(lab) == WEB_KEYS | STRAY_KEYS
    reload(daemon, 'pools = "required"')
    assert eventually(lambda: opened(lab) == set()), daemon.log()
    assert eventually(lambda: daemon.metric("nftsync_pools_guarded") == 1)
    reload(daemon, 'pools = "auto"')
    assert eventually(lambda: opened(lab) == WEB_KEYS | STRAY_KEYS), daemon.log()
    daemon.put(CLUSTER_POOL)
    assert eventually(lambda: opened(lab) == WEB_KEYS), daemon.log()
    reload(daemon, 'pools = "ignored"')
    assert eventually(lambda: opened(lab) == WEB_KEYS | STRAY_KEYS), daemon.log()
    assert eventually(lambda: daemon.metric("nftsync_pools_guarded") == 0)
    reload(daemon, 'pools = "auto"')
    assert eventually(lambda: opened(lab) == WEB_KEYS), daemon.log()


def test_a_reload_that_ignores_pools_no_longer_rejects_them(lab: Lab, daemon: Daemon) -> None:
    daemon.put(CLUSTER_POOL)
    daemon.start()
    daemon.put(pool("services", "nonsense"))
    assert eventually(lambda: daemon.metric("nftsync_rejections", {"reason": "invalid_pools"}) == 1)
    reload(daemon, 'pools = "ignored"')
    assert eventually(lambda: opened(lab) == WEB_KEYS | STRAY_KEYS), daemon.log()
    assert eventually(lambda: daemon.metric("nftsync_rejections", {"reason": "invalid_pools"}) == 0)


def test_a_reload_takes_up_that_only_advertised_pools_count(lab: Lab, daemon: Daemon) -> None:
    daemon.put(CLUSTER_POOL, pool("local", "203.0.113.0/24", "2001:db8:113::/64"))
    daemon.put(metallb("BGPAdvertisement", "all", ipAddressPools=["services"]))
    daemon.start()
    assert opened(lab) == WEB_KEYS | STRAY_KEYS
    reload(daemon, "advertised_pools_only = true")
    assert eventually(lambda: opened(lab) == WEB_KEYS), daemon.log()
    daemon.put(metallb("BGPAdvertisement", "all", ipAddressPools=["local"]))
    assert eventually(lambda: opened(lab) == STRAY_KEYS), daemon.log()
    reload(daemon)
    assert eventually(lambda: opened(lab) == WEB_KEYS | STRAY_KEYS), daemon.log()


def test_a_reload_takes_up_other_bgp_peers(lab: Lab, daemon: Daemon) -> None:
    daemon.put(CLUSTER_POOL)
    daemon.start()
    assert lab.arrives("tcp", str(PUBLIC[0]), BGP, source=STRANGER4)
    reload(daemon, f'bgp_peers = ["{PEER4}/32", "{SERVICE4}/32"]')
    assert eventually(lambda: opened(lab) == at(SERVICE6)), daemon.log()
    probes = [Probe("tcp", str(PUBLIC[0]), BGP, source=source) for source in (PEER4, STRANGER4)]
    assert lab.deliver(probes) == probes[:1]
    reload(daemon)
    assert eventually(lambda: opened(lab) == WEB_KEYS), daemon.log()
    assert lab.deliver(probes) == probes
