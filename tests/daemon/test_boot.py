"""After a reboot the last good ruleset stands before there is a network, and without one a base that lets in ssh at most."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftsync.files import lastgood
from nftsync.files.lastgood import LastGood
from nftsync.files.sealed import read_sealed, seal
from nftsync.objects.names import Name
from nftsync.objects.ratelimit import parse_ratelimit
from nftsync.objects.service import Opened
from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.elements import ruleset
from nftsync.ruleset.tables import Settings
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
from tests.reboot import boot, last_good_file, power_off
from tests.support import ROOT

pytestmark = needs_root

SLOW = service("slow", "172.30.254.3", ports=[("UDP", 53)], limit="1/week burst 3 packets")
FRIENDS = service("friends", "172.30.254.2", sources=["203.0.113.0/24"])
LOCAL = "chain local-chain {\n\ttcp dport 4444 accept\n}\n"


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


def test_what_stood_before_a_reboot_stands_after_it_without_a_cluster_and_the_daemon_changes_nothing(daemon: Daemon) -> None:
    daemon.start()
    as_asked_for(daemon)
    good = rules(daemon.lab)
    power_off(daemon)
    assert daemon.lab.arrives("tcp", SERVICE4, 81), "without rules everything passes"
    assert "the last good ruleset stands" in boot(daemon)
    assert rules(daemon.lab) == written(good)
    as_asked_for(daemon)
    assert len(daemon.lab.deliver([Probe("udp", "172.30.254.3", 53)] * 9)) == 3, "limits are in force, too"
    shutil.move(daemon.manifests, daemon.folder / "away")  # no cluster: nothing more happens
    assert "a ruleset stands already: it stays" in boot(daemon)
    shutil.move(daemon.folder / "away", daemon.manifests)
    daemon.start()
    assert rules(daemon.lab) == good
    as_asked_for(daemon)


def test_a_nic_that_is_not_there_at_boot_does_not_keep_the_filter_out(daemon: Daemon) -> None:
    daemon.start()
    power_off(daemon)
    daemon.lab.unplug()
    assert "the last good ruleset stands" in boot(daemon)  # limits, too, where the kernel takes a chain for a NIC to come
    assert "inet nftsync" in tables(daemon.lab)
    daemon.lab.plug(PUBLIC_NIC)
    as_asked_for(daemon)
    daemon.start()
    assert tables(daemon.lab) == {"inet nftsync", "netdev nftsync"}
    as_asked_for(daemon)


def test_limits_that_can_not_be_loaded_do_not_keep_the_filter_out(daemon: Daemon) -> None:
    daemon.start()
    power_off(daemon)
    whole = read_sealed(last_good_file(daemon), lastgood.FORMAT)
    last_good_file(daemon).write_text(seal(whole.replace("hook ingress device", "hook egress_of device"), lastgood.FORMAT))
    assert "no rate limit is in force until nftsync runs: " in boot(daemon)
    assert tables(daemon.lab) == {"inet nftsync"}
    as_asked_for(daemon)


@pytest.mark.parametrize("enable_ssh", [None, True, False])
def test_without_a_last_good_ruleset_nothing_comes_in_but_ssh_if_it_was_open(daemon: Daemon, enable_ssh: bool | None) -> None:
    if enable_ssh is not None:
        daemon.put(nft(enable_ssh=enable_ssh))
        daemon.local_chain.write_text(LOCAL)
        daemon.start()
        power_off(daemon)
        last_good_file(daemon).unlink()
    assert "there is no last good ruleset yet: the base is loaded" in boot(daemon)
    assert not daemon.lab.arrives("tcp", SERVICE4, 80)
    assert not daemon.lab.arrives("tcp", str(PUBLIC[0]), 179)
    assert ssh(daemon) is (enable_ssh is not False)
    assert daemon.lab.arrives("tcp", str(PUBLIC[0]), 4444) is (enable_ssh is not None), "your own rules hold"


def test_whatever_the_file_holds_all_of_it_stands_or_the_base(daemon: Daemon) -> None:
    daemon.start()
    good = rules(daemon.lab)
    power_off(daemon)
    whole = last_good_file(daemon).read_text()
    broken = [whole[:length] for length in range(0, len(whole), 100)]
    broken += [whole.replace("services4", "services5"), whole.replace("nftsync 1 ", "nftsync 2 "), whole + "\n"]
    broken += ["\0", "flush ruleset\n", seal("table inet nftsync {", lastgood.FORMAT), seal("", 1).replace(" sha256", "")]
    for text in broken:
        last_good_file(daemon).write_text(text)
        said = boot(daemon)
        assert "the base is loaded" in said, text
        assert said.count("\n") == 1
        assert not daemon.lab.arrives("tcp", SERVICE4, 80)
        daemon.lab.router.nft("flush ruleset")
    last_good_file(daemon).write_bytes(b"\xff\xfe")
    boot(daemon)
    daemon.lab.router.nft("flush ruleset")
    last_good_file(daemon).unlink()
    last_good_file(daemon).mkdir()
    assert "can't be used" in boot(daemon)
    daemon.lab.router.nft("flush ruleset")
    last_good_file(daemon).rmdir()
    last_good_file(daemon).write_text(whole)
    boot(daemon)
    assert rules(daemon.lab) == written(good)


def test_it_imports_nothing_that_it_does_not_need() -> None:
    code = "import sys; from nftsync.cli.main import main; main(['boot', '--config', '/dev/null']); print(*sorted(sys.modules))"
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "nftables" in loaded
    assert loaded & {"kubernetes", "prometheus_client", "pyroute2", "tenacity", "yaml", "urllib3"} == set()


# --- writing it down ----------------------------------------------------------------------------------


def test_it_is_written_at_most_every_few_seconds_and_at_the_end(daemon: Daemon) -> None:
    daemon.start()
    assert eventually(lambda: last_good_file(daemon).exists())
    written = {last_good_file(daemon).stat().st_mtime_ns}
    began = time.monotonic()
    numbers = itertools.count(1)

    def changes() -> bool:
        daemon.put(service("churn", "172.30.254.50", ports=[("TCP", next(numbers))]))
        written.add(last_good_file(daemon).stat().st_mtime_ns)
        return len(written) == 4

    assert eventually(changes)
    assert time.monotonic() - began > lastgood.INTERVAL, "three times"
    daemon.put(service("last", "172.30.254.60"))
    assert eventually(lambda: daemon.lab.arrives("tcp", "172.30.254.60", 80))
    assert daemon.stop() == 0
    assert "172.30.254.60 . tcp . 80" in read_sealed(last_good_file(daemon), lastgood.FORMAT)
    assert last_good_file(daemon).stat().st_mode & 0o777 == 0o600


def test_a_disk_that_takes_nothing_is_told_and_rules_still_apply(daemon: Daemon) -> None:
    daemon.state.parent.mkdir(exist_ok=True)
    daemon.state.write_text("a file stands where the folder should")
    daemon.start()
    assert eventually(lambda: daemon.log().count("after a reboot an older ruleset is loaded") == 1)
    assert eventually(lambda: daemon.metric("nftsync_state_kept") == 0)
    as_asked_for(daemon)
    daemon.state.unlink()
    daemon.put(service("more", "172.30.254.60"))
    assert eventually(lambda: daemon.metric("nftsync_state_kept") == 1)
    assert last_good_file(daemon).exists()


def test_whenever_it_is_killed_the_file_is_whole(daemon: Daemon) -> None:
    for number in range(8):
        daemon.start()
        daemon.put(service("churn", "172.30.254.50", ports=[("TCP", 1000 + number)]))
        time.sleep(number * 0.25)
        daemon.signal(signal.SIGKILL)
        assert daemon.process
        daemon.process.wait()
        if last_good_file(daemon).exists():
            assert read_sealed(last_good_file(daemon), lastgood.FORMAT)
    assert last_good_file(daemon).exists()


def test_ten_thousand_services_are_written_and_loaded(daemon: Daemon) -> None:
    crowd = {"apiVersion": "v1", "kind": "List", "items": [
        service(f"crowd{number}", f"10.9.{number // 250}.{number % 250 + 1}") for number in range(10_000)
    ]}  # fmt: skip
    (daemon.manifests / "crowd.yaml").write_text(json.dumps(crowd))
    assert daemon.once().returncode == 0
    daemon.start()
    assert eventually(last_good_file(daemon).exists)
    before = elements(daemon.lab, "services4").keys()
    power_off(daemon)
    boot(daemon)
    assert elements(daemon.lab, "services4").keys() == before
    assert len(before) >= 10_000


def test_a_ruleset_without_a_shaper_has_one_part() -> None:
    assert lastgood.describe(ruleset((), Settings("eth0"))).count("table ") == 1
    assert lastgood.describe(ruleset((), Settings("eth0", enable_rateshape=True))).count("table ") == 2


def test_a_write_that_failed_is_tried_again_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    kept = LastGood(lambda: now[0])
    assert kept.due == float("inf")
    (tmp_path / "file").write_text("")
    kept.changed()
    for _ in range(3):
        now[0] = max(now[0], kept.due)
        kept.write(tmp_path / "file" / "state", (), Settings("eth0"))
        assert eventually(lambda: kept.due < float("inf"))
        assert kept.due == now[0] + lastgood.INTERVAL
        assert not kept.kept
    assert len(caplog.records) == 1
    kept.finish(lambda: kept.write(tmp_path / "state", (), Settings("eth0")))
    assert kept.kept
    assert kept.due == float("inf")


def test_whose_pinholes_they_are_and_how_they_are_limited_is_kept_beside_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = Opened(frozenset(), {})
    assert lastgood.services(tmp_path) == nobody
    kept, limit = LastGood(), parse_ratelimit("2 mbytes/second burst 512 kbytes")
    web, other = Name("shop", "web"), Name("other", "web.v2")
    opened = [
        Pinhole("192.0.2.1 . tcp . 80", 4, None, limit, web, "uid-1"),
        Pinhole("192.0.2.1 . tcp . 443", 4, None, limit, web, "uid-1"),
        Pinhole("192.0.2.2 . tcp . 80", 4, None, None, other),
    ]
    kept.write(tmp_path, opened, Settings("eth0"))
    wanted = Opened(frozenset({web, other}), {(web, "uid-1"): limit})
    assert eventually(lambda: lastgood.services(tmp_path) == wanted)
    assert caplog.records == []
    kept.finish(lambda: None)
    file = tmp_path / "services"
    broken = [file.read_text()[:-1], "", "shop/web uid \n"]
    broken += [seal(text, lastgood.FORMAT) for text in ("shop/web", "shop/web uid much", "shop uid ", "a/b/c uid ", "\n")]
    for text in broken:
        file.write_text(text)
        assert lastgood.services(tmp_path) == nobody, text
        assert "services can't be used and is ignored" in caplog.text
        caplog.clear()
