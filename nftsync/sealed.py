"""Small files that outlive the process: there is the old one, or the new one, or a fault that is noticed.

They are written by temporary file, fsync and rename, so that a crash leaves one of the two; a first line says which format it is
and what the rest adds up to, so that whatever a disk does to it afterwards is noticed.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def replace_sealed(path: Path, text: str, form: int) -> None:
    """Write a file whole, for its owner's eyes alone. form: its format's version. Raises OSError; then the old one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(seal(text, form))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_sealed(path: Path, form: int) -> str:
    """What was written. Raises OSError; ValueError with a sentence if it is not what was written, or of another format."""
    head, _, text = path.read_text(encoding="utf-8").partition("\n")
    if head != seal(text, form).partition("\n")[0]:
        if head.startswith("# nftsync ") and not head.startswith(f"# nftsync {form} "):
            raise ValueError("it has the format of another version")
        raise ValueError("its checksum is wrong: it was torn or changed")
    return text


def seal(text: str, form: int) -> str:
    """A text with the line that says what it adds up to."""
    return f"# nftsync {form} sha256:{hashlib.sha256(text.encode()).hexdigest()}\n{text}"
