"""Wait for a socket that something other than asyncio reads, as for the descriptors it brings."""

from __future__ import annotations

import asyncio
import socket


async def readable(sock: socket.socket) -> None:
    """Return when there is something to read, or the end of file."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(sock, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(sock)
