"""One peer of a tunnel: its state, its endpoint, its newest handshake, and their reports.

A peer has one timer, set for when its state changes without an event or when its rate limit lets
the next report pass. It has no timer if neither is to come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from wg4netnsd.config.model import Endpoint, Peer
from wg4netnsd.engine import events
from wg4netnsd.engine.uapi import PeerStatus
from wg4netnsd.errors import Error
from wg4netnsd.peers.endpoint import NamedEndpoint, first_endpoint, host_of
from wg4netnsd.peers.rate_limit import RateLimiter, Report
from wg4netnsd.peers.resolve import LookUp, LookupResults, is_address
from wg4netnsd.peers.state import PeerState, StateMachine
from wg4netnsd.systemd.journal import TunnelLog


@dataclass(frozen=True)
class Handshake:
    """The newest handshake with a peer. Two are the same handshake if their times are equal."""

    realtime_usec: int = 0  # since 1970; 0 for never
    role: str = field(default="", compare=False)  # "" if its event was lost


class PeerView(NamedTuple):
    """A peer as clients see it, with an engine or without."""

    configured: Peer
    endpoint: str  # ADDRESS:PORT; "" if unknown
    lookup_error: str  # why the last look-up of its host name failed; "" once it answers
    state: PeerState
    last_handshake_usec: int  # since 1970; 0 for never
    status: PeerStatus | None  # the engine's newest answer; None if there is none


class PeerObserver(Protocol):
    """The observer that peers report their changes to."""

    def handshake(self, public_key: str, report: Report[Handshake]) -> None: ...

    def peer_state_changed(self, public_key: str, report: Report[PeerState]) -> None: ...

    def peer_endpoint_changed(self, public_key: str, report: Report[str]) -> None: ...

    def peers_changed(self) -> None:
        """Called once after one or more of the above."""
        ...


class TunnelPeer:
    """One of a tunnel's peers. Times are CLOCK_BOOTTIME's."""

    def __init__(
        self,
        configured: Peer,
        timers: events.Timers,
        observer: PeerObserver,
        log: logging.Logger | TunnelLog,
    ) -> None:
        self.configured = configured
        self.state_machine = StateMachine(timers)
        self.named_endpoint: NamedEndpoint | None = None
        self.endpoint = ""
        self.pending_endpoint = ""
        """An ADDRESS:PORT that the engine has not been given yet; empty for none."""
        self.handshake = Handshake()
        self.status: PeerStatus | None = None
        self._state = RateLimiter(PeerState.IDLE)
        self._handshakes = RateLimiter(Handshake())
        self._endpoints: RateLimiter[str] | None = None  # None until the first endpoint is set
        self._observer = observer
        self._log = log
        self._timer: asyncio.TimerHandle | None = None
        self._was_in_use = False  # when its engine ended, or its network changed
        self._closed = False

    @property
    def in_use(self) -> bool:
        """Whether a new engine should begin a handshake with this peer.

        True if it was in use when its state was last updated or when its engine ended. A session
        that went stale in silence is not to be renewed.
        """
        answers = self._state.newest in (PeerState.ACTIVE, PeerState.HANDSHAKING)
        return self._was_in_use or answers or self.state_machine.is_trying(_now())

    def view(self) -> PeerView:
        error = self.named_endpoint.error if self.named_endpoint else None
        return PeerView(
            configured=self.configured,
            endpoint=self.endpoint,
            lookup_error=str(error or ""),
            state=self.state_machine.state(_now()),
            last_handshake_usec=self.handshake.realtime_usec,
            status=self.status,
        )

    def set_endpoint(
        self,
        configured: Endpoint | None,
        found: LookupResults,
        use: Callable[[str, bool], None],
        lookup_failed: Callable[[Error], None],
        look_up: LookUp,
    ) -> None:
        """Use this Endpoint from now on, and drop what was known of another one.

        `use`, `lookup_failed` and `look_up` are those of NamedEndpoint.
        """
        self._drop_named_endpoint()
        if configured and not is_address(configured.host):
            self.named_endpoint = NamedEndpoint(configured, found, use, lookup_failed, look_up)
            self.named_endpoint.timers = self.state_machine.timers
        if configured and (first := first_endpoint(configured, found)):
            self.endpoint = first
        if self._endpoints is None:
            self._endpoints = RateLimiter(self.endpoint)  # the first endpoint is no change

    def set_timers(self, timers: events.Timers) -> None:
        self.state_machine.timers = timers
        if self.named_endpoint:
            self.named_endpoint.timers = timers

    def handle_event(self, event: events.PeerEvent) -> None:
        match event:
            case events.Initiated():
                self._was_in_use = False
                self.state_machine.initiated(_now())
                if self.named_endpoint:
                    self.named_endpoint.initiated()
            case events.Completed():
                handshake = Handshake(event.realtime_usec, event.role)
                # Unless it was still in the pipe when the engine reported a later one.
                if self.handshake.role or handshake.realtime_usec >= self.handshake.realtime_usec:
                    self._complete(handshake, event.age)
            case events.GaveUp():
                self.state_machine.gave_up()
            case events.Expired():
                self.state_machine.expired()
            case events.Moved():
                self.endpoint, self.pending_endpoint = event.endpoint, ""
                if self.named_endpoint:
                    self.named_endpoint.moved(host_of(event.endpoint))
        self.report_changes()

    def resync(self, status: PeerStatus) -> None:
        """Apply the engine's own status, after events were lost or went to another daemon."""
        self.endpoint = status.endpoint
        if self.named_endpoint:
            self.named_endpoint.moved(host_of(status.endpoint))
        if status.last_handshake_usec not in (0, self.handshake.realtime_usec):
            self._complete(Handshake(status.last_handshake_usec), status.session_age)
        self.report_changes()

    def _complete(self, handshake: Handshake, age: float | None) -> None:
        """Record a complete handshake. Its session is `age` seconds old; None if it has ended."""
        self._was_in_use = False
        self.handshake = handshake
        self.pending_endpoint = ""  # the peer answers at the endpoint in use
        if age is None:
            self.state_machine.used = True
        else:
            self.state_machine.completed(_now(), age)
        if self.named_endpoint:
            self.named_endpoint.answered()

    def engine_ended(self) -> None:
        """Record that the engine has ended, and the session with it."""
        self._was_in_use = self.in_use
        self.status = None
        self.state_machine.gave_up()
        self.state_machine.expired()
        self.report_changes()

    def keep_in_use(self) -> None:
        """Have a peer that is in use now count as that until its next handshake begins."""
        self._was_in_use = self.in_use

    def report_changes(self) -> None:
        """Update the state, report what is due, and set the timer for the next update.

        Called after each change, and by that timer.
        """
        now = _now()
        before, state = self._state.newest, self.state_machine.state(now)
        self._state.set(state)
        self._handshakes.set(self.handshake)
        if self._endpoints:
            self._endpoints.set(self.endpoint)
        self._report(now)
        if self.named_endpoint and state is PeerState.STALE and before is not PeerState.STALE:
            self.named_endpoint.look_up_again()
        self._set_timer(now)

    def _report(self, now: float) -> None:
        key = self.configured.public_key
        handshake, state = self._handshakes.due(now), self._state.due(now)
        endpoint = self._endpoints.due(now) if self._endpoints else None
        extra = {"PEER": key}
        if handshake:
            self._log.debug("handshake, as %s", handshake.new.role or "…", extra=extra)
            self._observer.handshake(key, handshake)
        if state:
            self._log.info("%s → %s", state.old, state.new, extra=extra)
            self._observer.peer_state_changed(key, state)
        if endpoint:
            self._log.info("moved to %s", endpoint.new, extra=extra)
            self._observer.peer_endpoint_changed(key, endpoint)
        if handshake or state or endpoint:
            self._observer.peers_changed()

    def _set_timer(self, now: float) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        limiters: list[RateLimiter[Any] | None] = [self._state, self._handshakes, self._endpoints]
        times = [limiter.due_at(now) for limiter in limiters if limiter]
        times.append(self.state_machine.changes_at(now))
        known = [at for at in times if at is not None]
        if known and not self._closed:
            delay = max(0.0, min(known) - now)
            self._timer = asyncio.get_running_loop().call_later(delay, self.report_changes)

    def close(self) -> None:
        """Cancel the timer and the look-up, for good."""
        self._closed = True
        self._drop_named_endpoint()
        if self._timer:
            self._timer.cancel()

    def _drop_named_endpoint(self) -> None:
        self.pending_endpoint = ""
        if self.named_endpoint:
            self.named_endpoint.close()
            self.named_endpoint = None


def _now() -> float:
    """Return CLOCK_BOOTTIME in seconds: unlike the event loop's clock, it goes on in suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
