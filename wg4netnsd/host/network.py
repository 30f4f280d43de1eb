"""Watch the host's addresses and default routes (rtnetlink(7)).

    notification ──contradicts what is known?──► Coalescer ──► dump ──differs?──► moved(reason)
                 ──of a route or link?─────────► Coalescer ──► routes_changed()

Notifications are only hints. After one that contradicts what is known, everything is read again.
That also finds changes whose notifications were lost in an overrun, and those that have none: the
IPv4 routes that go with a link that goes down.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, NamedTuple

from wg4netnsd.aio.coalescer import Coalescer
from wg4netnsd.kernel import messages
from wg4netnsd.kernel.messages import NLMSGHDR, LinkInfo
from wg4netnsd.kernel.pyroute import rtnl
from wg4netnsd.kernel.rtnetlink import (
    RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN,
    RTN_UNICAST,
    Netlink,
    receive,
)

log = logging.getLogger(__name__)

ADDRESSES_CHANGED: Final = "the host's addresses changed"
ROUTE_CHANGED: Final = "the host's default route changed"
BOTH_CHANGED: Final = "the host's addresses and default route changed"

_GROUPS: Final = (
    rtnl.RTMGRP_LINK
    | rtnl.RTMGRP_IPV4_IFADDR
    | rtnl.RTMGRP_IPV6_IFADDR
    | rtnl.RTMGRP_IPV4_ROUTE
    | rtnl.RTMGRP_IPV6_ROUTE
)

_OF_ROUTES: Final = (rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE, rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK)

LOOPBACK_IFINDEX = 1  # net/net_namespace.h
IFA_F_TENTATIVE = 0x40  # linux/if_addr.h


class HostNetwork:
    """Call `moved`, with the reason, when the host's addresses or default routes have changed.

    `routes_changed` is called when any route or link may have, or its MTU. Each is called at once
    for a first change, and once for all further changes within a second, at the end of that.
    Watches the network namespace in which it is created, and sleeps while nothing happens there.
    """

    def __init__(self, moved: Callable[[str], None], routes_changed: Callable[[], None]) -> None:
        """Start to watch, in a running event loop. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._moved = moved
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        try:
            self._socket.bind((0, _GROUPS))
            self._known = read_host_state(NO_NETWORK)  # later changes have a notification
        except BaseException:
            self._socket.close()
            raise
        self._coalescer = Coalescer(self._look_again, loop.call_later)
        self._routes = Coalescer(routes_changed, loop.call_later)
        loop.add_reader(self._socket, self._on_notification)

    def close(self) -> None:
        """Stop watching; may be called again."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._coalescer.close()
            self._routes.close()

    def _on_notification(self) -> None:
        try:
            received = receive(self._socket)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            log.debug("the host's network changes too fast: some notifications were lost")
            self._coalescer.ask()
            self._routes.ask()
            return
        if received is None:
            return
        datagram, _ = received
        split = list(messages.split(datagram))
        if any(contradicts(message, self._known) for message in split):
            self._coalescer.ask()
        if any(messages.message_type(message) in _OF_ROUTES for message in split):
            self._routes.ask()

    def _look_again(self) -> None:
        before, self._known = self._known, read_host_state(self._known)
        if reason := difference(before, self._known):
            self._moved(reason)


# ---------------------------------------------------------------- the host's state


class HostAddress(NamedTuple):
    ifindex: int
    """The interface's."""
    address: str
    prefixlen: int


class NextHop(NamedTuple):
    ifindex: int
    """The interface's; 0 if there is none."""
    gateway: str
    """Its address; empty if there is none."""


class DefaultRoute(NamedTuple):
    family: int
    metric: int
    hops: tuple[NextHop, ...]
    """Several share the route's traffic."""


class HostState(NamedTuple):
    """Everything that decides how the host reaches others; lifetimes and flags do not."""

    addresses: frozenset[HostAddress]
    routes: frozenset[DefaultRoute]


NO_NETWORK: Final = HostState(frozenset(), frozenset())


def host_state(addresses: Iterable[bytes], routes: Iterable[bytes], before: HostState) -> HostState:
    """Return the state that a dump's messages describe, given the one before."""
    return HostState(
        frozenset(filter(None, (host_address(each, before.addresses) for each in addresses))),
        frozenset(filter(None, map(default_route, routes))),
    )


def host_address(message: bytes, known: Collection[HostAddress]) -> HostAddress | None:
    """Return the address that a message is about; None if nobody reaches the host by it.

    Nobody does by a tentative address. But a known one is tentative again whenever its link comes
    back, until it has been probed (RFC 4862, section 5.4), and that does not end it.
    """
    decoded = messages.decode(message)
    if decoded["scope"] != RT_SCOPE_UNIVERSE or decoded["index"] == LOOPBACK_IFINDEX:
        return None
    local = messages.local_address(decoded)
    address = HostAddress(decoded["index"], local, decoded["prefixlen"])
    return None if decoded["flags"] & IFA_F_TENTATIVE and address not in known else address


def default_route(message: bytes) -> DefaultRoute | None:
    """Return the default route that a message is about; None if it is about something else."""
    # By hand, since a host may have thousands of other routes: 0.1 µs each instead of 14 µs.
    family, prefixlen = message[NLMSGHDR.size], message[NLMSGHDR.size + 1]  # in struct rtmsg
    if prefixlen != 0 or family not in (socket.AF_INET, socket.AF_INET6):
        return None
    decoded = messages.decode(message)
    if decoded["type"] != RTN_UNICAST or decoded.get("table") != RT_TABLE_MAIN:
        return None
    return DefaultRoute(family, decoded.get("priority", 0), next_hops(decoded))


def next_hops(route: Any) -> tuple[NextHop, ...]:
    """Return a decoded route's next hops: one each in RTA_MULTIPATH, or only itself."""
    return tuple(
        NextHop(hop.get("oif", 0), _gateway(hop)) for hop in route.get("multipath", [route])
    )


def _gateway(hop: Any) -> str:
    """Return the gateway's address. One of another family than the route's is in RTA_VIA
    (RFC 5549)."""
    gateway: str = hop.get("gateway") or hop.get(("via", "addr"), "")
    return gateway


def difference(before: HostState, after: HostState) -> str:
    """Return a description of the change for people; empty if there is none."""
    match before.addresses != after.addresses, before.routes != after.routes:
        case True, True:
            return BOTH_CHANGED
        case True, False:
            return ADDRESSES_CHANGED
        case False, True:
            return ROUTE_CHANGED
    return ""


def contradicts(message: bytes, known: HostState) -> bool:
    """Does a notification say anything that is not known?

    Most do not: router advertisements and DHCP keep renewing addresses and routes, and containers
    come and go.
    """
    kind = messages.message_type(message)
    if kind in (rtnl.RTM_NEWADDR, rtnl.RTM_DELADDR):
        address = host_address(message, known.addresses)
        return address is not None and (address in known.addresses) != (kind == rtnl.RTM_NEWADDR)
    if kind in (rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE):
        route = default_route(message)
        return route is not None and (route in known.routes) != (kind == rtnl.RTM_NEWROUTE)
    if kind in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK):
        link = LinkInfo.of(message)
        gone = kind == rtnl.RTM_DELLINK or not link.up
        return gone and any(
            hop.ifindex == link.ifindex for route in known.routes for hop in route.hops
        )
    return False


# ---------------------------------------------------------------- rtnetlink(7)


def read_host_state(before: HostState) -> HostState:
    """Ask the kernel for the host's state. Raises OSError."""
    with Netlink() as netlink:  # never waits: the kernel answers within send() and recv()
        return host_state(netlink.dump(rtnl.RTM_GETADDR), netlink.dump(rtnl.RTM_GETROUTE), before)
