"""The daemon's side of the agent: ask for an interface, for a change of one, or to watch one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from wg4netnsd import errors
from wg4netnsd.agent.protocol import (
    Answer,
    ChangeInterface,
    CreateInterface,
    InterfaceLink,
    OpenUdpSockets,
    Refusal,
    Request,
    ServeSockets,
    SocketServer,
    WatchInterface,
    decode_answer,
    encode,
)
from wg4netnsd.agent.sockets_client import ANSWER_TIME, SocketClient
from wg4netnsd.aio.readable import readable
from wg4netnsd.aio.tasks import finish
from wg4netnsd.kernel import rights, tun

GIVE_UP_TIME: Final = 5.0
"""Seconds that an abandoned request gets to end."""


class WatchedLink(NamedTuple):
    """A netlink socket that reports what becomes of an interface; owns `fd`."""

    fd: int
    link: InterfaceLink


class NewInterface(NamedTuple):
    """An interface by its TUN, and the socket that reports what becomes of it; owns both."""

    tun_fd: int
    watched: WatchedLink

    def close(self) -> None:
        os.close(self.tun_fd)
        os.close(self.watched.fd)


class Conversation:
    """One request, which a child of the agent answers: a new TUN first, the rest after that."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self._fds: list[int] = []

    async def created(self) -> NewInterface:
        """Return the interface as soon as it is in its namespace; its fds are the caller's.

        Raises InvalidNetns, TunFailed, AlreadyExists, LimitExceeded.
        """
        watched = await self.watched()
        return NewInterface(self._fds.pop(), watched)

    async def watched(self) -> WatchedLink:
        """Return what reports on the interface; its fd is the caller's. Raises as `created()`."""
        link = await self._answer()
        assert isinstance(link, InterfaceLink)
        return WatchedLink(self._fds.pop(), link)

    async def socket_server(self) -> tuple[int, int]:
        """Return the socket that takes requests, and the server's pidfd; both are the caller's.

        It answers requests once `done()` has returned. Raises as `created()`.
        """
        assert isinstance(await self._answer(), SocketServer)
        requests, pidfd = self._fds
        self._fds = []
        return requests, pidfd

    async def done(self) -> None:
        """Return when everything that was asked for is done. Raises as `created()`."""
        await self._answer()

    async def sockets(self) -> list[int]:
        """Return the fds that were asked for; they are the caller's. Raises as `created()`."""
        await self.done()
        fds, self._fds = self._fds, []
        return fds

    async def give_up(self) -> None:
        """Return when the agent's child has ended, so that nothing more comes of the request."""
        with contextlib.suppress(TimeoutError, OSError, errors.LimitExceeded):
            async with asyncio.timeout(GIVE_UP_TIME):
                while await self._receive():
                    pass

    def close(self) -> None:
        """Close the socket and every fd that nobody took."""
        for fd in self._fds:
            os.close(fd)
        self._connection.close()

    async def _answer(self) -> Answer:
        while b"\n" not in self._buffer:
            data = await self._receive()
            if not data:
                raise errors.TunFailed("the agent ended without an answer")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = decode_answer(line)
        if isinstance(answer, Refusal):
            raise errors.by_name(answer.error, answer.text)
        return answer

    async def _receive(self) -> bytes:
        await readable(self._connection)
        try:
            data, fds, flags = rights.receive(self._connection, 4096, max_fds=2)
        except ConnectionError:  # the child ended with the request unread
            return b""
        self._fds += fds
        if flags & socket.MSG_CTRUNC:
            raise errors.LimitExceeded("no file descriptor left for the TUN (RLIMIT_NOFILE)")
        return data


class Agent:
    """The agent's process, and the socket that takes requests to it. Owns both.

    Every request raises TunFailed if the agent is gone, and LimitExceeded for want of fds.
    """

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self._control = control

    def end(self) -> None:
        """Close the socket, which ends the agent, and wait for that."""
        self._control.close()
        os.kill(self.pid, signal.SIGCONT)  # somebody may have stopped it
        os.waitpid(self.pid, 0)

    @contextlib.asynccontextmanager
    async def create(self, netns: int, request: CreateInterface) -> AsyncIterator[Conversation]:
        """Ask for an interface in the namespace; leaving the block ends the conversation.

        Left by an exception, it leaves no interface except one whose TUN was taken.
        """
        async with self._ask(netns, request) as conversation:
            yield conversation

    async def change(self, netns: int, request: ChangeInterface) -> None:
        """Have an interface's settings changed: all of it, or nothing.

        Cancelled, it returns when the agent's child has ended, with the change made or not.
        Raises TunFailed, also when the interface is not there any more, and InvalidNetns.
        """
        async with self._ask(netns, request) as conversation:
            await conversation.done()

    async def watch(self, tun_fd: int) -> WatchedLink:
        """Return what reports on a TUN's interface, wherever it is; its fd is the caller's.

        Raises TunFailed, also when the interface is gone, and InvalidNetns.
        """
        async with self._ask(tun_fd, WatchInterface()) as conversation:
            return await conversation.watched()

    async def serve_sockets(self, tun_fd: int) -> SocketClient:
        """Start a socket server beside a TUN's interface; its client is the caller's.

        Raises TunFailed, InvalidNetns, Timeout.
        """
        async with self._ask(tun_fd, ServeSockets()) as conversation:
            requests, pidfd = await conversation.socket_server()
            client = SocketClient(requests, pidfd, _home_of(tun_fd))
            try:
                async with asyncio.timeout(ANSWER_TIME):
                    await conversation.done()
            except BaseException as error:
                client.kill()
                client.close()
                if isinstance(error, TimeoutError):
                    why = f"the socket server did not start within {ANSWER_TIME:g} s"
                    raise errors.Timeout(why) from None
                raise
            return client

    async def open_udp_sockets(self, fd: int, port: int, *, by_tun: bool) -> list[socket.socket]:
        """Return UDP sockets bound to `port` of a namespace; with `by_tun`, of a TUN's interface.

        Raises PortInUse, EngineFailed, InvalidNetns, TunFailed.
        """
        async with self._ask(fd, OpenUdpSockets(port, by_tun)) as conversation:
            return [socket.socket(fileno=fd) for fd in await conversation.sockets()]

    @contextlib.asynccontextmanager
    async def _ask(self, fd: int, request: Request) -> AsyncIterator[Conversation]:
        """Begin a conversation. Left by an exception, return when the agent's child has ended."""
        with contextlib.ExitStack() as stack:
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                conversation = Conversation(ours)
                stack.callback(conversation.close)
                ours.setblocking(False)
                with theirs:
                    self._hand_over(fd, theirs.fileno())
                await asyncio.get_running_loop().sock_sendall(ours, encode(request))
                ours.shutdown(socket.SHUT_WR)
            except OSError as error:
                text = f"the agent can't be reached: {error.strerror}"
                raise errors.from_os_error(error, text, errors.TunFailed) from None
            try:
                yield conversation
            except BaseException:
                # It may be cancelled too, as when the engine and the lease end at once.
                await finish(conversation.give_up())
                raise

    def _hand_over(self, *fds: int) -> None:
        rights.send(self._control, b"\0", fds, socket.MSG_DONTWAIT)


def _home_of(tun_fd: int) -> tuple[int, int]:
    """Return the device and inode of the namespace that a TUN was opened in."""
    home = tun.home_fd(tun_fd)
    try:
        status = os.fstat(home)
        return status.st_dev, status.st_ino
    finally:
        os.close(home)
