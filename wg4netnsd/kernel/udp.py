"""UDP sockets for an engine: one for IPv4 and one for IPv6, bound to the same port."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from typing import Final

from wg4netnsd.kernel.syscalls import SIOCGSKNS, ioctl

TRIES: Final = 100
"""Ports that the kernel may choose for IPv4 until one is free for IPv6 too; upstream's
StdNetBind.Open() has the same limit."""

SO_BINDTOIFINDEX: Final = 62  # asm-generic/socket.h
SO_NETNS_COOKIE: Final = 71

_KIND: Final = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK  # Python adds SOCK_CLOEXEC


def open_sockets(port: int, ifindex: int = 0) -> list[socket.socket]:
    """Open a socket of each family that the kernel has, bound to `port`; 0 leaves it the choice.

    With `ifindex`, they send and receive by that interface alone, whatever the routes say. Raises
    OSError: EADDRINUSE if another socket has the port, EACCES if only root may have it.
    """
    for tries_left in reversed(range(1 if port else TRIES)):
        try:
            return _open_once(port, ifindex)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not tries_left:
                raise
    raise AssertionError("unreachable")


def _open_once(port: int, ifindex: int) -> list[socket.socket]:
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
            if ifindex:
                each.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, ifindex)
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


def explain(error: OSError, port: int, where: str) -> str:
    """Return why the sockets could not be opened; `where` says in which network."""
    match error.errno:
        case errno.EADDRINUSE:
            return f"ListenPort: the port is in use {where}"
        case errno.EACCES if port:
            expected = "expected net.ipv4.ip_unprivileged_port_start or higher"
            return f"ListenPort: {port}: only root may use it: {expected}"
    return f"UDP sockets can't be opened {where}: {error.strerror}"


def is_udp(candidate: socket.socket) -> bool:
    return (
        candidate.family in (socket.AF_INET, socket.AF_INET6)
        and candidate.type == socket.SOCK_DGRAM
        and candidate.proto == socket.IPPROTO_UDP
    )


def netns_cookie(of: socket.socket) -> int | None:
    """Return what tells the socket's network namespace from others; None before Linux 5.14."""
    try:
        cookie = of.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return None
    return int.from_bytes(cookie, sys.byteorder)


def netns_id(of: socket.socket) -> tuple[int, int] | None:
    """Return the device and inode of the socket's network namespace.

    None if we have no CAP_NET_ADMIN in the user namespace that owns it (sock_ioctl()).
    """
    try:
        fd = ioctl(of.fileno(), SIOCGSKNS, 0, "SIOCGSKNS")
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        return None
    try:
        status = os.fstat(fd)
        return status.st_dev, status.st_ino
    finally:
        os.close(fd)
