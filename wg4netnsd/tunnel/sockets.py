"""Sockets of a tunnel's namespace, for programs that are outside of it."""

from __future__ import annotations

import asyncio
import socket

from wg4netnsd import errors
from wg4netnsd.agent.client import Agent
from wg4netnsd.agent.sockets_client import SocketClient, SocketServerGone
from wg4netnsd.engine.engine import DEATH_TIME
from wg4netnsd.systemd.journal import TunnelLog
from wg4netnsd.tunnel.link import Link


class TunnelSockets:
    """Opens sockets where the interface is. Owns the socket server, which the first one starts.

    A server that ends, hangs or misbehaves is replaced: root in the namespace can see to that.
    """

    def __init__(self, agent: Agent, link: Link, log: TunnelLog) -> None:
        self._agent = agent
        self._link = link
        self._log = log
        self._server: SocketClient | None = None
        self._starting = asyncio.Lock()

    async def open(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Open a socket of sockets.KINDS, as socket(2) does.

        Raises SocketFailed, TunFailed, LimitExceeded, Timeout.
        """
        try:
            return await self._open(family, kind, protocol)
        except SocketServerGone as why:
            self._log.warning("%s: starting another", why)
        try:
            return await self._open(family, kind, protocol)
        except SocketServerGone as why:
            raise errors.Timeout(f"{why}, twice") from None

    async def close(self) -> None:
        """End the socket server, and return when it is gone."""
        async with self._starting:
            await self._end_server()

    async def get_server(self) -> SocketClient:
        """Return the socket server; start one if there is none that runs."""
        async with self._starting:
            if self._server and self._server.is_gone:
                await self._end_server()
            if not self._server:
                if self._link.tun_fd < 0:
                    raise errors.TunFailed("there is no interface yet, or no more")
                self._server = await self._agent.serve_sockets(self._link.tun_fd)
            return self._server

    async def _open(self, family: int, kind: int, protocol: int) -> socket.socket:
        server = await self.get_server()
        with self._link.current_netns() as netns:
            return await server.open(family, kind, protocol, netns.fd)

    async def _end_server(self) -> None:
        if server := self._server:
            self._server = None
            try:
                await server.process.kill(DEATH_TIME)
            except TimeoutError:
                self._log.error("the socket server can't be killed")
            server.close()
