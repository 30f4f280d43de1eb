"""The socket server: a child of the agent that stays, and opens sockets in a tunnel's namespace.

    daemon or gateway ── family, type, protocol; a socket for the answer ──► socket server
    daemon or gateway ◄── the new socket, or an errno ────────────────────── socket server

It lives in the namespace that the TUN was opened in, which the TUN keeps alive anyway. If the
interface was moved elsewhere, as for tunnels that must not keep their namespace alive, the request
brings that namespace's fd, and the server is in there for that one call only.

Each request brings the socket for its answer. So several processes may ask the same server, answers
need no number, and its end is the end of all their answers at once. It ends when nobody can ask any
more.

Root in the namespace can kill or stop it, so sockets_client.py limits the wait and checks all that
comes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import Final

from wg4netnsd.kernel import rights
from wg4netnsd.kernel.syscalls import CLONE_NEWNET, setns

PROGRAM: Final = b"wg4netns-socket"
"""The server's name in /proc, 15 bytes at most."""

REQUEST: Final = struct.Struct("3i")
"""Family, type and protocol, as for socket(2)."""

ANSWER: Final = struct.Struct("i")
"""0, or the errno; the operation that failed follows as text."""

KINDS: Final = {
    (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP),
    (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP),
    (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
    (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6),
}
"""The families, types and protocols that it opens; the server has CAP_NET_RAW, its clients not."""


def serve(requests: socket.socket, home: int) -> None:
    """Answer requests until nobody can ask any more. `home`: the namespace that we are in."""
    while True:
        data, fds, _ = rights.receive(requests, REQUEST.size, max_fds=2)
        if not data:
            return
        try:
            if fds and len(data) == REQUEST.size:
                _answer(REQUEST.unpack(data), home, *fds)
        finally:
            for fd in fds:
                os.close(fd)


def _answer(kind: tuple[int, ...], home: int, reply: int, netns: int = -1) -> None:
    answer, fds = ANSWER.pack(0), []
    opened = None
    try:
        opened = _open(kind, netns, home)
        fds = [opened.fileno()]
    except OSError as error:
        answer = ANSWER.pack(error.errno or errno.EIO) + (error.filename or "socket").encode()
    replying = socket.socket(fileno=reply)
    with contextlib.suppress(OSError):  # nobody waits for it any more
        rights.send(replying, answer, fds, socket.MSG_DONTWAIT)
    replying.detach()
    if opened:
        opened.close()


def _open(kind: tuple[int, ...], netns: int, home: int) -> socket.socket:
    if kind not in KINDS:
        raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))
    if netns < 0:
        return socket.socket(*kind)
    setns(netns, CLONE_NEWNET)
    try:
        return socket.socket(*kind)
    finally:
        setns(home, CLONE_NEWNET)
