"""Calls that may block for ever, kept off the event loop.

open(), fstat() and even close() hang without an end on a stalled FUSE or network file system, and
getaddrinfo() takes as long as it likes. Each such call gets a thread of its own, which is left
behind when its time is over: a pool would fill up with hung threads, and be waited for at exit.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from wg4netnsd.errors import LimitExceeded

MAX_THREADS: Final = 64
"""Calls under way at once, hung ones among them."""

T = TypeVar("T")

_slots = threading.BoundedSemaphore(MAX_THREADS)


async def call(
    seconds: float, function: Callable[..., T], *args: Any, discard: Callable[[T], object] = bool
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
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=run, daemon=True, name=function.__name__).start()
    async with asyncio.timeout(seconds):
        return await future


def has_path(fd: int) -> bool:
    """Could a call on `fd` block because of a file system? Safe on any fd, unlike fstat()."""
    target = os.readlink(f"/proc/self/fd/{fd}")  # else "pipe:[1]", "net:[2]", "anon_inode:[…]"
    return target.startswith("/") and not target.startswith("/memfd:")


def close(fd: int) -> None:
    """Close an fd of unknown kind, or one whose end takes the kernel long. Returns at once."""
    threading.Thread(target=os.close, args=(fd,), daemon=True, name="close").start()
