"""Limits at a running daemon: they hold over bad annotations, resyncs and restarts, and everybody can see them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.fragments import send_fragmented
from tests.lab.lab import CLIENT, Lab, Probe
from tests.labtools import SERVICE4, SERVICE6, Daemon, Raw, eventually, needs_root, nft, service

pytestmark = needs_root

EGRESS = "1/week burst 4 packets"
NARROW, WIDE = "2 kbytes/week burst 1 kbytes", "2 kbytes/week burst 9 kbytes"
OWNER = {"namespace": "default", "service": "slow"}


def slow(egress: str | None = EGRESS, limit: str | None = NARROW) -> Raw:
    return service("slow", SERVICE4, SERVICE6, ports=[("UDP", 80)], limit=limit, egress=egress)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Lab() as lab, Daemon(lab, tmp_path, interval=1) as made:
        made.put(nft(), slow())
        yield made.start()


def answered(daemon: Daemon) -> int:
    """How many of twenty answers of the Service leave the router, in IPv4."""
    return len(daemon.lab.deliver([Probe("udp", str(CLIENT[0]), 5000, source=SERVICE4, sport=80)] * 20, "node"))


def test_what_limits_drop_is_seen_in_explain_top_and_the_metrics(daemon: Daemon) -> None:
    send_fragmented(daemon.lab, Probe("udp", SERVICE4, 80, length=40_000), 5)
    assert answered(daemon) == 4
    said = daemon.command("explain", f"{SERVICE4}:80/udp").stdout
    assert f"its limit is {NARROW}; packets dropped over it: " in said
    assert f"its limit for what it sends is {EGRESS}; packets dropped over it: 16" in said
    top = daemon.lab.router.popen(daemon.command_line("top", "--once", "--seconds", "2"), stdout=-1)
    assert eventually(lambda: answered(daemon) == 0 and top.poll() is not None)
    assert top.stdout
    assert "default/slow" in top.stdout.read()
    assert eventually(lambda: daemon.metric("nftsync_service_egress_limit_drops_total", OWNER) >= 16)
    assert daemon.metric("nftsync_fragment_limit_drops_total", {"family": "ipv4"}) > 100
    assert daemon.metric("nftsync_fragment_limit_drops_total", {"family": "ipv6"}) == 0
    assert daemon.metric("nftsync_kernel_elements", {"set": "fragments4"}) == 1


def test_resyncs_find_nothing_to_repair_and_leave_the_buckets_as_they_are(daemon: Daemon) -> None:
    assert answered(daemon) == 4
    done = daemon.metric("nftsync_syncs_total", {"result": "unchanged"})
    assert eventually(lambda: daemon.metric("nftsync_syncs_total", {"result": "unchanged"}) >= done + 2)
    assert daemon.metric("nftsync_drift_repairs_total") == 0
    assert answered(daemon) == 0


def test_an_invalid_egress_limit_leaves_the_previous_one_in_force_over_a_restart_too(daemon: Daemon) -> None:
    daemon.put(slow("10 mbit/s"))
    assert eventually(lambda: "write '1220 kbytes/second'" in daemon.log())
    assert f"the previous limit, {EGRESS}, stays" in daemon.log()
    assert daemon.stop() == 0
    daemon.start()
    assert answered(daemon) == 4
    daemon.put(slow(None))
    assert eventually(lambda: answered(daemon) == 20), daemon.log()


def test_a_change_of_one_service_changes_the_limit_of_fragments_that_it_shares_with_another(daemon: Daemon) -> None:
    def bucket() -> str:
        return daemon.lab.router.run(["nft", "list", "set", "netdev", "nftsync", "fragments4"]).stdout

    other = service("other", SERVICE4, ports=[("UDP", 81)], limit=WIDE)
    daemon.put(other)
    assert eventually(lambda: daemon.metric("nftsync_pinholes") == 3)
    assert NARROW in bucket()
    daemon.put(slow(limit=None))
    assert eventually(lambda: WIDE in bucket()), bucket()
    daemon.remove(other)
    assert eventually(lambda: SERVICE4 not in bucket()), bucket()
    assert daemon.metric("nftsync_drift_repairs_total") == 0
