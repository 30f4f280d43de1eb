"""A tunnel's gateway, whichever process that is at the moment.

    absent ──get──► running ──it ends, and forwards remain──► the next one …
      ▲                │
      └──────stop──────┘

The gateway outlives the daemon, as engines do, and the next daemon adopts it. A socket server that
ends is replaced too, also if nobody asks for a socket but the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from wg4netnsd import errors
from wg4netnsd.agent.sockets_client import SocketClient, SocketServerGone
from wg4netnsd.aio.process import Vitals
from wg4netnsd.aio.tasks import first_of, log_failure
from wg4netnsd.engine.backoff import MAX_DELAY, Backoff
from wg4netnsd.engine.engine import DEATH_TIME
from wg4netnsd.gateway.protocol import GetCounters, SetSockets
from wg4netnsd.systemd.fdstore import GATEWAY_KINDS, FdStore
from wg4netnsd.systemd.journal import TunnelLog
from wg4netnsd.tunnel.gateway import Gateway, GatewayFds, GatewayGone
from wg4netnsd.tunnel.sockets import TunnelSockets

SHORT_DELAY: Final = 0.3
"""Seconds before the next gateway, at most, unless it is a crash loop: clients wait meanwhile, and
it takes a gateway 0.2 to begin."""

FAILURES: Final = (GatewayGone, errors.Error)
"""What a gateway can fail with."""

SetUp = Callable[[Gateway, Collection[str]], Awaitable[None]]
"""Gives a gateway everything but sockets; it serves the forwards with these ids already."""


class GatewaySlot:
    """Owns the gateway. Hold `lock` to change it or what it serves."""

    def __init__(
        self,
        tunnel: str,
        sockets: TunnelSockets,
        fd_store: FdStore,
        log: TunnelLog,
        set_up: SetUp,
        is_needed: Callable[[], bool],
    ) -> None:
        """`is_needed`: whether a gateway that ends is to be replaced."""
        self.lock = asyncio.Lock()
        self.current: Gateway | None = None
        self._tunnel = tunnel
        self._sockets = sockets
        self._fd_store = fd_store
        self._log = log
        self._set_up = set_up
        self._is_needed = is_needed
        self._server: SocketClient | None = None  # that the gateway has
        self._supervision: asyncio.Task[None] | None = None
        self._closed = False
        self._vitals: Vitals | None = None  # when it last answered

    async def get(self) -> Gateway:
        """Return the gateway; start one if none runs. The caller holds `lock`.

        Raises GatewayGone, TunFailed, LimitExceeded, Timeout, Failed, NoSuchTunnel.
        """
        if self.current and self.current.process.exited.is_set():
            await self.stop()
        if self._closed:
            raise errors.NoSuchTunnel(f"'{self._tunnel}' is being closed")
        if not self.current:
            self.current = Gateway.spawn(self._tunnel)
            try:
                await self._begin(self.current, known=())
            except BaseException:
                await self.stop()
                raise
        return self.current

    async def stop(self) -> None:
        """Kill the gateway, and return when it is gone. The caller holds `lock`."""
        if gateway := self.current:
            self.current = None
            self._fd_store.remove(*GATEWAY_KINDS)
            try:
                await gateway.stop()
            except errors.Error as error:
                self._log.error("%s", error)

    async def close(self) -> None:
        """Stop the gateway for good. The caller must not hold `lock`."""
        self._closed = True
        if self.current:  # whoever waits for its answer must not hold us up
            with contextlib.suppress(TimeoutError):
                await self.current.process.kill(DEATH_TIME)
        async with self.lock:
            if self._supervision:
                self._supervision.cancel()
            await self.stop()

    async def adopt(self, fds: GatewayFds) -> None:
        """Adopt the gateway that an earlier daemon left, or kill it. The caller holds `lock`."""
        self.current = Gateway.adopt(fds)
        try:
            known = (await self.current.synchronize()).forwards
            await self._begin(self.current, known)
        except FAILURES as why:
            self._log.warning("the gateway can't be adopted: %s", why)
            await self.stop()

    async def check(self) -> None:
        """Have the gateway replaced if it hangs. Never fails.

        As of engines: one that has used no CPU time since it last answered can't have hung.
        """
        gateway = self.current
        vitals = gateway.process.vitals() if gateway else None
        if not gateway or vitals is None:
            return
        if vitals.stopped or self._vitals is None or vitals.cpu_ns != self._vitals.cpu_ns:
            with contextlib.suppress(*FAILURES):  # it was killed, if it hung
                await gateway.ask(GetCounters())
            self._vitals = await gateway.process.vitals_at_rest()

    def supervise(self) -> None:
        """From now on, replace a gateway or a socket server that ends, while it is needed."""
        if not self._supervision:
            name = f"gateway of {self._tunnel}"
            self._supervision = asyncio.create_task(self._supervise(), name=name)
            self._supervision.add_done_callback(log_failure)

    async def _begin(self, gateway: Gateway, known: Collection[str]) -> None:
        await self._supply_sockets(gateway)
        await self._set_up(gateway, known)
        self._vitals = None
        for kind, fd in zip(GATEWAY_KINDS, gateway.fds, strict=True):
            self._fd_store.put(kind, fd)
        self.supervise()

    async def _supply_sockets(self, gateway: Gateway) -> None:
        """Give a gateway the socket server. Raises as get()."""
        server = await self._sockets.get_server()
        try:
            with server.copied_fds() as fds:
                await gateway.ask(SetSockets(server.home), fds)
        except SocketServerGone as why:
            raise errors.Timeout(str(why)) from None
        self._server = server

    async def _supervise(self) -> None:
        backoff, loop = Backoff(), asyncio.get_running_loop()
        began = loop.time()
        while True:
            gateway, server = self.current, self._server
            if gateway and server:
                await first_of(gateway.process.exited.wait(), server.process.exited.wait())
                if not gateway.process.exited.is_set():
                    await self._replace_sockets(gateway)
                    continue
            delay: float | None = 0.0
            if not gateway or gateway is self.current:  # else we have stopped it
                delay = backoff.crash_delay(loop.time() - began)
                ended = gateway.process.describe_exit() if gateway else "is missing"
                self._log.warning("the gateway %s: starting another", ended)
            await asyncio.sleep(MAX_DELAY if delay is None else min(delay, SHORT_DELAY))
            began = loop.time()
            async with self.lock:
                if not self._is_needed():
                    self._supervision = None
                    return
                try:
                    await self.get()
                except FAILURES as why:
                    self._log.error("there is no gateway: %s", why)

    async def _replace_sockets(self, gateway: Gateway) -> None:
        try:
            await self._supply_sockets(gateway)
        except FAILURES as why:
            self._log.error("the gateway has no sockets: %s", why)
            await asyncio.sleep(MAX_DELAY)
