"""netlink(7)'s messages, as far as rtnetlink(7) is made of them: structs, attributes, both ways."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

# Of linux/netlink.h and rtnetlink.h, if_link.h, if_addr.h:
NLMSGHDR: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
RTATTR: Final = struct.Struct("=HH")  # length, type
IFINFOMSG: Final = struct.Struct("=BxHiII")  # family, type, index, flags, which of them to change
IFADDRMSG: Final = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
RTMSG: Final = struct.Struct("=8BI")  # family, 2 prefix lengths, TOS, table, protocol, scope, …
RTGENMSG: Final = struct.Struct("=B3x")  # family

NLA_TYPE_MASK: Final = 0x3FFF  # the rest are flags
IFF_UP: Final = 1  # linux/if.h
IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_NEW_NETNSID = 3, 4, 18, 45
IFLA_INFO_KIND: Final = 1
NETNSA_NSID: Final = 1  # linux/net_namespace.h


def attribute(kind: int, value: bytes) -> bytes:
    """One to send; its value may be attributes. The next begins at a multiple of 4."""
    return RTATTR.pack(RTATTR.size + len(value), kind) + value + bytes(-len(value) % 4)


def number(kind: int, value: int) -> bytes:
    """An attribute of 32 bits."""
    return attribute(kind, struct.pack("=i", value))


def attributes(data: bytes) -> dict[int, bytes]:
    """Those of a message that has come, by their types."""
    found = {}
    at = 0
    while at + RTATTR.size <= len(data):
        length, kind = RTATTR.unpack_from(data, at)
        if length < RTATTR.size:
            break
        found[kind & NLA_TYPE_MASK] = data[at + RTATTR.size : at + length]
        at += (length + 3) & ~3
    return found


def split(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """Its messages, each with its type. Each begins at a multiple of 4."""
    while len(datagram) >= NLMSGHDR.size:
        length, kind, *_ = NLMSGHDR.unpack_from(datagram)
        yield kind, datagram[:length]
        datagram = datagram[(length + 3) & ~3 :]


def error_of(answer: bytes) -> int:
    """The errno of an NLMSG_ERROR or NLMSG_DONE, or 0: they begin with its negative."""
    code: int = struct.unpack_from("=i", answer, NLMSGHDR.size)[0]
    return -code


def nsid_of(message: bytes) -> int:
    """By which number a namespace is known, of an RTM_NEWNSID or RTM_DELNSID."""
    return _int(attributes(message[NLMSGHDR.size + RTGENMSG.size :])[NETNSA_NSID])


class LinkInfo(NamedTuple):
    """What the kernel tells of an interface (RTM_NEWLINK, RTM_DELLINK), as far as we use it.

    It tells some 60 attributes, and four times while a tunnel is made.
    """

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
        """Of a whole message, with its header."""
        family, _, ifindex, flags, _ = IFINFOMSG.unpack_from(message, NLMSGHDR.size)
        told = attributes(message[NLMSGHDR.size + IFINFOMSG.size :])
        return cls(
            family=family,
            ifindex=ifindex,
            up=bool(flags & IFF_UP),
            name=_text(told.get(IFLA_IFNAME, b"")),
            mtu=_int(told.get(IFLA_MTU, b"")),
            kind=_text(attributes(told.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_KIND, b"")),
            moved=IFLA_NEW_NETNSID in told,
        )


def _int(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder, signed=True)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()
