"""The local chain's file, followed: a version that is bad never replaces one that was good."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nftsync.kernel import KernelError
from nftsync.localchain import LocalChainError, parse_local_chain


class LocalChainFile:
    """The operator's local chain: the body that is in use, followed from its file; a bad version never replaces a good one.

    fault: why the file's present version is not in use, "" if it is.
    """

    def __init__(self, path: Path, last_good: str) -> None:
        self.path = path
        self.body = last_good
        self.fault = ""
        self._last_good = last_good
        self._seen: object = None
        self._withdrawn = False

    def changed(self) -> bool:
        """Whether the file differs from the version that was looked at last."""
        return self._signature() != self._seen

    def refresh(self, rehearse: Callable[[str], None]) -> None:
        """Take up the file's new version, if there is one and `rehearse` does not raise KernelError."""
        signature = self._signature()
        if signature == self._seen:
            return
        self._seen = signature
        try:
            body = parse_local_chain(self.path.read_text(encoding="utf-8"))
            rehearse(body)
        except FileNotFoundError:
            body = ""
        except OSError as fault:
            self.fault = f"it can't be read: {fault.strerror}"
            return
        except (LocalChainError, UnicodeDecodeError, KernelError) as fault:
            self.fault = str(fault)
            return
        self.body, self.fault = body, ""

    def withdraw(self) -> bool:
        """Go back to the last good body; False if that is what is in use already."""
        if self.body == self._last_good:
            return False
        self.body, self.fault, self._withdrawn = self._last_good, "the kernel refused it", True
        return True

    def look_again(self) -> None:
        """Take up a withdrawn version with the next refresh: the kernel may have had another reason to refuse."""
        if self._withdrawn:
            self._seen, self._withdrawn = None, False

    def accepted(self) -> None:
        """The kernel took the body that is in use."""
        self._last_good = self.body

    def _signature(self) -> object:
        try:
            status = self.path.stat()
        except OSError as fault:
            return fault.errno
        return (status.st_mtime_ns, status.st_size, status.st_ino)
