"""The XML of contrib/dbus is the contract; what the code binds to it is all of it."""

import inspect
import itertools
import re
import sys
import types
from typing import Any
from xml.etree import ElementTree

import pytest

try:
    import systemd.daemon  # noqa: F401
except ModuleNotFoundError:  # it takes a compiler, and nothing here calls it
    sys.modules["systemd"] = sys.modules["systemd.daemon"] = types.ModuleType("systemd")

from wg4netnsd import errors, names
from wg4netnsd.api import options
from wg4netnsd.api.forward_object import ForwardObject
from wg4netnsd.api.manager_object import ManagerObject
from wg4netnsd.api.tunnel_object import CHANGES, TunnelObject
from wg4netnsd.bus import call_queue, contract, frames
from wg4netnsd.bus.contract import InterfaceContract
from wg4netnsd.bus.objects import ExportedObject, method
from wg4netnsd.config import wgquick
from wg4netnsd.files import content
from wg4netnsd.files.client import MAX_PROCESSES, MAX_PROCESSES_PER_CALLER

BOUND: dict[str, type[ExportedObject]] = {
    names.MANAGER: ManagerObject,
    names.TUNNEL: TunnelObject,
    names.FORWARD: ForwardObject,
}


@pytest.fixture(params=BOUND)
def interface(request: pytest.FixtureRequest) -> InterfaceContract:
    return contract.load(request.param)


def methods_of(bound: type[ExportedObject]) -> dict[str, Any]:
    """Its coroutines by the D-Bus methods that they are marked as."""
    return {f.dbus_method: f for f in vars(bound).values() if hasattr(f, "dbus_method")}


def test_every_member_is_bound_and_nothing_else(interface: InterfaceContract) -> None:
    bound = BOUND[interface.name]
    methods = methods_of(bound)
    assert methods.keys() == interface.methods.keys()
    assert bound.readers.keys() == interface.properties.keys()
    for element in ElementTree.fromstring(interface.xml).iter("method"):
        coroutine = methods[element.attrib["name"]]
        assert inspect.iscoroutinefunction(coroutine)
        _self, _call, *arguments = inspect.signature(coroutine).parameters
        assert len(arguments) == len(element.findall("arg[@direction='in']")), coroutine


def test_every_signal_is_emitted_and_no_other(interface: InterfaceContract) -> None:
    source = inspect.getsource(sys.modules[BOUND[interface.name].__module__])
    assert set(re.findall(r'emit_signal\("(\w+)"', source)) == interface.signals.keys()


def define(methods: dict[str, Any], readers: dict[str, Any]) -> None:
    """A class of these members alone, for the Manager's contract."""
    body = {"readers": readers, **{f"method{at}": f for at, f in enumerate(methods.values())}}
    arguments = {"interface": names.MANAGER}
    types.new_class("Defined", (ExportedObject,), arguments, lambda members: members.update(body))


def test_a_class_that_differs_from_its_contract_is_refused() -> None:
    @method("DestroyTunnel")
    async def destroy(*_: object) -> None: ...

    methods, readers = methods_of(ManagerObject), dict(ManagerObject.readers)
    define(methods, readers)
    fewer = {name: each for name, each in methods.items() if name != "CreateTunnel"}
    for changed, difference in (
        (fewer, "CreateTunnel"),
        (methods | {"": destroy}, "DestroyTunnel"),
    ):
        with pytest.raises(TypeError, match=f"methods: contract and code differ in {difference}"):
            define(changed, readers)
    fewer = {name: each for name, each in readers.items() if name != "Version"}
    for changed, difference in ((fewer, "Version"), (readers | {"Age": len}, "Age")):
        with pytest.raises(
            TypeError, match=f"properties: contract and code differ in {difference}"
        ):
            define(methods, changed)


def test_every_member_is_documented(interface: InterfaceContract) -> None:
    text = contract.resource(f"dbus/{interface.name}.xml").decode()
    members = {
        element.attrib["name"]: element
        for element in ElementTree.fromstring(text).iter()
        if element.tag in ("method", "signal", "property")
    }
    assert members.keys() == {*interface.methods, *interface.signals, *interface.properties}
    for name, element in members.items():
        comment = re.search(rf"<!--\s+{name}:(.*?)-->", text, re.DOTALL)
        assert comment, name
        for argument in element.iter("arg"):
            assert f"@{argument.attrib['name']}:" in comment[1], name


def test_all_that_is_said_to_change_is_announced_and_nothing_else() -> None:
    properties = contract.load(names.TUNNEL).properties
    assert set(itertools.chain(*CHANGES.values())) == {
        name for name, prop in properties.items() if prop.emits in ("true", "invalidates")
    }


def test_documented_errors_exist(interface: InterfaceContract) -> None:
    lists = re.findall(r"org\.wg4netns1\.Error\.(\w+(?:,\s+\w+)*)", interface.xml)
    documented = {name for listed in lists for name in re.split(r",\s+", listed)}
    assert documented or interface.name == names.FORWARD
    assert documented <= {error.__name__ for error in errors.Error.__subclasses__()}


def test_the_limits_that_are_documented_are_the_codes() -> None:
    text = " ".join(contract.resource(f"dbus/{names.MANAGER}.xml").decode().split())
    for limit in (
        f"a message of {frames.MAX_MESSAGE >> 10} KiB",
        f"{call_queue.MAX_CALLS} calls under way, and {call_queue.MAX_FDS} file descriptors",
        f"{MAX_PROCESSES_PER_CALLER} files of one client, and {MAX_PROCESSES} in all",
        f"{wgquick.MAX_SIZE >> 20} MiB, {wgquick.MAX_PEERS} peers",
        f"{wgquick.MAX_REPEATED['AllowedIPs']} values of AllowedIPs",
        f"or {wgquick.MAX_REPEATED['Address']} of Address or of DNS",
        f"read to its end within {content.READ_TIME:g} s",
        f"default {options.parse({}).timeout_usec // 10**6} s",
    ):
        assert limit in text, limit
    assert wgquick.MAX_REPEATED["Address"] == wgquick.MAX_REPEATED["DNS"]
