"""Log lines as text, as JSON and in the journal: one each, with its fields, and harmless whatever they quote."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nftsync.daemon.logs import JsonFormatter, LogFormat, TextFormatter, configure
from tests.labtools import PATIENCE, needs_root
from tests.support import ROOT

FIELDS = {"kind": "Service", "namespace": "shop", "name": "web", "topic": "Opened", "router": "edge1"}
HOSTILE = [
    "two\nlines",
    "carriage\rreturn",
    "\x1b[2J\x1b]0;title\x07 escape",
    "\x00 nul, \x9b C1, \u202e right to left, \u2028 separator",
    '","level":"critical","message":"forged',
    "\nnftsync: ERROR: forged",
    "half a character \udc80",
]


def record(message: str, *args: object, level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("nftsync.test", level, __file__, 1, message, args, None)
    made.__dict__.update(extra)
    return made


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """configure() changes the whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


# --- text ---------------------------------------------------------------------------------------------


def test_a_text_line_is_level_message_and_fields() -> None:
    line = TextFormatter().format(record("opened %s", "192.0.2.1", level=logging.WARNING, fields=FIELDS))
    expected = "nftsync: WARNING: opened 192.0.2.1 kind=Service namespace=shop name=web topic=Opened router=edge1"
    assert line == expected
    assert TextFormatter().format(record("100 % plain: naïve 日本")) == "nftsync: INFO: 100 % plain: naïve 日本"


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_a_text_line_quotes_it_stays_one_line_and_steers_no_terminal(hostile: str) -> None:
    for line in (
        TextFormatter().format(record(hostile)),
        TextFormatter().format(record("%s", hostile)),
        TextFormatter().format(record("x", fields={"name": hostile})),
    ):
        assert line.isprintable()
        assert len(line.splitlines()) == 1
        assert line.startswith("nftsync: INFO: ")


def test_a_traceback_has_lines_of_its_own_that_are_harmless_too() -> None:
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        lines = TextFormatter().format(record("it broke", exc_info=sys.exc_info())).split("\n")
    assert lines[:2] == ["nftsync: INFO: it broke", "Traceback (most recent call last):"]
    assert lines[-1] == "ValueError: \\x1b[2J"


def test_fields_that_are_none_are_passed_over() -> None:
    assert TextFormatter().format(record("x", fields="not a dict")) == "nftsync: INFO: x"


# --- JSON ---------------------------------------------------------------------------------------------


def test_a_json_line_has_time_level_message_and_the_fields() -> None:
    made = record("opened %s", "192.0.2.1", level=logging.WARNING, fields=FIELDS)
    found = json.loads(JsonFormatter().format(made))
    time = datetime.fromisoformat(found.pop("time"))
    assert time.tzinfo is not None
    assert abs((time - datetime.fromtimestamp(made.created, UTC)).total_seconds()) < 0.002
    assert found == {"level": "warning", "message": "opened 192.0.2.1", **FIELDS}


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_a_json_line_quotes_it_stays_one_line_and_says_the_same(hostile: str) -> None:
    line = JsonFormatter().format(record("%s", hostile, fields={"name": hostile}))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == {**json.loads(line), "level": "info", "message": hostile, "name": hostile}


# --- the journal --------------------------------------------------------------------------------------


IN_JOURNAL = """
import json, logging, os, sys
from nftsync.daemon.logs import LogFormat, configure
stream = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{stream.st_dev}:{stream.st_ino}"
configure("debug", LogFormat.AUTO)
for message, args, level, fields in json.load(sys.stdin):
    logging.getLogger("nftsync.test").log(level, message, *args, extra={"fields": fields} if fields else {})
"""
# A mount namespace of its own has another /run, with a folder of the test's where journald's socket would be.
ELSEWHERE = (
    'mount -t tmpfs run /run && mkdir -p /run/systemd/journal && mount --bind "$0" /run/systemd/journal && exec "$@"'
)


class Journal:
    """A socket where journald's would be."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "socket"))
        self.socket.settimeout(PATIENCE)

    def log(self, message: str, *args: object, level: int = logging.INFO, fields: Any = None) -> str:
        """Log a line in a process whose stderr is the journal's; returns what that process wrote there itself."""
        command = ["unshare", "--mount", "sh", "-c", ELSEWHERE, str(self._folder), sys.executable, "-c", IN_JOURNAL]
        lines = json.dumps([(message, args, level, fields)])
        done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, cwd=ROOT)
        return done.stderr

    def entry(self) -> dict[str, str]:
        """The next datagram, read as https://systemd.io/JOURNAL_NATIVE_PROTOCOL says.

        Of a long one: the file that it comes with.
        """
        data, files, _, _ = socket.recv_fds(self.socket, 1 << 21, 1)
        found: dict[str, str] = {}
        for descriptor in files:
            with os.fdopen(descriptor, "rb") as file:
                file.seek(0)
                data = file.read()
        while data:
            line, _, data = data.partition(b"\n")
            key, equals, value = line.partition(b"=")
            if not equals:
                length = int.from_bytes(data[:8], "little")
                value, end, data = data[8 : 8 + length], data[8 + length : 9 + length], data[9 + length :]
                assert end == b"\n"
            assert key.decode() not in found, "a field stands twice"
            found[key.decode()] = value.decode()
        return found


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path)
    yield made
    made.socket.close()


@needs_root
def test_the_journal_gets_the_fields_as_its_own(journal: Journal) -> None:
    assert journal.log("opened %s", "192.0.2.1", level=logging.WARNING, fields=FIELDS) == ""
    assert journal.entry() == {
        "MESSAGE": "opened 192.0.2.1",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "nftsync",
        "NFTSYNC_KIND": "Service",
        "NFTSYNC_NAMESPACE": "shop",
        "NFTSYNC_NAME": "web",
        "NFTSYNC_TOPIC": "Opened",
        "NFTSYNC_ROUTER": "edge1",
    }


@needs_root
@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, "7"), (logging.INFO, "6"), (logging.WARNING, "4"), (logging.ERROR, "3"), (logging.CRITICAL, "2")],
)
def test_levels_are_syslogs_priorities(journal: Journal, level: int, priority: str) -> None:
    journal.log("x", level=level)
    assert journal.entry()["PRIORITY"] == priority


@needs_root
@pytest.mark.parametrize("hostile", [*HOSTILE[:-1], "x\nPRIORITY=0\nMESSAGE=forged\n"])
def test_nothing_in_a_message_starts_another_field(journal: Journal, hostile: str) -> None:
    journal.log("%s", hostile, fields={"name": hostile})
    assert journal.entry() == {
        "MESSAGE": hostile,
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "nftsync",
        "NFTSYNC_NAME": hostile,
    }


@needs_root
def test_half_a_character_loses_no_line(journal: Journal) -> None:
    journal.log("half \udc80")
    assert journal.entry()["MESSAGE"] == "half ?"


@needs_root
def test_a_line_of_a_megabyte_is_in_the_journal_whole(journal: Journal) -> None:
    assert journal.log("x" * (1 << 20), fields={"name": "web"}) == ""
    entry = journal.entry()
    assert (entry["MESSAGE"], entry["NFTSYNC_NAME"]) == ("x" * (1 << 20), "web")


@needs_root
def test_fields_that_are_none_are_passed_over_in_the_journal_too(journal: Journal) -> None:
    journal.log("x", fields="not a dict")
    assert journal.entry() == {"MESSAGE": "x", "PRIORITY": "6", "SYSLOG_IDENTIFIER": "nftsync"}


@needs_root
def test_a_journal_that_nobody_reads_and_a_record_that_can_not_be_written_out_stop_nobody(journal: Journal) -> None:
    """As with every other handler of logging: the mistake is shown with the line, the daemon goes on."""
    assert "--- Logging error ---" in journal.log("%d services", "three")
    journal.socket.close()
    shown = journal.log("opened %s", "192.0.2.1")
    assert "--- Logging error ---" in shown
    assert "opened %s" in shown
    assert "192.0.2.1" in shown


# --- which of them ------------------------------------------------------------------------------------

PROGRAM = """
import logging, os, sys
from nftsync.daemon.logs import LogFormat, configure
if sys.argv[2] == "here":
    stream = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{stream.st_dev}:{stream.st_ino}"
elif sys.argv[2] != "unset":
    os.environ["JOURNAL_STREAM"] = sys.argv[2]
configure("info", LogFormat(sys.argv[1]))
print(type(logging.getLogger().handlers[0]).__name__, type(logging.getLogger().handlers[0].formatter).__name__)
logging.getLogger("nftsync").debug("hidden")
if sys.argv[2] != "here" or sys.argv[1] != "auto":
    logging.getLogger("nftsync").info("shown", extra={"fields": {"name": "web"}})
"""


@pytest.mark.parametrize(
    ("chosen", "stream", "handler", "line"),
    [
        ("auto", "unset", "StreamHandler TextFormatter", "nftsync: INFO: shown name=web"),
        ("auto", "1:2", "StreamHandler TextFormatter", "nftsync: INFO: shown name=web"),
        ("auto", "nonsense", "StreamHandler TextFormatter", "nftsync: INFO: shown name=web"),
        ("auto", "here", "JournalHandler Formatter", ""),
        ("text", "here", "StreamHandler TextFormatter", "nftsync: INFO: shown name=web"),
        ("json", "here", "StreamHandler JsonFormatter", '"message": "shown", "name": "web"}'),
    ],
)
def test_auto_is_the_journal_exactly_where_stderr_is_its_stream(
    chosen: str, stream: str, handler: str, line: str
) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"}
    command = [sys.executable, "-c", PROGRAM, chosen, stream]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    assert done.stdout == f"{handler}\n"
    assert done.stderr.count("\n") == bool(line)
    assert done.stderr.rstrip("\n").endswith(line)
    assert "hidden" not in done.stderr


def test_the_level_counts(capsys: pytest.CaptureFixture[str]) -> None:
    configure("warning", LogFormat.JSON)
    logging.getLogger("nftsync").info("hidden")
    logging.getLogger("nftsync").warning("shown")
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == ["shown"]
