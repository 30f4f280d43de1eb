"""Where a forward's connections go, as text: `host:port`, `[2001:db8::1]:port`, `unix:/path`."""

from __future__ import annotations

import socket
from typing import NamedTuple

from wg4netnsd.errors import InvalidArgs


class Target(NamedTuple):
    """A host's port, or, with an empty `host`, the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return show_address(self.host, self.port) if self.host else f"unix:{self.path}"


def parse_target(text: str) -> Target:
    """Raises InvalidArgs."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path or len(path.encode()) > 107:  # unix(7)
            raise InvalidArgs(f"target: {text!r}: expected unix:/path of at most 107 bytes")
        return Target(path=path)
    found = split_host_port(text)
    if not found:
        raise InvalidArgs(f"target: {text!r}: expected host:port, [address]:port or unix:/path")
    return Target(*found)


def split_host_port(text: str, default_port: int | None = None) -> tuple[str, int] | None:
    """Split `host:port` or `[2001:db8::1]:port`; None if it is neither."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not is_address(host, socket.AF_INET6):
            return None
        colon, number = rest[:1], rest[1:]
    else:
        host, colon, number = text.partition(":")
        if not host or not host.isascii() or not host.isprintable() or set(host) & set(" /@[]"):
            return None
    if not colon and default_port is not None:
        return host, default_port
    if colon != ":" or not number.isascii() or not number.isdigit() or len(number) > 5:
        return None
    port = int(number)
    return (host, port) if 0 < port < 65536 else None


def is_address(text: str, family: int) -> bool:
    """Return whether it is an IP address of the family, AF_INET or AF_INET6."""
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):
        return False
    return True


def family_of(text: str) -> int | None:
    """Return AF_INET or AF_INET6 for an IP address, None for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        if is_address(text, family):
            return int(family)
    return None


def show_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
