"""Descriptors that travel with the bytes of a Unix socket (SCM_RIGHTS, unix(7))."""

from __future__ import annotations

import array
import socket
from collections.abc import Sequence
from typing import Final

MAX_FDS: Final = 253
"""The kernel's SCM_MAX_FD: no message brings more."""


def send(
    sock: socket.socket, data: bytes | memoryview, fds: Sequence[int] = (), flags: int = 0
) -> int:
    """Send bytes with copies of `fds`; return how many bytes were sent. Raises OSError."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return sock.sendmsg([data], rights, flags)


def receive(sock: socket.socket, size: int, max_fds: int = MAX_FDS) -> tuple[bytes, list[int], int]:
    """Return what recvmsg(2) returns: at most `size` bytes, the fds with them, and flags.

    The caller owns the fds. MSG_CTRUNC among the flags: more came than `max_fds`, or than
    RLIMIT_NOFILE has room for. Raises OSError.
    """
    # recv_fds() of Python 3.11 ignores its flags, hence recvmsg().
    space = socket.CMSG_SPACE(max_fds * 4)
    data, ancillary, flags, _ = sock.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, rights in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(rights[: len(rights) // fds.itemsize * fds.itemsize])
    return data, list(fds), flags
