"""A signed folder that apt takes packages from, and from nobody who changed it."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTROL = """Package: nftsync
Version: {version}
Architecture: all
Maintainer: nftsync maintainers <maintainers@nftsync.example>
Description: stands for the real one
"""


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C", **environment}
    )


def package(folder: Path, version: str) -> Path:
    tree = folder / version
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(CONTROL.format(version=version))
    deb = folder / f"nftsync_{version}_all.deb"
    assert run("dpkg-deb", "--root-owner-group", "--build", tree, deb).returncode == 0
    return deb


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """gpg's folder with the keys of a team and of somebody else; its path is short, as gpg's sockets need it."""
    folder = tmp_path_factory.mktemp("gpg")
    folder.chmod(0o700)
    for user in ("team", "somebody"):
        made = run(
            "gpg", "--batch", "--passphrase", "", "--quick-generate-key", user, "rsa2048", "sign", GNUPGHOME=str(folder)
        )
        assert made.returncode == 0, made.stderr
    yield folder
    run("gpgconf", "--kill", "all", GNUPGHOME=str(folder))


class Team:
    """A repository, and a router's apt with nothing else."""

    def __init__(self, keys: Path, folder: Path) -> None:
        self.keys, self.folder = keys, folder
        self.repository = folder / "repository"
        self.key = folder / "key.asc"
        for part in ("lists/partial", "cache/archives/partial", "etc"):
            (folder / part).mkdir(parents=True)
        (folder / "status").touch()

    def publish(self, version: str, key: str = "team") -> None:
        script = ROOT / "packaging" / "build-apt-repo"
        done = run(script, package(self.folder, version), self.repository, key, GNUPGHOME=str(self.keys))
        assert done.returncode == 0, done.stderr

    def trust(self) -> None:
        self.key.write_text((self.repository / "nftsync.asc").read_text())

    def apt(self, address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        source = self.folder / "etc" / "nftsync.list"
        source.write_text(f"deb [signed-by={self.key}] {address} ./\n")
        options = {
            "Dir::Etc::SourceList": source, "Dir::Etc::SourceParts": "/dev/null", "Dir::Etc::Parts": "/dev/null",
            "Dir::State::Lists": self.folder / "lists", "Dir::State::Status": self.folder / "status",
            "Dir::Cache": self.folder / "cache", "APT::Sandbox::User": "root", "Acquire::http::Proxy": "DIRECT",
            "APT::Update::Error-Mode": "any",
        }  # fmt: skip
        given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return run("apt-get", *given, *arguments)

    def newest(self, address: str) -> str:
        """The version that apt would install."""
        updated = self.apt(address, "update")
        assert updated.returncode == 0, updated.stderr
        done = self.apt(address, "install", "--simulate", "nftsync")
        assert done.returncode == 0, done.stderr
        return next(line.split()[2].lstrip("(") for line in done.stdout.splitlines() if line.startswith("Inst nftsync"))


@pytest.fixture
def team(keys: Path, tmp_path: Path) -> Team:
    made = Team(keys, tmp_path)
    made.publish("1.0")
    made.trust()
    return made


def test_apt_takes_the_newest_package_from_a_folder(team: Team) -> None:
    address = f"file:{team.repository}"
    assert team.newest(address) == "1.0"
    team.publish("1.1")
    assert team.newest(address) == "1.1"
    team.publish("1.0.5")
    assert team.newest(address) == "1.1"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Says nothing of requests."""

    def log_message(self, *_: object) -> None:
        """To nobody."""


def test_apt_takes_it_over_http(team: Team) -> None:
    handler = functools.partial(Quiet, directory=str(team.repository))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            assert team.newest(f"http://127.0.0.1:{server.server_port}") == "1.0"
        finally:
            server.shutdown()
            serving.join()


@pytest.mark.parametrize("name", ["Packages", "InRelease"])
def test_apt_refuses_a_repository_that_was_changed(team: Team, name: str) -> None:
    path = team.repository / name
    for each in ("Packages.gz", "Release.gpg"):  # it would fall back to them
        (team.repository / each).unlink()
    path.write_text(path.read_text().replace("a", "b"))
    assert team.apt(f"file:{team.repository}", "update").returncode != 0


def test_apt_refuses_what_another_key_signed(team: Team) -> None:
    team.publish("1.1", key="somebody")
    done = team.apt(f"file:{team.repository}", "update")
    assert done.returncode != 0
    assert "not signed" in done.stderr or "NO_PUBKEY" in done.stderr


def test_without_a_key_of_ones_own_one_is_made_once_and_kept(tmp_path: Path) -> None:
    copy = tmp_path / "packaging"
    copy.mkdir()
    script = copy / "build-apt-repo"
    script.write_text((ROOT / "packaging" / "build-apt-repo").read_text())
    deb, exported = package(tmp_path, "1.0"), []
    for folder in (tmp_path / "first", tmp_path / "second"):
        done = run("sh", script, deb, folder)
        assert done.returncode == 0, done.stderr
        exported.append((folder / "nftsync.asc").read_bytes())
    assert exported[0] == exported[1]
    assert (tmp_path / ".apt-key").stat().st_mode & 0o777 == 0o700
    run("gpgconf", "--kill", "all", GNUPGHOME=str(tmp_path / ".apt-key"))
