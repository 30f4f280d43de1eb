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
from collections import Counter, deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from wg4netnsd.errors import LimitExceeded

MAX_THREADS: Final = 64
"""Calls under way at once, hung ones among them."""

MAX_THREADS_PER_CALLER: Final = 24
"""Those of one caller: it takes three to take all. More than resolve looks up at once, 16, so
that a configuration with many host names has them all tried."""

MAX_CLOSERS: Final = 8
"""Threads that close: what hangs in one is out of our table of descriptors all the same."""

caller: Final[ContextVar[str]] = ContextVar("caller", default="")
"""On whose behalf the current task runs; empty for our own."""

T = TypeVar("T")

_lock = threading.Lock()  # for what follows
_under_way: Counter[str] = Counter()
_to_close: deque[int] = deque()
_closers = 0


def ignore_result(result: object) -> None:
    """For results that own nothing."""


async def call(
    seconds: float,
    function: Callable[..., T],
    *args: Any,
    discard: Callable[[T], object] = ignore_result,
) -> T:
    """`function(*args)`, its result or its exception.

    Raises TimeoutError after `seconds`, and LimitExceeded. A result that comes too late, after a
    timeout or a cancellation, goes to `discard`.
    """
    who = caller.get()
    _begin_call(who)
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
        _end_call(who)
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is all else
            loop.call_soon_threadsafe(deliver, result, error)

    try:
        threading.Thread(target=run, daemon=True, name=function.__name__).start()
    except RuntimeError:  # a limit of the kernel's or of a cgroup
        _end_call(who)
        raise LimitExceeded("no thread can be started") from None
    try:
        async with asyncio.timeout(seconds):
            return await future
    except BaseException:
        # The result may have come in the very moment that we were told not to wait for it.
        if future.done() and not future.cancelled() and not future.exception():
            discard(future.result())
        raise


def _begin_call(who: str) -> None:
    with _lock:
        if _under_way.total() >= MAX_THREADS:
            raise LimitExceeded(f"{MAX_THREADS} files or host names are being waited for already")
        if who and _under_way[who] >= MAX_THREADS_PER_CALLER:
            raise LimitExceeded(
                f"{MAX_THREADS_PER_CALLER} files of yours are being waited for already"
            )
        _under_way[who] += 1


def _end_call(who: str) -> None:
    with _lock:
        _under_way[who] -= 1
        if not _under_way[who]:
            del _under_way[who]


def close(fd: int) -> None:
    """Close an fd of unknown kind, or one whose end takes the kernel long. Returns at once."""
    global _closers
    with _lock:
        _to_close.append(fd)
        if _closers == MAX_CLOSERS:
            return
        _closers += 1
    try:
        threading.Thread(target=_close_all, daemon=True, name="close").start()
    except RuntimeError:  # a limit of the kernel's or of a cgroup
        _close_all()


async def close_and_wait(fd: int) -> None:
    """Close it and return when that is done, without a limit: what callers keep waiting must not
    keep this one open."""
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()

    def run() -> None:
        os.close(fd)
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is all else
            loop.call_soon_threadsafe(closed.set)

    try:
        threading.Thread(target=run, daemon=True, name="close").start()
    except RuntimeError:  # a limit of the kernel's or of a cgroup
        os.close(fd)
    else:
        await closed.wait()


def _close_all() -> None:
    global _closers
    while True:
        with _lock:
            if not _to_close:
                _closers -= 1
                return
            fd = _to_close.popleft()
        with contextlib.suppress(OSError):  # an error of a write; it is closed in any case
            os.close(fd)
