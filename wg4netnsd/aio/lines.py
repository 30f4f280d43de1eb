"""Read lines from a child's pipe."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

MAX_LINE: Final = 4096
"""Bytes; longer lines are split."""

MAX_READ: Final = 4096
"""Bytes at a time: thousands of short lines at once would block the event loop."""


class LineReader:
    """A reader that calls `on_line` with each line. Owns `fd`, and closes it at end of file."""

    def __init__(self, fd: int, on_line: Callable[[str], None]) -> None:
        self.ended = asyncio.Event()
        self._fd = fd
        self._on_line = on_line
        self._buffer = b""
        asyncio.get_running_loop().add_reader(fd, self._on_readable)

    def _on_readable(self) -> None:
        data = os.read(self._fd, MAX_READ)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if not data or len(self._buffer) > MAX_LINE:
            lines.append(self._buffer)
            self._buffer = b""
        for line in lines:
            if line:
                self._on_line(line.decode(errors="replace"))
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self.ended.set()
