"""Check the UDP sockets that a tunnel's creator passes with the option `transit_sockets`."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from collections.abc import Iterable, Sequence

from wg4netnsd.aio import fdpath
from wg4netnsd.engine.udp import UdpSockets, socket_error
from wg4netnsd.errors import Error, InvalidArgs
from wg4netnsd.files import client as files
from wg4netnsd.files.client import HeldFd, ReceivedFd
from wg4netnsd.kernel import udp

OPTION = "transit_sockets"
_NAMES = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}


def check(fds: Sequence[ReceivedFd], listen_port: int) -> tuple[UdpSockets, tuple[int, int] | None]:
    """Return UDP sockets bound to one port, and the device and inode of their namespace if known.

    Sockets that are not bound get `listen_port`, or a port that the kernel chooses if that is 0.
    Owns `fds`, also if this raises: InvalidArgs, PortInUse, EngineFailed, LimitExceeded.
    """
    with contextlib.ExitStack() as stack:
        for fd in fds:
            stack.callback(files.close, fd)
        numbers = [fd for fd in fds if not isinstance(fd, HeldFd)]
        if len(numbers) < len(fds) or not all(map(_is_socket, numbers)):
            raise _invalid("not a socket: expected UDP sockets")
        sockets = [socket.socket(fileno=fd) for fd in numbers]
        stack.pop_all()
    with contextlib.ExitStack() as stack:
        for each in sockets:
            stack.enter_context(each)
        for each in sockets:
            _check_one(each)
        if len({each.family for each in sockets}) < len(sockets):
            name = _NAMES[socket.AddressFamily(sockets[0].family)]
            raise _invalid(f"two {name} sockets: expected one for IPv4 and one for IPv6")
        if len({udp.netns_cookie(each) for each in sockets}) > 1:
            raise _invalid("sockets of two network namespaces: expected the same for both")
        _bind(sockets, listen_port)
        netns = udp.netns_id(sockets[0])
        for each in sockets:
            each.setblocking(False)
        stack.pop_all()
        return UdpSockets(sockets), netns


def _is_socket(fd: int) -> bool:
    return bool(re.fullmatch(r"socket:\[\d+\]", fdpath.target(fd)))


def _check_one(each: socket.socket) -> None:
    if not udp.is_udp(each):
        raise _invalid(f"{_describe(each)}: expected a UDP socket")
    try:
        each.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
    else:
        raise _invalid("a connected socket: expected one that can send to any address")
    v6only = each.family == socket.AF_INET or each.getsockopt(
        socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
    )
    if _port(each) and not v6only:
        raise _invalid("a bound IPv6 socket without IPV6_V6ONLY: expected that, or an unbound one")


def _describe(each: socket.socket) -> str:
    family = _NAMES.get(socket.AddressFamily(each.family)) if each.family in _NAMES else None
    if family and each.proto == socket.IPPROTO_TCP:
        return f"a TCP socket ({family})"
    return f"a socket of family {each.family:d}, type {each.type:d}, protocol {each.proto}"


def _bind(sockets: Iterable[socket.socket], listen_port: int) -> None:
    """Bind all that are not bound yet to the same port."""
    bound = {port for each in sockets if (port := _port(each))}
    if len(bound) > 1:
        raise _invalid(f"bound to the ports {' and '.join(map(str, sorted(bound)))}: expected one")
    for port in bound:
        if listen_port not in (0, port):
            raise _invalid(
                f"bound to the port {port}, but the configuration has ListenPort {listen_port}"
            )
    port = next(iter(bound), listen_port)
    for each in sockets:
        if not _port(each):
            try:
                port = udp.bind(each, port)
            except OSError as error:
                raise socket_error(error, port, "in the sockets' network") from None


def _port(each: socket.socket) -> int:
    """Return the port that a socket is bound to; 0 if it is not bound."""
    return int(each.getsockname()[1])


def _invalid(what: str) -> Error:
    return InvalidArgs(f"option '{OPTION}': {what}")
