"""The D-Bus interfaces: arguments in, domain calls, replies and signals out; and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from wg4netnsd import __version__, errors, names
from wg4netnsd.agent.client import Agent
from wg4netnsd.api import options
from wg4netnsd.bus.objects import Interface, Tree
from wg4netnsd.bus.server import Bus, Call, Reply, Variant
from wg4netnsd.config import reader
from wg4netnsd.engine import engine
from wg4netnsd.peers.peer import Handshake, PeerView
from wg4netnsd.peers.rate_limit import Report
from wg4netnsd.peers.state import PeerState
from wg4netnsd.systemd import notify
from wg4netnsd.systemd.fdstore import InheritedFds
from wg4netnsd.tunnel import restore
from wg4netnsd.tunnel.lifecycle import State
from wg4netnsd.tunnel.lifetime import Lease, Lifetime
from wg4netnsd.tunnel.manager import Manager
from wg4netnsd.tunnel.netns import Netns
from wg4netnsd.tunnel.spec import Spec
from wg4netnsd.tunnel.tunnel import Tunnel

NO_LIMIT: Final = (1 << 64) - 1

_PROPERTIES_OF: Final = {
    "state": ["State", "Peers"],
    "public_key": ["PublicKey"],
    "listen_port": ["ListenPort"],
    "engine_pid": ["EnginePID"],
    "restart_count": ["RestartCount"],
    "error": ["LastError"],
    "peers": ["Peers"],
    "mtu": ["Mtu"],
    "addresses": ["Addresses"],
    "dns": ["Dns"],
    "interface": ["Interface"],
    "link_state": ["LinkState"],
}
"""A tunnel's attributes that can change, and what a client sees of each."""


class Service:
    """The daemon as the bus sees it: one Manager object, and an object for each tunnel."""

    def __init__(self, agent: Agent, binary: Path, directory: Path) -> None:
        """`binary`: the wireguard-go to run."""
        self.manager = Manager(agent, binary, directory, self)
        self._binary = binary
        self._tree = Tree(names.ROOT_PATH)

    async def start(self, inherited: Mapping[str, InheritedFds]) -> Bus:
        """Connect, take over what a daemon before us has left, and only then own the name.

        Raises BusGone.
        """
        engine.version(self._binary)  # asked now, so that no call has to wait for it
        self._bus = await Bus.connect(self._tree.serve)
        for tunnel in await restore.adopt_tunnels(self.manager, inherited):
            if tunnel.spec.lifetime is Lifetime.CLIENT:
                close_with_client(tunnel, self._bus)
        self._tree.add(
            names.ROOT_PATH, ManagerInterface(self.manager, self._binary, self._bus, self._tree)
        )
        self._tree.attach(self._bus)
        await self._bus.own_name(names.BUS_NAME)
        return self._bus

    # ------------------------------------------------------------ manager.ManagerObserver

    def tunnel_added(self, tunnel: Tunnel) -> TunnelInterface:
        added = TunnelInterface(tunnel, self.manager, self._bus, self._tree)
        self._tree.add(added.path, added)
        return added

    def tunnel_removed(self, tunnel: Tunnel) -> None:
        self._tree.remove(_path(tunnel))


class ManagerInterface(Interface):
    """org.wg4netns1.Manager"""

    def __init__(self, manager: Manager, binary: Path, bus: Bus, tree: Tree) -> None:
        super().__init__(names.MANAGER)
        self._tree = tree
        self._manager = manager
        self._binary = binary
        self._bus = bus

    async def create_tunnel(
        self, call: Call, netns_fd: int, config_fd: int, raw_options: dict[str, Variant]
    ) -> str:
        return await self._create(
            call,
            options.parse(raw_options),
            lambda: Netns.from_fd(call.take_fd(netns_fd)),
            lambda: reader.read_fd(call.take_fd(config_fd)),
        )

    async def create_tunnel_from_paths(
        self, call: Call, netns_path: str, config_path: str, raw_options: dict[str, Variant]
    ) -> str:
        return await self._create(
            call,
            options.parse(raw_options),
            lambda: Netns.from_path(netns_path),
            lambda: reader.read_path(config_path),
        )

    async def _create(
        self,
        call: Call,
        asked: options.Options,
        open_netns: Callable[[], Awaitable[Netns]],
        read_config: Callable[[], Awaitable[bytes]],
    ) -> str:
        """A caller that leaves before it has its reply can't know of the tunnel: it is undone."""
        seconds = asked.timeout_usec / 1e6
        tunnel = None
        with self._bus.cancelled_without(call):
            try:
                async with asyncio.timeout(seconds):
                    tunnel = await self._start(call, asked, open_netns, read_config)
                    await self._manager.wait_ready(tunnel)
            except TimeoutError:
                missing = "no handshake" if asked.handshake else "the tunnel was not up"
                why = f": {tunnel.error.text}" if tunnel and tunnel.error else ""
                raise errors.Timeout(f"{missing} within {seconds:g} s{why}") from None
        return _path(tunnel)

    async def _start(
        self,
        call: Call,
        asked: options.Options,
        open_netns: Callable[[], Awaitable[Netns]],
        read_config: Callable[[], Awaitable[bytes]],
    ) -> Tunnel:
        with contextlib.ExitStack() as stack:
            namespace = await open_netns()
            stack.callback(namespace.close)
            parsed = await reader.parse(await read_config(), asked.ignore)
            if asked.handshake and not parsed.peers:
                raise errors.InvalidConfig("no [Peer] section, but wait is 'handshake'")
            lease = None
            if asked.lease is not None:
                lease = Lease(call.take_fd(asked.lease))
                stack.callback(lease.close)
            ends_with_client = asked.lifetime is Lifetime.CLIENT
            spec = Spec(
                name=asked.name or f"ns{namespace.id.inode}",
                interface=asked.interface,
                lifetime=asked.lifetime,
                config=parsed,
                mtu_option=asked.mtu,
                handshake=asked.handshake,
                client=f"{self._bus.id} {call.sender}" if ends_with_client else "",
            )
            tunnel = self._manager.create(spec, namespace, lease)
            stack.pop_all()
        if ends_with_client:
            close_with_client(tunnel, self._bus)
        return tunnel

    async def get_tunnel(self, _call: Call, name: str) -> str:
        return _path(self._manager.get(name))

    async def get_tunnel_by_netns(self, call: Call, netns_fd: int) -> str:
        namespace = await Netns.from_fd(call.take_fd(netns_fd))
        try:
            return _path(self._manager.get_by_netns(namespace.id))
        finally:
            namespace.close()

    async def list_tunnels(self, _call: Call) -> list[list[str]]:
        return [[t.spec.name, _path(t), t.state] for t in self._manager.tunnels]

    async def describe(self, _call: Call) -> str:
        interfaces = [
            TunnelInterface(t, self._manager, self._bus, self._tree) for t in self._manager.tunnels
        ]
        await asyncio.gather(*(interface.refresh() for interface in interfaces))
        described: dict[str, Any] = {name: _plain(v) for name, v in self.get_all().items()}
        described["tunnels"] = [
            {name: _plain(value) for name, value in interface.get_all().items()}
            for interface in interfaces
        ]
        return json.dumps(described)

    def read_version(self) -> str:
        return __version__

    def read_engine_version(self) -> str:
        return engine.version(self._binary)

    def read_engine_lacks(self) -> list[str]:
        return self._manager.engine_lacks

    def read_features(self) -> list[str]:
        return ["survival"] if notify.is_supervised() else []

    def read_max_tunnels(self) -> int:
        return self._manager.max_tunnels


class TunnelInterface(Interface):
    """org.wg4netns1.Tunnel; also its tunnel's observer."""

    volatile = frozenset({"Peers"})

    def __init__(self, tunnel: Tunnel, manager: Manager, bus: Bus, tree: Tree) -> None:
        super().__init__(names.TUNNEL)
        self.path = _path(tunnel)
        self._tree = tree
        self._tunnel = tunnel
        self._manager = manager
        self._bus = bus

    async def close(self, _call: Call) -> None:
        await self._manager.close(self._tunnel, "closed by request")

    async def restart(self, _call: Call) -> None:
        await self._tunnel.restart()

    async def reconfigure(
        self, call: Call, config_fd: int, raw_options: dict[str, Variant]
    ) -> None:
        asked = options.parse_reconfigure(raw_options)
        await self._reconfigure(asked, await reader.read_fd(call.take_fd(config_fd)))

    async def reconfigure_from_path(
        self, _call: Call, config_path: str, raw_options: dict[str, Variant]
    ) -> None:
        asked = options.parse_reconfigure(raw_options)
        await self._reconfigure(asked, await reader.read_path(config_path))

    async def _reconfigure(self, asked: options.Options, text: bytes) -> None:
        parsed = await reader.parse(text, asked.ignore)
        await self._tunnel.reconfigure(parsed, asked.mtu)

    async def wait_for_state(self, call: Call, states: list[str], timeout_usec: int) -> str:
        unknown = [state for state in states if state not in set(State)]
        if unknown or not states:
            known = ", ".join(State)
            raise errors.InvalidArgs(f"states: expected some of {known}")
        seconds = None if timeout_usec == NO_LIMIT else timeout_usec / 1e6
        try:
            async with asyncio.timeout(seconds):
                with self._bus.cancelled_without(call):
                    return await self._tunnel.lifecycle.wait_for({State(state) for state in states})
        except TimeoutError:
            name, state = self._tunnel.spec.name, self._tunnel.state
            raise errors.Timeout(f"'{name}' is {state} after {seconds:g} s") from None

    async def get_peers(self, _call: Call) -> dict[str, dict[str, Variant]]:
        await self._tunnel.status()
        return self.read_peers()

    async def open_netns(self, _call: Call) -> Reply:
        return Reply("h", (0,), [self._tunnel.open_netns()])

    async def refresh(self) -> None:
        """Without an engine, there are no counters."""
        with contextlib.suppress(errors.Error):
            await self._tunnel.status()

    # ------------------------------------------------------------ observer.TunnelObserver

    def state_changed(self, new: State, old: State, reason: str) -> None:
        self._tree.signal(self.path, "StateChanged", new, old, reason)

    def properties_changed(self, names: Collection[str]) -> None:
        properties = [prop for name in names for prop in _PROPERTIES_OF[name]]
        self._tree.changed(self.path, properties)

    def handshake(self, public_key: str, report: Report[Handshake]) -> None:
        details = {
            "role": Variant("s", report.new.role),
            "endpoint": Variant("s", self._tunnel.peers[public_key].endpoint),
            "missed": Variant("u", report.missed),
        }
        at = report.new.realtime_usec
        self._tree.signal(self.path, "Handshake", public_key, at, details)

    def peer_state_changed(self, public_key: str, report: Report[PeerState]) -> None:
        peer = self._tunnel.peers[public_key]
        details = {
            "endpoint": Variant("s", peer.endpoint),
            "last_handshake_usec": Variant("t", peer.last_handshake_usec),
            "missed": Variant("u", report.missed),
        }
        body = (public_key, report.new, report.old, details)
        self._tree.signal(self.path, "PeerStateChanged", *body)

    def peer_endpoint_changed(self, public_key: str, report: Report[str]) -> None:
        body = (public_key, report.new, report.old, {"missed": Variant("u", report.missed)})
        self._tree.signal(self.path, "PeerEndpointChanged", *body)

    def peers_changed(self) -> None:
        self._tree.changed(self.path, ["Peers"])

    # ------------------------------------------------------------ properties

    def read_name(self) -> str:
        return self._tunnel.spec.name

    def read_netns_id(self) -> list[int]:
        return list(self._tunnel.netns_id)

    def read_interface(self) -> str:
        return self._tunnel.link.name

    def read_link_state(self) -> str:
        return self._tunnel.link.state

    def read_lifetime(self) -> str:
        return self._tunnel.spec.lifetime

    def read_created_u_sec(self) -> int:
        return self._tunnel.created_usec

    def read_resolv_conf(self) -> str:
        return str(self._tunnel.resolv_conf.path)

    def read_state(self) -> str:
        return self._tunnel.state

    def read_public_key(self) -> str:
        return self._tunnel.engine.public_key

    def read_listen_port(self) -> int:
        return self._tunnel.engine.listen_port

    def read_mtu(self) -> int:
        return self._tunnel.spec.mtu

    def read_addresses(self) -> list[str]:
        return [str(address) for address in self._tunnel.spec.addresses]

    def read_dns(self) -> list[str]:
        return [str(entry) for entry in self._tunnel.spec.dns]

    def read_engine_pid(self) -> int:
        return self._tunnel.engine.pid

    def read_restart_count(self) -> int:
        return self._tunnel.restart_count

    def read_last_error(self) -> list[str]:
        error = self._tunnel.error
        return [error.dbus_name, str(error)] if error else ["", ""]

    def read_peers(self) -> dict[str, dict[str, Variant]]:
        return {key: _peer(self._tunnel.peers[key]) for key in self._tunnel.peers}


def close_with_client(tunnel: Tunnel, bus: Bus) -> None:
    """A client of another bus, one that has been restarted since, has left."""

    def left() -> None:
        tunnel.close("its client left the bus")

    bus_id, client = tunnel.spec.client.split()
    if bus_id != bus.id:
        left()
        return
    bus.watch(client, left)
    tunnel.call_at_end(lambda: bus.unwatch(client, left))


def _path(tunnel: Tunnel) -> str:
    return names.tunnel_path(tunnel.spec.name)


def _peer(peer: PeerView) -> dict[str, Variant]:
    configured, status = peer.configured, peer.status
    networks = status.allowed_ips if status else [str(n) for n in configured.allowed_ips]
    return {
        "endpoint": Variant("s", peer.endpoint),
        "endpoint_host": Variant("s", str(configured.endpoint or "")),
        "endpoint_error": Variant("s", peer.lookup_error),
        "allowed_ips": Variant("as", networks),
        "state": Variant("s", peer.state),
        "last_handshake_usec": Variant("t", peer.last_handshake_usec),
        "rx_bytes": Variant("t", status.rx_bytes if status else 0),
        "tx_bytes": Variant("t", status.tx_bytes if status else 0),
        "persistent_keepalive": Variant("q", configured.persistent_keepalive),
    }


def _plain(value: Any) -> Any:
    """A D-Bus value as JSON has it: without its variants."""
    match value:
        case Variant():
            return _plain(value.value)
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case _:
            return value
