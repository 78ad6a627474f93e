"""The file of the local chain. Only the operator writes it; nftsync reads it and notices changes."""

from pathlib import Path

from nftsync.ruleset.localchain import LocalChainError, parse_local_chain


def read_local_chain(path: Path) -> tuple[str | None, str]:
    """The body of the chain and ""; an empty body without a file.

    If the file is not usable: None and a sentence.
    """
    try:
        return parse_local_chain(path.read_text(encoding="utf-8")), ""
    except FileNotFoundError:
        return "", ""
    except OSError as error:
        return None, f"it can't be read: {error.strerror}"
    except (LocalChainError, UnicodeDecodeError) as error:
        return None, str(error)


def stamp(path: Path) -> object:
    """A value that changes when the file changes."""
    try:
        status = path.stat()
    except OSError as error:
        return error.errno
    return status.st_mtime_ns, status.st_size, status.st_ino
