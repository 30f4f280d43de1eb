"""A tunnel's peers: keep what the engine reports about them, and report what changed.

    engine ──events──► Peers ──► each peer's state, endpoint and handshake ──► PeerObserver
       ▲                 │
       └─── endpoints, handshakes to begin, and a request for the status when events were lost

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
from wg4netnsd.peers.endpoint import first_endpoint, host_of
from wg4netnsd.peers.peer import PeerObserver, PeerView, TunnelPeer
from wg4netnsd.peers.resolve import LookUp, LookupResults, is_address, look_up, look_up_all
from wg4netnsd.peers.state import PeerState
from wg4netnsd.systemd.journal import TunnelLog

log = logging.getLogger(__name__)

RESYNC_PAUSE: Final = 1.0
"""Seconds between two requests for the status: a peer whose packets alternate between two addresses
can keep filling the pipe, so that events are lost again and again."""


class EngineControl(Protocol):
    """The engine as its peers use it. Every request waits its turn.

    All raise EngineFailed or Timeout.
    """

    async def queue_set(self, make_request: Callable[[], bytes | None]) -> None:
        """Send the `set` that `make_request` returns when its turn has come; None sends nothing."""
        ...

    async def queue_status(self) -> uapi.DeviceStatus: ...


class Peers:
    """All peers of one tunnel, by public key."""

    def __init__(
        self,
        engine: EngineControl,
        observer: PeerObserver,
        log: TunnelLog,
        lookup_failed: Callable[[Error], None],
        paths_changed: Callable[[], None],
        look_up: LookUp = look_up,
    ) -> None:
        """`look_up` is called with the host names of endpoints, and `paths_changed` when the path
        to a peer may be another one, or have another MTU."""
        self.renewed: set[Callable[[], None]] = set()
        """Called at the first handshake after the host's network has changed."""
        self.handshaken = asyncio.Event()
        """Set once any peer has completed a handshake."""
        self.timers = events.Timers()
        self._engine = engine
        self._observer = observer
        self._log = log
        self._lookup_failed = lookup_failed
        self._look_up = look_up
        self._network_changed = False
        self._paths_changed = paths_changed
        self._peers: dict[str, TunnelPeer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._resyncing = self._must_resync = False

    # ------------------------------------------------------------ the configuration

    async def look_up(
        self, configured: Iterable[Peer], look_up: LookUp | None = None
    ) -> LookupResults:
        """Look up the host names of peers that are new or have another Endpoint. Never fails.

        By `look_up`, if it is given, as in a network that is to replace the present one.
        """
        endpoints = [c.endpoint for c in configured if c.endpoint and self._is_new(c)]
        names = (e.host for e in endpoints if not is_address(e.host))
        return await look_up_all(names, look_up or self._look_up)

    def new_endpoints(self, configured: Iterable[Peer], found: LookupResults) -> dict[str, str]:
        """Return the first ADDRESS:PORT of each peer that is new or has another Endpoint."""
        new = {
            each.public_key: first_endpoint(each.endpoint, found)
            for each in configured
            if each.endpoint and self._is_new(each)
        }
        return {key: endpoint for key, endpoint in new.items() if endpoint}

    def endpoints_after(self, configured: Iterable[Peer], found: LookupResults) -> list[str]:
        """Return the ADDRESS:PORT of every peer that would have one after configure()."""
        configured = list(configured)
        known = self.endpoints() | self.new_endpoints(configured, found)
        return [known[each.public_key] for each in configured if each.public_key in known]

    def configure(self, configured: Iterable[Peer], found: LookupResults) -> None:
        """Replace the set of peers. Peers in both sets keep everything that is known of them."""
        old, self._peers = self._peers, {}
        for each in configured:
            before = old.pop(each.public_key, None)
            peer = before or TunnelPeer(each, self.timers, self._observer, self._log)
            self._peers[each.public_key] = peer
            if before is None or before.configured.endpoint != each.endpoint:
                use = self._endpoint_setter(peer)
                peer.set_endpoint(each.endpoint, found, use, self._lookup_failed, self._look_up)
            peer.configured = each
            peer.report_changes()
        for removed in old.values():
            removed.close()

    def adopt_peers(self, configured: Iterable[Peer], status: uapi.DeviceStatus) -> None:
        """Begin with the peers of an adopted engine: their endpoints stay as it has them."""
        configured = list(configured)
        at = {each.public_key: each.endpoint for each in status.peers if each.endpoint}
        found: LookupResults = {
            each.endpoint.host: [host_of(at[each.public_key])]
            for each in configured
            if each.endpoint and each.public_key in at
        }
        self.configure(configured, found)
        self._apply_status(status)

    def _is_new(self, configured: Peer) -> bool:
        peer = self._peers.get(configured.public_key)
        return peer is None or peer.configured.endpoint != configured.endpoint

    # ------------------------------------------------------------ what is known

    def endpoints(self) -> dict[str, str]:
        """Return the ADDRESS:PORT of every peer for which one is known."""
        places = {key: peer.pending_endpoint or peer.endpoint for key, peer in self._peers.items()}
        return {key: place for key, place in places.items() if place}

    def in_use(self) -> set[str]:
        """Return the public keys of the peers with which a new engine should begin a handshake."""
        return {key for key, peer in self._peers.items() if peer.in_use}

    def __getitem__(self, public_key: str) -> PeerView:
        return self._peers[public_key].view()

    def __iter__(self) -> Iterator[str]:
        return iter(self._peers)

    def set_status(self, status: uapi.DeviceStatus) -> None:
        """Keep the counters of the engine's newest answer."""
        for each in status.peers:
            if peer := self._peers.get(each.public_key):
                peer.status = each

    # ------------------------------------------------------------ events

    def handle_event(self, event: events.Event) -> None:
        match event:
            case events.Timers():
                self.timers = event
                for peer in self._peers.values():
                    peer.set_timers(event)
            case events.Dropped():
                self._must_resync = True
                self._spawn(self._resync())
            case events.TooLarge():
                self._paths_changed()
            case _:
                if event.public_key in self._peers:  # else it was removed a moment ago
                    self._peers[event.public_key].handle_event(event)
                if isinstance(event, events.Completed):
                    self._handshake_completed()
                if isinstance(event, events.Moved):
                    self._paths_changed()

    def _handshake_completed(self) -> None:
        self.handshaken.set()
        if self._network_changed:
            self._network_changed = False
            for callback in list(self.renewed):
                callback()

    def engine_ended(self) -> None:
        """Record that the engine has ended, and every session with it."""
        self._must_resync = False
        for peer in self._peers.values():
            peer.engine_ended()

    def network_changed(self) -> None:
        """Begin a handshake with every peer in use, now that the host's network has changed."""
        self._network_changed = True
        if reachable := self.in_use() & self.endpoints().keys():
            for key in reachable:
                self._peers[key].state_machine.gave_up()  # initiations sent into the old network
            self._spawn(self._engine.queue_set(lambda: uapi.encode_initiate(reachable)))
        for peer in self._peers.values():
            if peer.named_endpoint and peer.view().state is not PeerState.ACTIVE:
                peer.named_endpoint.look_up_again(now=True)

    def keep_in_use(self) -> None:
        """Keep all peers that are in use for network_changed(), which comes later."""
        for peer in self._peers.values():
            peer.keep_in_use()

    def clock_jumped(self) -> None:
        """Update all peers after a suspend, in which the event loop's timers stood still."""
        for peer in self._peers.values():
            peer.report_changes()

    def close(self) -> None:
        for peer in self._peers.values():
            peer.close()
        for task in self._tasks:
            task.cancel()

    # ------------------------------------------------------------ requests to the engine

    def _endpoint_setter(self, peer: TunnelPeer) -> Callable[[str, bool], None]:
        """Return a function that has the engine use an address that a host name has led to."""

        def use(endpoint: str, initiate: bool) -> None:
            if endpoint != peer.endpoint:
                peer.pending_endpoint = endpoint
                self._spawn(self._engine.queue_set(lambda: make_request(endpoint, initiate)))

        def make_request(endpoint: str, initiate: bool) -> bytes | None:
            if peer.pending_endpoint != endpoint:  # it has answered, or was reconfigured
                return None
            peer.endpoint, peer.pending_endpoint = endpoint, ""
            peer.report_changes()
            self._paths_changed()
            key = peer.configured.public_key
            return uapi.encode_endpoint(key, endpoint, initiate=initiate)

        return use

    async def _resync(self) -> None:
        """Ask for the status once, however many events are lost meanwhile."""
        if self._resyncing:
            return
        self._resyncing = True
        try:
            while self._must_resync:
                self._must_resync = False
                try:
                    self._apply_status(await self._engine.queue_status())
                except Timeout:
                    self._must_resync = True
                await asyncio.sleep(RESYNC_PAUSE)
        finally:
            self._resyncing = False

    def _apply_status(self, status: uapi.DeviceStatus) -> None:
        self._paths_changed()
        for each in status.peers:
            if peer := self._peers.get(each.public_key):
                peer.resync(each)
            if each.last_handshake_usec:
                self.handshaken.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._log_errors(coroutine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _log_errors(coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except Error as error:  # the engine has ended or hangs; the next one gets everything
            log.debug("%s", error)
