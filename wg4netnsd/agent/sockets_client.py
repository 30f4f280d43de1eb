"""Ask a socket server for sockets, and believe nothing that it sends; sockets.py is the server.

The daemon and the gateway use this.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
from collections.abc import Iterator
from typing import Final

from wg4netnsd import errors
from wg4netnsd.agent.sockets import ANSWER, REQUEST
from wg4netnsd.aio import blocking, fdpath
from wg4netnsd.aio.process import Process
from wg4netnsd.aio.readable import readable
from wg4netnsd.kernel import rights
from wg4netnsd.kernel.syscalls import SIOCGSKNS, ioctl
from wg4netnsd.text import printable

ANSWER_TIME: Final = 2.0
"""Seconds that the server gets; it needs a tenth of a millisecond, unless the machine is busy."""

MAX_REQUESTS: Final = 64
"""Requests under way at once; others wait. The server's queue has room for 200 or more of them
(net.core.wmem_default), and it may have two clients."""

DEFAULT_PROTOCOL: Final[dict[int, int]] = {
    socket.SOCK_STREAM: socket.IPPROTO_TCP,
    socket.SOCK_DGRAM: socket.IPPROTO_UDP,
}
"""What socket(2) takes for protocol 0."""


class SocketServerGone(Exception):
    """The socket server has ended, or hung or misbehaved and was killed."""


class SocketClient:
    """A socket server's client. Owns the socket that takes requests to it, and its pidfd."""

    def __init__(self, requests: int, pidfd: int, home: tuple[int, int]) -> None:
        """Take ownership of both fds. `home`: the namespace that it is in, by device and inode."""
        self.process = Process(pidfd)
        self._requests = socket.socket(fileno=requests)
        self.home = home
        self._killed = False
        self._slots = asyncio.Semaphore(MAX_REQUESTS)

    async def open(
        self, family: int, kind: int, protocol: int = 0, netns: int | None = None
    ) -> socket.socket:
        """Open a socket of sockets.KINDS in a namespace, by default in the server's own.

        It blocks, as any new socket. Raises SocketServerGone, SocketFailed, LimitExceeded.
        """
        protocol = protocol or DEFAULT_PROTOCOL.get(kind, 0)
        request = REQUEST.pack(family, kind, protocol)
        there = self.home if netns is None else _id_of(netns)
        async with self._slots:
            fd = await self._ask(request, [] if netns is None else [netns])
        if re.fullmatch(r"socket:\[\d+\]", fdpath.target(fd)):
            opened = socket.socket(fileno=fd)
            if _is_as_asked(opened, (family, kind, protocol), there):
                return opened
            opened.close()
        else:
            blocking.close(fd)  # which may take for ever, as any other call on it
        self.kill()
        raise SocketServerGone("the socket server sent something else than was asked for")

    @contextlib.contextmanager
    def copied_fds(self) -> Iterator[list[int]]:
        """Copy the fds that another client is made of: the socket for requests, and the pidfd.

        Raises SocketServerGone, LimitExceeded.
        """
        if self.is_gone:
            raise SocketServerGone("the socket server has ended")
        with contextlib.ExitStack() as stack:
            copies = []
            try:
                for fd in (self._requests.fileno(), self.process.pidfd):
                    copies.append(os.dup(fd))
                    stack.callback(os.close, copies[-1])
            except OSError as error:
                raise errors.LimitExceeded(f"dup: {error.strerror}") from None
            yield copies

    @property
    def is_gone(self) -> bool:
        """Whether the server has ended, or was killed and is about to end."""
        return self._killed or self.process.exited.is_set()

    def kill(self) -> None:
        """Kill the server; `process.exited` is set once it has ended."""
        self._killed = True
        if not self.process.exited.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.process.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Close what we hold. The server ends when all its clients have."""
        self._requests.close()
        if not self.process.exited.is_set():
            self.process.close()

    async def _ask(self, request: bytes, fds: list[int]) -> int:
        """Return the fd that the server answers with; it is the caller's."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise errors.LimitExceeded(f"socketpair: {error.strerror}") from None
        with ours:
            with theirs:
                self._send(request, [theirs.fileno(), *fds])
            ours.setblocking(False)
            try:
                async with asyncio.timeout(ANSWER_TIME):
                    await readable(ours)
            except TimeoutError:
                self.kill()
                why = f"the socket server gave no answer in {ANSWER_TIME:g} s"
                raise SocketServerGone(why) from None
            return self._receive(ours)

    def _send(self, request: bytes, fds: list[int]) -> None:
        try:
            rights.send(self._requests, request, fds, socket.MSG_DONTWAIT)
        except ConnectionError:
            self.kill()
            raise SocketServerGone("the socket server has ended") from None
        except OSError as error:
            why = f"the socket server can't be asked: {error.strerror}"
            raise errors.LimitExceeded(why) from None

    def _receive(self, ours: socket.socket) -> int:
        try:
            data, fds, flags = rights.receive(ours, 64, max_fds=2)
        except ConnectionError:  # it ended with the request unread
            data, fds, flags = b"", [], 0
        if len(data) >= ANSWER.size and len(fds) == 1:
            return fds[0]
        for fd in fds:
            blocking.close(fd)
        if flags & socket.MSG_CTRUNC:
            raise errors.LimitExceeded("no file descriptor left for a socket (RLIMIT_NOFILE)")
        (code,) = ANSWER.unpack_from(data) if len(data) >= ANSWER.size else (0,)
        if code <= 0:
            self.kill()
            raise SocketServerGone("the socket server ended without an answer")
        operation = printable(data[ANSWER.size :].decode(errors="replace"))
        raise _refusal(code, operation)


def _refusal(code: int, operation: str) -> errors.Error:
    text = f"{operation}: {os.strerror(code)}"
    if code in errors.SHORTAGE:
        return errors.LimitExceeded(text)
    if code == errno.EACCES:  # ping_init_sock()
        text += ": the namespace's net.ipv4.ping_group_range allows no ICMP sockets"
    return errors.SocketFailed(text)


def _is_as_asked(opened: socket.socket, kind: tuple[int, ...], netns: tuple[int, int]) -> bool:
    options = (socket.SO_DOMAIN, socket.SO_TYPE, socket.SO_PROTOCOL)
    if tuple(opened.getsockopt(socket.SOL_SOCKET, option) for option in options) != kind:
        return False
    try:
        there = ioctl(opened.fileno(), SIOCGSKNS, 0, "SIOCGSKNS")
    except OSError:  # EPERM: in a namespace that is not ours
        return False
    try:
        return _id_of(there) == netns
    finally:
        os.close(there)


def _id_of(netns: int) -> tuple[int, int]:
    status = os.fstat(netns)
    return status.st_dev, status.st_ino
