"""A forward of streams: accept, let in, hear where to, connect, and relay.

listener ──accept──► Access ──► Session ──► connect ──► Relay
                       │           │           │
                    refused     garbage      failed: the client's protocol says why
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import socket
from typing import Final

from wg4netnsd.errors import SHORTAGE
from wg4netnsd.gateway.access import RefusalLog
from wg4netnsd.gateway.client_stream import ClientStream
from wg4netnsd.gateway.dial import Dial, DialError, connect
from wg4netnsd.gateway.protocol import AddForward, Counters
from wg4netnsd.gateway.proxy_protocol import encode_header
from wg4netnsd.gateway.proxy_session import ProxySession, Refused
from wg4netnsd.gateway.relay import Relay
from wg4netnsd.gateway.sides import Sides
from wg4netnsd.gateway.target import Target, parse_target

ACCEPTS: Final = 32
"""Connections of one listener in a row."""

SHORTAGE_SECONDS: Final = 0.2
"""How long a forward accepts nobody after the kernel lacked an fd or memory. Its clients wait."""


class StreamForward:
    """Owns its listeners and all connections that came by them."""

    def __init__(self, spec: AddForward, listeners: list[socket.socket], sides: Sides) -> None:
        self._spec = spec
        self._listeners = listeners
        self._sides = sides
        self._target = parse_target(spec.target) if spec.target else Target()
        self._loop = asyncio.get_running_loop()
        self._log = RefusalLog(spec.id)
        self._counters = Counters()
        self._relays: set[Relay] = set()
        self._sessions: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._resume: asyncio.TimerHandle | None = None
        self._accept()

    def counters(self) -> Counters:
        ended = self._counters
        return ended._replace(
            open=len(self._sessions) + len(self._relays),
            bytes_out=ended.bytes_out + sum(each.inwards.passed for each in self._relays),
            bytes_in=ended.bytes_in + sum(each.outwards.passed for each in self._relays),
        )

    def close(self) -> None:
        """End it with its connections. Repeats are no-ops."""
        self._pause()
        for timer in (self._sweep, self._resume):
            if timer:
                timer.cancel()
        while self._listeners:
            self._listeners.pop().close()
        for session in self._sessions:
            session.cancel()
        for relay in list(self._relays):
            self._sides.relays.end(relay, reset=True)

    # ------------------------------------------------------------ accept

    def _accept(self) -> None:
        for listener in self._listeners:
            self._loop.add_reader(listener, self._on_client, listener)

    def _pause(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)

    def _on_client(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS):
            try:
                connection = accept(listener)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in SHORTAGE:
                    self._pause()
                    self._resume = self._loop.call_later(SHORTAGE_SECONDS, self._accept)
                    return
                if error.errno == errno.EINVAL:  # somebody has shut the listener down
                    self._loop.remove_reader(listener)
                    return
                continue  # accept(2): the connection's own, which has ended already
            if self._let_in(connection):
                self._count(total=1)
                session = self._loop.create_task(self._serve(connection))
                self._sessions.add(session)
                session.add_done_callback(self._sessions.discard)
            else:
                connection.close()

    def _let_in(self, connection: socket.socket) -> bool:
        if self._spec.kind == "remote" or self._spec.access == "anyone":
            return True
        uid = self._sides.access.refused_uid(connection)
        if uid is None:
            return True
        self._count(refused=1)
        self._log.write(uid)
        return False

    def _count(self, **more: int) -> None:
        now = self._counters
        self._counters = now._replace(
            **{name: getattr(now, name) + each for name, each in more.items()}
        )

    # ------------------------------------------------------------ serve

    async def _serve(self, connection: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            try:
                if connection.family != socket.AF_UNIX:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                other = await self._hear(connection)
            except Refused:
                self._count(refused=1)
                return
            except (DialError, EOFError, TimeoutError, OSError):
                self._count(failed=1)
                return
            stack.pop_all()
        if other:
            self._relay(connection, other)
        else:
            connection.close()

    async def _hear(self, connection: socket.socket) -> socket.socket | None:
        """Return the connected other side; None if the session was served to its end.

        Raises DialError, EOFError, TimeoutError, OSError.
        """
        if self._spec.kind == "proxy":
            session = ProxySession(
                ClientStream(connection), self._dial(), self._spec, self._sides, self._count
            )
            return await session.run()
        network = self._sides.host if self._spec.kind == "remote" else self._sides.tunnel
        other = await connect(network, self._target, self._spec.connect_seconds)
        if self._spec.proxy_protocol:
            with contextlib.ExitStack() as stack:
                stack.callback(other.close)
                header = encode_header(connection.getpeername()[:2], connection.getsockname()[:2])
                async with asyncio.timeout(self._spec.connect_seconds):
                    await self._loop.sock_sendall(other, header)
                stack.pop_all()
        return other

    def _dial(self) -> Dial:
        return functools.partial(connect, self._sides.tunnel, seconds=self._spec.connect_seconds)

    def _relay(self, connection: socket.socket, other: socket.socket) -> None:
        from_inside = self._spec.kind == "remote"
        outside, inside = (other, connection) if from_inside else (connection, other)
        for each in (outside, inside):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        relay = Relay(outside, inside, self._on_end)
        self._relays.add(relay)
        self._sides.relays.start(relay)
        if self._spec.idle_seconds and not self._sweep:
            self._sweep = self._loop.call_later(self._spec.idle_seconds, self._end_idle)

    def _on_end(self, relay: Relay) -> None:
        self._relays.discard(relay)
        self._count(bytes_out=relay.inwards.passed, bytes_in=relay.outwards.passed)

    def _end_idle(self) -> None:
        """End connections that have been idle for too long; come again when the next may be."""
        self._sweep = None
        due = self._loop.time() - self._spec.idle_seconds
        for relay in [each for each in self._relays if each.last <= due]:
            self._sides.relays.end(relay, reset=True)
        if self._relays:
            first = min(each.last for each in self._relays)
            at = first + self._spec.idle_seconds
            self._sweep = self._loop.call_at(at, self._end_idle)


def accept(listener: socket.socket) -> socket.socket:
    """Return the next connection, which does not block. Raises OSError."""
    connection, _ = listener.accept()
    connection.setblocking(False)
    return connection
