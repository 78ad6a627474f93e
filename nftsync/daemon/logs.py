"""Log lines as text for people, as fields for journald, and as JSON.

A record may carry `fields` that name its object, such as namespace, name and router.
Source: systemd.journal-fields(7).
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum


class LogFormat(StrEnum):
    """auto: the journal if stderr is connected to it, text otherwise."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


def configure(level: str, log_format: LogFormat) -> None:
    """Send all records of this process to stderr, or to the journal behind it."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if log_format is LogFormat.JSON:
        handler.setFormatter(JsonFormatter())
    elif log_format is LogFormat.AUTO and _stderr_is_the_journal():
        handler = _journal_handler()
    else:
        handler.setFormatter(TextFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def fields_of(record: logging.LogRecord) -> Mapping[str, str]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


class TextFormatter(logging.Formatter):
    """One line: level, message, then the fields as key=value. A traceback follows in its own lines.

    Escapes control characters, since they could steer a terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={value}" for key, value in fields_of(record).items())
        line = _printable(f"nftsync: {record.levelname}: {record.getMessage()}{fields}")
        if not record.exc_info:
            return line
        return "\n".join([line, *map(_printable, self.formatException(record.exc_info).split("\n"))])


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class JsonFormatter(logging.Formatter):
    """One JSON object in a line."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "message": super().format(record), **fields_of(record)}
        return json.dumps(line)


def _journal_handler() -> logging.Handler:
    """A handler that sends the message alone.

    The level becomes PRIORITY. A field such as `name` becomes NFTSYNC_NAME.
    """
    from systemd.journal import JournalHandler, sendv

    # systemd's handler passes PRIORITY by this name
    def send(message: str, /, *, PRIORITY: str, fields: object = None, **_: object) -> None:  # noqa: N803
        own = {f"NFTSYNC_{key.upper()}": value for key, value in fields.items()} if isinstance(fields, dict) else {}
        entry = {"MESSAGE": message, "PRIORITY": PRIORITY, "SYSLOG_IDENTIFIER": "nftsync", **own}
        sendv(*(f"{key}={value}".encode(errors="replace") for key, value in entry.items()))

    handler: logging.Handler = JournalHandler(sender_function=send)
    handler.setFormatter(logging.Formatter())
    return handler


def _stderr_is_the_journal() -> bool:
    """True if stderr is connected to the journal. Source: systemd.exec(5), $JOURNAL_STREAM."""
    try:
        stream = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"
