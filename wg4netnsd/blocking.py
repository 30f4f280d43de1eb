"""Calls that may block for ever, kept off the event loop.

open(), fstat() and even close() hang without an end on a stalled FUSE or network file system, and
getaddrinfo() takes as long as it likes. Each such call gets a thread of its own, which is left
behind when its time is over: a pool would fill up with hung threads, and be waited for at exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from wg4netnsd.errors import LimitExceeded

MAX_THREADS: Final = 64
"""Calls under way at once, hung ones among them."""

T = TypeVar("T")

_slots = threading.BoundedSemaphore(MAX_THREADS)


def let_go(result: object) -> None:
    """For results that own nothing."""


async def call(
    seconds: float, function: Callable[..., T], *args: Any, discard: Callable[[T], object] = let_go
) -> T:
    """`function(*args)`, its result or its exception.

    Raises TimeoutError after `seconds`, and LimitExceeded. A result that comes too late, after a
    timeout or a cancellation, goes to `discard`.
    """
    if not _slots.acquire(blocking=False):
        raise LimitExceeded(f"{MAX_THREADS} files or host names are being waited for already")
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: Exception | None) -> None:
        if future.done():
            if error is None:
                discard(result)  # type: ignore[arg-type]  # a result unless there is an error
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = function(*args)
        except Exception as exception:
            error = exception
        _slots.release()
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is all else
            loop.call_soon_threadsafe(deliver, result, error)

    try:
        threading.Thread(target=run, daemon=True, name=function.__name__).start()
    except RuntimeError:  # a limit of the kernel's or of a cgroup
        _slots.release()
        raise LimitExceeded("no thread can be started") from None
    try:
        async with asyncio.timeout(seconds):
            return await future
    except BaseException:
        # The result may have come in the very moment that we were told not to wait for it.
        if future.done() and not future.cancelled() and not future.exception():
            discard(future.result())
        raise


def close(fd: int) -> None:
    """Close an fd of unknown kind, or one whose end takes the kernel long. Returns at once."""
    try:
        threading.Thread(target=os.close, args=(fd,), daemon=True, name="close").start()
    except RuntimeError:  # no thread can be started: to wait is better than to keep it
        os.close(fd)
