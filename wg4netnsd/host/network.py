"""Where the host is on the network, and when that changes (rtnetlink(7)).

    notification ──contradicts what is known?──► Coalescer ──► dump ──differs?──► moved(reason)

Notifications are only hints: one that contradicts what is known has the kernel asked for everything
anew. That also finds what an overrun has lost, and what the kernel tells nobody: the IPv4 routes
that go with a link that goes down.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Collection, Iterable
from typing import Final, NamedTuple, Protocol

from wg4netnsd.kernel.nlmsg import (
    NLMSGHDR,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
    split,
)
from wg4netnsd.kernel.rtinfo import AddressInfo, Hop, LinkInfo, RouteInfo
from wg4netnsd.kernel.rtnetlink import RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RTN_UNICAST, Netlink

log = logging.getLogger(__name__)

PAUSE: Final = 1.0
"""Seconds after a dump in which further contradictions only add up to the next one."""

ADDRESSES_CHANGED: Final = "the host's addresses changed"
ROUTE_CHANGED: Final = "the host's default route changed"
BOTH_CHANGED: Final = "the host's addresses and default route changed"

_GROUPS: Final = (
    RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE
)

LOOPBACK_IFINDEX = 1  # net/net_namespace.h
IFA_F_TENTATIVE = 0x40  # linux/if_addr.h


class HostNetwork:
    """Calls `moved`, with the reason, when the host's addresses or default routes have changed.

    A first change is told at once; those of the second after it together, at that second's end.
    Watches the network namespace that it is made in, and sleeps while nothing happens there.
    """

    def __init__(self, moved: Callable[[str], None]) -> None:
        """To be made in a running event loop. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._moved = moved
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        try:
            self._socket.bind((0, _GROUPS))
            self._known = look(NOWHERE)  # of what changes from here on, there is a notification
        except BaseException:
            self._socket.close()
            raise
        self._coalescer = Coalescer(self._look_again, loop.call_later)
        loop.add_reader(self._socket, self._on_notification)

    def close(self) -> None:
        """Stop watching; may be called again."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._coalescer.close()

    def _on_notification(self) -> None:
        try:
            datagram = self._socket.recv(65536)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            log.debug("some changes of the host's network have overrun us")
            self._coalescer.ask()
            return
        if any(contradicts(kind, message, self._known) for kind, message in split(datagram)):
            self._coalescer.ask()

    def _look_again(self) -> None:
        before, self._known = self._known, look(self._known)
        if reason := difference(before, self._known):
            self._moved(reason)


# ---------------------------------------------------------------- where the host is


class Address(NamedTuple):
    link: int  # the interface's index
    address: str
    prefixlen: int


class Route(NamedTuple):
    """A default route. Several hops share its traffic."""

    family: int
    metric: int
    hops: tuple[Hop, ...]


class Place(NamedTuple):
    """What decides how the host reaches others. Lifetimes and flags don't."""

    addresses: frozenset[Address]
    routes: frozenset[Route]


NOWHERE: Final = Place(frozenset(), frozenset())


def place(addresses: Iterable[bytes], routes: Iterable[bytes], before: Place) -> Place:
    """What a dump's messages tell, the place before being that."""
    return Place(
        frozenset(filter(None, (address_of(each, before.addresses) for each in addresses))),
        frozenset(filter(None, map(route_of, routes))),
    )


def address_of(message: bytes, known: Collection[Address]) -> Address | None:
    """The address that a message is about; None if nobody reaches the host by it.

    Nor by a tentative one. But one that was good is tentative again each time that its link comes
    back, until it has been probed again (RFC 4862, 5.4): that is not its end.
    """
    info = AddressInfo.of(message)
    if info.scope != RT_SCOPE_UNIVERSE or info.ifindex == LOOPBACK_IFINDEX:
        return None
    address = Address(info.ifindex, info.address, info.prefixlen)
    return None if info.flags & IFA_F_TENTATIVE and address not in known else address


def route_of(message: bytes) -> Route | None:
    """The default route that a message is about; None if it is about something else."""
    family, prefixlen = message[NLMSGHDR.size], message[NLMSGHDR.size + 1]  # of struct rtmsg
    if prefixlen != 0 or family not in (socket.AF_INET, socket.AF_INET6):
        return None  # most are: they cost no decoding
    info = RouteInfo.of(message)
    if info.type != RTN_UNICAST or info.table != RT_TABLE_MAIN:
        return None
    return Route(family, info.metric, info.hops)


def difference(before: Place, after: Place) -> str:
    """What has changed, for people; empty if nothing has."""
    match before.addresses != after.addresses, before.routes != after.routes:
        case True, True:
            return BOTH_CHANGED
        case True, False:
            return ADDRESSES_CHANGED
        case False, True:
            return ROUTE_CHANGED
    return ""


def contradicts(kind: int, message: bytes, known: Place) -> bool:
    """Whether a notification tells anything but what is known.

    Router advertisements and DHCP renew addresses and routes over and over; containers come and go.
    """
    if kind in (RTM_NEWADDR, RTM_DELADDR):
        address = address_of(message, known.addresses)
        return address is not None and (address in known.addresses) != (kind == RTM_NEWADDR)
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        route = route_of(message)
        return route is not None and (route in known.routes) != (kind == RTM_NEWROUTE)
    if kind in (RTM_NEWLINK, RTM_DELLINK):
        link = LinkInfo.of(message)
        gone = kind == RTM_DELLINK or not link.up
        return gone and any(
            hop.link == link.ifindex for route in known.routes for hop in route.hops
        )
    return False


# ---------------------------------------------------------------- how often to look


class Timer(Protocol):
    def cancel(self) -> None: ...


class Coalescer:
    """Does it at once when asked, and once more at the end of a pause in which it was asked."""

    def __init__(
        self, act: Callable[[], None], call_later: Callable[[float, Callable[[], None]], Timer]
    ) -> None:
        self._act = act
        self._call_later = call_later
        self._pause: Timer | None = None
        self._asked = False

    def ask(self) -> None:
        if self._pause:
            self._asked = True
        else:
            self._pause = self._call_later(PAUSE, self._on_pause_over)
            self._act()

    def _on_pause_over(self) -> None:
        self._pause = None
        if self._asked:
            self._asked = False
            self.ask()

    def close(self) -> None:
        if self._pause:
            self._pause.cancel()


# ---------------------------------------------------------------- rtnetlink(7)


def look(before: Place) -> Place:
    """Ask the kernel where the host is. Raises OSError."""
    with Netlink() as netlink:  # never waits: the kernel answers within send() and recv()
        return place(netlink.dump(RTM_GETADDR), netlink.dump(RTM_GETROUTE), before)
