"""The mark in /run: it tells the first run since the boot from the others, and what the last one left in the kernel."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nftsync.files.runtime import BootMark
from nftsync.files.sealed import replace_sealed
from nftsync.plan.memory import BootFacts
from tests.labtools import needs_root
from tests.support import ROOT

FACTS = BootFacts("0123456789abcdef fedcba9876543210", frozenset({7}))


def file(folder: Path) -> Path:
    return folder / "since-boot"


def test_the_first_run_since_the_boot_knows_nothing_and_the_next_one_what_was_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mark = BootMark(tmp_path)
    assert mark.facts is None
    mark.write(FACTS)
    assert mark.facts == BootMark(tmp_path).facts == FACTS
    assert os.listdir(tmp_path) == ["since-boot"], "no temporary file stays"
    assert file(tmp_path).stat().st_mode & 0o777 == 0o600
    assert caplog.messages == []


def test_that_nothing_is_known_is_not_the_same_as_no_run(tmp_path: Path) -> None:
    BootMark(tmp_path).write(BootFacts())
    assert BootMark(tmp_path).facts == BootFacts()


def test_the_same_facts_are_not_written_again(tmp_path: Path) -> None:
    mark = BootMark(tmp_path)
    mark.write(FACTS)
    before = file(tmp_path).stat().st_ino
    mark.write(FACTS)
    BootMark(tmp_path).write(FACTS)
    assert file(tmp_path).stat().st_ino == before


UNUSABLE = {
    "a list": "[]",
    "a text": '"x"',
    "null": "null",
    "empty": "",
    "without the rules": '{"ingress": null}',
    "rules that are no digests": '{"rules": "x", "ingress": null}',
    "a boolean as index": '{"rules": "", "ingress": true}',
    "nested deeply": "[" * 100_000,
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_mark_that_can_not_be_used_is_told_and_as_good_as_none(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    replace_sealed(file(tmp_path), UNUSABLE[kind], 1)
    mark = BootMark(tmp_path)
    assert mark.facts is None
    assert len(caplog.messages) == 1
    assert "since-boot can't be used: " in caplog.messages[0]
    assert caplog.messages[0].endswith("; this run counts as the first one since boot")
    mark.write(FACTS)
    assert BootMark(tmp_path).facts == FACTS


def test_a_mark_that_was_torn_anywhere_is_none(tmp_path: Path) -> None:
    BootMark(tmp_path).write(FACTS)
    whole = file(tmp_path).read_bytes()
    for length in range(len(whole)):
        file(tmp_path).write_bytes(whole[:length])
        assert BootMark(tmp_path).facts is None
    file(tmp_path).write_bytes(whole)
    assert BootMark(tmp_path).facts == FACTS


def test_a_pipe_or_a_folder_in_its_place_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(file(tmp_path))
    mark = BootMark(tmp_path)
    assert mark.facts is None
    assert "it is not a file" in caplog.messages[0]
    file(tmp_path).unlink()
    file(tmp_path).mkdir()
    mark = BootMark(tmp_path)
    mark.write(FACTS)
    assert mark.facts == FACTS


def test_a_folder_that_can_not_be_written_is_told_once_and_tried_again_with_every_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    folder.write_text("a file stands where the folder should")
    mark = BootMark(folder)
    caplog.clear()
    mark.write(FACTS)
    mark.write(FACTS)
    assert mark.facts == FACTS, "the process itself knows it"
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("; the next start counts as the first one since boot")
    folder.unlink()
    mark.write(FACTS)
    assert BootMark(folder).facts == FACTS


@needs_root
def test_what_root_writes_belongs_to_whom_the_folder_does(tmp_path: Path) -> None:
    os.chown(tmp_path, 4711, 4712)
    BootMark(tmp_path).write(FACTS)
    assert (file(tmp_path).stat().st_uid, file(tmp_path).stat().st_gid) == (4711, 4712)


WRITER = """
import sys
from itertools import count
from pathlib import Path
from nftsync.files.runtime import BootMark
from nftsync.plan.memory import BootFacts
mark = BootMark(Path(sys.argv[1]))
for number in count():
    mark.write(BootFacts(f"{number % 10}" * 64 + " " + f"{number % 10}" * 64, frozenset({number})))
    if number == 0:
        print(flush=True)
"""


def test_a_process_that_is_killed_at_any_instant_leaves_the_old_mark_or_the_new_one(tmp_path: Path) -> None:
    chosen = random.Random(7)
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout
            writer.stdout.readline()
            time.sleep(chosen.uniform(0, 0.02))
            writer.kill()
        facts = BootMark(tmp_path).facts
        assert facts is not None
        (ingress,) = facts.ingress
        assert set(facts.rules) == {str(ingress % 10), " "}
    assert set(os.listdir(tmp_path)) <= {"since-boot", ".since-boot.new"}, "no heap of temporary files"
