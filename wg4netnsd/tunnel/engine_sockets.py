"""The UDP sockets of a tunnel's engines: the next engine goes on with those of the last one."""

from __future__ import annotations

from wg4netnsd.engine.udp import UdpSockets
from wg4netnsd.systemd.fdstore import UDP_KINDS, FdKind, FdStore
from wg4netnsd.tunnel.record import SavedTunnel
from wg4netnsd.tunnel.spec import Spec
from wg4netnsd.tunnel.transit import Transit, TransitKind


class EngineSockets:
    """The sockets, and the transit that opens them. Owns both; engines get copies."""

    def __init__(self, transit: Transit, fd_store: FdStore) -> None:
        self.transit = transit
        self._fd_store = fd_store
        self._sockets: UdpSockets | None = None  # None before the first engine
        self._stored = False

    async def open(self, wanted_port: int, last_port: int) -> UdpSockets:
        """Return the last engine's sockets, or the first engine's.

        `wanted_port` is the configuration's; with 0, the kernel chooses one unless there is a
        `last_port`. Raises as Transit.open_sockets().
        """
        if not self._sockets or wanted_port not in (0, self._sockets.port):
            self.replace(await self.transit.open_sockets(wanted_port or last_port))
        assert self._sockets
        return self._sockets

    async def open_others(
        self, wanted_port: int, last_port: int, transit: Transit | None
    ) -> UdpSockets | None:
        """Return new sockets if another port or `transit` calls for them, now the caller's.

        Raises as Transit.open_sockets().
        """
        if not transit and wanted_port in (0, last_port):
            return None
        return await (transit or self.transit).open_sockets(wanted_port)

    def replace(self, sockets: UdpSockets, transit: Transit | None = None) -> None:
        """Take over other sockets, and the transit that opened them if it is a new one."""
        if self._sockets:
            self._sockets.close()
        self._sockets = sockets
        if transit:
            self.transit.close()
            self.transit = transit
        if self._stored:
            self.store()

    def adopt(self, saved: SavedTunnel, spec: Spec) -> None:
        """Take over the sockets that an earlier daemon saved, if they are of use."""
        fds = [fd for kind in UDP_KINDS.values() for fd in saved.fds.pop_fds(kind) or ()]
        passed = spec.transit.kind is TransitKind.SOCKETS
        sockets = UdpSockets.adopt(fds, least=1 if passed else 2)
        self._stored = True
        # While the transit is being changed, they may be those of the new one.
        if sockets and saved.record.change:
            known = passed and sockets.netns_cookie == spec.transit.cookie
            if not known:
                sockets.close()
                sockets = None
        self._sockets = sockets
        if not sockets:
            self._fd_store.remove(*UDP_KINDS.values())

    def store(self) -> None:
        """Have systemd hold everything for the next daemon, now and after each change."""
        self._stored = True
        fds = self._sockets.by_family if self._sockets else {}
        stored = {kind: fds.get(family, -1) for family, kind in UDP_KINDS.items()}
        for kind, fd in {**stored, FdKind.TRANSIT: self.transit.fd}.items():
            if fd >= 0:
                self._fd_store.put(kind, fd)
            else:
                self._fd_store.remove(kind)

    def close(self) -> None:
        self.transit.close()
        if self._sockets:
            self._sockets.close()
