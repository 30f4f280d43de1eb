"""The MTU of the host's paths to peers, as far as the kernel knows it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from itertools import islice
from typing import Final, NamedTuple

from wg4netnsd.config.model import OVERHEAD

IP_MTU, IPV6_MTU = 14, 24  # linux/in.h, linux/in6.h: of a connected socket's route
MAX_ENDPOINTS: Final = 256
"""Each takes 50 µs on a busy machine, in which the daemon does nothing else."""


class PathMtu(NamedTuple):
    """The path to `endpoint`, an ADDRESS:PORT, carries packets of `mtu` bytes.

    Through a tunnel over it fit packets of `inner` bytes.
    """

    mtu: int
    inner: int
    endpoint: str


def narrowest(endpoints: Iterable[str]) -> PathMtu | None:
    """Return the path with the smallest `inner`; None if there is a route to no endpoint.

    To connect a UDP socket sends nothing and looks up its route. The kernel knows the MTU of a
    route by its `mtu`, by its link's, or from a router that said so by ICMP (`ip route get`).
    """
    distinct = dict.fromkeys(endpoints)
    known = filter(None, map(_path_to, islice(distinct, MAX_ENDPOINTS)))
    return min(known, key=lambda path: path.inner, default=None)


def _path_to(endpoint: str) -> PathMtu | None:
    address, port = _address(endpoint)
    ipv4 = address.version == 4
    try:
        with socket.socket(socket.AF_INET if ipv4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), port))
            level, option = (socket.IPPROTO_IP, IP_MTU) if ipv4 else (socket.IPPROTO_IPV6, IPV6_MTU)
            mtu = probe.getsockopt(level, option)
            return PathMtu(mtu, mtu - OVERHEAD[address.version], endpoint)
    except OSError:  # no route, no such family, no fd left: nothing is known
        return None


def _address(endpoint: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    host, _, port = endpoint.rpartition(":")
    return ipaddress.ip_address(host.strip("[]")), int(port)
