"""The messages between daemon and gateway: what each holds, and how it travels.

    daemon ── SetSockets, two fds ────────► gateway ── Done ───────────────────────────► daemon
    daemon ── SetResolvers ───────────────► gateway ── Done ───────────────────────────► daemon
    daemon ── AddForward, its listeners ──► gateway ── ForwardAdded, its listeners ────► daemon
    daemon ── RemoveForward ──────────────► gateway ── Done ───────────────────────────► daemon
    daemon ── GetCounters ────────────────► gateway ── AllCounters ────────────────────► daemon

A message is one packet of the control socket (SOCK_SEQPACKET): an object of JSON, and fds with it.
Each request has one answer, in the order of the requests, and any answer can be a Refusal instead.
A refused request has changed nothing. The gateway ends once nobody holds the daemon's end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from typing import Any, Final, Literal, NamedTuple

from wg4netnsd.kernel import rights

CONTROL_FD: Final = "WG4NETNS_CONTROL_FD"
"""The variable of the gateway's environment that has the number of its control socket."""

MAX_MESSAGE: Final = 65536
"""Bytes of JSON. The kernel takes packets of 200 KB (net.core.wmem_default)."""

MAX_FDS: Final = 64
"""Fds in one message; the kernel's limit is 253 (SCM_MAX_FD)."""


class SetSockets(NamedTuple):
    """Get sockets from this `sockets` child from now on; connections stay.

    Fds: the socket for requests, and the child's pidfd.
    """

    netns: tuple[int, int]
    """Device and inode of the namespace that all its sockets must be of."""


class SetResolvers(NamedTuple):
    """Look names up at these servers, through the tunnel. Without any, names can't be used."""

    servers: list[str]
    search: list[str]


class AddForward(NamedTuple):
    """Serve a forward.

    Fds: its listeners, bound and, if they are stream sockets, listening. A `remote` one that comes
    without makes them, at each address of `listen`; others must have at least one.
    """

    id: str
    """Chosen by the daemon; identifies the forward from now on."""
    kind: Literal["proxy", "local", "remote"]
    protocol: Literal["tcp", "udp"] = "tcp"
    """`proxy` listens on TCP or Unix sockets only."""
    target: str = ""
    """Where connections go: `host:port`, `[2001:db8::1]:port`, or `unix:/path` for a `remote` by
    TCP. The host of a `local` is looked up through the tunnel, that of a `remote` on the host.
    Empty for a proxy, whose clients say it."""
    listen: list[tuple[str, int]] = []  # noqa: RUF012  a tuple's default; nobody changes it
    """For `remote`: addresses in the tunnel and their ports, 0 for any free one."""
    access: Literal["user", "anyone"] = "user"
    """Who may connect to a `proxy` or `local`: processes of the gateway's uid on this machine, or
    anyone who reaches its listeners."""
    credentials: dict[str, str] = {}  # noqa: RUF012
    """For `proxy`: the users it serves, and the SHA-256 of each one's password as hex. Without any,
    clients need none, and may give any."""
    proxy_protocol: bool = False
    """For `remote` by TCP: begin each connection with a header of the PROXY protocol, version 2."""
    idle_seconds: float = 0
    """End a connection after as long without a byte in either direction; 0: never. For UDP flows:
    forget them; 0: after DEFAULT_FLOW_SECONDS."""
    connect_seconds: float = 30
    """How long a connection to the target may take, its look-up included."""


DEFAULT_FLOW_SECONDS: Final = 120
"""RFC 4787, REQ-5: a NAT keeps a UDP mapping for two minutes or more."""


class RemoveForward(NamedTuple):
    """End a forward with its connections, and close its listeners. An unknown id is none."""

    id: str


class GetCounters(NamedTuple):
    """Report all forwards."""

    token: int = 0
    """Comes back with the answer. A daemon that adopts a gateway can't know which answers to its
    predecessor are still to come; it drops them until it sees its token."""


Request = SetSockets | SetResolvers | AddForward | RemoveForward | GetCounters


class Done(NamedTuple):
    """The request is carried out."""


class ForwardAdded(NamedTuple):
    """The forward is served.

    Fds: copies of the listeners that the gateway made itself, in the order of `listen`, so that
    the daemon can give them to a successor.
    """

    listening: list[str]
    """The listeners' addresses: `127.0.0.1:1080`, `[::1]:1080`, `unix:/path`."""


class Counters(NamedTuple):
    """A forward's connections (for UDP, its flows) and bytes since it was added."""

    open: int = 0
    total: int = 0
    """All that were let in, open ones included."""
    refused: int = 0
    """Not let in: another uid's, or wrong credentials."""
    failed: int = 0
    """Let in, but nothing came of them: garbage, or a target that can't be reached."""
    bytes_in: int = 0
    """Out of the tunnel."""
    bytes_out: int = 0
    """Into the tunnel."""


class AllCounters(NamedTuple):
    """The counters of each forward, by its id."""

    forwards: dict[str, Counters]
    token: int = 0
    """That of the request."""


class Refusal(NamedTuple):
    """The request failed. `error` is the name of an exception in wg4netnsd.errors."""

    error: str
    text: str


Answer = Done | ForwardAdded | AllCounters | Refusal

_REQUESTS: Final = {
    kind.__name__: kind
    for kind in (SetSockets, SetResolvers, AddForward, RemoveForward, GetCounters)
}
_ANSWERS: Final = {kind.__name__: kind for kind in (Done, ForwardAdded, AllCounters, Refusal)}


def encode(message: Request | Answer) -> bytes:
    return json.dumps({type(message).__name__: _plain(message)}).encode()


def decode_request(text: bytes) -> Request:
    """Raises ValueError if it is none."""
    message = _decode(text, _REQUESTS)
    match message:  # what JSON has made a list is a tuple
        case SetSockets([device, inode]):
            return SetSockets((device, inode))
        case SetSockets():
            raise ValueError("not a message: SetSockets needs device and inode")
        case AddForward():
            return message._replace(listen=[(address, port) for address, port in message.listen])
    return message  # type: ignore[no-any-return]


def decode_answer(text: bytes) -> Answer:
    """Raises ValueError if it is none."""
    message = _decode(text, _ANSWERS)
    if isinstance(message, AllCounters):
        counters = {name: Counters(**each) for name, each in message.forwards.items()}  # type: ignore[arg-type]
        return message._replace(forwards=counters)
    return message  # type: ignore[no-any-return]


def _decode(text: bytes, kinds: dict[str, Any]) -> Any:
    try:
        ((name, fields),) = json.loads(text).items()
        return kinds[name](**fields)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a message: {error!r}") from None


def _plain(value: Any) -> Any:
    """Return a message as JSON has it: an object with its fields by name."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(field) for name, field in value._asdict().items()}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value


def send(control: socket.socket, message: Request | Answer, fds: list[int]) -> None:
    """Send a message with copies of `fds`. Raises OSError."""
    rights.send(control, encode(message), fds)


def receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """Return the next packet, and the fds that came with it, which are the caller's then.

    An empty packet is the end. Raises OSError: EMSGSIZE for one that is too large, EMFILE for fds
    that there was no room for; it is lost then.
    """
    text, fds, flags = rights.receive(control, MAX_MESSAGE, MAX_FDS)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(fds)
        code = errno.EMFILE if flags & socket.MSG_CTRUNC else errno.EMSGSIZE
        raise OSError(code, os.strerror(code), "control socket")
    return text, fds


def close_all(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
