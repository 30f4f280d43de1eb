"""The object of one forward, with the interface org.wg4netns1.Forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from wg4netnsd import names
from wg4netnsd.bus.call import Call
from wg4netnsd.bus.objects import ExportedObject, method
from wg4netnsd.bus.server import Server
from wg4netnsd.gateway.protocol import Counters
from wg4netnsd.tunnel.forward import Forward
from wg4netnsd.tunnel.tunnel import Tunnel


class ForwardObject(ExportedObject, interface=names.FORWARD):
    _forward: Forward
    _tunnel: Tunnel
    _counters: Counters

    readers: ClassVar[Mapping[str, Callable[[ForwardObject], object]]] = {
        "Tunnel": lambda self: names.tunnel_path(self._tunnel.spec.name),
        "Id": lambda self: self._forward.spec.id,
        "Kind": lambda self: self._forward.spec.kind,
        "Protocol": lambda self: self._forward.spec.protocol,
        "Listening": lambda self: self._forward.listening,
        "Target": lambda self: self._forward.spec.target,
        "Access": lambda self: self._forward.spec.access,
        "Users": lambda self: sorted(self._forward.spec.credentials),
        "ProxyProtocol": lambda self: self._forward.spec.proxy_protocol,
        "IdleUSec": lambda self: round(self._forward.spec.idle_seconds * 1e6),
        "ConnectUSec": lambda self: round(self._forward.spec.connect_seconds * 1e6),
        "Counters": lambda self: self._counters._asdict(),
    }
    refreshed = ("Counters",)

    def __init__(self, forward: Forward, tunnel: Tunnel, server: Server) -> None:
        super().__init__(names.forward_path(tunnel.spec.name, forward.spec.id), server)
        self._forward = forward
        self._tunnel = tunnel
        self._counters = Counters()

    @method("Remove")
    async def remove(self, _call: Call) -> None:
        await self._tunnel.forwards.remove(self._forward)

    @method("GetCounters")
    async def get_counters(self, _call: Call) -> dict[str, int]:
        await self.refresh()
        return self._counters._asdict()

    async def refresh(self) -> None:
        """Have the gateway report its counters; without a gateway they are those of before."""
        found = await self._tunnel.forwards.counters()
        self._counters = found.get(self._forward.spec.id, self._counters)

    def listening_changed(self) -> None:
        self.emit_changed(["Listening"])
