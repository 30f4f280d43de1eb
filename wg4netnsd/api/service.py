"""The daemon as the bus sees it: ties the connection, the tree of objects and the tunnels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wg4netnsd import names
from wg4netnsd.agent.client import Agent
from wg4netnsd.api.manager_object import ManagerObject
from wg4netnsd.api.tunnel_object import TunnelObject, close_with_client
from wg4netnsd.bus.objects import ObjectTree
from wg4netnsd.bus.server import Server
from wg4netnsd.engine import engine
from wg4netnsd.files.client import FileProcesses
from wg4netnsd.systemd.fdstore import InheritedFds
from wg4netnsd.tunnel import restore
from wg4netnsd.tunnel.lifetime import Lifetime
from wg4netnsd.tunnel.manager import Manager
from wg4netnsd.tunnel.tunnel import Tunnel


class Service:
    """Exports one Manager object, and an object for each tunnel."""

    def __init__(self, agent: Agent, files: FileProcesses, binary: Path, directory: Path) -> None:
        """`binary`: the wireguard-go to run."""
        self.manager = Manager(agent, binary, directory, self)
        self._files = files
        self._binary = binary
        self._tree = ObjectTree(names.ROOT_PATH)
        self._tunnel_objects: dict[Tunnel, TunnelObject] = {}

    async def start(self, inherited: Mapping[str, InheritedFds]) -> Server:
        """Connect, take over what a daemon before us has left, and only then own the name.

        Raises BusGone.
        """
        engine.version(self._binary)  # asked now, so that no call has to wait for it
        self._server = await Server.connect(self._tree.call, self._files)
        for tunnel in await restore.adopt_tunnels(self.manager, inherited):
            if tunnel.spec.lifetime is Lifetime.CLIENT:
                close_with_client(tunnel, self._server)
        self._tree.add(
            ManagerObject(
                self.manager, self._tunnel_objects, self._files, self._binary, self._server
            )
        )
        self._tree.attach(self._server)
        await self._server.own_name(names.BUS_NAME)
        return self._server

    # ------------------------------------------------------------ manager.ManagerObserver

    def tunnel_added(self, tunnel: Tunnel) -> TunnelObject:
        added = TunnelObject(tunnel, self.manager, self._files, self._tree, self._server)
        self._tunnel_objects[tunnel] = added
        self._tree.add(added)
        return added

    def tunnel_removed(self, tunnel: Tunnel) -> None:
        self._tree.remove(self._tunnel_objects.pop(tunnel).path)
