"""The values of wg4netnsctl's options and arguments, one parser per type.

Each raises ArgumentTypeError, which says what was expected.
"""

from __future__ import annotations

import os
from argparse import ArgumentTypeError

from wg4netnsd import names


def name(text: str) -> str:
    if not names.TUNNEL_NAME.fullmatch(text):
        wanted = "1 to 48 of A-Za-z0-9_.@-, the first a letter or digit"
        raise ArgumentTypeError(f"{_shown(text)} is not a tunnel name: expected {wanted}")
    return text


def interface(text: str) -> str:
    if not names.INTERFACE_NAME.fullmatch(text):
        wanted = "1 to 15 of A-Za-z0-9_=+.-"
        raise ArgumentTypeError(f"{_shown(text)} is not an interface name: expected {wanted}")
    return text


def mtu(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise ArgumentTypeError(f"{_shown(text)}: expected bytes, 1 to 65535")
    return int(text)


def keys(text: str) -> list[str]:
    keys = text.split(",")
    if not all(key.isascii() and key.isalnum() for key in keys):
        raise ArgumentTypeError(f"{_shown(text)}: expected keys such as PostUp,PreDown")
    return keys


def capabilities(text: str) -> list[str]:
    found = [name.lower().removeprefix("cap_") for name in text.split(",")]
    if not set(found) <= {"net_admin", "net_raw"}:
        wanted = "net_raw, net_admin or both; no other is about the network alone"
        raise ArgumentTypeError(f"{_shown(text)}: expected {wanted}")
    return found


def _shown(text: str) -> str:
    return f"'{text.encode(errors='replace').decode()}'"


def pid(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{_shown(text)}: expected a PID")
    return int(text)


def fd(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{_shown(text)}: expected the number of a descriptor")
    try:
        os.fstat(int(text))
    except (OSError, OverflowError):
        raise ArgumentTypeError(f"{_shown(text)}: no such descriptor is open") from None
    return int(text)


def seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise ArgumentTypeError(f"{_shown(text)}: expected a number of seconds above 0")
    return seconds
