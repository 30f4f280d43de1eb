"""rtnetlink(7): requests to the kernel, over one raw socket.

pyroute2 encodes them. Its sockets run on asyncio and send one request at a time; ours sends many at
once, in order, and the kernel goes on after one that it refuses.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import struct
from collections.abc import Container, Iterable, Iterator
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from typing import Any, Final, NamedTuple, Self

from wg4netnsd.kernel.messages import (
    IFF_UP,
    NLMSGHDR,
    decode,
    encode,
    error_of,
    local_address,
    split,
)
from wg4netnsd.kernel.pyroute import netlink, rtnl

IFLA_AF_SPEC, IFLA_INET_CONF = 26, 1  # linux/if_link.h
IPV4_DEVCONF_PROMOTE_SECONDARIES: Final = 20  # linux/ip.h
IN6_ADDR_GEN_MODE_NONE: Final = 1  # linux/if_link.h
IFA_F_NODAD: Final = 2  # linux/if_addr.h
# linux/rtnetlink.h:
RT_TABLE_MAIN, RT_TABLE_LOCAL = 254, 255
RTPROT_KERNEL, RTPROT_STATIC, RTN_UNICAST = 2, 4, 1
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTNH_F_ONLINK: Final = 4
RTM_F_CLONED: Final = 0x200  # a cached route, as for a path's MTU, that nobody has set
NETNSA_NSID_NOT_ASSIGNED: Final = 2**32 - 1  # linux/net_namespace.h: -1
DEFAULT_METRIC: Final = {4: 0, 6: 1024}  # IP6_RT_PRIO_USER of linux/ipv6_route.h
ANY_ADDRESS: Final = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
KERNEL_PORT: Final = 0  # netlink(7); all other sockets have another one
EVERY_ERROR: Final = range(1, 4096)  # MAX_ERRNO of linux/err.h

_NEW: Final = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
_ADD: Final = netlink.NLM_F_CREATE | netlink.NLM_F_APPEND
DUMP_TRIES: Final = 3
ACKS_AT_ONCE: Final = 64  # an ack takes 768 bytes of a receive buffer of 212,992

InterfaceAddress = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network


class NetlinkRequest(NamedTuple):
    """An encoded request. A refusal raises OSError with `operation`, unless its errno is `fine`."""

    operation: str
    encoded: bytes
    fine: Container[int] = ()


class LinkRef(NamedTuple):
    """A link to send requests about: by its index, since its owner may rename it at any time."""

    name: str
    ifindex: int


class InstalledRoute(NamedTuple):
    """A route, in any table, that leads to one interface only."""

    network: Network
    table: int
    protocol: int
    metric: int
    encoded: bytes
    """The kernel's own message."""

    @property
    def plain(self) -> bool:
        """Is it where and what `new_route()` would make, whoever made it?"""
        return self.table == RT_TABLE_MAIN and self.metric == DEFAULT_METRIC[self.network.version]

    def restore(self) -> NetlinkRequest:
        """Set the route again as it was, if it is gone and if that is still possible.

        The kernel's own message is the request, as for `ip route restore`. pyroute2 would drop
        the attributes that it does not know, such as RTA_NH_ID.
        """
        encoded = bytearray(self.encoded)
        flags = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK | _ADD
        NLMSGHDR.pack_into(encoded, 0, len(encoded), rtnl.RTM_NEWROUTE, flags, 0, 0)
        # rtm_flags also report a dead next hop, and the kernel refuses a request that says so.
        (route_flags,) = struct.unpack_from("=I", encoded, NLMSGHDR.size + 8)
        struct.pack_into("=I", encoded, NLMSGHDR.size + 8, route_flags & RTNH_F_ONLINK)
        return NetlinkRequest(f"route {self.network}", bytes(encoded), EVERY_ERROR)


# ---------------------------------------------------------------- the socket


def receive(listening: socket.socket) -> tuple[bytes, int | None] | None:
    """Return a notification and its namespace's number; None if it is not the kernel's.

    Root of a namespace may send to its groups, too. The number is None if the namespace is the
    socket's own: the kernel adds it only otherwise (netlink(7)). Raises OSError.
    """
    datagram, ancillary, _, (port, _) = listening.recvmsg(65536, socket.CMSG_SPACE(4))
    if port != KERNEL_PORT:
        return None
    return datagram, struct.unpack("i", ancillary[0][2])[0] if ancillary else None


class Netlink:
    """A socket in the namespace that we are in."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        # With the kernel as its peer the socket takes messages of nobody else (netlink_unicast()):
        # root of the namespace that we are in could send some.
        self._socket.connect((KERNEL_PORT, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def apply(self, requests: Iterable[NetlinkRequest]) -> None:
        """Send all requests at once; raise OSError for the first that the kernel refused.

        The kernel works in order, acknowledges each, and goes on after one that it refuses.
        """
        todo = list(requests)
        for start in range(0, len(todo), ACKS_AT_ONCE):
            self._apply(todo[start : start + ACKS_AT_ONCE])

    def _apply(self, requests: list[NetlinkRequest]) -> None:
        self._socket.send(b"".join(request.encoded for request in requests))
        # Read every answer, also after a refusal: an unread one would answer the next request.
        codes = [error_of(self._socket.recv(65536)) for _ in requests]
        for request, code in zip(requests, codes, strict=True):
            if code and code not in request.fine:
                raise OSError(code, os.strerror(code), request.operation)

    def find(self, name: str, nsid: int | None = None) -> bytes | None:
        """Return the kernel's message about the interface of that name, if there is one.

        It is looked for in the namespace `nsid` if that is given.
        """
        try:
            ((answer,), _) = self._ask(get_link(name=name, nsid=nsid))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return None
        return answer

    def nsid(self, netns: int) -> int:
        """Return the number by which our namespace knows another one, given an fd of that.

        The kernel assigns one now if there is none. A number does not keep a namespace alive.
        """
        fd, unassigned = ("NETNSA_FD", netns), ("NETNSA_NSID", NETNSA_NSID_NOT_ASSIGNED)
        assign = encode(rtnl.RTM_NEWNSID, netlink.NLM_F_ACK, {}, fd, unassigned)
        self.apply([NetlinkRequest("nsid", assign, fine=(errno.EEXIST,))])
        ask = encode(rtnl.RTM_GETNSID, 0, {}, fd)
        ((answer,), _) = self._ask(NetlinkRequest("nsid", ask))
        nsid: int = decode(answer).get_attr("NETNSA_NSID")
        return nsid

    def addresses(self, link: LinkRef) -> list[InterfaceAddress]:
        """Return the addresses of an interface."""
        return [
            ip_interface(f"{local_address(address)}/{address['prefixlen']}")
            for _, address in self._of_both_families(rtnl.RTM_GETADDR)
            if address["index"] == link.ifindex
        ]

    def routes(self, link: LinkRef) -> list[InstalledRoute]:
        """Return the routes whose only next hop is the interface."""
        return [
            InstalledRoute(
                ip_network(f"{route.get('dst', ANY_ADDRESS[route['family']])}/{route['dst_len']}"),
                route.get("table"),  # as an attribute, since it may be above 255
                route["proto"],
                route.get("priority", 0),
                encoded=message,
            )
            for message, route in self._of_both_families(rtnl.RTM_GETROUTE)
            # A route with several next hops has these in RTA_MULTIPATH, and no RTA_OIF.
            if route.get("oif") == link.ifindex and not route["flags"] & RTM_F_CLONED
        ]

    def _of_both_families(self, kind: int) -> Iterator[tuple[bytes, Any]]:
        """Yield each message of a dump, as it came and decoded."""
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in self.dump(kind, family):
                decoded = decode(message)
                # If IPv6 is off, the kernel answers with all other families.
                if decoded["family"] == family:
                    yield message, decoded

    def dump(self, kind: int, family: int = socket.AF_UNSPEC) -> list[bytes]:
        """Return all objects of a kind, a message each. Raises OSError.

        A dump that a change has interrupted may lack objects that were there all the time, so it
        is repeated. If changes never end, the last try has to do.
        """
        request = NetlinkRequest("dump", encode(kind, netlink.NLM_F_DUMP, {"family": family}))
        for _ in range(DUMP_TRIES):
            answers, interrupted = self._ask(request)
            if not interrupted:
                break
        return answers

    def _ask(self, request: NetlinkRequest) -> tuple[list[bytes], bool]:
        """Return the kernel's answers, one or many, and whether a change has interrupted them."""
        self._socket.send(request.encoded)
        answers: list[bytes] = []
        interrupted = False
        while True:
            for message in split(self._socket.recv(65536)):
                _, kind, flags, _, _ = NLMSGHDR.unpack_from(message)
                interrupted |= bool(flags & netlink.NLM_F_DUMP_INTR)
                if kind in (netlink.NLMSG_ERROR, netlink.NLMSG_DONE):
                    if code := error_of(message):
                        raise OSError(code, os.strerror(code), request.operation)
                    return answers, interrupted
                answers.append(message)
                if not flags & netlink.NLM_F_MULTI:
                    return answers, interrupted


# ---------------------------------------------------------------- requests

# Most creates have these requests in common, so the agent encodes them before it gets a request
# (agent/server.py). That leaves 0.1 ms of the 0.4 ms that pyroute2 takes for a create's requests.
_cached: Final = functools.lru_cache(maxsize=64)


@_cached
def get_link(*, name: str = "", index: int = 0, nsid: int | None = None) -> NetlinkRequest:
    """Ask for an interface by its name or index, in the namespace `nsid` if that is given."""
    attributes: list[tuple[str, Any]] = (
        [("IFLA_IFNAME", name.encode(errors="surrogateescape"))] if name else []
    )
    if nsid is not None:
        attributes.append(("IFLA_IF_NETNSID", nsid))  # since Linux 4.16
    encoded = encode(rtnl.RTM_GETLINK, 0, {"index": index}, *attributes)
    return NetlinkRequest(f"link {name or index}", encoded)


def move_link(link: LinkRef, netns: int) -> NetlinkRequest:
    """Move a link into another namespace, given an fd of that."""
    return _set_link(f"move {link.name}", link, ("IFLA_NET_NS_FD", netns))


@_cached
def link_up(link: LinkRef) -> NetlinkRequest:
    return _set_link(f"link {link.name} up", link, flags=IFF_UP)


@_cached
def link_mtu(link: LinkRef, mtu: int) -> NetlinkRequest:
    return _set_link(f"MTU {mtu} on {link.name}", link, ("IFLA_MTU", mtu))


@_cached
def no_link_local(link: LinkRef) -> NetlinkRequest:
    """Have no link-local address, like the kernel's own WireGuard: router solicitations from it
    would start handshakes that nobody asked for."""
    mode = ("IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE)
    families = {"attrs": [("AF_INET6", {"attrs": [mode]})]}
    return _set_link(f"addrgenmode on {link.name}", link, ("IFLA_AF_SPEC", families))


def promote_secondaries(link: LinkRef) -> NetlinkRequest:
    """Have a subnet's next IPv4 address replace its first one when that is deleted."""
    request = _set_link(f"promote_secondaries on {link.name}", link)
    # By hand, as pyroute2 only decodes IFLA_INET_CONF: nested attributes, each with its length and
    # type, around a value of 32 bits.
    settings = struct.pack(
        "=8HI",
        *(20, IFLA_AF_SPEC, 16, socket.AF_INET, 12, IFLA_INET_CONF),
        *(8, IPV4_DEVCONF_PROMOTE_SECONDARIES, 1),
    )
    length = struct.pack("=I", len(request.encoded) + len(settings))
    return request._replace(encoded=length + request.encoded[4:] + settings)


def new_address(link: LinkRef, address: InterfaceAddress) -> NetlinkRequest:
    """Add an address that can be used at once.

    IPv6 would first be tentative, and be looked at a moment later, though a TUN has nobody to ask.
    """
    return _address(link, address, rtnl.RTM_NEWADDR, _NEW)


def del_address(link: LinkRef, address: InterfaceAddress) -> NetlinkRequest:
    request = _address(link, address, rtnl.RTM_DELADDR, 0)
    return request._replace(fine=(errno.EADDRNOTAVAIL,))


@_cached
def new_route(link: LinkRef, network: Network) -> NetlinkRequest:
    """Set a route; refused (EEXIST) if another one leads there with the same metric."""
    return _route(link, network, rtnl.RTM_NEWROUTE, _NEW)


def add_route(link: LinkRef, network: Network) -> NetlinkRequest:
    """Set a route beside others that lead there; the kernel prefers the oldest."""
    request = _route(link, network, rtnl.RTM_NEWROUTE, _ADD)
    return request._replace(fine=(errno.EEXIST,))  # the very same route


def del_route(link: LinkRef, network: Network) -> NetlinkRequest:
    metric = ("RTA_PRIORITY", DEFAULT_METRIC[network.version])
    request = _route(link, network, rtnl.RTM_DELROUTE, 0, metric)
    return request._replace(fine=(errno.ESRCH,))


def _set_link(
    operation: str, link: LinkRef, *attributes: tuple[str, Any], flags: int = 0
) -> NetlinkRequest:
    """`flags`: the ones to set; all others stay."""
    fields = {"index": link.ifindex, "flags": flags, "change": flags}
    encoded = encode(rtnl.RTM_NEWLINK, netlink.NLM_F_ACK, fields, *attributes)
    return NetlinkRequest(operation, encoded)


def _address(link: LinkRef, address: InterfaceAddress, kind: int, flags: int) -> NetlinkRequest:
    fields = {
        "family": _family(address.version),
        "prefixlen": address.network.prefixlen,
        "flags": IFA_F_NODAD if address.version == 6 else 0,
        "scope": RT_SCOPE_UNIVERSE,
        "index": link.ifindex,
    }
    attributes = ("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))
    encoded = encode(kind, netlink.NLM_F_ACK | flags, fields, *attributes)
    return NetlinkRequest(f"address {address} on {link.name}", encoded)


def _route(
    link: LinkRef, network: Network, kind: int, flags: int, *attributes: tuple[str, Any]
) -> NetlinkRequest:
    fields = {
        "family": _family(network.version),
        "dst_len": network.prefixlen,
        "table": RT_TABLE_MAIN,
        "proto": RTPROT_STATIC,
        "scope": RT_SCOPE_LINK if network.version == 4 else RT_SCOPE_UNIVERSE,
        "type": RTN_UNICAST,
    }
    if network.prefixlen:
        attributes = ("RTA_DST", str(network.network_address)), *attributes
    attributes = ("RTA_OIF", link.ifindex), *attributes
    encoded = encode(kind, netlink.NLM_F_ACK | flags, fields, *attributes)
    return NetlinkRequest(f"route {network} dev {link.name}", encoded)


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6
