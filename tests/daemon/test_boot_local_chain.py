"""A local chain that can't be loaded at boot takes no pinhole with it.

It holds by interface names, or it is left out, and told.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.lab import PUBLIC
from tests.labtools import SERVICE4, SERVICE6, eventually, needs_root, nft, rules, service
from tests.process import POOL, WEB, ClusterDaemon, cluster_daemon
from tests.reboot import boot, power_off

pytestmark = needs_root

FRIENDS = service("friends", "172.30.254.2", sources=["203.0.113.0/24"])
ALWAYS = "tcp dport 4444 accept"  # the other rule of each local chain
VPN = "link add vpn0 type veth peer name vpn1"
# Names are looked up in files of the test's own, and nowhere else.
IN_FOLDER = 'mount --bind "$0/hosts" /etc/hosts && mount --bind "$0/resolv.conf" /etc/resolv.conf && exec "$@"'


@dataclass(frozen=True)
class Fault:
    """A reason why a local chain can't be loaded at boot.

    rule: one of the chain's two rules, as it is written; {folder} is the daemon's.  shown: as nft lists it.
    loaded: what holds of the chain after the boot: "by name", "last good" or "nothing".
    """

    rule: str
    shown: str
    arrange: Callable[[ClusterDaemon], None]
    harm: Callable[[ClusterDaemon], None]
    mend: Callable[[ClusterDaemon], None]
    loaded: str


def run_by(daemon: ClusterDaemon, version: str, *words: str) -> None:
    """version: "nftsync", or "tests.earlier", which takes chains that reach outside of their file."""
    daemon.program = (*words, sys.executable, "-m", version)


def named_by(daemon: ClusterDaemon, version: str) -> None:
    run_by(daemon, version, "unshare", "--mount", "sh", "-c", IN_FOLDER, str(daemon.folder))


def with_a_name(daemon: ClusterDaemon) -> None:
    (daemon.folder / "resolv.conf").write_text("")
    (daemon.folder / "hosts").write_text("192.0.2.77 gateway.example\n")
    named_by(daemon, "tests.earlier")


def without_the_name(daemon: ClusterDaemon) -> None:
    (daemon.folder / "hosts").write_text("127.0.0.1 localhost\n")
    named_by(daemon, "nftsync")


def with_its_address(daemon: ClusterDaemon) -> None:
    write_chain(daemon, "ip saddr 192.0.2.77 accept")


def with_a_file(daemon: ClusterDaemon) -> None:
    (daemon.folder / "extra.nft").write_text("udp dport 81 accept\n")
    run_by(daemon, "tests.earlier")


def without_the_file(daemon: ClusterDaemon) -> None:
    (daemon.folder / "extra.nft").unlink()
    run_by(daemon, "nftsync")


def with_an_interface(daemon: ClusterDaemon) -> None:
    daemon.lab.router.ip(VPN)


def without_the_interface(daemon: ClusterDaemon) -> None:
    daemon.lab.router.ip("link del vpn0")


def with_both(daemon: ClusterDaemon) -> None:
    with_an_interface(daemon)
    with_a_file(daemon)


def without_both(daemon: ClusterDaemon) -> None:
    without_the_interface(daemon)
    without_the_file(daemon)


def with_the_interface_alone(daemon: ClusterDaemon) -> None:
    with_an_interface(daemon)
    write_chain(daemon, 'iif "vpn0" accept')


def on_a_kernel_that_has_all(daemon: ClusterDaemon) -> None:
    (daemon.folder / "lacks").write_text("")
    daemon.program = (sys.executable, "-m", "tests.oldkernel", str(daemon.folder / "lacks"))


def on_a_kernel_that_lacks_it(daemon: ClusterDaemon) -> None:
    (daemon.folder / "lacks").write_text("fib saddr")


def with_the_file_broken(daemon: ClusterDaemon) -> None:
    daemon.local_chain.write_text("chain local-chain {\n\tjump nowhere\n}\n")


def with_the_file_mended(daemon: ClusterDaemon) -> None:
    write_chain(daemon, "udp dport 81 accept")


def write_chain(daemon: ClusterDaemon, rule: str) -> None:
    daemon.local_chain.write_text(f"chain local-chain {{\n\t{rule}\n\t{ALWAYS}\n}}\n")


def nothing_at_all(_: ClusterDaemon) -> None:
    """It is all there."""


FAULTS = {
    "a host name without DNS": Fault(
        "ip saddr gateway.example accept", "ip saddr 192.0.2.77 accept",
        with_a_name, without_the_name, with_its_address, "nothing",
    ),
    "an included file that is gone": Fault(
        'include "{folder}/extra.nft"', "udp dport 81 accept",
        with_a_file, without_the_file, with_the_file_mended, "nothing",
    ),
    "an interface that is gone": Fault(
        'iif "vpn0" accept', 'iif "vpn0" accept',
        with_an_interface, without_the_interface, with_an_interface, "by name",
    ),
    "an interface and an included file that are gone": Fault(
        'iif "vpn0" accept\n\tinclude "{folder}/extra.nft"', 'iif "vpn0" accept',
        with_both, without_both, with_the_interface_alone, "nothing",
    ),
    "an expression that the kernel lacks": Fault(
        "fib saddr oif 0 drop", "fib saddr oif 0 drop",
        on_a_kernel_that_has_all, on_a_kernel_that_lacks_it, on_a_kernel_that_has_all, "nothing",
    ),
    "a file that is wrong now": Fault(
        "udp dport 81 accept", "udp dport 81 accept",
        nothing_at_all, with_the_file_broken, with_the_file_mended, "last good",
    ),
}  # fmt: skip
EACH = pytest.mark.parametrize("name", FAULTS)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ClusterDaemon]:
    with cluster_daemon(tmp_path, nft(), POOL, WEB, FRIENDS) as made:
        yield made


def harmed(daemon: ClusterDaemon, fault: Fault) -> None:
    """A daemon has run with the local chain.

    Then the router was switched off, and its local chain can't be loaded any more.
    """
    fault.arrange(daemon)
    write_chain(daemon, fault.rule.format(folder=daemon.folder))
    daemon.start()
    assert eventually(lambda: verbatim(daemon, fault)), f"{rules(daemon.lab)}\n{daemon.log()}"
    power_off(daemon)
    fault.harm(daemon)


def verbatim(daemon: ClusterDaemon, fault: Fault) -> bool:
    shown = rules(daemon.lab)
    return fault.shown in shown and ALWAYS in shown


def as_asked_for(daemon: ClusterDaemon, fault: Fault) -> None:
    lab, shown = daemon.lab, rules(daemon.lab)
    assert lab.arrives("udp", SERVICE4, 80)
    assert lab.arrives("udp", SERVICE6, 80)
    assert lab.arrives("tcp", "172.30.254.2", 80, source="203.0.113.9")
    assert not lab.arrives("tcp", "172.30.254.2", 80)
    assert not lab.arrives("tcp", SERVICE4, 82)
    assert lab.arrives("tcp", str(PUBLIC[0]), 22)
    assert lab.arrives("tcp", str(PUBLIC[0]), 4444) is (fault.loaded != "nothing")
    assert ('iifname "vpn0" accept' in shown) is (fault.loaded == "by name")


def told(daemon: ClusterDaemon) -> bool:
    """Whether the status names the local chain's file."""
    refused = [each["object"] for each in daemon.status()["rejections"]]
    return refused == [f"File {daemon.local_chain}"]


@EACH
def test_the_boot_unit_loads_the_last_good_pinholes(daemon: ClusterDaemon, name: str) -> None:
    fault = FAULTS[name]
    harmed(daemon, fault)
    said = boot(daemon)
    as_asked_for(daemon, fault)
    assert fault.loaded == "last good" or "local chain" in said
    boot(daemon)
    as_asked_for(daemon, fault)


@EACH
@pytest.mark.parametrize("unit", [True, False], ids=["after the boot unit", "without the boot unit"])
def test_the_daemon_keeps_the_pinholes_tells_of_the_local_chain_and_takes_it_when_it_can(
    daemon: ClusterDaemon, name: str, unit: bool  # noqa: FBT001
) -> None:  # fmt: skip
    fault = FAULTS[name]
    harmed(daemon, fault)
    daemon.cluster.refuse()
    if unit:
        boot(daemon)
    daemon.remembering()
    as_asked_for(daemon, fault)
    assert eventually(lambda: told(daemon)), daemon.status()["rejections"]
    assert str(daemon.local_chain) in daemon.log()
    fault.mend(daemon)
    assert eventually(lambda: verbatim(daemon, fault)), f"{rules(daemon.lab)}\n{daemon.log()}"
    assert eventually(lambda: daemon.status()["rejections"] == [])


@EACH
def test_what_is_flushed_while_the_local_chain_can_not_be_loaded_comes_back(daemon: ClusterDaemon, name: str) -> None:
    fault = FAULTS[name]
    harmed(daemon, fault)
    daemon.cluster.refuse()
    boot(daemon)
    daemon.remembering()
    daemon.lab.router.nft("flush ruleset")
    assert eventually(lambda: not daemon.lab.arrives("tcp", SERVICE4, 82)), daemon.log()
    as_asked_for(daemon, fault)


@EACH
def test_once_the_cluster_answers_the_pinholes_are_what_it_says(daemon: ClusterDaemon, name: str) -> None:
    fault = FAULTS[name]
    harmed(daemon, fault)
    daemon.put(service("new", "172.30.254.5"))
    boot(daemon)
    as_asked_for(daemon, fault)
    daemon.start()
    as_asked_for(daemon, fault)
    assert daemon.lab.arrives("tcp", "172.30.254.5", 80)
    assert eventually(lambda: told(daemon)), daemon.status()["rejections"]


@pytest.mark.parametrize(("rule", "shown", "arrange", "why"), [
    ('include "{folder}/extra.nft"', "udp dport 81 accept", with_a_file, "included file"),
    ('include "{folder}/ext*.nft"', "udp dport 81 accept", with_a_file, "included file"),
    ("ip saddr gateway.example accept", "ip saddr 192.0.2.77 accept", with_a_name, "host name 'gateway.example'"),
])  # fmt: skip
def test_after_an_upgrade_a_chain_that_reaches_outside_of_its_file_stays_in_force_and_is_told(
    daemon: ClusterDaemon, rule: str, shown: str, arrange: Callable[[ClusterDaemon], None], why: str
) -> None:
    arrange(daemon)
    write_chain(daemon, rule.format(folder=daemon.folder))
    daemon.start()
    assert shown in rules(daemon.lab)
    good = rules(daemon.lab)
    for rebooted in (False, True):
        daemon.stop()
        if rebooted:
            power_off(daemon)
        daemon.program = tuple("nftsync" if word == "tests.earlier" else word for word in daemon.program)
        daemon.start()
        assert rules(daemon.lab) == good
        assert eventually(lambda: told(daemon)), daemon.status()["rejections"]
        assert why in daemon.status()["rejections"][0]["message"]
    write_chain(daemon, shown)
    assert eventually(lambda: daemon.status()["rejections"] == [])
    assert rules(daemon.lab) == good
