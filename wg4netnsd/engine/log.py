"""An engine's stdout and stderr, copied to our log."""

from __future__ import annotations

import asyncio
import collections
import logging
from typing import Final

from wg4netnsd.aio.lines import LineReader
from wg4netnsd.aio.rate_window import RateWindow
from wg4netnsd.errors import redact
from wg4netnsd.systemd.journal import TunnelLog

log = logging.getLogger(__name__)

KEPT_LINES: Final = 3
MAX_LINES: Final = 100
"""Lines that an engine may log within WINDOW. wireguard-go can log a line for every packet, for
example if it can't be sent, and a line costs the daemon more time than the engine."""
WINDOW: Final = 10.0  # seconds

_CRASH_PREFIXES: Final = ("panic: ", "fatal error: ", "SIG")  # such as "SIGABRT: abort"

_LEVELS: Final = {
    "ERROR:": logging.WARNING,  # usually the network's fault, and the engine goes on
    "panic:": logging.ERROR,
    "fatal error:": logging.ERROR,
}


def level_of(line: str) -> int:
    """Return the log level for a line of wireguard-go's."""
    return next((level for word, level in _LEVELS.items() if line.startswith(word)), logging.INFO)


class EngineLog:
    """The engine's output: redacted, logged line by line, the last lines kept."""

    def __init__(self, pid: int, fd: int) -> None:
        """Take ownership of `fd`, the read end of the engine's stdout and stderr."""
        self.last_lines: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        self.log: logging.Logger | TunnelLog = log
        self._pid = pid
        self._panicked = False
        self._window = RateWindow(WINDOW)
        self.ended = LineReader(fd, self._on_line).ended

    def _on_line(self, line: str) -> None:
        # Go's traceback follows. It shows arguments, which may be keys.
        if self._panicked:
            return
        line = redact(line)
        self._panicked = line.startswith(_CRASH_PREFIXES)
        self.last_lines.append(line)
        self.write(level_of(line), line)

    def write(self, level: int, line: str) -> None:
        """Log a line, unless there were MAX_LINES already in this window."""
        lines = self._window.count()
        if lines <= MAX_LINES:
            self.log.log(level, "wireguard-go[%d]: %s", self._pid, line)
        elif lines == MAX_LINES + 1:
            silence = self._window.end - asyncio.get_running_loop().time()
            self.log.warning(
                "wireguard-go[%d]: too many lines: not logged for %.0f s", self._pid, silence
            )
