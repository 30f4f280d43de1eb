"""Where the session bus is."""

from __future__ import annotations

import os


def session() -> str:
    """Its address, as sd-bus finds it; empty where the environment tells of none."""
    if given := os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
        return given
    directory = os.environ.get("XDG_RUNTIME_DIR")
    return f"unix:path={directory}/bus" if directory else ""
