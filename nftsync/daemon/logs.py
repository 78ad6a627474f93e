"""Log lines for people, for journald with its own fields, and as JSON.

A record may carry `fields`: what it is about, such as namespace, name and router. Source: systemd.journal-fields(7),
https://systemd.io/JOURNAL_NATIVE_PROTOCOL.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum

_JOURNAL = "/run/systemd/journal/socket"
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))  # syslog(3)


class LogFormat(StrEnum):
    """auto: the journal if that is where stderr goes, text otherwise."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


def configure(level: str, chosen: LogFormat) -> None:
    """Send all records of this process to stderr, or to the journal behind it."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if chosen is LogFormat.JSON:
        handler.setFormatter(JsonFormatter())
    elif chosen is LogFormat.AUTO and _stderr_is_the_journal():
        handler = JournalHandler(_JOURNAL)
        handler.setFormatter(logging.Formatter())  # the message alone: level and the rest are fields
    else:
        handler.setFormatter(TextFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def fields_of(record: logging.LogRecord) -> Mapping[str, str]:
    found = getattr(record, "fields", None)
    return found if isinstance(found, dict) else {}


class TextFormatter(logging.Formatter):
    """One line: level, message, then the fields as key=value; a traceback follows in lines of its own.

    What could steer a terminal is escaped.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={value}" for key, value in fields_of(record).items())
        line = _printable(f"nftsync: {record.levelname}: {record.getMessage()}{fields}")
        if not record.exc_info:
            return line
        return "\n".join([line, *map(_printable, self.formatException(record.exc_info).split("\n"))])


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class JsonFormatter(logging.Formatter):
    """One JSON object in a line."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "message": super().format(record), **fields_of(record)}
        return json.dumps(line)


class JournalHandler(logging.Handler):
    """Datagrams of the journal's native protocol: the fields become NFTSYNC_NAMESPACE=… and so on."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._text = TextFormatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(record)
        except Exception:  # noqa: BLE001  # as every handler of logging does: a line that can't be written stops nobody
            self.handleError(record)

    def _send(self, record: logging.LogRecord) -> None:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        entry = {
            "MESSAGE": self.format(record),
            "PRIORITY": str(priority),
            "SYSLOG_IDENTIFIER": "nftsync",
            **{f"NFTSYNC_{key.upper()}": value for key, value in fields_of(record).items()},
        }
        datagram = b"".join(_encoded(key, value) for key, value in entry.items())
        try:
            self._socket.sendto(datagram, self._path)
        except OSError:  # a journal that restarts, or a line that is too long for a datagram
            sys.stderr.write(self._text.format(record) + "\n")

    def close(self) -> None:
        self._socket.close()
        super().close()


def _encoded(key: str, value: str) -> bytes:
    """With its length before it, so that a line break in it starts no other field."""
    content = value.encode(errors="replace")
    return key.encode() + b"\n" + len(content).to_bytes(8, "little") + content + b"\n"


def _stderr_is_the_journal() -> bool:
    """systemd.exec(5), $JOURNAL_STREAM."""
    try:
        stream = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"
