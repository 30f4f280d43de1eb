"""A client's connection until its bytes are relayed: what it says first, read in bounds."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, TypeVar

READ_SIZE: Final = 16384

T = TypeVar("T")


class Malformed(Exception):
    """The client does not speak the protocol. The text is for its answer, if there is one."""


class ClientStream:
    """A client's socket, which the relay takes over, and what was read ahead of it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = b""
        self._loop = asyncio.get_running_loop()

    async def read(self) -> bytes:
        """Return the next bytes; none at the end of file. Raises OSError."""
        if self.buffer:
            data, self.buffer = self.buffer, b""
            return data
        return await self._loop.sock_recv(self.connection, READ_SIZE)

    async def parse(self, parser: Callable[[bytes], tuple[T, int] | None]) -> T:
        """Read until `parser` returns a message and its length; what follows stays in the buffer.

        Raises Malformed, as the parser does, and EOFError, OSError.
        """
        while not (found := parser(self.buffer)):
            data = await self._loop.sock_recv(self.connection, READ_SIZE)
            if not data:
                raise EOFError
            self.buffer += data
        message, length = found
        self.buffer = self.buffer[length:]
        return message

    async def send(self, data: bytes) -> None:
        """Raises OSError."""
        await self._loop.sock_sendall(self.connection, data)
