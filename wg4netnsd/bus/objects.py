"""The objects that we export, and the interfaces that D-Bus itself defines for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from wg4netnsd import errors
from wg4netnsd.bus import contract
from wg4netnsd.bus.call import Call, Reply
from wg4netnsd.bus.codec import Variant
from wg4netnsd.bus.contract import InterfaceContract
from wg4netnsd.bus.server import Server

PEER: Final = "org.freedesktop.DBus.Peer"
INTROSPECTABLE: Final = "org.freedesktop.DBus.Introspectable"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER: Final = "org.freedesktop.DBus.ObjectManager"

DOCTYPE: Final = """<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
"""

Properties = dict[str, Variant]
Method = Callable[..., Coroutine[Any, Any, Any]]
M = TypeVar("M", bound=Method)


def method(name: str) -> Callable[[M], M]:
    """Mark a coroutine as the D-Bus method `name`.

    It is called with the Call and the arguments, and returns the one value of the reply, None for
    none, or a Reply.
    """

    def mark(function: M) -> M:
        vars(function)["dbus_method"] = name
        return function

    return mark


class ExportedObject:
    """An object with one interface, which the contract defines.

    A subclass names the interface, as in `class ManagerObject(ExportedObject, interface=…)`. It has
    a coroutine marked with @method for each method of the contract, and a reader for each property;
    a difference is a TypeError when the class is defined.
    """

    contract: ClassVar[InterfaceContract]
    readers: ClassVar[Mapping[str, Callable[[Any], object]]]
    """Returns the value of each property, by its D-Bus name."""
    refreshed: ClassVar[Collection[str]] = ()
    """The properties that refresh() is for."""
    _methods: ClassVar[dict[str, Method]]

    def __init_subclass__(cls, interface: str) -> None:
        cls.contract = contract.load(interface)
        cls._methods = {
            function.dbus_method: function
            for function in vars(cls).values()
            if hasattr(function, "dbus_method")
        }
        _compare(f"{interface}'s methods", cls.contract.methods, cls._methods)
        _compare(f"{interface}'s properties", cls.contract.properties, cls.readers)

    def __init__(self, path: str, server: Server) -> None:
        self.path = path
        self.server = server
        self.emits = False
        """Whether it emits signals: from when it has been announced until it is removed."""

    async def call(self, call: Call) -> Reply:
        """Call a method of the contract. Raises InvalidArgs, and what the method raises."""
        own = self.contract.methods[call.member]
        _expect(call, own.in_signature)
        result = await self._methods[call.member](self, call, *call.body)
        if isinstance(result, Reply):
            return result
        return Reply(own.out_signature, () if result is None else (result,))

    async def refresh(self) -> None:
        """Fetch what some properties are read from; never fails."""

    def get(self, name: str) -> Variant:
        """Return a property's value now. Raises UnknownProperty."""
        if name not in self.contract.properties:
            raise errors.UnknownProperty(f"{self.contract.name} has no property '{name}'")
        return Variant(self.contract.properties[name].signature, self.readers[name](self))

    def get_all(self) -> Properties:
        return {name: self.get(name) for name in self.contract.properties}

    def emit_signal(self, name: str, *body: Any) -> None:
        """Emit a signal of the contract."""
        if self.emits:
            own = self.contract
            self.server.emit(self.path, own.name, name, own.signals[name], *body)

    def emit_changed(self, names: Iterable[str]) -> None:
        """Emit PropertiesChanged: with the values, or as invalidated, as the contract says."""
        if not self.emits:
            return
        values: Properties = {}
        invalidated: list[str] = []
        for name in names:
            match self.contract.properties[name].emits:
                case "true":
                    values[name] = self.get(name)
                case "invalidates":
                    invalidated.append(name)
        body = (self.contract.name, values, invalidated)
        self.server.emit(self.path, PROPERTIES, "PropertiesChanged", "sa{sv}as", *body)


def _compare(what: str, agreed: Iterable[str], declared: Iterable[str]) -> None:
    if difference := set(agreed) ^ set(declared):
        raise TypeError(f"{what}: contract and code differ in {', '.join(sorted(difference))}")


class ObjectTree:
    """The exported objects by their paths. The root has the ObjectManager."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._objects: dict[str, ExportedObject] = {}
        self._announced: set[str] = set()
        self._server: Server | None = None

    def attach(self, server: Server) -> None:
        """Emit signals from now on; objects that were added before are taken as known."""
        self._server = server
        for path in self._announced:
            self._objects[path].emits = True

    def add(self, added: ExportedObject) -> None:
        """Export an object, and announce it as soon as what it stands for is under way.

        Changes before that need no signal: the announcement has all values.
        """
        self._objects[added.path] = added
        if added.path != self._root:
            asyncio.get_running_loop().call_soon(self._announce, added)

    def _announce(self, added: ExportedObject) -> None:
        if self._objects.get(added.path) is not added:
            return  # it has gone already
        self._announced.add(added.path)
        added.emits = self._server is not None
        everything = {added.contract.name: added.get_all()}
        self._emit("InterfacesAdded", "oa{sa{sv}}", added.path, everything)

    def remove(self, path: str) -> None:
        removed = self._objects.pop(path)
        removed.emits = False
        if path in self._announced:
            self._announced.remove(path)
            self._emit("InterfacesRemoved", "oas", path, [removed.contract.name])

    def _emit(self, member: str, signature: str, *body: Any) -> None:
        """Emit a signal of the ObjectManager, at the root: GDBus looks nowhere else."""
        if self._server:
            self._server.emit(self._root, OBJECT_MANAGER, member, signature, *body)

    # ------------------------------------------------------------ calls

    async def call(self, call: Call) -> Reply:
        """Call the method that a client asks for. Raises errors.Error."""
        children = self._children(call.path)
        exported = self._objects.get(call.path)
        if exported is None and not children:
            raise errors.UnknownObject(f"no object {call.path}")
        match call.interface, call.member:
            case ((None | "org.freedesktop.DBus.Peer"), "Ping" | "GetMachineId"):
                return _peer(call)
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
        """Return the next parts of the paths below `path`; busctl finds its way by them."""
        prefix = path.rstrip("/") + "/"
        below = (p.removeprefix(prefix) for p in self._objects if p.startswith(prefix))
        return sorted({rest.partition("/")[0] for rest in below})

    def _introspect(
        self, path: str, exported: ExportedObject | None, children: Iterable[str]
    ) -> str:
        interfaces = contract.STANDARD_INTERFACES
        if path == self._root:
            interfaces += contract.OBJECT_MANAGER
        if exported:
            interfaces += f"  {exported.contract.xml}\n"
        nodes = "".join(f'  <node name="{child}"/>\n' for child in children)
        return f"{DOCTYPE}<node>{interfaces}{nodes}</node>\n"

    async def _managed(self) -> dict[str, dict[str, Properties]]:
        await asyncio.gather(*(exported.refresh() for exported in self._objects.values()))
        # Meanwhile some may have come or gone, and been announced as such.
        return {
            path: {exported.contract.name: exported.get_all()}
            for path, exported in self._objects.items()
            if path != self._root
        }


def _peer(call: Call) -> Reply:
    _expect(call, "")
    if call.member == "Ping":
        return Reply()
    return Reply("s", (Path("/etc/machine-id").read_text().strip(),))


async def _properties(call: Call, exported: ExportedObject) -> Reply:
    _expect(call, {"Get": "ss", "GetAll": "s", "Set": "ssv"}[call.member])
    interface = call.body[0]
    if interface in (PEER, INTROSPECTABLE, PROPERTIES, OBJECT_MANAGER) and call.member == "GetAll":
        return Reply("a{sv}", ({},))
    if interface not in ("", exported.contract.name):
        raise errors.UnknownInterface(f"{call.path} has no interface {interface}")
    name = "" if call.member == "GetAll" else call.body[1]
    if not name or name in exported.refreshed:
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
