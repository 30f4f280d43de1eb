"""A gateway's process: spawn it or adopt it, ask it, end it. gateway/ is what runs in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from wg4netnsd import errors
from wg4netnsd.aio.process import Process
from wg4netnsd.aio.readable import readable
from wg4netnsd.engine.engine import DEATH_TIME
from wg4netnsd.gateway import protocol
from wg4netnsd.gateway.protocol import AllCounters, Answer, GetCounters, Refusal, Request

ANSWER_TIME: Final = 10.0
"""Seconds that a gateway gets for a request; sockets in the tunnel may take it 5."""

TUNNEL: Final = "WG4NETNS_TUNNEL"
"""The variable of the gateway's environment that has its tunnel's name, for its log."""


class GatewayGone(Exception):
    """The gateway has ended, or hung or answered nonsense and was killed."""


class GatewayFds(NamedTuple):
    """The fds by which a daemon controls a gateway, or adopts one."""

    pidfd: int
    control: int


class Gateway:
    """One gateway. Owns its process and the control socket. It ends when nobody holds that."""

    def __init__(self, process: Process, control: socket.socket) -> None:
        """Take ownership of both. Call spawn() or adopt() instead."""
        self.process = process
        self.pid = process.pid
        self.fds = GatewayFds(process.pidfd, control.fileno())
        self._control = control
        self._control.setblocking(False)
        self._turn = asyncio.Lock()

    @classmethod
    def spawn(cls, tunnel: str) -> Self:
        """Start a gateway. Raises LimitExceeded, Failed."""
        with contextlib.ExitStack() as stack:
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                stack.callback(ours.close)
                with theirs:
                    child = subprocess.Popen(
                        [sys.executable, "-I", "-m", "wg4netnsd.gateway"],
                        env={protocol.CONTROL_FD: str(theirs.fileno()), TUNNEL: tunnel},
                        pass_fds=(theirs.fileno(),),
                        stdin=subprocess.DEVNULL,
                        process_group=0,  # a terminal's Ctrl-C is for the daemon only
                    )
                stack.callback(child.wait)
                stack.callback(child.kill)
                process = Process(os.pidfd_open(child.pid), child)
            except OSError as error:
                why = f"the gateway can't be started: {error.strerror}"
                raise errors.from_os_error(error, why, errors.Failed) from None
            stack.pop_all()
        return cls(process, ours)

    @classmethod
    def adopt(cls, fds: GatewayFds) -> Self:
        """Adopt a gateway that an earlier daemon spawned. Owns `fds`. It may have ended."""
        return cls(Process(fds.pidfd), socket.socket(fileno=fds.control))

    async def ask(self, request: Request, fds: Sequence[int] = ()) -> tuple[Answer, list[int]]:
        """Return the answer, and the fds that come with it, which are the caller's.

        Raises GatewayGone, and the error of a Refusal.
        """
        # Nobody else must get this answer, even if our caller is cancelled.
        return await asyncio.shield(asyncio.ensure_future(self._ask(request, fds)))

    async def synchronize(self) -> AllCounters:
        """Return the counters, and drop answers to what an earlier daemon has asked."""
        return await asyncio.shield(asyncio.ensure_future(self._synchronize()))

    async def stop(self) -> None:
        """Kill it; return when it is gone. Raises Failed if the kernel does not let go of it."""
        try:
            await self.process.kill(DEATH_TIME)
        except TimeoutError:
            raise errors.Failed(f"the gateway {self.pid} can't be killed") from None
        finally:
            self._control.close()

    async def _ask(self, request: Request, fds: Sequence[int]) -> tuple[Answer, list[int]]:
        async with self._turn:
            self._send(request, fds)
            answer, received = await self._answer()
        if isinstance(answer, Refusal):
            protocol.close_all(received)
            try:
                raise errors.by_name(answer.error, answer.text)
            except KeyError:
                raise errors.Failed(f"{answer.error}: {answer.text}") from None
        return answer, received

    async def _synchronize(self) -> AllCounters:
        token = secrets.randbits(31) or 1
        async with self._turn:
            self._send(GetCounters(token))
            while True:
                answer, received = await self._answer()
                protocol.close_all(received)
                if isinstance(answer, AllCounters) and answer.token == token:
                    return answer

    def _send(self, request: Request, fds: Sequence[int] = ()) -> None:
        if self.process.exited.is_set():
            raise GatewayGone(f"the gateway {self.process.describe_exit()}")
        try:
            protocol.send(self._control, request, list(fds))
        except ConnectionError:
            raise GatewayGone("the gateway has ended") from None
        except OSError as error:
            why = f"the gateway can't be asked: {error.strerror}"
            raise errors.from_os_error(error, why, errors.Failed) from None

    async def _answer(self) -> tuple[Answer, list[int]]:
        try:
            async with asyncio.timeout(ANSWER_TIME):
                await readable(self._control)
            text, fds = protocol.receive(self._control)
        except TimeoutError:
            raise await self._killed(f"the gateway gave no answer in {ANSWER_TIME:g} s") from None
        except OSError as error:
            raise await self._killed(f"the gateway's answer: {error.strerror}") from None
        try:
            if not text:
                raise GatewayGone("the gateway has ended")
            return protocol.decode_answer(text), fds
        except ValueError as error:
            protocol.close_all(fds)
            raise await self._killed(f"the gateway's answer: {error}") from None

    async def _killed(self, why: str) -> GatewayGone:
        with contextlib.suppress(TimeoutError):
            await self.process.kill(DEATH_TIME)
        return GatewayGone(why)
