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
            raise socket_error(error, port, "on the host") from None

    @classmethod
    def adopt(cls, fds: Sequence[int], least: int) -> Self | None:
        """Take over the sockets that an earlier daemon opened. Owns `fds`.

        None if there are fewer than `least`, or one is wrong: the running engine goes on with its
        copies, and the next one gets other sockets, of the same port.
        """
        sockets = [socket.socket(fileno=fd) for fd in fds]
        ports = {each.getsockname()[1] for each in sockets if udp.is_udp(each)}
        if len(sockets) >= least and all(map(udp.is_udp, sockets)) and len(ports) == 1:
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

    @property
    def netns_cookie(self) -> int:
        """What tells their network namespace from others; 0 before Linux 5.14."""
        return udp.netns_cookie(self._sockets[0]) or 0

    def close(self) -> None:
        for each in self._sockets:
            each.close()


def socket_error(error: OSError, port: int, where: str) -> Error:
    """Return the error for sockets that could not be opened; `where` says in which network."""
    text = udp.explain(error, port, where)
    if error.errno == errno.EADDRINUSE:
        return PortInUse(text)
    return from_os_error(error, text, EngineFailed)
