"""The file of the operator's own rules, and whether it has changed."""

from __future__ import annotations

from pathlib import Path

from nftsync.ruleset.localchain import LocalChainError, parse_local_chain


def read_local_chain(path: Path) -> tuple[str | None, str]:
    """The body of the chain in the file, "" where there is no file; None and a sentence where it can't be used."""
    try:
        return parse_local_chain(path.read_text(encoding="utf-8")), ""
    except FileNotFoundError:
        return "", ""
    except OSError as error:
        return None, f"it can't be read: {error.strerror}"
    except (LocalChainError, UnicodeDecodeError) as error:
        return None, str(error)


def stamp(path: Path) -> object:
    """What changes when the file does."""
    try:
        status = path.stat()
    except OSError as error:
        return error.errno
    return status.st_mtime_ns, status.st_size, status.st_ino
