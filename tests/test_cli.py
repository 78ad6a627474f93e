"""The command line: exit statuses, one clear line for every mistake, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftsync import __version__
from nftsync.cli import FAILED, WRONG, main
from tests.support import ROOT
from tests.test_ratelimit import near_misses

EXAMPLES = str(ROOT / "examples")
COMMANDS = ("run", "render", "ratelimit", "check", "flush", "demo")


@pytest.fixture
def plain(tmp_path: Path) -> str:
    """A configuration that does not depend on the machine."""
    file = tmp_path / "plain.toml"
    file.write_text(
        f'kubeconfig = "{tmp_path}/absent"\npaths.local_chain = "{tmp_path}/absent.nft"\npaths.state = "{tmp_path}/state"\n'
    )
    return str(file)


def nftsync(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nftsync", *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


def status(*arguments: str) -> int:
    """The exit status, in this process."""
    try:
        return main(arguments)
    except SystemExit as ended:  # argparse's way to say that the words were wrong
        return int(ended.code or 0)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"    {command}" in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(command, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: nftsync {command}")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--version") == 0
    assert capsys.readouterr().out == f"nftsync {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        (), ("rendr",), ("render", "--nonsense"), ("render", "--manifests"), ("ratelimit",), ("ratelimit", "--nonsense"),
        ("--log-level",), ("render", "--log-level", "loud"), ("run", "now"), ("flush", "--force"), ("check", "--config"), ("",),
    ],
)  # fmt: skip
def test_words_that_are_not_understood_end_with_status_2_and_the_usage(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*words) == WRONG
    assert "usage: nftsync" in capsys.readouterr().err


# --- render --------------------------------------------------------------------------------------------


def test_render_prints_the_ruleset_of_the_examples_and_nothing_else(plain: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("render", "--config", plain, "--manifests", EXAMPLES, "--strict") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.count("172.30.254.") == 12, "five pinholes, three buckets and what they dropped, and a pool"


def test_render_takes_several_paths(plain: str, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [f"{EXAMPLES}/{name}.yaml" for name in ("metallb", "nft", "services")]
    assert status("render", "--config", plain, "--manifests", *paths) == 0
    shown = capsys.readouterr().out
    status("render", "--config", plain, "--manifests", EXAMPLES)
    assert capsys.readouterr().out == shown


def test_render_needs_no_kernel_no_cluster_and_no_root(plain: str) -> None:
    code = (
        "import sys\n"
        "for name in ('nftables', 'kubernetes', 'pyroute2', 'prometheus_client', 'urllib3'): sys.modules[name] = None\n"
        "from nftsync.cli import main\n"
        f"sys.exit(main(['render', '--config', {plain!r}, '--manifests', {EXAMPLES!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


WRONG_INPUT = {
    "no manifests": (["render"], "render needs --manifests PATH…"),
    "a path that is not there": (["render", "--manifests", "{tmp}/absent"], "{tmp}/absent: there is no such file or folder"),
    "a name that is too long": (["render", "--manifests", "x" * 300], "File name too long"),
    "a configuration that is not there": (
        ["render", "--config", "{tmp}/absent.toml", "--manifests", "{tmp}"], "{tmp}/absent.toml: there is no such file",
    ),
    "a configuration that is a folder": (["render", "--config", "{tmp}", "--manifests", "{tmp}"], "{tmp}: Is a directory"),
    "a configuration with an unknown key": (
        ["render", "--config", "{tmp}/bad.toml", "--manifests", "{tmp}"], "{tmp}/bad.toml: kubeconfg = 'x': there is no such key",
    ),
    "flush with a bad configuration": (["flush", "--config", "{tmp}/bad.toml"], "{tmp}/bad.toml: kubeconfg = 'x'"),
    "run with a bad configuration": (["run", "--config", "{tmp}/bad.toml"], "{tmp}/bad.toml: kubeconfg = 'x'"),
    "run with manifests that are not there": (
        ["run", "--once", "--config", "{tmp}/plain.toml", "--manifests", "{tmp}/absent"],
        "{tmp}/absent: there is no such file or folder",
    ),
    "a limit that is none": (["ratelimit", "fast"], "'fast' is not a rate limit"),
    "a limit that starts with a dash": (["ratelimit", "--", "-5/second"], "'-5/second' has a negative number"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG_INPUT)
def test_a_mistake_is_one_clear_line_and_status_2(
    mistake: str, plain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plain
    (tmp_path / "bad.toml").write_text("kubeconfg = 'x'")
    words, line = WRONG_INPUT[mistake]
    assert status(*(word.replace("{tmp}", str(tmp_path)) for word in words)) == WRONG
    shown = capsys.readouterr()
    assert shown.out == ""
    assert line.replace("{tmp}", str(tmp_path)) in shown.err
    assert shown.err.startswith("nftsync: ")
    assert shown.err.count("\n") == 1


def test_a_configuration_that_may_not_be_read_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "nftsync.toml"
    file.write_text("")
    file.chmod(0)
    tmp_path.chmod(0o755)
    code = "import os\nos.setuid(65534)\nfrom nftsync.cli import main\n"
    code += f"main(['render', '--config', {str(file)!r}, '--manifests', '.'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("nftsync: ")
    assert done.stderr.endswith(": Permission denied\n")


def test_run_without_a_kubeconfig_is_one_line_and_status_1(plain: str, tmp_path: Path) -> None:
    done = nftsync("run", "--once", "--config", plain)
    assert done.returncode == FAILED
    assert done.stderr.startswith("nftsync: ")
    assert f"{tmp_path}/absent" in done.stderr
    assert done.stderr.count("\n") == 1


def test_unreadable_yaml_is_a_rejection_and_the_rest_is_rendered(
    plain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "bad.yaml").write_text("a: [\n")
    (folder / "good.yaml").write_text((ROOT / "examples/services.yaml").read_text())
    (folder / "nft.yaml").write_text((ROOT / "examples/nft.yaml").read_text())
    for options, expected in (((), 0), (("--strict",), FAILED)):
        assert status("render", "--config", plain, "--manifests", str(folder), *options) == expected
        shown = capsys.readouterr()
        assert "172.30.254.5 . tcp . 5201" in shown.out
        assert shown.err.startswith(f"File {folder}/bad.yaml: unreadable: line 2: ")
        assert shown.err.count("\n") == 1


def test_a_local_chain_that_can_not_be_read_is_a_rejection(plain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "absent.nft").write_bytes(b"\xff")
    assert status("render", "--config", plain, "--manifests", EXAMPLES) == 0
    assert capsys.readouterr().err.startswith(f"File {tmp_path}/absent.nft: invalid_local_chain: ")


def test_a_reader_that_has_seen_enough_is_no_reason_for_a_traceback(plain: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = nftsync("render", "--config", plain, "--manifests", EXAMPLES, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (FAILED, "")


def test_a_full_disk_is_one_line(plain: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = nftsync("render", "--config", plain, "--manifests", EXAMPLES, stdout=full.fileno())
    assert done.returncode == FAILED
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr


def test_a_terminal_that_knows_only_ascii_is_no_reason_for_a_traceback(plain: str, tmp_path: Path) -> None:
    (tmp_path / "absent.nft").write_text('chain local-chain {\n\taccept comment "Überwachung"\n}\n', encoding="utf-8")
    command = [sys.executable, "-m", "nftsync", "render", "--config", plain, "--manifests", EXAMPLES]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0
    assert 'comment "Überwachung"'.encode() in done.stdout, "what nft is to load is UTF-8 everywhere"


# --- ratelimit -----------------------------------------------------------------------------------------


def test_ratelimit_prints_the_normalised_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("ratelimit", "2048 kbytes / second burst 512 kbytes") == 0
    assert capsys.readouterr() == ("2 mbytes/second burst 512 kbytes\n", "")


def test_ratelimit_takes_bytes_that_are_no_text_for_what_they_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nftsync", "ratelimit", b"\xff/second"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == WRONG
    assert done.stderr.startswith(rb"nftsync: '\udcff/second' is not a rate limit; right is e.g.")


@given(st.text() | near_misses)
def test_whatever_is_asked_about_a_limit_is_answered_on_one_line(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        found = status("ratelimit", "--", text)
    assert found in (0, WRONG)
    assert len(lines) == 1
    assert lines[0].isprintable()
