"""The names in the bus contract, and the names that tunnels and interfaces may have."""

from __future__ import annotations

import re
from typing import Final

BUS_NAME: Final = "org.wg4netns1"
ROOT_PATH: Final = "/org/wg4netns1"
TUNNEL_ROOT: Final = ROOT_PATH + "/tunnel"

MANAGER: Final = "org.wg4netns1.Manager"
TUNNEL: Final = "org.wg4netns1.Tunnel"
FORWARD: Final = "org.wg4netns1.Forward"
ERROR: Final = "org.wg4netns1.Error"
BUS: Final = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
"""The bus's own service, object path and interface."""

STANDARD_ERROR: Final = "org.freedesktop.DBus.Error"

INTERFACE_NAME: Final = re.compile(r"[A-Za-z0-9_=+.-]{1,15}")
"""An interface name that wg-quick accepts; narrower than the kernel's dev_valid_name()."""

TUNNEL_NAME_LENGTH: Final = 48
TUNNEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,47}")
"""A tunnel's name. It also names a directory, so it must fit into a socket's path, 107 bytes."""


def tunnel_path(name: str) -> str:
    """Return the object path of the tunnel `name`."""
    return f"{TUNNEL_ROOT}/{escape_label(name)}"


def forward_path(tunnel: str, forward: str) -> str:
    """Return the object path of a tunnel's forward, by its id."""
    return f"{tunnel_path(tunnel)}/forward/{forward}"


def escape_label(name: str) -> str:
    """Escape `name` for an object path.

    As systemd's bus_label_escape(): every byte outside [A-Za-z0-9], and a digit in first place,
    becomes `_` and two hex digits.
    """
    return "".join(
        c if c.isascii() and (c.isalpha() or (c.isdigit() and i)) else f"_{ord(c):02x}"
        for i, c in enumerate(name)
    )
