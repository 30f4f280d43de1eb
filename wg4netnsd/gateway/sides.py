"""The two networks that a gateway joins, as its forwards use them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final

from wg4netnsd import errors
from wg4netnsd.agent.sockets_client import SocketClient, SocketServerGone
from wg4netnsd.dns.resolver import Resolver
from wg4netnsd.gateway.access import Access
from wg4netnsd.gateway.dial import Host
from wg4netnsd.gateway.relay import Relays

SPARES: Final = 8
"""TCP sockets of a family that are kept for the next connections, once there was one. A connection
then waits for no other process; and that process is woken once for half of them."""


class Tunnel:
    """The tunnel's network: its sockets come from the socket server, and its names from its DNS."""

    def __init__(self) -> None:
        self._sockets: SocketClient | None = None
        self._changed = asyncio.Event()
        self._spares: dict[int, list[socket.socket]] = {}
        """By family."""
        self._filling: dict[int, asyncio.Task[None]] = {}
        self.resolver = Resolver([], [], self.open)

    def use(self, sockets: SocketClient) -> None:
        """Get sockets from this server from now on. Owns it."""
        if self._sockets:
            self._sockets.close()
        self._sockets = sockets
        self._changed.set()
        self._changed = asyncio.Event()

    async def open(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a non-blocking socket; wait for another server if this one is gone.

        The caller bounds the time. Raises errors.SocketFailed, errors.LimitExceeded.
        """
        if kind != socket.SOCK_STREAM:
            return await self._ask(family, kind, protocol)
        spares = self._spares.setdefault(family, [])
        opened = spares.pop() if spares else await self._ask(family, kind)
        if len(spares) <= SPARES // 2 and family not in self._filling:
            self._filling[family] = asyncio.create_task(self._fill(family, spares))
        return opened

    async def _ask(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        while True:
            changed = self._changed
            if self._sockets and not self._sockets.is_gone:
                try:
                    opened = await self._sockets.open(family, kind, protocol)
                except SocketServerGone:
                    pass
                else:
                    opened.setblocking(False)
                    return opened
            await changed.wait()

    async def _fill(self, family: int, spares: list[socket.socket]) -> None:
        async def one() -> None:
            with contextlib.suppress(errors.Error):  # who needs a socket is told
                spares.append(await self._ask(family, socket.SOCK_STREAM))

        try:
            await asyncio.gather(*(one() for _ in range(SPARES - len(spares))))
        finally:
            del self._filling[family]

    async def resolve(self, name: str, family: int) -> list[str]:
        return await self.resolver.resolve(name, family)

    def close(self) -> None:
        for filling in self._filling.values():
            filling.cancel()
        for spares in self._spares.values():
            while spares:
                spares.pop().close()
        if self._sockets:
            self._sockets.close()


class Sides:
    """What all forwards of a gateway share."""

    def __init__(self) -> None:
        self.tunnel = Tunnel()
        self.host = Host()
        self.access = Access()
        self.relays = Relays()

    def close(self) -> None:
        self.relays.close()
        self.access.close()
        self.tunnel.close()
