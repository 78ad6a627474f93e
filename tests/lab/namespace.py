"""Network namespaces for tests, with sockets, processes that end with them, and a TCP server."""

from __future__ import annotations

import selectors
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from nftsync.kernel import netns
from nftsync.kernel.netns import LabError

__all__ = ["PATIENCE", "LabError", "Namespace", "Socket", "TcpServer"]

Socket = socket.socket
PATIENCE = 5.0  # seconds until something that always happens is taken to have failed


class Namespace(netns.Namespace):
    """A network namespace. Its processes end with it."""

    def __init__(self) -> None:
        super().__init__()
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
            super().close()

    def socket(self, family: int, kind: int, protocol: int = 0) -> Socket:
        """Open a socket in the namespace; any thread can use it, from anywhere."""
        return self.call(Socket, family, kind, protocol)

    def run(
        self, argv: Sequence[str], text: str = "", *, check: bool = True, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, `text` as its input. Raises LabError if it fails (unless check=False) or hangs."""
        try:
            with self.entered():
                done = subprocess.run(argv, input=text, check=False, capture_output=True, text=True, timeout=timeout)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LabError(f"cannot run {argv[0]}: {error}") from error
        if check and done.returncode:
            raise LabError(f"{' '.join(argv)} exited {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def ip(self, *commands: str) -> None:
        """Run commands of ip(8), e.g. "link set lo up". Raises LabError at the first that fails."""
        done = self.run(["ip", "-batch", "-"], "\n".join(commands), check=False)
        if done.returncode:
            raise LabError(f"ip: {done.stderr.strip()} in: {'; '.join(commands)}")

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command; it is killed at the latest when the thread that called this ends, however it ends."""
        with self.entered():
            child = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *argv], text=True, **options)
        self._children.append(child)
        return child

    def nft(self, text: str) -> str:
        """Run commands of nft(8) in one transaction; returns their output. Raises LabError."""
        return self.run(["nft", "-f", "-"], text).stdout

    def sysctl(self, values: dict[str, int]) -> None:
        """Set sysctls, named as under /proc/sys/net."""
        with self.entered():
            for name, value in values.items():
                Path("/proc/sys/net", name).write_text(str(value))


class TcpServer:
    """A TCP server on one port of every address, IPv4 and IPv6, in one thread.

    It echoes the received bytes or drops them.
    """

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
        """Receive the waiting bytes. False at the connection's end."""
        try:
            data = connection.recv(65536)
            self.received += len(data)
            if self._echo:
                connection.sendall(data)
        except OSError:  # it was reset, or the client does not read its echo
            return False
        return bool(data)
