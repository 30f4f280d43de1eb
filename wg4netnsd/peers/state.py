"""A peer's state, derived from its handshakes and their times. Pure: the caller reads the clock.

               initiated            completed
        idle ────────────► handshaking ────────────► active
                            │      ▲                   │
         gave up, or nothing│      │initiated,         │REJECT_AFTER_TIME later,
         for REKEY_ATTEMPT_ ▼      │anew               │or its keys are gone
         TIME              stale ◄─┴───────────────────┘

The drawing shows the usual transitions. The definition is this list; the first line that applies
counts:

- `active`: there is a session younger than REJECT_AFTER_TIME. Packets can be sent and received with
  it, whatever happens to the handshakes that are to replace it.
- `handshaking`: initiations are being sent, for less than REKEY_ATTEMPT_TIME.
- `stale`: there was a session or an initiation.
- `idle`: there was neither.

An engine with packets to send never gives up: each packet begins a new attempt. A peer that has not
answered for REKEY_ATTEMPT_TIME is stale all the same.

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
class StateMachine:
    """One peer's state. Its inputs are the engine's events.

    Times are in seconds of CLOCK_BOOTTIME, which goes on in suspend and is never set. Readings may
    come late and out of order: the latest counts.
    """

    timers: Timers
    session_began: float | None = None
    """When the newest session began; None without a session."""
    trying_since: float | None = None
    """When the first initiation was sent that is neither answered nor given up."""
    tried_at: float | None = None
    """When the newest of these initiations was sent."""
    used: bool = False
    """Whether there has been a session or an initiation."""

    def initiated(self, now: float) -> None:
        """Record an initiation."""
        if not self.is_trying(now):  # also if we missed the end of the last attempt
            self.trying_since = now
        self.tried_at = _later(self.tried_at, now)
        self.used = True

    def completed(self, now: float, age: float = 0.0) -> None:
        """Record a complete handshake, whose session is `age` seconds old."""
        self.session_began = _later(self.session_began, now - age)
        self.trying_since = self.tried_at = None
        self.used = True

    def gave_up(self) -> None:
        """Record the end of the attempt: the initiations so far no longer count."""
        self.trying_since = self.tried_at = None

    def expired(self) -> None:
        """Record the end of the session: its keys are gone, or the engine that had them."""
        self.session_began = None

    def is_trying(self, now: float) -> bool:
        """Return whether an initiation may still be answered, however old the attempt is."""
        return self.tried_at is not None and now - self.tried_at < self.timers.rekey_attempt

    def state(self, now: float) -> PeerState:
        reject_after, rekey_attempt = self.timers.reject_after, self.timers.rekey_attempt
        if self.session_began is not None and now - self.session_began < reject_after:
            return PeerState.ACTIVE
        if self.trying_since is not None and now - self.trying_since < rekey_attempt:
            return PeerState.HANDSHAKING
        return PeerState.STALE if self.used else PeerState.IDLE

    def changes_at(self, now: float) -> float | None:
        """Return when the state will change without a further event; None for never."""
        match self.state(now):
            case PeerState.ACTIVE:
                assert self.session_began is not None
                return self.session_began + self.timers.reject_after
            case PeerState.HANDSHAKING:
                assert self.trying_since is not None
                return self.trying_since + self.timers.rekey_attempt
            case PeerState.STALE | PeerState.IDLE:
                return None


def _later(known: float | None, new: float) -> float:
    return new if known is None else max(known, new)
