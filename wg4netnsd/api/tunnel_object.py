"""The object of one tunnel, with the interface org.wg4netns1.Tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Collection, Mapping
from typing import ClassVar, Final

from wg4netnsd import errors, names
from wg4netnsd.agent.sockets import KINDS as SOCKET_KINDS
from wg4netnsd.api import forward_options, options
from wg4netnsd.api import transit as transits
from wg4netnsd.api.forward_object import ForwardObject
from wg4netnsd.api.options import Options
from wg4netnsd.bus.call import Call, Reply
from wg4netnsd.bus.codec import Variant
from wg4netnsd.bus.objects import ExportedObject, ObjectTree, method
from wg4netnsd.bus.server import Server
from wg4netnsd.config import reader
from wg4netnsd.config.model import Config
from wg4netnsd.dns.resolver import Resolver
from wg4netnsd.files.client import FileProcesses
from wg4netnsd.peers.peer import Handshake, PeerView
from wg4netnsd.peers.rate_limit import Report
from wg4netnsd.peers.state import PeerState
from wg4netnsd.tunnel.forward import Forward
from wg4netnsd.tunnel.lifecycle import State
from wg4netnsd.tunnel.manager import Manager
from wg4netnsd.tunnel.tunnel import Tunnel

NO_LIMIT: Final = (1 << 64) - 1

CHANGES: Final = {
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
    "transit": ["Transit"],
    "link_state": ["LinkState"],
}
"""The attributes of a tunnel that can change, and the properties that each is seen in."""


class TunnelObject(ExportedObject, interface=names.TUNNEL):
    """Also observes its tunnel, and emits a signal for each change."""

    _tunnel: Tunnel

    readers: ClassVar[Mapping[str, Callable[[TunnelObject], object]]] = {
        "Name": lambda self: self._tunnel.spec.name,
        "NetnsId": lambda self: list(self._tunnel.netns_id),
        "Interface": lambda self: self._tunnel.link.name,
        "LinkState": lambda self: self._tunnel.link.state,
        "Lifetime": lambda self: self._tunnel.spec.lifetime,
        "Transit": lambda self: [self._tunnel.spec.transit.kind, self._tunnel.spec.transit.detail],
        "RootTrusted": lambda self: self._tunnel.spec.root_trusted,
        "CreatedUSec": lambda self: self._tunnel.created_usec,
        "ResolvConf": lambda self: str(self._tunnel.resolv_conf.path),
        "State": lambda self: self._tunnel.state,
        "PublicKey": lambda self: self._tunnel.engine.public_key,
        "ListenPort": lambda self: self._tunnel.engine.listen_port,
        "Mtu": lambda self: self._tunnel.spec.mtu,
        "Addresses": lambda self: [str(address) for address in self._tunnel.spec.addresses],
        "Dns": lambda self: [str(entry) for entry in self._tunnel.spec.dns],
        "EnginePID": lambda self: self._tunnel.engine.pid,
        "RestartCount": lambda self: self._tunnel.restart_count,
        "LastError": lambda self: _error(self._tunnel.error),
        "Peers": lambda self: self._peers(),
    }
    refreshed = ("Peers",)

    def __init__(
        self,
        tunnel: Tunnel,
        manager: Manager,
        files: FileProcesses,
        tree: ObjectTree,
        server: Server,
    ) -> None:
        super().__init__(path_of(tunnel), server)
        self.forwards: dict[Forward, ForwardObject] = {}
        self._tunnel = tunnel
        self._manager = manager
        self._tree = tree
        self._files = files

    @method("Close")
    async def close(self, _call: Call) -> None:
        await self._manager.close(self._tunnel, "closed by request")

    @method("Restart")
    async def restart(self, _call: Call) -> None:
        await self._tunnel.restart()

    @method("Reconfigure")
    async def reconfigure(
        self, call: Call, config_fd: int, raw_options: dict[str, Variant]
    ) -> None:
        asked = options.parse_reconfigure(raw_options)
        config = await reader.load_fd(call.pop_fd(config_fd), asked.ignore)
        await self._reconfigure(call, asked, config)

    @method("ReconfigureFromPath")
    async def reconfigure_from_path(
        self, call: Call, config_path: str, raw_options: dict[str, Variant]
    ) -> None:
        asked = options.parse_reconfigure(raw_options)
        config = await reader.load_path(self._files, config_path, asked.ignore)
        await self._reconfigure(call, asked, config)

    async def _reconfigure(self, call: Call, asked: Options, config: Config) -> None:
        with contextlib.ExitStack() as stack:
            change = None
            if asked.transits:
                change = await transits.make(asked, call, config, self._manager)
                stack.callback(change.transit.close)
            await self._manager.reconfigure(self._tunnel, config, asked.mtu, change)
            stack.pop_all()

    @method("WaitForState")
    async def wait_for_state(self, call: Call, states: list[str], timeout_usec: int) -> str:
        unknown = [state for state in states if state not in set(State)]
        if unknown or not states:
            known = ", ".join(State)
            raise errors.InvalidArgs(f"states: expected some of {known}")
        seconds = None if timeout_usec == NO_LIMIT else timeout_usec / 1e6
        try:
            async with asyncio.timeout(seconds):
                with self.server.cancelled_without_client(call):
                    return await self._tunnel.lifecycle.wait_for({State(state) for state in states})
        except TimeoutError:
            name, state = self._tunnel.spec.name, self._tunnel.state
            raise errors.Timeout(f"'{name}' is {state} after {seconds:g} s") from None

    @method("GetPeers")
    async def get_peers(self, _call: Call) -> dict[str, dict[str, Variant]]:
        await self._tunnel.status()
        return self._peers()

    @method("OpenNetns")
    async def open_netns(self, _call: Call) -> Reply:
        return Reply("h", (0,), [self._tunnel.link.open_netns()])

    @method("OpenSocket")
    async def open_socket(self, _call: Call, family: int, kind: int, protocol: int) -> Reply:
        _refuse_other_kinds(family, kind, protocol)
        opening = self._tunnel.sockets.open(family, kind, protocol)
        opened = await self._tunnel.lifecycle.run_while_open(opening)
        return Reply("h", (0,), [opened.detach()])

    @method("Resolve")
    async def resolve(self, _call: Call, name: str, family: int) -> list[str]:
        if family not in (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6):
            expected = "expected AF_UNSPEC (0), AF_INET (2) or AF_INET6 (10)"
            raise errors.InvalidArgs(f"family: {family}: {expected}")
        tunnel, spec = self._tunnel, self._tunnel.spec
        resolver = Resolver(spec.name_servers, spec.search_domains, tunnel.sockets.open)
        return await tunnel.lifecycle.run_while_open(resolver.resolve(name, family))

    @method("AddForward")
    async def add_forward(self, call: Call, raw_options: dict[str, Variant]) -> str:
        asked = forward_options.parse(raw_options)
        spec = asked.spec
        if asked.credentials is not None:
            content = await reader.read_fd(call.pop_fd(asked.credentials), "credentials")
            credentials = forward_options.parse_credentials(content)
            spec = spec.model_copy(update={"credentials": credentials})
        listeners = call.pop_fds(asked.listeners)
        added = await self._tunnel.forwards.add(spec, listeners)
        return self.forwards[added].path

    async def refresh(self) -> None:
        """Have the engine report its counters; without an engine there are none."""
        with contextlib.suppress(errors.Error):
            await self._tunnel.status()

    def _peers(self) -> dict[str, dict[str, Variant]]:
        return {key: _peer(self._tunnel.peers[key]) for key in self._tunnel.peers}

    # ------------------------------------------------------------ observer.TunnelObserver

    def state_changed(self, new: State, old: State, reason: str) -> None:
        self.emit_signal("StateChanged", new, old, reason)

    def properties_changed(self, attributes: Collection[str]) -> None:
        self.emit_changed(prop for name in attributes for prop in CHANGES[name])

    def forward_added(self, forward: Forward) -> None:
        added = ForwardObject(forward, self._tunnel, self.server)
        self.forwards[forward] = added
        self._tree.add(added)

    def forward_removed(self, forward: Forward) -> None:
        self._tree.remove(self.forwards.pop(forward).path)

    def forward_moved(self, forward: Forward) -> None:
        self.forwards[forward].listening_changed()

    def handshake(self, public_key: str, report: Report[Handshake]) -> None:
        details = {
            "role": Variant("s", report.new.role),
            "endpoint": Variant("s", self._tunnel.peers[public_key].endpoint),
            "missed": Variant("u", report.missed),
        }
        self.emit_signal("Handshake", public_key, report.new.realtime_usec, details)

    def peer_state_changed(self, public_key: str, report: Report[PeerState]) -> None:
        peer = self._tunnel.peers[public_key]
        details = {
            "endpoint": Variant("s", peer.endpoint),
            "last_handshake_usec": Variant("t", peer.last_handshake_usec),
            "missed": Variant("u", report.missed),
        }
        self.emit_signal("PeerStateChanged", public_key, report.new, report.old, details)

    def peer_endpoint_changed(self, public_key: str, report: Report[str]) -> None:
        details = {"missed": Variant("u", report.missed)}
        self.emit_signal("PeerEndpointChanged", public_key, report.new, report.old, details)

    def peers_changed(self) -> None:
        self.emit_changed(["Peers"])


def path_of(tunnel: Tunnel) -> str:
    """Return the path of a tunnel's object."""
    return names.tunnel_path(tunnel.spec.name)


def _refuse_other_kinds(family: int, kind: int, protocol: int) -> None:
    """Raise InvalidArgs unless OpenSocket opens such sockets."""
    if family not in (socket.AF_INET, socket.AF_INET6):
        raise errors.InvalidArgs(f"family: {family}: expected AF_INET (2) or AF_INET6 (10)")
    if kind not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        text = f"type: {kind}: expected SOCK_STREAM (1) or SOCK_DGRAM (2), without flags"
        raise errors.InvalidArgs(text)
    known = [0, *sorted(int(p) for f, k, p in SOCKET_KINDS if (f, k) == (family, kind))]
    if protocol not in known:
        expected = " or ".join(map(str, known))
        raise errors.InvalidArgs(f"protocol: {protocol}: expected {expected}")


def close_with_client(tunnel: Tunnel, server: Server) -> None:
    """Close a tunnel of lifetime `client` when its client leaves the bus.

    If the bus has been restarted since, the client is gone too.
    """

    def close() -> None:
        tunnel.close("its client left the bus")

    bus_id, client = tunnel.spec.client.split()
    if bus_id != server.bus_id:
        close()
        return
    server.on_client_gone(client, close)
    tunnel.at_end.callback(server.forget_client, client, close)


def _error(error: errors.Error | None) -> list[str]:
    return [error.dbus_name, str(error)] if error else ["", ""]


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
