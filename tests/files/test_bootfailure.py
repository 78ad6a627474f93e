"""A failed boot unit leaves a mark, and the daemon tells of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nftsync.files.runtime import read_boot_failure


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "nftsync-boot-failed"


def test_without_a_mark_the_boot_unit_did_not_fail(tmp_path: Path) -> None:
    assert read_boot_failure(tmp_path / "nftsync") is None


@pytest.mark.parametrize(("loaded", "words"), [
    ("rules", "the second try loaded the rules"), ("base", "with only the base"), ("nothing", "without rules"),
])  # fmt: skip
def test_a_mark_says_why_it_failed_and_what_was_loaded_instead(mark: Path, loaded: str, words: str) -> None:
    mark.write_text(f"result=exit-code status=226 loaded={loaded}\n")
    failure = read_boot_failure(mark.with_name("nftsync"))
    assert failure
    assert failure.loaded == loaded
    assert "nftsync-boot.service failed (exit-code, status 226)" in str(failure)
    assert words in str(failure)


@pytest.mark.parametrize("content", [
    b"", b"result=exit-code status=226 loaded=everything\n", b"result=\x1b[2J status=226 loaded=base\n", b"\xff" * 5000,
    b"result=exit-code status=226 loaded=base\nresult=success status=0 loaded=rules\n",
])  # fmt: skip
def test_a_mark_that_can_not_be_read_is_no_good_news(mark: Path, content: bytes) -> None:
    mark.write_bytes(content)
    failure = read_boot_failure(mark.with_name("nftsync"))
    assert failure
    assert failure.loaded == "unknown"


def test_a_link_or_a_pipe_in_its_place_is_not_followed_and_holds_nobody_up(mark: Path) -> None:
    target = mark.with_name("target")
    target.write_text("result=exit-code status=226 loaded=rules\n")
    mark.symlink_to(target)
    failure = read_boot_failure(mark.with_name("nftsync"))
    assert failure
    assert failure.loaded == "unknown"
    mark.unlink()
    os.mkfifo(mark)
    failure = read_boot_failure(mark.with_name("nftsync"))
    assert failure
    assert failure.loaded == "unknown"
