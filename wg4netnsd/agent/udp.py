"""Open an engine's UDP sockets in a network namespace that its datagrams are to leave from."""

from __future__ import annotations

import errno
import socket
from typing import Final

from wg4netnsd.agent.interface import enter
from wg4netnsd.agent.obstacles import InterfaceError
from wg4netnsd.agent.protocol import OpenUdpSockets
from wg4netnsd.kernel import tun, udp

FIND_TRIES: Final = 10


def open_sockets(fd: int, request: OpenUdpSockets) -> list[int]:
    """Enter the namespace of `fd`, or that of its TUN's interface, and open the sockets there."""
    ifindex = 0
    if request.by_tun:
        ifindex = _enter_beside(fd)
    else:
        enter(fd)
    try:
        sockets = udp.open_sockets(request.port, ifindex)
    except OSError as error:
        name = "PortInUse" if error.errno == errno.EADDRINUSE else "EngineFailed"
        text = udp.explain(error, request.port, "in the transit namespace")
        raise InterfaceError(name, text) from None
    return [each.detach() for each in sockets]


def _enter_beside(tun_fd: int) -> int:
    """Enter the namespace of a TUN's interface, and return the interface's index."""
    try:
        enter(tun.netns_fd(tun_fd))
        for _ in range(FIND_TRIES):  # its owner may be renaming it
            name = tun.name(tun_fd)
            index = socket.if_nametoindex(name)
            if tun.name(tun_fd) == name:
                return index
    except OSError as error:
        if error.errno not in (errno.EBADFD, errno.EINVAL, errno.ENODEV):
            raise
    raise InterfaceError("TunFailed", "the interface is gone")
