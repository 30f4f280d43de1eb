"""The object /org/wg4netns1, with the interface org.wg4netns1.Manager."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from wg4netnsd import __version__, errors, names
from wg4netnsd.api import options
from wg4netnsd.api import transit as transits
from wg4netnsd.api.options import Options
from wg4netnsd.api.tunnel_object import TunnelObject, close_with_client, path_of
from wg4netnsd.bus.call import Call
from wg4netnsd.bus.codec import Variant
from wg4netnsd.bus.objects import ExportedObject, method
from wg4netnsd.bus.server import Server
from wg4netnsd.config import reader
from wg4netnsd.config.model import Config
from wg4netnsd.engine import engine
from wg4netnsd.files.client import FileProcesses
from wg4netnsd.systemd import notify
from wg4netnsd.tunnel.lifetime import Lease, Lifetime
from wg4netnsd.tunnel.manager import Manager
from wg4netnsd.tunnel.netns import Netns
from wg4netnsd.tunnel.spec import Spec
from wg4netnsd.tunnel.tunnel import Tunnel

REACH: Final = ["sockets", "forwards"]
"""The features of every daemon that has OpenSocket, Resolve and AddForward."""

OpenNetns = Callable[[], Awaitable[Netns]]
LoadConfig = Callable[[Collection[str]], Awaitable[Config]]
"""Its argument: the keys to ignore."""


class ManagerObject(ExportedObject, interface=names.MANAGER):
    _manager: Manager
    _binary: Path

    readers: ClassVar[Mapping[str, Callable[[ManagerObject], object]]] = {
        "Version": lambda self: __version__,
        "EngineVersion": lambda self: engine.version(self._binary),
        "EngineLacks": lambda self: self._manager.engine_lacks,
        "Features": lambda self: [*["survival"] * notify.is_supervised(), "transit", *REACH],
        "MaxTunnels": lambda self: self._manager.max_tunnels,
    }

    def __init__(
        self,
        manager: Manager,
        tunnel_objects: Mapping[Tunnel, TunnelObject],
        files: FileProcesses,
        binary: Path,
        server: Server,
    ) -> None:
        """`binary`: the wireguard-go that is run."""
        super().__init__(names.ROOT_PATH, server)
        self._manager = manager
        self._tunnel_objects = tunnel_objects
        self._files = files
        self._binary = binary

    @method("CreateTunnel")
    async def create_tunnel(
        self, call: Call, netns_fd: int, config_fd: int, raw_options: dict[str, Variant]
    ) -> str:
        return await self._create(
            call,
            options.parse(raw_options),
            lambda: Netns.from_fd(call.pop_fd(netns_fd)),
            lambda ignore: reader.load_fd(call.pop_fd(config_fd), ignore),
        )

    @method("CreateTunnelFromPaths")
    async def create_tunnel_from_paths(
        self, call: Call, netns_path: str, config_path: str, raw_options: dict[str, Variant]
    ) -> str:
        return await self._create(
            call,
            options.parse(raw_options),
            lambda: Netns.from_path(self._files, netns_path),
            lambda ignore: reader.load_path(self._files, config_path, ignore),
        )

    async def _create(
        self, call: Call, asked: Options, open_netns: OpenNetns, load_config: LoadConfig
    ) -> str:
        """Create a tunnel and return its path when it is ready.

        A caller that leaves before it has its reply can't know of the tunnel: it is undone.
        """
        seconds = asked.timeout_usec / 1e6
        tunnel = None
        with self.server.cancelled_without_client(call):
            try:
                async with asyncio.timeout(seconds):
                    tunnel = await self._start(call, asked, open_netns, load_config)
                    await self._manager.wait_ready(tunnel)
            except TimeoutError:
                missing = "no handshake" if asked.handshake else "the tunnel was not up"
                why = f": {tunnel.error.text}" if tunnel and tunnel.error else ""
                raise errors.Timeout(f"{missing} within {seconds:g} s{why}") from None
        return path_of(tunnel)

    async def _start(
        self, call: Call, asked: Options, open_netns: OpenNetns, load_config: LoadConfig
    ) -> Tunnel:
        with contextlib.ExitStack() as stack:
            namespace = await open_netns()
            stack.callback(namespace.close)
            config = await load_config(asked.ignore)
            if asked.handshake and not config.peers:
                raise errors.InvalidConfig("no [Peer] section, but wait is 'handshake'")
            lease = None
            if asked.lease is not None:
                lease = Lease(call.pop_fd(asked.lease))
                stack.callback(lease.close)
            made = await transits.make(asked, call, config, self._manager)
            stack.callback(made.transit.close)
            ends_with_client = asked.lifetime is Lifetime.CLIENT
            spec = Spec(
                name=asked.name or f"ns{namespace.id.inode}",
                interface=asked.interface,
                lifetime=asked.lifetime,
                config=config,
                mtu_option=asked.mtu,
                handshake=asked.handshake,
                client=f"{self.server.bus_id} {call.sender}" if ends_with_client else "",
                root_trusted=asked.trust_root,
                transit=made.spec,
            )
            tunnel = self._manager.create(spec, namespace, made.transit, lease)
            stack.pop_all()
        if ends_with_client:
            close_with_client(tunnel, self.server)
        return tunnel

    @method("GetTunnel")
    async def get_tunnel(self, _call: Call, name: str) -> str:
        return path_of(self._manager.get(name))

    @method("GetTunnelByNetns")
    async def get_tunnel_by_netns(self, call: Call, netns_fd: int) -> str:
        namespace = await Netns.from_fd(call.pop_fd(netns_fd))
        try:
            return path_of(self._manager.get_by_netns(namespace.id))
        finally:
            namespace.close()

    @method("ListTunnels")
    async def list_tunnels(self, _call: Call) -> list[list[str]]:
        return [[t.spec.name, path_of(t), t.state] for t in self._manager.tunnels]

    @method("Describe")
    async def describe(self, _call: Call) -> str:
        tunnels = list(self._tunnel_objects.values())
        forwards = [forward for each in tunnels for forward in each.forwards.values()]
        await asyncio.gather(*(each.refresh() for each in (*tunnels, *forwards)))
        described = _plain(self.get_all())
        described["tunnels"] = [
            _plain(each.get_all())
            | {"Forwards": [_plain(forward.get_all()) for forward in each.forwards.values()]}
            for each in tunnels
        ]
        return json.dumps(described)


def _plain(value: Any) -> Any:
    """Return a D-Bus value as JSON has it: without its variants."""
    match value:
        case Variant():
            return _plain(value.value)
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case _:
            return value
