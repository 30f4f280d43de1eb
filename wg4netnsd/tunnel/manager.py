"""The set of tunnels: one a namespace, one a name, and no more than the limit."""

from __future__ import annotations

import asyncio
import logging
import resource
from pathlib import Path
from typing import Final, Protocol

from wg4netnsd import errors
from wg4netnsd.agent.client import Agent
from wg4netnsd.engine.spare import SpareEngine
from wg4netnsd.tunnel.lifecycle import State
from wg4netnsd.tunnel.lifetime import Lease
from wg4netnsd.tunnel.netns import Netns, NetnsId
from wg4netnsd.tunnel.observer import TunnelObserver
from wg4netnsd.tunnel.record import SavedTunnel
from wg4netnsd.tunnel.resources import Resources
from wg4netnsd.tunnel.spec import Spec
from wg4netnsd.tunnel.tunnel import Tunnel

log = logging.getLogger(__name__)

MAX_TUNNELS: Final = 256
"""Each takes a process and, here, fds: those of fdstore.Kind, the watch over its link, a lease's
epoll."""
FDS: Final = 10
SPARE_FDS: Final = 160
"""For the bus, the spare engine, and calls under way."""


class ManagerObserver(Protocol):
    """The interface through which a manager reports which tunnels there are."""

    def tunnel_added(self, tunnel: Tunnel) -> TunnelObserver:
        """Return the new tunnel's own observer."""
        ...

    def tunnel_removed(self, tunnel: Tunnel) -> None: ...


class Manager:
    """Owns the tunnels. Those being closed count until nothing is left of them."""

    def __init__(
        self, agent: Agent, binary: Path, directory: Path, observer: ManagerObserver
    ) -> None:
        """`binary`: the wireguard-go to run; `directory` gets a socket for each tunnel."""
        fds, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.max_tunnels = max(1, min(MAX_TUNNELS, (fds - SPARE_FDS) // FDS))
        self.directory = directory
        self._spare = SpareEngine(binary)
        self._resources = Resources(agent, self._spare, directory)
        self._observer = observer
        self._tunnels: dict[str, Tunnel] = {}
        self._removals: dict[Tunnel, asyncio.Task[None]] = {}
        self._closing = False

    @property
    def tunnels(self) -> list[Tunnel]:
        return list(self._tunnels.values())

    @property
    def engine_lacks(self) -> list[str]:
        """What engines can't be confined by on this machine, and why."""
        return [str(lack) for lack in self._spare.lacks.values()]

    def create(
        self,
        spec: Spec,
        netns: Netns,
        lease: Lease | None = None,
        saved: SavedTunnel | None = None,
    ) -> Tunnel:
        """Start a tunnel, or go on with a `saved` one. It owns them all if this returns.

        Raises AlreadyExists, LimitExceeded, ShuttingDown.
        """
        if self._closing:
            raise errors.ShuttingDown("the daemon is ending")
        if spec.name in self._tunnels:
            raise errors.AlreadyExists(f"there is a tunnel named '{spec.name}'")
        if other := self._in_netns(netns.id):
            raise errors.AlreadyExists(f"the namespace already has the tunnel '{other.spec.name}'")
        if len(self._tunnels) >= self.max_tunnels:
            raise errors.LimitExceeded(f"there are {self.max_tunnels} tunnels already")
        created = Tunnel(spec, netns, self._resources, lease, saved)
        self._tunnels[spec.name] = created
        created.start(self._observer.tunnel_added)
        self._removals[created] = asyncio.create_task(self._remove_when_closed(created))
        return created

    async def wait_ready(self, created: Tunnel) -> None:
        """Return when a new tunnel is up, and a handshake complete if it was created for one.

        Whatever prevents that, a cancellation too, undoes it.

        Raises what went wrong.
        """
        try:
            await created.lifecycle.wait_for({State.UP})
            self._warn_of_same_key(created)
            if created.spec.handshake:
                await created.wait_handshake()
        except BaseException as error:  # also a cancellation in the moment that it gets up
            await self.close(created, "its creation was given up")
            if isinstance(error, errors.NoSuchTunnel):
                ending = errors.ShuttingDown("the daemon is ending") if self._closing else error
                raise created.failure or ending from None
            raise

    def _warn_of_same_key(self, created: Tunnel) -> None:
        key = created.engine.public_key
        for other in self._tunnels.values():
            if other is not created and other.engine.public_key == key:
                text = f"'{other.spec.name}' has the same PrivateKey"
                created.report_error(
                    errors.AlreadyExists(f"{text}: a peer talks to who spoke last")
                )
                return

    async def close(self, closed: Tunnel, reason: str) -> None:
        """Close a tunnel and return when its name and namespace are free again."""
        closed.close(reason)
        if removal := self._removals.get(closed):
            await asyncio.wait([removal])

    def network_changed(self, why: str) -> None:
        """The host's network is another: have all peers that are in use reached over that."""
        log.info("%s: new handshakes", why)
        for one in self.tunnels:
            one.peers.network_changed()

    def clock_jumped(self) -> None:
        """Time has gone by that timers did not see."""
        for one in self.tunnels:
            one.peers.clock_jumped()

    async def check_engines(self) -> None:
        """Have those replaced that are hung; never fails."""
        await asyncio.gather(*(one.engine.check() for one in self.tunnels))

    def get(self, name: str) -> Tunnel:
        """Raises NoSuchTunnel."""
        try:
            return self._tunnels[name]
        except KeyError:
            raise errors.NoSuchTunnel(f"no tunnel named '{name[:64]}'") from None

    def get_by_netns(self, netns: NetnsId) -> Tunnel:
        """Raises NoSuchTunnel."""
        if found := self._in_netns(netns):
            return found
        raise errors.NoSuchTunnel("the namespace has no tunnel")

    async def close_all(self, reason: str) -> None:
        """Close every tunnel, and take no new ones; return when nothing is left."""
        self._closing = True
        for one in self.tunnels:
            one.close(reason)
        if self._removals:
            await asyncio.wait(self._removals.values())
        await self._spare.close()

    def _in_netns(self, netns: NetnsId) -> Tunnel | None:
        return next((t for t in self._tunnels.values() if t.netns_id == netns), None)

    async def _remove_when_closed(self, kept: Tunnel) -> None:
        await kept.wait_closed()
        del self._tunnels[kept.spec.name], self._removals[kept]
        self._observer.tunnel_removed(kept)
