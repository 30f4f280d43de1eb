"""A tunnel's engine, whichever process that is at the moment.

Never two at a time: two on one TUN silently lose packets. Whoever changes it or the interface holds
`lock`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from wg4netnsd import errors
from wg4netnsd.aio import rundir
from wg4netnsd.aio.process import Process, Vitals
from wg4netnsd.aio.tasks import first_of
from wg4netnsd.config.model import Config
from wg4netnsd.engine import uapi
from wg4netnsd.engine.engine import DEATH_TIME, Engine, Kept, Spare
from wg4netnsd.engine.events import PROTOCOL
from wg4netnsd.peers.peer import Listener
from wg4netnsd.peers.peers import Peers, Settings
from wg4netnsd.peers.resolve import Found
from wg4netnsd.systemd.fdstore import ENGINE_KINDS, Kind, Shelf
from wg4netnsd.systemd.journal import TunnelLog
from wg4netnsd.tunnel.record import Left
from wg4netnsd.tunnel.spec import Spec

MAX_MEMORY: Final = 1 << 30
"""Bytes of an engine's own; it has 1.5 MB idle, and 20 MB under 3 Gbit/s in 8 streams."""


FAILURES: Final = (
    errors.EngineFailed,
    errors.InvalidConfig,
    errors.LimitExceeded,
    errors.Timeout,
)
"""What keeps an engine from being had now, and may not keep the next one."""


class Supervised:
    """Owns the engine; `peers` is what it tells of them."""

    def __init__(
        self,
        spare: Spare,
        socket_path: Path,
        shelf: Shelf,
        listener: Listener,
        log: TunnelLog,
        changed: Callable[[Collection[str]], None],
    ) -> None:
        """`changed` gets the names of what has changed: engine_pid, public_key, listen_port."""
        self.lock = asyncio.Lock()
        self.peers = Peers(self._set, self.ask, listener)
        self.half_changed = False  # it was, and nobody knows how far
        self.pid = 0  # 0: there is none
        self.public_key = ""
        self.listen_port = 0
        self._spare = spare
        self._socket_path = socket_path
        self._shelf = shelf
        self._log = log
        self._changed = changed
        self._engine: Engine | None = None
        self._serves = False  # it has its configuration and its TUN
        self._replace = asyncio.Event()
        self._fault: errors.Error | None = None
        self._rested: Vitals | None = None  # when it was last known to answer
        self._asking = False  # check() is

    # ------------------------------------------------------------ from one engine to the next

    async def configure(self, spec: Spec, initiate: Collection[str]) -> None:
        """Start one that has all but its TUN; `stop()` ends it. Raises what went wrong."""
        self._engine = self._spare.take()
        self._engine.watch(self.peers.take, self._log)
        await self._engine.listen(self._socket_path)
        self._note_pid(self._engine.pid)
        config = spec.config
        settings = uapi.encode_set(
            config,
            mtu=spec.mtu,
            listen_port=self.listen_port or config.interface.listen_port,
            endpoints=self.peers.endpoints(),
            initiate=initiate,
        )
        try:
            status = await self._engine.configure(settings)
        except uapi.PortInUse:
            # Taken while there was no engine. If it was the kernel's choice, let it choose anew.
            self._note(self.public_key, config.interface.listen_port)
            raise
        refuse_own_key(config, status.public_key)
        self.half_changed = False
        self._note(status.public_key, status.listen_port)

    async def attach(self, tun_fd: int) -> None:
        """Have the configured one use the TUN. Raises EngineFailed, LimitExceeded, Timeout."""
        assert self._engine
        await self._engine.attach(tun_fd)
        if self._engine.is_ending:
            raise await self._engine.obituary()
        for kind, fd in zip(ENGINE_KINDS, self._engine.kept, strict=True):
            self._shelf.put(kind, fd)
        self._serves, self._rested = True, None

    async def adopt(self, left: Left, spec: Spec) -> None:
        """Take over the one that a daemon before us has left, as it runs.

        Raises EngineFailed or Timeout where that can't be; `stop()` ends what there is of it.
        """
        record, legacy = left
        self.peers.take(record.timers)
        fds = legacy.take(*ENGINE_KINDS)
        if fds is None:
            self.peers.configure(spec.config.peers, {})
            for pidfd in legacy.take(Kind.PIDFD) or ():
                await Process(pidfd).kill(DEATH_TIME)
            raise errors.EngineFailed("wireguard-go ended while there was no daemon")
        self._engine = Engine.adopt(Kept(*fds), self._socket_path)
        try:
            if record.protocol != PROTOCOL:
                raise errors.EngineFailed("wireguard-go is of another version of wg4netnsd")
            if record.change:
                raise errors.EngineFailed("wireguard-go was being changed when the daemon ended")
            status = await self._engine.status()
            refuse_own_key(spec.config, status.public_key)
        except errors.Error:
            self.peers.configure(spec.config.peers, {})
            raise
        self.peers.adopt(spec.config.peers, status)
        self._engine.watch(self.peers.take, self._log)
        self._note_pid(self._engine.pid)
        self._note(status.public_key, status.listen_port)
        self._serves, self._rested = True, None

    async def stop(self) -> None:
        """Return when it is gone. Raises EngineFailed if the kernel does not let go of it."""
        if self._engine:
            await self._engine.stop()
            self._shelf.remove(*ENGINE_KINDS)
            self._engine = None
            self._serves = False
            self._note_pid(0)
            self.peers.engine_ended()

    async def end(self) -> None:
        """As `stop()`, with `lock` not held: who holds it, and waits for an answer, gets none."""
        if self._engine:
            with contextlib.suppress(TimeoutError):  # stop() says so
                await self._engine.process.kill(DEATH_TIME)
        async with self.lock:
            await self.stop()
        rundir.remove(self._socket_path)  # also of one that ended while there was no daemon

    def replace(self, why: errors.Error | None = None) -> None:
        """Have it replaced: it failed so, or somebody asked for it."""
        self._fault = why
        self._replace.set()

    def replaced(self) -> None:
        """Who asked for it until now has been served."""
        self._fault = None
        self._replace.clear()

    async def wait_replace(self) -> None:
        await self._replace.wait()

    async def wait_ended(self) -> errors.Error | None:
        """Wait until it needs replacing. Returns why, None if it was asked for."""
        assert self._engine
        await first_of(self._engine.exited.wait(), self._replace.wait())
        return await self._engine.obituary() if self._engine.exited.is_set() else self._fault

    # ------------------------------------------------------------ while it runs

    async def change(self, old: Spec, new: Spec, found: Found, public_key: str) -> None:
        """Have it go over to another configuration, or raise why it has not; `lock` is held."""
        port = new.config.interface.listen_port
        if not self._engine or not self._serves or self._replace.is_set():
            self._note(public_key, port or self.listen_port)  # the next one's
            return
        endpoints = self.peers.new_endpoints(new.config.peers, found)
        change = uapi.encode_change(old.config, new.config, mtu=new.mtu, endpoints=endpoints)
        # The engine tells of new ones at once. Of those in both, the old is known until it is done.
        both = {peer.public_key: peer for peer in (*new.config.peers, *old.config.peers)}
        try:
            if port and port != self.listen_port:
                await self._engine.set_listen_port(port, self.listen_port)
            self.peers.configure(both.values(), found)
            status = await self._engine.configure(change)
            refuse_own_key(new.config, status.public_key)
        except uapi.PortInUse:
            raise
        except BaseException:
            self._log.warning("half changed, so the engine is replaced")
            self.half_changed = True
            self._replace.set()
            self.peers.configure(old.config.peers, {})
            raise
        self._note(status.public_key, status.listen_port)

    async def status(self) -> uapi.DeviceStatus:
        """What it knows. Raises EngineFailed, Timeout."""
        if not self._engine or not self._serves:
            raise errors.EngineFailed("the engine is not up")
        status = await self._engine.status()
        self.peers.note(status.peers)
        return status

    async def ask(self) -> uapi.DeviceStatus:
        """The same, after whatever is under way; but who is to be replaced is not waited for."""
        async with self.lock:
            asked = asyncio.ensure_future(self.status())
            try:
                await first_of(asyncio.wait([asked]), self._replace.wait())
                if not asked.done():
                    raise errors.EngineFailed("the engine is being replaced")
                return asked.result()
            finally:
                asked.cancel()

    async def _set(self, settings: Settings) -> None:
        """One change of the peers' own, after whatever is under way."""
        async with self.lock:
            text = settings()
            engine = None if self._replace.is_set() else self._engine
            if text and engine and not engine.exited.is_set():
                await engine.set(text)

    async def check(self) -> None:
        """Have it replaced if it is hung, answers rubbish or has grown out of all measure.

        It is asked only if it has worked since it last answered, or is stopped: one that has done
        nothing since can't have got stuck in it, and need not be woken up.
        """
        if not self._engine or not self._serves or self._replace.is_set() or self._asking:
            return
        engine, vitals = self._engine, self._engine.process.vitals()
        if vitals is None:
            return
        if vitals.memory > MAX_MEMORY:
            self.replace(errors.EngineFailed(f"wireguard-go uses {vitals.memory >> 20} MiB"))
        elif vitals.stopped or self._rested is None or vitals.cpu_ns != self._rested.cpu_ns:
            self._asking = True
            try:
                await self.ask()
            except (errors.EngineFailed, errors.Timeout) as error:
                if self._engine is engine and not engine.exited.is_set():
                    self.replace(error)
            finally:
                self._asking = False
            self._rested = engine.process.vitals()

    def _note(self, public_key: str, listen_port: int) -> None:
        changed = {"public_key"} if public_key != self.public_key else set()
        changed |= {"listen_port"} if listen_port != self.listen_port else set()
        self.public_key, self.listen_port = public_key, listen_port
        self._changed(changed)

    def _note_pid(self, pid: int) -> None:
        self.pid = pid
        self._changed({"engine_pid"})


def refuse_own_key(config: Config, public_key: str) -> None:
    """The engine ignores such a peer, so nobody else would say so. Raises InvalidConfig."""
    if any(peer.public_key == public_key for peer in config.peers):
        raise errors.InvalidConfig("a peer's PublicKey is the interface's own")
