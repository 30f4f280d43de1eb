"""A tunnel's MTU and the paths to its peers: look at them again when they may have changed.

host's routes, endpoints, the engine's too-large ──► look_again() ──► Tunnel.follow_path()

With peers on different paths, the narrowest counts: the others lose a few percent by a smaller MTU,
but a path that is too narrow costs half the speed, since its packets go out in fragments. (wg-quick
takes the widest, of the moment when it runs.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from wg4netnsd.aio.coalescer import Coalescer
from wg4netnsd.aio.tasks import log_failure
from wg4netnsd.config.model import PATH_MTU
from wg4netnsd.errors import InvalidConfig
from wg4netnsd.peers.path_mtu import PathMtu
from wg4netnsd.peers.resolve import is_address
from wg4netnsd.systemd.journal import TunnelLog
from wg4netnsd.tunnel.spec import Spec
from wg4netnsd.tunnel.transit import TransitKind

if TYPE_CHECKING:
    from wg4netnsd.tunnel.tunnel import Tunnel


Look = Callable[[Collection[str]], PathMtu | None]
"""Returns the narrowest path to some ADDRESS:PORT, if it is known: Transit.path()."""


class PathWatch:
    """Have a tunnel follow the narrowest path's MTU, and report a path that is too narrow."""

    def __init__(self, tunnel: Tunnel, log: TunnelLog) -> None:
        self.inner: set[Callable[[], None]] = set()
        """Called when tunnels through this one have to look at their paths again."""
        self._tunnel = tunnel
        self._log = log
        self._reported = (0, 0)  # the MTUs of interface and path
        self._coalescer = Coalescer(self._look, asyncio.get_running_loop().call_later)
        self._following: asyncio.Task[None] | None = None

    def look_again(self) -> None:
        """Look at the paths, now or within a second."""
        self._coalescer.ask()

    def close(self) -> None:
        self._coalescer.close()
        if self._following:
            self._following.cancel()

    def _look(self) -> None:
        if self._following and not self._following.done():
            self._coalescer.ask()  # when that is done
            return
        path = self._tunnel.engine.path(self._tunnel.peers.endpoints().values())
        if path is None:  # as on a host that is offline: what was known stays
            return
        self._following = asyncio.create_task(self._follow_and_report(path))
        self._following.add_done_callback(log_failure)

    async def _follow_and_report(self, path: PathMtu) -> None:
        if path.mtu != self._tunnel.spec.path_mtu:
            await self._tunnel.follow_path(path.mtu)
            for look_again in list(self.inner):
                look_again()
        spec = self._tunnel.spec
        mtu, lowest = self._reported
        if spec.transit.kind is TransitKind.TUNNEL:  # Manager.wait_ready() warns of that
            return
        if path.inner >= spec.mtu or (mtu == spec.mtu and lowest <= path.mtu):
            return
        self._reported = spec.mtu, path.mtu
        why = f"larger packets than {path.inner} bytes go in fragments to {path.endpoint}"
        text = f"MTU: {spec.mtu} is too large for the path, which carries {path.mtu}: {why}"
        if spec.follows_path:
            self._log.warning("%s: IPv6 needs that much", text)
        else:
            self._tunnel.report_error(InvalidConfig(f"{text}: expected {path.inner} or less"))


def on_path(spec: Spec, look: Look, endpoints: Collection[str]) -> Spec:
    """Return the spec with the MTU of the narrowest of these paths.

    Without endpoints it is the default, and what it was if there is no route to any of them now.
    """
    path = look(endpoints)
    return replace(spec, path_mtu=path.mtu if path else spec.path_mtu if endpoints else PATH_MTU)


def literals(spec: Spec) -> list[str]:
    """Return the endpoints that are known before names are looked up."""
    endpoints = (peer.endpoint for peer in spec.peers)
    return [str(each) for each in endpoints if each and is_address(each.host)]
