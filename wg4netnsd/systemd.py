"""What systemd is told: that we are ready, that we stop, and what to log."""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

import systemd.daemon

_PRIORITY: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}  # sd-daemon(3)


def notify_ready() -> None:
    """To be sent when calls are answered; sd_notify(3)."""
    systemd.daemon.notify("READY=1")


def notify_stopping(why: str) -> None:
    systemd.daemon.notify(f"STOPPING=1\nSTATUS={why}")


def log_to_stderr(level: int) -> None:
    """Readable lines; with sd-daemon(3)'s priorities where stderr is the journal's."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JournalFormatter() if _stderr_is_journal() else _TerminalFormatter())
    logging.basicConfig(level=level, handlers=[handler])


class _TerminalFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITY.get(record.levelname, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def _stderr_is_journal() -> bool:
    """$JOURNAL_STREAM is the device and inode of the stream (systemd.exec(5))."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
