"""A tunnel's engine, whichever process that is at the moment.

    absent ──configure──► configured ──attach──► serving
      ▲  └────────────────adopt_engine─────────────▲  │
      │                                               │ request_replacement
      └───────────────────stop─────────────────── replacing

The process may end in any of these states. There are never two engines at a time, because two on
one TUN silently lose packets. Hold `lock` to change the engine or the interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from wg4netnsd import errors
from wg4netnsd.aio.process import Process, Vitals
from wg4netnsd.aio.tasks import first_of
from wg4netnsd.config.model import Config
from wg4netnsd.engine import events, rundir, uapi
from wg4netnsd.engine.engine import DEATH_TIME, Engine, EngineFds
from wg4netnsd.engine.spare import SpareEngine
from wg4netnsd.engine.udp import PortInUse
from wg4netnsd.peers.path_mtu import PathMtu
from wg4netnsd.systemd.fdstore import ENGINE_KINDS, FdKind, FdStore
from wg4netnsd.systemd.journal import TunnelLog
from wg4netnsd.tunnel.engine_sockets import EngineSockets
from wg4netnsd.tunnel.record import SavedTunnel
from wg4netnsd.tunnel.spec import Spec
from wg4netnsd.tunnel.transit import Transit

MAX_MEMORY: Final = 1 << 30
"""Bytes of unshared memory; an engine has 1.5 MB idle, and 20 MB at 3 Gbit/s in 8 streams."""

RETRYABLE: Final = (
    errors.EngineFailed,
    errors.InvalidConfig,
    errors.LimitExceeded,
    errors.Timeout,
)
"""The errors after which another engine may succeed."""


class SlotState(enum.Enum):
    ABSENT = enum.auto()
    CONFIGURED = enum.auto()
    """It has everything but its TUN."""
    SERVING = enum.auto()
    REPLACING = enum.auto()
    """It failed, or another one was requested."""


class EngineSlot:
    """The engine of one tunnel, and its replacements. Owns the engine and its sockets."""

    def __init__(
        self,
        spare: SpareEngine,
        transit: Transit,
        socket_path: Path,
        fd_store: FdStore,
        log: TunnelLog,
        changed: Callable[[Collection[str]], None],
    ) -> None:
        """`changed` is called with the names of changed attributes: engine_pid, public_key, ….

        `on_event` is called with each of the engine's events.
        """
        self.on_event: Callable[[events.Event], None]
        """Called with each of the engine's events; to be set before the first engine."""
        self.lock = asyncio.Lock()
        self.half_changed = False
        """Whether a reconfiguration failed and the engine may have applied a part of it."""
        self.pid = 0  # 0: no engine
        self.public_key = ""
        self.listen_port = 0
        self._spare = spare
        self._sockets = EngineSockets(transit, fd_store)
        self._socket_path = socket_path
        self._fd_store = fd_store
        self._log = log
        self._changed = changed
        self._engine: Engine | None = None
        self._serves = False
        self._replacement_wanted = asyncio.Event()
        self._fault: errors.Error | None = None
        self._vitals: Vitals | None = None  # when it last answered
        self._checking = False

    @property
    def state(self) -> SlotState:
        if self._engine is None:
            return SlotState.ABSENT
        if self._replacement_wanted.is_set():
            return SlotState.REPLACING
        return SlotState.SERVING if self._serves else SlotState.CONFIGURED

    # ------------------------------------------------------------ from one engine to the next

    async def configure(
        self, spec: Spec, endpoints: Mapping[str, str], initiate: Collection[str]
    ) -> None:
        """Start an engine and configure it; only its TUN is missing then.

        `endpoints` and `initiate` are those of uapi.encode_set(). Raises any of RETRYABLE; call
        `stop()` in any case.
        """
        wanted_port = spec.config.interface.listen_port
        try:
            sockets = await self._sockets.open(wanted_port, self.listen_port)
        except PortInUse:
            # Taken while nobody had sockets. If the kernel chose the port, it may choose anew.
            self._set_identity(self.public_key, wanted_port)
            raise
        self._engine = self._spare.take_engine()
        self._engine.forward_events(self.on_event, self._log)
        await self._engine.listen(sockets.fds, self._socket_path)
        self._set_pid(self._engine.pid)
        request = uapi.encode_set(spec.config, mtu=spec.mtu, endpoints=endpoints, initiate=initiate)
        status = await self._engine.configure(request)
        refuse_own_key(spec.config, status.public_key)
        self.half_changed = False
        self._set_identity(status.public_key, status.listen_port)

    async def attach(self, tun_fd: int) -> None:
        """Attach the configured engine to the TUN. Raises EngineFailed, LimitExceeded, Timeout."""
        assert self._engine
        await self._engine.attach(tun_fd)
        if self._engine.is_ending:
            raise await self._engine.exit_error()
        for kind, fd in zip(ENGINE_KINDS, self._engine.fds, strict=True):
            self._fd_store.put(kind, fd)
        self._sockets.store()
        self._serves, self._vitals = True, None

    async def adopt_engine(self, saved: SavedTunnel, spec: Spec) -> uapi.DeviceStatus:
        """Adopt the engine that an earlier daemon left running, and return its status.

        Its events wait for `forward_events()`. Raises EngineFailed or Timeout if it can't be
        adopted; `stop()` then ends it.
        """
        self._sockets.adopt(saved, spec)
        fds = saved.fds.pop_fds(*ENGINE_KINDS)
        if fds is None:
            for pidfd in saved.fds.pop_fds(FdKind.PIDFD) or ():
                try:
                    await Process(pidfd).kill(DEATH_TIME)
                except TimeoutError:
                    raise errors.EngineFailed("wireguard-go does not die") from None
            raise errors.EngineFailed("wireguard-go ended while there was no daemon")
        self._engine = Engine.adopt(EngineFds(*fds), self._socket_path)
        if saved.record.protocol != events.PROTOCOL:
            raise errors.EngineFailed("wireguard-go belongs to another version of wg4netnsd")
        if saved.record.change:
            raise errors.EngineFailed("wireguard-go was being reconfigured when the daemon ended")
        status = await self._engine.status()
        refuse_own_key(spec.config, status.public_key)
        self._set_pid(self._engine.pid)
        self._set_identity(status.public_key, status.listen_port)
        self._serves, self._vitals = True, None
        return status

    def forward_events(self) -> None:
        """Report the adopted engine's events from now on, and its pending ones."""
        assert self._engine
        self._engine.forward_events(self.on_event, self._log)

    async def stop(self) -> None:
        """Stop the engine; return when it is gone. Raises EngineFailed if it can't be killed."""
        if self._engine:
            await self._engine.stop()
            self._fd_store.remove(*ENGINE_KINDS)
            self._engine = None
            self._serves = False
            self._set_pid(0)

    async def stop_now(self) -> None:
        """Kill the engine without waiting for `lock`, so that its holder fails; then clean up."""
        if self._engine:
            with contextlib.suppress(TimeoutError):  # stop() raises the error
                await self._engine.process.kill(DEATH_TIME)
        async with self.lock:
            await self.stop()
            self._sockets.close()
        # There may be a socket without an engine: that may have ended while there was no daemon.
        rundir.remove_file(self._socket_path)

    def request_replacement(self, why: errors.Error | None = None) -> None:
        """Request another engine: because of `why`, or because a client asked for it."""
        self._fault = why
        self._replacement_wanted.set()

    def clear_requests(self) -> None:
        """Drop all requests for a replacement so far."""
        self._fault = None
        self._replacement_wanted.clear()

    async def wait_replacement_requested(self) -> None:
        await self._replacement_wanted.wait()

    async def wait_replacement_due(self) -> errors.Error | None:
        """Wait until the engine must be replaced; return why, or None if a client asked for it."""
        assert self._engine
        await first_of(self._engine.exited.wait(), self._replacement_wanted.wait())
        return await self._engine.exit_error() if self._engine.exited.is_set() else self._fault

    # ------------------------------------------------------------ while it runs

    async def change(
        self,
        old: Spec,
        new: Spec,
        endpoints: Mapping[str, str],
        public_key: str,
        transit: Transit | None,
    ) -> None:
        """Take the engine from one configuration to another. The caller holds `lock`.

        `public_key` is the new public key, or "" if only an engine can tell it. `transit` is a new
        transit, which is ours if this returns, or None. Raises the reason why the engine keeps the
        old configuration, or is replaced: see `half_changed`.
        """
        wanted_port = new.config.interface.listen_port
        sockets = await self._sockets.open_others(wanted_port, self.listen_port, transit)
        if not self._engine or self.state is not SlotState.SERVING:
            if sockets:
                self._sockets.replace(sockets, transit)
            # Of the next engine.
            self._set_identity(public_key, sockets.port if sockets else self.listen_port)
            return
        request = uapi.encode_change(old.config, new.config, mtu=new.mtu, endpoints=endpoints)
        try:
            if sockets:
                await self._engine.use_sockets(sockets.fds)
            status = await self._engine.configure(request)
            refuse_own_key(new.config, status.public_key)
        except BaseException:
            if sockets:
                sockets.close()
            self._log.warning("the reconfiguration failed half-way: replacing the engine")
            self.half_changed = True
            self._replacement_wanted.set()
            raise
        if sockets:
            self._sockets.replace(sockets, transit)
        self._set_identity(status.public_key, status.listen_port)

    async def look_up(self, host: str) -> list[str]:
        """Return a peer's addresses, by whoever knows them in the transit's network."""
        return await self._sockets.transit.look_up(host)

    def path(self, endpoints: Collection[str]) -> PathMtu | None:
        """Return the narrowest path to these ADDRESS:PORT; None if it is not known."""
        return self._sockets.transit.path(endpoints)

    async def change_mtu(self, mtu: int) -> None:
        """Tell the engine its interface's MTU. The caller holds `lock`.

        An engine that can't be told is being replaced, and the next one gets the tunnel's spec.
        """
        if self._engine and self.state is SlotState.SERVING:
            with contextlib.suppress(errors.EngineFailed, errors.Timeout):
                await self._engine.set(uapi.encode_mtu(mtu))

    async def status(self) -> uapi.DeviceStatus:
        """Ask the engine for its status, now. Raises EngineFailed, Timeout."""
        if not self._engine or not self._serves:
            raise errors.EngineFailed("the engine is not up")
        return await self._engine.status()

    async def queue_status(self) -> uapi.DeviceStatus:
        """Wait for `lock`, then ask the engine for its status.

        Raises EngineFailed, also if the engine is to be replaced, or Timeout.
        """
        async with self.lock:
            asked = asyncio.ensure_future(self.status())
            try:
                await first_of(asyncio.wait([asked]), self._replacement_wanted.wait())
                if not asked.done():
                    raise errors.EngineFailed("the engine is being replaced")
                return asked.result()
            finally:
                asked.cancel()

    async def queue_set(self, make_request: Callable[[], bytes | None]) -> None:
        """Wait for `lock`, then send one `set`, unless the engine is to be replaced.

        `make_request` is called then; it returns None if there is nothing to send any more.
        Raises EngineFailed, Timeout.
        """
        async with self.lock:
            request = make_request()
            engine = None if self.state is SlotState.REPLACING else self._engine
            if request and engine and not engine.exited.is_set():
                await engine.set(request)

    async def check(self) -> None:
        """Request a replacement if the engine hangs, answers wrongly or uses too much memory.

        The engine is asked for its status only if it has used CPU time since it last answered, or
        is stopped. One that has done nothing since can't have hung, and need not be woken.
        """
        if not self._engine or self.state is not SlotState.SERVING or self._checking:
            return
        engine, vitals = self._engine, self._engine.process.vitals()
        if vitals is None:
            return
        if vitals.memory > MAX_MEMORY:
            why = errors.EngineFailed(f"wireguard-go uses {vitals.memory >> 20} MiB")
            self.request_replacement(why)
        elif vitals.stopped or self._vitals is None or vitals.cpu_ns != self._vitals.cpu_ns:
            self._checking = True
            try:
                await self.queue_status()
            except (errors.EngineFailed, errors.Timeout) as error:
                if self._engine is engine and not engine.exited.is_set():
                    self.request_replacement(error)
            finally:
                self._checking = False
            self._vitals = await engine.process.vitals_at_rest()

    def _set_identity(self, public_key: str, listen_port: int) -> None:
        changed = {"public_key"} if public_key != self.public_key else set()
        changed |= {"listen_port"} if listen_port != self.listen_port else set()
        self.public_key, self.listen_port = public_key, listen_port
        self._changed(changed)

    def _set_pid(self, pid: int) -> None:
        self.pid = pid
        self._changed({"engine_pid"})


def refuse_own_key(config: Config, public_key: str) -> None:
    """Raise InvalidConfig if a peer has the interface's own key: the engine ignores it silently."""
    for line, peer in zip(config.peer_lines, config.peers, strict=True):
        if peer.public_key == public_key:
            raise errors.InvalidConfig(
                f"line {line}: PublicKey: this is the interface's own: expected the peer's"
            )
