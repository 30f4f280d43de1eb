"""What asyncio has no function for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


async def first_of(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Return when one of them has; the others are cancelled."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def finish(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run it to its end, also when we are cancelled meanwhile; that is raised afterwards."""
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


def log_defect(task: asyncio.Task[Any]) -> None:
    """For add_done_callback() of a task that nobody waits for and that never fails."""
    if not task.cancelled() and (defect := task.exception()):
        log.error("%s: a defect", task.get_name(), exc_info=defect)
