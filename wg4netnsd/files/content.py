"""Read a configuration's bytes from an fd: checked, and bounded in size and time."""

from __future__ import annotations

import os
import select
import stat
import time
from typing import Final

from wg4netnsd.errors import InvalidConfig, LimitExceeded, Timeout

READ_TIME: Final = 5.0
"""Seconds from the first byte asked for to the end of file."""


def read_and_close(fd: int, limit: int, name: str = "config") -> bytes:
    """Return all that `fd` holds or, if it is a pipe or a socket, brings, and close it.

    May block for ever on an fd of a stalled file system. Returns one byte more than `limit` of a
    stream that is longer. Raises InvalidConfig, LimitExceeded, TimeoutError, OSError.
    """
    try:
        status = os.fstat(fd)
        mode = status.st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise InvalidConfig(f"{name}: neither a file nor a pipe")
        _refuse_others(status, name)
        if stat.S_ISREG(mode):
            if status.st_size > limit:
                raise LimitExceeded(
                    f"the configuration has {status.st_size} bytes: at most {limit}"
                )
            # From its beginning: a memfd's position is where its writer left it.
            return os.pread(fd, limit + 1, 0)
        return _read_stream(fd, limit)
    finally:
        os.close(fd)


def too_slow(name: str = "config") -> Timeout:
    return Timeout(f"{name}: no end of file within {READ_TIME:g} s")


def _refuse_others(status: os.stat_result, name: str) -> None:
    """Raise InvalidConfig if another user but root owns the file, or may write to it.

    Whoever may write to it decides where our packets go. What has no name, such as a memfd, or is a
    socket can't be opened by others, whatever its mode.
    """
    if status.st_uid not in (os.geteuid(), 0):
        raise InvalidConfig(f"{name}: owned by uid {status.st_uid}: expected a file of yours")
    openable = status.st_nlink and not stat.S_ISSOCK(status.st_mode)
    if openable and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        raise InvalidConfig(f"{name}: others may write to it (mode {mode:04o}): use 'chmod 600'")


def _read_stream(fd: int, limit: int) -> bytes:
    deadline = time.monotonic() + READ_TIME
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = b""
    while len(data) <= limit:
        if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        chunk = os.read(fd, 65536)
        if not chunk:
            break
        data += chunk
    return data
