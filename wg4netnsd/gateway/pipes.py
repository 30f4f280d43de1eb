"""Pipes for splice(2), shared by all relays: one holds a pipe only while it holds bytes in it.

So a connection that waits costs no pipe. The kernel counts a user's pipes by pages
(pipe-user-pages-soft, 64 MiB): beyond that, each new pipe, in any program, has two pages.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final, NamedTuple

SIZE: Final = 256 << 10
"""Bytes. On loopback, relaying costs 0.16 CPU-s/GB with it, 0.26 with the kernel's 64 KiB, and 0.13
with 1 MiB."""

MAX_PIPES: Final = 64
"""Pipes at once: 16 MiB of the user's 64."""

MAX_SPARE: Final = 4
"""Pipes that are kept for the next one who needs one."""


class Pipe(NamedTuple):
    reader: int
    writer: int

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class PipePool:
    """Owns the pipes that nobody has."""

    def __init__(self) -> None:
        self._spare: list[Pipe] = []
        self._in_use = 0

    def get(self) -> Pipe | None:
        """Return an empty pipe; None if there are too many, or no more fds."""
        if self._spare:
            pipe = self._spare.pop()
        else:
            if self._in_use >= MAX_PIPES:
                return None
            try:
                pipe = Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError:
                return None
            with contextlib.suppress(OSError):  # EPERM: beyond the user's limit
                fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, SIZE)
        self._in_use += 1
        return pipe

    def put(self, pipe: Pipe, empty: bool) -> None:
        """Take back a pipe that get() has returned."""
        self._in_use -= 1
        if empty and len(self._spare) < MAX_SPARE:
            self._spare.append(pipe)
        else:
            pipe.close()

    def close(self) -> None:
        while self._spare:
            self._spare.pop().close()
