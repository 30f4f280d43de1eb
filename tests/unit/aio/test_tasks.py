"""What is to be finished is finished, whoever loses patience; and an end of cancellations."""

import asyncio

import pytest

from wg4netnsd.aio.tasks import end_cancellation, finish


def test_finished_in_spite_of_cancellations() -> None:
    async def cancel() -> None:
        began, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def work() -> None:
            began.set()
            await go_on.wait()
            done.set()

        waiting = asyncio.create_task(finish(work()))
        await began.wait()
        for _ in range(2):
            waiting.cancel()
            await asyncio.sleep(0)
        assert not waiting.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert done.is_set()

    asyncio.run(cancel())


def test_what_it_raises() -> None:
    async def fail() -> None:
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        asyncio.run(finish(fail()))


def test_a_time_out_after_a_cancellation_that_was_caught() -> None:
    """It ends the tear-down of a tunnel otherwise, with Python 3.11.2."""

    async def tear_down() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            end_cancellation()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        return "whole"

    async def cancel() -> None:
        task = asyncio.create_task(tear_down())
        await asyncio.sleep(0)
        task.cancel()
        assert await task == "whole"

    asyncio.run(cancel())
