"""After a reboot the rules that the kernel had accepted stand before there is a network.

Without them there stands a base that lets in ssh alone.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftsync.files.runtime import BootMark
from nftsync.objects.names import Name
from nftsync.objects.nft import NftSpec, Nics
from nftsync.plan.memory import Memory
from tests.lab.lab import PUBLIC, Lab, Probe, TcpServer
from tests.labtools import (
    PUBLIC_NIC,
    SERVICE4,
    SERVICE6,
    Daemon,
    elements,
    eventually,
    needs_root,
    nft,
    rules,
    service,
    tables,
    written,
)
from tests.reboot import boot, journal_file, power_off, remembered, remembers, switched_off
from tests.support import ROOT

pytestmark = needs_root

SLOW = service("slow", "172.30.254.3", ports=[("UDP", 53)], limit="1/week burst 3 packets")
FRIENDS = service("friends", "172.30.254.2", sources=["203.0.113.0/24"])
LOCAL = "chain local-chain {\n\ttcp dport 4444 accept\n}\n"
IN_FORCE = "the remembered rules are in force: 4 pinholes"
BASE = "this router has no remembered rules: nftsync loaded the base, which lets in nothing but ssh"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Lab() as lab, Daemon(lab, tmp_path, interval=600) as made:
        made.put(nft(), service("web", SERVICE4, SERVICE6), SLOW, FRIENDS)
        yield made


def ssh(daemon: Daemon) -> bool:
    with TcpServer(daemon.lab.router, 22):
        return daemon.lab.arrives("tcp", str(PUBLIC[0]), 22)


def as_asked_for(daemon: Daemon) -> None:
    lab = daemon.lab
    assert lab.arrives("tcp", SERVICE4, 80)
    assert lab.arrives("tcp", SERVICE6, 80)
    assert not lab.arrives("tcp", SERVICE4, 81)
    assert lab.arrives("tcp", "172.30.254.2", 80, source="203.0.113.9")
    assert not lab.arrives("tcp", "172.30.254.2", 80)


def test_what_stood_before_a_reboot_stands_after_it_without_a_cluster_and_the_daemon_changes_nothing(
    daemon: Daemon,
) -> None:
    daemon.start()
    as_asked_for(daemon)
    good = rules(daemon.lab)
    power_off(daemon)
    assert daemon.lab.arrives("tcp", SERVICE4, 81), "without rules everything passes"
    assert IN_FORCE in boot(daemon)
    assert rules(daemon.lab) == written(good)
    as_asked_for(daemon)
    assert len(daemon.lab.deliver([Probe("udp", "172.30.254.3", 53)] * 9)) == 3, "limits are in force, too"
    handles = rules(daemon.lab, "--handle")
    assert IN_FORCE in boot(daemon)
    assert rules(daemon.lab, "--handle") == handles, "once is enough"
    daemon.start()
    assert rules(daemon.lab) == good
    as_asked_for(daemon)


def test_a_nic_that_is_not_there_at_boot_does_not_keep_the_filter_out(daemon: Daemon) -> None:
    daemon.start()
    power_off(daemon)
    daemon.lab.unplug()
    assert IN_FORCE in boot(daemon)  # limits, too, where the kernel takes a chain for a NIC to come
    assert "inet nftsync" in tables(daemon.lab)
    daemon.lab.plug(PUBLIC_NIC)
    as_asked_for(daemon)
    daemon.start()
    assert tables(daemon.lab) == {"inet nftsync", "netdev nftsync"}
    as_asked_for(daemon)


def test_limits_that_can_not_be_loaded_do_not_keep_the_filter_out(daemon: Daemon) -> None:
    daemon.start()
    power_off(daemon)
    unknown = daemon.folder / "unknown"
    unknown.write_text("hook ingress")
    daemon.program = (sys.executable, "-m", "tests.oldkernel", str(unknown))
    said = boot(daemon)
    assert "no rate limit is in force until the daemon runs: " in said
    assert IN_FORCE in said
    assert tables(daemon.lab) == {"inet nftsync"}
    as_asked_for(daemon)
    unknown.write_text("")
    boot(daemon)
    assert len(daemon.lab.deliver([Probe("udp", "172.30.254.3", 53)] * 9)) == 3, "the next one makes up for it"


@pytest.mark.parametrize("before", ["never ran", "its memory is gone", "its memory is damaged"])
def test_where_nothing_is_remembered_nothing_comes_in_but_ssh(daemon: Daemon, before: str) -> None:
    if before != "never ran":
        daemon.put(nft(enable_bgp=False))
        daemon.start()
        power_off(daemon)
    if before == "its memory is gone":
        journal_file(daemon).unlink()
    elif before == "its memory is damaged":
        journal_file(daemon).write_text("damaged")
    daemon.local_chain.write_text(LOCAL)
    assert BASE in boot(daemon)
    assert not daemon.lab.arrives("tcp", SERVICE4, 80)
    assert not daemon.lab.arrives("tcp", str(PUBLIC[0]), 179)
    assert ssh(daemon)
    assert daemon.lab.arrives("tcp", str(PUBLIC[0]), 4444), "your own rules hold"
    daemon.start()
    as_asked_for(daemon)


@pytest.mark.parametrize("enable_ssh", [True, False])
def test_ssh_is_as_open_after_a_reboot_as_it_was(daemon: Daemon, enable_ssh: bool) -> None:  # noqa: FBT001
    daemon.put(nft(enable_ssh=enable_ssh))
    daemon.start()
    power_off(daemon)
    boot(daemon)
    assert ssh(daemon) is enable_ssh


def test_of_a_torn_file_stands_what_came_before_and_of_a_damaged_one_the_base(daemon: Daemon) -> None:
    daemon.start()
    good = rules(daemon.lab)
    power_off(daemon)
    whole = journal_file(daemon).read_text()
    head, *records = whole.splitlines(keepends=True)
    torn = [whole[:length] for length in range(len(head), len(whole), 150)] + [whole[:-1], whole + "\0" * 4096]
    for text in torn:
        journal_file(daemon).write_text(text)
        known = remembered(daemon)
        said = boot(daemon)
        assert (BASE if known.facts.spec is None else "the remembered rules are in force") in said, text
        assert daemon.lab.arrives("tcp", SERVICE4, 80) is (Name("default", "web") in known.services), text
        assert not daemon.lab.arrives("tcp", SERVICE4, 81)
        daemon.lab.router.nft("flush ruleset")
    damaged = [
        whole.replace("uid-slow", "uid-slwo"),
        head + "".join(records[1:]),
        whole.replace("memory 1 ", "memory 2 "),
    ]
    for text in [*damaged, "", "\0", "flush ruleset\n", head.replace("1", "2")]:
        journal_file(daemon).write_text(text)
        said = boot(daemon)
        assert BASE in said, text
        assert said.count("\n") == 2, "and what is wrong with it"
        assert "memory.journal can't be used and is ignored: " in said
        assert not daemon.lab.arrives("tcp", SERVICE4, 80)
        daemon.lab.router.nft("flush ruleset")
    journal_file(daemon).write_bytes(b"\xff\xfe")
    boot(daemon)
    daemon.lab.router.nft("flush ruleset")
    journal_file(daemon).unlink()
    journal_file(daemon).mkdir()
    assert "can't be used" in boot(daemon)
    daemon.lab.router.nft("flush ruleset")
    journal_file(daemon).rmdir()
    journal_file(daemon).write_text(whole)
    boot(daemon)
    assert rules(daemon.lab) == written(good)


def test_it_imports_nothing_that_it_does_not_need() -> None:
    code = (
        "import sys; from nftsync.cli.main import main; main(['boot', '--config', '/dev/null']); "
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "nftables" in loaded
    assert loaded & {"kubernetes", "prometheus_client", "pyroute2", "tenacity", "urllib3"} == set()


# --- early, as the boot unit runs it ------------------------------------------------------------------


def all_down(daemon: Daemon) -> None:
    """As before the network is set up: only lo is up."""
    for nic in (PUBLIC_NIC, "cluster0"):
        daemon.lab.router.ip(f"link set {nic} down")


@pytest.mark.parametrize("nic", [None, PUBLIC_NIC, "vpn0"], ids=["both", "one", "another"])
def test_without_memory_a_network_that_is_up_is_not_shut(daemon: Daemon, nic: str | None) -> None:
    if nic is not None:
        all_down(daemon)
        daemon.lab.router.ip("link add vpn0 type veth peer name vpn1", f"link set {nic} up")
    said = boot(daemon, "--early")
    assert "nothing is applied yet, this router does not filter: the first lists are not complete" in said
    assert tables(daemon.lab) == set()
    assert BootMark(daemon.folder / "run").facts is None, "the daemon's run is the first one"


def test_without_memory_the_base_is_loaded_while_only_lo_is_up(daemon: Daemon) -> None:
    all_down(daemon)
    daemon.lab.router.ip("link add vpn0 type veth peer name vpn1")
    assert BASE in boot(daemon, "--early")
    assert tables(daemon.lab) == {"inet nftsync"}
    mark = BootMark(daemon.folder / "run").facts
    assert mark is not None
    assert mark.base, "what is remembered, and could not be read, comes after it"


@pytest.mark.parametrize("network", ["down", "up"])
def test_what_is_remembered_is_loaded_early_and_late(daemon: Daemon, network: str) -> None:
    daemon.start()
    power_off(daemon)
    if network == "down":
        all_down(daemon)
    assert IN_FORCE in boot(daemon, "--early")
    assert f"{SERVICE4} . tcp . 80" in elements(daemon.lab, "services4")
    mark = BootMark(daemon.folder / "run").facts
    assert mark is not None
    assert not mark.base


def test_a_base_that_was_loaded_early_goes_on_while_the_network_comes(daemon: Daemon) -> None:
    all_down(daemon)
    boot(daemon, "--early")
    before = rules(daemon.lab)
    daemon.lab.router.ip(f"link set {PUBLIC_NIC} up", "link set cluster0 up")
    boot(daemon, "--early")
    assert rules(daemon.lab) == before


def test_where_the_table_can_not_be_loaded_the_exit_status_says_so(daemon: Daemon) -> None:
    daemon.start()
    power_off(daemon)
    unknown = daemon.folder / "unknown"
    unknown.write_text("table")
    daemon.program = (sys.executable, "-m", "tests.oldkernel", str(unknown))
    done = daemon.command("boot", "--early")
    assert done.returncode == 1
    assert "cannot load the rules: " in done.stderr


# --- a boot command that is not the first run since the boot ------------------------------------------------


def test_what_a_killed_daemon_had_opened_and_could_not_write_down_stays_when_the_boot_command_runs_again(
    daemon: Daemon,
) -> None:
    """As it does before each start of the daemon. No list has denied it yet."""
    daemon.start()
    daemon.signal(signal.SIGKILL)
    assert daemon.process
    daemon.process.wait()
    unknown = "172.30.254.9 . tcp . 80"
    daemon.lab.router.nft(f"add element inet nftsync services4 {{ {unknown} }}")
    boot(daemon)
    assert unknown in elements(daemon.lab, "services4")
    daemon.start()
    assert unknown not in elements(daemon.lab, "services4"), "the complete lists deny it"
    as_asked_for(daemon)


def test_at_the_first_run_since_the_boot_memory_is_right_whatever_stands(daemon: Daemon) -> None:
    daemon.start()
    saved = daemon.lab.router.run(["nft", "list", "ruleset"]).stdout
    power_off(daemon)
    daemon.lab.router.nft(saved.replace("172.30.254.2 . tcp . 80", "172.30.254.9 . tcp . 80"))
    assert daemon.lab.arrives("tcp", "172.30.254.9", 80, source="203.0.113.9")
    boot(daemon)
    assert not daemon.lab.arrives("tcp", "172.30.254.9", 80, source="203.0.113.9")
    as_asked_for(daemon)


# --- writing it down ----------------------------------------------------------------------------------


def test_a_change_is_written_down_before_anybody_can_see_it_and_only_it(daemon: Daemon) -> None:
    daemon.start()
    assert eventually(journal_file(daemon).exists)
    size = journal_file(daemon).stat().st_size
    for number in range(1, 6):
        daemon.put(service("churn", "172.30.254.50", ports=[("TCP", number)]))
        assert eventually(lambda: daemon.lab.arrives("tcp", "172.30.254.50", number))  # noqa: B023  # asked at once
        [port] = remembered(daemon).services[Name("default", "churn")].ports
        assert port.number == number
    assert journal_file(daemon).stat().st_size - size < 5 * 500
    assert journal_file(daemon).stat().st_mode & 0o777 == 0o600
    daemon.remove(service("churn"))
    assert eventually(lambda: not daemon.lab.arrives("tcp", "172.30.254.50", 5))
    assert Name("default", "churn") not in remembered(daemon).services


def test_what_was_open_when_the_power_failed_is_open_after_the_boot(daemon: Daemon) -> None:
    daemon.start()
    daemon.put(service("late", "172.30.254.60"))
    assert eventually(lambda: daemon.lab.arrives("tcp", "172.30.254.60", 80))
    daemon.remove(service("web"))
    assert eventually(lambda: not daemon.lab.arrives("tcp", SERVICE4, 80))
    daemon.signal(signal.SIGKILL)
    assert daemon.process
    daemon.process.wait()
    switched_off(daemon)
    boot(daemon)
    assert daemon.lab.arrives("tcp", "172.30.254.60", 80)
    assert not daemon.lab.arrives("tcp", SERVICE4, 80)


def test_a_disk_that_takes_nothing_is_told_and_rules_still_apply(daemon: Daemon) -> None:
    daemon.state.parent.mkdir(exist_ok=True)
    daemon.state.write_text("a file stands where the folder should")
    daemon.start()
    assert eventually(lambda: daemon.log().count("after a restart or a reboot, nftsync would use older pinholes") == 1)
    assert eventually(lambda: daemon.metric("nftsync_state_kept") == 0)
    as_asked_for(daemon)
    daemon.state.unlink()
    daemon.put(service("more", "172.30.254.60"))
    assert eventually(lambda: Name("default", "more") in remembered(daemon).services)
    daemon.put(service("another", "172.30.254.61"))
    assert eventually(lambda: daemon.metric("nftsync_state_kept") == 1)


def test_whenever_it_is_killed_the_file_is_whole(daemon: Daemon) -> None:
    daemon.start()
    assert remembers(daemon)
    assert daemon.stop() == 0
    for number in range(8):
        daemon.start()
        daemon.put(service("churn", "172.30.254.50", ports=[("TCP", 1000 + number)]))
        time.sleep(number * 0.25)
        daemon.signal(signal.SIGKILL)
        assert daemon.process
        daemon.process.wait()
        assert remembered(daemon).services.keys() >= {Name("default", name) for name in ("web", "slow", "friends")}
        assert remembered(daemon).facts.spec == NftSpec(Nics((PUBLIC_NIC,)))


def test_ten_thousand_services_are_in_force_after_a_reboot(daemon: Daemon) -> None:
    crowd = {"apiVersion": "v1", "kind": "List", "items": [
        service(f"crowd{number}", f"10.9.{number // 250}.{number % 250 + 1}") for number in range(10_000)
    ]}  # fmt: skip
    (daemon.manifests / "crowd.yaml").write_text(json.dumps(crowd))
    daemon.start()
    power_off(daemon)
    assert "the remembered rules are in force: 10004 pinholes" in boot(daemon)
    assert len(elements(daemon.lab, "services4")) == 10_002


def test_a_daemon_that_has_applied_nothing_yet_overwrites_no_memory(daemon: Daemon) -> None:
    """Say, that of a newer version, which this one can't read."""
    daemon.state.mkdir()
    newer = "# nftsync memory 2 by version 9.0.0\n"
    journal_file(daemon).write_text(newer)
    daemon.remove(nft())
    daemon.start(ready=False)
    assert eventually(lambda: daemon.metric("nftsync_syncs_total", {"result": "waiting"}) >= 1)
    assert daemon.stop() == 0
    assert journal_file(daemon).read_text() == newer
    daemon.put(nft())
    daemon.start()
    assert daemon.stop() == 0
    assert remembered(daemon) != Memory()
