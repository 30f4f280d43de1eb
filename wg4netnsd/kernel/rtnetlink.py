"""rtnetlink(7) over one raw socket: what can be asked of the kernel."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from typing import Final, NamedTuple, Self

from wg4netnsd.kernel import nlmsg
from wg4netnsd.kernel.nlmsg import (
    IFADDRMSG,
    IFINFOMSG,
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_EXCL,
    NLM_F_MULTI,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSGHDR,
    RTGENMSG,
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNSID,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNSID,
    RTM_NEWROUTE,
    RTMSG,
    attribute,
    number,
)
from wg4netnsd.kernel.rtinfo import (
    IFA_ADDRESS,
    IFA_LOCAL,
    IFF_UP,
    IFLA_IFNAME,
    IFLA_MTU,
    NETNSA_NSID,
    RTA_DST,
    RTA_OIF,
    RTA_PRIORITY,
    AddressInfo,
    LinkInfo,
    RouteInfo,
    nsid_of,
)

# Of linux/if_link.h, if_addr.h, rtnetlink.h, ip.h, net_namespace.h:
IFLA_AF_SPEC, IFLA_NET_NS_FD, IFLA_TARGET_NETNSID = 26, 28, 46
IFLA_INET_CONF, IPV4_DEVCONF_PROMOTE_SECONDARIES = 1, 20
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
RT_TABLE_MAIN, RTPROT_KERNEL, RTPROT_STATIC, RTN_UNICAST = 254, 2, 4, 1
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTNH_F_ONLINK = 4
NETNSA_FD = 3
NETNSA_NSID_NOT_ASSIGNED = -1
RTM_F_CLONED = 0x200  # learned of a path, as its MTU, and nobody's route
DEFAULT_METRIC: Final = {4: 0, 6: 1024}  # IP6_RT_PRIO_USER of linux/ipv6_route.h
DUMP_TRIES: Final = 3
ACKS_AT_ONCE = 64  # an ack takes 768 bytes of a receive buffer of 212,992

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

EVERY_ERROR: Final = range(1, 4096)  # MAX_ERRNO of linux/err.h


class Message(NamedTuple):
    """A request; `operation` names it in the OSError of a refusal, unless that is `fine`."""

    operation: str
    encoded: bytes
    fine: Container[int] = ()


@dataclass(frozen=True)
class Link:
    """An interface. By its index, as its owner may rename it meanwhile."""

    name: str
    index: int


class Found(NamedTuple):
    link: Link
    kind: str
    """The driver's name, as `tun`; empty for what has none."""
    up: bool
    mtu: int


class Route(NamedTuple):
    """One that leads to an interface, in any table; `encoded` is how the kernel told of it."""

    network: Network
    table: int
    protocol: int
    metric: int
    encoded: bytes

    @property
    def plain(self) -> bool:
        """Is it where and what `new_route()` would make, whoever made it?"""
        return self.table == RT_TABLE_MAIN and self.metric == DEFAULT_METRIC[self.network.version]

    def again(self) -> Message:
        """Set it as it was, if it went and if that is still possible.

        What the kernel told is also how to ask for it; `ip route restore` lives by that.
        """
        how = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND
        encoded = bytearray(self.encoded)
        NLMSGHDR.pack_into(encoded, 0, len(encoded), RTM_NEWROUTE, how, 0, 0)
        # rtm_flags also tell of a dead next hop, and the kernel refuses to be told so.
        (flags,) = struct.unpack_from("=I", encoded, NLMSGHDR.size + 8)
        struct.pack_into("=I", encoded, NLMSGHDR.size + 8, flags & RTNH_F_ONLINK)
        return Message(f"route {self.network}", bytes(encoded), EVERY_ERROR)


class Netlink:
    """A socket of the namespace that we are in."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def apply(self, messages: Iterable[Message]) -> None:
        """One send for all; the kernel works in order, acknowledges each, and goes on after one
        that it refuses. Raises OSError for the first of those."""
        todo = list(messages)
        for start in range(0, len(todo), ACKS_AT_ONCE):
            self._apply(todo[start : start + ACKS_AT_ONCE])

    def _apply(self, messages: list[Message]) -> None:
        self._socket.send(b"".join(message.encoded for message in messages))
        # Each of them, also after a refusal: what is left unread would answer the next request.
        codes = [nlmsg.error_of(self._socket.recv(65536)) for _ in messages]
        for message, code in zip(messages, codes, strict=True):
            if code and code not in message.fine:
                raise OSError(code, os.strerror(code), message.operation)

    def find(self, name: str, nsid: int | None = None) -> Found | None:
        """The interface of that name, if there is one; in namespace `nsid`, if that is given."""
        try:
            ((answer,), _) = self._ask(get_link(name=name, nsid=nsid))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return None
        info = LinkInfo.of(answer)
        return Found(Link(name, info.ifindex), info.kind, info.up, info.mtu)

    def nsid(self, netns: int) -> int:
        """The number by which ours knows another namespace, of which this is an fd; given now, if
        it has none. A number keeps no namespace alive."""
        body, fd = RTGENMSG.pack(socket.AF_UNSPEC), number(NETNSA_FD, netns)
        any_number = number(NETNSA_NSID, NETNSA_NSID_NOT_ASSIGNED)
        new = _encode("nsid", RTM_NEWNSID, NLM_F_ACK, body, fd, any_number)
        self.apply([new._replace(fine=(errno.EEXIST,))])
        ((answer,), _) = self._ask(_encode("nsid", RTM_GETNSID, 0, body, fd))
        return nsid_of(answer)

    def addresses(self, link: Link) -> list[Interface]:
        """Those that are set on the interface."""
        told = map(AddressInfo.of, self._of_both_families(RTM_GETADDR))
        return [
            ip_interface(f"{info.address}/{info.prefixlen}")
            for info in told
            if info.ifindex == link.index
        ]

    def routes(self, link: Link) -> list[Route]:
        """Those whose one next hop is the interface."""
        told = ((data, RouteInfo.of(data)) for data in self._of_both_families(RTM_GETROUTE))
        return [
            Route(ip_network(info.target), info.table, info.protocol, info.metric, encoded=data)
            for data, info in told
            if [hop.link for hop in info.hops] == [link.index] and not info.flags & RTM_F_CLONED
        ]

    def _of_both_families(self, kind: int) -> Iterator[bytes]:
        for family in (socket.AF_INET, socket.AF_INET6):
            for data in self.dump(kind, family):
                # Where IPv6 is off, the kernel answers with all other families.
                if data[NLMSGHDR.size] == family:
                    yield data

    def dump(self, kind: int, family: int = socket.AF_UNSPEC) -> list[bytes]:
        """All objects of a kind, a message each. Raises OSError.

        A dump that a change has interrupted may lack what was there all the time. Where changes
        never end, the last try has to do.
        """
        # After the header, a struct that begins with the family.
        how = NLM_F_REQUEST | NLM_F_DUMP
        header = NLMSGHDR.pack(NLMSGHDR.size + 12, kind, how, 0, 0)
        request = Message("dump", header + struct.pack("=B11x", family))
        for _ in range(DUMP_TRIES):
            answers, interrupted = self._ask(request)
            if not interrupted:
                break
        return answers

    def _ask(self, request: Message) -> tuple[list[bytes], bool]:
        """What the kernel answers, one or many, and whether a change has interrupted it."""
        self._socket.send(request.encoded)
        answers: list[bytes] = []
        interrupted = False
        while True:
            for kind, message in nlmsg.split(self._socket.recv(65536)):
                _, _, flags, _, _ = NLMSGHDR.unpack_from(message)
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    if code := nlmsg.error_of(message):
                        raise OSError(code, os.strerror(code), request.operation)
                    return answers, interrupted
                answers.append(message)
                if not flags & NLM_F_MULTI:
                    return answers, interrupted


# ---------------------------------------------------------------- what can be asked for


def get_link(*, name: str = "", index: int = 0, nsid: int | None = None) -> Message:
    """An interface, by its name or its index; in the namespace `nsid`, if that is given."""
    attributes = [attribute(IFLA_IFNAME, name.encode() + b"\0")] if name else []
    if nsid is not None:
        attributes.append(number(IFLA_TARGET_NETNSID, nsid))  # as of Linux 4.16
    link = IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    return _encode(f"link {name or index}", RTM_GETLINK, 0, link, *attributes)


def move_link(link: Link, netns: int) -> Message:
    """Into another namespace, by an fd of that."""
    return _set_link(f"move {link.name}", link, number(IFLA_NET_NS_FD, netns))


def link_up(link: Link) -> Message:
    return _set_link(f"link {link.name} up", link, flags=IFF_UP)


def link_mtu(link: Link, mtu: int) -> Message:
    return _set_link(f"MTU {mtu} on {link.name}", link, number(IFLA_MTU, mtu))


def no_link_local(link: Link) -> Message:
    """No link-local address, as the kernel's own WireGuard has none: its router solicitations
    would start handshakes that nobody asked for."""
    mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
    families = attribute(IFLA_AF_SPEC, attribute(socket.AF_INET6, mode))
    return _set_link(f"addrgenmode on {link.name}", link, families)


def promote_secondaries(link: Link) -> Message:
    """Have a subnet's next IPv4 address take the place of its first, when that is deleted."""
    setting = attribute(IFLA_INET_CONF, number(IPV4_DEVCONF_PROMOTE_SECONDARIES, 1))
    families = attribute(IFLA_AF_SPEC, attribute(socket.AF_INET, setting))
    return _set_link(f"promote_secondaries on {link.name}", link, families)


def new_address(link: Link, address: Interface) -> Message:
    return _address(link, address, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL)


def del_address(link: Link, address: Interface) -> Message:
    return _address(link, address, RTM_DELADDR)._replace(fine=(errno.EADDRNOTAVAIL,))


def new_route(link: Link, network: Network) -> Message:
    """Refused (EEXIST) where something else leads there with the same metric."""
    return _route(link, network, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL)


def add_route(link: Link, network: Network) -> Message:
    """Beside what else leads there; the kernel goes by the older one."""
    message = _route(link, network, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND)
    return message._replace(fine=(errno.EEXIST,))  # the very same route


def del_route(link: Link, network: Network) -> Message:
    message = _route(link, network, RTM_DELROUTE, metric=DEFAULT_METRIC[network.version])
    return message._replace(fine=(errno.ESRCH,))


def _set_link(operation: str, link: Link, *attributes: bytes, flags: int = 0) -> Message:
    """`flags`: those to be set."""
    body = IFINFOMSG.pack(socket.AF_UNSPEC, 0, link.index, flags, flags)
    return _encode(operation, RTM_NEWLINK, NLM_F_ACK, body, *attributes)


def _address(link: Link, address: Interface, kind: int, flags: int = 0) -> Message:
    family, length = _family(address.version), address.network.prefixlen
    return _encode(
        f"address {address} on {link.name}",
        kind,
        NLM_F_ACK | flags,
        IFADDRMSG.pack(family, length, 0, RT_SCOPE_UNIVERSE, link.index),
        attribute(IFA_LOCAL, address.packed),
        attribute(IFA_ADDRESS, address.packed),
    )


def _route(link: Link, network: Network, kind: int, flags: int = 0, metric: int = 0) -> Message:
    family, length = _family(network.version), network.prefixlen
    scope = RT_SCOPE_LINK if network.version == 4 else RT_SCOPE_UNIVERSE
    attributes = [number(RTA_OIF, link.index)]
    if length:
        attributes.append(attribute(RTA_DST, network.network_address.packed))
    if metric:
        attributes.append(number(RTA_PRIORITY, metric))
    kept = RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST
    return _encode(
        f"route {network} dev {link.name}",
        kind,
        NLM_F_ACK | flags,
        RTMSG.pack(family, length, 0, 0, *kept, 0),
        *attributes,
    )


def _encode(operation: str, kind: int, how: int, body: bytes, *attributes: bytes) -> Message:
    """`body`: the struct that messages of this kind begin with."""
    content = body + b"".join(attributes)
    header = NLMSGHDR.pack(NLMSGHDR.size + len(content), kind, NLM_F_REQUEST | how, 0, 0)
    return Message(operation, header + content)


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6
