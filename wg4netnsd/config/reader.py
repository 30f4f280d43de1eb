"""Read and parse a caller's configuration: an fd or a path, bounded in size and time."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Collection
from typing import Final

from wg4netnsd.aio import blocking, fdpath
from wg4netnsd.config import wgquick
from wg4netnsd.config.model import Config
from wg4netnsd.errors import InvalidConfig, LimitExceeded
from wg4netnsd.files import content
from wg4netnsd.files.client import FileProcesses, HeldFd, ReceivedFd
from wg4netnsd.files.content import READ_TIME

LONG: Final = 16384
"""Bytes that take about 2 ms to parse."""
PARSE_TIME: Final = 30.0  # seconds


async def load_fd(fd: ReceivedFd, ignore: Collection[str]) -> Config:
    """Read all that `fd` holds or, if it is a pipe, brings, and parse it. Closes `fd`.

    Raises InvalidConfig, LimitExceeded, Timeout.
    """
    if isinstance(fd, HeldFd):
        fd = await fd.read_config(wgquick.MAX_SIZE)
    if fdpath.is_memory(fd) and os.fstat(fd).st_size <= LONG:
        try:  # in memory and short: a thread would only cost time
            return wgquick.parse(content.read_and_close(fd, wgquick.MAX_SIZE), ignore)
        except OSError as error:
            raise InvalidConfig(f"config: {error.strerror}") from None
    return await _load_in_thread(fd, ignore)


async def load_path(files: FileProcesses, path: str, ignore: Collection[str]) -> Config:
    """Read the file and parse it. Raises InvalidConfig, InvalidArgs, LimitExceeded, Timeout."""
    fdpath.refuse_relative(path, "config_path")
    return await load_fd(await files.read_config(path, wgquick.MAX_SIZE), ignore)


async def read_fd(fd: ReceivedFd, name: str) -> bytes:
    """Read all that `fd` holds or brings, at most MAX_SIZE + 1 bytes. Closes `fd`.

    `name` is for errors. Raises InvalidConfig, LimitExceeded, Timeout.
    """
    if isinstance(fd, HeldFd):
        fd = await fd.read_config(wgquick.MAX_SIZE, name)
    begun = False

    def read(fd: int) -> bytes:
        nonlocal begun
        begun = True
        return content.read_and_close(fd, wgquick.MAX_SIZE, name)

    try:
        return await blocking.call(READ_TIME + 1, read, fd)
    except TimeoutError:
        raise content.too_slow(name) from None
    except OSError as error:
        raise InvalidConfig(f"{name}: {error.strerror}") from None
    except LimitExceeded:
        if not begun:
            blocking.close(fd)
        raise


async def _load_in_thread(fd: int, ignore: Collection[str]) -> Config:
    """Read and parse in one thread, each within its time."""
    loop = asyncio.get_running_loop()
    begun = False

    def load() -> Config:
        nonlocal begun
        begun = True
        text = content.read_and_close(fd, wgquick.MAX_SIZE)
        loop.call_soon_threadsafe(begin_to_parse)
        return wgquick.parse(text, ignore)

    def begin_to_parse() -> None:
        with contextlib.suppress(RuntimeError):  # nobody waits for it any more
            deadline.reschedule(loop.time() + PARSE_TIME)

    try:
        async with asyncio.timeout(READ_TIME + 1) as deadline:
            return await blocking.call(READ_TIME + 1 + PARSE_TIME, load)
    except TimeoutError:
        raise content.too_slow() from None
    except OSError as error:
        raise InvalidConfig(f"config: {error.strerror}") from None
    except LimitExceeded:
        if not begun:
            blocking.close(fd)
        raise
