"""Messages to systemd: ready, alive, reloading, stopping. None without $NOTIFY_SOCKET.

Source: sd_notify(3).
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Systemd:
    """The service manager behind $NOTIFY_SOCKET, if there is one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._ready = False
        self._status = ""
        self._failed = False

    def ready(self, status: str) -> None:
        """Say that the start or a reload is over.

        status: a sentence for `systemctl status`; sent again when it differs.
        """
        status = " ".join(status.split())  # systemd would read a second line as another message
        if self._ready and status == self._status:
            return
        if self._tell(f"STATUS={status}" if self._ready else f"READY=1\nSTATUS={status}"):
            self._ready, self._status = True, status

    def alive(self) -> None:
        """Say that the loop turns."""
        self._tell("WATCHDOG=1")

    def reloading(self) -> None:
        """Say that a reload began. It lasts until ready()."""
        self._ready = False
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, message: str) -> bool:
        """Send a message. False if systemd did not get it. Never waits: the firewall goes first."""
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.sendto(message.encode(), socket.MSG_DONTWAIT, self._address)
        except OSError as fault:
            if not self._failed:
                log.warning("nftsync can't reach systemd: %s; the firewall is not affected", fault.strerror)
            self._failed = True
            return False
        self._failed = False
        return True
