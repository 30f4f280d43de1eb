"""D-Bus addresses: which bus to connect to, as sd-bus decides it, and what an address says."""

from __future__ import annotations

import os
from urllib.parse import unquote_to_bytes


def session_address() -> str:
    """Return the session bus's address, or an empty string if the environment names none."""
    if given := os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
        return given
    directory = os.environ.get("XDG_RUNTIME_DIR")
    return f"unix:path={directory}/bus" if directory else ""


def system_address() -> str:
    """Return the system bus's address."""
    return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or "unix:path=/run/dbus/system_bus_socket"


def parse_list(addresses: str) -> list[tuple[str, dict[str, bytes]]]:
    """Return the transport and the options of each address of a list, such as

        unix:path=/run/user/1000/bus;unix:abstract=/tmp/dbus-1

    Raises ValueError.
    """
    return [_parse(each) for each in addresses.split(";") if each]


def _parse(address: str) -> tuple[str, dict[str, bytes]]:
    transport, colon, options = address.partition(":")
    pairs = [option.partition("=") for option in options.split(",") if option]
    if not (transport and colon and all(name and equals for name, equals, _ in pairs)):
        raise ValueError(f"{address!r} is not a D-Bus address")
    return transport, {name: unquote_to_bytes(value) for name, _, value in pairs}
