"""systemd understands the units and leaves little to the daemon.

The boot unit needs nothing that can fail.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
BOOT, FALLBACK, DAEMON = "nftsync-boot.service", "nftsync-boot-fallback.service", "nftsync.service"
REMEMBERED = ["|/etc/nftsync/kubeconfig", "|/var/lib/nftsync/memory.journal", "|/var/lib/nftsync/ruleset.nft"]

# Each makes a mount namespace, another one, or credentials, which need one.
# Source: exec_needs_mount_namespace() in systemd 252 and 257.
NAMESPACES = {
    "BindLogSockets", "BindPaths", "BindReadOnlyPaths", "DynamicUser", "ExecPaths", "ExtensionDirectories",
    "ExtensionImages",
    "IPCNamespacePath", "ImportCredential", "InaccessiblePaths", "LoadCredential", "LoadCredentialEncrypted",
    "LogNamespace",
    "MountAPIVFS", "MountFlags", "MountImages", "NetworkNamespacePath", "NoExecPaths", "PrivateDevices", "PrivateIPC",
    "PrivateMounts", "PrivateNetwork", "PrivatePIDs", "PrivateTmp", "PrivateUsers", "ProcSubset",
    "ProtectControlGroups",
    "ProtectHome", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem", "ReadOnlyPaths", "ReadWritePaths", "RootDirectory", "RootImage", "SetCredential",
    "SetCredentialEncrypted",
    "TemporaryFileSystem",
}  # fmt: skip


@pytest.mark.parametrize("unit", [BOOT, FALLBACK, DAEMON])
def test_systemd_understands_the_units(tmp_path: Path, unit: str) -> None:
    for each in (BOOT, FALLBACK, DAEMON):
        (tmp_path / each).write_text((UNITS / each).read_text().replace("/usr/bin/nftsync", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("unit", "drop_in", "most"), [
    (DAEMON, "", 2.0),
    (DAEMON, "addresses.conf", 1.7),
    (BOOT, "", 2.9),
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
    (BOOT, REMEMBERED),
    (DAEMON, ["/etc/nftsync/kubeconfig"]),
])  # fmt: skip
def test_no_unit_starts_before_there_is_a_kubeconfig_or_has_more_than_one_capability(
    unit: str, conditions: list[str]
) -> None:
    lines = (UNITS / unit).read_text().splitlines()
    assert [line for line in lines if line.startswith("Condition")] == [
        f"ConditionPathExists={each}" for each in conditions
    ]
    assert "User=nftsync" in lines
    capabilities = [line for line in lines if "CAP_" in line]
    assert capabilities == ["AmbientCapabilities=CAP_NET_ADMIN", "CapabilityBoundingSet=CAP_NET_ADMIN"]


@pytest.mark.parametrize("unit", [BOOT, FALLBACK])
def test_what_runs_at_boot_needs_no_namespace(unit: str) -> None:
    settings = {
        line.partition("=")[0] for line in (UNITS / unit).read_text().splitlines() if "=" in line and line[0] != "#"
    }
    assert settings & NAMESPACES == set()


def test_the_fallback_runs_under_the_same_conditions_and_before_the_same_units() -> None:
    texts = [(UNITS / unit).read_text().splitlines() for unit in (BOOT, FALLBACK)]
    for setting in ("ConditionPathExists", "Before", "Conflicts", "DefaultDependencies"):
        boot, fallback = ([line for line in text if line.startswith(f"{setting}=")] for text in texts)
        assert boot == fallback
    assert f"OnFailure={FALLBACK}" in texts[0]
    assert not any(line.startswith("Restart=") for line in texts[0]), "systemd 252 would start no fallback"
