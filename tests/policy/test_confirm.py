"""Settings that would cut off who administers the router are taken back unless somebody confirms them."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nftsync.objects.nft import Confirmation, NftSpec, Nics
from nftsync.policy.confirm import Confirming, cut_off
from tests.lab.lab import PUBLIC, Lab, TcpServer
from tests.labtools import PUBLIC_NIC, SERVICE4, Daemon, Raw, eventually, needs_root, nft, service

OPEN = NftSpec(Nics(("eth0",)))
NO_SSH, OTHER_NIC = replace(OPEN, enable_ssh=False), replace(OPEN, nics=Nics(("eth1",)))
HARMLESS = replace(OPEN, enable_bgp=False)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (OPEN, OPEN, ""), (OPEN, HARMLESS, ""), (NO_SSH, OPEN, ""), (NO_SSH, replace(NO_SSH, enable_bgp=False), ""),
        (OPEN, NO_SSH, "enable_ssh was switched off"),
        (OPEN, OTHER_NIC, "public_nic changed from eth0 to eth1"),
        (replace(OPEN, nics=Nics(("eth0", "eth1"))), replace(OPEN, nics=Nics(("eth1", "eth0"))), ""),
        (OPEN, replace(OPEN, nics=Nics(("eth0",), ("eth2",))), "public_nic changed from eth0 to eth0 (inside: eth2)"),
        (OPEN, replace(NO_SSH, enable_dropall=False), ""),
        (replace(NO_SSH, enable_dropall=False), NO_SSH, "enable_dropall was switched on without enable_ssh"),
    ],
)  # fmt: skip
def test_what_a_change_cuts_off(before: NftSpec, after: NftSpec, words: str) -> None:
    assert cut_off(before, after) == words


NOW = 1000.0
NEVER = float("inf")


@pytest.fixture
def confirming() -> Confirming:
    made = Confirming(OPEN).take(OPEN, 60, NOW)
    assert made.in_force == OPEN
    return made


def test_the_first_settings_ever_wait_for_nobody() -> None:
    first = Confirming().take(NO_SSH, 60, NOW)
    assert first.in_force == NO_SSH
    assert (first.state, first.settled) == (Confirmation.NOT_NEEDED, NO_SSH)


def test_a_harmless_change_waits_for_nobody(confirming: Confirming) -> None:
    taken = confirming.take(HARMLESS, 60, NOW)
    assert taken.in_force == HARMLESS
    assert (taken.state, taken.settled, taken.deadline) == (Confirmation.NOT_NEEDED, HARMLESS, NEVER)


def test_a_change_that_cuts_holds_for_a_while_and_is_then_taken_back(confirming: Confirming) -> None:
    waiting = confirming.take(NO_SSH, 60, NOW)
    assert waiting.in_force == NO_SSH
    assert (waiting.state, waiting.settled, waiting.deadline) == (Confirmation.WAITING, OPEN, NOW + 60)
    assert waiting.take(NO_SSH, 60, NOW + 59.9).in_force == NO_SSH
    rolled_back = waiting.take(NO_SSH, 60, NOW + 60)
    assert rolled_back.in_force == OPEN
    assert (rolled_back.state, rolled_back.settled, rolled_back.deadline) == (Confirmation.ROLLED_BACK, OPEN, NEVER)
    assert rolled_back.take(NO_SSH, 60, NOW + 1e6).in_force == OPEN, "it is not tried again by itself"
    assert rolled_back.confirmed() is rolled_back, "nothing waits any more"


def test_a_change_that_is_confirmed_holds_for_good(confirming: Confirming) -> None:
    waiting = confirming.take(NO_SSH, 60, NOW)
    confirmed = waiting.confirmed()
    assert confirmed != waiting
    assert confirmed.take(NO_SSH, 60, NOW + 1e6) == confirmed
    assert confirmed.in_force == NO_SSH
    assert (confirmed.state, confirmed.settled) == (Confirmation.CONFIRMED, NO_SSH)
    assert str(confirmed) == "enable_ssh was switched off; it was confirmed"
    assert confirmed.confirmed() is confirmed, "nothing waits any more"


@pytest.mark.parametrize("later", [0.0, 60.0])
def test_a_change_that_is_taken_back_in_the_resource_waits_no_longer(confirming: Confirming, later: float) -> None:
    waiting = confirming.take(NO_SSH, 60, NOW)
    asked_again = waiting.take(NO_SSH, 60, NOW + later)
    taken_back = asked_again.take(OPEN, 60, NOW + later)
    assert taken_back.in_force == OPEN
    assert (taken_back.state, taken_back.deadline, str(taken_back)) == (
        Confirmation.NOT_NEEDED, NEVER, "the settings cannot lock you out",
    )  # fmt: skip


def test_another_change_meanwhile_waits_anew_and_what_it_is_taken_back_to_is_what_was_settled(
    confirming: Confirming,
) -> None:
    waiting = confirming.take(NO_SSH, 60, NOW)
    both = replace(NO_SSH, nics=Nics(("eth1",)))
    second = waiting.take(both, 60, NOW + 50)
    assert second.in_force == both
    assert second.deadline == NOW + 50 + 60
    rolled_back = second.take(both, 60, NOW + 50 + 60)
    assert rolled_back.in_force == OPEN
    third = rolled_back.take(NO_SSH, 60, NOW + 50 + 60)
    assert third.in_force == NO_SSH, "another one is asked for"
    assert third.state is Confirmation.WAITING


def test_without_a_time_to_confirm_a_change_holds_at_once_and_is_said(confirming: Confirming) -> None:
    told = confirming.take(NO_SSH, 0, NOW)
    assert told.in_force == NO_SSH
    assert (told.state, told.settled, told.cut) == (Confirmation.NOT_NEEDED, NO_SSH, "enable_ssh was switched off")
    assert "This can lock you out. It applies at once" in str(told)
    assert told.take(NO_SSH, 0, NOW).cut, "as long as they are the latest"
    assert not told.take(replace(NO_SSH, enable_bgp=False), 0, NOW).cut


@pytest.mark.parametrize(
    ("settled", "rolled_back", "state", "cut"),
    [
        (None, None, Confirmation.NOT_NEEDED, ""),
        (OPEN, None, Confirmation.NOT_NEEDED, ""),
        (OPEN, NO_SSH, Confirmation.ROLLED_BACK, "enable_ssh was switched off"),
    ],
)
def test_a_new_process_begins_with_what_was_settled_and_what_nobody_confirmed_stays_taken_back(
    settled: NftSpec | None, rolled_back: NftSpec | None, state: Confirmation, cut: str
) -> None:
    remembered = Confirming.remembered(settled, rolled_back)
    assert (remembered.in_force, remembered.settled, remembered.rolled_back) == (settled, settled, rolled_back)
    assert (remembered.state, remembered.cut, remembered.deadline) == (state, cut, NEVER)
    if rolled_back is not None:
        assert remembered.take(rolled_back, 60, NOW) == remembered


# --- through the daemon -------------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Lab() as lab, Daemon(lab, tmp_path, interval=600) as made:
        made.put(nft(), service("web", SERVICE4))
        configure(made, 3)
        yield made.start()


def configure(daemon: Daemon, seconds: float) -> None:
    daemon.configure()
    daemon.config.write_text(f"confirm_seconds = {seconds}\n{daemon.config.read_text()}")


def reload(daemon: Daemon) -> None:
    before = daemon.log().count("configuration reloaded")
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: daemon.log().count("configuration reloaded") > before)


def ssh(daemon: Daemon) -> bool:
    return daemon.lab.arrives("tcp", str(PUBLIC[0]), 22)


def confirmation(daemon: Daemon) -> str:
    status: Raw = json.loads(daemon.command("status", "--json").stdout)
    return str(status["settings"]["confirmation"])


@needs_root
def test_ssh_that_was_closed_is_open_again_after_the_time_and_closed_for_good_if_it_was_confirmed(
    daemon: Daemon,
) -> None:
    with TcpServer(daemon.lab.router, 22):
        assert ssh(daemon)
        daemon.put(nft(enable_ssh=False))
        assert eventually(lambda: not ssh(daemon))
        said = "nftsync takes it back after confirm_seconds unless you run `nftsync confirm`"
        assert eventually(lambda: said in daemon.log()), "the kernel has it a moment before the log"
        assert eventually(lambda: ssh(daemon)), "nobody confirmed it"
        assert confirmation(daemon) == "RolledBack"
        assert "so the former settings hold" in daemon.log()
        assert daemon.lab.arrives("tcp", SERVICE4, 80)
        late = daemon.command("confirm")
        assert late.returncode == 1
        assert late.stderr.startswith(
            "nftsync: no settings wait for a confirmation: enable_ssh was switched off; nobody ran"
        )
        daemon.put(nft())
        assert eventually(lambda: confirmation(daemon) == "NotNeeded")
        configure(daemon, 3600)
        reload(daemon)
        daemon.put(nft(enable_ssh=False))
        assert eventually(lambda: not ssh(daemon))
        assert confirmation(daemon) == "Waiting"
        done = daemon.command("confirm")
        assert (done.returncode, done.stdout) == (0, "enable_ssh was switched off; it was confirmed\n")
        assert confirmation(daemon) == "Confirmed"
        assert not ssh(daemon)
        assert daemon.stop() == 0
        daemon.start()
        assert not ssh(daemon), "after a restart, too"
        assert confirmation(daemon) == "NotNeeded"


@needs_root
def test_a_restart_while_a_change_waits_does_not_make_it_permanent(daemon: Daemon) -> None:
    configure(daemon, 5)
    reload(daemon)
    with TcpServer(daemon.lab.router, 22):
        began = time.monotonic()
        daemon.put(nft(enable_ssh=False))
        assert eventually(lambda: not ssh(daemon))
        assert daemon.stop() == 0
        daemon.start()
        assert not ssh(daemon) or time.monotonic() - began > 5
        assert eventually(lambda: ssh(daemon))
        assert confirmation(daemon) == "RolledBack"


@needs_root
def test_another_public_nic_is_taken_back_too(daemon: Daemon) -> None:
    daemon.put(nft("absent0"))
    assert eventually(
        lambda: "nftsync takes it back after confirm_seconds unless you run `nftsync confirm`" in daemon.log()
    )
    assert eventually(lambda: confirmation(daemon) == "RolledBack")
    status = json.loads(daemon.command("status", "--json").stdout)
    assert status["public_nic"] == {"name": PUBLIC_NIC, "attached": True, "missing": False, "rate_shaping": True}


@needs_root
def test_settings_that_were_in_force_are_in_force_after_a_restart_though_their_resource_is_gone(daemon: Daemon) -> None:
    daemon.remove(nft())
    assert eventually(lambda: daemon.metric("nftsync_rejections", {"reason": "missing_settings"}) == 1)
    assert daemon.stop() == 0
    daemon.lab.router.nft("delete table inet nftsync")
    daemon.start()
    assert daemon.lab.arrives("tcp", SERVICE4, 80)
    assert not daemon.lab.arrives("tcp", SERVICE4, 81)
    assert "the last good settings stay" in daemon.log()
