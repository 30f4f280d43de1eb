"""The events that the daemon's signals stand for, each reported once: `wg4netnsctl monitor`'s
memory.

The stream of signals begins before the snapshot is taken, so that nothing is lost in between. Some
early signals are therefore in the snapshot already: a tunnel is recognised by its time of creation,
a handshake by its time, and changes that led to the snapshot's state are skipped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from wg4netnsd import names
from wg4netnsd.ctl.client import Signal, plain

_STANDARD: Final = "org.freedesktop.DBus."
_ENDED: Final = "wg4netnsd has ended"
_DETAILS: Final = ("role", "endpoint", "last_handshake_usec", "missed")


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event to print. A field is None where it does not apply."""

    event: str
    usec: int
    """Microseconds since 1970."""
    state: str
    """The present state of its subject."""
    snapshot: bool = False
    tunnel: str | None = None
    peer: str | None = None
    new: str | None = None
    old: str | None = None
    reason: str | None = None
    error: str | None = None
    role: str | None = None
    endpoint: str | None = None
    realtime_usec: int | None = None
    last_handshake_usec: int | None = None
    missed: int | None = None
    transit: tuple[str, str] | None = None


@dataclass
class _Peer:
    """What has been reported of a peer; None if nothing has."""

    state: str | None = None
    endpoint: str | None = None
    handshake_usec: int = 0


@dataclass
class _Tunnel:
    name: str
    created_usec: int
    state: str
    error: tuple[str, ...] = ()
    peers: dict[str, _Peer] = field(default_factory=dict)


class Changes:
    """Turns snapshots and signals into events."""

    def __init__(self, wanted: Collection[str]) -> None:
        """`wanted`: the names of the tunnels to report; empty for all."""
        self._wanted = wanted
        self._running: bool | None = None
        self._tunnels: dict[str, _Tunnel] = {}

    # ------------------------------------------------------------ the daemon

    def started(self, usec: int) -> Iterator[Event]:
        if self._running is not True:
            first = self._running is None
            yield Event(event="daemon-started", usec=usec, state="running", snapshot=first)
        self._running = True

    def stopped(self, usec: int) -> Iterator[Event]:
        """The daemon has gone, and its tunnels too, perhaps without a signal."""
        for path in list(self._tunnels):
            yield from self._removed(usec, path, _ENDED)
        if self._running is not False:
            first = self._running is None
            yield Event(event="daemon-stopped", usec=usec, state="stopped", snapshot=first)
        self._running = False

    # ------------------------------------------------------------ the snapshot

    def snapshot(
        self, objects: Mapping[str, Any], usec: int, early: Sequence[Signal]
    ) -> Iterator[Event]:
        """`objects`: from GetManagedObjects. `early`: the signals received before it."""
        for path, interfaces in objects.items():
            if names.TUNNEL in interfaces:
                yield from self._found(path, plain(interfaces[names.TUNNEL]), usec)
        for signal in self._about_these(early):
            yield from self.apply(signal, early=True)

    def _found(self, path: str, properties: dict[str, Any], usec: int) -> Iterator[Event]:
        yield from self._added(path, properties, usec, snapshot=True)
        if path not in self._tunnels:
            return
        tunnel = self._tunnels[path]
        if any(properties["LastError"]):
            yield self._error(usec, tunnel, properties["LastError"], snapshot=True)
        for key, details in properties["Peers"].items():
            peer = plain(details)
            known = _Peer(peer["state"], peer["endpoint"], peer["last_handshake_usec"])
            tunnel.peers[key] = known
            yield Event(
                event="peer-state",
                usec=usec,
                state=peer["state"],
                snapshot=True,
                tunnel=tunnel.name,
                peer=key,
                new=peer["state"],
                endpoint=peer["endpoint"],
                last_handshake_usec=peer["last_handshake_usec"],
            )

    def _about_these(self, signals: Sequence[Signal]) -> Iterator[Signal]:
        """All except those about an earlier tunnel with the path of one in the snapshot."""
        begins = {
            path: i for i, signal in enumerate(signals) if (path := self._announced_tunnel(signal))
        }
        for i, signal in enumerate(signals):
            if i > begins.get(_subject(signal), -1):
                yield signal

    def _announced_tunnel(self, signal: Signal) -> str:
        """The path of the tunnel in the snapshot whose creation it announces; empty if none."""
        if signal.member != "InterfacesAdded":
            return ""
        path, interfaces, *_ = signal.body
        created = plain(interfaces.get(names.TUNNEL, {})).get("CreatedUSec")
        known = self._tunnels.get(path)
        return path if known and known.created_usec == created else ""

    # ------------------------------------------------------------ the stream

    def apply(self, signal: Signal, early: bool = False) -> Iterator[Event]:
        """The events of a signal. `early`: it may have been sent before the snapshot."""
        usec, body = signal.usec, signal.body
        tunnel = self._tunnels.get(_subject(signal))
        match signal.interface.removeprefix(_STANDARD), signal.member:
            case names.TUNNEL, member if tunnel:
                yield from self._apply_to_tunnel(usec, tunnel, member, body, early)
            case "Properties", "PropertiesChanged" if tunnel and body[0] == names.TUNNEL:
                error = plain(body[1]).get("LastError", ())
                if any(error) and not (early and error == tunnel.error):
                    yield self._error(usec, tunnel, error)
            case "ObjectManager", "InterfacesAdded" if names.TUNNEL in body[1]:
                yield from self._added(body[0], plain(body[1][names.TUNNEL]), usec)
            case "ObjectManager", "InterfacesRemoved" if names.TUNNEL in body[1]:
                yield from self._removed(usec, body[0])

    def _apply_to_tunnel(
        self, usec: int, tunnel: _Tunnel, member: str, body: tuple[Any, ...], early: bool
    ) -> Iterator[Event]:
        match member, body:
            case "StateChanged", [new, old, reason, *_]:
                if _is_news(tunnel.state, new, old, early=early):
                    yield Event(
                        event="tunnel-state",
                        usec=usec,
                        state=new,
                        tunnel=tunnel.name,
                        new=new,
                        old=old,
                        reason=reason,
                    )
                    tunnel.state = new
            case "Handshake", [key, realtime_usec, details, *_]:
                peer = tunnel.peers.setdefault(key, _Peer())
                shown = peer.handshake_usec
                if realtime_usec != shown and not (early and realtime_usec < shown):
                    yield _of_peer(
                        "handshake", usec, tunnel, key, details, realtime_usec=realtime_usec
                    )
                    peer.handshake_usec = realtime_usec
            case "PeerStateChanged", [key, new, old, details, *_]:
                peer = tunnel.peers.setdefault(key, _Peer())
                if _is_news(peer.state, new, old, _missed(details), early):
                    peer.state = new
                    yield _of_peer("peer-state", usec, tunnel, key, details, new=new, old=old)
            case "PeerEndpointChanged", [key, new, old, details, *_]:
                peer = tunnel.peers.setdefault(key, _Peer())
                if _is_news(peer.endpoint, new, old, _missed(details), early):
                    peer.endpoint = new
                    yield _of_peer("peer-endpoint", usec, tunnel, key, details, new=new, old=old)

    def _added(
        self, path: str, properties: dict[str, Any], usec: int, snapshot: bool = False
    ) -> Iterator[Event]:
        name, created, state = (properties[key] for key in ("Name", "CreatedUSec", "State"))
        known = self._tunnels.get(path)
        if (self._wanted and name not in self._wanted) or (known and known.created_usec == created):
            return
        self._tunnels[path] = _Tunnel(name, created, state)
        yield Event(
            event="tunnel-added",
            usec=usec,
            state=state,
            snapshot=snapshot,
            tunnel=name,
            new=state,
            transit=properties.get("Transit"),
        )

    def _removed(self, usec: int, path: str, reason: str | None = None) -> Iterator[Event]:
        if tunnel := self._tunnels.pop(path, None):
            yield Event(
                event="tunnel-removed",
                usec=usec,
                state="closed",
                tunnel=tunnel.name,
                old=tunnel.state,
                reason=reason,
            )

    def _error(
        self, usec: int, tunnel: _Tunnel, error: tuple[str, ...], snapshot: bool = False
    ) -> Event:
        tunnel.error = error
        name, message = error
        return Event(
            event="error",
            usec=usec,
            state="error",
            snapshot=snapshot,
            tunnel=tunnel.name,
            error=name,
            reason=message,
        )


def _is_news(shown: str | None, new: str, old: str, missed: int = 0, early: bool = False) -> bool:
    """Early changes that do not begin at the snapshot's state led to it."""
    if shown is None or missed:
        return True
    return new != shown and (old == shown or not early)


def _of_peer(
    event: str, usec: int, tunnel: _Tunnel, key: str, details: dict[str, Any], **more: Any
) -> Event:
    """An event of a peer, with the details that we know; later versions add more."""
    known = {name: value for name, value in plain(details).items() if name in _DETAILS}
    state = "active" if event == "handshake" else tunnel.peers[key].state or "idle"
    return Event(event=event, usec=usec, state=state, tunnel=tunnel.name, peer=key, **known, **more)


def _missed(details: dict[str, Any]) -> int:
    return int(plain(details).get("missed", 0))


def _subject(signal: Signal) -> str:
    """The path of the tunnel that a signal is about."""
    if signal.member in ("InterfacesAdded", "InterfacesRemoved"):
        return str(signal.body[0])
    return signal.path
