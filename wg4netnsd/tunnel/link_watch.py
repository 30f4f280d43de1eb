"""An interface that is somebody else's to rename, take down, move or delete: what becomes of it.

kernel ── socket of agent/watch.py ──► LinkWatch ──► changed(status)… gone(why)
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from wg4netnsd.agent.client import WatchedLink
from wg4netnsd.kernel import nlmsg, rtnetlink, tun
from wg4netnsd.kernel.nlmsg import NLMSG_ERROR, NLMSGHDR, RTM_DELLINK, RTM_DELNSID, RTM_NEWLINK
from wg4netnsd.kernel.rtinfo import LinkInfo, nsid_of


class LinkStatus(NamedTuple):
    name: str
    up: bool


class Gone(StrEnum):
    """Why an interface is no longer in its namespace."""

    MOVED = "the interface was moved to another namespace"
    DELETED = "the interface was deleted"
    ENDED = "the namespace has ended"


class LinkWatch:
    """Calls `changed` when the interface's name or IFF_UP has changed, and `gone`, once, when it
    is no longer in its namespace. Owns the socket until then, or until it is closed.

    Sleeps while nothing happens to this very interface.
    """

    def __init__(
        self,
        watched: WatchedLink,
        tun_fd: int,
        changed: Callable[[LinkStatus], object],
        gone: Callable[[Gone], object],
    ) -> None:
        """To be made in a running event loop; the TUN's fd stays the caller's."""
        link = watched.link
        self.status = LinkStatus(link.name, link.up)
        self._ifindex = link.ifindex
        self._nsid = link.nsid
        self._tun_fd = tun_fd
        self._changed = changed
        self._gone = gone
        self._socket = socket.socket(fileno=watched.fd)
        asyncio.get_running_loop().add_reader(self._socket, self._on_message)

    def close(self) -> None:
        """Stop watching; may be called again."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    def _on_message(self) -> None:
        try:
            datagram, ancillary, *_ = self._socket.recvmsg(65536, socket.CMSG_SPACE(4))
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._ask_anew()
            return
        # One message; its namespace is told only where it is not the socket's (netlink(7)).
        sender = struct.unpack("i", ancillary[0][2])[0] if ancillary else None
        match understand(datagram, sender, self._ifindex, self._nsid):
            case LinkStatus() as status if status != self.status:
                self.status = status
                self._changed(status)
            case Gone() as why:
                self._end(why)
            case OSError(errno=errno.EINVAL):  # the socket's namespace has no such nsid any more
                self._end(Gone.ENDED)
            case OSError(errno=errno.ENODEV):
                self._end(Gone.DELETED if tun.is_gone(self._tun_fd) else Gone.MOVED)
            case OSError() as refusal:
                raise refusal

    def _ask_anew(self) -> None:
        """Messages were lost. The kernel drops its answer too unless the socket is empty
        (NETLINK_S_CONGESTED).

        To ask about another namespace than the socket's takes CAP_NET_ADMIN there, which we have
        as the owner of its user namespace.
        """
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1)
        self._socket.send(rtnetlink.get_link(index=self._ifindex, nsid=self._nsid).encoded)

    def _end(self, why: Gone) -> None:
        self.close()
        self._gone(why)


def understand(
    message: bytes, sender: int | None, ifindex: int, nsid: int | None
) -> LinkStatus | Gone | OSError | None:
    """What a message of namespace `sender` tells of an interface in namespace `nsid`; None for the
    socket's own, which also answers what was asked. An error is such an answer."""
    _, kind, *_ = NLMSGHDR.unpack_from(message)
    if kind == NLMSG_ERROR:
        code = nlmsg.error_of(message)
        return OSError(code, os.strerror(code), f"link {ifindex}")
    if kind == RTM_DELNSID:
        # Other namespaces have their own numbers for others.
        return Gone.ENDED if sender is None and nsid_of(message) == nsid else None
    if kind not in (RTM_NEWLINK, RTM_DELLINK) or sender not in (None, nsid):
        return None
    link = LinkInfo.of(message)
    if (link.family, link.ifindex) != (socket.AF_UNSPEC, ifindex):
        return None
    if kind == RTM_NEWLINK:
        return LinkStatus(link.name, link.up)
    return Gone.MOVED if link.moved else Gone.DELETED
