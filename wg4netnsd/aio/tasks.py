"""Helpers for asyncio tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


async def first_of(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Return when the first of the coroutines has returned; cancel the others."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def finish(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine to its end. If the caller is cancelled meanwhile, raise that afterwards."""
    task = asyncio.create_task(coroutine)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError


def end_cancellation() -> None:
    """Have the current task count as not cancelled, once it has caught its CancelledError.

    Otherwise, asyncio.timeout() in it raises CancelledError instead of TimeoutError until Python
    3.11.3, as there: `if self._task.uncancel() == 0`.
    """
    task = asyncio.current_task()
    assert task
    while task.uncancel():
        pass


def log_failure(task: asyncio.Task[Any]) -> None:
    """Log a task's exception: for add_done_callback() of tasks that nobody awaits."""
    if not task.cancelled() and (error := task.exception()):
        log.error("%s: internal error", task.get_name(), exc_info=error)
