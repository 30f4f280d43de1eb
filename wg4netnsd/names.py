"""Every name that is part of the bus contract, in one place."""

from __future__ import annotations

import re
from typing import Final

BUS_NAME: Final = "org.wg4netns1"
ROOT_PATH: Final = "/org/wg4netns1"
TUNNEL_ROOT: Final = ROOT_PATH + "/tunnel"

MANAGER: Final = "org.wg4netns1.Manager"
TUNNEL: Final = "org.wg4netns1.Tunnel"
ERROR: Final = "org.wg4netns1.Error"
BUS: Final = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
"""The bus itself: its name, its object, that one's interface."""

STANDARD_ERROR: Final = "org.freedesktop.DBus.Error"

INTERFACE_NAME: Final = re.compile(r"[A-Za-z0-9_=+.-]{1,15}")
"""What wg-quick takes as an interface's name; narrower than the kernel's dev_valid_name()."""

TUNNEL_NAME_LENGTH: Final = 48
TUNNEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,47}")
"""A tunnel's name: also a directory's, so short enough for a socket's path of 107 bytes."""


def tunnel_path(name: str) -> str:
    """The object path of the tunnel called `name`."""
    return f"{TUNNEL_ROOT}/{label(name)}"


def label(name: str) -> str:
    """`name` as a part of an object path.

    Escaped as systemd does in bus_label_escape(): every byte outside [A-Za-z0-9], and a digit in
    first place, becomes `_` and two hex digits.
    """
    return "".join(
        c if c.isascii() and (c.isalpha() or (c.isdigit() and i)) else f"_{ord(c):02x}"
        for i, c in enumerate(name)
    )
