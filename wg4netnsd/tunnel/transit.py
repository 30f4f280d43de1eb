"""A tunnel's transit: the network that its ciphertext takes.

An engine's UDP sockets belong to the network namespace that they were opened in, wherever the
engine runs. So whoever opens them chooses the transit:

    host         the daemon, in its own network; the default
    namespace    the agent, in a network namespace that the daemon may enter
    sockets      the tunnel's creator: who holds a socket has proven that they may use its network
    tunnel       the agent, beside another tunnel's interface, to which they are bound
"""

from __future__ import annotations

import asyncio
import enum
import os
import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from wg4netnsd.agent.client import Agent
from wg4netnsd.config.model import OVERHEAD
from wg4netnsd.dns.resolver import Resolver
from wg4netnsd.engine.udp import UdpSockets
from wg4netnsd.errors import InvalidArgs, InvalidConfig, InvalidNetns, Timeout, TunFailed
from wg4netnsd.peers import path_mtu, resolve
from wg4netnsd.peers.endpoint import host_of
from wg4netnsd.peers.path_mtu import PathMtu

if TYPE_CHECKING:
    from wg4netnsd.tunnel.tunnel import Tunnel


class TransitKind(enum.StrEnum):
    HOST = "host"
    NAMESPACE = "namespace"
    SOCKETS = "sockets"
    TUNNEL = "tunnel"


class TransitSpec(NamedTuple):
    """The transit that a tunnel's creator has chosen."""

    kind: TransitKind = TransitKind.HOST
    tunnel: str = ""
    """The outer tunnel's name."""
    netns: tuple[int, int] | None = None
    """Device and inode of the sockets' namespace; None if it is not one of ours."""

    cookie: int = 0
    """Of passed sockets, their UdpSockets.netns_cookie."""

    @property
    def option(self) -> str:
        """The option of CreateTunnel that chooses it."""
        suffix = "" if self.kind is TransitKind.NAMESPACE else f"_{self.kind}"
        return f"transit{suffix}"

    @property
    def detail(self) -> str:
        """The outer tunnel's name, or the namespace as /proc/PID/ns/net links to it."""
        return self.tunnel or (f"net:[{self.netns[1]}]" if self.netns else "")


HOST: Final = TransitSpec()


def inner_mtu(mtu: int, endpoints: Iterable[str]) -> int:
    """Return the MTU of a tunnel through another one that has `mtu`.

    `endpoints` are ADDRESS:PORT, or HOST:PORT of a name that may have IPv6 addresses.
    """
    known = [host_of(endpoint) for endpoint in endpoints]
    ipv4 = all(re.fullmatch(r"[\d.]+", host) for host in known)
    return mtu - OVERHEAD[4 if known and ipv4 else 6]


class Transit(Protocol):
    """A source of UDP sockets."""

    fd: int
    """The fd from which the next daemon can open sockets; -1 for none."""

    async def open_sockets(self, port: int) -> UdpSockets:
        """Return sockets bound to `port`, now the caller's; 0 for any.

        Raises PortInUse, EngineFailed, LimitExceeded, InvalidConfig, InvalidNetns, TunFailed.
        """
        ...

    async def look_up(self, host: str) -> list[str]:
        """Return the addresses of a peer's host name. Raises Error."""
        ...

    def path(self, endpoints: Collection[str]) -> PathMtu | None:
        """Return the narrowest path to these ADDRESS:PORT; None if it is not known."""
        ...

    def close(self) -> None: ...


class TransitChange(NamedTuple):
    """A transit, and what a tunnel's Spec says of it."""

    transit: Transit
    spec: TransitSpec


class _HostNames:
    """Names are looked up on the host: nobody has said what to ask in another network."""

    look_up = staticmethod(resolve.look_up)


class HostTransit(_HostNames):
    """The daemon's own network."""

    fd = -1

    async def open_sockets(self, port: int) -> UdpSockets:
        return UdpSockets.open(port)

    def path(self, endpoints: Collection[str]) -> PathMtu | None:
        return path_mtu.narrowest(endpoints)

    def close(self) -> None: ...


class NamespaceTransit(_HostNames):
    """Another network namespace. Owns its fd."""

    def __init__(self, agent: Agent, fd: int) -> None:
        self.fd = fd
        self._agent = agent

    @property
    def netns(self) -> tuple[int, int]:
        """Its device and inode."""
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino

    async def open_sockets(self, port: int) -> UdpSockets:
        try:
            return UdpSockets(await self._agent.open_udp_sockets(self.fd, port, by_tun=False))
        except InvalidNetns as error:
            raise InvalidArgs(f"option 'transit': {error.text}") from None

    def path(self, endpoints: Collection[str]) -> None:
        """Return None: to ask in there takes a process of the agent each time."""

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class TunnelTransit:
    """Another tunnel's interface."""

    fd = -1

    def __init__(self, agent: Agent, outer: Tunnel) -> None:
        self._agent = agent
        self._outer = outer

    async def open_sockets(self, port: int) -> UdpSockets:
        tun_fd = self._outer.link.tun_fd
        if tun_fd < 0:
            raise TunFailed("the outer tunnel's interface is gone")
        return UdpSockets(await self._agent.open_udp_sockets(tun_fd, port, by_tun=True))

    async def look_up(self, host: str) -> list[str]:
        """Ask the outer tunnel's name servers, through it."""
        spec = self._outer.spec
        resolver = Resolver(spec.name_servers, spec.search_domains, self._outer.sockets.open)
        try:
            async with asyncio.timeout(resolve.LOOKUP_TIME):
                return await resolver.resolve(host)
        except TimeoutError:
            raise Timeout(f"{host}: no answer within {resolve.LOOKUP_TIME:g} s") from None

    def path(self, endpoints: Collection[str]) -> PathMtu:
        inner = inner_mtu(self._outer.spec.mtu, endpoints)
        return PathMtu(inner + OVERHEAD[6], inner, self._outer.spec.name)

    def close(self) -> None: ...


class PassedTransit(_HostNames):
    """The creator's own sockets, which nobody can open again. Owns them until they are taken."""

    fd = -1

    def __init__(self, sockets: UdpSockets | None = None) -> None:
        """`sockets` is None after an earlier daemon has already been asked for them."""
        self._sockets = sockets

    async def open_sockets(self, port: int) -> UdpSockets:
        sockets = self._sockets
        if not sockets or port not in (0, sockets.port):
            raise InvalidConfig(
                f"ListenPort: {port}: the sockets of the option 'transit_sockets' have another port"
            )
        self._sockets = None
        return sockets

    def path(self, endpoints: Collection[str]) -> None:
        """Return None: nobody else can ask about the sockets' namespace."""

    def close(self) -> None:
        if self._sockets:
            self._sockets.close()
            self._sockets = None
