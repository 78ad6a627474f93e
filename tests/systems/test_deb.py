"""The Debian package: what is in it, what it needs, and that the same sources give the same bytes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import nftsync

ROOT = Path(__file__).parents[2]
PYTHON = "usr/lib/python3/dist-packages"
INFO = f"{PYTHON}/nftsync-{nftsync.__version__}.dist-info"
SCRATCH = (".venv*", ".apt-key", "build", "dist", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis", ".cache")

# Of the distribution, by what PyPI calls it; nftables is nowhere else.
PACKAGES = {"kubernetes", "pyroute2", "tenacity", "prometheus-client", "yaml"}

FILES = f"""
/etc/nftables.d/local-chain.nft
/etc/nftsync/nftsync.toml
/lib/systemd/system/nftsync-boot-fallback.service
/lib/systemd/system/nftsync-boot.service
/lib/systemd/system/nftsync.service
/usr/bin/nftsync
/{INFO}/METADATA
/{INFO}/RECORD
/{INFO}/WHEEL
/{INFO}/entry_points.txt
/{INFO}/top_level.txt
/usr/lib/nftsync/base.nft
/usr/lib/nftsync/boot-fallback
/usr/lib/sysusers.d/nftsync.conf
/usr/share/bash-completion/completions/nftsync
/usr/share/doc/nftsync/CHANGELOG.md
/usr/share/doc/nftsync/README.md
/usr/share/doc/nftsync/changelog
/usr/share/doc/nftsync/copyright
/usr/share/doc/nftsync/examples/addresses.conf
/usr/share/man/man5/nftsync.toml.5
/usr/share/man/man8/nftsync.8
/usr/share/nftsync/crd.yaml
/usr/share/nftsync/nft.yaml
/usr/share/nftsync/nftsync-alerts.yaml
/usr/share/nftsync/ratelimit-policy.yaml
/usr/share/nftsync/rbac.yaml
/usr/share/zsh/vendor-completions/_nftsync
"""


def build(tree: Path, folder: Path) -> Path:
    done = subprocess.run([tree / "packaging" / "build-deb", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [deb] = folder.glob("*.deb")
    return deb


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.mark.parametrize("without", [(), (".git",)], ids=["a checkout", "unpacked sources"])
def test_two_folders_give_the_same_bytes(deb: Path, tmp_path: Path, without: tuple[str, ...]) -> None:
    elsewhere = tmp_path / "quite" / "another place"
    shutil.copytree(ROOT, elsewhere, symlinks=True, ignore=shutil.ignore_patterns(*SCRATCH, *without))
    for path in elsewhere.rglob("*.py"):
        path.touch()
    os.utime(elsewhere / "etc" / "nftsync.toml", (0, 0))
    assert build(elsewhere, tmp_path / "dist").read_bytes() == deb.read_bytes()


def test_these_files_and_no_others_are_in_it(deb: Path) -> None:
    modules = {f"/{PYTHON}/{path.relative_to(ROOT)}" for path in (ROOT / "nftsync").rglob("*.py")}
    documents = {f"/usr/share/doc/nftsync/{path.relative_to(ROOT)}" for path in (ROOT / "docs").glob("*.md")}
    files = {path for path, mode in listed(deb).items() if not mode.startswith("d")}
    # debhelper compresses what is large, and newer ones put units below /usr.
    plain = {re.sub(r"^/usr/lib/systemd", "/lib/systemd", path.removesuffix(".gz")) for path in files}
    assert plain == {*FILES.split(), *modules, *documents}


def test_it_brings_folders_for_what_outlives_the_daemon_and_for_the_administrators_files(deb: Path) -> None:
    folders = listed(deb)
    for folder in ("/etc/nftsync/", "/etc/nftables.d/", "/var/lib/nftsync/"):
        assert folders[folder] == "drwxr-xr-x"


def test_what_the_administrator_edits_is_a_conffile_and_nothing_else_is(deb: Path) -> None:
    assert control(deb, "conffiles").split() == ["/etc/nftables.d/local-chain.nft", "/etc/nftsync/nftsync.toml"]


def test_the_user_is_made_before_a_unit_is_started(deb: Path) -> None:
    script = control(deb, "postinst")
    assert 0 < script.index("systemd-sysusers") < script.index("deb-systemd-invoke")


def test_an_upgrade_stops_nothing_that_it_does_not_start_again(deb: Path) -> None:
    stopped = re.findall(r"^.*deb-systemd-invoke stop.*$", control(deb, "prerm"), re.MULTILINE)
    conditions = re.findall(r"^if .*\n(?=.*deb-systemd-invoke stop)", control(deb, "prerm"), re.MULTILINE)
    assert len(stopped) == len(conditions) == 2
    assert all('"$1" = remove' in condition for condition in conditions)
    assert "nftsync.service" in control(deb, "postinst").partition("_dh_action=restart")[2]


def test_what_it_depends_on_is_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = (each.split(">=") for each in project["dependencies"])
    wanted = {re.sub("^py(?=yaml)", "", name.lower()): version for name, version in asked}
    text = (ROOT / "packaging" / "debian" / "control").read_text()
    depends = text.partition("\nDepends:\n")[2].partition("\nRecommends:")[0]
    found = dict(re.findall(r"^ python3-([\w-]+) \(>= ([\d.]+)\),$", depends, re.MULTILINE))
    assert found == wanted
    assert set(found) == PACKAGES
    assert f" python3 ({project['requires-python'].replace('>=', '>= ')}),\n" in depends
    assert " python3-nftables,\n" in depends


def test_what_it_depends_on_stands_in_the_package_and_nothing_from_elsewhere(deb: Path) -> None:
    depends = subprocess.run(["dpkg-deb", "--field", deb, "Depends"], capture_output=True, text=True, check=True).stdout
    named = {re.split(r"[ :]", each.strip())[0] for each in depends.split(",")}
    others = {"netbase", "nftables", "python3", "python3-nftables", "python3-systemd", "systemd"}
    assert named == others | {f"python3-{each}" for each in PACKAGES}


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    first = (ROOT / "packaging" / "debian" / "changelog").read_text().splitlines()[0]
    assert first.startswith(f"nftsync ({nftsync.__version__})")


def test_lintian_has_nothing_to_say(deb: Path) -> None:
    command = ["lintian", "--allow-root", "--fail-on", "error,warning", str(deb)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def listed(deb: Path) -> dict[str, str]:
    """Its paths, each with its mode; folders end in a slash."""
    lines = subprocess.run(
        ["dpkg-deb", "--contents", deb], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {line.split(maxsplit=5)[5].removeprefix("."): line.split()[0] for line in lines}


def control(deb: Path, name: str) -> str:
    return subprocess.run(["dpkg-deb", "--info", deb, name], capture_output=True, text=True, check=True).stdout
