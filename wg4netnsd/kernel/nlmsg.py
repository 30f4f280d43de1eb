"""netlink(7)'s messages, as far as rtnetlink(7) is made of them: numbers, structs, attributes.

Not by pyroute2, whose `import` alone takes 0.1 s, as it brings all that it can do.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import Final

# Of linux/netlink.h:
NLMSGHDR: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x2, 0x4, 0x10
NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x200, 0x400, 0x800
NLM_F_DUMP = 0x300
NLA_TYPE_MASK: Final = 0x3FFF  # the rest are flags

# Of linux/rtnetlink.h:
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNSID, RTM_DELNSID, RTM_GETNSID = 88, 89, 90
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40
RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE = 0x100, 0x400
RTNLGRP_NSID: Final = 28
RTATTR: Final = struct.Struct("=HH")  # length, type
RTGENMSG: Final = struct.Struct("=B3x")  # family
IFINFOMSG: Final = struct.Struct("=BxHiII")  # family, type, index, flags, which of them to change
IFADDRMSG: Final = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
RTMSG: Final = struct.Struct("=8BI")
"""Family, lengths of destination and source, TOS, table, protocol, scope, type, flags."""
RTNEXTHOP: Final = struct.Struct("=HBBi")  # length, flags, weight - 1, index


def attribute(kind: int, value: bytes) -> bytes:
    """One to send; its value may be attributes. The next begins at a multiple of 4."""
    return RTATTR.pack(RTATTR.size + len(value), kind) + value + bytes(-len(value) % 4)


def number(kind: int, value: int) -> bytes:
    """An attribute of 32 bits."""
    return attribute(kind, struct.pack("=i", value))


def parse(message: bytes, body: struct.Struct) -> tuple[tuple[int, ...], dict[int, bytes]]:
    """A whole message: the fields that its kind begins with, and its attributes by their types."""
    fields = body.unpack_from(message, NLMSGHDR.size)
    return fields, nested(message[NLMSGHDR.size + body.size :])


def nested(data: bytes) -> dict[int, bytes]:
    """The attributes that an attribute's value is made of, by their types."""
    found = {}
    for record in records(data, RTATTR):
        _, kind = RTATTR.unpack_from(record)
        found[kind & NLA_TYPE_MASK] = record[RTATTR.size :]
    return found


def records(data: bytes, head: struct.Struct) -> Iterator[bytes]:
    """Those that follow one another, each at a multiple of 4; `head` begins with their length."""
    while len(data) >= head.size:
        length, *_ = head.unpack_from(data)
        if length < head.size:
            return
        yield data[:length]
        data = data[(length + 3) & ~3 :]


def integer(value: bytes) -> int:
    """An attribute's value, which is unsigned; 0 of an empty one."""
    return int.from_bytes(value, sys.byteorder)


def text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()


def split(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """Its messages, each with its type."""
    for message in records(datagram, NLMSGHDR):
        _, kind, *_ = NLMSGHDR.unpack_from(message)
        yield kind, message


def error_of(answer: bytes) -> int:
    """The errno of an NLMSG_ERROR or NLMSG_DONE, or 0: they begin with its negative."""
    code: int = struct.unpack_from("=i", answer, NLMSGHDR.size)[0]
    return -code
