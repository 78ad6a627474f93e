"""The daemon's memory is right at the first run since boot, after any ruleset loaded before it.

Nobody notices the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.lab import PUBLIC, Probe
from tests.labtools import SERVICE4, SERVICE6, elements, eventually, needs_root, nft, rules, service, tables
from tests.process import CLOSED, OPEN, POOL, WEB, ClusterDaemon, cluster_daemon, flow, transactions
from tests.reboot import boot, early_boot, power_off

pytestmark = needs_root

GONE = service("gone", "172.30.254.2", "2001:db8:254::2", ports=[("UDP", 80)])
FAST = service("fast", "172.30.254.3", ports=[("UDP", 53)])
SLOW = service("fast", "172.30.254.3", ports=[("UDP", 53)], limit="1/week burst 3 packets")
WIDE = service("narrow", "172.30.254.4")
NARROW = service("narrow", "172.30.254.4", sources=["203.0.113.0/24"])
FAR = service("far", "172.30.253.1")
FAR_POOL = {**POOL, "metadata": {**POOL["metadata"], "name": "far"}, "spec": {"addresses": ["172.30.253.0/24"]}}
LOCAL = "chain local-chain {\n\ttcp dport 4444 accept\n}\n"
ROUTER = str(PUBLIC[0])


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ClusterDaemon]:
    """It runs, and everything is open that will be closed before the reboot."""
    with cluster_daemon(tmp_path, nft(), POOL, FAR_POOL, WEB, GONE, FAST, WIDE, FAR) as made:
        made.lab.route("172.30.253.0/24")
        made.local_chain.write_text(LOCAL)
        made.start()
        assert eventually(lambda: "4444" in rules(made.lab))
        yield made


# --- what is changed after somebody has saved the ruleset: how, and whether it is so ------------------------


def close_a_service(daemon: ClusterDaemon) -> None:
    daemon.remove(GONE)


def a_service_is_closed(daemon: ClusterDaemon) -> bool:
    return not daemon.lab.arrives("udp", "172.30.254.2", 80) and not daemon.lab.arrives("udp", "2001:db8:254::2", 80)


def remove_a_local_rule(daemon: ClusterDaemon) -> None:
    daemon.local_chain.write_text("chain local-chain {\n}\n")


def a_local_rule_is_gone(daemon: ClusterDaemon) -> bool:
    return not daemon.lab.arrives("tcp", ROUTER, 4444)


def remove_the_local_chain(daemon: ClusterDaemon) -> None:
    daemon.local_chain.unlink()


def switch_ssh_off(daemon: ClusterDaemon) -> None:
    daemon.put(nft(enable_ssh=False))


def ssh_is_off(daemon: ClusterDaemon) -> bool:
    return not daemon.lab.arrives("tcp", ROUTER, 22)


def remove_a_pool(daemon: ClusterDaemon) -> None:
    daemon.remove(FAR_POOL)


def a_pool_is_closed(daemon: ClusterDaemon) -> bool:
    return not daemon.lab.arrives("tcp", "172.30.253.1", 80)


def add_a_limit(daemon: ClusterDaemon) -> None:
    daemon.put(SLOW)


def a_limit_holds(daemon: ClusterDaemon) -> bool:
    return len(daemon.lab.deliver([Probe("udp", "172.30.254.3", 53)] * 9)) <= 3


def add_a_source_range(daemon: ClusterDaemon) -> None:
    daemon.put(NARROW)


def a_source_range_holds(daemon: ClusterDaemon) -> bool:
    return not daemon.lab.arrives("tcp", "172.30.254.4", 80) and daemon.lab.arrives(
        "tcp", "172.30.254.4", 80, source="203.0.113.9"
    )


Changed = tuple[Callable[[ClusterDaemon], None], Callable[[ClusterDaemon], bool]]
CHANGES: dict[str, Changed] = {
    "a Service": (close_a_service, a_service_is_closed),
    "a local rule": (remove_a_local_rule, a_local_rule_is_gone),
    "the local chain": (remove_the_local_chain, a_local_rule_is_gone),
    "ssh": (switch_ssh_off, ssh_is_off),
    "a pool": (remove_a_pool, a_pool_is_closed),
    "an unlimited Service": (add_a_limit, a_limit_holds),
    "a Service that was open to all": (add_a_source_range, a_source_range_holds),
}
SETTINGS = ("a local rule", "the local chain", "ssh")


# --- the reboot ---------------------------------------------------------------------------------------


def with_the_boot_unit(daemon: ClusterDaemon) -> None:
    boot(daemon)


def boot_unit_and_daemon(daemon: ClusterDaemon) -> None:
    boot(daemon)
    daemon.remembering()


def daemon_alone(daemon: ClusterDaemon) -> None:
    daemon.remembering()


def no_pools(daemon: ClusterDaemon) -> None:
    """The pools hang, and all else is there."""
    daemon.cluster.listen()
    daemon.cluster.hang("IPAddressPool")
    daemon.waiting()


BOOTS = {each.__name__: each for each in (with_the_boot_unit, boot_unit_and_daemon, daemon_alone)}


def saved_ruleset(daemon: ClusterDaemon) -> str:
    """What `nft list ruleset > /etc/nftables.conf` keeps."""
    return daemon.lab.router.run(["nft", "list", "ruleset"]).stdout


def reboot_into(daemon: ClusterDaemon, saved: str) -> None:
    """What the distribution's nftables.service has done when ours begins."""
    power_off(daemon)
    daemon.cluster.refuse()
    daemon.lab.router.nft(f"flush ruleset\n{saved}")


@pytest.mark.parametrize(("change", "start"), [
    *((change, "with_the_boot_unit") for change in CHANGES),
    ("a Service", "boot_unit_and_daemon"),
    *((change, "daemon_alone") for change in CHANGES),
])  # fmt: skip
def test_what_was_closed_is_closed_after_a_reboot_into_an_older_ruleset(
    daemon: ClusterDaemon, change: str, start: str
) -> None:
    do, holds = CHANGES[change]
    saved = saved_ruleset(daemon)
    do(daemon)
    assert eventually(lambda: holds(daemon)), daemon.log()
    good = rules(daemon.lab)
    reboot_into(daemon, saved)
    with transactions(daemon.lab) as committed, flow(daemon.lab, *OPEN, *CLOSED, passing=len(OPEN)) as flowing:
        BOOTS[start](daemon)
        assert eventually(lambda: holds(daemon)), f"{rules(daemon.lab)}\n{daemon.log()}"
        found = flowing.end()
        deleted = [line for each in committed.so_far() for line in each if line.startswith("delete table inet nftsync")]
    assert found.arrived() == set(OPEN)
    assert not set(found.lost()) & set(OPEN), "in place: what is open stays open"
    assert deleted == []
    assert start == "with_the_boot_unit" or eventually(lambda: rules(daemon.lab) == good)


@pytest.mark.parametrize("start", ["with_the_boot_unit", "daemon_alone"])
def test_a_base_that_stands_at_boot_gives_way_to_the_pinholes(tmp_path: Path, start: str) -> None:
    """As when the boot unit failed, and its fallback has shut the router until somebody runs nftsync."""
    with cluster_daemon(tmp_path, nft(), POOL, WEB) as daemon:
        early_boot(daemon)
        base = saved_ruleset(daemon)
        daemon.start()
        reboot_into(daemon, base)
        assert not daemon.lab.arrives("udp", SERVICE4, 80), "the base stands"
        BOOTS[start](daemon)
        assert eventually(lambda: daemon.lab.arrives("udp", SERVICE4, 80)), f"{rules(daemon.lab)}\n{daemon.log()}"
        assert daemon.lab.arrives("udp", SERVICE6, 80)
        assert not daemon.lab.arrives("udp", SERVICE4, 81)


@pytest.mark.parametrize("network", [True, False], ids=["with a network", "before the network"])
def test_only_before_there_is_a_network_the_boot_unit_shuts_a_router_that_remembers_nothing(
    tmp_path: Path,
    network: bool,  # noqa: FBT001
) -> None:
    with cluster_daemon(tmp_path, nft(), POOL, WEB) as daemon:
        if network:
            boot(daemon, "--early")
        else:
            early_boot(daemon)
        assert daemon.lab.arrives("udp", SERVICE4, 81) is network
        assert daemon.lab.arrives("tcp", ROUTER, 22)
        assert ("inet nftsync" in tables(daemon.lab)) is not network


def test_the_boot_unit_needs_no_network_for_what_the_daemon_remembers(daemon: ClusterDaemon) -> None:
    power_off(daemon)
    early_boot(daemon)
    assert daemon.lab.arrives("udp", SERVICE4, 80)
    assert daemon.lab.arrives("udp", SERVICE6, 80)
    assert daemon.lab.arrives("tcp", ROUTER, 4444)
    assert not daemon.lab.arrives("udp", SERVICE4, 81)


def test_what_was_closed_is_closed_by_the_daemon_though_the_pools_hang(daemon: ClusterDaemon) -> None:
    saved = saved_ruleset(daemon)
    daemon.remove(GONE)
    assert eventually(lambda: a_service_is_closed(daemon)), daemon.log()
    reboot_into(daemon, saved)
    no_pools(daemon)
    assert eventually(lambda: a_service_is_closed(daemon)), daemon.log()
    assert daemon.lab.arrives("udp", SERVICE4, 80)


def test_a_process_that_is_not_the_first_since_boot_closes_nothing_that_it_does_not_remember(
    daemon: ClusterDaemon,
) -> None:
    """What stands and is not remembered was opened by the process before, which could not write it down any more."""
    daemon.kill()
    daemon.cluster.refuse()
    unknown = "172.30.254.9 . udp . 80"
    daemon.lab.router.nft(f"add element inet nftsync services4 {{ {unknown} }}")
    daemon.remembering()
    boot_said = daemon.command("boot")
    assert boot_said.returncode == 0
    assert unknown in elements(daemon.lab, "services4")
    daemon.cluster.listen()
    assert eventually(lambda: unknown not in elements(daemon.lab, "services4"), 30), daemon.log()
    assert daemon.lab.arrives("udp", SERVICE6, 80)


def test_what_was_opened_since_somebody_saved_the_ruleset_is_open_after_the_boot_unit(daemon: ClusterDaemon) -> None:
    saved = saved_ruleset(daemon)
    daemon.put(service("new", "172.30.254.7"))
    assert eventually(lambda: daemon.lab.arrives("tcp", "172.30.254.7", 80)), daemon.log()
    reboot_into(daemon, saved)
    boot(daemon)
    assert daemon.lab.arrives("tcp", "172.30.254.7", 80)
    assert tables(daemon.lab) == {"inet nftsync", "netdev nftsync"}


def test_the_second_boot_command_since_boot_leaves_alone_what_the_first_one_has_made(daemon: ClusterDaemon) -> None:
    saved = saved_ruleset(daemon)
    daemon.remove(GONE)
    assert eventually(lambda: a_service_is_closed(daemon)), daemon.log()
    reboot_into(daemon, saved)
    boot(daemon)
    assert a_service_is_closed(daemon)
    before = rules(daemon.lab, "--handle")
    boot(daemon)
    assert rules(daemon.lab, "--handle") == before
    assert daemon.lab.arrives("udp", SERVICE6, 80)


def test_an_old_ruleset_that_nftables_loads_again_opens_nothing_that_was_closed(daemon: ClusterDaemon) -> None:
    """`systemctl restart nftables` while no daemon runs: the boot unit runs again, long after the boot."""
    saved = saved_ruleset(daemon)
    daemon.remove(GONE)
    assert eventually(lambda: a_service_is_closed(daemon)), daemon.log()
    assert daemon.stop() == 0
    daemon.lab.router.nft(f"flush ruleset\n{saved}")
    assert not a_service_is_closed(daemon)
    boot(daemon, "--early")
    assert a_service_is_closed(daemon)
    assert daemon.lab.arrives("udp", SERVICE6, 80)
