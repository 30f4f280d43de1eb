"""Who is told of a tunnel's changes, and of its peers'; after the fact."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Generic, Protocol, TypeVar

from wg4netnsd.errors import Error
from wg4netnsd.peers.pace import Told
from wg4netnsd.peers.peer import Handshake
from wg4netnsd.peers.state import PeerState
from wg4netnsd.systemd.journal import TunnelLog
from wg4netnsd.tunnel.lifecycle import State

T = TypeVar("T")
AnyT = TypeVar("AnyT", contravariant=True)


class Observer(Protocol[AnyT]):
    """Its type argument is the tunnel's."""

    def state_changed(self, tunnel: AnyT, new: State, old: State, reason: str) -> None: ...

    def properties_changed(self, tunnel: AnyT, names: Collection[str]) -> None: ...

    def handshake(self, tunnel: AnyT, public_key: str, told: Told[Handshake]) -> None: ...

    def peer_state_changed(self, tunnel: AnyT, public_key: str, told: Told[PeerState]) -> None: ...

    def peer_endpoint_changed(self, tunnel: AnyT, public_key: str, told: Told[str]) -> None: ...


class PeersOf(Generic[T]):
    """A peer.Listener that tells an observer, and the log, whose peers they are."""

    def __init__(
        self,
        tunnel: T,
        observer: Observer[T],
        log: TunnelLog,
        lookup_failed: Callable[[Error], None],
    ) -> None:
        self.lookup_failed = lookup_failed
        self._tunnel = tunnel
        self._observer = observer
        self._log = log

    def handshake(self, public_key: str, told: Told[Handshake]) -> None:
        self._log.debug("handshake, as %s", told.new.role or "…", extra={"PEER": public_key})
        self._observer.handshake(self._tunnel, public_key, told)

    def peer_state_changed(self, public_key: str, told: Told[PeerState]) -> None:
        self._log.info("%s → %s", told.old, told.new, extra={"PEER": public_key})
        self._observer.peer_state_changed(self._tunnel, public_key, told)

    def peer_endpoint_changed(self, public_key: str, told: Told[str]) -> None:
        self._log.info("moved to %s", told.new, extra={"PEER": public_key})
        self._observer.peer_endpoint_changed(self._tunnel, public_key, told)

    def peers_changed(self) -> None:
        self._observer.properties_changed(self._tunnel, ["peers"])
