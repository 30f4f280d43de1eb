"""The set of tunnels: names and namespaces are unique, and their number is limited."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from wg4netnsd import errors
from wg4netnsd.agent.client import Agent
from wg4netnsd.config.model import Config
from wg4netnsd.engine.spare import SpareEngine
from wg4netnsd.tunnel.lifecycle import State
from wg4netnsd.tunnel.lifetime import Lease
from wg4netnsd.tunnel.netns import Netns, NetnsId
from wg4netnsd.tunnel.observer import TunnelObserver
from wg4netnsd.tunnel.record import SavedTunnel
from wg4netnsd.tunnel.resources import Resources
from wg4netnsd.tunnel.spec import Spec
from wg4netnsd.tunnel.transit import Transit, TransitChange, TransitSpec, inner_mtu
from wg4netnsd.tunnel.tunnel import Tunnel

log = logging.getLogger(__name__)

MAX_TUNNELS: Final = 256
"""Each needs a process and FDS."""
FDS: Final = 17
"""Each tunnel's fds here: those of fdstore.FdKind but forwards' listeners, its link watch, its
lease's epoll, and its socket server's two."""
SPARE_FDS: Final = 160
"""Fds for the bus, the spare engine, and calls in progress."""


class ManagerObserver(Protocol):
    """The observer that a manager reports new and removed tunnels to."""

    def tunnel_added(self, tunnel: Tunnel) -> TunnelObserver:
        """Return the new tunnel's own observer."""
        ...

    def tunnel_removed(self, tunnel: Tunnel) -> None: ...


class Manager:
    """All tunnels. A tunnel that is closing counts until nothing is left of it."""

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
        self._outer_links: dict[Tunnel, contextlib.ExitStack] = {}
        self._transit_lock = asyncio.Lock()
        self._closing = False

    @property
    def agent(self) -> Agent:
        return self._resources.agent

    @property
    def tunnels(self) -> list[Tunnel]:
        return list(self._tunnels.values())

    @property
    def engine_lacks(self) -> list[str]:
        """The parts of the sandbox that engines lack on this machine, each with the reason."""
        return [str(lack) for lack in self._spare.lacks.values()]

    def create(
        self,
        spec: Spec,
        netns: Netns,
        transit: Transit,
        lease: Lease | None = None,
        saved: SavedTunnel | None = None,
    ) -> Tunnel:
        """Start a tunnel, or adopt a `saved` one.

        The tunnel owns `netns`, `transit`, `lease` and `saved` if this returns. Raises
        AlreadyExists, LimitExceeded, ShuttingDown, InvalidArgs, NoSuchTunnel.
        """
        if self._closing:
            raise errors.ShuttingDown("the daemon is ending")
        if spec.name in self._tunnels:
            raise errors.AlreadyExists(f"there is a tunnel named '{spec.name}'")
        if other := self._in_netns(netns.id):
            raise errors.AlreadyExists(f"the namespace already has the tunnel '{other.spec.name}'")
        if len(self._tunnels) >= self.max_tunnels:
            raise errors.LimitExceeded(f"there are {self.max_tunnels} tunnels already")
        outer = self._outer_of(spec.transit, netns.id)
        created = Tunnel(spec, netns, self._resources, transit, lease, saved)
        self._tunnels[spec.name] = created
        created.start(self._observer.tunnel_added)
        created.at_end.callback(lambda: self._set_outer(created, None))
        self._set_outer(created, outer)
        self._removals[created] = asyncio.create_task(self._remove_when_closed(created))
        return created

    async def reconfigure(
        self, tunnel: Tunnel, config: Config, mtu_option: int | None, change: TransitChange | None
    ) -> None:
        """Apply another configuration, and another transit unless `change` is None.

        The new transit is the tunnel's if this returns. Raises the reason why everything stays.
        """
        mtu = mtu_option or tunnel.creators_mtu
        spec = replace(tunnel.spec, config=config, mtu_option=mtu)
        if not change:
            await tunnel.reconfigure(spec, None)
            return
        spec = replace(spec, transit=change.spec)
        async with self._transit_lock:  # two tunnels could become each other's
            outer = self._outer_of(change.spec, tunnel.netns_id)
            await tunnel.reconfigure(spec, change.transit)
            self._set_outer(tunnel, outer)

    def _outer_of(self, transit: TransitSpec, netns: NetnsId) -> Tunnel | None:
        """Return the tunnel that would be the transit of one in this namespace, if any is.

        Raises InvalidArgs if its ciphertext would come back into the namespace, NoSuchTunnel.
        """
        self._refuse_loop(transit, netns)
        return self.get_open(transit.tunnel) if transit.tunnel else None

    def _set_outer(self, inner: Tunnel, outer: Tunnel | None) -> None:
        """Close `inner` when `outer` ends, and begin its handshakes anew after those of `outer`."""
        if old := self._outer_links.pop(inner, None):
            old.close()
        if outer:
            link = self._outer_links[inner] = contextlib.ExitStack()
            link.callback(asyncio.create_task(self._end_with(outer, inner)).cancel)
            renewed, renew = outer.peers.renewed, inner.peers.network_changed
            renewed.add(renew)
            link.callback(renewed.discard, renew)
            outer.paths.inner.add(inner.paths.look_again)
            link.callback(outer.paths.inner.discard, inner.paths.look_again)

    def _refuse_loop(self, transit: TransitSpec, netns: NetnsId) -> None:
        """Raise InvalidArgs if ciphertext from the namespace would come back into it."""
        seen, option = list[str](), transit.option
        while transit.netns:
            if transit.netns == netns:
                via = "".join(f" by way of '{name}'" for name in seen)
                text = f"it leads into the tunnel's own namespace{via}: expected another"
                raise errors.InvalidArgs(f"option '{option}': {text}")
            next_one = self._in_netns(NetnsId(*transit.netns))
            if next_one is None or next_one.spec.name in seen:
                return
            seen.append(next_one.spec.name)
            transit = next_one.spec.transit

    async def wait_ready(self, created: Tunnel) -> None:
        """Return when a new tunnel is up and, if its spec asks for that, a handshake is complete.

        Any failure, a cancellation included, closes the tunnel. Raises the reason.
        """
        try:
            await created.lifecycle.wait_for({State.UP})
            self._warn_of_same_key(created)
            self._warn_of_large_mtu(created)
            _warn_of_dns(created)
            if created.spec.handshake:
                await created.wait_handshake()
        except BaseException as error:  # also a cancellation at the moment it comes up
            await self.close(created, "its creation failed or was cancelled")
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
                    errors.AlreadyExists(f"{text}: peers answer only the one that sent last")
                )
                return

    def _warn_of_large_mtu(self, created: Tunnel) -> None:
        if outer := self._tunnels.get(created.spec.transit.tunnel):
            most = inner_mtu(outer.spec.mtu, created.peers.endpoints().values())
            if created.spec.mtu > most:
                text = f"MTU: {created.spec.mtu}: too large for '{outer.spec.name}' to pass whole"
                created.report_error(errors.InvalidConfig(f"{text}: expected {most} or less"))

    async def close(self, closed: Tunnel, reason: str) -> None:
        """Close a tunnel and return when its name and namespace are free again."""
        closed.close(reason)
        if removal := self._removals.get(closed):
            await asyncio.wait([removal])

    def network_changed(self, why: str) -> None:
        """Begin handshakes with all peers in use, now that the host's network has changed."""
        log.info("%s: beginning new handshakes", why)
        for one in self.tunnels:
            if one.spec.transit.tunnel:  # the outer one first: see Peers.renewed
                one.peers.keep_in_use()
            else:
                one.peers.network_changed()
            one.paths.look_again()

    def routes_changed(self) -> None:
        """Look at the paths to all peers again, now that the host's routes may have changed."""
        for one in self.tunnels:
            one.paths.look_again()

    def clock_jumped(self) -> None:
        """Update all peers: after a suspend or a set clock, timers may be late."""
        for one in self.tunnels:
            one.peers.clock_jumped()

    async def check_engines(self) -> None:
        """Have engines and gateways replaced that hang or use too much memory. Never fails."""
        parts = [part for one in self.tunnels for part in (one.engine, one.forwards.gateway)]
        await asyncio.gather(*(part.check() for part in parts))

    def get(self, name: str) -> Tunnel:
        """Return the tunnel `name`. Raises NoSuchTunnel."""
        try:
            return self._tunnels[name]
        except KeyError:
            raise errors.NoSuchTunnel(f"no tunnel named '{name[:64]}'") from None

    def get_open(self, name: str) -> Tunnel:
        """Return the tunnel `name`, which is not about to end. Raises NoSuchTunnel."""
        found = self.get(name)
        if found.lifecycle.close_reason:
            raise errors.NoSuchTunnel(f"'{name}' is closing: {found.lifecycle.close_reason}")
        return found

    def get_by_netns(self, netns: NetnsId) -> Tunnel:
        """Return the tunnel of a namespace. Raises NoSuchTunnel."""
        if found := self._in_netns(netns):
            return found
        raise errors.NoSuchTunnel("the namespace has no tunnel")

    async def close_all(self, reason: str) -> None:
        """Refuse new tunnels and close all others; return when nothing is left of them."""
        self._closing = True
        for one in self.tunnels:
            one.close(reason)
        if self._removals:
            await asyncio.wait(self._removals.values())
        await self._spare.close()

    def _in_netns(self, netns: NetnsId) -> Tunnel | None:
        return next((t for t in self._tunnels.values() if t.netns_id == netns), None)

    @staticmethod
    async def _end_with(outer: Tunnel, inner: Tunnel) -> None:
        """Close a tunnel when the one that is its transit ends."""
        with contextlib.suppress(errors.NoSuchTunnel):
            await outer.lifecycle.wait_for({State.STOPPING})
        why = outer.lifecycle.close_reason
        inner.close(f"its outer tunnel '{outer.spec.name}' ended: {why}")

    async def _remove_when_closed(self, tunnel: Tunnel) -> None:
        await tunnel.wait_closed()
        del self._tunnels[tunnel.spec.name], self._removals[tunnel]
        self._observer.tunnel_removed(tunnel)


def _warn_of_dns(created: Tunnel) -> None:
    if servers := created.spec.config.unreachable_dns():
        text = (
            f"DNS: {', '.join(map(str, servers))}: in nobody's AllowedIPs, so no query gets there"
        )
        created.report_error(errors.InvalidConfig(f"{text}: expected a peer that has it"))
