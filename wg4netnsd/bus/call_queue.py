"""The order in which calls are served: clients take turns, one call each.

A flooding client delays only itself; others wait for one call of its. The number of calls that a
client may have under way is limited: any further one is refused before it costs anything.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from wg4netnsd.bus.call import Call

MAX_CALLS: Final = 512
"""Calls of one client that wait or are being served: for each of 256 tunnels one WaitForState and
one GetPeers."""

MAX_FDS: Final = 96
"""Descriptors of one client's calls under way: 32 calls of CreateTunnel, each with three. That is
less than a tenth of 1,024, the lowest limit that we may have to live with."""


@dataclass
class _Client:
    calls: int = 0
    fds: int = 0
    waiting: deque[Call] = field(default_factory=deque)


class CallQueue:
    """Owns the calls that wait for their client's turn."""

    def __init__(self, start: Callable[[Call], object]) -> None:
        """`start` begins to serve a call, and has done() called at its end."""
        self._start = start
        self._clients: dict[str, _Client] = {}
        self._had_their_turn: set[str] = set()

    def is_full(self, sender: str) -> bool:
        """Return whether this client can have no further call."""
        client = self._clients.get(sender)
        return client is not None and client.calls >= MAX_CALLS

    def why_refused(self, call: Call) -> str | None:
        """Return why its client can't have this call as well; None if it can."""
        client = self._clients.get(call.sender)
        if self.is_full(call.sender):
            return f"{MAX_CALLS} calls of yours are under way already"
        if client and call.fds and client.fds + len(call.fds) > MAX_FDS:
            return f"calls with {client.fds} file descriptors of yours are under way already"
        return None

    def add(self, call: Call) -> None:
        """Start the call now if its client has not had a turn yet, else later."""
        sender = call.sender
        client = self._clients.setdefault(sender, _Client())
        client.calls += 1
        client.fds += len(call.fds)
        if sender in self._had_their_turn:
            client.waiting.append(call)
        else:
            self._give_turn(sender, call)

    def done(self, call: Call) -> None:
        """Count a call that was started as served."""
        client = self._clients[call.sender]
        client.calls -= 1
        client.fds -= len(call.fds)
        if not client.calls:
            del self._clients[call.sender]

    def pop_waiting(self) -> list[Call]:
        """Return the calls that have not been started, which now never will be."""
        waiting = [call for client in self._clients.values() for call in client.waiting]
        for client in self._clients.values():
            client.waiting.clear()
        return waiting

    def _give_turn(self, sender: str, call: Call) -> None:
        if not self._had_their_turn:
            asyncio.get_running_loop().call_soon(self._next_round)
        self._had_their_turn.add(sender)
        self._start(call)

    def _next_round(self) -> None:
        self._had_their_turn.clear()
        for sender, client in list(self._clients.items()):
            if client.waiting:
                self._give_turn(sender, client.waiting.popleft())
