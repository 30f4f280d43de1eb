"""Work inside a caller's namespace: enter it, create the interface, configure it, change it.

Runs in a single-threaded child of the agent, and imports nothing of ours except kernel/ and its
neighbours.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from typing import Final, NamedTuple

from wg4netnsd.agent.obstacles import LO, InterfaceError, explain, refuse_leaks
from wg4netnsd.agent.protocol import (
    ChangeInterface,
    CreateInterface,
    InterfaceLink,
    InterfaceSettings,
)
from wg4netnsd.agent.watch import open_watch
from wg4netnsd.kernel import rtnetlink, tun
from wg4netnsd.kernel.messages import IFF_UP, decode
from wg4netnsd.kernel.rtnetlink import (
    InstalledRoute,
    InterfaceAddress,
    LinkRef,
    Netlink,
    NetlinkRequest,
    Network,
)
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


def describe(error: OSError) -> str:
    """Return the operation, the offending value, and the kernel's reason."""
    return ": ".join(filter(None, (error.filename, error.strerror or str(error))))


# ---------------------------------------------------------------- a new interface


class OpenedInterface(NamedTuple):
    """A new interface: its TUN, and the socket that reports on it from now on."""

    tun_fd: int
    watch_fd: int
    link: InterfaceLink


def create(netns: int, request: CreateInterface) -> OpenedInterface:
    """Create the interface in `netns`, and enter that; it lives as long as the TUN's fd."""
    if request.pins:
        enter(netns)
        tun_fd = open_tun(request.interface)
        return OpenedInterface(tun_fd, *open_watch(tun_fd))
    enter_sibling(netns)
    tun_fd = open_tun(request.interface)
    # Moved before it is up and configured: addresses and routes would be lost.
    _move_into(netns, request.interface)
    opened = OpenedInterface(tun_fd, *open_watch(tun_fd, netns))
    setns(netns, CLONE_NEWNET)
    return opened


def watch(tun_fd: int) -> tuple[int, InterfaceLink]:
    """Open a socket that reports on a TUN's interface.

    It keeps alive only the namespace that the TUN does.
    """
    try:
        netns, home = tun.netns_fd(tun_fd), tun.home_fd(tun_fd)
    except OSError as error:
        if error.errno not in (errno.EBADFD, errno.EINVAL):
            raise
        raise InterfaceError("TunFailed", "the interface is gone") from None
    enter(home)
    moved = not os.path.samestat(os.fstat(netns), os.fstat(home))
    return open_watch(tun_fd, netns if moved else None)


def enter_home(tun_fd: int) -> int:
    """Enter the namespace that a TUN was opened in, and return its fd."""
    home = tun.home_fd(tun_fd)
    enter(home)
    return home


def enter(netns: int) -> None:
    """Enter the user namespace that owns `netns`, then `netns` itself."""
    _enter_owner(netns)
    setns(netns, CLONE_NEWNET)


def enter_sibling(netns: int) -> None:
    """Enter a new network namespace with the same owner as `netns`."""
    _enter_owner(netns)
    try:
        unshare(CLONE_NEWNET)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        text = "unshare: no more network namespaces: expected fewer than user.max_net_namespaces"
        raise InterfaceError("LimitExceeded", text) from None


def _enter_owner(netns: int) -> None:
    """Enter the user namespace that owns `netns`.

    We have every capability there if our euid created it or an ancestor of it
    (user_namespaces(7)).
    """
    try:
        setns(ioctl(netns, NS_GET_USERNS, 0, "NS_GET_USERNS"), CLONE_NEWUSER)
    except OSError as error:
        # EPERM: it is outside our own user namespaces. EINVAL: we are in it already.
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise
        raise InterfaceError(
            "InvalidNetns",
            "the namespace's owner is not a user namespace of yours: "
            "expected one made without privilege, as by 'unshare -Urn'",
        ) from None


def open_tun(name: str) -> int:
    """Create the interface `name` in the namespace that we are in; it lives as long as the fd.

    IFF_VNET_HDR lets segmentation and checksum offload reach the engine: five times the throughput.
    Without IFF_TUN_EXCL, TUNSETIFF could attach us to an existing persistent TUN.
    """
    try:
        fd = os.open(tun.DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        text = f"{tun.DEVICE}: {error.strerror}: expected the tun module and a node of mode 0666"
        raise InterfaceError("TunFailed", text) from None
    flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL
    try:
        ioctl(fd, TUNSETIFF, tun.ifreq(name, flags), f"TUNSETIFF {name}")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise _taken(name) from None
    return fd


def _move_into(netns: int, name: str) -> None:
    with Netlink() as netlink:
        try:
            link = LinkRef(name, socket.if_nametoindex(name))
            netlink.apply([rtnetlink.move_link(link, netns)])
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            raise _taken(name) from None


def _taken(name: str) -> InterfaceError:
    return InterfaceError("AlreadyExists", f"the namespace already has an interface '{name}'")


def configure(link: LinkRef, settings: InterfaceSettings) -> None:
    """Give the interface its MTU, addresses and routes, and bring it and `lo` up."""
    with Netlink() as netlink:
        refuse_leaks(netlink, link, settings)
        try:
            netlink.apply(configuration(link, settings))
        except OSError as refusal:
            raise explain(refusal, netlink, link, settings) or refusal from None


def configuration(link: LinkRef, settings: InterfaceSettings) -> Iterator[NetlinkRequest]:
    """Yield the requests that `configure()` sends."""
    yield rtnetlink.link_up(LO)
    if _has_ipv6():  # before the MTU: one below IPv6's minimum takes IPv6 off the interface
        yield rtnetlink.no_link_local(link)
    yield rtnetlink.link_mtu(link, settings.mtu)
    for address in _addresses(settings):
        yield rtnetlink.new_address(link, address)
    yield rtnetlink.link_up(link)
    for network in _routes(settings):
        yield rtnetlink.new_route(link, network)


def _has_ipv6() -> bool:
    """Does this kernel have IPv6, and is it on?"""
    return os.path.exists("/proc/net/if_inet6")


def _addresses(settings: InterfaceSettings) -> list[InterfaceAddress]:
    """Return the addresses in the order in which to add them.

    The kernel appends IPv4 addresses, but puts a new IPv6 address before the others of its scope.
    In a tie it prefers the first one as a source (RFC 6724, section 5).
    """
    addresses = [ip_interface(address) for address in settings.addresses]
    ipv4 = [address for address in addresses if address.version == 4]
    return ipv4 + [address for address in reversed(addresses) if address.version == 6]


def _routes(settings: InterfaceSettings) -> list[Network]:
    return [ip_network(network) for network in settings.routes]


# ---------------------------------------------------------------- a change of an interface


class _Snapshot(NamedTuple):
    """An interface's addresses and routes before the change, whoever set them."""

    addresses: list[InterfaceAddress]
    routes: list[InstalledRoute]


class _Settings(NamedTuple):
    """Settings or a part of them, parsed; the addresses are in the order in which to add them."""

    mtu: int
    addresses: list[InterfaceAddress]
    routes: list[Network]

    def minus(self, addresses: set[InterfaceAddress], networks: set[Network]) -> _Settings:
        return _Settings(
            self.mtu,
            [address for address in self.addresses if address not in addresses],
            [network for network in self.routes if network not in networks],
        )

    def without(self, other: _Settings) -> _Settings:
        return self.minus(set(other.addresses), set(other.routes))


def change(request: ChangeInterface) -> None:
    """Take the interface from its `old` settings to `new` ones, or leave it as it was.

    Everything that is in both stays, and so does everything that the namespace's owner added. An
    address that stays keeps its place, so the first of `new` is the preferred source among the new
    ones only.
    """
    with Netlink() as netlink:
        link, mtu = _find(netlink, request.interface)
        was = _Snapshot(netlink.addresses(link), netlink.routes(link))
        old, new = _parse(request.old), _parse(request.new)
        # If the owner has set another MTU, that stays unless the new settings change the MTU.
        new = new._replace(mtu=mtu if new.mtu == old.mtu else new.mtu)
        old = old._replace(mtu=mtu)
        _refuse_ipv6_below_its_mtu(link, new)
        refuse_leaks(netlink, link, request.new)
        try:
            _move(netlink, link, old, new, was)
        except OSError as refusal:
            why = explain(refusal, netlink, link, request.new)
            _move_back(netlink, link, new, old, was, refusal)
            raise why or refusal from None


def _find(netlink: Netlink, name: str) -> tuple[LinkRef, int]:
    """Return the interface and its MTU."""
    answer = netlink.find(name)
    if answer is None:
        text = f"the namespace has no '{name}' any more: was it renamed, moved or deleted?"
        raise InterfaceError("TunFailed", text)
    found = decode(answer)
    if found.get(("linkinfo", "kind")) != "tun":
        raise InterfaceError("TunFailed", f"'{name}' is another interface now: was ours renamed?")
    if not found["flags"] & IFF_UP:  # the kernel refuses routes then, and has dropped ours
        raise InterfaceError("TunFailed", f"the interface '{name}' is down: expected it up")
    return LinkRef(name, found["index"]), found.get("mtu")


def _parse(settings: InterfaceSettings) -> _Settings:
    return _Settings(settings.mtu, _addresses(settings), _routes(settings))


def _refuse_ipv6_below_its_mtu(link: LinkRef, new: _Settings) -> None:
    """Raise InterfaceError for IPv6 settings with an MTU that is too small for them.

    The kernel would refuse them too, but only after it has dropped all IPv6, the owner's included.
    """
    ipv6 = [each for each in (*new.addresses, *new.routes) if each.version == 6]
    if ipv6 and new.mtu < IPV6_MIN_MTU:
        text = f"MTU {new.mtu} on {link.name}: too small for IPv6, as in {ipv6[0]}"
        raise InterfaceError("TunFailed", f"{text}: expected {IPV6_MIN_MTU} or more")


def _move_back(
    netlink: Netlink,
    link: LinkRef,
    new: _Settings,
    old: _Settings,
    was: _Snapshot,
    refusal: OSError,
) -> None:
    """Undo a change that the kernel refused in part.

    Everything of `new` that was there before stays, and nothing of `old` is added that was not.
    """
    addresses = set(was.addresses)
    networks = {route.network for route in was.routes if _is_ours(route)}
    lost = old.minus(addresses, networks)
    try:
        _move(netlink, link, new.minus(addresses, networks), old.without(lost), was)
    except OSError as second:
        text = f"{describe(refusal)}; and on the way back: {describe(second)}"
        raise InterfaceError("TunFailed", text) from None


def _move(netlink: Netlink, link: LinkRef, old: _Settings, new: _Settings, was: _Snapshot) -> None:
    """Add everything new first, so that nothing is missing in between; then remove the rest."""
    if new.mtu > old.mtu:
        netlink.apply([rtnetlink.link_mtu(link, new.mtu)])
    if old.mtu < IPV6_MIN_MTU <= new.mtu and _has_ipv6():
        _keep_link_local_off(netlink, link, was)
    there = {route.network for route in was.routes if route.plain}
    netlink.apply(_additions(link, new, there))
    netlink.apply(_removals(link, old.without(new), new, was))
    if new.mtu < old.mtu:  # last: below 1280 it takes all IPv6 away, and nothing restores that
        netlink.apply([rtnetlink.link_mtu(link, new.mtu)])


def _keep_link_local_off(netlink: Netlink, link: LinkRef, was: _Snapshot) -> None:
    """Remove the link-local address that the kernel has just added, and have it add none.

    An MTU below 1280 has made the kernel forget `no_link_local()`. A router solicitation may get
    out in between.
    """
    netlink.apply([rtnetlink.no_link_local(link)])
    netlink.apply(
        rtnetlink.del_address(link, address)
        for address in netlink.addresses(link)
        if address.version == 6 and address.is_link_local and address not in was.addresses
    )


def _additions(link: LinkRef, new: _Settings, there: set[Network]) -> Iterator[NetlinkRequest]:
    """Yield requests for all of `new`, including what is there already.

    A route may be set beside another one only if that is `there`, on this interface. Otherwise the
    kernel has to refuse it.
    """
    for address in new.addresses:
        # EEXIST also means that an IPv6 address still has another prefix length.
        yield rtnetlink.new_address(link, address)._replace(fine=(errno.EEXIST,))
    for network in new.routes:
        make = rtnetlink.add_route if network in there else rtnetlink.new_route
        yield make(link, network)


def _removals(
    link: LinkRef, gone: _Settings, new: _Settings, was: _Snapshot
) -> Iterator[NetlinkRequest]:
    """Yield requests that remove `gone`, and restore what the kernel removes along with it.

    Routes go with the address that is their source, and all IPv4 routes with the last IPv4 address
    (fib_disable_ip()). An IPv6 address has one prefix length at a time. Requests for something that
    is still there change nothing. One send has all of them, so that nothing is missing for long.
    """
    for network in gone.routes:
        yield rtnetlink.del_route(link, network)
    if not gone.addresses:
        return
    if any(address.version == 4 for address in gone.addresses):
        # Otherwise the kernel deletes a subnet's other addresses with its first one.
        yield rtnetlink.promote_secondaries(link)
    for address in gone.addresses:
        yield rtnetlink.del_address(link, address)
    yield from _additions(link, new, there=set(new.routes))
    for route in was.routes:
        if route.protocol != rtnetlink.RTPROT_KERNEL and not (
            _is_ours(route) and route.network in gone.routes
        ):
            yield route.restore()


def _is_ours(route: InstalledRoute) -> bool:
    """Is it one that we set, or just like one?"""
    return route.plain and route.protocol == rtnetlink.RTPROT_STATIC
