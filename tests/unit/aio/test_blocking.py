"""Calls that may block for ever: what becomes of a result that nobody waits for any more."""

import asyncio
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from support.processes import wait_for
from wg4netnsd.aio import blocking
from wg4netnsd.errors import LimitExceeded


class Stalled:
    """A function that returns, or raises, when it is let go; as on a file system that stalls."""

    def __init__(self, result: object) -> None:
        self.result = result
        self.called, self.let_go = threading.Event(), threading.Event()

    def __call__(self) -> object:
        self.called.set()
        self.let_go.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    __name__ = "stalled"


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())
    assert blocking._under_way == {}


@pytest.fixture
def discarded() -> list[object]:
    return []


def test_what_comes_in_time_is_the_callers(discarded: list[object]) -> None:
    async def test() -> None:
        assert await blocking.call(10, lambda: 7, discard=discarded.append) == 7
        with pytest.raises(ZeroDivisionError):
            await blocking.call(10, lambda: 1 / 0, discard=discarded.append)

    run(test)
    assert discarded == []


@pytest.mark.parametrize("result", ["a result", OSError("an error")])
def test_what_comes_after_its_time_is_discarded(discarded: list[object], result: object) -> None:
    """An error of then is nobody's."""

    async def test() -> None:
        stalled = Stalled(result)
        with pytest.raises(TimeoutError):
            await blocking.call(0.01, stalled, discard=discarded.append)
        assert discarded == []
        stalled.let_go.set()
        await until(lambda: not blocking._under_way)

    run(test)
    assert discarded == [result] * (result == "a result")


def test_what_comes_after_a_cancellation_is_discarded(discarded: list[object]) -> None:
    async def test() -> None:
        stalled = Stalled("a result")
        task = asyncio.create_task(blocking.call(10, stalled, discard=discarded.append))
        await until(stalled.called.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stalled.let_go.set()
        await until(lambda: bool(discarded))

    run(test)
    assert discarded == ["a result"]


def test_what_comes_in_the_moment_of_a_cancellation_is_discarded(discarded: list[object]) -> None:
    async def test() -> None:
        stalled = Stalled("a result")
        task = asyncio.create_task(blocking.call(10, stalled, discard=discarded.append))
        await until(stalled.called.is_set)
        stalled.let_go.set()
        while blocking._under_way:  # without a turn of the event loop
            pass
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: bool(discarded))

    run(test)
    assert discarded == ["a result"]


def test_no_more_than_so_many_at_once() -> None:
    """Of one caller, and in all; who gets none costs none."""

    async def test() -> None:
        stalled = Stalled(None)
        calls = []
        for number in range(blocking.MAX_THREADS):
            blocking.caller.set(f"caller {number // blocking.MAX_THREADS_PER_CALLER}")
            calls.append(asyncio.create_task(blocking.call(10, stalled)))
            await asyncio.sleep(0)
            if number + 1 == blocking.MAX_THREADS_PER_CALLER:
                with pytest.raises(LimitExceeded, match="of your files are being read"):
                    await blocking.call(10, stalled)
        blocking.caller.set("")
        with pytest.raises(LimitExceeded, match="files or host names are being read"):
            await blocking.call(10, stalled)
        stalled.let_go.set()
        await asyncio.gather(*calls)
        assert await blocking.call(10, lambda: 7) == 7

    run(test)


def test_many_are_closed_by_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, closed = threading.Event(), list[int]()

    def close(fd: int) -> None:
        go_on.wait()
        closed.append(fd)

    monkeypatch.setattr(blocking, "os", SimpleNamespace(close=close))
    fds = range(3 * blocking.MAX_CLOSERS)
    for fd in fds:
        blocking.close(fd)
    assert blocking._closers == blocking.MAX_CLOSERS
    go_on.set()
    wait_for(lambda: not blocking._closers, "all are closed")
    assert sorted(closed) == list(fds)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)
