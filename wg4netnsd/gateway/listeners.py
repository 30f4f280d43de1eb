"""The listeners of a forward: those that the daemon passes, or, in the tunnel, made here."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from typing import NamedTuple

from wg4netnsd import errors
from wg4netnsd.aio import fdpath
from wg4netnsd.gateway.protocol import AddForward
from wg4netnsd.gateway.sides import Tunnel
from wg4netnsd.gateway.target import family_of, show_address

BACKLOG = 4096
"""Connections that wait to be accepted; the kernel caps it (net.core.somaxconn)."""


class Listeners(NamedTuple):
    sockets: list[socket.socket]
    addresses: list[str]

    def close(self) -> None:
        for each in self.sockets:
            each.close()


def adopt_listeners(spec: AddForward, fds: list[int]) -> Listeners:
    """Take all of `fds`. Raises InvalidArgs if one is not a listener of the forward's protocol."""
    if not fds:
        raise errors.InvalidArgs("a forward needs a listener")
    with contextlib.ExitStack() as stack:
        sockets = []
        while fds:
            fd = fds.pop(0)
            if not re.fullmatch(r"socket:\[\d+\]", fdpath.target(fd)):
                os.close(fd)
                raise errors.InvalidArgs("a listener is not a socket")
            sockets.append(stack.enter_context(socket.socket(fileno=fd)))
        for each in sockets:
            if spec.protocol == "udp":
                fits = each.family != socket.AF_UNIX and each.type == socket.SOCK_DGRAM
            else:
                listens = each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                fits = each.type == socket.SOCK_STREAM and bool(listens)
            if each.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) or not fits:
                raise errors.InvalidArgs(f"a listener is no {spec.protocol} socket that listens")
            each.setblocking(False)
        stack.pop_all()
    return Listeners(sockets, [shown(each) for each in sockets])


async def make_listeners(spec: AddForward, tunnel: Tunnel) -> Listeners:
    """Listen in the tunnel at each address of `spec.listen`; port 0 is the same one for all.

    Raises InvalidArgs, AlreadyExists if one is taken, TunFailed, LimitExceeded.
    """
    if not spec.listen:
        raise errors.InvalidArgs("listen: a remote forward needs an address in the tunnel")
    kind = socket.SOCK_DGRAM if spec.protocol == "udp" else socket.SOCK_STREAM
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []
        for address, port in spec.listen:
            family = family_of(address)
            if family is None:
                raise errors.InvalidArgs(f"listen: {address!r} is not an address")
            opened = stack.enter_context(await tunnel.open(family, kind))
            chosen = port or (sockets[0].getsockname()[1] if sockets else 0)
            _bind(opened, address, chosen)
            sockets.append(opened)
        stack.pop_all()
    return Listeners(sockets, [shown(each) for each in sockets])


def _bind(opened: socket.socket, address: str, port: int) -> None:
    try:
        if opened.family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if opened.type == socket.SOCK_STREAM:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address, port))
        if opened.type == socket.SOCK_STREAM:
            opened.listen(BACKLOG)
    except OSError as error:
        text = f"listen on {show_address(address, port)} in the tunnel: {error.strerror}"
        if error.errno == errno.EADDRINUSE:
            raise errors.AlreadyExists(text) from None
        raise errors.from_os_error(error, text, errors.InvalidArgs) from None


def shown(listener: socket.socket) -> str:
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    return show_address(name[0], name[1])
