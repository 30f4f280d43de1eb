"""Watch an interface that its namespace's owner may rename, take down, move or delete.

kernel ── socket of agent/watch.py ──► LinkWatch ──► changed(status)… ended(why)
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

from wg4netnsd.agent.client import WatchedLink
from wg4netnsd.aio.rate_window import RateWindow
from wg4netnsd.kernel import messages, tun
from wg4netnsd.kernel.messages import LinkInfo
from wg4netnsd.kernel.pyroute import netlink, rtnl
from wg4netnsd.kernel.rtnetlink import get_link, receive

BURST: Final = 10
WINDOW: Final = 1.0  # seconds
"""The owner may change the interface as fast as the kernel can. At most BURST messages are handled
in a window; after that, only the status at the window's end is reported."""

MAX_UNREAD: Final = 4096
"""Messages: more than a socket's buffer holds, 212,992 bytes by default (net.core.rmem_default)."""


class LinkStatus(NamedTuple):
    name: str
    up: bool


class LinkEnd(StrEnum):
    """Why an interface is no longer in its namespace."""

    MOVED = "the interface was moved to another namespace"
    DELETED = "the interface was deleted"
    ENDED = "the namespace has ended"


class LinkWatch:
    """Call `changed` when the interface's name or IFF_UP changes, and `ended` at its end.

    `ended` is called once, when the interface is no longer in its namespace. The watch owns the
    socket until then, or until it is closed, and sleeps while nothing happens to this interface.
    """

    def __init__(
        self,
        watched: WatchedLink,
        tun_fd: int,
        changed: Callable[[LinkStatus], object],
        ended: Callable[[LinkEnd], object],
    ) -> None:
        """Start to watch, in a running event loop; the TUN's fd stays the caller's."""
        link = watched.link
        self.status = LinkStatus(link.name, link.up)
        self._ifindex = link.ifindex
        self._nsid = link.nsid
        self._tun_fd = tun_fd
        self._changed = changed
        self._ended = ended
        self._window = RateWindow(WINDOW)
        self._pause: asyncio.TimerHandle | None = None
        self._socket = socket.socket(fileno=watched.fd)
        asyncio.get_running_loop().add_reader(self._socket, self._on_message)

    def close(self) -> None:
        """Stop watching; may be called again."""
        if self._pause:
            self._pause.cancel()
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    def _on_message(self) -> None:
        loop = asyncio.get_running_loop()
        if self._window.count() > BURST:
            loop.remove_reader(self._socket)
            self._pause = loop.call_at(self._window.end, self._resume)
            return
        try:
            received = receive(self._socket)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._ask_again()
            return
        if received is None:
            return
        match understand(*received, self._ifindex, self._nsid):
            case LinkStatus() as status if status != self.status:
                self.status = status
                self._changed(status)
            case LinkEnd() as why:
                self._end(why)
            case OSError(errno=errno.EINVAL):  # the socket's namespace no longer knows this nsid
                self._end(LinkEnd.ENDED)
            case OSError(errno=errno.ENODEV):
                self._end(LinkEnd.DELETED if tun.is_gone(self._tun_fd) else LinkEnd.MOVED)
            case OSError() as refusal:
                raise refusal

    def _resume(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._socket, self._on_message)
        self._ask_again()

    def _ask_again(self) -> None:
        """Ask for the interface's status after messages were lost or left unread.

        The kernel would drop its answer too if the socket were not empty (NETLINK_S_CONGESTED).
        Asking about another namespace than the socket's takes CAP_NET_ADMIN there, which we have
        as the owner of its user namespace.
        """
        for _ in range(MAX_UNREAD):  # root of the namespace may go on filling it
            try:
                self._socket.recv(1)
            except BlockingIOError:
                break
            except OSError as error:  # messages were lost since: that is why we ask
                if error.errno != errno.ENOBUFS:
                    raise
        self._socket.send(get_link(index=self._ifindex, nsid=self._nsid).encoded)

    def _end(self, why: LinkEnd) -> None:
        self.close()
        self._ended(why)


def understand(
    message: bytes, sender: int | None, ifindex: int, nsid: int | None
) -> LinkStatus | LinkEnd | OSError | None:
    """Return what a message says about an interface in namespace `nsid`; None if nothing.

    `sender` is the message's namespace, or None for the socket's own, which also answers requests.
    An OSError is the answer to a request that failed.
    """
    kind = messages.message_type(message)
    if kind == netlink.NLMSG_ERROR:
        code = messages.error_of(message)
        return OSError(code, os.strerror(code), f"link {ifindex}")
    if kind == rtnl.RTM_DELNSID:
        # Other namespaces have numbers of their own for the same namespaces.
        ended = sender is None and messages.decode(message).get_attr("NETNSA_NSID") == nsid
        return LinkEnd.ENDED if ended else None
    if kind not in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK) or sender not in (None, nsid):
        return None
    link = LinkInfo.of(message)
    if (link.family, link.ifindex) != (socket.AF_UNSPEC, ifindex):
        return None
    if kind == rtnl.RTM_NEWLINK:
        return LinkStatus(link.name, link.up)
    return LinkEnd.MOVED if link.moved else LinkEnd.DELETED
