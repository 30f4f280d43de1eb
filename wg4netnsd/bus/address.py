"""Where the buses are, as sd-bus finds them."""

from __future__ import annotations

import os


def session_address() -> str:
    """Return the session bus's address, or an empty string if the environment names none."""
    if given := os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
        return given
    directory = os.environ.get("XDG_RUNTIME_DIR")
    return f"unix:path={directory}/bus" if directory else ""


def system_address() -> str:
    """Return the system bus's address."""
    return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or "unix:path=/run/dbus/system_bus_socket"
