"""The XML of contrib/dbus is the contract; what the code binds to it is all of it."""

import inspect
import itertools
import re
import sys
import types
from xml.etree import ElementTree

import pytest

try:
    import systemd.daemon  # noqa: F401
except ModuleNotFoundError:  # it takes a compiler, and nothing here calls it
    sys.modules["systemd"] = sys.modules["systemd.daemon"] = types.ModuleType("systemd")

from wg4netnsd import errors, names
from wg4netnsd.aio import blocking
from wg4netnsd.api import options
from wg4netnsd.api.service import _PROPERTIES_OF, ManagerInterface, TunnelInterface
from wg4netnsd.bus import call_queue, contract, frames
from wg4netnsd.bus.objects import Interface, snake_case
from wg4netnsd.config import reader, wgquick

BOUND: dict[str, type[Interface]] = {
    names.MANAGER: ManagerInterface,
    names.TUNNEL: TunnelInterface,
}


@pytest.fixture(params=BOUND)
def interface(request: pytest.FixtureRequest) -> contract.Interface:
    return contract.load(request.param)


def test_every_member_is_bound_and_nothing_else(interface: contract.Interface) -> None:
    bound = vars(BOUND[interface.name])
    coroutines = {name for name in bound if inspect.iscoroutinefunction(bound[name])}
    public = {name for name in coroutines if not name.startswith("_")}
    assert {snake_case(method) for method in interface.methods} == public - {"refresh"}
    assert {f"read_{snake_case(prop)}" for prop in interface.properties} == {
        name for name in bound if name.startswith("read_")
    }


def test_every_member_is_documented(interface: contract.Interface) -> None:
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
    assert set(itertools.chain(*_PROPERTIES_OF.values())) == {
        name for name, prop in properties.items() if prop.emits in ("true", "invalidates")
    }


def test_documented_errors_exist(interface: contract.Interface) -> None:
    lists = re.findall(r"org\.wg4netns1\.Error\.(\w+(?:,\s+\w+)*)", interface.xml)
    documented = {name for listed in lists for name in re.split(r",\s+", listed)}
    assert documented
    assert documented <= {error.__name__ for error in errors.Error.__subclasses__()}


def test_the_limits_that_are_documented_are_the_codes() -> None:
    text = " ".join(contract.resource(f"dbus/{names.MANAGER}.xml").decode().split())
    for limit in (
        f"a message of {frames.MAX_MESSAGE >> 10} KiB",
        f"{call_queue.MAX_CALLS} calls under way, and {call_queue.MAX_FDS} file descriptors",
        f"{blocking.MAX_THREADS_PER_CALLER} files of one client, and {blocking.MAX_THREADS} in all",
        f"{wgquick.MAX_SIZE >> 20} MiB, {wgquick.MAX_PEERS} peers",
        f"{wgquick.MAX_REPEATED['AllowedIPs']} values of AllowedIPs",
        f"or {wgquick.MAX_REPEATED['Address']} of Address or of DNS",
        f"read to its end within {reader.READ_TIME:g} s",
        f"default {options.parse({}).timeout_usec // 10**6} s",
    ):
        assert limit in text, limit
    assert wgquick.MAX_REPEATED["Address"] == wgquick.MAX_REPEATED["DNS"]
