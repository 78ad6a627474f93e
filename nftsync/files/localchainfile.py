"""The file of the local chain. Only the operator writes it; nftsync reads it and notices changes."""

from pathlib import Path

from nftsync.plan.snapshot import LocalChain
from nftsync.ruleset.localchain import LocalChainError, parse_local_chain


def read_local_chain(path: Path) -> LocalChain:
    """The chain in the file, without the last good one; an empty chain without a file."""
    try:
        body, line, column = parse_local_chain(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return LocalChain()
    except OSError as error:
        return LocalChain(None, f"it can't be read: {error.strerror}")
    except (LocalChainError, UnicodeDecodeError) as error:
        return LocalChain(None, str(error))
    return LocalChain(body, line=line, column=column)


def stamp(path: Path) -> object:
    """A value that changes when the file changes."""
    try:
        status = path.stat()
    except OSError as error:
        return error.errno
    return status.st_mtime_ns, status.st_size, status.st_ino
