"""A tunnel's states, and tasks that wait for them.

starting ──► up ⇄ restarting ⇄ failed           only Restart() leads out of `failed`
    │         │        │          │
    └─────────┴────────┴──────────┴──► stopping ──► closed
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

from wg4netnsd.errors import NoSuchTunnel
from wg4netnsd.systemd.journal import STATE_CHANGED, TunnelLog

T = TypeVar("T")


class State(enum.StrEnum):
    STARTING = "starting"
    UP = "up"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPING = "stopping"
    CLOSED = "closed"


class Lifecycle:
    """The one place where a tunnel changes its state."""

    def __init__(
        self, name: str, log: TunnelLog, changed: Callable[[State, State, str], None]
    ) -> None:
        """`changed(new, old, reason)` is called after each change."""
        self.state = State.STARTING
        self._since = asyncio.get_running_loop().time()
        self.close_reason = ""
        self._name = name
        self._log = log
        self._changed = changed
        self._running: set[asyncio.Task[Any]] = set()
        self._waiters: dict[asyncio.Future[State], frozenset[State]] = {}

    @property
    def uptime(self) -> float:
        """Seconds since the tunnel came up; 0 if it is not up."""
        return asyncio.get_running_loop().time() - self._since if self.state is State.UP else 0.0

    def enter_state(self, new: State, reason: str) -> None:
        """Change the state: wake waiters, cancel tasks if it ends, log, and report the change."""
        old, self.state = self.state, new
        self._since = asyncio.get_running_loop().time()
        for waiter, wanted in self._waiters.items():
            if not waiter.done() and new in wanted:
                waiter.set_result(new)
            elif not waiter.done() and new is State.CLOSED:
                waiter.set_exception(self.closed_error())
        for task in self._running if new is State.STOPPING else ():
            task.cancel()
        level = logging.WARNING if new is State.FAILED else logging.INFO
        extra = {"MESSAGE_ID": STATE_CHANGED}
        self._log.log(level, "%s → %s: %s", old, new, reason, extra=extra)
        if new is not old:  # else one more attempt to restart
            self._changed(new, old, reason)

    async def run_while_open(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result, but cancel it when the tunnel stops.

        Raises NoSuchTunnel if the tunnel stops or has stopped.
        """
        if self.close_reason:
            coroutine.close()
            raise self.closed_error()
        task = asyncio.create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await task
        except asyncio.CancelledError:
            if task.cancelled() and self.close_reason:
                raise self.closed_error() from None
            raise

    async def wait_for(self, wanted: Collection[State]) -> State:
        """Wait until the state is one of `wanted`, and return it. Raises NoSuchTunnel if closed."""
        return self.state if self.state in wanted else await self.wait_for_next(wanted)

    async def wait_for_next(self, wanted: Collection[State]) -> State:
        """Wait until the tunnel next enters one of `wanted`. Raises NoSuchTunnel if closed."""
        if self.state is State.CLOSED:
            raise self.closed_error()
        waiter: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = frozenset(wanted)
        try:
            return await waiter
        finally:
            del self._waiters[waiter]

    def closed_error(self) -> NoSuchTunnel:
        return NoSuchTunnel(f"'{self._name}' was closed: {self.close_reason}")
