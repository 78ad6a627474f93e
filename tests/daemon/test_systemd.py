"""What the daemon tells systemd, in which order, and what it is handed by it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nftsync import config
from nftsync.daemon.process import Systemd
from tests.lab.lab import Lab
from tests.labtools import PATIENCE, PUBLIC_NIC, SERVICE4, Daemon, eventually, needs_root, nft, service


class Manager:
    """Listens as systemd does."""

    def __init__(self, address: str) -> None:
        self.environment = {"NOTIFY_SOCKET": address.replace("\0", "@")}
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(PATIENCE)
        self.told: list[str] = []

    def hear(self) -> str:
        self.told.append(self.socket.recv(4096).decode())
        return self.told[-1]

    def forget(self) -> None:
        """Drop all messages on their way."""
        self.socket.settimeout(0.0)
        with suppress(BlockingIOError):
            while self.hear():
                pass
        self.socket.settimeout(PATIENCE)

    def hear_until(self, beginning: str) -> list[str]:
        """What is heard up to a message that begins so, without the watchdog's."""
        heard = [self.hear()]
        while not heard[-1].startswith(beginning):
            heard.append(self.hear())
        return [each for each in heard if each != "WATCHDOG=1"]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.socket.close()


def test_ready_is_said_once_and_what_it_does_when_that_changes(manager: Manager) -> None:
    systemd = Systemd(manager.environment)
    for status in ("one", "one", "two"):
        systemd.ready(status)
    systemd.stopping()
    assert manager.hear_until("STOPPING=1") == ["READY=1\nSTATUS=one", "STATUS=two", "STOPPING=1"]


def test_a_reload_ends_with_ready(manager: Manager) -> None:
    systemd = Systemd(manager.environment)
    systemd.ready("one")
    systemd.reloading()
    systemd.ready("one")
    systemd.stopping()
    first, reloading, again, _ = manager.hear_until("STOPPING=1")
    assert first == again == "READY=1\nSTATUS=one"
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")


def test_no_status_is_a_message_of_its_own(manager: Manager) -> None:
    Systemd(manager.environment).ready("a\nSTOPPING=1\rb")
    assert manager.hear() == "READY=1\nSTATUS=a STOPPING=1 b"


def test_an_abstract_socket_is_spoken_to(tmp_path: Path) -> None:
    manager = Manager(f"\0nftsync-tests/{tmp_path}")
    Systemd(manager.environment).alive()
    assert manager.hear() == "WATCHDOG=1"
    manager.socket.close()


def test_without_systemd_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    systemd = Systemd({})
    systemd.ready("one")
    systemd.alive()
    assert not caplog.records


def test_a_manager_that_does_not_listen_is_told_again_and_complained_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    with caplog.at_level(logging.WARNING):
        systemd.ready("one")
        systemd.alive()
    assert [record.getMessage() for record in caplog.records] == [
        "nftsync can't reach systemd: No such file or directory; the firewall is not affected"
    ]
    manager = Manager(str(tmp_path / "notify"))
    systemd.ready("one")
    assert manager.hear() == "READY=1\nSTATUS=one"
    manager.socket.close()


@pytest.fixture
def daemon(tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.environment["NOTIFY_SOCKET"])
    with Lab() as lab, Daemon(lab, tmp_path / "daemon") as made:
        made.put(nft(), service("web", SERVICE4))
        yield made


@needs_root
def test_a_daemon_is_ready_when_the_kernel_holds_what_is_asked_for_reloads_and_stops(
    daemon: Daemon, manager: Manager
) -> None:
    daemon.start()
    assert manager.hear_until("READY=1") == ["READY=1\nSTATUS=The kernel holds what the cluster asks for."]
    daemon.signal(signal.SIGHUP)
    reloading, ready = manager.hear_until("READY=1")
    assert reloading.startswith("RELOADING=1\n")
    assert ready.startswith("READY=1\n")
    daemon.configure("no = configuration")
    daemon.signal(signal.SIGHUP)
    assert len(manager.hear_until("READY=1")) == 2  # a bad configuration ends the reload, not the daemon
    assert daemon.stop() == 0
    assert manager.hear_until("STOPPING=1") == ["STOPPING=1"]


@needs_root
def test_the_watchdog_hears_of_every_turn_of_the_loop_and_of_none_when_it_hangs(
    daemon: Daemon, manager: Manager
) -> None:
    daemon.start()
    manager.hear_until("READY=1")
    assert [manager.hear() for _ in range(3)] == ["WATCHDOG=1"] * 3
    daemon.signal(signal.SIGSTOP)
    assert daemon.process
    status = Path(f"/proc/{daemon.process.pid}/status")
    assert eventually(lambda: "\nState:\tT" in status.read_text())
    manager.forget()
    manager.socket.settimeout(3.0)
    with pytest.raises(TimeoutError):
        manager.hear()
    daemon.signal(signal.SIGCONT)
    manager.socket.settimeout(PATIENCE)
    assert manager.hear() == "WATCHDOG=1"


KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: test, user: {token: secret}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
current-context: test
"""


@needs_root
def test_a_network_that_changes_without_end_does_not_keep_the_daemon_from_the_watchdog(
    daemon: Daemon, manager: Manager
) -> None:
    daemon.start()
    manager.hear_until("READY=1")
    stop = threading.Event()

    def churn() -> None:
        while not stop.wait(0.02):
            for mtu in ("1400", "1500"):
                daemon.lab.router.run(["ip", "link", "set", PUBLIC_NIC, "mtu", mtu])

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        looked = daemon.metric("nftsync_sync_duration_seconds_count")
        assert eventually(lambda: daemon.metric("nftsync_sync_duration_seconds_count") > looked + 3)
        manager.forget()
        assert [manager.hear() for _ in range(3)] == ["WATCHDOG=1"] * 3
    finally:
        stop.set()
        churning.join()


@needs_root
def test_a_daemon_with_a_credential_and_no_api_server_is_ready_and_waits(
    daemon: Daemon, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(daemon.folder))
    (daemon.folder / "kubeconfig").write_text(KUBECONFIG)
    with daemon.logfile.open("a") as log:
        daemon.process = daemon.lab.router.popen(daemon.command_line("run"), stdout=log, stderr=log)
    [ready] = manager.hear_until("READY=1")
    assert ready.startswith("READY=1\nSTATUS=Waiting: ")
    assert eventually(lambda: "127.0.0.1:1" in daemon.log())


def test_a_credential_takes_the_place_of_the_default_kubeconfig_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = tmp_path / "nftsync.toml"
    path.write_text('kubeconfig = "/etc/nftsync/kubeconfig"')
    assert config.load(path).kubeconfig == config.KUBECONFIG  # there is none of that name
    (tmp_path / "kubeconfig").write_text("")
    assert config.load(path).kubeconfig == tmp_path / "kubeconfig"
    path.write_text("")
    assert config.load(path).kubeconfig == tmp_path / "kubeconfig"
    path.write_text('kubeconfig = "/root/kubeconfig"')
    assert config.load(path).kubeconfig == Path("/root/kubeconfig")


@needs_root
def test_what_root_writes_into_the_daemons_folders_is_the_daemons(daemon: Daemon) -> None:
    for folder in (daemon.state, daemon.folder / "run"):
        folder.mkdir()
        os.chown(folder, 4711, 4712)
    assert daemon.once().returncode == 0
    assert daemon.command("boot").returncode == 0
    assert daemon.command("flush").returncode == 0
    files = [*daemon.state.iterdir(), *(daemon.folder / "run").iterdir()]
    assert {path.name for path in files} == {"lock", "memory.journal", "since-boot"}
    assert {(path.name, path.stat().st_uid, path.stat().st_gid) for path in files} == {
        (path.name, 4711, 4712) for path in files
    }
