"""Golden cases: a folder of objects goes in, exactly this ruleset and these rejections come out of the real command.

tests/cases/<name>/ holds manifests, ruleset.nft (stdout), rejections.txt (stderr) and, where the
defaults are not meant, nftsync.toml, in which @CASE@ stands for the folder.
`pytest tests/cli/test_cases.py --regenerate` writes the output there; read the diff after it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, Netns

CASES = sorted(each for each in (ROOT / "tests/cases").iterdir() if each.is_dir())

pytestmark = pytest.mark.parametrize("case", CASES, ids=[each.name for each in CASES])


def render(case: Path, configuration: Path, *options: str) -> subprocess.CompletedProcess[str]:
    given = case / "nftsync.toml"
    text = given.read_text(encoding="utf-8") if given.exists() else f'paths.local_chain = "{case}/absent.nft"\n'
    configuration.write_text(text.replace("@CASE@", str(case)), encoding="utf-8")
    command = [sys.executable, "-m", "nftsync", "render", "--config", str(configuration), "--manifests", ".", *options]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=case, env=environment, capture_output=True, text=True, check=False)
    done.stderr = done.stderr.replace(str(case), "@CASE@")
    return done


def test_the_case_gives_exactly_this_ruleset_and_these_rejections(
    case: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    done = render(case, tmp_path / "nftsync.toml")
    if request.config.getoption("--regenerate"):
        (case / "ruleset.nft").write_text(done.stdout, encoding="utf-8")
        (case / "rejections.txt").write_text(done.stderr, encoding="utf-8")
    assert done.stdout == (case / "ruleset.nft").read_text(encoding="utf-8")
    assert done.stderr == (case / "rejections.txt").read_text(encoding="utf-8")
    assert done.returncode == 0


def test_strict_says_in_its_exit_status_whether_anything_was_rejected(case: Path, tmp_path: Path) -> None:
    done = render(case, tmp_path / "nftsync.toml", "--strict")
    assert done.returncode == bool((case / "rejections.txt").read_text(encoding="utf-8"))
    assert done.stdout == (case / "ruleset.nft").read_text(encoding="utf-8")


def test_the_ruleset_loads_into_a_kernel(case: Path, netns: Netns) -> None:
    netns.add_nics("enp1s0", "enp2s0")
    netns.nft((case / "ruleset.nft").read_text(encoding="utf-8"))
    assert netns.run(netns.kernel.read).ruleset.tables.keys() >= {"inet"}
