"""The UDP sockets of a tunnel's engines, which the daemon keeps from one engine to the next."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Self

from wg4netnsd.errors import EngineFailed, Error, from_os_error
from wg4netnsd.kernel import udp


class PortInUse(EngineFailed):
    """A listen port that another socket on the host has."""

    short_name = EngineFailed.__name__


class UdpSockets:
    """UDP sockets, at most one of each family, bound to one port. Owns them.

    A datagram leaves from the network namespace that its socket was opened in. An engine gets
    copies, so the port stays taken while there is no engine.
    """

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = sockets
        self.port: int = sockets[0].getsockname()[1]

    @classmethod
    def open(cls, port: int) -> Self:
        """Open sockets on the host; with `port` 0, the kernel chooses one.

        Raises PortInUse, EngineFailed, LimitExceeded.
        """
        try:
            return cls(udp.open_sockets(port))
        except OSError as error:
            raise socket_error(error, port) from None

    @classmethod
    def adopt(cls, fds: Sequence[int]) -> Self | None:
        """Take over the sockets that an earlier daemon opened. Owns `fds`.

        None if one is missing or wrong: the running engine goes on with its copies, and the next
        one gets other sockets, of the same port.
        """
        sockets = [socket.socket(fileno=fd) for fd in fds]
        ports = {each.getsockname()[1] for each in sockets if is_udp(each)}
        if len(sockets) == 2 and all(map(is_udp, sockets)) and len(ports) == 1:
            return cls(sockets)
        for each in sockets:
            each.close()
        return None

    @property
    def by_family(self) -> dict[socket.AddressFamily, int]:
        """The fds, which stay ours."""
        return {socket.AddressFamily(each.family): each.fileno() for each in self._sockets}

    @property
    def fds(self) -> list[int]:
        return list(self.by_family.values())

    def close(self) -> None:
        for each in self._sockets:
            each.close()


def is_udp(candidate: socket.socket) -> bool:
    return (
        candidate.family in (socket.AF_INET, socket.AF_INET6)
        and candidate.type == socket.SOCK_DGRAM
        and candidate.proto == socket.IPPROTO_UDP
    )


def socket_error(error: OSError, port: int) -> Error:
    """Return the error for sockets that could not be opened."""
    match error.errno:
        case errno.EADDRINUSE:
            return PortInUse("ListenPort: the port is in use on the host")
        case errno.EACCES:
            why = "only root may use it: expected net.ipv4.ip_unprivileged_port_start or higher"
            return EngineFailed(f"ListenPort: {port}: {why}")
    text = f"UDP sockets can't be opened: {error.strerror}"
    return from_os_error(error, text, EngineFailed)
