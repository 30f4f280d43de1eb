"""The messages that a connection has yet to send."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Final

from wg4netnsd.kernel import rights

AT_ONCE: Final = 65536
"""Bytes, about, that one wake-up writes: then it is the turn of others."""


class Outbox:
    """Holds encoded messages, in their order, until the socket takes them. Owns their fds."""

    def __init__(self) -> None:
        self.unsent = 0  # bytes
        self._messages: deque[tuple[memoryview, Sequence[int]]] = deque()

    def add(self, data: bytes, fds: Sequence[int] = ()) -> None:
        self._messages.append((memoryview(data), fds))
        self.unsent += len(data)

    def write_to(self, sock: socket.socket) -> None:
        """Write what the socket takes, but not more than AT_ONCE.

        Raises OSError: BlockingIOError when the socket is full.
        """
        budget = AT_ONCE
        while self._messages and budget > 0:
            data, fds = self._messages[0]
            count = rights.send(sock, data, fds)
            _close(fds)  # they go with the first byte (unix(7))
            if count == len(data):
                self._messages.popleft()
            else:
                self._messages[0] = (data[count:], ())
            budget -= count
            self.unsent -= count

    def clear(self) -> None:
        """Drop everything: the connection has ended."""
        for _, fds in self._messages:
            _close(fds)
        self._messages.clear()
        self.unsent = 0


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
