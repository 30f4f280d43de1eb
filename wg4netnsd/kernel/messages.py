"""Messages of rtnetlink(7): encode, split and decode them, with pyroute2's classes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Self

from wg4netnsd.kernel.pyroute import ifaddrmsg, ifinfmsg, netlink, nsidmsg, rtmsg, rtnl
from wg4netnsd.text import printable

NLMSGHDR: Final = struct.Struct("=IHHII")  # linux/netlink.h: length, type, flags, sequence, port
# linux/rtnetlink.h: family, type, index, flags, mask of flags; and an attribute's length and type.
IFINFOMSG, RTATTR = struct.Struct("=BxHiII"), struct.Struct("=HH")
IFF_UP: Final = 1  # linux/if.h
IFLA_IFNAME, IFLA_NEW_NETNSID = 3, 45  # linux/if_link.h

# RTM_NEW…, RTM_DEL… and RTM_GET… of a kind of object are consecutive (linux/rtnetlink.h).
MESSAGE_CLASSES: Final = {
    first + operation: message_class
    for first, message_class in (
        (rtnl.RTM_NEWLINK, ifinfmsg),
        (rtnl.RTM_NEWADDR, ifaddrmsg),
        (rtnl.RTM_NEWROUTE, rtmsg),
        (rtnl.RTM_NEWNSID, nsidmsg),
    )
    for operation in range(3)
}


def encode(kind: int, flags: int, fields: dict[str, int], *attributes: tuple[str, Any]) -> bytes:
    """Encode a request. `fields`: of the struct that its kind begins with; the others are 0."""
    message = MESSAGE_CLASSES[kind]()
    message["header"] = {"type": kind, "flags": netlink.NLM_F_REQUEST | flags}
    message.update(fields)
    message["attrs"] = list(attributes)
    message.encode()
    return bytes(message.data)


def decode(message: bytes) -> Any:
    """Decode a message of the kernel's, header included.

    The result is a dict of the fields of the message's struct, and `get("name")` also finds an
    attribute: "mtu" is IFLA_MTU. pyroute2 decodes that only then.
    """
    decoded = MESSAGE_CLASSES[message_type(message)](message)
    decoded.decode()
    return decoded


def message_type(message: bytes) -> int:
    _, kind, *_ = NLMSGHDR.unpack_from(message)
    return int(kind)


def split(datagram: bytes) -> Iterator[bytes]:
    """Yield a datagram's messages; each begins at a multiple of 4."""
    while len(datagram) >= NLMSGHDR.size:
        length, *_ = NLMSGHDR.unpack_from(datagram)
        if length < NLMSGHDR.size:
            return
        yield datagram[:length]
        datagram = datagram[(length + 3) & ~3 :]


def error_of(answer: bytes) -> int:
    """Return the errno in an NLMSG_ERROR or NLMSG_DONE, or 0. Both begin with its negative."""
    code: int = struct.unpack_from("=i", answer, NLMSGHDR.size)[0]
    return -code


def local_address(address: Any) -> str:
    """Return the host's own address of a decoded RTM_NEWADDR or RTM_DELADDR.

    On a point-to-point link IFA_ADDRESS is the peer's. IPv6 has IFA_LOCAL only there.
    """
    local: str = address.get("local") or address.get("address")
    return local


class LinkInfo(NamedTuple):
    """A link's name and status, read by hand from an RTM_NEWLINK or RTM_DELLINK.

    Such a message has some 40 attributes, and pyroute2 makes an object of each. That takes 80 µs,
    and 200 µs to 300 µs in a child that was just forked or on a busy machine; this takes 12 µs. A
    create waits for three such messages.
    """

    family: int
    """AF_UNSPEC, or AF_BRIDGE in a message about a bridge's port."""
    ifindex: int
    name: str
    """To be shown: escaped where it is not printable."""
    up: bool
    moved: bool
    """In an RTM_DELLINK: the link is in another namespace now (since Linux 4.15)."""

    @classmethod
    def of(cls, message: bytes) -> Self:
        family, _, ifindex, flags, _ = IFINFOMSG.unpack_from(message, NLMSGHDR.size)
        attributes = {}
        offset = NLMSGHDR.size + IFINFOMSG.size
        while offset + RTATTR.size <= len(message):
            length, kind = RTATTR.unpack_from(message, offset)
            attributes[kind] = message[offset + RTATTR.size : offset + length]
            offset += max(RTATTR.size, length + 3 & ~3)
        # The kernel takes any bytes as a name, except a slash, a colon and white space.
        raw_name = attributes.get(IFLA_IFNAME, b"").rstrip(b"\0")
        name = printable(raw_name.decode(errors="surrogateescape"))
        return cls(family, ifindex, name, bool(flags & IFF_UP), IFLA_NEW_NETNSID in attributes)
