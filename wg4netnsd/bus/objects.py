"""The tree of objects that we export: dispatch, and the interfaces that D-Bus itself defines.

An Interface binds a contract, read from its XML, to Python: method `CreateTunnel` is the coroutine
`create_tunnel(call, …)`, property `MaxTunnels` is `read_max_tunnels()`.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Final

from wg4netnsd import errors
from wg4netnsd.bus import contract
from wg4netnsd.bus.server import Bus, Call, Reply, Variant

PEER: Final = "org.freedesktop.DBus.Peer"
INTROSPECTABLE: Final = "org.freedesktop.DBus.Introspectable"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER: Final = "org.freedesktop.DBus.ObjectManager"

DOCTYPE: Final = """<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
"""

Properties = dict[str, Variant]


@functools.cache
def snake_case(name: str) -> str:
    """`CreatedUSec` → `created_u_sec`, `EnginePID` → `engine_pid`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


class Interface:
    """One interface of one object. Subclasses have a method for each member of the contract."""

    volatile: ClassVar[frozenset[str]] = frozenset()
    """The properties that refresh() is for."""

    def __init__(self, name: str) -> None:
        self.contract = contract.load(name)

    async def call(self, call: Call) -> Reply:
        method = self.contract.methods[call.member]
        if call.signature != method.in_signature:
            raise errors.InvalidArgs(
                f"{call.member} takes ({method.in_signature}), not ({call.signature})"
            )
        result = await getattr(self, snake_case(call.member))(call, *call.body)
        if isinstance(result, Reply):
            return result
        return Reply(method.out_signature, () if result is None else (result,))

    async def refresh(self) -> None:
        """Fetch what the volatile properties are read from; never fails."""

    def get(self, name: str) -> Variant:
        """A property's value now. Raises UnknownProperty."""
        if name not in self.contract.properties:
            raise errors.UnknownProperty(f"{self.contract.name} has no property '{name}'")
        value = getattr(self, f"read_{snake_case(name)}")()
        return Variant(self.contract.properties[name].signature, value)

    def get_all(self) -> Properties:
        return {name: self.get(name) for name in self.contract.properties}


class Tree:
    """The exported objects, by path; its root has the ObjectManager."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._objects: dict[str, Interface] = {}
        self._announced: set[str] = set()
        self._bus: Bus | None = None

    def attach(self, bus: Bus) -> None:
        """From here on, tell the bus what changes."""
        self._bus = bus

    def add(self, path: str, interface: Interface) -> None:
        """Export an object, and announce it as soon as what it stands for is under way.

        Of what changes before, nobody needs to be told: the announcement has all values.
        """
        self._objects[path] = interface
        if path != self._root:
            asyncio.get_running_loop().call_soon(self._announce, path, interface)

    def _announce(self, path: str, interface: Interface) -> None:
        """From the root: GDBus clients look nowhere else."""
        if self._objects.get(path) is not interface:
            return  # it has gone already
        self._announced.add(path)
        everything = {interface.contract.name: interface.get_all()}
        self.emit(self._root, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", path, everything)

    def remove(self, path: str) -> None:
        name = self._objects.pop(path).contract.name
        if path in self._announced:
            self._announced.remove(path)
            self.emit(self._root, OBJECT_MANAGER, "InterfacesRemoved", "oas", path, [name])

    def signal(self, path: str, member: str, *body: Any) -> None:
        """Emit a signal of the object's own interface."""
        if path in self._announced:
            own = self._objects[path].contract
            self.emit(path, own.name, member, own.signals[member], *body)

    def changed(self, path: str, properties: Iterable[str]) -> None:
        """PropertiesChanged: with the value, or as invalidated, as the contract says."""
        if path not in self._announced:
            return
        interface = self._objects[path]
        values: Properties = {}
        invalidated: list[str] = []
        for name in properties:
            match interface.contract.properties[name].emits:
                case "true":
                    values[name] = interface.get(name)
                case "invalidates":
                    invalidated.append(name)
        name = interface.contract.name
        self.emit(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", name, values, invalidated)

    def emit(self, path: str, interface: str, member: str, signature: str, *body: Any) -> None:
        if self._bus:
            self._bus.emit(path, interface, member, signature, *body)

    async def serve(self, call: Call) -> Reply:
        """The handler of a Bus."""
        children = self._children(call.path)
        exported = self._objects.get(call.path)
        if exported is None and not children:
            raise errors.UnknownObject(f"no object {call.path}")
        match call.interface, call.member:
            case ((None | "org.freedesktop.DBus.Peer"), "Ping" | "GetMachineId"):
                return self._peer(call)
            case ((None | "org.freedesktop.DBus.Introspectable"), "Introspect"):
                _expect(call, "")
                return Reply("s", (self._introspect(call.path, exported, children),))
            case ((None | "org.freedesktop.DBus.ObjectManager"), "GetManagedObjects"):
                if call.path == self._root:
                    _expect(call, "")
                    return Reply("a{oa{sa{sv}}}", (await self._managed(),))
            case ((None | "org.freedesktop.DBus.Properties"), "Get" | "GetAll" | "Set") if exported:
                return await _properties(call, exported)
        if exported and call.interface in (None, exported.contract.name):
            if call.member in exported.contract.methods:
                return await exported.call(call)
        elif call.interface not in (PEER, INTROSPECTABLE, PROPERTIES, OBJECT_MANAGER):
            raise errors.UnknownInterface(f"{call.path} has no interface {call.interface}")
        interface = f"{call.interface}." if call.interface else ""
        raise errors.UnknownMethod(f"{call.path} has no method {interface}{call.member}")

    def _children(self, path: str) -> list[str]:
        """The next parts of the paths below `path`; busctl finds its way by them."""
        prefix = path.rstrip("/") + "/"
        below = (p.removeprefix(prefix) for p in self._objects if p.startswith(prefix))
        return sorted({rest.partition("/")[0] for rest in below})

    def _introspect(self, path: str, exported: Interface | None, children: Iterable[str]) -> str:
        interfaces = contract.STANDARD_INTERFACES
        if path == self._root:
            interfaces += contract.OBJECT_MANAGER
        if exported:
            interfaces += f"  {exported.contract.xml}\n"
        nodes = "".join(f'  <node name="{child}"/>\n' for child in children)
        return f"{DOCTYPE}<node>{interfaces}{nodes}</node>\n"

    async def _managed(self) -> dict[str, dict[str, Properties]]:
        await asyncio.gather(*(interface.refresh() for interface in self._objects.values()))
        # Meanwhile some may have come or gone, and been announced as such.
        return {
            path: {interface.contract.name: interface.get_all()}
            for path, interface in self._objects.items()
            if path != self._root
        }

    def _peer(self, call: Call) -> Reply:
        _expect(call, "")
        if call.member == "Ping":
            return Reply()
        return Reply("s", (Path("/etc/machine-id").read_text().strip(),))


async def _properties(call: Call, exported: Interface) -> Reply:
    _expect(call, {"Get": "ss", "GetAll": "s", "Set": "ssv"}[call.member])
    interface = call.body[0]
    if interface in (PEER, INTROSPECTABLE, PROPERTIES, OBJECT_MANAGER) and call.member == "GetAll":
        return Reply("a{sv}", ({},))
    if interface not in ("", exported.contract.name):
        raise errors.UnknownInterface(f"{call.path} has no interface {interface}")
    name = "" if call.member == "GetAll" else call.body[1]
    if not name or name in exported.volatile:
        await exported.refresh()
    if not name:
        return Reply("a{sv}", (exported.get_all(),))
    value = exported.get(name)
    if call.member == "Set":
        raise errors.PropertyReadOnly(f"{name} is read-only")
    return Reply("v", (value,))


def _expect(call: Call, signature: str) -> None:
    if call.signature != signature:
        raise errors.InvalidArgs(f"{call.member} takes ({signature}), not ({call.signature})")
