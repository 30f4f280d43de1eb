"""What is known of one peer: its state, its endpoint, its newest handshake, and who was told.

It has one timer, for when its state will change by itself or when pace.py lets something more be
told, and none while neither is to come.
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
from wg4netnsd.peers.endpoint import NamedEndpoint, first_address, host_of
from wg4netnsd.peers.pace import Pace, Report
from wg4netnsd.peers.resolve import Found, is_address
from wg4netnsd.peers.state import PeerState, Session
from wg4netnsd.systemd.journal import TunnelLog


@dataclass(frozen=True)
class Handshake:
    """The newest with a peer; the same one is known again by its time."""

    realtime_usec: int = 0  # since 1970; 0 for never
    role: str = field(default="", compare=False)  # empty where its event was lost


class PeerView(NamedTuple):
    """What is known of a peer, with an engine or without."""

    configured: Peer
    endpoint: str  # address and port; empty where unknown
    lookup_error: str  # why the last look-up of its host name failed, until it answers
    state: PeerState
    last_handshake_usec: int  # since 1970; 0 for never
    status: PeerStatus | None  # the engine's newest answer; None where it has given none


class PeerObserver(Protocol):
    """The interface through which peers report their changes."""

    def handshake(self, public_key: str, report: Report[Handshake]) -> None: ...

    def peer_state_changed(self, public_key: str, report: Report[PeerState]) -> None: ...

    def peer_endpoint_changed(self, public_key: str, report: Report[str]) -> None: ...

    def peers_changed(self) -> None:
        """Called after one or more of these."""
        ...


class KnownPeer:
    """One of a tunnel's peers. Times are CLOCK_BOOTTIME's."""

    def __init__(
        self,
        configured: Peer,
        timers: events.Timers,
        observer: PeerObserver,
        log: logging.Logger | TunnelLog,
    ) -> None:
        self.configured = configured
        self.session = Session(timers)
        self.name: NamedEndpoint | None = None
        self.endpoint = ""
        self.wanted = ""
        """An address of its host name's that the engine is still to be told; empty for none."""
        self.handshake = Handshake()
        self.status: PeerStatus | None = None
        self._state = Pace(PeerState.IDLE)
        self._handshakes = Pace(Handshake())
        self._endpoints: Pace[str] | None = None  # until there is a first one to begin with
        self._observer = observer
        self._log = log
        self._timer: asyncio.TimerHandle | None = None
        self._lost = False
        self._closed = False

    @property
    def in_use(self) -> bool:
        """Was it, when its state was last looked at, or when its engine ended?

        Then a session is wanted. One that went stale in silence is not to be woken.
        """
        answers = self._state.newest in (PeerState.ACTIVE, PeerState.HANDSHAKING)
        return self._lost or answers or self.session.trying(_now())

    def view(self) -> PeerView:
        return PeerView(
            configured=self.configured,
            endpoint=self.endpoint,
            lookup_error=str(self.name.error or "") if self.name else "",
            state=self.session.state(_now()),
            last_handshake_usec=self.handshake.realtime_usec,
            status=self.status,
        )

    def look_for(
        self,
        configured: Endpoint | None,
        found: Found,
        use: Callable[[str, bool], None],
        lookup_failed: Callable[[Error], None],
    ) -> None:
        """Take this Endpoint from now on, and forget what is known of another one."""
        self._forget_name()
        if configured and not is_address(configured.host):
            self.name = NamedEndpoint(configured, found, use, lookup_failed)
            self.name.timers = self.session.timers
        if configured and (first := first_address(configured, found)):
            self.endpoint = first
        if self._endpoints is None:
            self._endpoints = Pace(self.endpoint)  # nobody needs to be told of the first

    def set_timers(self, timers: events.Timers) -> None:
        self.session.timers = timers
        if self.name:
            self.name.timers = timers

    def handle_event(self, event: events.PeerEvent) -> None:
        match event:
            case events.Initiated():
                self._lost = False
                self.session.initiated(_now())
                if self.name:
                    self.name.initiated()
            case events.Completed():
                handshake = Handshake(event.realtime_usec, event.role)
                # Not if it was still in the pipe when the engine told of a later one.
                if self.handshake.role or handshake.realtime_usec >= self.handshake.realtime_usec:
                    self._complete(handshake, event.age)
            case events.GaveUp():
                self.session.gave_up()
            case events.Expired():
                self.session.expired()
            case events.Moved():
                self.endpoint, self.wanted = event.endpoint, ""
                if self.name:
                    self.name.moved(host_of(event.endpoint))
        self.settle()

    def resync(self, status: PeerStatus) -> None:
        """What the engine says when it is asked, as events were lost or went to another daemon."""
        self.endpoint = status.endpoint
        if self.name:
            self.name.moved(host_of(status.endpoint))
        if status.last_handshake_usec not in (0, self.handshake.realtime_usec):
            self._complete(Handshake(status.last_handshake_usec), status.session_age)
        self.settle()

    def _complete(self, handshake: Handshake, age: float | None) -> None:
        """`age`: its session's in seconds, None if that has ended already."""
        self._lost = False
        self.handshake = handshake
        self.wanted = ""  # it answers where it is
        if age is None:
            self.session.used = True
        else:
            self.session.completed(_now(), age)
        if self.name:
            self.name.answered()

    def engine_ended(self) -> None:
        """Its session has ended with it."""
        self._lost = self.in_use
        self.status = None
        self.session.gave_up()
        self.session.expired()
        self.settle()

    def settle(self) -> None:
        """After each change, and when a timer says so: tell what is to be told now."""
        now = _now()
        before, state = self._state.newest, self.session.state(now)
        self._state.change(state)
        self._handshakes.change(self.handshake)
        if self._endpoints:
            self._endpoints.change(self.endpoint)
        self._report(now)
        if self.name and state is PeerState.STALE and before is not PeerState.STALE:
            self.name.look_up_again()
        self._wake_at(now)

    def _report(self, now: float) -> None:
        key = self.configured.public_key
        handshake, state = self._handshakes.due(now), self._state.due(now)
        endpoint = self._endpoints.due(now) if self._endpoints else None
        about = {"PEER": key}
        if handshake:
            self._log.debug("handshake, as %s", handshake.new.role or "…", extra=about)
            self._observer.handshake(key, handshake)
        if state:
            self._log.info("%s → %s", state.old, state.new, extra=about)
            self._observer.peer_state_changed(key, state)
        if endpoint:
            self._log.info("moved to %s", endpoint.new, extra=about)
            self._observer.peer_endpoint_changed(key, endpoint)
        if handshake or state or endpoint:
            self._observer.peers_changed()

    def _wake_at(self, now: float) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        paces: list[Pace[Any]] = [p for p in (self._state, self._handshakes, self._endpoints) if p]
        times = [pace.due_at(now) for pace in paces] + [self.session.changes_at(now)]
        known = [at for at in times if at is not None]
        if known and not self._closed:
            delay = max(0.0, min(known) - now)
            self._timer = asyncio.get_running_loop().call_later(delay, self.settle)

    def close(self) -> None:
        """No timer and no look-up from here on."""
        self._closed = True
        self._forget_name()
        if self._timer:
            self._timer.cancel()

    def _forget_name(self) -> None:
        self.wanted = ""
        if self.name:
            self.name.close()
            self.name = None


def _now() -> float:
    """Seconds; goes on in suspend, unlike the event loop's clock, and is never set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
