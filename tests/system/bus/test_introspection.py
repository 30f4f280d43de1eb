"""Introspection: what is served is the contract, and generic clients find their way by it."""

import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from support.bus import MANAGER, NAME, PROPERTIES, ROOT, TUNNEL, Client, busctl, gdbus
from support.buses import ON_BOTH
from support.daemon import Daemon

pytestmark = ON_BOTH

CONTRACT = Path(__file__).parents[3] / "contrib/dbus"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"


def shape(text: str) -> dict[str, Any]:
    """Of each interface its members with their arguments and annotations."""
    return {
        interface.attrib["name"]: {
            (member.tag, member.attrib["name"]): (
                member.attrib,
                [(part.tag, part.attrib) for part in member],
            )
            for member in interface
        }
        for interface in ElementTree.fromstring(text).iter("interface")
    }


@pytest.mark.parametrize("interface", [MANAGER, TUNNEL])
def test_introspection_is_the_contract(client: Client, tunnel: str, interface: str) -> None:
    path = ROOT if interface == MANAGER else tunnel
    contract = (CONTRACT / f"{interface}.xml").read_text()
    served = client.call(path, INTROSPECTABLE, "Introspect")
    assert shape(served)[interface] == shape(contract)[interface]
    verbatim = re.search(r"<interface.*</interface>", contract, re.DOTALL)
    assert verbatim
    assert verbatim[0] in served
    others = {"Peer", "Introspectable", "Properties"} | (
        {"ObjectManager"} if path == ROOT else set()
    )
    assert set(shape(served)) == {interface, *(f"org.freedesktop.DBus.{each}" for each in others)}


def test_properties_are_those_of_the_contract(client: Client, tunnel: str) -> None:
    for path, interface in ((ROOT, MANAGER), (tunnel, TUNNEL)):
        variants = client.call(path, PROPERTIES, "GetAll", "s", (interface,))
        members = shape((CONTRACT / f"{interface}.xml").read_text())[interface]
        types = {
            name: attributes["type"]
            for (kind, name), (attributes, _) in members.items()
            if kind == "property"
        }
        assert {name: signature for name, (signature, _) in variants.items()} == types
        for name, variant in variants.items():
            if name != "Peers":  # whose counters may move
                assert client.call(path, PROPERTIES, "Get", "ss", (interface, name)) == variant
                assert client.call(path, PROPERTIES, "Get", "ss", ("", name)) == variant


def test_gdbus_finds_its_way(daemon: Daemon, tunnel: str) -> None:
    shown = gdbus(
        daemon.address,
        *("introspect", "--session", "--dest", NAME, "--object-path", "/", "--recurse"),
    )
    assert f"node {ROOT} " in shown
    assert f"node {tunnel} " in shown
    assert "readonly s State = 'up';" in shown


def test_busctl_finds_its_way(daemon: Daemon, tunnel: str) -> None:
    command = ["busctl", f"--address={daemon.address}", "tree", "--list", NAME]
    tree = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert tree.split() == ["/", "/org", ROOT, f"{ROOT}/tunnel", tunnel]
    state = busctl(daemon.address, "get-property", NAME, tunnel, TUNNEL, "State")
    assert state == {"type": "s", "data": "up"}


def test_every_object_answers_a_ping(client: Client, tunnel: str) -> None:
    machine = Path("/etc/machine-id").read_text().strip()
    for path in (ROOT, tunnel):
        assert client.call(path, "org.freedesktop.DBus.Peer", "Ping") is None
        assert client.call(path, "org.freedesktop.DBus.Peer", "GetMachineId") == machine
