"""Network namespaces without names."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

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

    def add_nics(self, name: str, peer: str) -> None:
        """Add the two ends of a veth(4) cable. Raises LabError."""
        try:
            with self.entered(), IPRoute() as netlink:
                netlink.link("add", ifname=name, kind="veth", peer={"ifname": peer})
        except (NetlinkError, OSError) as error:
            raise LabError(f"cannot add the interface {name}: {error}") from error


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
