"""Relay bytes between the two stream sockets of a connection, by splice(2): no copy is made here.

    outside ──splice──► pipe ──splice──► inside         one such direction, and one back

All connections wait in one epoll(7), edge-triggered: a socket is registered once, and no system
call is needed when a direction begins or ceases to wait. asyncio's loop watches that epoll as one
file, so it is woken once for all that is ready.

An end of file is passed on as one (a half-close); a reset, as a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Final

from wg4netnsd.gateway.pipes import SIZE, Pipe, PipePool

BURST: Final = 16
"""Reads of one direction in a row, before it is another one's turn."""

MAX_EVENTS: Final = 64
PEEK_SIZE: Final = 65536
"""Bytes that are copied at a time if there is no pipe."""

_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_EVENTS: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: close() resets the connection
_ORDERLY: Final = struct.pack("ii", 0, 0)


class _Direction:
    """The bytes from one socket to the other."""

    __slots__ = ("ended", "held", "hung", "passed", "pipe", "sink", "source", "waits")

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.pipe: Pipe | None = None
        self.held = 0
        """Bytes in the pipe."""
        self.passed = 0
        """Bytes in all."""
        self.waits = False
        """Whether the sink was full."""
        self.ended = False
        """Whether the source has sent its end of file."""
        self.hung = False
        """Whether the source takes nothing any more either."""


class Relay:
    """A connection: its two sockets, which it owns, and two directions."""

    __slots__ = ("inwards", "last", "on_end", "outwards")

    def __init__(
        self, outside: socket.socket, inside: socket.socket, on_end: Callable[[Relay], object]
    ) -> None:
        """`inside` is the socket in the tunnel. `on_end` is called once it is closed."""
        self.inwards = _Direction(outside, inside)
        self.outwards = _Direction(inside, outside)
        self.on_end = on_end
        self.last = 0.0
        """When a byte last passed, by the event loop's clock."""


class Relays:
    """All connections that are relayed."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._pipes = PipePool()
        self._of_fd: dict[int, tuple[Relay, _Direction, _Direction]] = {}
        """By a socket: the direction that it is the source of, and the other one."""
        self._unfinished: list[int] = []
        """Sources that had BURST."""
        self._loop.add_reader(self._epoll.fileno(), self._on_ready)

    def start(self, relay: Relay) -> None:
        """Relay until both sides have ended, one fails, or `end()`. Owns the relay from now on.

        If this process is killed, the kernel resets its connections: a client must not take what
        has come so far for all of it.
        """
        relay.last = self._loop.time()
        inwards, outwards = relay.inwards, relay.outwards
        for ours, other in ((inwards, outwards), (outwards, inwards)):
            self._of_fd[ours.source.fileno()] = relay, ours, other
        try:
            for each in (inwards, outwards):
                each.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self._epoll.register(each.source.fileno(), _EVENTS)
        except OSError:  # ENOMEM, or ENOSPC of /proc/sys/fs/epoll/max_user_watches
            self.end(relay, reset=True)

    def end(self, relay: Relay, reset: bool = False) -> None:
        """Close a connection's sockets. Repeats are no-ops."""
        for each in (relay.inwards, relay.outwards):
            if (fd := each.source.fileno()) < 0:
                return
            del self._of_fd[fd]
            if each.pipe:
                self._pipes.put(each.pipe, empty=not each.held)
                each.pipe = None
        for each in (relay.inwards, relay.outwards):
            if not reset:
                with contextlib.suppress(OSError):
                    each.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ORDERLY)
            each.source.close()  # which ends its registration
        relay.on_end(relay)

    def close(self) -> None:
        """End everything."""
        self._loop.remove_reader(self._epoll.fileno())
        for relay, *_ in list(self._of_fd.values()):
            self.end(relay, reset=True)
        self._pipes.close()
        self._epoll.close()

    def _on_ready(self) -> None:
        if self._epoll.closed:
            return
        now = self._loop.time()
        unfinished, self._unfinished = self._unfinished, []
        for fd in unfinished:
            self._on_event(fd, select.EPOLLIN, now)
        for fd, ready in self._epoll.poll(0, MAX_EVENTS):
            self._on_event(fd, ready, now)
        if self._unfinished:  # nothing of the epoll's will say so
            self._loop.call_soon(self._on_ready)

    def _on_event(self, fd: int, ready: int, now: float) -> None:
        if fd not in self._of_fd:
            return  # closed on behalf of an earlier event
        relay, ours, other = self._of_fd[fd]
        before = ours.passed + other.passed
        try:
            if ready & _READABLE and not ours.ended:
                self._pass_on(ours)
            if ready & select.EPOLLOUT and other.waits:
                self._pass_on(other)
        except OSError:  # ECONNRESET of the source, EPIPE of the sink, ETIMEDOUT of either
            self.end(relay, reset=True)
            return
        if ours.passed + other.passed != before:
            relay.last = now
        # TCP says so of a connection that was reset, or closed in both directions; a Unix socket,
        # of a peer that has closed.
        ours.hung |= bool(ready & select.EPOLLHUP)
        if (ours.ended and (other.ended or ours.hung)) or (other.ended and other.hung):
            self.end(relay, reset=bool(ready & select.EPOLLERR))

    def _pass_on(self, direction: _Direction) -> None:
        """Pass on what there is, up to BURST. Raises OSError."""
        source, sink = direction.source.fileno(), direction.sink.fileno()
        direction.waits = False
        for _ in range(BURST):
            pipe = direction.pipe
            if pipe is None:
                pipe = direction.pipe = self._pipes.get()
                if pipe is None:
                    if _copy(direction):
                        continue
                    return
            if not direction.held:
                try:
                    direction.held = os.splice(source, pipe.writer, SIZE, flags=_FLAGS)
                except BlockingIOError:
                    self._release(direction)
                    return
                if not direction.held:
                    self._release(direction)
                    _end(direction)
                    return
            try:
                passed = os.splice(pipe.reader, sink, direction.held, flags=_FLAGS)
            except BlockingIOError:
                direction.waits = True
                return
            direction.held -= passed
            direction.passed += passed
        self._unfinished.append(source)

    def _release(self, direction: _Direction) -> None:
        if direction.pipe:
            self._pipes.put(direction.pipe, empty=True)
            direction.pipe = None


def _copy(direction: _Direction) -> bool:
    """Pass on without a pipe, which holds nothing back; return whether there may be more."""
    try:
        data = direction.source.recv(PEEK_SIZE, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    if not data:
        _end(direction)
        return False
    try:
        sent = direction.sink.send(data)
    except BlockingIOError:
        direction.waits = True
        return False
    direction.source.recv(sent)
    direction.passed += sent
    return True


def _end(direction: _Direction) -> None:
    """Pass on an end of file."""
    direction.ended = True
    with contextlib.suppress(OSError):  # ENOTCONN: it has gone meanwhile, which its event says
        direction.sink.shutdown(socket.SHUT_WR)
