"""The local chain's file, followed: a version that is bad never replaces one that was good."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nftsync.ruleset.localchain import LocalChainError, by_name, parse_local_chain

Rehearse = Callable[[str], str]  # why the kernel would not take a body, "" if it would


class LocalChainFile:
    """The operator's local chain: the body that is in use, followed from its file; a bad version never replaces a good one.

    fault: why the file's present version is not in use, "" if it is.  last_good: the last body of the file that the kernel took.
    """

    def __init__(self, path: Path, last_good: str) -> None:
        self.path = path
        self.body = self.last_good = last_good
        self.fault = ""
        self._seen: object = None
        self._refused = False  # by the kernel

    def changed(self) -> bool:
        """Whether the file differs from the version that was looked at last."""
        return self._signature() != self._seen

    def refresh(self, rehearse: Rehearse) -> None:
        """Take up the file's new version, if there is one and the kernel would take it."""
        signature = self._signature()
        if signature == self._seen:
            return
        self._seen = signature
        try:
            body = parse_local_chain(self.path.read_text(encoding="utf-8"))
            refusal = rehearse(body)
        except FileNotFoundError:
            body = refusal = ""
        except OSError as fault:
            self.fault = f"it can't be read: {fault.strerror}"
            return
        except (LocalChainError, UnicodeDecodeError) as fault:
            self.fault, self._refused = str(fault), False
            return
        self.fault, self._refused = refusal, bool(refusal)
        if not refusal:
            self.body = body

    def withdraw(self, rehearse: Rehearse, *, shut: bool) -> bool:
        """After a refusal: go one step back, to what the kernel may take; False if there is none left, or it was not its fault.

        shut: whether our table keeps the door shut. Where it does not, it has to be made, in the end without a local chain.
        """
        steps = [self.last_good, by_name(self.last_good), *([] if shut else [""])]
        if self.body in steps and not rehearse(self.body):
            return False
        while self.body in steps:
            steps.pop(0)
        if not steps:
            return False
        self.body, self.fault, self._refused = steps[0], self.fault or "the kernel refused it", True
        return True

    def look_again(self) -> None:
        """Take up a refused version with the next refresh: the kernel may have had another reason, or an interface is back."""
        if self._refused:
            self._seen = None

    def accepted(self) -> None:
        """The kernel took the body that is in use."""
        if not self.fault:
            self.last_good = self.body

    @property
    def instead(self) -> str:
        """What is in use in the place of a version with a fault, for people."""
        if self.body == self.last_good:
            return "the last good chain stays"
        return "the last good chain holds, its interfaces by their names" if self.body else "no local chain is in force"

    def _signature(self) -> object:
        try:
            status = self.path.stat()
        except OSError as fault:
            return fault.errno
        return (status.st_mtime_ns, status.st_size, status.st_ino)
