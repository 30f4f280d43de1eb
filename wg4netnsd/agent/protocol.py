"""The messages between daemon and agent: what each holds, and how it reads as JSON.

    daemon ── CreateInterface, a namespace's fd ──► child ── InterfaceLink, two fds ──► daemon
                                                    child ── Done ────────────────────► daemon
    daemon ── ChangeInterface, a namespace's fd ──► child ── Done ────────────────────► daemon
    daemon ── WatchInterface, a TUN's fd ─────────► child ── InterfaceLink, one fd ───► daemon
    daemon ── ServeSockets, a TUN's fd ───────────► child ── SocketServer, two fds ───► daemon
                                                    child ── Done, and stays ─────────► daemon
    daemon ── OpenUdpSockets, a namespace's fd ───► child ── Done, two fds or one ────► daemon
    daemon ── OpenUdpSockets, a TUN's fd ─────────► child ── Done, two fds or one ────► daemon

Each answer is a line, and any of them can be a Refusal instead. A request ends with its stream.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple


class InterfaceSettings(NamedTuple):
    """An interface's MTU in bytes, and its addresses and routes in CIDR notation.

    The kernel is to prefer the first address of each family as a source. The `unroutable` networks
    get no route, and must have none by another interface either.
    """

    mtu: int
    addresses: list[str]
    routes: list[str]
    unroutable: Sequence[str] = ()


class CreateInterface(NamedTuple):
    """Create an interface.

    A TUN keeps alive the namespace that it was opened in (tun_chr_open() takes a reference). With
    `pins` that is the target; without, a sibling of it, from where the interface is moved.
    """

    interface: str
    settings: InterfaceSettings
    pins: bool = True


class ChangeInterface(NamedTuple):
    """Take an interface from `old` settings to `new` ones."""

    interface: str
    old: InterfaceSettings
    new: InterfaceSettings


class WatchInterface(NamedTuple):
    """Open a socket that reports changes of a TUN's interface."""


class ServeSockets(NamedTuple):
    """Stay beside a TUN's interface, and open sockets there; sockets.py has these messages."""


class OpenUdpSockets(NamedTuple):
    """Open UDP sockets in a namespace, for IPv4 and IPv6, bound to `port`; 0 for any.

    With `by_tun`, they are opened where that TUN's interface is, and use it alone.
    """

    port: int
    by_tun: bool


Request = CreateInterface | ChangeInterface | WatchInterface | ServeSockets | OpenUdpSockets


class InterfaceLink(NamedTuple):
    """An interface as its socket's reports name it, and its status when the reports began."""

    ifindex: int
    nsid: int | None
    """Number by which the socket's namespace knows the interface's; None if they are the same."""
    name: str
    up: bool


class SocketServer(NamedTuple):
    """The child that stays; with it come the socket that takes its requests, and its pidfd."""


class Done(NamedTuple):
    """Everything that was asked for is done."""


class Refusal(NamedTuple):
    """The request failed. `error` is the name of an exception in wg4netnsd.errors."""

    error: str
    text: str


Answer = InterfaceLink | SocketServer | Done | Refusal


def encode(message: Request | Answer) -> bytes:
    return json.dumps({type(message).__name__: _plain(message)}).encode() + b"\n"


def decode_request(text: bytes) -> Request:
    """Raises ValueError if the text is incomplete."""
    match json.loads(text):
        case {"CreateInterface": {"interface": name, "settings": settings, "pins": pins}}:
            return CreateInterface(name, InterfaceSettings(**settings), pins)
        case {"ChangeInterface": {"interface": name, "old": old, "new": new}}:
            return ChangeInterface(name, InterfaceSettings(**old), InterfaceSettings(**new))
        case {"WatchInterface": {}}:
            return WatchInterface()
        case {"ServeSockets": {}}:
            return ServeSockets()
        case {"OpenUdpSockets": {"port": int(port), "by_tun": bool(by_tun)}}:
            return OpenUdpSockets(port, by_tun)
    raise ValueError("not a request")


def decode_answer(text: bytes) -> Answer:
    match json.loads(text):
        case {"InterfaceLink": fields}:
            return InterfaceLink(**fields)
        case {"Refusal": fields}:
            return Refusal(**fields)
        case {"SocketServer": {}}:
            return SocketServer()
        case {"Done": {}}:
            return Done()
    raise ValueError("not an answer")


def _plain(value: Any) -> Any:
    """Return a message as JSON has it: an object with its fields by name."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(field) for name, field in value._asdict().items()}
    return value
