"""Read a caller's configuration: an fd or a path, bounded in size and time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import stat
import time
from collections.abc import Callable, Collection
from typing import Final

from wg4netnsd.aio import blocking, fdpath
from wg4netnsd.config import wgquick
from wg4netnsd.config.model import Config
from wg4netnsd.errors import InvalidConfig, LimitExceeded, Timeout

log = logging.getLogger(__name__)

READ_TIME: Final = 5.0
"""Seconds from the call to the end of file."""
LONG: Final = 16384
"""Bytes that take about 2 ms to parse."""
PARSE_TIME: Final = 30.0  # seconds


async def load_fd(fd: int, ignore: Collection[str]) -> Config:
    """Read all that `fd` holds or, if it is a pipe, brings, and parse it. Closes `fd`.

    Raises InvalidConfig, LimitExceeded, Timeout.
    """
    if fdpath.is_memfd(fd) and os.fstat(fd).st_size <= LONG:
        try:  # in memory and short: a thread would only cost time
            return wgquick.parse(_read_and_close(fd), ignore)
        except OSError as error:
            raise InvalidConfig(f"config: {error.strerror}") from None
    begun = False

    def read() -> bytes:
        nonlocal begun
        begun = True
        return _read_and_close(fd)

    try:
        return await _load(read, ignore)
    except LimitExceeded:
        if not begun:
            blocking.close(fd)
        raise


async def load_path(path: str, ignore: Collection[str]) -> Config:
    """Read the file and parse it. Raises InvalidConfig, InvalidArgs, LimitExceeded, Timeout."""
    fdpath.refuse_relative(path, "config_path")
    return await _load(lambda: _open_and_read(path), ignore)


async def read_fd(fd: int, name: str) -> bytes:
    """Read all that `fd` holds or brings, at most MAX_SIZE + 1 bytes. Closes `fd`.

    `name` is for errors. Raises InvalidConfig, LimitExceeded, Timeout.
    """
    begun = False

    def read() -> bytes:
        nonlocal begun
        begun = True
        return _read_and_close(fd, name)

    try:
        return await blocking.call(READ_TIME + 1, read)
    except TimeoutError:
        raise Timeout(f"{name}: no end of file within {READ_TIME:g} s") from None
    except OSError as error:
        raise InvalidConfig(f"{name}: {error.strerror}") from None
    except LimitExceeded:
        if not begun:
            blocking.close(fd)
        raise


async def _load(read: Callable[[], bytes], ignore: Collection[str]) -> Config:
    """Read and parse in one thread, each within its time."""
    loop = asyncio.get_running_loop()

    def load() -> Config:
        text = read()
        loop.call_soon_threadsafe(begin_to_parse)
        return wgquick.parse(text, ignore)

    def begin_to_parse() -> None:
        with contextlib.suppress(RuntimeError):  # nobody waits for it any more
            deadline.reschedule(loop.time() + PARSE_TIME)

    try:
        async with asyncio.timeout(READ_TIME + 1) as deadline:
            return await blocking.call(READ_TIME + 1 + PARSE_TIME, load)
    except TimeoutError:
        raise Timeout(f"config: no end of file within {READ_TIME:g} s") from None
    except OSError as error:
        raise InvalidConfig(f"config: {error.strerror}") from None


def _open_and_read(path: str) -> bytes:
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to must not wait.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise LimitExceeded(f"{path}: {error.strerror}") from None
        raise InvalidConfig(f"{path}: {error.strerror}") from None
    if os.fstat(fd).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("%s holds a private key and others may read it: chmod 600", path)
    return _read_and_close(fd, path)


def _read_and_close(fd: int, name: str = "config") -> bytes:
    try:
        status = os.fstat(fd)
        mode = status.st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise InvalidConfig(f"{name}: neither a file nor a pipe")
        _refuse_others(status, name)
        if stat.S_ISREG(mode):
            if status.st_size > wgquick.MAX_SIZE:
                raise LimitExceeded(
                    f"the configuration has {status.st_size} bytes: at most {wgquick.MAX_SIZE}"
                )
            # From its beginning: a memfd's position is where its writer left it.
            return os.pread(fd, wgquick.MAX_SIZE + 1, 0)
        return _read_stream(fd)
    finally:
        os.close(fd)


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


def _read_stream(fd: int) -> bytes:
    deadline = time.monotonic() + READ_TIME
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = b""
    while len(data) <= wgquick.MAX_SIZE:
        if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        chunk = os.read(fd, 65536)
        if not chunk:
            break
        data += chunk
    return data
