"""A forward of datagrams: each sender has a flow, with a socket of its own to the target.

sender ──► listener ──► flow's socket ──► target        a flow ends after a time without any
sender ◄── listener ◄── flow's socket ◄── target
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from typing import Final

from wg4netnsd.gateway.access import RefusalLog
from wg4netnsd.gateway.datagrams import BATCH, MAX_DATAGRAM, send_to
from wg4netnsd.gateway.dial import DialError, Network, addresses_of, open_socket
from wg4netnsd.gateway.protocol import DEFAULT_FLOW_SECONDS, AddForward, Counters
from wg4netnsd.gateway.sides import Sides
from wg4netnsd.gateway.target import family_of, parse_target

MAX_FLOWS: Final = 512
"""Flows of one forward; a further one ends the one that was idle for longest."""

MAX_QUEUED: Final = 8
"""Datagrams of a flow that wait until it has a socket; others are dropped."""


class _Flow:
    """A sender's datagrams. Owns its socket to the target."""

    __slots__ = ("address", "last", "listener", "other", "queued", "task")

    def __init__(self, listener: socket.socket, address: tuple[str, int]) -> None:
        self.listener = listener
        self.address = address
        self.other: socket.socket | None = None
        self.queued: list[bytes] = []
        self.last = 0.0
        """When a datagram last passed, by the event loop's clock."""
        self.task: asyncio.Task[None] | None = None


Key = tuple[int, tuple[str, int]]
"""A listener's fd and a sender."""


class DatagramForward:
    """Owns its listeners and all flows."""

    def __init__(self, spec: AddForward, listeners: list[socket.socket], sides: Sides) -> None:
        self._spec = spec
        self._listeners = listeners
        self._sides = sides
        self._target = parse_target(spec.target)
        self._idle = spec.idle_seconds or DEFAULT_FLOW_SECONDS
        self._network: Network = sides.host if spec.kind == "remote" else sides.tunnel
        self._log = RefusalLog(spec.id)
        self._loop = asyncio.get_running_loop()
        self._flows: OrderedDict[Key, _Flow] = OrderedDict()
        """Those that were idle for longest first."""
        self._total = self._refused = self._failed = 0
        self._to_target = self._from_target = 0
        self._sweep: asyncio.TimerHandle | None = None
        for listener in listeners:
            self._loop.add_reader(listener, self._on_sender, listener)

    def counters(self) -> Counters:
        to, back = self._to_target, self._from_target
        bytes_in, bytes_out = (to, back) if self._spec.kind == "remote" else (back, to)
        return Counters(
            len(self._flows), self._total, self._refused, self._failed, bytes_in, bytes_out
        )

    def close(self) -> None:
        if self._sweep:
            self._sweep.cancel()
        for key in list(self._flows):
            self._end(key)
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()

    def _on_sender(self, listener: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                data, sender = listener.recvfrom(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:  # ECONNREFUSED: of an answer to a sender that has gone
                continue
            key = listener.fileno(), sender
            flow = self._flows.get(key) or self._begin(key, listener)
            if not flow:
                continue
            self._touch(key, flow)
            if flow.other:
                self._to_target += send_to(flow.other, data)
            elif len(flow.queued) < MAX_QUEUED:
                flow.queued.append(data)

    def _begin(self, key: Key, listener: socket.socket) -> _Flow | None:
        _, sender = key
        if self._spec.kind == "local" and self._spec.access == "user":
            ours = listener.getsockname()[:2]
            uid = self._sides.access.refused_datagram_uid(sender[:2], ours)
            if uid is not None:
                self._refused += 1
                self._log.write(uid)
                return None
        if len(self._flows) >= MAX_FLOWS:
            self._end(next(iter(self._flows)))
        flow = self._flows[key] = _Flow(listener, sender)
        self._total += 1
        flow.task = self._loop.create_task(self._connect(key, flow))
        return flow

    async def _connect(self, key: Key, flow: _Flow) -> None:
        try:
            async with asyncio.timeout(self._spec.connect_seconds):
                address = (await addresses_of(self._network, self._target.host))[0]
                family = family_of(address)
                assert family is not None
                opened = await open_socket(
                    self._network, family, socket.SOCK_DGRAM, str(self._target)
                )
        except (DialError, TimeoutError):
            self._fail(key)
            return
        flow.other = opened
        try:
            opened.connect((address, self._target.port))
        except OSError:
            self._fail(key)
            return
        self._loop.add_reader(opened, self._on_target, key, flow)
        for data in flow.queued:
            self._to_target += send_to(opened, data)
        flow.queued.clear()

    def _fail(self, key: Key) -> None:
        self._failed += 1
        self._end(key)

    def _on_target(self, key: Key, flow: _Flow) -> None:
        assert flow.other
        for _ in range(BATCH):
            try:
                data = flow.other.recv(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:  # ECONNREFUSED: nobody is at the target's port
                continue
            self._touch(key, flow)
            self._from_target += send_to(flow.listener, data, flow.address)

    def _touch(self, key: Key, flow: _Flow) -> None:
        flow.last = self._loop.time()
        self._flows.move_to_end(key)
        if not self._sweep:
            self._sweep = self._loop.call_later(self._idle, self._end_idle)

    def _end_idle(self) -> None:
        """End flows that have been idle for too long; come again when the next may be."""
        self._sweep = None
        while self._flows:
            key, flow = next(iter(self._flows.items()))
            if (at := flow.last + self._idle) > self._loop.time():
                self._sweep = self._loop.call_at(at, self._end_idle)
                return
            self._end(key)

    def _end(self, key: Key) -> None:
        flow = self._flows.pop(key, None)
        if not flow:
            return
        if flow.other:
            self._loop.remove_reader(flow.other)
            flow.other.close()
        if flow.task:
            flow.task.cancel()
