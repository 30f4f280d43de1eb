"""A tunnel's peers: what their engine tells of them is kept, and told on.

    engine ──events──► Peers ──► session (states), endpoints (names) ──► Listener
       ▲                 │
       └─── endpoints, handshakes to begin, and one question when events were lost

Nothing here polls: each peer has one timer, for when its state will change by itself or when
pace.py lets something more be told, and none while neither is to come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from wg4netnsd import events, uapi
from wg4netnsd.config import Endpoint, Peer
from wg4netnsd.endpoints import NamedEndpoint
from wg4netnsd.errors import Error
from wg4netnsd.pace import Pace, Told
from wg4netnsd.resolve import is_address, look_up_all
from wg4netnsd.session import PeerState, Session

log = logging.getLogger(__name__)


Found = dict[str, list[str] | Error]
"""Host names, and what look-ups gave."""


class Handshake(NamedTuple):
    """The newest with a peer; `role` is empty where its event was lost."""

    realtime_usec: int = 0
    role: str = ""


class PeerView(NamedTuple):
    """What is known of a peer, with an engine or without."""

    configured: Peer
    endpoint: str  # address and port; empty where unknown
    lookup_error: str  # why its host name has no address; empty where it has, or is an address
    state: PeerState
    last_handshake_usec: int  # since 1970; 0 for never
    status: uapi.PeerStatus | None  # the engine's newest answer; None where it has given none


class Listener(Protocol):
    """Who is told of peers' changes."""

    def handshake(self, public_key: str, told: Told[Handshake]) -> None: ...

    def peer_state_changed(self, public_key: str, told: Told[PeerState]) -> None: ...

    def peer_endpoint_changed(self, public_key: str, told: Told[str]) -> None: ...

    def peers_changed(self) -> None:
        """After one or more of these."""
        ...

    def lookup_failed(self, error: Error) -> None: ...


class _Known:
    """What is known of one peer. Times are CLOCK_BOOTTIME's."""

    def __init__(self, peer: Peer, first: str, timers: events.Timers, listener: Listener) -> None:
        """`first`: its endpoint, empty where unknown."""
        self.peer = peer
        self.session = Session(timers)
        self.name: NamedEndpoint | None = None
        self.endpoint = first
        self.handshake = Handshake()
        self.status: uapi.PeerStatus | None = None
        self._state = Pace(PeerState.IDLE)
        self._handshakes = Pace(Handshake())
        self._endpoints = Pace(first)  # nobody needs to be told of the first
        self._listener = listener
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
            configured=self.peer,
            endpoint=self.endpoint,
            lookup_error=str(self.name.error or "") if self.name else "",
            state=self.session.state(_now()),
            last_handshake_usec=self.handshake.realtime_usec,
            status=self.status,
        )

    def look_for(
        self,
        configured: Endpoint | None,
        first: str,
        found: Found,
        use: Callable[[Peer, str, bool], None],
    ) -> None:
        """Its Endpoint is this from now on, and `first` its address."""
        if self.name:
            self.name.close()
            self.name = None
        if configured and configured.host in found:
            self.name = NamedEndpoint(
                configured,
                lambda endpoint, initiate: use(self.peer, str(endpoint), initiate),
                self._listener.lookup_failed,
            )
            self.name.timers = self.session.timers
            self.name.start(found[configured.host])
        if first:
            self.endpoint = first

    def set_timers(self, timers: events.Timers) -> None:
        self.session.timers = timers
        if self.name:
            self.name.timers = timers

    def take(self, event: events.PeerEvent) -> None:
        match event:
            case events.Initiated():
                self._lost = False
                self.session.initiated(_now())
                if self.name:
                    self.name.initiated()
            case events.Completed():
                self.session.completed(_now(), event.age)
                self.handshake = Handshake(event.realtime_usec, event.role)
                if self.name:
                    self.name.answered()
            case events.GaveUp():
                self.session.gave_up()
            case events.Expired():
                self.session.expired()
            case events.Moved():
                self.endpoint = event.endpoint
                if self.name:
                    self.name.moved(event.endpoint.rpartition(":")[0].strip("[]"))
        self.settle()

    def engine_ended(self) -> None:
        """Its session has ended with it."""
        self._lost = self.in_use
        self.status = None
        self.session.gave_up()
        self.session.expired()
        self.settle()

    def resync(self, status: uapi.PeerStatus) -> None:
        """What the engine says when it is asked."""
        self.endpoint = status.endpoint
        if status.last_handshake_usec > self.handshake.realtime_usec:
            self.handshake = Handshake(status.last_handshake_usec)
            age = max(0.0, time.time() - status.last_handshake_usec / 1e6)
            self.session.completed(_now(), age)
            if self.name:
                self.name.answered()
        self.settle()

    def settle(self) -> None:
        """After each change, and when a timer says so: tell what is to be told now."""
        now = _now()
        before, state = self._state.newest, self.session.state(now)
        self._state.change(state)
        self._handshakes.change(self.handshake)
        self._endpoints.change(self.endpoint)
        self._tell(now)
        if self.name and state is PeerState.STALE is not before:
            self.name.look_up_again()
        self._wake_at(now)

    def _tell(self, now: float) -> None:
        key = self.peer.public_key
        handshake, state, endpoint = (
            self._handshakes.due(now),
            self._state.due(now),
            self._endpoints.due(now),
        )
        if handshake:
            self._listener.handshake(key, handshake)
        if state:
            self._listener.peer_state_changed(key, state)
        if endpoint:
            self._listener.peer_endpoint_changed(key, endpoint)
        if handshake or state or endpoint:
            self._listener.peers_changed()

    def _wake_at(self, now: float) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        paces: tuple[Pace[Any], ...] = (self._state, self._handshakes, self._endpoints)
        times = [pace.due_at(now) for pace in paces] + [self.session.changes_at(now)]
        known = [at for at in times if at is not None]
        if known and not self._closed:
            delay = max(0.0, min(known) - now)
            self._timer = asyncio.get_running_loop().call_later(delay, self.settle)

    def close(self) -> None:
        """No timer from here on."""
        self._closed = True
        if self._timer:
            self._timer.cancel()
        if self.name:
            self.name.close()


class Peers:
    """All of one tunnel, by public key."""

    def __init__(
        self,
        set_engine: Callable[[bytes], Coroutine[Any, Any, None]],
        ask_engine: Callable[[], Awaitable[uapi.DeviceStatus]],
        listener: Listener,
    ) -> None:
        """`set_engine` takes a `set` of uapi's; both raise EngineFailed or Timeout."""
        self.handshaken = asyncio.Event()  # one of them has been, once
        self._set_engine = set_engine
        self._ask_engine = ask_engine
        self._listener = listener
        self._known: dict[str, _Known] = {}
        self._timers = events.Timers()
        self._tasks: set[asyncio.Task[None]] = set()
        self._resyncing = self._must_resync = False

    # ------------------------------------------------------------ the configuration

    async def look_up(self, peers: Iterable[Peer]) -> Found:
        """The host names of the peers that are new or have another Endpoint; never fails."""
        endpoints = [peer.endpoint for peer in peers if self._is_new(peer) and peer.endpoint]
        return await look_up_all(e.host for e in endpoints if not is_address(e.host))

    def first_endpoints(self, peers: Iterable[Peer], found: Found) -> dict[str, str]:
        """Where to look for the peers that look_up() was about, but those that nobody knows."""
        endpoints = {}
        for peer in peers:
            if peer.endpoint and self._is_new(peer):
                addresses = found.get(peer.endpoint.host, [peer.endpoint.host])
                if not isinstance(addresses, Error):
                    endpoints[peer.public_key] = str(peer.endpoint._replace(host=addresses[0]))
        return endpoints

    def configure(self, peers: Iterable[Peer], found: Found) -> None:
        """From now on these are the peers; those that stay keep all that is known of them."""
        peers = list(peers)
        first = self.first_endpoints(peers, found)
        known, self._known = self._known, {}
        for peer in peers:
            key = peer.public_key
            is_new = key not in known
            kept = known.pop(key, None) or _Known(
                peer, first.get(key, ""), self._timers, self._listener
            )
            self._known[key] = kept
            if is_new or kept.peer.endpoint != peer.endpoint:
                kept.look_for(peer.endpoint, first.get(key, ""), found, self._use)
            kept.peer = peer
            kept.settle()
        for gone in known.values():
            gone.close()

    def _is_new(self, peer: Peer) -> bool:
        known = self._known.get(peer.public_key)
        return known is None or known.peer.endpoint != peer.endpoint

    # ------------------------------------------------------------ what is known

    def endpoints(self) -> dict[str, str]:
        """Where each peer was last, but those that nobody knows."""
        return {key: known.endpoint for key, known in self._known.items() if known.endpoint}

    def in_use(self) -> set[str]:
        """Those that a session is wanted with."""
        return {key for key, known in self._known.items() if known.in_use}

    def __getitem__(self, public_key: str) -> PeerView:
        return self._known[public_key].view()

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def note(self, statuses: Iterable[uapi.PeerStatus]) -> None:
        """Keep the engine's answer to a question that somebody asked."""
        for status in statuses:
            if known := self._known.get(status.public_key):
                known.status = status

    # ------------------------------------------------------------ what happens

    def take(self, event: events.Event) -> None:
        """An event of the engine's."""
        match event:
            case events.Timers():
                self._timers = event
                for known in self._known.values():
                    known.set_timers(event)
            case events.Dropped():
                self._must_resync = True
                self._spawn(self._resync())
            case _:
                if event.public_key in self._known:  # else it has just been removed
                    self._known[event.public_key].take(event)
                if isinstance(event, events.Completed):
                    self.handshaken.set()

    def engine_ended(self) -> None:
        """All sessions have ended with it."""
        for known in self._known.values():
            known.engine_ended()

    def network_moved(self) -> None:
        """The host's network is another: begin anew with all that are in use, and now."""
        if reachable := self.in_use() & self.endpoints().keys():
            for key in reachable:
                self._known[key].session.gave_up()  # what was sent into the old network
            self._set(uapi.encode_initiate(reachable))
        for known in self._known.values():
            if known.name and known.view().state is not PeerState.ACTIVE:
                known.name.look_up_again(now=True)

    def clock_moved(self) -> None:
        """Timers may be late: the machine was suspended."""
        for known in self._known.values():
            known.settle()

    def close(self) -> None:
        for known in self._known.values():
            known.close()
        for task in self._tasks:
            task.cancel()

    # ------------------------------------------------------------ what the engine is told and asked

    def _use(self, peer: Peer, endpoint: str, initiate: bool) -> None:
        """Another address of a host name's."""
        known = self._known[peer.public_key]
        if endpoint != known.endpoint:
            known.endpoint = endpoint
            self._set(uapi.encode_endpoint(peer.public_key, endpoint, initiate=initiate))
            known.settle()

    def _set(self, text: bytes) -> None:
        self._spawn(self._set_engine(text))

    async def _resync(self) -> None:
        """Ask once, however many events were lost meanwhile."""
        if self._resyncing:
            return
        self._resyncing = True
        try:
            while self._must_resync:
                self._must_resync = False
                for status in (await self._ask_engine()).peers:
                    if known := self._known.get(status.public_key):
                        known.resync(status)
                        if status.last_handshake_usec:
                            self.handshaken.set()
        finally:
            self._resyncing = False

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._try(coroutine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _try(coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except Error as error:  # it has ended, or will be found to hang: the tunnel's to mend
            log.debug("%s", error)


def _now() -> float:
    """Seconds; goes on in suspend, unlike the event loop's clock, and is never set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
