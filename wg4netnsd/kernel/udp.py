"""UDP sockets for an engine: one for IPv4 and one for IPv6, bound to the same port."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Final

TRIES: Final = 100
"""Ports that the kernel may choose for IPv4 until one is free for IPv6 too; upstream's
StdNetBind.Open() has the same limit."""

_KIND: Final = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK  # Python adds SOCK_CLOEXEC


def open_sockets(port: int) -> list[socket.socket]:
    """Open a socket of each family that the kernel has, bound to `port`; 0 leaves it the choice.

    Raises OSError: EADDRINUSE if another socket has the port, EACCES if only root may have it.
    """
    for tries_left in reversed(range(1 if port else TRIES)):
        try:
            return _open_once(port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not tries_left:
                raise
    raise AssertionError("unreachable")


def _open_once(port: int) -> list[socket.socket]:
    with contextlib.ExitStack() as stack:
        sockets = []
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                sockets.append(stack.enter_context(socket.socket(family, _KIND)))
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:
                    raise
        if not sockets:
            raise OSError(errno.EAFNOSUPPORT, "the kernel has neither IPv4 nor IPv6")
        for each in sockets:
            port = bind(each, port)
        stack.pop_all()
        return sockets


def bind(unbound: socket.socket, port: int) -> int:
    """Bind a socket to any address and `port`, and return its port. Raises OSError."""
    if unbound.family == socket.AF_INET6:
        unbound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        unbound.bind(("::", port))
    else:
        unbound.bind(("0.0.0.0", port))
    return int(unbound.getsockname()[1])
