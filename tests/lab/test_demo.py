"""`make demo` shows the effect of the daemon on real packets.

It fails when a packet has the wrong fate, and leaves nothing behind.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.settings import Settings
from tests.lab import demo
from tests.lab.__main__ import main
from tests.lab.lab import CLIENT, Flood, Lab
from tests.labtools import PATIENCE, SERVICE6, Raw, eventually, needs_root, nft, service, write_manifests

pytestmark = needs_root

EXAMPLES = [f"172.30.254.{number} port 80" for number in range(1, 5)] + ["172.30.254.5 port 5201"]
LIMITS = {"172.30.254.2": 1.0, "172.30.254.3": 2.0, "172.30.254.5": 1.0}  # mbytes/second
SMALL = (
    nft(enable_bgp=False),
    service("web", "172.30.254.1", SERVICE6),
    service("mine", "172.30.254.2", sources=[f"{CLIENT[0]}/32"]),
    service("theirs", "172.30.254.3", sources=["192.0.2.0/24"]),
)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Manifests without a limit: no flood, so it is over soon."""
    return write_manifests(tmp_path / "manifests", *SMALL)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Floods of a third of a second."""
    flood = Lab.flood

    def shortened(lab: Lab, destination: str, port: int, **options: Any) -> Flood:
        return flood(lab, destination, port, **options | {"settle": 0.2, "seconds": 0.3})

    monkeypatch.setattr(Lab, "flood", shortened)


class Command:
    """The demo as a process in a session of its own, with a folder of its own for temporary files."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        self._interfaces = interfaces()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.lab", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
            | {"TMPDIR": str(self.temporary)},
        )

    def end(self) -> tuple[int, str, str]:
        """Its exit status and what it printed."""
        output, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output, errors

    def left(self) -> list[str]:
        """What is left of it: its processes (and so its namespaces, which only they hold), interfaces, files."""
        return [*session(self.process.pid), *(interfaces() - self._interfaces), *map(str, self.temporary.iterdir())]


def interfaces() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def session(leader: int) -> Iterator[str]:
    """The processes of a session: proc_pid_stat(5)."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name, _, fields = (process / "stat").read_text().rpartition(")")
        except OSError:  # it ended meanwhile
            continue
        if int(fields.split()[3]) == leader and fields.split()[0] != "Z":
            yield name


def section(text: str, title: str) -> str:
    """What stands under a title, up to the next blank line."""
    found = re.search(rf"^{title}.*\n((?:.+\n)*)", text, re.MULTILINE)
    assert found, text
    return found[1]


def test_it_works_twice_in_a_row_and_leaves_nothing_behind(small: Path, tmp_path: Path) -> None:
    shown = []
    for _ in range(2):
        command = Command(tmp_path, "--manifests", str(small))
        status, output, errors = command.end()
        assert status == 0, errors
        assert "Traceback" not in errors
        assert command.left() == []
        shown.append(re.sub(r"counter packets \d+ bytes \d+", "counter", output))
    assert shown[0] == shown[1]


def test_it_shows_what_passed_and_what_was_dropped_of_any_manifests(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--manifests", str(small)]) == 0
    output = capsys.readouterr().out
    passed, dropped = section(output, "passed"), section(output, "dropped")
    for probe in (
        "tcp 172.30.254.1 port 80",
        f"tcp {SERVICE6} port 80",
        "tcp 172.30.254.2 port 80",
        "tcp 198.51.100.1 port 22",
    ):
        assert f"{probe} " in passed
    for probe in (
        "tcp 172.30.254.3 port 80",
        "udp 172.30.254.1 port 80",
        "tcp 172.30.254.1 port 81",
        "tcp 198.51.100.1 port 179",
    ):
        assert f"{probe} " in dropped
    assert "wrong" not in output


@pytest.mark.usefixtures("quick")
def test_the_examples_show_the_five_services_the_rates_of_the_limited_ones_and_the_ruleset(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = ""

    def held_to_their_rates() -> bool:
        nonlocal output
        status, output = main([]), capsys.readouterr().out
        reached = re.findall(
            r"tcp (\S+) port .*: ([0-9.]+) mbytes/second, \d+ packets/second", section(output, "rates")
        )
        return status == 0 and {address: float(rate) for address, rate in reached} == pytest.approx(LIMITS, rel=0.15)

    assert eventually(held_to_their_rates), output  # a busy machine holds up a flood now and then
    passed = section(output, "passed")
    assert [probe for probe in EXAMPLES if f"tcp {probe} " not in passed] == []
    ruleset = output.partition("ruleset, as the router's kernel has it")[2]
    assert "table inet nftsync {" in ruleset
    assert "172.30.254.3 . tcp . 80 limit rate over 2 mbytes/second burst 512 kbytes" in ruleset


@pytest.mark.parametrize("passes", [True, False])
def test_a_packet_that_does_what_it_should_not_is_marked_and_the_status_tells(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, passes: bool
) -> None:
    expectations = demo._expectations

    def one_is_wrong(pinholes: Sequence[Pinhole], settings: Settings) -> Iterator[demo._Expectation]:
        first, *others = sorted(expectations(pinholes, settings), key=lambda each: each.passes is not passes)
        yield from (replace(first, passes=not passes), *others)

    monkeypatch.setattr(demo, "_expectations", one_is_wrong)
    assert main(["--manifests", str(small)]) == 1
    output, errors = capsys.readouterr()
    assert output.count("this is wrong") == 1
    assert "this is wrong" in section(output, "passed" if passes else "dropped")
    assert re.search(r"^demo: 1 packets? and 0 rates are wrong: see above", errors, re.MULTILINE)


@pytest.mark.parametrize(("objects", "words"), [((), "Nft resource"), (SMALL[1:], "Nft resource")])
def test_without_a_public_nic_it_says_in_a_line_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], objects: tuple[Raw, ...], words: str
) -> None:
    assert main(["--manifests", str(write_manifests(tmp_path / "manifests", *objects))]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert words in errors[0]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -9)]
)
def test_whatever_ends_it_nothing_goes_on_running(tmp_path: Path, number: signal.Signals, status: int) -> None:
    command = Command(tmp_path)
    assert command.process.stdout
    while "dropped" not in command.process.stdout.readline():
        assert command.process.poll() is None
    assert len(list(session(command.process.pid))) >= 2
    command.process.send_signal(number)
    command.process.stdout.close()
    assert command.process.wait(PATIENCE) == status
    assert eventually(lambda: not list(session(command.process.pid)))
    if number is signal.SIGINT:
        assert command.left() == []
