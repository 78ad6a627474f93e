"""A test that sends a signal to its child hits it, even where the tests were started with that signal ignored."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT


def with_signals_ignored(*command: str) -> subprocess.CompletedProcess[str]:
    """As a script runs `COMMAND &`, or nohup(1)."""
    ignoring = ["sh", "-c", "trap '' HUP INT QUIT; exec \"$@\"", "sh", *command]
    return subprocess.run(ignoring, cwd=ROOT, capture_output=True, text=True, check=False)


def ignored_and_blocked(status: str) -> list[int]:
    """Two masks of signals: proc_pid_status(5), without 32 and 33, which are the C library's own (nptl(7))."""
    return [int(mask, 16) & ~(0b11 << 31) for mask in re.findall(r"^Sig(?:Ign|Blk):\s*(\w+)$", status, re.MULTILINE)]


def test_a_child_ignores_no_signal_and_blocks_none() -> None:
    child = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True)
    assert ignored_and_blocked(child.stdout) == [0, 0]


def test_nor_does_it_where_the_tests_were_started_with_signals_ignored() -> None:
    nested = f"{Path(__file__)}::{test_a_child_ignores_no_signal_and_blocks_none.__name__}"
    assert any(ignored_and_blocked(with_signals_ignored("cat", "/proc/self/status").stdout))
    done = with_signals_ignored(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", nested)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_the_tests_themselves_go_on_ignoring_what_they_were_told_to_ignore() -> None:
    program = (
        "import os, signal\n"
        "from tests.children import give_children_default_signals\n"
        "give_children_default_signals()\n"
        "for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):\n"
        "    os.kill(os.getpid(), number)\n"
        "print('here')\n"
    )
    done = with_signals_ignored(sys.executable, "-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "here\n", "")
