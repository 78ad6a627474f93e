"""While the API server is away, `pools` and `check` tell what the running daemon knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faultycluster import FaultyCluster
from tests.labtools import PUBLIC_NIC, eventually, needs_root, nft
from tests.process import POOL, WEB, cluster_daemon

pytestmark = needs_root

REFUSED = {**POOL, "metadata": {**POOL["metadata"], "name": "bad", "uid": "uid-bad"}, "spec": {"addresses": ["x"]}}
OUTAGES: dict[str, Callable[[FaultyCluster], None]] = {"refuses": FaultyCluster.refuse}


@pytest.mark.parametrize("outage", OUTAGES)
def test_pools_and_check_ask_the_running_daemon(tmp_path: Path, outage: str) -> None:
    with cluster_daemon(tmp_path, nft(), POOL, WEB) as daemon:
        daemon.start()
        before = json.loads(daemon.command("pools", "--json").stdout)
        assert [pool["name"] for pool in before["pools"]] == ["services"]
        daemon.put(REFUSED)
        assert eventually(lambda: "'x' is neither a CIDR nor a range of addresses" in daemon.log()), daemon.log()
        OUTAGES[outage](daemon.cluster)

        done = daemon.command("pools", "--json")
        assert done.returncode == 0, done.stderr
        asked = json.loads(done.stdout)
        assert asked["pools"] == before["pools"]
        away, refused = asked["rejections"]
        assert (away["object"], away["reason"]) == (f"File {daemon.kubeconfig}", "unreadable")
        assert away["message"].endswith(". The running daemon answers in its place")
        assert refused["object"] == "IPAddressPool metallb-system/bad"
        assert refused["message"] == "'x' is neither a CIDR nor a range of addresses; the last good pools stay"

        checked = daemon.command("check")
        assert checked.returncode == 1, "the API server is away"
        lines = checked.stdout.splitlines()
        assert any(line.startswith("FAIL  kubeconfig: ") for line in lines)
        assert "ok    MetalLB's pools: 1 in metallb-system: services" in lines
        assert any(line.startswith("warn  MetalLB's pools: IPAddressPool metallb-system/bad: ") for line in lines)
        assert any(
            line.startswith(f"ok    public NIC: these interfaces count as public: {PUBLIC_NIC}") for line in lines
        )

        daemon.stop()
        done = daemon.command("pools")
        assert done.returncode == 1
        assert "daemon" not in done.stderr
