"""The real command `nftsync run` as a process in the lab's router.

The tests show the things that it keeps, takes up, repairs and leaves alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from nftsync.daemon import loop as daemons
from tests.lab.lab import Lab, Probe
from tests.labtools import (
    SERVICE4,
    SERVICE6,
    Daemon,
    but_closed,
    elements,
    eventually,
    ingress_qdisc,
    needs_root,
    nft,
    packets,
    rules,
    service,
    tables,
    write,
)

pytestmark = needs_root

BURST = 1000
WEB = service("web", SERVICE4, SERVICE6, ports=[("TCP", 80), ("UDP", 53)])
SLOW = service("slow", "172.30.254.2", limit="1/week burst 4 packets")
LATER = service("later", "172.30.254.3")
WEB_KEY, SLOW_KEY, LATER_KEY = f"{SERVICE4} . tcp . 80", "172.30.254.2 . tcp . 80", "172.30.254.3 . tcp . 80"
OURS = {"inet nftsync", "netdev nftsync"}
EFFECTIVE = ("applied", "unchanged")


@pytest.fixture
def daemon(lab: Lab, tmp_path: Path) -> Iterator[Daemon]:
    """Not started; it would find the two Services and the settings, and resyncs every second."""
    with Daemon(lab, tmp_path, interval=1) as made:
        made.put(nft(), WEB, SLOW)
        yield made


def opened(daemon: Daemon) -> set[str]:
    """The IPv4 pinholes that the kernel has."""
    return set(elements(daemon.lab, "services4"))


def syncs(daemon: Daemon, *results: str) -> float:
    return sum(daemon.metric("nftsync_syncs_total", {"result": result}) for result in results)


def one_line(text: str, *words: str) -> bool:
    """Whether a command said one line that holds these words, and no traceback."""
    lines = text.strip().splitlines()
    return len(lines) == 1 and all(word in lines[0] for word in words)


# --- what it keeps up to date -------------------------------------------------------------------------


def test_it_applies_the_files_and_takes_up_what_is_added_changed_and_removed(daemon: Daemon) -> None:
    daemon.start()
    assert opened(daemon) == {WEB_KEY, f"{SERVICE4} . udp . 53", SLOW_KEY}
    assert set(elements(daemon.lab, "limited4-packets", "netdev")) == {SLOW_KEY}
    assert daemon.lab.arrives("tcp", SERVICE6, 80)
    assert not daemon.lab.arrives("tcp", SERVICE6, 81)
    daemon.put(LATER, service("web", SERVICE4, ports=[("TCP", 443)]))
    daemon.remove(SLOW)
    assert eventually(lambda: opened(daemon) == {f"{SERVICE4} . tcp . 443", LATER_KEY})
    assert elements(daemon.lab, "services6") == {}
    assert daemon.stop() == 0
    line = (
        r"^nftsync: INFO: Service default/web: closed .* "
        r"kind=Service namespace=default name=web topic=Closed router=\S+$"
    )
    assert re.search(line, daemon.log(), re.MULTILINE)


def test_other_settings_are_taken_up(daemon: Daemon) -> None:
    daemon.start()
    assert "tcp dport 179 accept" in rules(daemon.lab)
    daemon.put(nft(enable_bgp=False, enable_rateshape=False))
    assert eventually(lambda: tables(daemon.lab) == {"inet nftsync"})
    assert "tcp dport 179 accept" not in rules(daemon.lab)


def test_a_thousand_changed_files_become_a_few_transactions(daemon: Daemon) -> None:
    daemon.interval = 60
    daemon.configure()
    crowd = [service(f"crowd{number}", f"10.9.{number // 250}.{number % 250}") for number in range(BURST)]
    daemon.put(*crowd[: BURST // 2])
    daemon.start()
    before = syncs(daemon, "applied")
    daemon.put(*crowd[BURST // 2 :])
    daemon.put(*(service(raw["metadata"]["name"], "172.30.254.9", ports=[("TCP", 1 + number)])
                 for number, raw in enumerate(crowd[: BURST // 2])))  # fmt: skip
    assert eventually(lambda: daemon.metric("nftsync_pinholes") == BURST + 5 and len(opened(daemon)) == BURST + 3)
    assert syncs(daemon, "applied") - before <= 10
    assert syncs(daemon, "failed") == 0


def test_broken_yaml_keeps_what_the_file_held_and_is_reported_until_it_is_mended(daemon: Daemon) -> None:
    daemon.start()
    before = rules(daemon.lab)
    unreadable = {"reason": "unreadable"}
    write(daemon.path(WEB), "kind: Service\n  metadata: [}\n")
    daemon.put(LATER)
    assert eventually(lambda: LATER_KEY in opened(daemon))
    assert WEB_KEY in opened(daemon)
    assert eventually(lambda: daemon.metric("nftsync_rejections", unreadable) == 1)
    assert "its previous objects stay" in daemon.log()
    assert "Traceback" not in daemon.log()
    daemon.put(WEB)
    daemon.remove(LATER)
    assert eventually(lambda: daemon.metric("nftsync_rejections", unreadable) == 0)
    assert eventually(lambda: but_closed(rules(daemon.lab)) == but_closed(before))


def test_a_changed_local_chain_is_taken_up_and_a_bad_one_keeps_the_last_good(daemon: Daemon) -> None:
    invalid = {"reason": "invalid_local_chain"}
    write(daemon.local_chain, "chain local-chain {\n\tudp dport 1111 accept\n}\n")
    daemon.start()
    assert "udp dport 1111 accept" in rules(daemon.lab)
    write(daemon.local_chain, "chain local-chain {\n\tudp dport 2222 accept\n}\n")
    assert eventually(lambda: "udp dport 2222 accept" in rules(daemon.lab))
    assert "udp dport 1111" not in rules(daemon.lab)
    write(daemon.local_chain, "chain local-chain { udp dport nonsense accept }")
    assert eventually(lambda: daemon.metric("nftsync_rejections", invalid) == 1)
    assert "udp dport 2222 accept" in rules(daemon.lab)
    write(daemon.local_chain, "chain local-chain {\n\tudp dport 2222 accept\n}\n")
    assert eventually(lambda: daemon.metric("nftsync_rejections", invalid) == 0)
    assert "the last good chain stays" in daemon.log()
    assert daemon.local_chain.read_text() == "chain local-chain {\n\tudp dport 2222 accept\n}\n"
    daemon.local_chain.unlink()
    assert eventually(lambda: "udp dport 2222" not in rules(daemon.lab))


def test_a_last_good_local_chain_outlives_the_process(daemon: Daemon) -> None:
    write(daemon.local_chain, "chain local-chain { udp dport 1111 accept; }")
    assert daemon.once().returncode == 0
    write(daemon.local_chain, "chain local-chain { nonsense }")
    done = daemon.once()
    assert done.returncode == 0
    assert "invalid_local_chain" in done.stderr
    assert "udp dport 1111 accept" in rules(daemon.lab)


def test_the_last_good_settings_stay_when_the_nft_resource_goes_or_is_wrong(daemon: Daemon) -> None:
    daemon.put(nft(enable_bgp=False))
    daemon.start()
    before = rules(daemon.lab)
    daemon.remove(nft())
    assert eventually(lambda: daemon.metric("nftsync_rejections", {"reason": "missing_settings"}) == 1)
    wrong = nft()
    wrong["spec"] = {"public_nic": "eth0; drop"}
    daemon.put(wrong, LATER)
    assert eventually(lambda: LATER_KEY in opened(daemon))
    assert eventually(lambda: daemon.metric("nftsync_rejections", {"reason": "invalid_settings"}) == 1)
    daemon.remove(LATER)
    assert eventually(lambda: but_closed(rules(daemon.lab)) == but_closed(before))
    assert daemon.get("/readyz").status == 200
    daemon.put(nft())
    assert eventually(lambda: "tcp dport 179 accept" in rules(daemon.lab))


# --- drift --------------------------------------------------------------------------------------------


def test_what_somebody_else_does_to_our_tables_is_repaired_and_counted_and_other_tables_are_not_touched(
    daemon: Daemon,
) -> None:
    daemon.lab.router.nft("table ip foreign { chain input { type filter hook input priority 0; udp dport 7 drop; }; }")
    daemon.start()
    good = rules(daemon.lab)
    assert "udp dport 7 drop" in good
    changes = [
        f"delete element inet nftsync services4 {{ {WEB_KEY} }}; insert rule inet nftsync forward accept",
        "add chain inet nftsync theirs { type filter hook input priority -5; }; "
        "add set inet nftsync their { type ipv4_addr; }",
        "delete table netdev nftsync",
        "delete table inet nftsync",
    ]

    def repaired(times: int) -> bool:
        return rules(daemon.lab) == good and daemon.metric("nftsync_drift_repairs_total") == times

    for times, change in enumerate(changes, start=1):
        daemon.lab.router.nft(change)
        assert eventually(partial(repaired, times)), f"{change}\n{daemon.log()}"
    assert len(re.findall(r"'nft' \(pid \d+\) changed nftsync's tables; nftsync repaired them", daemon.log())) == len(
        changes
    )


def test_resyncs_without_drift_change_nothing_and_count_no_repair(daemon: Daemon) -> None:
    daemon.start()
    before, good = syncs(daemon, "unchanged"), rules(daemon.lab, "--handle")
    assert eventually(lambda: syncs(daemon, "unchanged") >= before + 2)
    assert daemon.metric("nftsync_drift_repairs_total") == 0
    assert syncs(daemon, "applied") == 1
    assert rules(daemon.lab, "--handle") == good


# --- its life -----------------------------------------------------------------------------------------


def test_it_stops_and_a_new_process_adopts_rules_counters_and_buckets(daemon: Daemon) -> None:
    daemon.start()
    lab, good = daemon.lab, rules(daemon.lab)
    assert len([arrived for arrived in range(7) if lab.arrives("tcp", SERVICE4, 80)]) == 7
    assert len([arrived for arrived in range(9) if lab.arrives("tcp", "172.30.254.2", 80)]) == 4
    assert daemon.stop() == 0
    assert rules(lab) == good
    daemon.put(LATER)
    daemon.start()
    assert set(elements(lab, "services4")) == {WEB_KEY, f"{SERVICE4} . udp . 53", SLOW_KEY, LATER_KEY}
    assert packets(lab, "services4", WEB_KEY) == 7
    assert not lab.arrives("tcp", "172.30.254.2", 80)
    assert daemon.metric("nftsync_drift_repairs_total") == 0


def test_once_syncs_and_ends_and_says_so_by_its_status_where_there_are_no_settings(daemon: Daemon) -> None:
    done = daemon.once()
    assert done.returncode == 0
    assert "pinholes: 5 opened" in done.stderr
    good = rules(daemon.lab)
    assert WEB_KEY in opened(daemon)
    assert daemon.once().returncode == 0
    assert rules(daemon.lab) == good
    daemon.remove(nft())
    done = daemon.once()
    assert done.returncode == 0
    assert "there is no such resource; the last good settings stay" in done.stderr
    shutil.rmtree(daemon.state)
    done = daemon.once()
    assert done.returncode == 1
    assert "there is no usable Nft resource arbf-operators/nft" in done.stderr
    assert rules(daemon.lab) == good


def test_flush_removes_our_tables_and_no_other_and_can_be_repeated(daemon: Daemon) -> None:
    daemon.lab.router.nft("table ip foreign { chain c { }; }")
    assert daemon.once().returncode == 0
    assert tables(daemon.lab) == {*OURS, "ip foreign"}
    assert ingress_qdisc(daemon.lab) == "ingress"
    for _ in range(2):
        done = daemon.command("flush")
        assert (done.returncode, done.stderr) == (0, "")
        assert tables(daemon.lab) == {"ip foreign"}
        assert ingress_qdisc(daemon.lab) == ""


def test_a_reload_takes_up_a_good_configuration_and_keeps_the_running_one_when_the_new_one_is_bad(
    daemon: Daemon,
) -> None:
    daemon.start()
    good = rules(daemon.lab)
    daemon.configure("resync_intervall = 5\n")
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: "the configuration was not reloaded" in daemon.log())
    assert "resync_intervall" in daemon.log()
    assert daemon.get("/readyz").status == 200
    assert rules(daemon.lab) == good
    daemon.extra = '[filters]\nexclude_namespaces = ["default"]\n'
    daemon.configure()
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: opened(daemon) == set()), daemon.log()
    assert "configuration reloaded" in daemon.log()
    daemon.extra = ""
    daemon.configure()
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: rules(daemon.lab) == good), daemon.log()


def test_a_reload_moves_the_endpoint_unless_the_new_address_is_taken(lab: Lab, daemon: Daemon) -> None:
    daemon.start()
    daemon.extra = '[metrics]\naddress = "127.0.0.1:9470"\n'
    daemon.configure()
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: daemon.get("/readyz", "127.0.0.1:9470").status == 200)
    assert eventually(lambda: daemon.get("/readyz").status == 0)
    with lab.router.call(socket.create_server, ("127.0.0.1", 9469)):
        daemon.extra = ""
        daemon.configure()
        daemon.signal(signal.SIGHUP)
        assert eventually(lambda: "the configuration was not reloaded" in daemon.log())
    assert daemon.get("/readyz", "127.0.0.1:9470").status == 200


def test_a_reload_goes_on_without_an_endpoint_if_neither_address_can_be_had(lab: Lab, daemon: Daemon) -> None:
    lab.router.run(["ip", "address", "add", "10.9.9.9/32", "dev", "lo"])
    daemon.start()
    daemon.extra = '[metrics]\naddress = "10.9.9.9:9470"\n'
    daemon.configure()
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: "configuration reloaded" in daemon.log())
    lab.router.run(["ip", "address", "del", "10.9.9.9/32", "dev", "lo"])
    daemon.extra = '[metrics]\naddress = "10.9.9.8:9470"\n'
    daemon.configure()
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: "the configuration was not reloaded" in daemon.log())
    daemon.put(service("web", SERVICE4, ports=[("TCP", 8080)]))
    assert eventually(lambda: lab.arrives("tcp", SERVICE4, 8080)), daemon.log()


def test_a_reload_moves_the_endpoint_to_another_address_with_the_same_port(daemon: Daemon) -> None:
    daemon.start()
    daemon.extra = '[metrics]\naddress = "0.0.0.0:9469"\n'
    daemon.configure()
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: "configuration reloaded" in daemon.log()), daemon.log()
    assert eventually(lambda: daemon.get("/readyz", "127.0.0.2:9469").status == 200)


def test_a_reload_for_another_resource_says_that_it_is_missing_and_keeps_the_settings(daemon: Daemon) -> None:
    daemon.start()
    good = rules(daemon.lab)
    daemon.extra = '[nft]\nname = "another"\n'
    daemon.configure()
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: daemon.metric("nftsync_rejections", {"reason": "missing_settings"}) == 1), daemon.log()
    assert rules(daemon.lab) == good


def test_a_reload_to_another_state_folder_takes_what_is_known_along(lab: Lab, daemon: Daemon) -> None:
    daemon.start()
    assert eventually(lambda: "ingress" in ingress_qdisc(lab))
    paths = f'local_chain = "{daemon.local_chain}"\nstate = "{daemon.state}-moved"\nruntime = "{daemon.folder}/run"\n'
    daemon.configure(f"[paths]\n{paths}")
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: "configuration reloaded" in daemon.log()), daemon.log()
    assert daemon.stop() == 0
    assert daemon.command("flush").returncode == 0
    assert "ingress" not in ingress_qdisc(lab), "the new folder knows that the qdisc is ours"


# --- the public NIC and its ingress qdisc -------------------------------------------------------------


def test_a_public_nic_may_come_go_and_be_another_one_and_the_rest_is_applied_meanwhile(
    lab: Lab, daemon: Daemon
) -> None:
    lab.unplug()
    daemon.start()
    assert WEB_KEY in opened(daemon)
    assert "hook ingress" not in rules(lab)
    lab.plug()
    assert eventually(lambda: 'hook ingress device "public0"' in rules(lab)), daemon.log()
    assert eventually(lambda: ingress_qdisc(lab) == "ingress")
    assert sum(lab.arrives("tcp", "172.30.254.2", 80) for _ in range(9)) == 4
    lab.unplug()
    daemon.put(LATER)
    assert eventually(lambda: LATER_KEY in opened(daemon)), daemon.log()
    lab.plug()
    assert eventually(
        lambda: 'hook ingress device "public0"' in rules(lab) and ingress_qdisc(lab) == "ingress"
    ), daemon.log()
    assert not lab.arrives("tcp", SERVICE4, 81)
    lab.unplug()
    lab.plug("wan0")
    daemon.put(nft("wan0"))
    assert eventually(
        lambda: 'hook ingress device "wan0"' in rules(lab) and ingress_qdisc(lab, "wan0") == "ingress"
    ), daemon.log()
    assert "public0" not in rules(lab)
    assert lab.arrives("tcp", SERVICE4, 80)
    assert not lab.arrives("tcp", SERVICE4, 81)
    assert syncs(daemon, "failed") == 0


@pytest.mark.parametrize("kind", ["ingress", "clsact"])
def test_an_ingress_qdisc_that_was_there_before_is_left_alone(lab: Lab, daemon: Daemon, kind: str) -> None:
    lab.router.run(["tc", "qdisc", "add", "dev", "public0", kind])
    assert "qdisc" not in daemon.once().stderr
    assert 'hook ingress device "public0"' in rules(lab)
    assert ingress_qdisc(lab) == kind
    daemon.put(nft(enable_rateshape=False))
    assert daemon.once().returncode == 0
    assert tables(lab) == {"inet nftsync"}
    assert daemon.command("flush").returncode == 0
    assert ingress_qdisc(lab) == kind


def test_without_ingress_qdisc_limits_hold_and_others_can_add_theirs(lab: Lab, daemon: Daemon) -> None:
    clsact = ["tc", "qdisc", "add", "dev", "public0", "clsact"]
    daemon.put(SLOW)
    daemon.start()
    assert ingress_qdisc(lab) == "ingress"
    assert lab.router.run(clsact, check=False).returncode, "ours is in the way"
    daemon.configure(f"ingress_qdisc = false\n{daemon.config.read_text()}")
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: ingress_qdisc(lab) == ""), daemon.log()
    lab.router.run(clsact)
    assert len(lab.deliver([Probe("tcp", "172.30.254.2", 80)] * 20)) == 4
    daemon.configure(daemon.config.read_text().replace("ingress_qdisc = false", "ingress_qdisc = true"))
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: daemon.log().count("configuration reloaded") == 2), daemon.log()
    assert ingress_qdisc(lab) == "clsact", "what others added stays"


def test_its_own_ingress_qdisc_goes_when_rate_shaping_does_also_after_a_restart(lab: Lab, daemon: Daemon) -> None:
    assert daemon.once().returncode == 0
    assert ingress_qdisc(lab) == "ingress"
    daemon.put(nft(enable_rateshape=False))
    assert daemon.once().returncode == 0
    assert ingress_qdisc(lab) == ""


def test_its_own_ingress_qdisc_moves_with_the_public_nic_and_one_of_somebody_else_stays(
    lab: Lab, daemon: Daemon
) -> None:
    lab.router.ip("link add other0 type veth peer name theirs0", "link set other0 up", "link set theirs0 up")
    lab.router.run(["tc", "qdisc", "add", "dev", "theirs0", "ingress"])
    daemon.start()

    def hooked(nic: str) -> bool:
        with_qdisc = {each for each in ("public0", "other0", "theirs0") if ingress_qdisc(lab, each)}
        return with_qdisc == {nic, "theirs0"} and f'hook ingress device "{nic}"' in rules(lab)

    for nic in ("other0", "theirs0", "public0"):
        daemon.put(nft(nic))
        assert eventually(partial(hooked, nic)), f"{nic}\n{daemon.log()}"


def test_without_rate_shaping_no_qdisc_is_made(lab: Lab, daemon: Daemon) -> None:
    daemon.put(nft(enable_rateshape=False))
    assert daemon.once().returncode == 0
    assert ingress_qdisc(lab) == ""
    assert tables(lab) == {"inet nftsync"}


# --- what it reports ----------------------------------------------------------------------------------


def test_it_is_alive_but_not_ready_before_the_first_sync_and_touches_nothing(daemon: Daemon) -> None:
    daemon.remove(nft())
    daemon.start(ready=False)
    assert eventually(lambda: syncs(daemon, "waiting") >= 1)
    assert daemon.get("/readyz").status == 503
    assert daemon.get("/healthz").status == 200
    assert daemon.get("/nonsense").status == 404
    assert tables(daemon.lab) == set()
    assert daemon.metric("nftsync_rejections", {"reason": "missing_settings"}) == 1
    daemon.put(nft())
    assert eventually(lambda: daemon.get("/readyz").status == 200)
    assert tables(daemon.lab) == OURS


def test_the_metrics_are_there_from_the_start_and_move(daemon: Daemon) -> None:
    daemon.start()
    page = daemon.get("/metrics").body
    for name in (
        "nftsync_syncs_total", "nftsync_sync_duration_seconds_bucket", "nftsync_event_to_kernel_seconds_bucket",
        "nftsync_last_success_timestamp_seconds", "nftsync_watch_state", "nftsync_watch_restarts_total",
        "nftsync_services",
        "nftsync_rejections", "nftsync_drift_repairs_total", "nftsync_build_info",
    ):  # fmt: skip
        base = name.removesuffix("_total").removesuffix("_bucket")
        assert re.search(rf"^# TYPE {base}(_total)? ", page, re.MULTILINE), name
    assert daemon.metric("nftsync_services") == 2
    assert daemon.metric("nftsync_pinholes") == 5
    assert (
        abs(daemon.metric("nftsync_last_success_timestamp_seconds") - time.time()) < 3600
    ), "it is in seconds since 1970"
    events, done = daemon.metric("nftsync_event_to_kernel_seconds_count"), syncs(daemon, *EFFECTIVE)
    refused = service("refused", "172.30.254.5", limit="a lot")
    daemon.put(LATER, refused)
    assert eventually(lambda: daemon.metric("nftsync_services") == 4)
    assert daemon.metric("nftsync_pinholes") == 7
    assert daemon.metric("nftsync_rejections", {"reason": "invalid_ratelimit"}) == 1
    assert daemon.metric("nftsync_event_to_kernel_seconds_count") > events
    assert syncs(daemon, *EFFECTIVE) > done
    counted = syncs(daemon, *EFFECTIVE)
    assert eventually(lambda: daemon.metric("nftsync_sync_duration_seconds_count") >= counted)
    assert "Service default/refused: rejected: invalid_ratelimit: " in daemon.log()


def test_a_limit_stays_over_a_restart_though_the_annotation_is_invalid_by_then(daemon: Daemon) -> None:
    daemon.start()
    limited = elements(daemon.lab, "limited4-packets", "netdev")
    assert limited.keys() == {SLOW_KEY}
    daemon.stop()
    daemon.put(service("slow", "172.30.254.2", limit="a lot"))
    daemon.start()
    assert elements(daemon.lab, "limited4-packets", "netdev") == limited
    assert "the previous limit, 1/week burst 4 packets, stays" in daemon.log()
    daemon.put(service("slow", "172.30.254.2"))
    assert eventually(lambda: elements(daemon.lab, "limited4-packets", "netdev") == {})


def test_a_resync_leaves_no_memory_behind_not_even_without_the_public_nic(daemon: Daemon) -> None:
    """pyroute2 raises an error for a missing interface that refers to itself, and to all that the sync knew."""
    many = [service(f"s{number}", f"172.30.{number // 250}.{number % 250 + 1}") for number in range(5000)]
    write(daemon.manifests / "many.yaml", json.dumps({"apiVersion": "v1", "kind": "List", "items": many}))
    daemon.put(nft("absent0"))
    daemon.start()

    def after(resyncs: int) -> int:
        """Bytes resident."""
        before = syncs(daemon, *EFFECTIVE)
        assert eventually(lambda: syncs(daemon, *EFFECTIVE) >= before + resyncs)
        assert daemon.process
        (pages,) = Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1:2]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    at_first = after(3)
    assert after(8) - at_first < 4e6


@pytest.mark.parametrize("input_", ["nftsync.cluster.manifests.Manifests.follow", "nftsync.kernel.interfaces.listen"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_input_that_ends_by_itself_ends_the_daemon_and_the_ruleset_stays(
    lab: Lab, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, input_: str
) -> None:
    assert daemon.once().returncode == 0

    def broken(*_: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(input_, broken)
    options = daemons.Options(config=daemon.config, manifests=(daemon.manifests,))
    with pytest.raises(daemons.DaemonError, match="ended by itself"):
        lab.router.call(daemons.Daemon(options).run)
    assert WEB_KEY in opened(daemon)


# --- what it cannot do, in one line -------------------------------------------------------------------


def test_a_metrics_port_in_use_is_one_line_and_the_kernel_is_not_touched(lab: Lab, daemon: Daemon) -> None:
    with lab.router.call(socket.create_server, ("127.0.0.1", 9469)):
        done = lab.router.run(daemon.argv(), check=False)
    assert done.returncode == 1
    assert one_line(done.stderr, "127.0.0.1", "9469"), done.stderr
    assert tables(lab) == set()


@pytest.mark.parametrize("option", ["--config", "--manifests"])
def test_a_file_that_is_not_there_is_one_line(lab: Lab, daemon: Daemon, option: str) -> None:
    done = lab.router.run([*daemon.argv(), option, "/nowhere/at-all"], check=False)
    assert done.returncode == 2
    assert one_line(done.stderr, "/nowhere/at-all"), done.stderr


@pytest.mark.parametrize("command", ["run", "flush"])
def test_without_the_right_to_change_the_firewall_it_says_so_in_one_line(
    lab: Lab, daemon: Daemon, command: str
) -> None:
    argv = daemon.argv() if command == "run" else [*daemon.argv()[:3], "flush", "--config", str(daemon.config)]
    reading = "-all,+dac_read_search"  # wherever the checkout is
    nobody = ["setpriv", "--reuid=nobody", "--clear-groups", f"--inh-caps={reading}", f"--ambient-caps={reading}"]
    done = lab.router.run([*nobody, f"--bounding-set={reading}", *argv, "--log-level", "error"], check=False)
    assert done.returncode == 1
    assert one_line(done.stderr, "CAP_NET_ADMIN", "root"), done.stderr
    assert tables(lab) == set()
