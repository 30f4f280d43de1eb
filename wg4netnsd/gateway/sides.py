"""The two networks that a gateway joins, as its forwards use them."""

from __future__ import annotations

import asyncio
import socket

from wg4netnsd.agent.sockets_client import SocketClient, SocketServerGone
from wg4netnsd.dns.resolver import Resolver
from wg4netnsd.gateway.access import Access
from wg4netnsd.gateway.dial import Host
from wg4netnsd.gateway.relay import Relays


class Tunnel:
    """The tunnel's network: its sockets come from the socket server, and its names from its DNS."""

    def __init__(self) -> None:
        self._sockets: SocketClient | None = None
        self._changed = asyncio.Event()
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

    async def resolve(self, name: str, family: int) -> list[str]:
        return await self.resolver.resolve(name, family)

    def close(self) -> None:
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
