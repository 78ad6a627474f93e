"""Send numbered packets while something happens, and find out which arrive."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.lab import Lab
from tests.lab.namespace import Namespace
from tests.labtools import PATIENCE


@dataclass(frozen=True, slots=True)
class Tally:
    """The counts of packets to one destination. missing: numbers of lost packets, at most 20."""

    sent: int
    arrived: int
    missing: list[int]


class Traffic:
    """Numbered packets to every destination, from a process of its own, until `end`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        self._process = process
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._lines.extend, args=[process.stdout], daemon=True)
        self._reader.start()

    def through(self, destinations: int) -> bool:
        """Whether packets flow by now, and have reached so many destinations."""
        return len(self._lines) > destinations

    def end(self) -> list[Tally]:
        assert self._process.stdin
        self._process.stdin.close()
        self._reader.join(PATIENCE)
        return [Tally(*each) for each in json.loads(self._lines[-1])]


@contextmanager
def traffic(lab: Lab, destinations: Sequence[str], pause: float = 0) -> Iterator[Traffic]:
    """Traffic to "address port" each, `pause` seconds between the rounds.

    Forbidden packets have a listener, too: it hears them if they get through. The node listens on
    UDP 80 and 81, the router on 5000.
    """
    sockets = [listener(lab.node, port) for port in (80, 81)] + [listener(lab.router, 5000)]
    with traffic_from(lab.client, sockets, destinations, pause) as flowing:
        yield flowing


@contextmanager
def traffic_from(
    client: Namespace, sockets: Sequence[socket.socket], destinations: Sequence[str], pause: float = 0
) -> Iterator[Traffic]:
    """Traffic from a namespace.

    The sockets hear the packets that get through; they close afterwards.
    """
    numbers = [each.fileno() for each in sockets]
    argv = [sys.executable, str(Path(__file__).with_name("traffic.py")), str(pause), *map(str, numbers), *destinations]
    process = client.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=numbers, bufsize=1)
    try:
        yield Traffic(process)
    finally:
        process.kill()
        process.wait()
        for each in sockets:
            each.close()


def listener(where: Namespace, port: int) -> socket.socket:
    """A socket that hears a UDP port on all addresses of a namespace."""
    made: socket.socket = where.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE: room for all packets
    made.setblocking(False)
    made.bind(("::", port))
    return made
