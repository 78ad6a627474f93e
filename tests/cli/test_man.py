"""The man pages and the completion know every command, every option and every key of the configuration."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nftsync.cli import main as cli

ROOT = Path(__file__).parents[2]
MANUAL, KEYS = ROOT / "man" / "nftsync.8", ROOT / "man" / "nftsync.toml.5"
BASH, ZSH = ROOT / "packaging" / "completion" / "nftsync", ROOT / "packaging" / "completion" / "_nftsync"


def commands() -> dict[str, set[str]]:
    """Every command with its long options."""
    [subparsers] = [each for each in cli._parser()._actions if isinstance(each, argparse._SubParsersAction)]
    return {name: set(long_options(parser)) for name, parser in subparsers.choices.items()}


def long_options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from (each for each in action.option_strings if each.startswith("--"))


SHARED = set.intersection(*commands().values())


@pytest.mark.parametrize("page", [MANUAL, KEYS], ids=lambda page: page.name)
def test_a_man_page_is_well_formed(page: Path) -> None:
    done = subprocess.run(["mandoc", "-Tlint", "-Wwarning", page], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_manual_has_every_command_with_its_options_and_no_others() -> None:
    section = MANUAL.read_text().partition(".Sh COMMANDS\n")[2].partition(".Sh OPTIONS\n")[0]
    documented: dict[str, set[str]] = {}
    for entry in section.split(".It Ic ")[1:]:
        name = entry.split()[0]
        documented.setdefault(name, set()).update(f"--{word}" for word in re.findall(r"\bFl -([a-z-]+)", entry))
    assert documented == {name: options - SHARED for name, options in commands().items()}


def test_the_manual_has_every_option_that_all_commands_have() -> None:
    section = MANUAL.read_text().partition(".Sh OPTIONS\n")[2].partition(".Sh SIGNALS\n")[0]
    documented = {f"--{name}" for name in re.findall(r"^\.It Fl (?:h , )?-([a-z-]+)", section, re.MULTILINE)}
    assert documented == SHARED | {"--version"}


def test_the_manual_of_the_configuration_has_every_key_with_its_default_and_no_others() -> None:
    shipped = tomllib.loads((ROOT / "etc" / "nftsync.toml").read_text())
    documented: dict[str, Any] = {}
    section = ""
    for line in KEYS.read_text().splitlines():
        if line.startswith(".Ss ["):
            section = line.removeprefix(".Ss [").removesuffix("]") + "."
        elif found := re.fullmatch(r"\.It Ic (\w+) No = (?:(Qq)(?: Pa)? ?)?(.*)", line):
            documented[section + found[1]] = found[3] if found[2] else tomllib.loads(f"value = {found[3]}")["value"]
    assert documented == dict(flat(shipped))
    assert "\n.Ss [overrides.NAME]\n" in KEYS.read_text()
    assert "\n.It Ic public_nic\n" in KEYS.read_text()


def flat(table: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}.")
        else:
            yield path + key, value


def completed(*words: str) -> set[str]:
    """What bash offers after these words; the last one is begun only."""
    line = shlex.quote(" ".join(["nftsync", *words]))
    typed = f"COMP_WORDS=(nftsync {shlex.join(words)}) COMP_CWORD={len(words)} COMP_LINE={line}"
    asked = f'{typed}; COMP_POINT=${{#COMP_LINE}}; _nftsync; echo "${{COMPREPLY[@]}}"'
    script = f". /usr/share/bash-completion/bash_completion; . {BASH}; {asked}"
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def test_bash_completes_every_command() -> None:
    assert completed("") == {*commands(), "--help", "--version"}
    assert completed("st") == {"status"}


@pytest.mark.parametrize("command", sorted(commands()))
def test_bash_completes_every_option_of_a_command(command: str) -> None:
    assert completed(command, "-") == commands()[command]


def test_zsh_completes_every_command_with_its_options() -> None:
    assert subprocess.run(["zsh", "-n", ZSH], capture_output=True, text=True, check=False).stderr == ""
    text = ZSH.read_text()
    known = text.partition("local -a commands=(\n")[2].partition("\n)")[0]
    assert re.findall(r"^    '(\w+):", known, re.MULTILINE) == list(commands())
    shared = text.partition("local -a options=(\n")[2].partition("\n)")[0]
    assert set(re.findall(r"--[a-z-]+", shared)) == SHARED
    own: dict[str, set[str]] = {name: set() for name in commands()}
    for names, options in re.findall(r"^            ([\w |]+)\) options\+=\((.*)\) ;;$", text, re.MULTILINE):
        for name in names.split(" | "):
            own[name] = set(re.findall(r"--[a-z-]+", options.replace("$manifests", "--manifests")))
    assert own == {name: options - SHARED for name, options in commands().items()}
