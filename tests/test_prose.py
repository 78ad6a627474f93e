"""Sentences have a subject that acts: few begin a clause with "what", "who" or "whose" in the place of a noun.

    python -m tests.test_prose [PATH…]

prints the places, those files first that have the most of them for their words.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import ROOT

MOST = 3.0  # in a thousand words
PACKAGE = [ROOT / "nftsync"]
_READ = ("README.md", "CHANGELOG.md", "docs", "man", "etc", "systemd", "examples", "packaging/monitoring")
DOCUMENTS = [ROOT / name for name in _READ]
SUFFIXES = {".md", ".5", ".8", ".toml", ".nft", ".service", ".conf", ".yaml"}

_RELATIVE = re.compile(r"\b(?:who|whom|whose|whoever|what|whatever|whichever)\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]+(?:['’][a-z]+)?")
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_ENDS = re.compile(r"[.?!](?=\s|$)|\n\s*\n|\n\s*[-*|#]|$")


@dataclass(frozen=True)
class Passage:
    """Something that people read. line: where it begins."""

    kind: str
    path: Path
    line: int
    text: str

    @property
    def words(self) -> int:
        return len(_WORD.findall(self.text))

    def places(self) -> Iterator[tuple[int, str]]:
        """The line of each clause that begins so, and what follows. A question may begin so."""
        for found in _RELATIVE.finditer(self.text):
            end = _ENDS.search(self.text, found.end())
            if end is None or end[0] != "?":
                before = max(self.text.rfind("\n", 0, found.start()) + 1, found.start() - 40)
                yield (
                    self.line + self.text.count("\n", 0, found.start()),
                    self.text[before : found.end() + 40].replace("\n", " "),
                )


def passages(paths: Iterable[Path]) -> Iterator[Passage]:
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix == ".py":
                yield from _of_python(file, file.read_text())
            elif file.suffix in SUFFIXES and not file.name.endswith(".test.yaml"):
                yield Passage(
                    "documents", file, 1, _CODE.sub(lambda code: "\n" * code[0].count("\n"), file.read_text())
                )


def _of_python(path: Path, source: str) -> Iterator[Passage]:
    """Docstrings, comments, and string literals that are no single word."""
    tree, docstrings = ast.parse(source), set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            statement = node.body[0]
            assert isinstance(statement, ast.Expr)
            docstrings.add(id(statement.value))
            yield Passage("docstrings", path, statement.lineno, str(ast.literal_eval(statement.value)))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and " " in node.value
            and id(node) not in docstrings
        ):
            yield Passage("messages", path, node.lineno, node.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Passage("comments", path, token.start[0], token.string)


def rate(read: Iterable[Passage]) -> float:
    """Such clauses in a thousand words."""
    words, places = 0, 0
    for passage in read:
        words, places = words + passage.words, places + len(list(passage.places()))
    return 1000 * places / max(words, 1)


def worst(read: Iterable[Passage]) -> Iterator[str]:
    """The places, by file."""
    by_path = defaultdict[Path, list[Passage]](list)
    for passage in read:
        by_path[passage.path].append(passage)
    for path, those in sorted(by_path.items(), key=lambda item: -rate(item[1])):
        lines = [f"{path}:{line}: [{each.kind}] …{text}…" for each in those for line, text in each.places()]
        yield from [f"{path}: {rate(those):.1f} in 1,000 words", *lines, ""] if lines else []


@pytest.mark.parametrize("kind", [
    "docstrings",
    "comments",
    "messages",
    "documents",
])  # fmt: skip
def test_sentences_have_subjects(kind: str) -> None:
    read = [each for each in passages([*PACKAGE, *DOCUMENTS]) if each.kind == kind]
    assert sum(each.words for each in read) > 1000, "this looks at the wrong places"
    found = rate(read)
    assert found <= MOST, f"{found:.1f} in 1,000 words:\n" + "\n".join(worst(read))


@pytest.mark.parametrize(("text", "places"), [
    ("What is refused stays closed. Whoever asks is not root.", 2),
    ("What is a pinhole? Who may open one?\n", 0),
    ("A process that has ended leaves the rules. It says why.", 0),
    ("`what` is a word of the code.\n\n```\nwho asks\n```\n", 0),
    ("## What it does\n\nIs that so?", 1),
])  # fmt: skip
def test_a_question_and_code_are_no_riddles(text: str, places: int, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    (read,) = passages([tmp_path])
    assert len(list(read.places())) == places


def test_it_looks_into_docstrings_comments_and_messages(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        '"""What it is."""\n# who asks\nNAME = "whose"\nerror(f"{x}: what was {y} is")\n'
    )
    found = [(each.kind, line) for each in passages([tmp_path]) for line, _ in each.places()]
    assert found == [("docstrings", 1), ("messages", 4), ("comments", 2)]


def main(paths: list[Path]) -> None:
    read = list(passages(paths or [*PACKAGE, *DOCUMENTS]))
    print("\n".join(worst(read)))
    for kind in sorted({each.kind for each in read}):
        those = [each for each in read if each.kind == kind]
        print(f"{kind}: {rate(those):.1f} in 1,000 of {sum(each.words for each in those)} words")
    print(f"all: {rate(read):.1f}; at most {MOST:.0f} of each kind")


if __name__ == "__main__":
    main(list(map(Path, sys.argv[1:])))
