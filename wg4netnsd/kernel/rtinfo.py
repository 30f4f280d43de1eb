"""What the kernel tells of links, addresses and routes, as far as we have a use for it.

Each `of()` takes a whole message, with its header: of RTM_NEWLINK, RTM_DELLINK and so on.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Self

from wg4netnsd.kernel.nlmsg import (
    IFADDRMSG,
    IFINFOMSG,
    RTGENMSG,
    RTMSG,
    RTNEXTHOP,
    integer,
    nested,
    parse,
    records,
    text,
)

IFF_UP = 1  # linux/if.h
# Of linux/if_link.h, if_addr.h, rtnetlink.h and net_namespace.h:
IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_NEW_NETNSID = 3, 4, 18, 45
IFLA_INFO_KIND = 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY = 1, 4, 5, 6
RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 9, 15, 18
NETNSA_NSID = 1


class LinkInfo(NamedTuple):
    family: int
    """AF_UNSPEC, or AF_BRIDGE where it is about a bridge's port."""
    ifindex: int
    up: bool
    name: str
    mtu: int
    kind: str
    """The driver's name, as `tun`; empty for what has none."""
    moved: bool
    """Of one that is gone: to another namespace (as of Linux 4.15)."""

    @classmethod
    def of(cls, message: bytes) -> Self:
        (family, _, ifindex, flags, _), told = parse(message, IFINFOMSG)
        return cls(
            family=family,
            ifindex=ifindex,
            up=bool(flags & IFF_UP),
            name=text(told.get(IFLA_IFNAME, b"")),
            mtu=integer(told.get(IFLA_MTU, b"")),
            kind=text(nested(told.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_KIND, b"")),
            moved=IFLA_NEW_NETNSID in told,
        )


class AddressInfo(NamedTuple):
    ifindex: int
    address: str
    prefixlen: int
    scope: int
    flags: int

    @classmethod
    def of(cls, message: bytes) -> Self:
        (family, prefixlen, flags, scope, ifindex), told = parse(message, IFADDRMSG)
        # IFA_ADDRESS is the peer's where the link is point-to-point; IPv6 has IFA_LOCAL only there.
        packed = told.get(IFA_LOCAL) or told[IFA_ADDRESS]
        return cls(ifindex, socket.inet_ntop(family, packed), prefixlen, scope, flags)


class Hop(NamedTuple):
    link: int
    """The interface's index; 0 where there is none."""
    gateway: str
    """Its address; empty where there is none."""


class RouteInfo(NamedTuple):
    """A route; several hops share its traffic."""

    family: int
    target: str
    """In CIDR notation."""
    table: int
    protocol: int
    type: int
    flags: int
    metric: int
    hops: tuple[Hop, ...]

    @classmethod
    def of(cls, message: bytes) -> Self:
        (family, length, _, _, table, protocol, _, type_, flags), told = parse(message, RTMSG)
        packed = told.get(RTA_DST) or bytes(4 if family == socket.AF_INET else 16)
        several = told.get(RTA_MULTIPATH)
        return cls(
            family=family,
            target=f"{socket.inet_ntop(family, packed)}/{length}",
            table=integer(told[RTA_TABLE]) if RTA_TABLE in told else table,
            protocol=protocol,
            type=type_,
            flags=flags,
            metric=integer(told.get(RTA_PRIORITY, b"")),
            hops=tuple(_hops(several, family)) if several else (_hop(told, family),),
        )


def _hops(data: bytes, family: int) -> Iterator[Hop]:
    """Of struct rtnexthop, each with attributes of its own."""
    for record in records(data, RTNEXTHOP):
        _, _, _, ifindex = RTNEXTHOP.unpack_from(record)
        yield Hop(ifindex, _gateway(nested(record[RTNEXTHOP.size :]), family))


def _hop(told: Mapping[int, bytes], family: int) -> Hop:
    return Hop(integer(told.get(RTA_OIF, b"")), _gateway(told, family))


def _gateway(told: Mapping[int, bytes], family: int) -> str:
    """RTA_VIA has it where its family is not the route's (RFC 5549), after the number of that."""
    if packed := told.get(RTA_GATEWAY):
        return socket.inet_ntop(family, packed)
    if via := told.get(RTA_VIA):
        return socket.inet_ntop(integer(via[:2]), via[2:])
    return ""


def nsid_of(message: bytes) -> int:
    """By which number a namespace is known, of an RTM_NEWNSID or RTM_DELNSID."""
    _, told = parse(message, RTGENMSG)
    return integer(told[NETNSA_NSID])
