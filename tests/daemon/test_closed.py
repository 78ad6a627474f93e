"""What was closed stays closed: for both families, TCP and UDP, and whoever began the connection.

It stays so after conntrack is lost, after the pool has gone, and after a restart.
"""

from __future__ import annotations

import json
import select
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from nftsync.files.journal import Journal
from nftsync.kernel.conntrack import _DELETE
from nftsync.kernel.netlink import PROTOCOL, Netlink
from nftsync.plan.closed import OLD
from tests.kernel.test_conntrack import tracked
from tests.lab.lab import CLIENT, Lab
from tests.lab.namespace import Socket
from tests.labtools import SERVICE4, SERVICE6, Daemon, elements, eventually, needs_root, nft, service, write
from tests.policy.test_pools import pool

pytestmark = needs_root

OTHER4, OTHER6 = "172.30.254.33", "2001:db8:254::21"
PORTS = [("TCP", 80), ("UDP", 53)]
WEB = service("web", SERVICE4, SERVICE6, ports=PORTS)
NARROWED = service("web", SERVICE4, SERVICE6, ports=PORTS, sources=["192.0.2.0/24", "2001:db8:999::/48"])
EMPTIED = service("web", ports=PORTS)
OTHER = service("other", OTHER4, OTHER6, ports=PORTS)
WEB_POOL = pool("web", "172.30.254.0/28", "2001:db8:254::/124")
OTHER_POOL = pool("other", "172.30.254.32/28", "2001:db8:254::20/124")
KEYS = {f"{address} . {port}" for address in (SERVICE4, SERVICE6) for port in ("tcp . 80", "udp . 53")}
MOMENT = 0.7  # seconds in which TCP sends a lost packet again


@pytest.fixture
def daemon(lab: Lab, tmp_path: Path) -> Iterator[Daemon]:
    """It runs; two Services have an address in a pool of their own."""
    lab.node.ip(*(f"address add {address} dev lo nodad" for address in (SERVICE6, OTHER6)))  # to have sockets with them
    with Daemon(lab, tmp_path, interval=1) as made:
        made.put(nft(), WEB, OTHER, WEB_POOL, OTHER_POOL)
        yield made.start()


# --- flows ----------------------------------------------------------------------------------------------


@dataclass
class Flow:
    """A connection or a pair of UDP sockets between the client and a Service's address."""

    address: str
    client: Socket
    server: Socket

    def arrives(self, seconds: float) -> bool:
        """Whether the server gets what the client sends now."""
        return _said(self.client, self.server, seconds)

    def server_speaks(self) -> bool:
        """Whether the client gets what the server sends now."""
        return _said(self.server, self.client, MOMENT)


def _said(sender: Socket, receiver: Socket, seconds: float) -> bool:
    text, until, heard = b"%d;" % time.monotonic_ns(), time.monotonic() + seconds, b""
    again = sender.type == socket.SOCK_DGRAM
    sender.sendall(text)
    while time.monotonic() < until:
        if select.select([receiver], [], [], 0.1)[0]:
            heard += receiver.recv(65536)
            if text in heard:
                return True
        elif again:
            sender.sendall(text)
    return False


def arriving(flows: Sequence[Flow], seconds: float = MOMENT) -> list[str]:
    """The addresses of the flows of which the server gets what the client sends now."""
    with ThreadPoolExecutor(len(flows)) as pool_of_threads:
        got = list(pool_of_threads.map(lambda each: each.arrives(seconds), flows))
    return [each.address for each, arrived in zip(flows, got, strict=True) if arrived]


@contextmanager
def flows(lab: Lab, *addresses: str) -> Iterator[list[Flow]]:
    """TCP and UDP flows from the client to each address, which work."""
    with ExitStack() as stack:
        made = [open_flow(lab, stack, address) for address in addresses for open_flow in (_tcp, _udp)]
        assert all(each.arrives(10) and each.server_speaks() for each in made)
        yield made


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _tcp(lab: Lab, stack: ExitStack, address: str) -> Flow:
    listener = stack.enter_context(lab.node.call(socket.create_server, (address, 80), family=_family(address)))
    client = stack.enter_context(lab.tcp_connect(address, 80))
    return Flow(address, client, stack.enter_context(listener.accept()[0]))


def _udp(lab: Lab, stack: ExitStack, address: str) -> Flow:
    server, client = (
        stack.enter_context(host.socket(_family(address), socket.SOCK_DGRAM)) for host in (lab.node, lab.client)
    )
    server.bind((address, 53))
    client.bind((str(CLIENT[":" in address]), 0))
    client.connect((address, 53))
    server.connect(client.getsockname()[:2])
    return Flow(address, client, server)


def lose_conntrack(lab: Lab) -> None:
    """As after a failover: the router knows no connection."""

    def flush() -> None:
        with Netlink(PROTOCOL) as kernel:
            for family in (2, 10):
                list(kernel.messages(_DELETE, bytes([family, 0, 0, 0]), dump=False))

    lab.router.call(flush)
    assert tracked(lab) == set()


def shut(lab: Lab) -> bool:
    """Whether no pinhole of the Service is open to everybody."""
    return not any(key in KEYS for version in (4, 6) for key in elements(lab, f"services{version}"))


def pools(lab: Lab) -> set[str]:
    return {key for version in (4, 6) for key in _elements_of_pools(lab, version)}


def _elements_of_pools(lab: Lab, version: int) -> list[str]:
    listed = lab.router.run(["nft", "list", "set", "inet", "nftsync", f"pools{version}"]).stdout
    return listed.partition("elements = {")[2].partition("}")[0].replace(",", " ").split()


# --- ways to close --------------------------------------------------------------------------------------

Way = Callable[[Daemon], None]


def deleted(daemon: Daemon) -> None:
    daemon.remove(WEB)
    assert eventually(lambda: shut(daemon.lab)), daemon.log()


def narrowed(daemon: Daemon) -> None:
    daemon.put(NARROWED)
    assert eventually(lambda: shut(daemon.lab)), daemon.log()


def without_its_pool(daemon: Daemon) -> None:
    daemon.remove(WEB_POOL)
    assert eventually(lambda: "172.30.254.0/28" not in pools(daemon.lab) and shut(daemon.lab)), daemon.log()


def emptied_just_before_its_pool_goes(daemon: Daemon) -> None:
    daemon.put(EMPTIED)
    without_its_pool(daemon)


def deleted_before_its_pool_shrinks(daemon: Daemon) -> None:
    deleted(daemon)
    daemon.put(pool("web", "172.30.254.8/29", "2001:db8:254::8/125"))
    assert eventually(lambda: "172.30.254.8/29" in pools(daemon.lab)), daemon.log()


def narrowed_before_its_pool_goes(daemon: Daemon) -> None:
    narrowed(daemon)
    without_its_pool(daemon)


def with_a_restart_before_its_pool_goes(daemon: Daemon) -> None:
    deleted(daemon)
    assert daemon.stop() == 0
    daemon.start()
    without_its_pool(daemon)


def narrowed_with_a_restart_before_its_pool_goes(daemon: Daemon) -> None:
    narrowed(daemon)
    assert daemon.stop() == 0
    daemon.start()
    without_its_pool(daemon)


def while_no_daemon_runs(daemon: Daemon) -> None:
    assert daemon.stop() == 0
    daemon.remove(WEB, WEB_POOL)
    daemon.start()
    assert eventually(lambda: "172.30.254.0/28" not in pools(daemon.lab) and shut(daemon.lab)), daemon.log()


def before_a_reboot_and_its_pool_after_it(daemon: Daemon) -> None:
    deleted(daemon)
    reboot(daemon)
    daemon.start()
    without_its_pool(daemon)


def with_its_pool_during_a_reboot(daemon: Daemon) -> None:
    reboot(daemon)
    daemon.remove(WEB, WEB_POOL)
    daemon.start()


def by_the_configuration_during_a_reboot(daemon: Daemon) -> None:
    reboot(daemon)
    prefixes = OTHER_POOL["spec"]["addresses"]
    daemon.configure(f"allowed_prefixes = {json.dumps(prefixes)}\n{daemon.config.read_text()}")
    daemon.start()


def reboot(daemon: Daemon) -> None:
    """No daemon, no rules, no connections, and nothing in /run."""
    assert daemon.stop() == 0
    daemon.lab.router.nft("flush ruleset")
    lose_conntrack(daemon.lab)
    shutil.rmtree(daemon.folder / "run")


WAYS: list[Way] = [
    deleted,
    narrowed,
    without_its_pool,
    emptied_just_before_its_pool_goes,
    deleted_before_its_pool_shrinks,
    narrowed_before_its_pool_goes,
    with_a_restart_before_its_pool_goes,
    narrowed_with_a_restart_before_its_pool_goes,
    while_no_daemon_runs,
    before_a_reboot_and_its_pool_after_it,
    with_its_pool_during_a_reboot,
    by_the_configuration_during_a_reboot,
]


@pytest.mark.parametrize("lost", [False, True], ids=["conntrack is kept", "conntrack is lost"])
@pytest.mark.parametrize("close", WAYS, ids=lambda each: each.__name__)
def test_a_connection_to_a_closed_endpoint_ends_and_no_other(daemon: Daemon, close: Way, lost: bool) -> None:  # noqa: FBT001
    lab = daemon.lab
    with flows(lab, SERVICE4, SERVICE6) as closing, flows(lab, OTHER4, OTHER6) as others:
        if lost:
            lose_conntrack(lab)
            assert all(each.server_speaks() for each in closing), "now the server has begun the connection"
            assert all(each.arrives(10) for each in closing)
        close(daemon)
        assert arriving(closing) == []
        for each in closing:
            each.server_speaks()
        assert arriving(closing) == []
        lose_conntrack(lab)
        for each in closing:
            each.server_speaks()
        assert arriving(closing) == []
        assert all(each.arrives(10) and each.server_speaks() for each in others)


def test_an_endpoint_that_opens_again_lets_its_connections_go_on(daemon: Daemon) -> None:
    lab = daemon.lab
    with flows(lab, SERVICE4, SERVICE6) as closing:
        emptied_just_before_its_pool_goes(daemon)
        assert {key for version in (4, 6) for key in elements(lab, f"closed{version}")} == KEYS
        assert arriving(closing, 0.2) == []
        daemon.put(WEB, WEB_POOL)
        assert eventually(lambda: not shut(lab)), daemon.log()
        assert eventually(lambda: not elements(lab, "closed4") and not elements(lab, "closed6")), daemon.log()
        assert all(each.arrives(20) for each in closing)


def test_sources_that_may_still_come_keep_their_connections(daemon: Daemon) -> None:
    lab = daemon.lab
    with flows(lab, SERVICE4, SERVICE6) as kept:
        before = tracked(lab)
        daemon.put(service("web", SERVICE4, SERVICE6, ports=PORTS, sources=[f"{CLIENT[0]}/32", f"{CLIENT[1]}/128"]))
        assert eventually(lambda: shut(lab)), daemon.log()
        assert all(each.arrives(10) and each.server_speaks() for each in kept)
        assert before <= tracked(lab), "conntrack has not forgotten them"


def test_answers_to_connections_of_the_cluster_from_an_address_of_a_pool_pass(daemon: Daemon) -> None:
    deleted(daemon)
    lab = daemon.lab
    for address in (SERVICE4, SERVICE6):
        outside = str(CLIENT[":" in address])
        with (
            lab.client.call(socket.create_server, (outside, 7000), family=_family(address)) as listener,
            lab.node.call(socket.create_connection, (outside, 7000), 3.0, (address, 0)) as inside,
            listener.accept()[0] as accepted,
        ):
            assert _said(accepted, inside, 10)
            assert _said(inside, accepted, 10)


# --- conntrack ------------------------------------------------------------------------------------------


def to_web(lab: Lab) -> set[tuple[str, ...]]:
    """The tracked connections to or from the Service."""
    ends = {(SERVICE4, "80"), (SERVICE4, "53")} | {(each, port) for each in _LONG for port in ("80", "53")}
    return {each for each in tracked(lab) if (each[1], each[3]) in ends or (each[2], each[4]) in ends}


def udp(connections: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Those of UDP: a TCP server without an answer sends its last packet again and again."""
    return {each for each in connections if each[0] == "udp"}


_LONG = {"2001:0db8:0254:0000:0000:0000:0000:0001"}


@pytest.mark.parametrize("close", [deleted, narrowed, without_its_pool], ids=lambda each: each.__name__)
def test_conntrack_forgets_the_connections_of_a_closed_endpoint(daemon: Daemon, close: Way) -> None:
    lab = daemon.lab
    with flows(lab, SERVICE4, SERVICE6), flows(lab, OTHER4, OTHER6):
        assert len(to_web(lab)) == 4
        others = tracked(lab) - to_web(lab)
        close(daemon)
        assert eventually(lambda: not to_web(lab)), daemon.log()
        assert others <= tracked(lab)


def test_conntrack_forgets_what_a_daemon_that_was_killed_has_left(daemon: Daemon) -> None:
    lab = daemon.lab
    with flows(lab, SERVICE4, SERVICE6) as closing:
        deleted(daemon)
        assert eventually(lambda: not to_web(lab)), daemon.log()
        assert daemon.stop() == 0
        for each in closing:
            each.server_speaks()
        assert not udp(to_web(lab)), "the server begins no connection anew"
        lab.router.nft("flush set inet nftsync closed4; flush set inet nftsync closed6")
        for each in closing:
            each.server_speaks()
        assert udp(to_web(lab))
        daemon.start()
        assert eventually(lambda: not udp(to_web(lab))), daemon.log()


def test_with_a_local_chain_that_accepts_established_packets_clients_are_cut_off(daemon: Daemon) -> None:
    write(daemon.local_chain, "chain local-chain {\n\tct state established,related accept\n}\n")
    lab = daemon.lab
    assert eventually(lambda: "established,related accept" in chain(lab)), daemon.log()
    with flows(lab, SERVICE4, SERVICE6) as closing:
        deleted(daemon)
        assert eventually(lambda: not to_web(lab)), daemon.log()
        assert arriving(closing) == []


def chain(lab: Lab) -> str:
    return lab.router.run(["nft", "list", "chain", "inet", "nftsync", "local-chain"]).stdout.replace(" | ", ",")


def test_without_dropall_connections_go_on_and_stay_in_conntrack(daemon: Daemon) -> None:
    lab = daemon.lab
    daemon.put(nft(enable_dropall=False))
    assert eventually(lambda: "@closed4" not in lab.router.run(["nft", "list", "ruleset"]).stdout), daemon.log()
    with flows(lab, SERVICE4, SERVICE6) as going_on:
        before = to_web(lab)
        without_its_pool(daemon)
        assert all(each.arrives(10) for each in going_on)
        assert to_web(lab) >= before
        daemon.put(nft())
        assert eventually(lambda: not to_web(lab)), daemon.log()
        assert arriving(going_on) == []


@pytest.mark.needs_kernel("flowtable")
def test_a_flowtable_of_another_table_does_not_carry_a_closed_connection_on(daemon: Daemon) -> None:
    lab = daemon.lab
    lab.router.nft(
        "table inet fast { flowtable f { hook ingress priority 0; devices = { public0, cluster0 }; }; "
        "chain forward { type filter hook forward priority 10; ct state established flow add @f; }; }"
    )
    with flows(lab, SERVICE4, SERVICE6) as closing, flows(lab, OTHER4, OTHER6) as others:
        assert all(each.arrives(10) and each.server_speaks() for each in [*closing, *others])
        deleted(daemon)
        assert eventually(lambda: not arriving(closing, 0.2)), daemon.log()
        for each in closing:
            each.server_speaks()
        assert arriving(closing) == []
        assert all(each.arrives(10) for each in others)


@pytest.mark.parametrize("address", [SERVICE4, SERVICE6])
def test_a_translated_connection_from_inside_outlives_narrower_sources_and_a_restart(
    daemon: Daemon, address: str
) -> None:
    lab = daemon.lab
    inside = lab.uplink("inside0")
    inside.peer.ip(f"route add {address} via {inside.here[':' in address]}")
    lab.router.nft(
        "table inet nat { chain postrouting { type nat hook postrouting priority 100; "
        'iifname "inside0" oifname "cluster0" masquerade; }; }'
    )
    with (
        lab.node.call(socket.create_server, (address, 80), family=_family(address)) as listener,
        inside.peer.call(socket.create_connection, (address, 80), 3.0) as client,
        listener.accept()[0] as server,
    ):
        going_on = Flow(address, client, server)
        narrowed(daemon)
        assert going_on.server_speaks()
        assert daemon.stop() == 0
        daemon.start()
        time.sleep(MOMENT)  # until conntrack has been read
        assert going_on.server_speaks()
        assert going_on.arrives(10)


# --- forgetting -----------------------------------------------------------------------------------------


def remember(daemon: Daemon, closed: dict[str, int]) -> None:
    """Write closed endpoints into the memory of a daemon that does not run."""
    journal = Journal(daemon.state)
    memory = journal.load()
    memory.closed.update(closed)
    journal.replace(memory)
    journal.finish()


def test_an_old_endpoint_without_connections_is_forgotten_and_a_younger_one_is_not(daemon: Daemon) -> None:
    lab, now = daemon.lab, int(time.time())
    assert daemon.stop() == 0
    young, ancient = "198.51.100.77 . udp . 53", "2001:db8:77::7 . tcp . 443"
    remember(daemon, {ancient: now - OLD, young: now - OLD // 2})
    daemon.start()
    assert eventually(lambda: young in elements(lab, "closed4") and ancient not in elements(lab, "closed6"))
    assert daemon.stop() == 0
    assert set(Journal(daemon.state).load().closed) == {young}


def test_closed_endpoints_are_no_drift_and_no_difference(daemon: Daemon) -> None:
    emptied_just_before_its_pool_goes(daemon)
    syncs = daemon.metric("nftsync_syncs_total", {"result": "unchanged"})
    assert eventually(lambda: daemon.metric("nftsync_syncs_total", {"result": "unchanged"}) > syncs + 1)
    assert "repaired" not in daemon.log()
    for options in ((), ("--manifests", str(daemon.manifests))):
        done = daemon.command("diff", *options)
        assert done.returncode == 0, done.stdout + done.stderr
    daemon.lab.router.nft(f"delete element inet nftsync closed4 {{ {SERVICE4} . tcp . 80 }}")
    assert eventually(lambda: f"{SERVICE4} . tcp . 80" in elements(daemon.lab, "closed4")), daemon.log()


def test_what_somebody_else_opens_is_closed_for_good_when_it_is_repaired(daemon: Daemon) -> None:
    lab, key = daemon.lab, "172.30.254.40 . udp . 53"
    with ExitStack() as stack:
        lab.router.nft(f"add element inet nftsync services4 {{ {key} }}")
        assert eventually(lambda: key in elements(lab, "closed4")), daemon.log()
        assert key not in elements(lab, "services4")
        stranger = _udp(lab, stack, "172.30.254.40")
        stranger.server_speaks()
        assert not stranger.arrives(0.3)
