"""A tunnel's peers: keep what their engine reports of them, and pass on what changed.

    engine ──events──► Peers ──► each peer's session (state), endpoint (names) ──► PeerObserver
       ▲                 │
       └─── endpoints, handshakes to begin, and one question when events were lost

Nothing here polls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Final, Protocol

from wg4netnsd.config.model import Peer
from wg4netnsd.engine import events, uapi
from wg4netnsd.errors import Error, Timeout
from wg4netnsd.peers.endpoint import first_address, host_of
from wg4netnsd.peers.peer import KnownPeer, PeerObserver, PeerView
from wg4netnsd.peers.resolve import Found, is_address, look_up_all
from wg4netnsd.peers.state import PeerState
from wg4netnsd.systemd.journal import TunnelLog

log = logging.getLogger(__name__)

RESYNC_PAUSE: Final = 1.0
"""Seconds from one question to the next: a peer whose packets alternate between two addresses can
fill the pipe for as long as it likes."""


class EngineControl(Protocol):
    """The engine, as far as its peers use it. Both wait their turn.

    Both raise EngineFailed or Timeout.
    """

    async def set(self, make_request: Callable[[], bytes | None]) -> None:
        """Send the `set` that `make_request` makes when its turn has come; None for nothing."""
        ...

    async def ask(self) -> uapi.DeviceStatus: ...


class Peers:
    """All of one tunnel, by public key."""

    def __init__(
        self,
        engine: EngineControl,
        observer: PeerObserver,
        log: TunnelLog,
        lookup_failed: Callable[[Error], None],
    ) -> None:
        self.handshaken = asyncio.Event()  # one of them has been, once
        self._engine = engine
        self._observer = observer
        self._log = log
        self._lookup_failed = lookup_failed
        self._known: dict[str, KnownPeer] = {}
        self.timers = events.Timers()
        self._tasks: set[asyncio.Task[None]] = set()
        self._resyncing = self._must_resync = False

    # ------------------------------------------------------------ the configuration

    async def look_up(self, peers: Iterable[Peer]) -> Found:
        """The host names of the peers that are new or have another Endpoint; never fails."""
        endpoints = [peer.endpoint for peer in peers if peer.endpoint and self._is_new(peer)]
        return await look_up_all(e.host for e in endpoints if not is_address(e.host))

    def new_endpoints(self, peers: Iterable[Peer], found: Found) -> dict[str, str]:
        """Where to look for those that are new or have another Endpoint than until now."""
        new = {
            peer.public_key: first_address(peer.endpoint, found)
            for peer in peers
            if peer.endpoint and self._is_new(peer)
        }
        return {key: endpoint for key, endpoint in new.items() if endpoint}

    def configure(self, peers: Iterable[Peer], found: Found) -> None:
        """From now on these are the peers; those that stay keep all that is known of them."""
        known, self._known = self._known, {}
        for peer in peers:
            key = peer.public_key
            before = known.pop(key, None)
            kept = self._known[key] = before or KnownPeer(
                peer, self.timers, self._observer, self._log
            )
            if before is None or before.configured.endpoint != peer.endpoint:
                kept.look_for(peer.endpoint, found, self._user(kept), self._lookup_failed)
            kept.configured = peer
            kept.settle()
        for gone in known.values():
            gone.close()

    def adopt(self, peers: Iterable[Peer], status: uapi.DeviceStatus) -> None:
        """These are the peers, and an engine knows them already: they stay where they are."""
        at = {each.public_key: each.endpoint for each in status.peers if each.endpoint}
        found: Found = {
            peer.endpoint.host: [host_of(at[peer.public_key])]
            for peer in peers
            if peer.endpoint and peer.public_key in at
        }
        self.configure(peers, found)
        self._take_answer(status)

    def _is_new(self, peer: Peer) -> bool:
        known = self._known.get(peer.public_key)
        return known is None or known.configured.endpoint != peer.endpoint

    # ------------------------------------------------------------ what is known

    def endpoints(self) -> dict[str, str]:
        """Where each peer was last, but those that nobody knows."""
        places = {key: known.wanted or known.endpoint for key, known in self._known.items()}
        return {key: place for key, place in places.items() if place}

    def in_use(self) -> set[str]:
        """Those that a session is wanted with."""
        return {key for key, known in self._known.items() if known.in_use}

    def __getitem__(self, public_key: str) -> PeerView:
        return self._known[public_key].view()

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def note_status(self, status: uapi.DeviceStatus) -> None:
        """Keep the counters of the engine's newest answer."""
        for peer in status.peers:
            if known := self._known.get(peer.public_key):
                known.status = peer

    # ------------------------------------------------------------ what happens

    def handle_event(self, event: events.Event) -> None:
        """Handle an event of the engine's."""
        match event:
            case events.Timers():
                self.timers = event
                for known in self._known.values():
                    known.set_timers(event)
            case events.Dropped():
                self._must_resync = True
                self._spawn(self._resync())
            case _:
                if event.public_key in self._known:  # else it has just been removed
                    self._known[event.public_key].handle_event(event)
                if isinstance(event, events.Completed):
                    self.handshaken.set()

    def engine_ended(self) -> None:
        """All sessions have ended with it."""
        self._must_resync = False
        for known in self._known.values():
            known.engine_ended()

    def network_moved(self) -> None:
        """The host's network is another: begin anew with all that are in use, and now."""
        if reachable := self.in_use() & self.endpoints().keys():
            for key in reachable:
                self._known[key].session.gave_up()  # what was sent into the old network
            self._spawn(self._engine.set(lambda: uapi.encode_initiate(reachable)))
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

    def _user(self, known: KnownPeer) -> Callable[[str, bool], None]:
        """Has the engine use an address that the peer's host name has led to."""

        def use(endpoint: str, initiate: bool) -> None:
            if endpoint != known.endpoint:
                known.wanted = endpoint
                self._spawn(self._engine.set(lambda: settings(endpoint, initiate)))

        def settings(endpoint: str, initiate: bool) -> bytes | None:
            if known.wanted != endpoint:  # it has answered, or been configured otherwise
                return None
            known.endpoint, known.wanted = endpoint, ""
            known.settle()
            key = known.configured.public_key
            return uapi.encode_endpoint(key, endpoint, initiate=initiate)

        return use

    async def _resync(self) -> None:
        """Ask once, however many events were lost meanwhile."""
        if self._resyncing:
            return
        self._resyncing = True
        try:
            while self._must_resync:
                self._must_resync = False
                try:
                    self._take_answer(await self._engine.ask())
                except Timeout:
                    self._must_resync = True
                await asyncio.sleep(RESYNC_PAUSE)
        finally:
            self._resyncing = False

    def _take_answer(self, status: uapi.DeviceStatus) -> None:
        for peer in status.peers:
            if known := self._known.get(peer.public_key):
                known.resync(peer)
            if peer.last_handshake_usec:
                self.handshaken.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._try(coroutine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _try(coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except Error as error:  # it has ended, and with it what this was about; or it hangs
            log.debug("%s", error)
