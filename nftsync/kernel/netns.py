"""Network namespaces without names, what runs in them, and a TCP server for one."""

from __future__ import annotations

import ctypes
import os
import selectors
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

Socket = socket.socket
_P = ParamSpec("_P")
_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
PATIENCE = 5.0  # seconds until something that always happens is taken to have failed


class LabError(Exception):
    """The lab itself, not the firewall in it, does not work."""


class Namespace:
    """A network namespace. It lives as long as it is open here or processes or sockets are in it."""

    def __init__(self) -> None:
        with home():
            system("unshare", _CLONE_NEWNET)
            self._descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self._children: list[subprocess.Popen[str]] = []

    def close(self) -> None:
        """End the processes that `popen` started and let the namespace go."""
        try:
            for child in self._children:
                child.terminate()
            for child in self._children:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(PATIENCE)
        finally:
            for child in self._children:
                child.kill()
                child.wait()
            os.close(self._descriptor)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put the calling thread into the namespace. Sockets opened and processes started meanwhile stay in it."""
        with home():
            system("setns", self._descriptor, _CLONE_NEWNET)
            yield

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function in the namespace."""
        with self.entered():
            return function(*args, **kwargs)

    def socket(self, family: int, kind: int, protocol: int = 0) -> Socket:
        """Open a socket in the namespace; any thread can use it, from anywhere."""
        return self.call(Socket, family, kind, protocol)

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

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command; it is killed at the latest when the thread that called this ends, however it ends."""
        with self.entered():
            child = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *argv], text=True, **options)  # noqa: S603, S607 - the same
        self._children.append(child)
        return child

    def ip(self, *commands: str) -> None:
        """Run commands of ip(8), e.g. "link set lo up". Raises LabError at the first that fails."""
        done = self.run(["ip", "-batch", "-"], "\n".join(commands), check=False)
        if done.returncode:
            raise LabError(f"ip: {done.stderr.strip()} in: {'; '.join(commands)}")

    def nft(self, text: str) -> str:
        """Run commands of nft(8) in one transaction; what they print. Raises LabError."""
        return self.run(["nft", "-f", "-"], text).stdout

    def sysctl(self, values: dict[str, int]) -> None:
        """Set sysctls, named as under /proc/sys/net."""
        with self.entered():
            for name, value in values.items():
                Path("/proc/sys/net", name).write_text(str(value))


@contextmanager
def home() -> Iterator[None]:
    """Bring the calling thread back, afterwards, to the network namespace it is in."""
    with open("/proc/thread-self/ns/net", "rb") as home:  # noqa: PTH123
        try:
            yield
        finally:
            system("setns", home.fileno(), _CLONE_NEWNET)


def system(call: str, *arguments: int) -> None:
    """A system call of namespaces(7); Python before 3.12 has none of them."""
    if getattr(ctypes.CDLL(None, use_errno=True), call)(*arguments):
        raise LabError(f"{call}: {os.strerror(ctypes.get_errno())} (this needs root)")


class TcpServer:
    """A TCP server on one port of every address, IPv4 and IPv6; one thread. It echoes or only takes what it gets."""

    def __init__(self, namespace: Namespace, port: int, *, echo: bool = True) -> None:
        self.received = 0  # bytes, over all connections
        self._echo = echo
        self._listener = namespace.call(socket.create_server, ("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and close the connections that are still open."""
        self._stop.close()
        self._thread.join()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector, ExitStack() as opened:

            def watch(each: Socket) -> Socket:
                selector.register(opened.enter_context(each), selectors.EVENT_READ, each)
                return each

            watch(self._stopped)
            watch(self._listener)
            while True:
                ready: list[Socket] = [key.data for key, _ in selector.select()]
                if self._stopped in ready:
                    return
                for each in ready:
                    if each is self._listener:
                        watch(each.accept()[0]).settimeout(PATIENCE)
                    elif not self._take(each):
                        selector.unregister(each)
                        each.close()

    def _take(self, connection: Socket) -> bool:
        """Receive what has come. False at the connection's end."""
        try:
            data = connection.recv(65536)
            self.received += len(data)
            if self._echo:
                connection.sendall(data)
        except OSError:  # it was reset, or the client does not read its echo
            return False
        return bool(data)
