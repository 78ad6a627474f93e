"""What may go wrong around a boot beside the file itself: the configuration, the NIC, a full disk, a kill, a slow disk."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from nftsync.files import lastgood
from nftsync.files.lastgood import LastGood
from nftsync.files.sealed import read_sealed, replace_sealed
from nftsync.files.store import FORMAT
from nftsync.ruleset.tables import Settings
from tests.lab.lab import Lab, Probe
from tests.labtools import (
    PATIENCE,
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
from tests.reboot import boot, last_good_file, power_off
from tests.support import ROOT

pytestmark = needs_root

SLOW = service("slow", "172.30.254.3", ports=[("UDP", 53)], limit="1/week burst 3 packets")
SSH = "tcp dport 22 accept"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Lab() as lab, Daemon(lab, tmp_path, interval=600) as made:
        made.put(nft(), service("web", SERVICE4, SERVICE6), SLOW)
        yield made


def as_limited(daemon: Daemon) -> bool:
    return len(daemon.lab.deliver([Probe("udp", "172.30.254.3", 53)] * 9)) == 3


def test_a_configuration_with_an_error_does_not_leave_the_router_open_after_a_reboot(daemon: Daemon) -> None:
    daemon.configure("resync_intervall = 5\n")
    said = boot(daemon)
    assert "resync_intervall = 5: there is no such key" in said
    assert "inet nftsync" in tables(daemon.lab)
    assert not daemon.lab.arrives("tcp", SERVICE4, 81)


@pytest.mark.parametrize("name", ["ruleset.nft", "state.json"])
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
    assert "the last good ruleset stands" in boot(daemon)
    assert rules(daemon.lab) == written(good)
    assert not daemon.lab.arrives("tcp", SERVICE4, 81)


@pytest.mark.parametrize("kept", [True, False], ids=["the last good ruleset", "the base"])
def test_an_interface_of_the_local_chain_that_comes_later_keeps_nothing_out(daemon: Daemon, kept: bool) -> None:  # noqa: FBT001
    daemon.lab.router.ip("link add vpn0 type veth peer name vpn1")
    daemon.local_chain.write_text('chain local-chain {\n\tiif "vpn0" accept\n\ttcp dport 4444 accept\n}\n')
    daemon.start()
    good = rules(daemon.lab)
    assert 'iif "vpn0" accept' in good, daemon.log()
    power_off(daemon)
    daemon.lab.router.ip("link del vpn0")
    if not kept:
        last_good_file(daemon).unlink()
    assert "your local chain is loaded with its interfaces by their names: Interface does not exist" in boot(daemon)
    assert daemon.lab.arrives("tcp", SERVICE4, 80) is kept
    assert not daemon.lab.arrives("tcp", SERVICE4, 81)
    assert daemon.lab.arrives("tcp", SERVICE4, 4444), "the local chain holds"
    daemon.start()
    assert daemon.lab.arrives("tcp", SERVICE4, 80), "what the daemon wants can be loaded, too"
    daemon.lab.router.ip("link add vpn0 type veth peer name vpn1")
    assert daemon.stop() == 0
    daemon.start()
    assert rules(daemon.lab) == good


def test_a_local_chain_that_can_not_be_loaded_at_boot_is_named_and_the_door_is_shut(daemon: Daemon) -> None:
    daemon.local_chain.write_text("chain local-chain {\n\ttcp dport 4444 accept\n}\n")
    daemon.start()
    power_off(daemon)
    for path, form in ((last_good_file(daemon), lastgood.FORMAT), (daemon.state / "state.json", FORMAT)):
        replace_sealed(path, read_sealed(path, form).replace("tcp dport 4444 accept", "jump nowhere"), form)
    said = boot(daemon)
    assert "can't be used: " in said
    assert "the base is loaded without your local chain: " in said
    assert not daemon.lab.arrives("tcp", SERVICE4, 80)
    assert SSH in rules(daemon.lab)


def test_limits_act_once_the_nic_is_there_before_anything_is_heard_of_the_cluster(daemon: Daemon) -> None:
    """nftsync.service runs `nftsync boot` once more, for kernels that take no chain for a NIC to come."""
    daemon.start()
    power_off(daemon)
    daemon.lab.unplug()
    boot(daemon)
    if "netdev nftsync" in tables(daemon.lab):
        daemon.lab.router.nft("delete table netdev nftsync")
    daemon.lab.plug(PUBLIC_NIC)
    assert not as_limited(daemon)
    assert "a ruleset stands already: it stays" in boot(daemon)
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
    assert "nftsync runs: the ruleset is in its care" in boot(daemon)


def test_a_reload_with_another_state_folder_writes_the_ruleset_there(daemon: Daemon) -> None:
    daemon.start()
    paths = f'local_chain = "{daemon.local_chain}"\nstate = "{daemon.state}-moved"\nruntime = "{daemon.folder}/run"\n'
    daemon.configure(f"[paths]\n{paths}")
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: "configuration reloaded" in daemon.log()), daemon.log()
    power_off(daemon)
    assert "the last good ruleset stands" in boot(daemon)


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


def test_a_full_disk_keeps_the_old_files_says_so_and_rules_apply(daemon: Daemon) -> None:
    with small_disk(daemon.state) as filler:
        daemon.start()
        assert eventually((daemon.state / "services").exists), "the last one of them"
        old = last_good_file(daemon).read_bytes()
        fill(filler)
        daemon.put(service("more", "172.30.254.60"))
        assert eventually(lambda: daemon.metric("nftsync_state_kept") == 0), daemon.log()
        assert daemon.lab.arrives("tcp", "172.30.254.60", 80)
        assert not daemon.lab.arrives("tcp", "172.30.254.60", 81)
        assert last_good_file(daemon).read_bytes() == old
        assert sorted(os.listdir(daemon.state)) == ["filler", "ruleset.nft", "services", "state.json"]
        filler.unlink()
        assert eventually(lambda: daemon.metric("nftsync_state_kept") == 1), daemon.log()
        power_off(daemon)
        boot(daemon)
        assert daemon.lab.arrives("tcp", "172.30.254.60", 80)


def test_the_metric_does_not_speak_of_a_full_disk_before_anything_was_written(daemon: Daemon) -> None:
    daemon.remove(nft())
    daemon.start(ready=False)
    assert eventually(lambda: daemon.metric("nftsync_syncs_total", {"result": "waiting"}) >= 1)
    assert daemon.metric("nftsync_state_kept") == 1


def test_a_state_that_can_not_be_used_shows_in_the_metric_until_it_is_replaced(daemon: Daemon) -> None:
    daemon.state.mkdir()
    (daemon.state / "state.json").write_text("torn")
    daemon.remove(nft())
    daemon.start(ready=False)
    assert eventually(lambda: daemon.metric("nftsync_state_kept") == 0)
    daemon.put(nft())
    assert eventually(lambda: daemon.metric("nftsync_state_kept") == 1), daemon.log()


WRITER = """
import sys
from pathlib import Path
from nftsync.files.sealed import replace_sealed
for number in range(10**9):
    replace_sealed(Path(sys.argv[1]), str(number % 10) * 1_000_000, 1)
    if number == 0:
        print(flush=True)
"""


def test_a_writer_that_is_killed_at_any_instant_leaves_the_old_file_or_the_new_one_and_no_heap_of_others(tmp_path: Path) -> None:
    chosen, path = random.Random(7), tmp_path / "file"
    replace_sealed(path, "x", 1)
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout
            writer.stdout.readline()
            time.sleep(chosen.uniform(0, 0.02))
            writer.kill()
        text = read_sealed(path, 1)
        assert len(text) == 1_000_000
        assert len(set(text)) == 1
    assert len(os.listdir(tmp_path)) <= 2


def test_a_disk_that_hangs_keeps_nobody_waiting_and_is_written_to_once_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on, calls = Event(), list[Path]()

    def hang(path: Path, text: str, form: int) -> None:
        calls.append(path)
        assert going_on.wait(PATIENCE)
        replace_sealed(path, text, form)

    monkeypatch.setattr(lastgood, "replace_sealed", hang)
    kept = LastGood(lambda: 0.0)
    kept.changed()
    kept.write(tmp_path, (), Settings("eth0"))
    kept.changed()
    assert kept.due == float("inf"), "while the disk hangs nothing more is begun"
    assert not (tmp_path / "ruleset.nft").exists()
    going_on.set()
    kept.finish(lambda: kept.write(tmp_path, (), Settings("eth1")))
    assert [path.name for path in calls] == ["ruleset.nft", "services"] * 2
    assert 'iifname != "eth1"' in lastgood.load(tmp_path)[0]
