"""Network namespaces without names, and commands that run in them."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from nftsync.objects.names import NftsyncError

_P = ParamSpec("_P")
_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000


class LabError(NftsyncError):
    """The lab itself, not the firewall in it, does not work."""


class Namespace:
    """A network namespace. It lives until it is closed here and no process or socket uses it."""

    def __init__(self) -> None:
        with home():
            system("unshare", _CLONE_NEWNET)
            self._descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        """Release the namespace."""
        os.close(self._descriptor)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Move the calling thread into the namespace. New sockets and processes stay in it."""
        with home():
            system("setns", self._descriptor, _CLONE_NEWNET)
            yield

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function in the namespace."""
        with self.entered():
            return function(*args, **kwargs)

    def run(
        self, argv: Sequence[str], text: str = "", *, check: bool = True, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, `text` as its input. Raises LabError if it fails (unless check=False) or hangs."""
        try:
            with self.entered():
                done = subprocess.run(argv, input=text, check=False, capture_output=True, text=True, timeout=timeout)  # noqa: S603 - the caller's own
        except (OSError, subprocess.TimeoutExpired) as fault:
            raise LabError(f"cannot run {argv[0]}: {fault}") from fault
        if check and done.returncode:
            raise LabError(f"{' '.join(argv)} exited {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def ip(self, *commands: str) -> None:
        """Run commands of ip(8), e.g. "link set lo up". Raises LabError at the first that fails."""
        done = self.run(["ip", "-batch", "-"], "\n".join(commands), check=False)
        if done.returncode:
            raise LabError(f"ip: {done.stderr.strip()} in: {'; '.join(commands)}")


@contextmanager
def home() -> Iterator[None]:
    """Return the calling thread to its present network namespace at the end."""
    with open("/proc/thread-self/ns/net", "rb") as home:  # noqa: PTH123
        try:
            yield
        finally:
            system("setns", home.fileno(), _CLONE_NEWNET)


def system(call: str, *arguments: int) -> None:
    """A system call of namespaces(7); Python before 3.12 has none of them."""
    if getattr(ctypes.CDLL(None, use_errno=True), call)(*arguments):
        raise LabError(f"{call}: {os.strerror(ctypes.get_errno())} (this needs root)")
