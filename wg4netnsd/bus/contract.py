"""The bus contract, read from the XML of contrib/dbus."""

from __future__ import annotations

import functools
import importlib.resources
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from typing import Final

STANDARD_INTERFACES: Final = """
  <interface name="org.freedesktop.DBus.Peer">
    <method name="Ping"/>
    <method name="GetMachineId"><arg type="s" name="machine_uuid" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect"><arg type="s" name="xml_data" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get">
      <arg type="s" name="interface_name" direction="in"/>
      <arg type="s" name="property_name" direction="in"/>
      <arg type="v" name="value" direction="out"/>
    </method>
    <method name="GetAll">
      <arg type="s" name="interface_name" direction="in"/>
      <arg type="a{sv}" name="props" direction="out"/>
    </method>
    <method name="Set">
      <arg type="s" name="interface_name" direction="in"/>
      <arg type="s" name="property_name" direction="in"/>
      <arg type="v" name="value" direction="in"/>
    </method>
    <signal name="PropertiesChanged">
      <arg type="s" name="interface_name"/>
      <arg type="a{sv}" name="changed_properties"/>
      <arg type="as" name="invalidated_properties"/>
    </signal>
  </interface>
"""
"""The interfaces of every object, from the D-Bus specification."""

OBJECT_MANAGER: Final = """
  <interface name="org.freedesktop.DBus.ObjectManager">
    <method name="GetManagedObjects">
      <arg type="a{oa{sa{sv}}}" name="objpath_interfaces_and_properties" direction="out"/>
    </method>
    <signal name="InterfacesAdded">
      <arg type="o" name="object_path"/>
      <arg type="a{sa{sv}}" name="interfaces_and_properties"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg type="o" name="object_path"/>
      <arg type="as" name="interfaces"/>
    </signal>
  </interface>
"""
"""The root object's interface besides these."""


@dataclass(frozen=True)
class MethodContract:
    in_signature: str
    out_signature: str


@dataclass(frozen=True)
class PropertyContract:
    signature: str
    emits: str
    """The value of EmitsChangedSignal: `true`, `invalidates`, `const` or `false`."""


@dataclass(frozen=True)
class InterfaceContract:
    name: str
    xml: str
    """The <interface> element, verbatim, with its comments."""
    methods: dict[str, MethodContract] = field(default_factory=dict)
    properties: dict[str, PropertyContract] = field(default_factory=dict)
    signals: dict[str, str] = field(default_factory=dict)
    """The signature of each."""


@functools.cache
def load(name: str) -> InterfaceContract:
    """Return the contract of interface `name`, from the file of the same name."""
    text = resource(f"dbus/{name}.xml").decode()
    start, end = text.index("<interface"), text.index("</interface>") + len("</interface>")
    element = ElementTree.fromstring(text[start:end])
    return InterfaceContract(
        name=element.attrib["name"],
        xml=text[start:end],
        methods={
            method.attrib["name"]: MethodContract(
                _signature(method, "in"), _signature(method, "out")
            )
            for method in element.iter("method")
        },
        properties={
            prop.attrib["name"]: PropertyContract(prop.attrib["type"], _emits(prop))
            for prop in element.iter("property")
        },
        signals={
            signal.attrib["name"]: _signature(signal, "out") for signal in element.iter("signal")
        },
    )


def resource(path: str) -> bytes:
    """Return a file of contrib/, which the package contains."""
    return (importlib.resources.files("wg4netnsd") / "contrib" / path).read_bytes()


def _signature(element: ElementTree.Element, direction: str) -> str:
    default = "in" if element.tag == "method" else "out"  # as the specification has it
    arguments = element.iter("arg")
    return "".join(a.attrib["type"] for a in arguments if a.get("direction", default) == direction)


def _emits(element: ElementTree.Element) -> str:
    return next((a.attrib["value"] for a in element.iter("annotation")), "true")
