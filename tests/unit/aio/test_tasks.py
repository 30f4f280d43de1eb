"""What is to be finished is finished, whoever loses patience."""

import asyncio

import pytest

from wg4netnsd.aio.tasks import finish


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
