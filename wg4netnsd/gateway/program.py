"""A gateway: its control socket, and the forwards that it serves.

It ends once nobody holds the other end of its control socket: the daemon and its fd store do, for
as long as the tunnel lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from typing import Final

from wg4netnsd import errors
from wg4netnsd.agent.sockets_client import SocketClient
from wg4netnsd.aio.readable import readable
from wg4netnsd.dns.resolver import Resolver
from wg4netnsd.gateway import protocol
from wg4netnsd.gateway.confine import confine
from wg4netnsd.gateway.datagram_forward import DatagramForward
from wg4netnsd.gateway.listeners import adopt_listeners, make_listeners
from wg4netnsd.gateway.protocol import (
    CONTROL_FD,
    AddForward,
    AllCounters,
    Answer,
    Done,
    ForwardAdded,
    GetCounters,
    Refusal,
    RemoveForward,
    Request,
    SetResolvers,
    SetSockets,
)
from wg4netnsd.gateway.sides import Sides
from wg4netnsd.gateway.stream_forward import StreamForward
from wg4netnsd.gateway.target import parse_target

SHORTAGE_SECONDS: Final = 0.2
"""How long the control socket waits after the kernel had no room for a message's fds."""

LISTEN_SECONDS: Final = 5
"""How long listeners in the tunnel may take; a socket server that hangs is killed before."""


class Gateway:
    """Owns the control socket and everything else."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._control.setblocking(False)
        self._sides = Sides()
        self._forwards: dict[str, StreamForward | DatagramForward] = {}

    async def run(self) -> None:
        """Carry out requests until the control socket's other end is closed."""
        try:
            while True:
                await readable(self._control)
                try:
                    text, fds = protocol.receive(self._control)
                except BlockingIOError:
                    continue
                except ConnectionError:  # the other end was closed with an answer unread
                    return
                except OSError as error:
                    self._answer(Refusal("LimitExceeded", f"control socket: {error.strerror}"))
                    await asyncio.sleep(SHORTAGE_SECONDS)
                    continue
                if not text:
                    return
                await self._handle(text, fds)
        finally:
            for forward in self._forwards.values():
                forward.close()
            self._sides.close()
            self._control.close()

    async def _handle(self, text: bytes, fds: list[int]) -> None:
        """Carry out a request and answer it. Closes what it leaves of `fds`."""
        copies: list[int] = []
        try:
            answer = await self._carry_out(protocol.decode_request(text), fds, copies)
        except errors.Error as error:
            answer = Refusal(error.short_name, error.text)
        except ValueError as error:
            answer = Refusal("InvalidArgs", str(error))
        except OSError as error:
            shortage = error.errno in errors.SHORTAGE
            answer = Refusal("LimitExceeded" if shortage else "Failed", str(error))
        finally:
            protocol.close_all(fds)
        self._answer(answer, copies)

    def _answer(self, answer: Answer, fds: list[int] | None = None) -> None:
        with contextlib.suppress(OSError):  # the daemon has died: its successor asks again
            protocol.send(self._control, answer, fds or [])

    async def _carry_out(self, request: Request, fds: list[int], copies: list[int]) -> Answer:
        """Take what it needs out of `fds`; put into `copies` what goes with the answer."""
        match request:
            case SetSockets(netns):
                if len(fds) != 2:
                    raise errors.InvalidArgs("SetSockets needs two fds: requests and pidfd")
                requests, pidfd = fds[:2]
                fds.clear()
                self._sides.tunnel.use(SocketClient(requests, pidfd, netns))
                return Done()
            case SetResolvers(servers, search):
                tunnel = self._sides.tunnel
                tunnel.resolver = Resolver(servers, search, tunnel.open)
                return Done()
            case AddForward():
                return await self._add(request, fds, copies)
            case RemoveForward(name):
                if forward := self._forwards.pop(name, None):
                    forward.close()
                return Done()
            case GetCounters(token):
                counters = {name: each.counters() for name, each in self._forwards.items()}
                return AllCounters(counters, token)

    async def _add(self, spec: AddForward, fds: list[int], copies: list[int]) -> Answer:
        check(spec, self._forwards)
        if fds or spec.kind != "remote":
            listeners = adopt_listeners(spec, fds)
        else:
            try:
                async with asyncio.timeout(LISTEN_SECONDS):
                    listeners = await make_listeners(spec, self._sides.tunnel)
            except TimeoutError:
                raise errors.Timeout("no sockets in the tunnel to listen on") from None
            copies += [each.fileno() for each in listeners.sockets]
        with contextlib.ExitStack() as stack:
            stack.callback(listeners.close)
            kind = DatagramForward if spec.protocol == "udp" else StreamForward
            self._forwards[spec.id] = kind(spec, listeners.sockets, self._sides)
            stack.pop_all()
        return ForwardAdded(listeners.addresses)


def check(spec: AddForward, others: dict[str, StreamForward | DatagramForward]) -> None:
    """Raises InvalidArgs, AlreadyExists."""
    if spec.id in others:
        raise errors.AlreadyExists(f"forward {spec.id}")
    if spec.kind not in ("proxy", "local", "remote"):
        raise errors.InvalidArgs(f"kind: {spec.kind!r}: expected proxy, local or remote")
    if spec.protocol not in ("tcp", "udp"):
        raise errors.InvalidArgs(f"protocol: {spec.protocol!r}: expected tcp or udp")
    if spec.access not in ("user", "anyone"):
        raise errors.InvalidArgs(f"access: {spec.access!r}: expected user or anyone")
    if spec.kind == "proxy":
        if spec.protocol != "tcp" or spec.target:
            raise errors.InvalidArgs("a proxy listens on TCP or Unix sockets, and has no target")
    else:
        target = parse_target(spec.target)
        if target.path and (spec.kind != "remote" or spec.protocol != "tcp"):
            raise errors.InvalidArgs("target: only a remote TCP forward can lead to a Unix socket")
        if spec.credentials:
            raise errors.InvalidArgs("credentials: only a proxy can ask for them")
    if spec.proxy_protocol and (spec.kind != "remote" or spec.protocol != "tcp"):
        raise errors.InvalidArgs("proxy_protocol: only a remote TCP forward has it")
    if spec.idle_seconds < 0 or spec.connect_seconds <= 0:
        raise errors.InvalidArgs("idle_seconds, connect_seconds: expected a positive time")


def main() -> None:
    control = socket.socket(fileno=int(os.environ.pop(CONTROL_FD)))
    control.set_inheritable(False)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    confine()

    async def run() -> None:
        await Gateway(control).run()

    asyncio.run(run())
