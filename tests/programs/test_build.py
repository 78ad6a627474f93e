"""The build script with a stub for Python: nothing is downloaded or compiled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.programs.cache import ProgramsError, build, metallb


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once the script has asked for a compiler. The stub fails."""
    stub, file = tmp_path / "bin" / "python3", tmp_path / "called"
    stub.parent.mkdir()
    stub.write_text(f"#!/bin/sh\ntouch {file}\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CI", "true")  # so that it builds for everybody
    monkeypatch.chdir(tmp_path)
    return file


def test_a_cache_folder_is_named_from_where_the_tests_run(called: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFTSYNC_TEST_CACHE", "cache")
    with pytest.raises(ProgramsError, match=f"see {called.parent}/cache/build.log"):
        build([metallb("0.0.0")])
    assert (called.parent / "cache" / "build.log").exists()
    metallb("0.0.0").mkdir()
    called.unlink()
    build([metallb("0.0.0")])
    assert not called.exists(), "what is there is not built again"


def test_what_a_killed_build_left_behind_is_not_used(called: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFTSYNC_TEST_CACHE", str(called.parent / "cache"))
    (called.parent / "cache" / "build" / "pypi" / "half").mkdir(parents=True)
    with pytest.raises(ProgramsError):
        build([metallb("0.0.0")])
    assert called.exists()
    assert not (called.parent / "cache" / "build").exists()
