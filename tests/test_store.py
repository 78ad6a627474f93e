"""What outlives the process: whole or not at all, and nothing that stands in its place does harm."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nftsync.store import FORMAT, State, Store
from tests.support import ROOT

FULL = State(local_chain='\ttcp dport 9 accept # "ü"\n', ingress=7)


def file(folder: Path) -> Path:
    return folder / "state.json"


def test_what_was_saved_is_there_again(tmp_path: Path) -> None:
    Store(tmp_path).save(FULL)
    assert Store(tmp_path).state == FULL
    assert os.listdir(tmp_path) == ["state.json"], "no temporary file stays"


def test_without_a_file_there_is_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Store(tmp_path).state == State()
    assert Store(tmp_path / "absent").state == State()
    assert caplog.messages == []


def test_the_folder_is_made_when_it_is_needed(tmp_path: Path) -> None:
    Store(tmp_path / "a/b").save(FULL)
    assert Store(tmp_path / "a/b").state == FULL


def test_the_same_state_is_not_written_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(FULL)
    before = file(tmp_path).stat().st_ino
    store.save(FULL)
    Store(tmp_path).save(FULL)
    assert file(tmp_path).stat().st_ino == before


def test_after_a_reboot_no_qdisc_is_ours_since_the_index_may_be_another_nics(tmp_path: Path) -> None:
    boots = [tmp_path / "boot1", tmp_path / "boot2"]
    for boot in boots:
        boot.write_text(f"{boot.name}\n", encoding="ascii")
    Store(tmp_path, boots[0]).save(FULL)
    assert Store(tmp_path, boots[0]).state == FULL
    assert Store(tmp_path, boots[1]).state == State(local_chain=FULL.local_chain)


GOOD = json.dumps({"format": FORMAT, "boot": "", "local_chain": "", "ingress": None})

UNUSABLE = {
    "torn": GOOD[:20],
    "empty": "",
    "of another version": GOOD.replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'),
    "without a version": '{"local_chain": ""}',
    "with a key that nobody knows": GOOD.replace('"local_chain"', '"global_chain"'),
    "with a number as chain": GOOD.replace('""', "5"),
    "with a text as index": GOOD.replace("null", '"5"'),
    "with a boolean as index": GOOD.replace("null", "true"),
    "a list": "[]",
    "a text": '"x"',
    "a number": "5",
    "null": "null",
    "nested deeply": "[" * 100000,
    "binary": "\x00\x01",
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_file_that_can_not_be_used_is_reported_and_as_good_as_absent(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    file(tmp_path).write_text(UNUSABLE[kind])
    store = Store(tmp_path)
    assert store.state == State()
    assert len(caplog.messages) == 1
    assert "can't be used and is ignored" in caplog.messages[0]
    store.save(FULL)
    assert Store(tmp_path).state == FULL, "and it is replaced"


def test_bytes_that_are_no_text_and_a_folder_in_its_place_do_no_harm(tmp_path: Path) -> None:
    file(tmp_path).write_bytes(b"\xff\xfe")
    assert Store(tmp_path).state == State()
    file(tmp_path).unlink()
    file(tmp_path).mkdir()
    store = Store(tmp_path)
    store.save(FULL)
    assert store.state == FULL


def test_where_it_can_not_be_written_it_is_reported_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "state"
    folder.write_text("a file stands where the folder should")
    store = Store(folder)
    caplog.clear()
    store.save(FULL)
    assert store.state == FULL, "the process itself knows it"
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("; after a restart the state is not known")
    folder.unlink()
    store.save(FULL)
    assert Store(folder).state == FULL


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from nftsync.store import State, Store
store = Store(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
store.save(State("x" * 1000))
print(len(store.state.local_chain))
"""


def test_on_a_full_disk_the_old_state_stays_whole(tmp_path: Path) -> None:
    assert hasattr(resource, "RLIMIT_FSIZE")
    assert hasattr(signal, "SIGXFSZ")
    Store(tmp_path).save(FULL)
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1000\n"
    assert "after a restart the state is not known" in done.stderr
    assert Store(tmp_path).state == FULL
    assert os.listdir(tmp_path) == ["state.json"], "no temporary file stays"


def test_a_crash_before_the_rename_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path).save(FULL)

    def crash(_: Path, __: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).save(State("new"))
    monkeypatch.undo()
    assert Store(tmp_path).state == FULL
