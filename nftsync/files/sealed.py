"""Small files that outlive the process: there is the old one, or the new one, or a fault that is noticed.

They are written by temporary file, fsync and rename, so that a crash leaves one of the two; a first line says which format it is
and what the rest adds up to, so that whatever a disk does to it afterwards is noticed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from nftsync import __version__
from nftsync.files.ownership import give_to_owner

_BY = " by version "


def replace_sealed(path: Path, text: str, form: int) -> None:
    """Write a file whole, sealed. form: its format's version. Raises OSError; then the old one stays."""
    replace_text(path, seal(text, form))


def replace_text(path: Path, text: str) -> None:
    """Write a file whole, readable for its owner alone. Raises OSError; then the old one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")  # one name: a process that is killed again and again leaves one such file
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            give_to_owner(file.fileno(), path.parent)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_sealed(path: Path, form: int) -> str:
    """What was written. Raises OSError; ValueError with a sentence if it is not what was written, or of another format."""
    head, _, text = read_text(path).partition("\n")
    if head.partition(_BY)[0] != _head(text, form):
        if head.startswith("# nftsync ") and not head.startswith(f"# nftsync {form} "):
            raise ValueError("it has the format of another version")
        raise ValueError("its checksum is wrong: it was torn or changed")
    return text


def read_text(path: Path, errors: str = "strict") -> str:
    """The text of a regular file: a pipe would keep the reader waiting. errors: see open(). Raises OSError or ValueError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, encoding="utf-8", errors=errors, newline="") as file:  # noqa: PTH123  # as it is, line ends too
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a file")
        return file.read()


def seal(text: str, form: int) -> str:
    """A text with the line that says what it adds up to."""
    return f"{_head(text, form)}{_BY}{__version__}\n{text}"


def _head(text: str, form: int) -> str:
    return f"# nftsync {form} sha256:{hashlib.sha256(text.encode()).hexdigest()}"
