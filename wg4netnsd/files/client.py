"""The daemon's side of the file processes: receive a caller's fds, open a caller's files.

server.py says why: nothing that may hang on a caller's file happens in the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections import Counter
from typing import Final

from wg4netnsd import errors
from wg4netnsd.aio import blocking
from wg4netnsd.aio.readable import readable
from wg4netnsd.errors import LimitExceeded, Timeout
from wg4netnsd.files import content
from wg4netnsd.files.protocol import (
    Answer,
    Opened,
    OpenNetns,
    ReadConfig,
    Received,
    ReceiveFds,
    Refusal,
    Request,
    receive,
    send,
)
from wg4netnsd.kernel import rights

log = logging.getLogger(__name__)

MAX_PROCESSES: Final = 64
"""File processes at once, hung ones included."""

MAX_PROCESSES_PER_CALLER: Final = 24
"""Files of one caller that are being read at once, so that it takes three callers to exhaust
MAX_PROCESSES."""

OPEN_TIME: Final = 5.0  # seconds


class Lost(Exception):
    """A file process ended in the middle of a request, or was asked after a cancelled one."""


class FileProcess:
    """The daemon's end of the conversation with one file process. Owns it."""

    def __init__(self, conversation: socket.socket) -> None:
        self._conversation = conversation
        conversation.setblocking(False)
        self.is_busy = False
        """Whether it has yet to answer."""
        self.caller = ""  # as far as is known
        self.held = 0
        """How many of the fds that it holds are still of use."""

    async def ask(self, request: Request, *fds: int) -> tuple[Answer, list[int]]:
        """Return the answer and the fds that came with it.

        Nothing more can be asked if this is cancelled. Raises LimitExceeded if the request can't be
        sent, Lost, and the Error that is the answer.
        """
        if self.is_busy:
            raise Lost
        try:
            send(self._conversation, request, fds)
        except OSError as error:
            raise LimitExceeded(f"a process for files: {error.strerror}") from None
        self.is_busy = True
        try:
            await readable(self._conversation)
            answer, opened = receive(self._conversation)
        except OSError:
            raise Lost from None
        self.is_busy = False
        if isinstance(answer, Refusal):
            raise errors.by_name(answer.error, answer.text)
        if not isinstance(answer, Answer):
            raise Lost
        return answer, opened

    async def open(self, request: OpenNetns | ReadConfig) -> tuple[Opened, int]:
        """Return the answer and its fd, the caller's. Raises Error."""
        seconds = OPEN_TIME if isinstance(request, OpenNetns) else content.READ_TIME + 1
        what = request.file if isinstance(request.file, str) else "the file"
        try:
            async with asyncio.timeout(seconds):
                answer, fds = await self.ask(request)
        except TimeoutError:
            if isinstance(request, ReadConfig):
                raise content.too_slow(request.name) from None
            text = f"netns: its file system gave no answer in {OPEN_TIME:g} s"
            raise Timeout(text) from None
        except Lost:
            raise LimitExceeded(f"{what}: the process that read it has ended") from None
        assert isinstance(answer, Opened)
        if not fds:
            raise LimitExceeded(f"{what}: {os.strerror(errno.EMFILE)}")
        return answer, fds[0]

    async def leave(self) -> None:
        """Ask nothing more, and return when the process has ended: never, if it hangs for ever."""
        try:
            self._conversation.shutdown(socket.SHUT_WR)
            while True:
                await readable(self._conversation)
                # Without room for descriptors: the kernel drops those of a late answer.
                if not self._conversation.recv(1):
                    break
        except OSError:  # it was killed
            pass
        finally:
            self.close()

    def close(self) -> None:
        self._conversation.close()


class HeldFd:
    """A caller's fd that may hang whoever uses it, so that only a file process has it."""

    def __init__(self, processes: FileProcesses, process: FileProcess, index: int) -> None:
        self._processes = processes
        self._process = process
        self._index = index
        self._closed = False

    async def open_netns(self) -> int:
        """Return the fd if it is a network namespace's. Closes it here in any case.

        Raises InvalidNetns, LimitExceeded, Timeout.
        """
        return await self._open(OpenNetns(self._index))

    async def read_config(self, limit: int, name: str = "config") -> int:
        """Return a memfd with its content; `name` is for errors. Closes it in any case.

        Raises InvalidConfig, LimitExceeded, Timeout.
        """
        return await self._open(ReadConfig(self._index, limit, name))

    async def _open(self, request: OpenNetns | ReadConfig) -> int:
        with contextlib.closing(self):
            self._processes.charge(self._process, blocking.caller.get())
            return (await self._process.open(request))[1]

    def close(self) -> None:
        """Have it closed. Repeats are no-ops."""
        if not self._closed:
            self._closed = True
            self._process.held -= 1
            if not self._process.held:
                self._processes.release(self._process)


ReceivedFd = int | HeldFd
"""A descriptor that came over the bus."""


def close(fd: ReceivedFd) -> None:
    """Close a received fd, whoever has it."""
    if isinstance(fd, HeldFd):
        fd.close()
    else:
        blocking.close(fd)


class FileProcesses:
    """All file processes, and their parent. Keeps one in reserve."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        """The result of server.fork()."""
        self.pid = pid
        self._control = control
        self._spare: FileProcess | None = None
        self._in_use: Counter[str] = Counter()  # by their callers; hung ones too
        self._leaving: set[asyncio.Task[None]] = set()

    def end(self) -> None:
        """Close the socket, which ends the parent, and wait for that. A hung process stays."""
        if self._spare:
            self._spare.close()
        self._control.close()
        os.kill(self.pid, signal.SIGCONT)  # somebody may have stopped it
        os.waitpid(self.pid, 0)

    def keep_spare(self) -> None:
        """Have a process in reserve, if the kernel has one to give."""
        if not self._spare:
            with contextlib.suppress(LimitExceeded):
                self._spare = self._start()

    async def receive(self, sock: socket.socket, count: int) -> list[ReceivedFd]:
        """Read `count` bytes, known already, for the fds that come with them.

        Returns fewer if RLIMIT_NOFILE is reached. Raises LimitExceeded with the bytes unread, and
        Lost if that is not known.
        """
        process = self._take("")
        try:
            answer, fds = await process.ask(ReceiveFds(count), sock.fileno())
        except BaseException:
            self.release(process)
            raise
        assert isinstance(answer, Received)
        if answer.length != count:
            self.release(process)
            raise Lost
        process.held = sum(answer.held)
        held = (HeldFd(self, process, index) for index in range(process.held))
        others = iter(fds)
        received = [next(held) if each else next(others, None) for each in answer.held]
        if process.held:
            self.keep_spare()
        else:
            self._put_back(process)
        return [fd for fd in received if fd is not None]

    async def open_netns(self, path: str) -> int:
        """Return an fd, the caller's. Raises InvalidNetns, LimitExceeded, Timeout."""
        return (await self._open(OpenNetns(path)))[1]

    async def read_config(self, path: str, limit: int) -> int:
        """Return a memfd with the file's content. Raises InvalidConfig, LimitExceeded, Timeout."""
        answer, fd = await self._open(ReadConfig(path, limit))
        if answer.readable_by_others:
            log.warning("%s holds a private key and others may read it: chmod 600", path)
        return fd

    async def _open(self, request: OpenNetns | ReadConfig) -> tuple[Opened, int]:
        process = self._take(blocking.caller.get())
        try:
            return await process.open(request)
        finally:
            self.release(process)

    def release(self, process: FileProcess) -> None:
        """Let a process that was taken end; it counts until it has.

        For its caller it counts only if it may hang.
        """
        if not process.is_busy:
            self.charge(process, "")

        async def leave() -> None:
            try:
                await process.leave()
            finally:
                self._uncount(process)

        task = asyncio.create_task(leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        self.keep_spare()

    def charge(self, process: FileProcess, caller: str) -> None:
        """Count a process as in use for this caller. Raises LimitExceeded."""
        if caller != process.caller:
            if caller and self._in_use[caller] >= MAX_PROCESSES_PER_CALLER:
                text = f"{MAX_PROCESSES_PER_CALLER} of your files are being read already"
                raise LimitExceeded(text)
            self._uncount(process)
            process.caller = caller
            self._in_use[caller] += 1

    def _take(self, caller: str) -> FileProcess:
        """Return a process for this caller. Raises LimitExceeded."""
        if self._in_use.total() >= MAX_PROCESSES:
            raise LimitExceeded(f"{MAX_PROCESSES} files are being opened or read")
        process, self._spare = self._spare or self._start(), None
        self._in_use[process.caller] += 1
        try:
            self.charge(process, caller)
        except LimitExceeded:
            self._put_back(process)
            raise
        return process

    def _put_back(self, process: FileProcess) -> None:
        """Keep a process that has touched no file."""
        if self._spare:
            self.release(process)
        else:
            self._spare = process
            self._uncount(process)

    def _uncount(self, process: FileProcess) -> None:
        self._in_use[process.caller] -= 1
        if not self._in_use[process.caller]:
            del self._in_use[process.caller]

    def _start(self) -> FileProcess:
        """Raises LimitExceeded."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise LimitExceeded(f"a process for files: {error.strerror}") from None
        with theirs:
            try:
                rights.send(self._control, b"+", [theirs.fileno()], socket.MSG_DONTWAIT)
            except OSError as error:
                ours.close()
                raise LimitExceeded(f"a process for files: {error.strerror}") from None
        return FileProcess(ours)
