"""Who may use a listener: processes of our uid, or anyone who reaches it."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Final

from wg4netnsd.gateway.log import say
from wg4netnsd.kernel.sock_diag import Address, SockDiag

LOG_SECONDS: Final = 60
"""A forward logs refusals at most once in this time."""

_UCRED: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Access:
    """Lets in by uid, which the kernel says.

    A socket of another machine, or of another network namespace, has no uid here and is refused.
    So is a client of TCP that has closed both ways by the time that its connection is accepted.
    """

    def __init__(self) -> None:
        """Raises OSError."""
        self._uid = os.geteuid()
        self._sock_diag = SockDiag()

    def close(self) -> None:
        self._sock_diag.close()

    def refused_uid(self, connection: socket.socket) -> int | None:
        """Return the uid of a stream socket's peer if it is not ours, -1 if nobody knows it."""
        if connection.family == socket.AF_UNIX:
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            _, uid, _ = _UCRED.unpack(raw)
        else:
            try:
                remote = connection.getpeername()[:2]
                uid = self._ask(socket.IPPROTO_TCP, remote, connection.getsockname()[:2])
            except OSError:  # ENOTCONN: it has gone
                uid = -1
        return None if uid == self._uid else uid

    def refused_datagram_uid(self, sender: Address, ours: Address) -> int | None:
        """Return the uid of a datagram's sender if it is not ours, -1 if nobody knows it."""
        uid = self._ask(socket.IPPROTO_UDP, sender, ours)
        return None if uid == self._uid else uid

    def _ask(self, protocol: int, local: Address, remote: Address) -> int:
        try:
            uid = self._sock_diag.uid_of(protocol, local, remote)
        except OSError:  # ENOMEM; or a kernel without INET_DIAG
            return -1
        return -1 if uid is None else uid


class RefusalLog:
    """Logs refusals of one forward to stderr, which the daemon's journal gets."""

    def __init__(self, forward: str) -> None:
        self._forward = forward
        self._quiet_until = 0.0
        self._unlogged = 0

    def write(self, uid: int) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._quiet_until:
            self._unlogged += 1
            return
        more = f", and {self._unlogged} more since the last line" if self._unlogged else ""
        who = f"uid {uid}" if uid >= 0 else "an unknown uid"
        say(f"forward {self._forward}: refused a client of {who}{more}")
        self._quiet_until, self._unlogged = now + LOG_SECONDS, 0
