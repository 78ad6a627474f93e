"""A daemon that follows files: a misspelt object takes nothing away and opens nothing, over a restart too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.test_asking import POOL, Asked
from tests.lab.lab import Lab
from tests.labtools import Raw, eventually, needs_root, nft, service, write

pytestmark = needs_root

WEB = service("web", "172.30.254.1", sources=["203.0.113.0/24"])
NEW = "172.30.254.9"
RANGES = "did you mean spec.loadBalancerSourceRanges?"


def misspelt(raw: Raw) -> Raw:
    """The Service with another address, and with a source range that nobody would apply."""
    spec: dict[str, Any] = {**raw["spec"]}
    spec["loadBalancerSourceranges"] = spec.pop("loadBalancerSourceRanges")
    return {**raw, "spec": spec, "status": service("web", NEW)["status"]}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Asked]:
    with Lab() as lab, Asked(lab, tmp_path, interval=600) as made:
        made.put(nft(), WEB)
        yield made


def told(daemon: Asked) -> list[str]:
    return [f"{each['object']}: {each['message']}" for each in daemon.status()["rejections"]]


def test_the_last_good_version_stays_in_force_and_everybody_who_asks_is_told(daemon: Asked) -> None:
    daemon.start()
    before = daemon.explain("203.0.113.7", "172.30.254.1:80")
    daemon.put(misspelt(WEB), misspelt(service("fresh", NEW, sources=["203.0.113.0/24"])))
    assert eventually(lambda: len(told(daemon)) == 2), daemon.log()
    assert all(RANGES in line and str(daemon.manifests) in line for line in told(daemon))
    after = daemon.explain("203.0.113.7", "172.30.254.1:80")
    assert after["verdict"] == before["verdict"] != "dropped"
    assert daemon.explain("192.0.2.7", "172.30.254.1:80")["verdict"] == "dropped"
    assert daemon.explain("203.0.113.7", f"{NEW}:80")["verdict"] == "dropped"
    assert any(RANGES in line for line in daemon.explain("default/web")["lines"])
    assert any(RANGES in line for line in daemon.explain("default/fresh")["lines"])
    assert RANGES in daemon.log()
    assert daemon.status()["stale"] == {}, "one bad Service is no fault of the others"
    daemon.put(WEB)
    assert eventually(lambda: len(told(daemon)) == 1), daemon.log()


def test_it_stays_over_a_restart_too(daemon: Asked) -> None:
    daemon.start().stop()
    daemon.put(misspelt(WEB))
    daemon.start()
    assert daemon.explain("203.0.113.7", "172.30.254.1:80")["verdict"] != "dropped"
    assert daemon.explain("203.0.113.7", f"{NEW}:80")["verdict"] == "dropped"
    [line] = told(daemon)
    assert line.endswith("; its previous version stays")


def test_misspelt_settings_leave_those_in_force_over_a_restart_too(daemon: Asked) -> None:
    daemon.start()
    rules = daemon.lab.router.run(["nft", "list", "chain", "inet", "nftsync", "operator-cr"]).stdout
    wrong = nft()
    wrong["spec"] = {**wrong["spec"], "enable_bgp": False, "enable-ssh": False}
    daemon.put(wrong)
    assert eventually(lambda: len(told(daemon)) == 1), daemon.log()
    assert "did you mean spec.enable_ssh?" in told(daemon)[0]
    assert "did you mean spec.enable_ssh?" in daemon.status()["stale"]["settings"]
    assert daemon.lab.router.run(["nft", "list", "chain", "inet", "nftsync", "operator-cr"]).stdout == rules
    daemon.stop()
    daemon.start()
    assert daemon.lab.router.run(["nft", "list", "chain", "inet", "nftsync", "operator-cr"]).stdout == rules
    assert daemon.explain("203.0.113.7", "172.30.254.1:80")["verdict"] != "dropped"


@pytest.mark.parametrize("wrong", ["{", '{"kind": "Service", "apiVersion": "v1", "metadata": {"nam": "web"}}'])
def test_what_a_file_held_stays_over_a_restart_that_finds_it_unreadable(daemon: Asked, wrong: str) -> None:
    other = service("other", "172.30.254.2")
    daemon.put(POOL, other)
    daemon.start().stop()
    write(daemon.path(WEB), wrong)
    daemon.remove(other)
    for raw in (nft(), POOL):
        write(daemon.path(raw), wrong)
    daemon.start(ready=False)
    assert eventually(lambda: len(told(daemon)) >= 3), daemon.log()
    assert daemon.explain("203.0.113.7", "172.30.254.1:80")["verdict"] != "dropped"
    assert daemon.explain("192.0.2.7", "172.30.254.1:80")["verdict"] == "dropped"
    assert daemon.explain("203.0.113.7", "172.30.254.2:80")["verdict"] != "dropped", "it can be in the unreadable file"
    daemon.put(WEB, nft(), POOL)
    assert eventually(lambda: not told(daemon)), daemon.log()
    assert daemon.explain("203.0.113.7", "172.30.254.1:80")["verdict"] != "dropped"
    assert daemon.explain("203.0.113.7", "172.30.254.2:80")["verdict"] == "dropped"


@pytest.mark.parametrize("kind", ["IPAddressPool", "BGPAdvertisement"])
def test_a_part_of_the_pools_that_is_refused_stays_over_a_restart(daemon: Asked, kind: str) -> None:
    daemon.config.write_text(f"advertised_pools_only = true\n{daemon.config.read_text()}")
    first: Raw = {**POOL, "spec": {"addresses": ["172.30.254.0/25"]}}
    second: Raw = {**POOL, "spec": {"addresses": ["172.30.254.128/25"]}}
    second["metadata"] = {"name": "second", "namespace": "metallb-system"}
    advertisement: Raw = {**POOL, "kind": "BGPAdvertisement", "spec": {}}
    pools = {"IPAddressPool": first, "BGPAdvertisement": advertisement}
    daemon.put(*pools.values(), second)
    daemon.start()
    assert daemon.explain("203.0.113.7", "172.30.254.1:80")["verdict"] != "dropped"
    daemon.stop()
    wrong = pools[kind]
    daemon.put({**wrong, "spec": {**wrong["spec"], "unknown": 1}})
    daemon.start()
    daemon.put(service("other", "172.30.254.200"))  # another reading
    assert eventually(lambda: daemon.explain("203.0.113.7", "172.30.254.200:80")["verdict"] != "dropped"), daemon.log()
    assert daemon.explain("203.0.113.7", "172.30.254.1:80")["verdict"] != "dropped"
    assert any("its last good objects stay" in line for line in told(daemon))
    daemon.put(wrong)
    assert eventually(lambda: not told(daemon)), daemon.log()
