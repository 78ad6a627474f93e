"""Small files that outlive the process: a reader gets the old file, the new one, or an error.

A temporary file, fsync and rename write them, so a crash leaves the old or the new file.
The first line names the format and a checksum, so a reader notices later damage.
"""

import hashlib
import os
import stat
from pathlib import Path

from nftsync import __version__

_BY = " by version "


def replace_sealed(path: Path, text: str, form: int) -> None:
    """Replace a file, sealed. form: its format's version. Raises OSError; then the old file stays."""
    replace_text(path, f"{_head(text, form)}{_BY}{__version__}\n{text}")


def replace_text(path: Path, text: str) -> None:
    """Replace a file; only its owner can read it. Raises OSError; then the old file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")  # always the same name: repeated kills leave one such file
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


def give_to_owner(descriptor: int, folder: Path) -> None:
    """Give a new file to the owner of its folder, so that the daemon can use it. Raises OSError.

    Root writes into a folder of the daemon's user: `nftsync flush` or `nftsync boot` by hand.
    Use it only for a file that this process created: an older one may be a link to anywhere.
    """
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def read_sealed(path: Path, form: int) -> str:
    """The text of a sealed file.

    Raises OSError; ValueError with a sentence if the checksum or the format is wrong.
    """
    head, _, text = read_text(path).partition("\n")
    if head.partition(_BY)[0] != _head(text, form):
        if head.startswith("# nftsync ") and not head.startswith(f"# nftsync {form} "):
            raise ValueError("it has the format of another version")
        raise ValueError("its checksum is wrong: it is incomplete or changed")
    return text


def read_text(path: Path, errors: str = "strict") -> str:
    """The text of a regular file: a pipe would block the reader.

    errors: see open().  Raises OSError or ValueError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, encoding="utf-8", errors=errors, newline="") as file:  # noqa: PTH123  # keeps line ends
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a file")
        return file.read()


def _head(text: str, form: int) -> str:
    return f"# nftsync {form} sha256:{hashlib.sha256(text.encode()).hexdigest()}"
