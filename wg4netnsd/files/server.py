"""File processes: each touches the files of one caller, and can be left behind if one stalls.

    daemon ── control socket ──► parent ──fork──► file process, which talks with the daemon

On a file system that gives no answer, any system call on a file can hang in the kernel, where not
even SIGKILL ends it: open(), fstat(), read(), and also close(), which FUSE turns into a request. A
thread that hangs so would keep the whole daemon from ending, with all that it holds. So the daemon
never has an fd of such a file: descriptors that come over the bus are received here, and only those
that need no file system are passed on.

A process has nothing of the daemon's by the time it touches a file. It is used for one caller only,
and ends with its conversation. It imports nothing of ours but what works beside it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import Final

from wg4netnsd import errors
from wg4netnsd.aio import fdpath
from wg4netnsd.errors import Error, InvalidConfig, InvalidNetns
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
from wg4netnsd.kernel.forks import exit_after, fork_server
from wg4netnsd.kernel.syscalls import PR_SET_NAME, prctl

NETNS_HINT: Final = "expected a network namespace, such as /proc/PID/ns/net"

# O_NONBLOCK: opening a FIFO that nobody writes to must not wait.
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def fork() -> tuple[int, socket.socket]:
    """Fork the parent of the file processes; return its pid and the socket it takes requests from.

    Each request is an fd: the process's end of its conversation. Call this before there is a second
    thread.
    """
    return fork_server(_serve)


def _serve(control: socket.socket) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the daemon
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children are nobody's to collect
    prctl(PR_SET_NAME, b"wg4netns-files")
    while True:
        _, fds, _ = rights.receive(control, 1)
        if not fds:  # the daemon is gone
            return
        with socket.socket(fileno=fds[0]) as conversation:
            try:
                child = os.fork()
            except OSError as error:
                with contextlib.suppress(OSError):  # the daemon has gone
                    send(conversation, Refusal("LimitExceeded", f"fork: {error.strerror}"))
                continue
            if child == 0:
                control.close()
                exit_after(_Process(conversation).run)


class _Process:
    """One file process."""

    def __init__(self, conversation: socket.socket) -> None:
        self._conversation = conversation
        self._held: list[int] = []

    def run(self) -> None:
        """Answer requests until the daemon ends the conversation."""
        while True:
            try:
                request, fds = receive(self._conversation)
            except ConnectionError:  # the daemon has ended, with an answer unread
                return
            if request is None:
                return
            try:
                answer, opened = self._answer(request, fds)
            except Error as error:
                answer, opened = Refusal(error.short_name, error.text), []
            try:
                send(self._conversation, answer, opened)
            except OSError:  # too many fds on their way: then they are lost
                send(self._conversation, answer)
            for fd in opened:
                os.close(fd)

    def _answer(self, request: Request | Answer, fds: list[int]) -> tuple[Answer, list[int]]:
        """Do what is asked; return the answer and the fds that go with it. Raises Error."""
        match request:
            case ReceiveFds():
                return self._receive(request, *fds)
            case OpenNetns():
                _leave_terminal()
                return Opened(), [self._open_netns(request)]
            case ReadConfig():
                _leave_terminal()
                return self._read_config(request)
        raise ValueError("not a request")

    def _receive(self, request: ReceiveFds, bus: int) -> tuple[Received, list[int]]:
        with socket.socket(fileno=bus) as sock:
            data, fds, _ = rights.receive(sock, request.length)
        held = [not fdpath.needs_no_file_system(fd) for fd in fds]
        self._held = [fd for fd, is_held in zip(fds, held, strict=True) if is_held]
        others = [fd for fd, is_held in zip(fds, held, strict=True) if not is_held]
        return Received(len(data), held), others

    def _open_netns(self, request: OpenNetns) -> int:
        name = request.file if isinstance(request.file, str) else "netns"
        try:
            fd = self._open(request.file)
            # All namespaces are in one file system of the kernel's, which never stalls.
            if os.fstat(fd).st_dev == os.stat("/proc/self/ns/net").st_dev:
                return fd
            os.close(fd)
        except OSError as error:
            text = f"{name}: {error.strerror}"
            raise errors.from_os_error(error, text, InvalidNetns) from None
        raise InvalidNetns(f"not a namespace: {NETNS_HINT}")

    def _read_config(self, request: ReadConfig) -> tuple[Opened, list[int]]:
        name = request.file if isinstance(request.file, str) else request.name
        try:
            fd = self._open(request.file)
            readable = isinstance(request.file, str) and bool(os.fstat(fd).st_mode & 0o077)
            config = content.read_and_close(fd, request.limit, name)
            memfd = os.memfd_create("config")
            with open(memfd, "wb", closefd=False) as file:
                file.write(config)
        except TimeoutError:
            raise content.too_slow(request.name) from None
        except OSError as error:
            text = f"{name}: {error.strerror}"
            raise errors.from_os_error(error, text, InvalidConfig) from None
        return Opened(readable), [memfd]

    def _open(self, file: str | int) -> int:
        """Raises OSError."""
        if isinstance(file, int):
            return self._held[file]
        return os.open(file, _OPEN_FLAGS)


def _leave_terminal() -> None:
    """Let go of the daemon's standard streams, which somebody may read to their end."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
