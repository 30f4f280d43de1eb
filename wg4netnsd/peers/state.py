"""A peer's state, from what happened and when. Pure: the clock is the caller's.

               initiated            completed
        idle ────────────► handshaking ────────────► active
                            │      ▲                   │
         gave up, or nothing│      │initiated,         │REJECT_AFTER_TIME later,
         for REKEY_ATTEMPT_ ▼      │anew               │or its keys are gone
         TIME              stale ◄─┴───────────────────┘

The drawing shows the usual ways. What holds always, the first that applies:

- `active`: there is a session younger than REJECT_AFTER_TIME: packets can be sent and received with
  it, whatever becomes of the attempts at its successor;
- `handshaking`: initiations are being sent, since less than REKEY_ATTEMPT_TIME;
- `stale`: there was a session, or an initiation;
- `idle`: there was neither.

An engine with packets to send never gives up: each of them counts as a new attempt. To those who
watch, a peer that has not answered for REKEY_ATTEMPT_TIME is stale all the same.

See WireGuard's paper (Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel"), sections 6.1
to 6.4, for the timers.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from wg4netnsd.engine.events import Timers


class PeerState(enum.StrEnum):
    IDLE = "idle"
    HANDSHAKING = "handshaking"
    ACTIVE = "active"
    STALE = "stale"


@dataclass
class Session:
    """Times are in seconds of one clock that goes on in suspend and is never set: CLOCK_BOOTTIME.

    Readings may come late and out of order: the latest counts.
    """

    timers: Timers
    began: float | None = None
    """When the newest session did, while there is one."""
    trying_since: float | None = None
    """When the first of the initiations was sent that are neither answered nor given up."""
    tried_at: float | None = None
    """When the newest was."""
    used: bool = False
    """Has there been a session or an initiation?"""

    def initiated(self, now: float) -> None:
        if not self.trying(now):  # also after a silence in which we missed that it was given up
            self.trying_since = now
        self.tried_at = _later(self.tried_at, now)
        self.used = True

    def completed(self, now: float, age: float = 0.0) -> None:
        """A handshake is complete, and `age` is that of its session."""
        self.began = _later(self.began, now - age)
        self.trying_since = self.tried_at = None
        self.used = True

    def gave_up(self) -> None:
        """The initiations sent so far count no more."""
        self.trying_since = self.tried_at = None

    def expired(self) -> None:
        """The keys are no more, or the engine that had them."""
        self.began = None

    def trying(self, now: float) -> bool:
        """Is an answer still waited for, however long already?"""
        return self.tried_at is not None and now - self.tried_at < self.timers.rekey_attempt

    def state(self, now: float) -> PeerState:
        if self.began is not None and now - self.began < self.timers.reject_after:
            return PeerState.ACTIVE
        if self.trying_since is not None and now - self.trying_since < self.timers.rekey_attempt:
            return PeerState.HANDSHAKING
        return PeerState.STALE if self.used else PeerState.IDLE

    def changes_at(self, now: float) -> float | None:
        """When the state will change though nothing happens; None for never."""
        match self.state(now):
            case PeerState.ACTIVE:
                assert self.began is not None
                return self.began + self.timers.reject_after
            case PeerState.HANDSHAKING:
                assert self.trying_since is not None
                return self.trying_since + self.timers.rekey_attempt
            case PeerState.STALE | PeerState.IDLE:
                return None


def _later(known: float | None, new: float) -> float:
    return new if known is None else max(known, new)
