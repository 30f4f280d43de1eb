"""What else is in a caller's namespace that an interface's settings can't go with.

Each refusal says what is in the way, what is expected, and the ways out.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Final, NamedTuple

from wg4netnsd.agent.protocol import InterfaceSettings
from wg4netnsd.kernel.messages import decode
from wg4netnsd.kernel.pyroute import rtnl
from wg4netnsd.kernel.rtnetlink import (
    ANY_ADDRESS,
    DEFAULT_METRIC,
    RT_TABLE_LOCAL,
    RT_TABLE_MAIN,
    RTM_F_CLONED,
    RTN_UNICAST,
    LinkRef,
    Netlink,
    Network,
)
from wg4netnsd.text import printable

LO: Final = LinkRef("lo", 1)


class InterfaceError(Exception):
    """The request can't be met. `error` is the name of an exception in wg4netnsd.errors."""

    def __init__(self, error: str, text: str) -> None:
        super().__init__(text)
        self.error = error


class _OtherRoute(NamedTuple):
    """A unicast route by another interface."""

    network: Network
    table: int
    metric: int
    way: str
    """For people: `via GATEWAY dev INTERFACE`."""


def refuse_leaks(netlink: Netlink, link: LinkRef, settings: InterfaceSettings) -> None:
    """Raise InterfaceError if packets to an unroutable network would leave by another interface."""
    networks = [ip_network(network) for network in settings.unroutable]
    others = {
        version: list(_other_routes(netlink, link, version))
        for version in {network.version for network in networks}
    }
    for network in networks:
        for other in others[network.version]:
            if network.subnet_of(other.network):  # type: ignore[arg-type] # of the same version
                raise InterfaceError(
                    "InvalidConfig",
                    f"AllowedIPs: {network}: there is no IPv{network.version} Address, and the "
                    f"namespace has a route {other.way}, by which such packets would leave outside "
                    f"the tunnel: expected an Address, no such route, or other AllowedIPs",
                )


def explain(
    refusal: OSError, netlink: Netlink, link: LinkRef, settings: InterfaceSettings
) -> InterfaceError | None:
    """Return the error that says what has made the kernel refuse settings; None if unknown."""
    if refusal.errno == errno.EEXIST:
        return _route_in_the_way(netlink, link, settings)
    ipv6 = [each for each in settings.addresses if ip_interface(each).version == 6]
    if ipv6 and (why := _why_ipv6_is_off(link)):
        text = f"Address {ipv6[0]}: IPv6 is off in the namespace ({why})"
        ways = "expected it on, no IPv6 Address, or the option ignore=['IPv6']"
        return InterfaceError("InvalidConfig", f"{text}: {ways}")
    return None


def _route_in_the_way(
    netlink: Netlink, link: LinkRef, settings: InterfaceSettings
) -> InterfaceError | None:
    wanted = set(map(ip_network, settings.routes))
    for version in sorted({network.version for network in wanted}):
        for other in _other_routes(netlink, link, version):
            where = other.table, other.metric
            if other.network in wanted and where == (RT_TABLE_MAIN, DEFAULT_METRIC[version]):
                return InterfaceError(
                    "TunFailed",
                    f"route {other.network} dev {link.name}: File exists: the namespace has one "
                    f"{other.way}: delete that, or write 'Table = off' and set routes yourself",
                )
    return None


def _other_routes(netlink: Netlink, link: LinkRef, version: int) -> Iterator[_OtherRoute]:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    for message in netlink.dump(rtnl.RTM_GETROUTE, family):
        route = decode(message)
        if (
            route["family"] == family  # if IPv6 is off, the kernel answers with others
            and route["type"] == RTN_UNICAST
            and not route["flags"] & RTM_F_CLONED
            and route.get("table") != RT_TABLE_LOCAL
            and route.get("oif") not in (link.ifindex, LO.ifindex)
        ):
            yield _OtherRoute(
                ip_network(f"{route.get('dst', ANY_ADDRESS[family])}/{route['dst_len']}"),
                route.get("table"),
                route.get("priority", 0),
                _way(route.get("gateway"), route.get("oif")),
            )


def _way(gateway: str | None, ifindex: int | None) -> str:
    via = [f"via {gateway}"] if gateway else []
    try:
        device = [f"dev {printable(socket.if_indextoname(ifindex))}"] if ifindex else []
    except OSError:  # it has gone meanwhile
        device = []
    return " ".join([*via, *device]) or "by several interfaces"


def _why_ipv6_is_off(link: LinkRef) -> str:
    """Return the reason why an interface can have no IPv6; empty if it can.

    /proc/sys/net is that of the namespace that we are in.
    """
    if not Path("/proc/net/if_inet6").exists():
        return "the kernel has none"
    try:
        off = Path(f"/proc/sys/net/ipv6/conf/{link.name}/disable_ipv6").read_text().strip() == "1"
    except OSError:
        return ""
    return f"net.ipv6.conf.{link.name}.disable_ipv6 = 1" if off else ""
