"""The Memory on disk: a crash costs its last record at most, and neither a slow disk nor a full one holds up a sync."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from threading import Event
from types import MappingProxyType

import pytest

from nftsync.files import journal as module
from nftsync.files import sealed
from nftsync.files.journal import Journal
from nftsync.objects.names import Name
from nftsync.objects.nft import NftSpec, Nics
from nftsync.objects.service import Port, Protocol, Service
from nftsync.plan.closed import Closing
from nftsync.plan.memory import Facts, Memory
from tests.labtools import eventually, needs_root
from tests.support import ROOT

FACTS = Facts(spec=NftSpec(Nics(("eth0",))), local_chain='\ttcp dport 9 accept # "ü"\n', as_of="2026-11-01T00:00:00Z")
KEY, OLD_KEY = "192.0.2.1 . tcp . 80", "2001:db8::1 . udp . 53"
LONG = 60.0  # seconds: longer than any test may take


def claim(name: str, port: int = 80) -> Service:
    address = ip_address("192.0.2.1")
    return Service(Name("shop", name), f"uid-{name}", "", "", (address,), (Port(Protocol.TCP, port),), None, None, ())


def memory_of(*services: Service, facts: Facts = FACTS, closed: Mapping[str, int] = MappingProxyType({})) -> Memory:
    return Memory({each.name: each for each in services}, facts, dict(closed))


def file(folder: Path) -> Path:
    return folder / "memory.journal"


def save(folder: Path, memory: Memory) -> None:
    journal = Journal(folder)
    journal.replace(memory)
    journal.finish()


def load(folder: Path) -> Memory:
    return Journal(folder).load()


def loaded(folder: Path) -> Journal:
    journal = Journal(folder)
    journal.load()
    return journal


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is waited for however busy this machine is."""
    monkeypatch.setattr(module, "GRACE", LONG)


@pytest.fixture
def written(tmp_path: Path, patient: None) -> list[Memory]:
    """A file of some records.

    Returns the memory after each of them: first after none, then after the first one, and so on.
    """
    web, other = claim("web"), claim("other", 443)
    save(tmp_path, memory_of(facts=FACTS))
    journal = loaded(tmp_path)
    later = replace(FACTS, local_chain="")
    journal.remember({web.name: web})
    journal.remember({other.name: other})
    journal.remember({}, later)
    journal.remember({web.name: None})
    journal.remember({web.name: claim("web", 8080)})
    journal.remember({}, None, Closing({OLD_KEY: 1700000000}))
    journal.remember({}, None, Closing({KEY: 1700000001}, [OLD_KEY]))
    journal.finish()
    return [
        Memory(),
        memory_of(),
        memory_of(web),
        memory_of(web, other),
        memory_of(web, other, facts=later),
        memory_of(other, facts=later),
        memory_of(other, claim("web", 8080), facts=later),
        memory_of(other, claim("web", 8080), facts=later, closed={OLD_KEY: 1700000000}),
        # one change of two records, each of which is right alone
        memory_of(other, claim("web", 8080), facts=later, closed={OLD_KEY: 1700000000, KEY: 1700000001}),
        memory_of(other, claim("web", 8080), facts=later, closed={KEY: 1700000001}),
    ]


# --- what is written is there again ---------------------------------------------------------------------


def test_what_was_remembered_is_there_again(tmp_path: Path) -> None:
    memory = memory_of(claim("web"), claim("other"), closed={KEY: 5, OLD_KEY: 3})
    save(tmp_path, memory)
    assert load(tmp_path) == memory
    assert list(load(tmp_path).closed) == [KEY, OLD_KEY], "the oldest is first"
    assert os.listdir(tmp_path) == ["memory.journal"], "no temporary file stays"
    assert file(tmp_path).stat().st_mode & 0o777 == 0o600


def test_a_change_is_appended_and_the_records_before_it_stay_as_they_are(tmp_path: Path, written: list[Memory]) -> None:
    before, inode = file(tmp_path).read_bytes(), file(tmp_path).stat().st_ino
    journal = loaded(tmp_path)
    journal.remember({Name("shop", "new"): claim("new")})
    assert file(tmp_path).read_bytes().startswith(before)
    assert file(tmp_path).read_bytes().count(b"\n") == before.count(b"\n") + 1
    assert file(tmp_path).stat().st_ino == inode
    assert Name("shop", "new") in load(tmp_path).services


def test_without_a_file_there_is_nothing_and_nothing_to_complain_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "absent")
    assert journal.load() == Memory()
    assert journal.kept
    assert journal.wants_all
    assert caplog.messages == []


def test_the_folder_is_made_when_it_is_needed(tmp_path: Path) -> None:
    save(tmp_path / "a/b", memory_of(claim("web")))
    assert load(tmp_path / "a/b") == memory_of(claim("web"))


def test_before_the_file_is_there_changes_wait_for_all_of_it(tmp_path: Path) -> None:
    journal = loaded(tmp_path)
    journal.remember({Name("shop", "web"): claim("web")})
    assert not file(tmp_path).exists()
    journal.replace(memory_of(claim("web")))
    journal.remember({Name("shop", "web"): claim("web", 443)})
    journal.remember({Name("shop", "other"): claim("other")})
    journal.finish()
    assert load(tmp_path) == memory_of(claim("web", 443), claim("other"))


@needs_root
def test_what_root_writes_belongs_to_whom_the_folder_does(tmp_path: Path) -> None:
    os.chown(tmp_path, 4711, 4712)
    save(tmp_path, memory_of())
    journal = loaded(tmp_path)
    journal.remember({Name("shop", "web"): claim("web")})
    journal.finish()
    status = file(tmp_path).stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (4711, 4712, 0o600)


# --- what a crash leaves ----------------------------------------------------------------------------------


def test_a_file_that_was_torn_anywhere_holds_what_came_before_and_goes_on_from_there(
    tmp_path: Path, written: list[Memory], caplog: pytest.LogCaptureFixture
) -> None:
    whole = file(tmp_path).read_bytes()
    head = whole.index(b"\n") + 1
    new = claim("new")
    for length in range(head, len(whole)):
        file(tmp_path).write_bytes(whole[:length])
        caplog.clear()
        journal = Journal(tmp_path)
        expected = written[whole[:length].count(b"\n") - 1]
        assert journal.load() == expected, length
        torn = whole[length - 1 : length] != b"\n"
        assert ["a crash tore off its end; the records before it count" in each for each in caplog.messages] == [
            True
        ] * torn
        journal.remember({new.name: new})
        journal.finish()
        assert load(tmp_path) == replace(expected, services=expected.services | {new.name: new}), length


def test_a_file_of_which_not_even_the_head_is_there_is_as_good_as_absent(
    tmp_path: Path, written: list[Memory], caplog: pytest.LogCaptureFixture
) -> None:
    whole = file(tmp_path).read_bytes()
    for length in range(whole.index(b"\n") + 1):
        file(tmp_path).write_bytes(whole[:length])
        caplog.clear()
        assert load(tmp_path) == Memory()
        assert [each.partition(": ")[2] for each in caplog.messages] == ["it is not a journal of this version"]


@pytest.mark.parametrize(
    "end", [b"\0" * 4096, b"\xff\xfe\x00\x9f", b"\n\n\n", b"7 0123456789abcdef [\n", b"\xff\n\0\n8"]
)
def test_whatever_a_power_cut_leaves_behind_the_last_record_is_cut_off(
    tmp_path: Path, written: list[Memory], end: bytes
) -> None:
    with file(tmp_path).open("ab") as torn:
        torn.write(end)
    journal = Journal(tmp_path)
    assert journal.load() == written[-1]
    journal.remember({Name("shop", "new"): claim("new")})
    journal.finish()
    assert end not in file(tmp_path).read_bytes()
    assert load(tmp_path).services == written[-1].services | {Name("shop", "new"): claim("new")}


def test_whichever_byte_is_changed_nothing_is_believed_but_what_was_written(
    tmp_path: Path, written: list[Memory]
) -> None:
    whole = file(tmp_path).read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    by, first = whole.index(b" by "), whole.index(b"\n")
    for place in range(len(whole)):
        file(tmp_path).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if by + 4 <= place < first:
            assert load(tmp_path) == written[-1], "which version wrote it does not matter"
        else:
            expected = written[-2] if place >= last else written[-3] if place == last - 1 else Memory()
            assert load(tmp_path) == expected, place


@pytest.mark.parametrize("damage", ["lost", "twice", "swapped", "from elsewhere"])
def test_where_records_are_missing_or_too_many_the_file_is_as_good_as_absent_until_it_is_replaced(
    tmp_path: Path, written: list[Memory], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    head, *records = file(tmp_path).read_text().splitlines(keepends=True)
    save(tmp_path / "other", memory_of(*map(claim, "abcdefgh")))
    foreign = file(tmp_path / "other").read_text().splitlines(keepends=True)
    records = {
        "lost": records[:2] + records[3:],
        "twice": [*records[:3], *records[2:]],
        "swapped": [*records[:2], records[3], records[2], *records[4:]],
        "from elsewhere": records + foreign[-1:],
    }[damage]
    file(tmp_path).write_text("".join([head, *records]))
    journal = Journal(tmp_path)
    assert journal.load() == Memory()
    assert len(caplog.messages) == 1
    assert "can't be used and is ignored: it is damaged before record" in caplog.messages[0]
    assert not journal.kept, "and the metric says so"
    assert journal.wants_all
    journal.replace(written[3])
    journal.finish()
    assert journal.kept
    assert load(tmp_path) == written[3]


UNUSABLE = {
    "empty": b"",
    "a text": b"hello\n",
    "another version": b"# nftsync memory 2 by version 9\n",
    "binary": b"\x00\x01\xff\n\n",
    "a record that this version does not write": b"",
    "a record of another shape": b"",
    "a record nested deeply": b"",
}
RECORDS = {
    "a record that this version does not write": '["pinhole",{}]',
    "a record of another shape": '["service",5]',
    "a record nested deeply": "[" * 100_000,
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_file_that_can_not_be_used_is_told_and_as_good_as_absent(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, memory_of(claim("web")))
    if kind in RECORDS:
        with file(tmp_path).open("a") as end:
            end.write(f"3 {module._checksum(3, RECORDS[kind])} {RECORDS[kind]}\n")
    else:
        file(tmp_path).write_bytes(UNUSABLE[kind])
    journal = Journal(tmp_path)
    assert journal.load() == Memory()
    assert len(caplog.messages) == 1
    assert "memory.journal can't be used and is ignored: " in caplog.messages[0]
    assert len(caplog.messages[0]) < 500
    assert not journal.kept
    journal.replace(memory_of())
    journal.finish()
    assert load(tmp_path) == memory_of()


def test_a_folder_or_a_pipe_in_its_place_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(file(tmp_path))
    assert load(tmp_path) == Memory()
    assert "it is not a file" in caplog.messages[0]
    file(tmp_path).unlink()
    file(tmp_path).mkdir()
    journal = Journal(tmp_path)
    assert journal.load() == Memory()
    journal.replace(memory_of())
    journal.finish()
    assert not journal.kept


WRITER = """
import sys
from pathlib import Path
from nftsync.files import journal as module
from tests.files.test_journal import claim
module.GRACE, module.SLACK = 60.0, 20_000
journal = module.Journal(Path(sys.argv[1]))
memory = journal.load()
number = memory.services[claim("web").name].ports[0].number
while True:
    number = number % 65_000 + 1
    journal.remember({claim("web").name: claim("web", number)})
    memory.services[claim("web").name] = claim("web", number)
    print(number, flush=True)
    if journal.wants_all:
        journal.replace(memory)
"""


def test_a_process_that_is_killed_at_any_instant_loses_no_record_that_it_waited_for(tmp_path: Path) -> None:
    chosen = random.Random(7)
    save(tmp_path, memory_of(claim("web", 1), claim("other")))
    for _ in range(15):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout
            said = writer.stdout.readline()
            time.sleep(chosen.uniform(0, 0.1))
            writer.kill()
            said += writer.stdout.read()
        done = int(said.rpartition("\n")[0].splitlines()[-1])
        memory = load(tmp_path)
        assert memory.services.keys() == {claim("web").name, claim("other").name}
        number = memory.services[claim("web").name].ports[0].number
        assert number in (done, done + 1), "the next one may be on its way"
        assert memory.facts == FACTS
    assert set(os.listdir(tmp_path)) <= {"memory.journal", ".memory.journal.new"}, "no heap of temporary files"


# --- compaction -------------------------------------------------------------------------------------------


def churned(journal: Journal, memory: Memory, times: int) -> None:
    for number in range(times):
        memory.services[Name("shop", "web")] = claim("web", number % 65_000 + 1)
        journal.remember({Name("shop", "web"): memory.services[Name("shop", "web")]})


def test_a_file_that_is_mostly_history_is_written_anew_and_says_the_same(
    tmp_path: Path, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLACK", 1000)
    memory = memory_of(claim("web"), claim("other"))
    save(tmp_path, memory)
    compact = file(tmp_path).stat().st_size
    journal = loaded(tmp_path)
    assert not journal.wants_all
    while not journal.wants_all:
        churned(journal, memory, 5)
    assert 2 * compact < file(tmp_path).stat().st_size < 4 * compact + 2000
    journal.replace(memory)
    churned(journal, memory, 3)
    journal.finish()
    assert not journal.wants_all
    assert file(tmp_path).stat().st_size < 2 * compact + 1000
    assert load(tmp_path) == memory


def test_history_that_several_processes_have_left_counts_together(
    tmp_path: Path, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLACK", 5000)
    memory = memory_of(claim("web"), claim("other"))
    save(tmp_path, memory)
    for _ in range(20):
        journal = loaded(tmp_path)
        churned(journal, memory, 10)
        journal.finish()
    assert loaded(tmp_path).wants_all


def test_a_crash_before_the_rename_leaves_the_old_file_whole(
    tmp_path: Path, written: list[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(_: Path, __: Path) -> Path:
        raise OSError(5, "Input/output error")

    journal = loaded(tmp_path)
    monkeypatch.setattr(Path, "replace", crash)
    journal.replace(memory_of(claim("new")))
    journal.finish()
    monkeypatch.undo()
    assert not journal.kept
    assert load(tmp_path) == written[-1]


# --- a disk that takes nothing, or takes its time -----------------------------------------------------------


class Disk:
    """Calls of the system that can be made to fail or to hang."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.going_on = Event()
        self.going_on.set()
        self.full_after: int | None = None  # bytes until nothing more is taken
        self.broken = False  # whether nothing gets to the disk
        self._write, self._fsync, self._replace = os.write, os.fsync, sealed.replace_text
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(module, "replace_text", self.replace)

    def write(self, descriptor: int, content: bytes) -> int:
        self._called("write")
        if self.full_after is not None:
            content = content[: self.full_after]
            self.full_after -= len(content)
            if not content:
                raise OSError(28, "No space left on device")
        return self._write(descriptor, content)

    def fsync(self, descriptor: int) -> None:
        self._called("fsync")
        if self.broken:
            raise OSError(5, "Input/output error")
        self._fsync(descriptor)

    def replace(self, path: Path, text: str) -> None:
        self._called("replace")
        if self.full_after is not None:
            raise OSError(28, "No space left on device")
        self._replace(path, text)

    def _called(self, what: str) -> None:
        self.calls.append(what)
        assert self.going_on.wait(LONG)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk(monkeypatch)
    yield made
    made.going_on.set()


def test_a_record_that_a_full_disk_takes_in_part_is_taken_back_and_written_when_there_is_room(
    tmp_path: Path, written: list[Memory], disk: Disk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY", 0.01)
    journal = loaded(tmp_path)
    disk.full_after = 50
    journal.remember({Name("shop", "new"): claim("new")})
    assert not journal.kept
    assert load(tmp_path) == written[-1], "whoever boots now has what came before"
    caplog.clear()
    assert eventually(lambda: disk.calls.count("write") > 5), "it is tried again"
    assert caplog.messages == [], "and told once"
    disk.full_after = None
    journal.remember({Name("shop", "more"): claim("more")})
    assert eventually(lambda: journal.kept)
    journal.finish()
    assert load(tmp_path).services == written[-1].services | {each.name: each for each in (claim("new"), claim("more"))}


def test_a_folder_that_can_not_be_made_is_told_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY", 0.01)
    folder = tmp_path / "state"
    folder.write_text("a file stands where the folder should")
    journal = Journal(folder)
    journal.load()
    caplog.clear()
    journal.replace(memory_of(claim("web")))
    assert eventually(lambda: caplog.messages)
    journal.remember({Name("shop", "other"): claim("other")})
    folder.unlink()
    assert eventually(lambda: journal.kept)
    journal.finish()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("; after a restart or a reboot, nftsync would use older pinholes")
    assert load(folder) == memory_of(claim("web"), claim("other"))


def test_a_disk_that_takes_nothing_is_not_asked_with_every_change(
    tmp_path: Path, written: list[Memory], disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY", LONG)
    journal = loaded(tmp_path)
    disk.full_after = 0
    for number in range(1, 20):
        journal.remember({Name("shop", "web"): claim("web", number)})
    assert disk.calls == ["write"]
    disk.full_after = None
    journal.finish()
    assert disk.calls == ["write", "write", "fsync"], "the end of the process asks once more"
    assert load(tmp_path).services[Name("shop", "web")] == claim("web", 19)


def hangs(disk: Disk, what: str) -> Callable[[], bool]:
    return lambda: disk.calls[-1:] == [what]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_disk_that_hangs_holds_nobody_up_and_gets_everything_in_the_end(
    tmp_path: Path, written: list[Memory], disk: Disk, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 0.01)
    journal = loaded(tmp_path)
    disk.going_on.clear()
    if call == "replace":
        journal.replace(written[-1])
    elif call == "fsync":
        monkeypatch.setattr(os, "write", disk._write)
    journal.remember({Name("shop", "new"): claim("new")})
    assert eventually(hangs(disk, call))
    for number in range(1, 100):
        journal.remember({Name("shop", "web"): claim("web", number)})
    assert not disk.going_on.is_set(), "each change was let go while the disk still hung"
    assert disk.calls == [call], "which is asked for one thing at a time"
    assert journal.kept, "slow is not full"
    disk.going_on.set()
    journal.finish()
    assert load(tmp_path).services == written[-1].services | {
        Name("shop", "new"): claim("new"), Name("shop", "web"): claim("web", 99)
    }  # fmt: skip


def test_one_change_alone_waits_for_a_disk_that_hangs(
    tmp_path: Path, written: list[Memory], disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 0.01)
    journal, waits = loaded(tmp_path), list[float]()
    wait_for = journal._lock.wait_for

    def count(condition: Callable[[], bool], seconds: float | None = None) -> bool:
        if seconds == 0.01:
            waits.append(seconds)
        return wait_for(condition, seconds)

    monkeypatch.setattr(journal._lock, "wait_for", count)
    disk.going_on.clear()
    for number in range(1, 10):
        journal.remember({Name("shop", "web"): claim("web", number)})
    assert len(waits) == 1
    disk.going_on.set()
    assert eventually(lambda: load(tmp_path).services[Name("shop", "web")] == claim("web", 9))
    journal.remember({Name("shop", "web"): claim("web", 10)})
    assert len(waits) == 2, "and the first one after it has answered"
    journal.finish()


def test_the_end_of_the_process_does_not_wait_for_ever(
    tmp_path: Path, written: list[Memory], disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 0.01)
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    journal = loaded(tmp_path)
    disk.going_on.clear()
    journal.remember({Name("shop", "web"): claim("web", 443)})
    journal.finish()
    assert not disk.going_on.is_set()
    disk.going_on.set()
    assert journal._thread
    journal._thread.join(LONG)


def test_a_record_is_in_the_file_before_whoever_remembers_it_goes_on(
    tmp_path: Path, written: list[Memory], disk: Disk
) -> None:
    journal = loaded(tmp_path)
    for number in range(1, 50):
        journal.remember({Name("shop", "web"): claim("web", number)})
        assert load(tmp_path).services[Name("shop", "web")] == claim("web", number)
    assert disk.calls.count("write") == 49
    journal.finish()


def test_the_disk_itself_is_waited_for_every_few_seconds_and_at_the_end(
    tmp_path: Path, written: list[Memory], disk: Disk
) -> None:
    now = [0.0]
    journal = Journal(tmp_path, clock=lambda: now[0])
    journal.load()

    def changed(number: int) -> None:
        journal.remember({Name("shop", "web"): claim("web", number)})

    changed(1)
    assert eventually(lambda: disk.calls == ["write", "fsync"])
    for number in range(2, 5):
        changed(number)
        assert eventually(lambda writes=number - 1: disk.calls[2:] == ["write"] * writes)  # type: ignore[misc]
    now[0] = module.SYNC
    changed(5)
    # The clock can jump before or after the journal asks it about its last write.
    assert eventually(lambda: sorted(disk.calls[5:]) == ["fsync", "write"])
    changed(6)
    journal.finish()
    assert disk.calls[7:] == ["write", "fsync"]


def test_a_service_that_changes_without_end_makes_one_wait_for_the_disk_in_five_seconds(
    tmp_path: Path, written: list[Memory], disk: Disk
) -> None:
    now = [0.0]
    journal = Journal(tmp_path, clock=lambda: now[0])
    journal.load()
    for number in range(1200):
        now[0] = number / 20
        journal.remember({Name("shop", "web"): claim("web", 1 + number % 2)})
    journal.finish()
    assert disk.calls.count("fsync") <= 60 / module.SYNC + 1


def test_records_that_did_not_get_to_the_disk_are_written_anew(
    tmp_path: Path, written: list[Memory], disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fsync(2) the kernel forgets what it could not write, and the next one succeeds."""
    monkeypatch.setattr(module, "RETRY", 0.01)
    journal = loaded(tmp_path)
    disk.broken = True
    journal.remember({Name("shop", "web"): claim("web", 443)})
    assert eventually(lambda: not journal.kept)
    disk.broken = False
    assert journal.wants_all
    journal.replace(memory_of(claim("web", 443)))
    assert eventually(lambda: journal.kept)
    journal.finish()
    assert load(tmp_path) == memory_of(claim("web", 443))


@pytest.mark.parametrize("change", ["removed", "replaced", "a link"])
def test_a_file_that_somebody_changed_is_written_anew(
    tmp_path: Path, written: list[Memory], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY", 0.01)
    journal = loaded(tmp_path)
    file(tmp_path).rename(tmp_path / "aside")
    if change == "replaced":
        file(tmp_path).write_text("another\n")
    elif change == "a link":
        file(tmp_path).symlink_to("aside")
    journal.remember({Name("shop", "new"): claim("new")})
    assert eventually(lambda: journal.wants_all)
    assert not journal.kept
    journal.replace(memory_of(claim("new")))
    assert eventually(lambda: journal.kept)
    journal.finish()
    assert load(tmp_path) == memory_of(claim("new"))
    (tmp_path / "memory.journal").rename(tmp_path / "new")
    (tmp_path / "aside").rename(file(tmp_path))
    assert load(tmp_path) == written[-1], "nothing was written through the link"
