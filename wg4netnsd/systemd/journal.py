"""What is logged, and where to: the journal with its fields, else readable lines on stderr.

    journalctl --user-unit wg4netnsd TUNNEL=office
    journalctl --user-unit wg4netnsd NETNS="$(stat -Lc %i /proc/PID/ns/net)"
    journalctl --user-unit wg4netnsd PEER=<public key>

Whatever is written, tracebacks too, has passed redact(). A peer's whole public key therefore
stands in PEER= alone; the text has its beginning.
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

SOCKET: Final = "/run/systemd/journal/socket"  # systemd.journal-fields(7), the native protocol's

STATE_CHANGED: Final = "b73816d5ac814312b0de4245e8b6d992"
"""The MESSAGE_ID of a tunnel's transition: `journalctl MESSAGE_ID=…` shows them, and no others."""

_EXTRA_FIELDS: Final = ("MESSAGE_ID", "TUNNEL", "NETNS", "PEER")
_IDENTIFIER: Final = "wg4netnsd"
_SHORT_KEY: Final = 8  # characters

_PRIORITY: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}  # sd-daemon(3)
_ENGINE_LEVELS: Final = {
    "ERROR:": logging.WARNING,  # mostly the network's, and it goes on
    "panic:": logging.ERROR,
    "fatal error:": logging.ERROR,
}

log = logging.getLogger(__name__)

# ---------------------------------------------------------------- for those who log


class TunnelLog(logging.LoggerAdapter[logging.Logger]):
    """Says of each line which tunnel and namespace it is about, and of some which peer:

    tunnel_log.info("no answer", extra={"PEER": public_key})
    """

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[object, MutableMapping[str, Any]]:
        # The adapter of Python 3.11 drops the call's own.
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def tunnel_log(logger: logging.Logger, name: str, netns_id: tuple[int, int]) -> TunnelLog:
    """`netns_id` is (st_dev, st_ino); NETNS= is the inode, as lsns(8) and /proc show it."""
    return TunnelLog(logger, {"TUNNEL": name, "NETNS": str(netns_id[1])})


def engine_line_level(line: str) -> int:
    """How grave a line of wireguard-go's is."""
    return next(
        (level for word, level in _ENGINE_LEVELS.items() if line.startswith(word)), logging.INFO
    )


# ---------------------------------------------------------------- where it goes


def set_up(level: int) -> None:
    """From here on all that is logged goes to the journal if stderr does, else to stderr."""
    if not _is_journal(sys.stderr):
        handler: logging.Handler = _Stderr(_TerminalText())
    elif _is_listening(SOCKET):
        handler = _Journal()
    else:
        handler = _Stderr(_StreamText())
    logging.basicConfig(level=level, handlers=[handler])
    # Python's own would write what no redact() has seen.
    sys.excepthook = _log_uncaught
    threading.excepthook = sys.unraisablehook = _log_unraisable


class _Text(logging.Formatter):
    """What a record says, led by what it is about."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _prefix(record) + record.message
        return super().formatMessage(record)


class _TerminalText(_Text):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")


class _StreamText(_Text):
    """For the journal's stream, where a line is an entry and begins with its priority."""

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
    """Sends exactly the fields that are named here: a record's arguments are nobody's business."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Text())

    def emit(self, record: logging.LogRecord) -> None:
        # Not before the agent is forked: it and its forks stay small, and have no such socket.
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
    """`tunnel NAME: peer Abcd1234…: `, or as much of it as is known."""
    fields = vars(record)
    tunnel = f"tunnel {fields['TUNNEL']}: " if fields.get("TUNNEL") else ""
    peer = f"peer {fields['PEER'][:_SHORT_KEY]}…: " if fields.get("PEER") else ""
    return tunnel + peer


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    log.critical("a defect", exc_info=(kind, error, traceback))


def _log_unraisable(lost: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
    """Of a thread, or of a __del__: nobody above could have caught it."""
    if lost.exc_value:
        _log_uncaught(lost.exc_type, lost.exc_value, lost.exc_traceback)


def _report_lost_line(record: logging.LogRecord) -> None:
    """Instead of logging's own complaint, which shows the arguments as they are."""
    with contextlib.suppress(OSError, ValueError):
        what = f"{type(sys.exc_info()[1]).__name__}: {record.pathname}:{record.lineno}"
        sys.stderr.write(f"{_IDENTIFIER}: a line could not be logged: {what}\n")


def _is_journal(stream: TextIO) -> bool:
    """$JOURNAL_STREAM is the device and inode of the stream (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _is_listening(path: str) -> bool:
    """sd_journal_send() says nothing where the socket is missing, and lines would be lost."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
