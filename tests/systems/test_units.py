"""The units: systemd understands them, and what they leave to the daemon is little."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
BOTH = ("nftsync-boot.service", "nftsync.service")


@pytest.mark.parametrize("unit", BOTH)
def test_systemd_understands_the_units(tmp_path: Path, unit: str) -> None:
    text = (UNITS / unit).read_text()
    (tmp_path / unit).write_text(text.replace("/usr/bin/nftsync", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("unit", "drop_in", "most"), [
    ("nftsync.service", "", 2.0),
    ("nftsync.service", "addresses.conf", 1.7),
    ("nftsync-boot.service", "", 1.7),
])  # fmt: skip
def test_what_a_unit_exposes_is_little(tmp_path: Path, unit: str, drop_in: str, most: float) -> None:
    extra = (UNITS / drop_in).read_text() if drop_in else ""
    (tmp_path / unit).write_text(f"{(UNITS / unit).read_text()}\n{extra}")
    assert exposure(tmp_path / unit) <= most


def exposure(unit: Path) -> float:
    """From 0, nothing, to 10, everything. Source: systemd-analyze(1)."""
    command = ["systemd-analyze", "security", "--offline=yes", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+) ", done.stdout)
    assert found
    return float(found[1])


@pytest.mark.parametrize(("unit", "conditions"), [
    ("nftsync-boot.service", ["|/etc/nftsync/kubeconfig", "|/var/lib/nftsync/ruleset.nft"]),
    ("nftsync.service", ["/etc/nftsync/kubeconfig"]),
])  # fmt: skip
def test_no_unit_starts_before_there_is_a_kubeconfig_or_has_more_than_one_capability(unit: str, conditions: list[str]) -> None:
    lines = (UNITS / unit).read_text().splitlines()
    assert [line for line in lines if line.startswith("Condition")] == [f"ConditionPathExists={each}" for each in conditions]
    assert "User=nftsync" in lines
    capabilities = [line for line in lines if "CAP_" in line]
    assert capabilities == ["AmbientCapabilities=CAP_NET_ADMIN", "CapabilityBoundingSet=CAP_NET_ADMIN"]
