"""What may go wrong around a boot beside the memory itself: the configuration, the NIC, a full disk, a kill."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nftsync.files.journal import Journal
from nftsync.objects.names import Name
from nftsync.ruleset.text import Complaint
from tests.lab.lab import Lab, Probe
from tests.labtools import (
    PUBLIC_NIC,
    SERVICE4,
    SERVICE6,
    Daemon,
    eventually,
    needs_root,
    nft,
    rules,
    service,
    tables,
    written,
)
from tests.reboot import PATIENCE, boot, journal_file, power_off, remembered
from tests.router import LabRouter, config_in

pytestmark = needs_root

WEB = service("web", SERVICE4, SERVICE6)
SLOW = service("slow", "172.30.254.3", ports=[("UDP", 53)], limit="1/week burst 3 packets")
SSH = "tcp dport 22 accept"
IN_FORCE = "the remembered rules are in force: 3 pinholes"
LOCAL = "chain local-chain {\n\ttcp dport 4444 accept\n}\n"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Lab() as lab, Daemon(lab, tmp_path, interval=600) as made:
        made.put(nft(), WEB, SLOW)
        yield made


def as_limited(daemon: Daemon) -> bool:
    return len(daemon.lab.deliver([Probe("udp", "172.30.254.3", 53)] * 9)) == 3


# --- the configuration --------------------------------------------------------------------------------


def boot_at_home(daemon: Daemon) -> str:
    """Boot where the default folders are this daemon's, as on a router whose configuration names none. What it said."""
    mounts = [
        "mount -t tmpfs tmpfs /var/lib",
        "mkdir /var/lib/nftsync",
        f"mount --bind {daemon.state} /var/lib/nftsync",
    ]
    command = shlex.join(daemon.command_line("boot"))
    script = " && ".join([*mounts, "mount -t tmpfs tmpfs /run", f"exec {command}"])
    done = daemon.lab.router.run(["unshare", "--mount", "sh", "-c", script], check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr


def test_a_configuration_with_an_error_does_not_leave_the_router_open_after_a_reboot(daemon: Daemon) -> None:
    daemon.state.mkdir()
    daemon.configure("resync_intervall = 5\n")
    said = boot_at_home(daemon)
    assert "resync_intervall = 5: there is no such key" in said
    assert "inet nftsync" in tables(daemon.lab)
    assert not daemon.lab.arrives("tcp", SERVICE4, 81)


def test_in_the_place_of_a_configuration_with_an_error_the_one_counts_that_was_in_force(daemon: Daemon) -> None:
    daemon.local_chain.write_text(LOCAL)
    daemon.configure(f'bgp_peers = ["192.0.2.77"]\n{daemon.config.read_text()}')
    daemon.start()
    good = rules(daemon.lab)
    assert "ip saddr 192.0.2.77 tcp dport 179 accept" in good
    power_off(daemon)
    daemon.configure("resync_intervall = 5\n")
    said = boot_at_home(daemon)
    assert "resync_intervall = 5: there is no such key" in said
    assert "nftsync uses the remembered one" in said
    assert IN_FORCE in said
    assert rules(daemon.lab) == written(good), "its BGP peers, and the local chain where it says that it is"


def test_a_remembered_configuration_that_this_version_does_not_understand_is_told(daemon: Daemon) -> None:
    daemon.start()
    power_off(daemon)
    whole = journal_file(daemon).read_text()
    journal = Journal(daemon.state)
    memory = journal.load()
    memory.facts = type(memory.facts)(spec=memory.facts.spec, pools_listed=True, config="of_another_version = 5\n")
    journal.replace(memory)
    journal.finish()
    assert journal_file(daemon).read_text() != whole
    daemon.configure("resync_intervall = 5\n")
    said = boot_at_home(daemon)
    assert "the remembered configuration" in said
    assert "of_another_version = 5" in said
    assert IN_FORCE in said
    assert daemon.lab.arrives("tcp", SERVICE4, 80)
    assert not daemon.lab.arrives("tcp", SERVICE4, 81)


# --- what stands, and what is in the place of files ---------------------------------------------------------


@pytest.mark.parametrize("name", ["memory.journal", "ruleset.nft", "state.json"])
def test_a_pipe_in_the_place_of_a_file_does_not_keep_the_router_from_booting(daemon: Daemon, name: str) -> None:
    daemon.state.mkdir()
    os.mkfifo(daemon.state / name)
    assert "it is not a file" in boot(daemon)
    assert not daemon.lab.arrives("tcp", SERVICE4, 81)


@pytest.mark.parametrize("change", [
    "delete table inet nftsync",
    "delete table inet nftsync; add table inet nftsync; add chain inet nftsync input",
    "add table inet nftsync { flags dormant; }",
])  # fmt: skip
def test_what_does_not_filter_is_not_taken_for_a_ruleset(daemon: Daemon, change: str) -> None:
    daemon.start()
    good = rules(daemon.lab)
    assert daemon.stop() == 0
    daemon.lab.router.nft(change)
    assert daemon.lab.arrives("tcp", SERVICE4, 81)
    assert IN_FORCE in boot(daemon)
    assert rules(daemon.lab) == written(good)
    assert not daemon.lab.arrives("tcp", SERVICE4, 81)


# --- the local chain ----------------------------------------------------------------------------------


def test_an_interface_of_the_local_chain_that_comes_later_keeps_nothing_out(daemon: Daemon) -> None:
    daemon.lab.router.ip("link add vpn0 type veth peer name vpn1")
    daemon.local_chain.write_text('chain local-chain {\n\tiif "vpn0" accept\n\ttcp dport 4444 accept\n}\n')
    daemon.start()
    good = rules(daemon.lab)
    assert 'iif "vpn0" accept' in good, daemon.log()
    power_off(daemon)
    daemon.lab.router.ip("link del vpn0")
    said = boot(daemon)
    assert re.search(r"Interface does not exist: .*; the last good chain is in force, its interfaces by name", said)
    assert IN_FORCE in said
    assert 'iifname "vpn0" accept' in rules(daemon.lab)
    assert daemon.lab.arrives("tcp", SERVICE4, 80)
    assert not daemon.lab.arrives("tcp", SERVICE4, 81)
    assert daemon.lab.arrives("tcp", SERVICE4, 4444), "the local chain holds"
    daemon.start()
    assert daemon.lab.arrives("tcp", SERVICE4, 80), "what the daemon wants can be loaded, too"
    daemon.lab.router.ip("link add vpn0 type veth peer name vpn1")
    assert daemon.stop() == 0
    daemon.start()
    assert rules(daemon.lab) == good


def test_without_memory_a_local_chain_that_can_not_be_loaded_does_not_keep_the_base_out(daemon: Daemon) -> None:
    daemon.local_chain.write_text('chain local-chain {\n\tiif "vpn0" accept\n\ttcp dport 4444 accept\n}\n')
    said = boot(daemon)
    assert "invalid_local_chain: " in said
    assert "Interface does not exist" in said
    assert "this router has no remembered rules: nftsync loaded the base" in said
    assert not daemon.lab.arrives("tcp", SERVICE4, 80)
    assert SSH in rules(daemon.lab)


def break_the_memory(daemon: Daemon) -> None:
    """Let the last good chain be one that no kernel takes."""
    journal = Journal(daemon.state)
    memory = journal.load()
    assert "tcp dport 4444 accept" in memory.facts.local_chain
    memory.facts = type(memory.facts)(
        spec=memory.facts.spec, pools_listed=True, local_chain="\tjump nowhere\n", local=memory.facts.local
    )
    journal.replace(memory)
    journal.finish()


@pytest.mark.parametrize("last_good", ["still good", "refused"])
def test_a_local_chain_that_can_not_be_loaded_at_boot_is_named_and_keeps_the_pinholes(
    daemon: Daemon, last_good: str
) -> None:
    daemon.local_chain.write_text(LOCAL)
    daemon.start()
    power_off(daemon)
    daemon.local_chain.write_text("chain local-chain {\n\tjump nowhere\n}\n")
    if last_good == "refused":
        break_the_memory(daemon)
    said = boot(daemon)
    assert f"File {daemon.local_chain}: invalid_local_chain: " in said
    assert ("the last good chain stays" if last_good == "still good" else "no local chain is in force") in said
    assert IN_FORCE in said
    assert daemon.lab.arrives("tcp", SERVICE4, 80)
    assert not daemon.lab.arrives("tcp", SERVICE4, 81)
    assert daemon.lab.arrives("tcp", SERVICE4, 4444) is (last_good == "still good")


# --- the NIC, and settings ----------------------------------------------------------------------------


def test_limits_act_once_the_nic_is_there_before_anything_is_heard_of_the_cluster(daemon: Daemon) -> None:
    """On a kernel that takes no chain for a NIC to come, the next `nftsync boot` makes up for it."""
    daemon.start()
    power_off(daemon)
    daemon.lab.unplug()
    unknown = daemon.folder / "unknown"
    unknown.write_text("hook ingress")
    daemon.program = (sys.executable, "-m", "tests.oldkernel", str(unknown))
    boot(daemon)
    assert tables(daemon.lab) == {"inet nftsync"}
    daemon.lab.plug(PUBLIC_NIC)
    assert not as_limited(daemon)
    unknown.write_text("")
    assert IN_FORCE in boot(daemon)
    assert as_limited(daemon)


def test_a_nic_that_was_away_when_the_daemon_stopped_has_its_limits_after_a_reboot(daemon: Daemon) -> None:
    daemon.start()
    daemon.lab.unplug()
    assert eventually(lambda: daemon.metric("nftsync_nic_attached") == 0)
    power_off(daemon)
    daemon.lab.plug(PUBLIC_NIC)
    boot(daemon)
    assert as_limited(daemon)


def test_settings_that_wait_for_a_confirmation_do_not_outlive_a_reboot(daemon: Daemon) -> None:
    daemon.configure(f"confirm_seconds = 600\n{daemon.config.read_text()}")
    daemon.start()
    daemon.put(nft(enable_ssh=False))
    assert eventually(lambda: SSH not in rules(daemon.lab)), daemon.log()
    power_off(daemon)
    boot(daemon)
    assert SSH in rules(daemon.lab), "who administers it gets in again"


# --- one process after another ------------------------------------------------------------------------


def test_a_daemon_that_finds_what_it_wants_runs_no_transaction(daemon: Daemon) -> None:
    daemon.start()
    daemon.put(service("more", "172.30.254.60"), nft(enable_bgp=False))
    assert eventually(lambda: "tcp dport 179 accept" not in rules(daemon.lab))
    assert daemon.stop() == 0
    before = rules(daemon.lab, "--handle")
    daemon.start()
    assert rules(daemon.lab, "--handle") == before
    assert daemon.metric("nftsync_syncs_total", {"result": "applied"}) == 0, daemon.log()


def test_a_rule_that_somebody_changed_while_no_daemon_ran_is_put_right_by_the_next_one(daemon: Daemon) -> None:
    daemon.start()
    good = rules(daemon.lab)
    assert daemon.stop() == 0
    daemon.lab.router.nft("insert rule inet nftsync forward accept")
    daemon.start()
    assert rules(daemon.lab) == good


def test_while_a_daemon_runs_the_ruleset_is_in_its_care(daemon: Daemon) -> None:
    daemon.start()
    assert "the daemon runs already and keeps the ruleset up to date" in boot(daemon)


def test_a_reload_with_another_state_folder_keeps_the_memory_there(daemon: Daemon) -> None:
    daemon.start()
    paths = f'local_chain = "{daemon.local_chain}"\nstate = "{daemon.state}-moved"\nruntime = "{daemon.folder}/run"\n'
    daemon.configure(f"[paths]\n{paths}")
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: "configuration reloaded" in daemon.log()), daemon.log()
    daemon.put(service("more", "172.30.254.60"))
    assert eventually(lambda: daemon.lab.arrives("tcp", "172.30.254.60", 80))
    power_off(daemon)
    assert "the remembered rules are in force: 4 pinholes" in boot(daemon)


class Killed(BaseException):
    """The process is gone at once: nothing of it runs any more."""


def killed(router: LabRouter, *, before: bool) -> None:
    """Let the next transaction be the process's last one; before: it does not even get to the kernel."""
    apply = router.kernel.apply

    def last(text: str) -> None:
        if not before:
            apply(text)
        raise Killed

    router.kernel.apply = last  # type: ignore[method-assign]
    with pytest.raises(Killed):
        router.sync()


def close(router: LabRouter) -> None:
    router.delete(WEB)


def narrow(router: LabRouter) -> None:
    router.put(service("web", SERVICE4, SERVICE6, sources=["203.0.113.0/24"]))


@pytest.mark.parametrize("before", [True, False], ids=["before the kernel has it", "after the kernel has it"])
@pytest.mark.parametrize("change", [close, narrow])
def test_what_the_cluster_has_closed_is_closed_after_a_reboot_whenever_the_process_was_killed(
    tmp_path: Path, change: Callable[[LabRouter], None], before: bool  # noqa: FBT001
) -> None:  # fmt: skip
    config = config_in(tmp_path)
    with Lab() as lab, LabRouter(lab, config, nft(), WEB, SLOW) as router:
        router.synced()
        change(router)
        killed(router, before=before)
        lab.router.nft("flush ruleset")
        (tmp_path / "since-boot").unlink()
        with LabRouter(lab, config, listed=False) as after:
            after.sync()
            assert not lab.arrives("tcp", SERVICE4, 80)
            assert not lab.arrives("tcp", SERVICE6, 80)
            assert lab.arrives("udp", "172.30.254.3", 53), "what was open is open"


@pytest.mark.parametrize("before", [True, False], ids=["before the kernel has it", "after the kernel has it"])
def test_after_a_kill_in_a_change_what_the_cluster_has_asked_for_counts(tmp_path: Path, before: bool) -> None:  # noqa: FBT001
    new = service("new", "172.30.254.60")
    config = config_in(tmp_path)
    with Lab() as lab, LabRouter(lab, config, nft(), WEB, SLOW) as router:
        router.synced()
        router.delete(WEB)
        router.put(new)
        killed(router, before=before)
        open_then = lab.arrives("tcp", SERVICE4, 80), lab.arrives("tcp", "172.30.254.60", 80)
        assert open_then == (before, not before)
        with LabRouter(lab, config, nft(), SLOW, listed=False) as after:
            after.sync()
            assert not lab.arrives("tcp", SERVICE4, 80), "the cluster has deleted it"
            assert lab.arrives("tcp", "172.30.254.60", 80), "the cluster has asked for it"
            after.lists(new)
            after.synced()
            assert not lab.arrives("tcp", SERVICE4, 80)
            assert lab.arrives("tcp", "172.30.254.60", 80)


def test_what_the_kernel_refused_is_remembered_as_it_was(tmp_path: Path) -> None:
    with Lab() as lab, LabRouter(lab, config_in(tmp_path), nft(), WEB) as router:
        router.synced()
        router.put(service("web", SERVICE4, SERVICE6, sources=["203.0.113.0/24"]), SLOW)
        apply = router.kernel.apply

        def refuse(text: str) -> None:
            apply(text.replace("sources4", "no-such-set"))

        router.kernel.apply = refuse  # type: ignore[method-assign]
        router.kernel.apply_lines = lambda lines: [Complaint(len(lines), "nobody knows why")]  # type: ignore[method-assign]
        router.sync()
        known = Journal(tmp_path).load().services
        assert known[Name("default", "web")].sources is None
        assert Name("default", "slow") not in known


# --- the disk -----------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system that is nearly full; yields the file that fills it."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True)
    try:
        yield folder / "filler"
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            return


def test_a_full_disk_keeps_what_it_has_says_so_and_rules_apply(daemon: Daemon) -> None:
    large = service(
        "more", "172.30.254.60", ports=[("TCP", port) for port in range(1000, 2000)]
    )  # more than the last page holds
    with small_disk(daemon.state) as filler:
        daemon.start()
        assert eventually(journal_file(daemon).exists)
        before = remembered(daemon)
        fill(filler)
        daemon.put(large)
        assert eventually(lambda: daemon.metric("nftsync_state_kept") == 0), daemon.log()
        assert daemon.lab.arrives("tcp", "172.30.254.60", 1000)
        assert not daemon.lab.arrives("tcp", "172.30.254.60", 80)
        assert remembered(daemon) == before
        assert sorted(os.listdir(daemon.state)) == ["filler", "memory.journal"]
        assert (
            daemon.log().count("No space left on device; after a restart or a reboot, nftsync would use older pinholes")
            == 1
        )
        filler.unlink()
        assert eventually(lambda: "172.30.254.60" in journal_file(daemon).read_text()), daemon.log()
        daemon.put(service("another", "172.30.254.61"))
        assert eventually(lambda: daemon.metric("nftsync_state_kept") == 1), daemon.log()
        power_off(daemon)
        boot(daemon)
        assert daemon.lab.arrives("tcp", "172.30.254.60", 1000)


def test_a_disk_that_can_only_be_read_keeps_no_router_from_booting(daemon: Daemon) -> None:
    daemon.start()
    good = rules(daemon.lab)
    power_off(daemon)
    folder = str(daemon.state)
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        assert IN_FORCE in boot(daemon)
        assert rules(daemon.lab) == written(good)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_the_metric_does_not_speak_of_a_full_disk_before_anything_was_written(daemon: Daemon) -> None:
    daemon.remove(nft())
    daemon.start(ready=False)
    assert eventually(lambda: daemon.metric("nftsync_syncs_total", {"result": "waiting"}) >= 1)
    assert daemon.metric("nftsync_state_kept") == 1


def test_a_memory_that_can_not_be_used_shows_in_the_metric_until_it_is_replaced(daemon: Daemon) -> None:
    daemon.state.mkdir()
    journal_file(daemon).write_text("torn")
    daemon.remove(nft())
    daemon.start(ready=False)
    assert eventually(lambda: daemon.metric("nftsync_state_kept") == 0)
    daemon.put(nft())
    assert eventually(lambda: daemon.metric("nftsync_syncs_total", {"result": "applied"}) >= 1)
    daemon.put(service("more", "172.30.254.60"))
    assert eventually(lambda: daemon.metric("nftsync_state_kept") == 1), daemon.log()
