"""What is done inside a caller's namespace: enter it, make the interface, configure, change it.

Runs in a single-threaded child of the agent, and imports nothing of ours except kernel/ and its
neighbours.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from typing import Final, NamedTuple

from wg4netnsd.agent.protocol import (
    ChangeInterface,
    CreateInterface,
    InterfaceLink,
    InterfaceSettings,
)
from wg4netnsd.agent.watch import open_watch
from wg4netnsd.kernel import rtnetlink, tun
from wg4netnsd.kernel.rtnetlink import Interface, Link, Message, Netlink, Network, Route
from wg4netnsd.kernel.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWUSER,
    IFF_NO_PI,
    IFF_TUN,
    IFF_TUN_EXCL,
    IFF_VNET_HDR,
    NS_GET_USERNS,
    TUNSETIFF,
    ioctl,
    setns,
    unshare,
)

IPV6_MIN_MTU: Final = 1280  # RFC 8200, section 5

LO: Final = Link("lo", 1)


class Refused(Exception):
    """The kernel said no. `error` is the name of an exception in wg4netnsd.errors."""

    def __init__(self, error: str, text: str) -> None:
        super().__init__(text)
        self.error = error


def say(error: OSError) -> str:
    """Operation, offending value, the kernel's reason."""
    return ": ".join(filter(None, (error.filename, error.strerror or str(error))))


# ---------------------------------------------------------------- a new interface


class Made(NamedTuple):
    """A new interface: its TUN, and the socket that reports on it from then on."""

    tun_fd: int
    watch_fd: int
    link: InterfaceLink


def make(netns: int, request: CreateInterface) -> Made:
    """Make the interface in `netns`, and enter that; it lives as long as the TUN's fd."""
    if request.pins:
        enter(netns)
        tun_fd = open_tun(request.interface)
        return Made(tun_fd, *open_watch(tun_fd))
    enter_sibling(netns)
    tun_fd = open_tun(request.interface)
    # While it is down and has nothing: what it had would not come along.
    _move_into(netns, request.interface)
    made = Made(tun_fd, *open_watch(tun_fd, netns))
    setns(netns, CLONE_NEWNET)
    return made


def watch(tun_fd: int) -> tuple[int, InterfaceLink]:
    """Open a socket that reports on a TUN's interface, and keeps alive only what the TUN does."""
    try:
        netns, home = tun.netns_fd(tun_fd), tun.home_fd(tun_fd)
    except OSError as error:
        if error.errno not in (errno.EBADFD, errno.EINVAL):
            raise
        raise Refused("TunFailed", "the interface is gone") from None
    enter(home)
    moved = not os.path.samestat(os.fstat(netns), os.fstat(home))
    return open_watch(tun_fd, netns if moved else None)


def enter(netns: int) -> None:
    """Enter the user namespace that owns `netns`, then `netns` itself."""
    _enter_owner(netns)
    setns(netns, CLONE_NEWNET)


def enter_sibling(netns: int) -> None:
    """Enter a new network namespace, of the same owner as `netns`."""
    _enter_owner(netns)
    try:
        unshare(CLONE_NEWNET)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        text = "unshare: no more network namespaces: expected fewer than user.max_net_namespaces"
        raise Refused("LimitExceeded", text) from None


def _enter_owner(netns: int) -> None:
    """Enter the user namespace that owns `netns`.

    There we have every capability, as our euid created it or an ancestor of it
    (user_namespaces(7)).
    """
    try:
        setns(ioctl(netns, NS_GET_USERNS, 0, "NS_GET_USERNS"), CLONE_NEWUSER)
    except OSError as error:
        # EPERM: outside our own user namespaces. EINVAL: the owner is the one that we are in.
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise
        raise Refused(
            "InvalidNetns",
            "the namespace's owner is not a user namespace of yours: "
            "expected one made without privilege, as by 'unshare -Urn'",
        ) from None


def open_tun(name: str) -> int:
    """Make the interface `name` in the namespace that we are in; it lives as long as the fd.

    IFF_VNET_HDR lets segmentation and checksum offload reach the engine: five times the throughput.
    IFF_TUN_EXCL, since without it TUNSETIFF would attach us to somebody's persistent TUN.
    """
    try:
        fd = os.open(tun.DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        text = f"{tun.DEVICE}: {error.strerror}: expected the tun module and a node of mode 0666"
        raise Refused("TunFailed", text) from None
    flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL
    try:
        # struct ifreq: a name of 16 bytes, then a union of 24 that begins with the flags.
        ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags), f"TUNSETIFF {name}")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise _taken(name) from None
    return fd


def _move_into(netns: int, name: str) -> None:
    with Netlink() as netlink:
        try:
            netlink.apply([rtnetlink.move_link(Link(name, socket.if_nametoindex(name)), netns)])
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            raise _taken(name) from None


def _taken(name: str) -> Refused:
    return Refused("AlreadyExists", f"the namespace already has an interface '{name}'")


def configure(link: Link, settings: InterfaceSettings) -> None:
    """Give the interface all that makes it useful, and bring it and `lo` up."""
    with Netlink() as netlink:
        netlink.apply(messages(link, settings))


def messages(link: Link, settings: InterfaceSettings) -> list[Message]:
    """All of `configure()`, encoded."""
    return list(_configuration(link, settings))


def _configuration(link: Link, settings: InterfaceSettings) -> Iterator[Message]:
    yield rtnetlink.link_up(LO)
    if _has_ipv6():  # to be said first: an MTU below IPv6's takes IPv6 off the interface
        yield rtnetlink.no_link_local(link)
    yield rtnetlink.link_mtu(link, settings.mtu)
    for address in _addresses(settings):
        yield rtnetlink.new_address(link, address)
    yield rtnetlink.link_up(link)
    for network in _routes(settings):
        yield rtnetlink.new_route(link, network)


def _has_ipv6() -> bool:
    """Is IPv6 not switched off in this kernel?"""
    return os.path.exists("/proc/net/if_inet6")


def _addresses(settings: InterfaceSettings) -> list[Interface]:
    """In the order in which to add them: the kernel appends IPv4 addresses, but puts a new IPv6
    address before the others of its scope, and in a tie goes by the first (RFC 6724, section 5)."""
    addresses = [ip_interface(address) for address in settings.addresses]
    ipv4 = [address for address in addresses if address.version == 4]
    return ipv4 + [address for address in reversed(addresses) if address.version == 6]


def _routes(settings: InterfaceSettings) -> list[Network]:
    return [ip_network(network) for network in settings.routes]


# ---------------------------------------------------------------- a change of it


class _Snapshot(NamedTuple):
    """What was there, whoever set it."""

    addresses: list[Interface]
    routes: list[Route]


class _State(NamedTuple):
    """Settings, parsed, or a part of them; addresses in the order in which to add them."""

    mtu: int
    addresses: list[Interface]
    routes: list[Network]

    def minus(self, addresses: set[Interface], networks: set[Network]) -> _State:
        return _State(
            self.mtu,
            [address for address in self.addresses if address not in addresses],
            [network for network in self.routes if network not in networks],
        )

    def without(self, other: _State) -> _State:
        return self.minus(set(other.addresses), set(other.routes))


def change(request: ChangeInterface) -> None:
    """Make the interface go from `old` to `new`, or leave it as it was.

    What is in both stays, and so does what the namespace's owner added. Where an address stays, it
    keeps its place: the first of `new` is the preferred source among the new ones only.
    """
    with Netlink() as netlink:
        link, mtu = _find(netlink, request.interface)
        was = _Snapshot(netlink.addresses(link), netlink.routes(link))
        old, new = _state(request.old), _state(request.new)
        # The owner may have set another MTU, and means it as long as nobody asks for a change.
        new = new._replace(mtu=mtu if new.mtu == old.mtu else new.mtu)
        old = old._replace(mtu=mtu)
        _refuse_ipv6_below_its_mtu(link, new)
        try:
            _move(netlink, link, old, new, was)
        except OSError as refusal:
            _move_back(netlink, link, new, old, was, refusal)
            raise


def _find(netlink: Netlink, name: str) -> tuple[Link, int]:
    """The interface and its MTU."""
    found = netlink.find(name)
    if found is None:
        text = f"the namespace has no '{name}' any more: was it renamed, moved or deleted?"
        raise Refused("TunFailed", text)
    if found.kind != "tun":
        raise Refused("TunFailed", f"'{name}' is another interface now: was ours renamed?")
    if not found.up:  # the kernel refuses routes, and has dropped ours
        raise Refused("TunFailed", f"the interface '{name}' is down: expected it up")
    return found.link, found.mtu


def _state(settings: InterfaceSettings) -> _State:
    return _State(settings.mtu, _addresses(settings), _routes(settings))


def _refuse_ipv6_below_its_mtu(link: Link, new: _State) -> None:
    """The kernel would refuse it too, but only when all IPv6 is off, also the owner's."""
    ipv6 = [each for each in (*new.addresses, *new.routes) if each.version == 6]
    if ipv6 and new.mtu < IPV6_MIN_MTU:
        text = f"MTU {new.mtu} on {link.name}: too small for IPv6, as in {ipv6[0]}"
        raise Refused("TunFailed", f"{text}: expected {IPV6_MIN_MTU} or more")


def _move_back(
    netlink: Netlink, link: Link, new: _State, old: _State, was: _Snapshot, refusal: OSError
) -> None:
    """What was there before `new` stays, and what of `old` was not there does not come."""
    addresses = set(was.addresses)
    networks = {route.network for route in was.routes if _is_ours(route)}
    lost = old.minus(addresses, networks)
    try:
        _move(netlink, link, new.minus(addresses, networks), old.without(lost), was)
    except OSError as second:
        text = f"{say(refusal)}; and on the way back: {say(second)}"
        raise Refused("TunFailed", text) from None


def _move(netlink: Netlink, link: Link, old: _State, new: _State, was: _Snapshot) -> None:
    """First what is new, so that nothing is missing in between; then what is to go."""
    if new.mtu > old.mtu:
        netlink.apply([rtnetlink.link_mtu(link, new.mtu)])
    if old.mtu < IPV6_MIN_MTU <= new.mtu and _has_ipv6():
        _welcome_ipv6(netlink, link, was)
    there = {route.network for route in was.routes if route.plain}
    netlink.apply(_additions(link, new, there))
    netlink.apply(_removals(link, old.without(new), new, was))
    if new.mtu < old.mtu:  # last: below 1280 it takes all IPv6 away, which no way back restores
        netlink.apply([rtnetlink.link_mtu(link, new.mtu)])


def _welcome_ipv6(netlink: Netlink, link: Link, was: _Snapshot) -> None:
    """Below 1280 the kernel has forgotten that the interface wants no link-local address, and has
    just made one. A router solicitation may get out in between."""
    netlink.apply([rtnetlink.no_link_local(link)])
    netlink.apply(
        rtnetlink.del_address(link, address)
        for address in netlink.addresses(link)
        if address.version == 6 and address.is_link_local and address not in was.addresses
    )


def _additions(link: Link, new: _State, there: set[Network]) -> Iterator[Message]:
    """All of `new`, whatever of it is there. A route needs to be beside another only where one of
    this interface leads there already; anywhere else the kernel is to refuse it."""
    for address in new.addresses:
        # Also refused with EEXIST: an IPv6 address that has another prefix length until now.
        yield rtnetlink.new_address(link, address)._replace(fine=(errno.EEXIST,))
    for network in new.routes:
        make = rtnetlink.add_route if network in there else rtnetlink.new_route
        yield make(link, network)


def _removals(link: Link, gone: _State, new: _State, was: _Snapshot) -> Iterator[Message]:
    """What is to go, and at once, in the same send, what the kernel takes along.

    Routes go with the address that is their source, IPv4 routes all with the last IPv4 address
    (fib_disable_ip()), and an IPv6 address is of one prefix length at a time. What is still there
    is not touched.
    """
    for network in gone.routes:
        yield rtnetlink.del_route(link, network)
    if not gone.addresses:
        return
    if any(address.version == 4 for address in gone.addresses):
        yield rtnetlink.promote_secondaries(link)  # else a subnet's first address takes the others
    for address in gone.addresses:
        yield rtnetlink.del_address(link, address)
    yield from _additions(link, new, there=set(new.routes))
    for route in was.routes:
        if route.protocol != rtnetlink.RTPROT_KERNEL and not (
            _is_ours(route) and route.network in gone.routes
        ):
            yield route.again()


def _is_ours(route: Route) -> bool:
    """Or like ours in all respects."""
    return route.plain and route.protocol == rtnetlink.RTPROT_STATIC
