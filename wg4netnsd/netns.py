"""Network namespaces: open them, know them apart, and have the agent put an interface into them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from wg4netnsd import blocking, errors, paths, tun
from wg4netnsd.agent import Agent, Change, Request
from wg4netnsd.linkwatch import LinkStatus, Watched
from wg4netnsd.syscalls import CLONE_NEWNET, NS_GET_NSTYPE
from wg4netnsd.tasks import finish

NETNS_HINT: Final = "expected a network namespace, such as /proc/PID/ns/net"

OPEN_TIME: Final = 5.0  # seconds


class NetnsId(NamedTuple):
    """What makes a namespace the same one, whatever path or fd named it (namespaces(7))."""

    device: int
    inode: int


@dataclass
class Netns:
    """A network namespace that is not ours; owns `fd`, which keeps it alive."""

    fd: int
    """-1 when it was let go."""
    id: NetnsId

    def let_go(self) -> None:
        """No longer keep it alive; may be called again."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        self.let_go()


def identify(fd: int) -> Netns:
    """Make a Netns of an fd, which stays the caller's if this raises.

    May block for ever on an fd of a stalled file system: not for the event loop's thread.
    Raises InvalidNetns.
    """
    try:
        if fcntl.ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET:
            raise errors.InvalidNetns(f"a namespace of another type: {NETNS_HINT}")
    except OSError as error:
        if error.errno == errno.EBADF:  # fstat would work on it, setns would not
            raise errors.InvalidNetns(
                f"the fd is of O_PATH: {NETNS_HINT}, opened O_RDONLY"
            ) from None
        raise errors.InvalidNetns(f"not a namespace: {NETNS_HINT}") from None
    status = os.fstat(fd)
    netns = Netns(fd, NetnsId(status.st_dev, status.st_ino))
    if netns.id == own_id():
        raise errors.InvalidNetns("it is the daemon's own: expected an unprivileged namespace")
    return netns


async def adopt(fd: int) -> Netns:
    """Make a Netns of a caller's fd; owns it in any case. Raises InvalidNetns, Timeout."""
    try:
        # What has no path, like a namespace that was opened from /proc, belongs to no file system
        # that could stall. A bind-mounted namespace has one.
        if not paths.has_path(fd):
            return identify(fd)
        return await _call(identify, fd, discard=blocking.let_go)  # the fd is ours to close, below
    except BaseException:
        blocking.close(fd)
        raise


async def open_path(path: str) -> Netns:
    """Open a namespace by its absolute path. Raises InvalidNetns, InvalidArgs, Timeout."""
    paths.refuse_relative(path, "netns_path")
    return await _call(_open, path, discard=Netns.close)


async def _call(
    function: Callable[..., Netns], argument: int | str, discard: Callable[[Netns], object]
) -> Netns:
    try:
        return await blocking.call(OPEN_TIME, function, argument, discard=discard)
    except TimeoutError:
        raise errors.Timeout(f"netns: its file system gave no answer in {OPEN_TIME:g} s") from None


def _open(path: str) -> Netns:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in errors.LACKING:
            raise errors.LimitExceeded(f"{path}: {error.strerror}") from None
        raise errors.InvalidNetns(f"{path}: {error.strerror}") from None
    try:
        return identify(fd)
    except errors.InvalidNetns:
        os.close(fd)
        raise


def of_tun(tun_fd: int) -> Netns:
    """The namespace that a TUN's interface is in, which it keeps alive until it is closed.

    Raises TunFailed when the interface is gone.
    """
    try:
        fd = tun.netns_fd(tun_fd)
    except OSError as error:
        if error.errno not in (errno.EBADFD, errno.EINVAL):
            raise
        raise errors.TunFailed("the interface is gone") from None
    status = os.fstat(fd)
    return Netns(fd, NetnsId(status.st_dev, status.st_ino))


@functools.cache
def own_id() -> NetnsId:
    """Ours, and so the host's: the daemon never leaves it."""
    status = os.stat("/proc/self/ns/net")
    return NetnsId(status.st_dev, status.st_ino)


# ---------------------------------------------------------------- the agent's client


class Tun(NamedTuple):
    """The interface of a namespace, by its TUN fd, and what LinkWatch watches it by; owns two."""

    fd: int
    watched: Watched

    @property
    def interface(self) -> str:
        return self.watched.status.name

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.watched.fd)


class Provisioning:
    """One conversation with a child of the agent: first the TUN, if it is new, then the rest."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self._fds: list[int] = []

    async def tun(self) -> Tun:
        """The TUN as soon as it exists, and is in its namespace; its fds are the caller's.

        Raises InvalidNetns, TunFailed, AlreadyExists, LimitExceeded.
        """
        watched = await self.watched()
        return Tun(self._fds.pop(), watched)

    async def watched(self) -> Watched:
        """What LinkWatch watches an interface by; its fd is the caller's. Raises as `tun()`."""
        answer = await self._answer()
        at, ifindex, nsid, status = answer["watched"]
        return Watched(self._fds.pop(at), ifindex, nsid, LinkStatus(*status))

    async def configured(self) -> None:
        """Return when all is done that was asked for. Raises as `tun()`."""
        await self._answer()

    async def give_up(self) -> None:
        """Return when the agent's child has ended, so that nothing more comes of the request."""
        with contextlib.suppress(TimeoutError, OSError, errors.LimitExceeded):
            async with asyncio.timeout(OPEN_TIME):
                while await self._receive():
                    pass

    def close(self) -> None:
        """Close the socket and what nobody took."""
        for fd in self._fds:
            os.close(fd)
        self._connection.close()

    async def _answer(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            data = await self._receive()
            if not data:
                raise errors.TunFailed("the agent ended without an answer")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise errors.named(answer["error"], answer["text"])
        return answer

    async def _receive(self) -> bytes:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._connection, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._connection)
        try:
            data, ancillary, flags, _ = self._connection.recvmsg(
                4096, socket.CMSG_SPACE(2 * 4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:  # the child ended with the request unread
            return b""
        for _level, _type, fds in ancillary:
            self._fds += struct.unpack(f"{len(fds) // 4}i", fds[: len(fds) // 4 * 4])
        if flags & socket.MSG_CTRUNC:
            raise errors.LimitExceeded("no file descriptor left for the TUN (RLIMIT_NOFILE)")
        return data


@asynccontextmanager
async def provision(agent: Agent, netns: Netns, request: Request) -> AsyncIterator[Provisioning]:
    """Ask the agent for an interface; leaving the block ends the conversation.

    Left by an exception, it leaves no interface but the one whose fd was taken.

    Raises TunFailed, also when the agent is gone.
    """
    async with _converse(agent, netns.fd, {"create": request}) as provisioning:
        yield provisioning


async def change(agent: Agent, netns: Netns, request: Change) -> None:
    """Have the agent change an interface's settings: all of it, or nothing.

    Cancelled, it returns when the agent's child has ended, with the change made or not.

    Raises TunFailed, also when the interface is not there any more, and InvalidNetns.
    """
    async with _converse(agent, netns.fd, {"change": request}) as provisioning:
        await provisioning.configured()


async def watch(agent: Agent, tun_fd: int) -> Watched:
    """What LinkWatch watches a TUN's interface by, wherever it is now; its fd is the caller's.

    Raises TunFailed, also when the interface is gone, InvalidNetns, LimitExceeded.
    """
    async with _converse(agent, tun_fd, {"watch": None}) as provisioning:
        return await provisioning.watched()


@asynccontextmanager
async def _converse(
    agent: Agent, fd: int, request: dict[str, Request | Change | None]
) -> AsyncIterator[Provisioning]:
    """Left by an exception, it returns when the agent's child has ended."""
    with ExitStack() as stack:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            provisioning = Provisioning(ours)
            stack.callback(provisioning.close)
            ours.setblocking(False)
            with theirs:
                _pass(agent.control, fd, theirs.fileno())
            await asyncio.get_running_loop().sock_sendall(ours, json.dumps(request).encode())
            ours.shutdown(socket.SHUT_WR)
        except OSError as error:
            kind = errors.LimitExceeded if error.errno in errors.LACKING else errors.TunFailed
            raise kind(f"the agent can't be reached: {error.strerror}") from None
        try:
            yield provisioning
        except BaseException:
            # It may be cancelled too, as when the engine and the lease end at once.
            await finish(provisioning.give_up())
            raise


def _pass(control: socket.socket, *fds: int) -> None:
    rights = struct.pack(f"{len(fds)}i", *fds)
    control.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_DONTWAIT)
