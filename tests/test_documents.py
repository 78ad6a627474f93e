"""The documents name files that exist, and their lines fit a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
WIDTH = 100

_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
_TEST = re.compile(r"`((?:\w+/)*\w+\.py)`")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    return {
        re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in _HEADING.findall(page.read_text())
    }


def long_lines(page: Path) -> Iterator[str]:
    """Tables and code blocks may be wider: they can't be wrapped."""
    prose = re.sub(r"^```.*?^```|^\|.*?$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    yield from (line for line in prose.splitlines() if len(line) > WIDTH)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for path, anchor in _LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_each_fault_names_tests_that_exist() -> None:
    named = _TEST.findall((ROOT / "docs/reliability.md").read_text())
    assert len(named) > 40
    assert [each for each in named if not (ROOT / "tests" / each).is_file()] == []


def test_each_fault_names_a_test() -> None:
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", (ROOT / "docs/reliability.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    assert [fault for fault, _, tests in rows if tests != "tests" and not _TEST.search(tests)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_line_of_prose_fits(page: Path) -> None:
    assert list(long_lines(page)) == []
