"""Whose call is served next: each client's in their order, and one of each client at a time.

Who floods us so waits for himself, and others wait for one call of his. What a client may have
under way is limited: beyond that, a call is refused before it costs anything.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from wg4netnsd.bus.frames import Frame

MAX_CALLS: Final = 512
"""Calls of one client that wait or are being served, those of WaitForState among them: for each of
256 tunnels one that waits for its state, and one that asks for its peers."""

MAX_FDS: Final = 96
"""Descriptors of one client's calls under way: 32 calls of CreateTunnel, each with all that it can
bring; of 1,024, which is the least that we may have to live with, less than a tenth."""


@dataclass
class _Client:
    calls: int = 0
    fds: int = 0
    waiting: deque[Frame] = field(default_factory=deque)


class Turns:
    """The calls that wait for their turn, by the client that made them."""

    def __init__(self, start: Callable[[Frame], object]) -> None:
        """`start` serves a call, and has done() called at its end."""
        self._start = start
        self._clients: dict[str, _Client] = {}
        self._had_theirs: set[str] = set()

    def is_full(self, sender: str) -> bool:
        client = self._clients.get(sender)
        return client is not None and client.calls >= MAX_CALLS

    def refusal(self, call: Frame) -> str | None:
        """Why its client can't have this call as well; None if it can."""
        client = self._clients.get(call.sender)
        if self.is_full(call.sender):
            return f"{MAX_CALLS} calls of yours are under way already"
        if client and call.fds and client.fds + len(call.fds) > MAX_FDS:
            return f"calls with {client.fds} file descriptors of yours are under way already"
        return None

    def add(self, call: Frame) -> None:
        """Start it now if its client has not had a turn yet, else later."""
        sender = call.sender
        client = self._clients.setdefault(sender, _Client())
        client.calls += 1
        client.fds += len(call.fds)
        if sender in self._had_theirs:
            client.waiting.append(call)
        else:
            self._give(sender, call)

    def done(self, sender: str, fds: int) -> None:
        """A call of `sender`, which came with so many descriptors, is over."""
        client = self._clients[sender]
        client.calls -= 1
        client.fds -= fds
        if not client.calls:
            del self._clients[sender]

    def end(self) -> list[Frame]:
        """Those that have not begun, which now never will."""
        waiting = [call for client in self._clients.values() for call in client.waiting]
        for client in self._clients.values():
            client.waiting.clear()
        return waiting

    def _give(self, sender: str, call: Frame) -> None:
        if not self._had_theirs:
            asyncio.get_running_loop().call_soon(self._next)
        self._had_theirs.add(sender)
        self._start(call)

    def _next(self) -> None:
        self._had_theirs.clear()
        for sender, client in list(self._clients.items()):
            if client.waiting:
                self._give(sender, client.waiting.popleft())
