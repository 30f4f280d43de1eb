"""Calls that may block for ever, kept off the event loop.

open(), fstat() and even close() can hang for ever on a stalled FUSE or network file system, and
getaddrinfo() has no time limit. Each such call gets its own thread, which is abandoned when its
time is over. A pool would fill up with hung threads, and Python would wait for them at exit.
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
"""Calls in progress at once, hung ones included."""

MAX_THREADS_PER_CALLER: Final = 24
"""Calls in progress at once for one caller, so that it takes three callers to exhaust MAX_THREADS.
More than resolve.MAX_LOOKUPS, so that all host names of one configuration can be tried."""

MAX_CLOSERS: Final = 8
"""Threads that close fds: a close() that hangs no longer occupies our fd table."""

caller: Final[ContextVar[str]] = ContextVar("caller", default="")
"""The bus client for which the current task runs; empty for the daemon itself."""

T = TypeVar("T")

_lock = threading.Lock()  # guards the three below
_under_way: Counter[str] = Counter()
_to_close: deque[int] = deque()
_closers = 0


def ignore_result(result: object) -> None:
    """Discard a result that owns nothing."""


async def call(
    seconds: float,
    function: Callable[..., T],
    *args: Any,
    discard: Callable[[T], object] = ignore_result,
) -> T:
    """Run `function(*args)` in a thread, and return its result or raise its exception.

    Raises TimeoutError after `seconds`, and LimitExceeded. A result that comes after a timeout or a
    cancellation is passed to `discard`.
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
        with contextlib.suppress(RuntimeError):  # the loop is closed: the daemon has ended
            loop.call_soon_threadsafe(deliver, result, error)

    try:
        threading.Thread(target=run, daemon=True, name=function.__name__).start()
    except RuntimeError:  # a limit of the kernel or of a cgroup
        _end_call(who)
        raise LimitExceeded("no thread can be started") from None
    try:
        async with asyncio.timeout(seconds):
            return await future
    except BaseException:
        # The result may have come at the very moment of the timeout or cancellation.
        if future.done() and not future.cancelled() and not future.exception():
            discard(future.result())
        raise


def _begin_call(who: str) -> None:
    with _lock:
        if _under_way.total() >= MAX_THREADS:
            raise LimitExceeded(f"{MAX_THREADS} files or host names are being read or looked up")
        if who and _under_way[who] >= MAX_THREADS_PER_CALLER:
            raise LimitExceeded(f"{MAX_THREADS_PER_CALLER} of your files are being read already")
        _under_way[who] += 1


def _end_call(who: str) -> None:
    with _lock:
        _under_way[who] -= 1
        if not _under_way[who]:
            del _under_way[who]


def close(fd: int) -> None:
    """Close, in the background, an fd whose close() may take long or hang."""
    global _closers
    with _lock:
        _to_close.append(fd)
        if _closers == MAX_CLOSERS:
            return
        _closers += 1
    try:
        threading.Thread(target=_close_all, daemon=True, name="close").start()
    except RuntimeError:  # a limit of the kernel or of a cgroup
        _close_all()


async def close_and_wait(fd: int) -> None:
    """Close `fd` in a thread of its own, and return when it is closed.

    No limit applies: hung calls of others must not keep this fd open.
    """
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()

    def run() -> None:
        os.close(fd)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the daemon has ended
            loop.call_soon_threadsafe(closed.set)

    try:
        threading.Thread(target=run, daemon=True, name="close").start()
    except RuntimeError:  # a limit of the kernel or of a cgroup
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
        with contextlib.suppress(OSError):  # a delayed write failed; the fd is closed all the same
            os.close(fd)
