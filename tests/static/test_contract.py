"""The XML of contrib/dbus is the contract; what the code binds to it is all of it."""

import inspect
import itertools
import re
import sys
import types

import pytest

try:
    import systemd.daemon  # noqa: F401
except ModuleNotFoundError:  # it takes a compiler, and nothing here calls it
    sys.modules["systemd"] = sys.modules["systemd.daemon"] = types.ModuleType("systemd")

from wg4netnsd import contract, errors, names
from wg4netnsd.objects import Interface, snake_case
from wg4netnsd.service import _PROPERTIES_OF, ManagerInterface, TunnelInterface

BOUND: dict[str, type[Interface]] = {
    names.MANAGER: ManagerInterface,
    names.TUNNEL: TunnelInterface,
}


@pytest.fixture(params=BOUND)
def interface(request: pytest.FixtureRequest) -> contract.Interface:
    return contract.load(request.param)


def test_every_member_is_bound(interface: contract.Interface) -> None:
    bound = vars(BOUND[interface.name])
    for method in interface.methods:
        assert inspect.iscoroutinefunction(bound[snake_case(method)]), method
    assert {f"read_{snake_case(p)}" for p in interface.properties} == {
        name for name in bound if name.startswith("read_")
    }


def test_every_member_is_documented(interface: contract.Interface) -> None:
    text = contract.resource(f"dbus/{interface.name}.xml").decode()
    for member in (*interface.methods, *interface.signals):
        comment = re.search(rf"<!--\s+{member}:(.*?)-->", text, re.DOTALL)
        assert comment, member
        element = re.search(rf'name="{member}"(/>|.*?</(?:method|signal)>)', text, re.DOTALL)
        assert element
        for argument in re.findall(r'<arg type="[^"]+" name="([^"]+)"', element[1]):
            assert f"@{argument}:" in comment[1], f"{member}'s {argument}"
    for prop in interface.properties:
        assert re.search(rf"<!--\s+{prop}:", text), prop


def test_what_is_announced_as_changed_is_not_constant() -> None:
    properties = contract.load(names.TUNNEL).properties
    for name in itertools.chain(*_PROPERTIES_OF.values()):
        assert properties[name].emits in ("true", "invalidates"), name


def test_documented_errors_exist(interface: contract.Interface) -> None:
    known = {e.__name__ for e in errors.Error.__subclasses__()}
    for listed in re.findall(r"org\.wg4netns1\.Error\.(\w+(?:,\s+\w+)*)", interface.xml):
        for name in re.split(r",\s+", listed):
            assert name in known, name
