"""An engine's event stream, one line an event, as wireguard-go/src/device/events.go writes it."""

from __future__ import annotations

import base64
from typing import Final, NamedTuple

PROTOCOL: Final = 2
"""Bump this when the daemon can no longer parse an older engine's events or our own keys in UAPI,
or pass it what it takes over the handover socket. Since 2 it takes UDP sockets."""


class Timers(NamedTuple):
    """WireGuard's timer constants in seconds; see its paper, section 6.1."""

    reject_after: float = 180.0
    rekey_attempt: float = 90.0


class Initiated(NamedTuple):
    """A handshake initiation, sent for the first time or again."""

    public_key: str


class Completed(NamedTuple):
    """A complete handshake. `age` is the age of its session in seconds."""

    public_key: str
    role: str  # "initiator" or "responder"
    realtime_usec: int
    age: float


class GaveUp(NamedTuple):
    """The end of a handshake that was not answered and is not tried again."""

    public_key: str


class Expired(NamedTuple):
    """The end of a session, whose keys were discarded."""

    public_key: str


class Moved(NamedTuple):
    """Another address, from which the peer sends now."""

    public_key: str
    endpoint: str


class TooLarge(NamedTuple):
    """A route whose MTU is smaller than datagrams of `size` bytes to the peer, so that the kernel
    fragments them."""

    public_key: str
    size: int


class Dropped(NamedTuple):
    """A loss of events, after which the engine must be asked for its status."""


class Lack(NamedTuple):
    """A part of its sandbox that the engine runs without, because the kernel refuses it."""

    part: str  # "Landlock", "seccomp" …
    reason: str

    def __str__(self) -> str:
        return f"{self.part}: {self.reason}"


PeerEvent = Initiated | Completed | GaveUp | Expired | Moved
Event = Timers | PeerEvent | TooLarge | Dropped

_PARTS: Final = ("PR_SET_DUMPABLE:", "PR_SET_NO_NEW_PRIVS:", "Landlock:", "seccomp:")


def parse(line: str) -> Event | Lack:
    """Parse one line. Raises ValueError if it is not an event."""
    match line.split():
        case ["timers", reject_after, rekey_attempt]:
            return Timers(int(reject_after) / 1000, int(rekey_attempt) / 1000)
        case ["initiated", peer]:
            return Initiated(_public_key(peer))
        case ["completed", peer, ("initiator" | "responder") as role, unix_ns, age_ms]:
            return Completed(_public_key(peer), role, int(unix_ns) // 1000, int(age_ms) / 1000)
        case ["gave-up", peer]:
            return GaveUp(_public_key(peer))
        case ["expired", peer]:
            return Expired(_public_key(peer))
        case ["endpoint", peer, endpoint]:
            return Moved(_public_key(peer), endpoint)
        case ["too-large", peer, size]:
            return TooLarge(_public_key(peer), int(size))
        case ["dropped"]:
            return Dropped()
        case ["lacks", part, *reason] if part in _PARTS:
            return Lack(part.removesuffix(":"), " ".join(reason))
    raise ValueError("not an event")


def _public_key(hexadecimal: str) -> str:
    raw = bytes.fromhex(hexadecimal)
    if len(raw) != 32:
        raise ValueError("not a key")
    return base64.b64encode(raw).decode()
