"""The messages between the daemon and a file process: what each holds, and how it is sent.

    daemon ── ReceiveFds, a bus's socket ──► process ── Received, fds ─────► daemon
    daemon ── OpenNetns ───────────────────► process ── Opened, one fd ────► daemon
    daemon ── ReadConfig ──────────────────► process ── Opened, a memfd ───► daemon

Each is one packet (SOCK_SEQPACKET), and each answer can be a Refusal instead.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple

from wg4netnsd.kernel import rights

MAX_PACKET: Final = 65536  # bytes; the longest message has a path of PATH_MAX, 4096


class ReceiveFds(NamedTuple):
    """Read `length` bytes from the socket that comes with this, for the fds that come with them."""

    length: int


class OpenNetns(NamedTuple):
    """Pass on a network namespace: that of an absolute path, or a held fd."""

    file: str | int


class ReadConfig(NamedTuple):
    """Copy a file of at most `limit` bytes: of an absolute path, or a held fd, called `name`."""

    file: str | int
    limit: int
    name: str = "config"


Request = ReceiveFds | OpenNetns | ReadConfig


class Received(NamedTuple):
    """`length` bytes were read. Of the fds that came, some are `held`; the others are with this."""

    length: int
    held: list[bool]


class Opened(NamedTuple):
    """The fd comes with this."""

    readable_by_others: bool = False


class Refusal(NamedTuple):
    """The request failed. `error` is the name of an exception in wg4netnsd.errors."""

    error: str
    text: str


Answer = Received | Opened | Refusal
_TYPES: Final = {
    each.__name__: each for each in (ReceiveFds, OpenNetns, ReadConfig, Received, Opened, Refusal)
}


def send(conversation: socket.socket, message: Request | Answer, fds: Sequence[int] = ()) -> None:
    """Raises OSError."""
    data = json.dumps({type(message).__name__: message})
    rights.send(conversation, data.encode(), fds, socket.MSG_NOSIGNAL)


def receive(conversation: socket.socket) -> tuple[Request | Answer | None, list[int]]:
    """Return a message, and the fds that came with it, which the caller owns; None at the end.

    Fewer fds came than were sent if RLIMIT_NOFILE is reached (recvmsg(2)). Raises OSError.
    """
    data, fds, _ = rights.receive(conversation, MAX_PACKET)
    if not data:
        return None, fds
    ((name, fields),) = json.loads(data).items()
    return _TYPES[name](*fields), fds
