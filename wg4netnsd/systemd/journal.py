"""Logging: to the journal with its fields, or as readable lines to stderr.

    journalctl --user-unit wg4netnsd TUNNEL=office
    journalctl --user-unit wg4netnsd NETNS="$(stat -Lc %i /proc/PID/ns/net)"
    journalctl --user-unit wg4netnsd PEER=<public key>

All text, tracebacks included, passes redact(). A peer's whole public key is therefore only in
PEER=; the text has its first characters.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, Final, TextIO

from wg4netnsd.errors import redact
from wg4netnsd.text import safe

SOCKET: Final = "/run/systemd/journal/socket"  # of the journal's native protocol

STATE_CHANGED: Final = "b73816d5ac814312b0de4245e8b6d992"
"""The MESSAGE_ID of a tunnel's change of state, for `journalctl MESSAGE_ID=…`."""

_EXTRA_FIELDS: Final = ("MESSAGE_ID", "TUNNEL", "NETNS", "PEER")
_IDENTIFIER: Final = "wg4netnsd"
_SHORT_KEY: Final = 8  # characters

_PRIORITY: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}  # sd-daemon(3)

log = logging.getLogger(__name__)

# ---------------------------------------------------------------- loggers


class TunnelLog(logging.LoggerAdapter[logging.Logger]):
    """A logger that adds the tunnel and its namespace to each line; a line may add a peer:

    tunnel_log.info("no answer", extra={"PEER": public_key})
    """

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[object, MutableMapping[str, Any]]:
        # Python 3.11's adapter would drop the call's own extra.
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def tunnel_log(logger: logging.Logger, name: str, netns_id: tuple[int, int]) -> TunnelLog:
    """Return a logger for one tunnel.

    `netns_id` is (st_dev, st_ino). NETNS= is the inode, as shown by lsns(8) and /proc.
    """
    return TunnelLog(logger, {"TUNNEL": name, "NETNS": str(netns_id[1])})


# ---------------------------------------------------------------- destinations


def set_up(level: int) -> None:
    """Log to the journal if stderr leads there, else to stderr."""
    if not _is_journal(sys.stderr):
        handler: logging.Handler = _Stderr(_TerminalText())
    elif _is_listening(SOCKET):
        handler = _Journal()
    else:
        handler = _Stderr(_StreamText())
    logging.basicConfig(level=level, handlers=[handler])
    # Python's own hooks would write tracebacks that were not redacted.
    sys.excepthook = _log_uncaught
    threading.excepthook = sys.unraisablehook = _log_unraisable


class _Text(logging.Formatter):
    """A formatter that redacts, and begins with the tunnel and peer that the record is about."""

    def format(self, record: logging.LogRecord) -> str:
        return safe(redact(super().format(record)))

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _prefix(record) + record.message
        return super().formatMessage(record)


class _TerminalText(_Text):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")


class _StreamText(_Text):
    """A formatter for the journal's stream, where each line is an entry with a priority."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITY.get(record.levelname, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


class _Stderr(logging.StreamHandler[TextIO]):
    def __init__(self, text: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(text)

    def handleError(self, record: logging.LogRecord) -> None:
        _report_lost_line(record)


class _Journal(logging.Handler):
    """A handler that sends only the fields named here; a record's arguments may hold secrets."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Text())

    def emit(self, record: logging.LogRecord) -> None:
        # Not imported before the agent is forked, so that the agent stays small.
        import systemd.journal

        try:
            systemd.journal.sendv(*(f"{name}={value}" for name, value in self._fields(record)))
        except Exception:
            self.handleError(record)

    def _fields(self, record: logging.LogRecord) -> list[tuple[str, object]]:
        return [
            ("MESSAGE", self.format(record)),
            ("PRIORITY", _PRIORITY.get(record.levelname, 6)),
            ("SYSLOG_IDENTIFIER", _IDENTIFIER),
            ("CODE_FILE", record.pathname),
            ("CODE_LINE", record.lineno),
            ("CODE_FUNC", record.funcName),
            *((name, vars(record)[name]) for name in _EXTRA_FIELDS if vars(record).get(name)),
        ]

    def handleError(self, record: logging.LogRecord) -> None:
        _report_lost_line(record)


def _prefix(record: logging.LogRecord) -> str:
    """Return `tunnel NAME: peer Abcd1234…: `, or the part of it that the record has."""
    fields = vars(record)
    tunnel = f"tunnel {fields['TUNNEL']}: " if fields.get("TUNNEL") else ""
    peer = f"peer {fields['PEER'][:_SHORT_KEY]}…: " if fields.get("PEER") else ""
    return tunnel + peer


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    log.critical("internal error", exc_info=(kind, error, traceback))


def _log_unraisable(lost: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
    """Log an exception of a thread or a __del__, which no caller could catch."""
    if lost.exc_value:
        _log_uncaught(lost.exc_type, lost.exc_value, lost.exc_traceback)


def _report_lost_line(record: logging.LogRecord) -> None:
    """Say on stderr that a line was lost; logging's own report would show its arguments."""
    with contextlib.suppress(OSError, ValueError):
        what = f"{type(sys.exc_info()[1]).__name__}: {record.pathname}:{record.lineno}"
        sys.stderr.write(f"{_IDENTIFIER}: a line could not be logged: {what}\n")


def _is_journal(stream: TextIO) -> bool:
    """Compare with $JOURNAL_STREAM, the stream's device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _is_listening(path: str) -> bool:
    """Return whether the journal listens; if not, sd_journal_send() drops lines silently."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
