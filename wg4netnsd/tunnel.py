"""One tunnel: a namespace, its TUN, the engine on it, and the one task that keeps them together.

The daemon keeps its own duplicate of the TUN, so an engine that dies takes nothing with it: the
interface, its routes and the sockets in the namespace stay, traffic waits, and nothing leaves in
the clear. lifecycle.py draws the states.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from wg4netnsd import errors, journal, netns, tun, uapi
from wg4netnsd.agent import Agent, Change, Request
from wg4netnsd.backoff import Backoff
from wg4netnsd.config import Config
from wg4netnsd.engine import Engine, Spare
from wg4netnsd.lifecycle import Lifecycle, State
from wg4netnsd.netns import Netns
from wg4netnsd.observer import Observer, PeersOf
from wg4netnsd.peers import Peers, Settings
from wg4netnsd.resolve import Found
from wg4netnsd.spec import Spec

log = logging.getLogger(__name__)


class _InterfaceGone(Exception):
    """Somebody deleted the interface from inside, as its owner may."""


class Tunnel:
    """Owns its namespace's fd, the TUN, the engine and the lease. Closed stays closed.

    The public attributes are for reading; a change of one is announced under its name.
    """

    def __init__(
        self,
        spec: Spec,
        namespace: Netns,
        agent: Agent,
        spare: Spare,
        directory: Path,
        observer: Observer[Tunnel],
    ) -> None:
        self.spec = spec
        self.netns = namespace
        self.created_usec = time.time_ns() // 1000
        self._log = journal.of_tunnel(log, spec.name, namespace.id)
        self.lifecycle = Lifecycle(spec.name, self._log, self._state_changed)
        told = PeersOf(self, observer, self._lookup_failed)
        self.peers = Peers(self._set_engine, self._ask_engine, told)
        self.error: errors.Error | None = None  # the newest, whatever came of it
        self.failure: errors.Error | None = None  # the one that ended the tunnel
        self.public_key = ""
        self.listen_port = self.engine_pid = self.restart_count = 0
        self._agent = agent
        self._spare = spare
        self._socket_path = directory / spec.name / f"{spec.interface}.sock"
        self._observer = observer
        self._tun_fd = -1
        self._engine: Engine | None = None
        self._half_changed = False  # the engine was, and nobody knows how far
        self._creators_mtu = spec.mtu_option
        self._at_end = contextlib.ExitStack()
        self._backoff = Backoff()
        self._restart_requested = asyncio.Event()
        self._changing = asyncio.Lock()  # of the interface and of the engine
        self._in_order = asyncio.Lock()  # of reconfigurations, which look names up before that
        self._changes: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._run(), name=f"tunnel {spec.name}")

    @property
    def state(self) -> State:
        return self.lifecycle.state

    # ------------------------------------------------------------ what others may ask for

    def close(self, reason: str) -> None:
        """Begin the end, in any state; `wait_closed()` waits for it. Repeats are no-ops."""
        if not self.lifecycle.close_reason:
            self.lifecycle.close_reason = reason
            # Not at once: a task that is cancelled before its first step never takes any.
            asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        if self.state not in (State.STOPPING, State.CLOSED):
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Return when nothing of the tunnel is left."""
        await asyncio.wait([self._task])

    async def wait_handshaken(self) -> None:
        """Return when a peer has completed a handshake.

        Raises NoSuchTunnel if it was closed, and what brought the engine down if it was given up.
        """
        ends = {State.CLOSED, State.FAILED}
        await _first_of(self.peers.handshaken.wait(), self.lifecycle.wait_for(ends))
        if not self.peers.handshaken.is_set():
            failed = self.error if self.state is State.FAILED else None
            raise failed or self.lifecycle.closed_error()

    async def restart(self) -> None:
        """Replace the engine, also a failed tunnel's, and return when the new one is up.

        Raises what brought it down otherwise.
        """
        if self.state is not State.STARTING:
            self._restart_requested.set()
        if await self.lifecycle.wait_for_next({State.UP, State.FAILED}) is State.FAILED:
            raise self.error or errors.EngineFailed("no reason given")

    async def reconfigure(self, config: Config, mtu_option: int | None) -> None:
        """Go over to another configuration, with an engine to come if there is none; or raise why
        the old one stays."""
        if self.lifecycle.close_reason:
            raise self.lifecycle.closed_error()
        spec = replace(self.spec, config=config, mtu_option=mtu_option or self._creators_mtu)
        change = asyncio.create_task(self._change(spec))
        self._changes.add(change)
        change.add_done_callback(self._changes.discard)
        try:
            await change
        except asyncio.CancelledError:
            if change.cancelled() and self.lifecycle.close_reason:
                raise self.lifecycle.closed_error() from None
            raise
        except errors.Error:
            # The old configuration is in force again when the engine's successor has it.
            if self._half_changed and self.state is not State.FAILED:
                await self.lifecycle.wait_for_next({State.UP, State.FAILED})
            raise

    def at_end(self, callback: Callable[[], object]) -> None:
        """Have `callback` called when the tunnel ends: what was there for it can go."""
        self._at_end.callback(callback)

    async def status(self) -> uapi.DeviceStatus:
        """What the engine knows. Raises EngineFailed, Timeout."""
        if self._engine is None or self.state is not State.UP:
            raise errors.EngineFailed(f"'{self.spec.name}' is {self.state}, its engine is not up")
        status = await self._engine.status()
        self.peers.note(status.peers)
        return status

    # ------------------------------------------------------------ the run task

    async def _run(self) -> None:
        try:
            async with self._changing:
                await self._bring_up()
            self.lifecycle.enter(State.UP, "created")
            while True:
                why = await self._engine_ended()
                await self._bring_back(why)
        except asyncio.CancelledError:
            pass  # close(), which has said why
        except _InterfaceGone:
            self.lifecycle.close_reason = "the interface was deleted"
        except errors.Error as error:
            self.failure = error
        except Exception as defect:
            self._log.exception("a defect")
            self.failure = errors.Failed(f"internal error ({type(defect).__name__}); see the log")
        if self.failure:
            self._set(error=self.failure)
            self.lifecycle.close_reason = str(self.failure)
        await self._undo()

    async def _bring_up(self) -> None:
        """All at once: the engine takes its configuration while the agent makes the TUN."""
        peers = self.spec.config.peers
        request = Request(self.spec.interface, self.spec.settings)
        async with netns.provision(self._agent, self.netns, request) as provisioning:
            self.peers.configure(peers, await self.peers.look_up(peers))
            every = {peer.public_key for peer in peers} if self.spec.handshake else set()
            engine = await self._configure_engine(every)
            self._tun_fd = (await provisioning.tun()).fd
            await engine.attach(self._tun_fd)
            await provisioning.configured()

    async def _configure_engine(self, initiate: Collection[str]) -> Engine:
        """An engine that has all but its TUN; `_stop_engine()` ends it."""
        self._engine = self._spare.take()
        self._engine.watch(self.peers.take)
        await self._engine.listen(self._socket_path)
        self._set(engine_pid=self._engine.pid)
        config = self.spec.config
        settings = uapi.encode_set(
            config,
            mtu=self.spec.mtu,
            listen_port=self.listen_port or config.interface.listen_port,
            endpoints=self.peers.endpoints(),
            initiate=initiate,
        )
        try:
            status = await self._engine.configure(settings)
        except uapi.PortInUse:
            # Taken while there was no engine. If it was the kernel's choice, let it choose anew.
            self._set(listen_port=config.interface.listen_port)
            raise
        _refuse_own_key(config, status.public_key)
        self._half_changed = False
        self._set(public_key=status.public_key, listen_port=status.listen_port)
        return self._engine

    async def _engine_ended(self) -> errors.Error | None:
        """Wait until the engine needs replacing. Returns why, None if it was asked for."""
        assert self._engine
        await _first_of(self._engine.exited.wait(), self._restart_requested.wait())
        return await self._engine.obituary() if self._engine.exited.is_set() else None

    async def _bring_back(self, why: errors.Error | None) -> None:
        """From an engine that ended to one that runs, however often that takes."""
        while True:
            self._restart_requested.clear()
            async with self._changing:
                await self._stop_engine()
            if tun.is_gone(self._tun_fd):
                raise _InterfaceGone
            if why:
                self._set(error=why)
                await self._wait_before_restart(why)
            else:
                self._backoff.reset()
                why_now = "a change of it failed half-way" if self._half_changed else "asked for"
                self.lifecycle.enter(State.RESTARTING, why_now)
            try:
                async with self._changing:
                    # Its sessions were lost with the old one, and the far ends don't know.
                    engine = await self._configure_engine(self.peers.in_use())
                    await engine.attach(self._tun_fd)
            except (errors.EngineFailed, errors.Timeout, errors.InvalidConfig) as error:
                why = error
                continue
            self._set(restart_count=self.restart_count + 1)
            self._restart_requested.clear()  # who asked meanwhile has been served
            self.lifecycle.enter(State.UP, "the engine is back")
            return

    async def _wait_before_restart(self, why: errors.Error) -> None:
        up = self.state is State.UP
        uptime = asyncio.get_running_loop().time() - self.lifecycle.since if up else 0.0
        delay = self._backoff.crashed(uptime)
        if delay is None:
            self.lifecycle.enter(State.FAILED, str(why))
            await self._restart_requested.wait()
            self._backoff.reset()
        self.lifecycle.enter(State.RESTARTING, str(why) if delay is not None else "asked for")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay or 0):
                await self._restart_requested.wait()

    async def _stop_engine(self) -> None:
        if self._engine:
            await self._engine.stop()
            self._engine = None
            self._set(engine_pid=0)
            self.peers.engine_ended()

    async def _undo(self) -> None:
        """Leave nothing behind; each step is safe where its counterpart never happened."""
        self.lifecycle.enter(State.STOPPING, self.lifecycle.close_reason)
        for change in self._changes:
            change.cancel()
        self.peers.close()
        try:
            async with self._changing:  # a cancelled change ends when the agent's child has
                await self._stop_engine()
        except (errors.Error, OSError) as error:
            self._log.error("%s", error)
        if self._tun_fd >= 0:
            # The last fd's close destroys the interface, which takes the kernel tens of ms (RCU).
            # Not by blocking.call(): what callers keep waiting must not keep an interface alive.
            await asyncio.to_thread(os.close, self._tun_fd)
            self._tun_fd = -1
        self._at_end.close()
        self.netns.close()
        self.lifecycle.enter(State.CLOSED, self.lifecycle.close_reason)

    # ------------------------------------------------------------ another configuration

    async def _change(self, new: Spec) -> None:
        """Each step undoes itself if it fails, and those before it if a later one does."""
        async with contextlib.AsyncExitStack() as turn:
            await turn.enter_async_context(self._in_order)
            found = await self.peers.look_up(new.config.peers)
            await turn.enter_async_context(self._changing)
            old = self.spec
            key_stays = new.config.interface.private_key == old.config.interface.private_key
            public_key = self.public_key if key_stays else ""  # which only an engine can tell
            _refuse_own_key(new.config, public_key)
            if (name := tun.name(self._tun_fd)) != new.interface:
                what = f"was renamed to '{name}'" if name else "is gone"
                raise errors.TunFailed(f"the interface '{new.interface}' {what}")
            there = Change(new.interface, old.settings, new.settings)
            await netns.change(self._agent, self.netns, there)
            try:
                await self._change_engine(old, new, found, public_key)
            except BaseException:
                back = Change(new.interface, new.settings, old.settings)
                try:
                    await netns.change(self._agent, self.netns, back)
                except errors.Error as second:
                    self._log.error("the interface is half changed: %s", second)
                raise
            self.spec = new
            self.peers.configure(new.config.peers, found)
        if changed := [n for n in new.VISIBLE if getattr(new, n) != getattr(old, n)]:
            self._observer.properties_changed(self, changed)

    async def _change_engine(self, old: Spec, new: Spec, found: Found, public_key: str) -> None:
        port = new.config.interface.listen_port
        if self._engine is None or self.state is not State.UP or self._half_changed:
            self._set(public_key=public_key, listen_port=port or self.listen_port)  # the next one's
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
            _refuse_own_key(new.config, status.public_key)
        except uapi.PortInUse:
            raise
        except BaseException:
            self._log.warning("half changed, so its engine is replaced")
            self._half_changed = True
            self._restart_requested.set()
            self.peers.configure(old.config.peers, {})
            raise
        self._set(public_key=status.public_key, listen_port=status.listen_port)

    async def _set_engine(self, settings: Settings) -> None:
        """One change of the peers' own, after whatever is under way."""
        async with self._changing:
            text = settings()
            engine = None if self._restart_requested.is_set() else self._engine
            if text and engine and not engine.exited.is_set():
                await engine.set(text)

    async def _ask_engine(self) -> uapi.DeviceStatus:
        async with self._changing:
            if self._engine is None:
                raise errors.EngineFailed("there is none")
            return await self._engine.status()

    # ------------------------------------------------------------ the one place of each change

    def _set(self, **values: Any) -> None:
        changed = [name for name, value in values.items() if getattr(self, name) != value]
        for name in changed:
            setattr(self, name, values[name])
        if changed:
            self._observer.properties_changed(self, changed)

    def _state_changed(self, new: State, old: State, reason: str) -> None:
        self._observer.properties_changed(self, ["state"])
        self._observer.state_changed(self, new, old, reason)

    def _lookup_failed(self, error: errors.Error) -> None:
        self._log.warning("%s", error)
        self._set(error=error)


async def _first_of(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Return when one of them has; the others are cancelled."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _refuse_own_key(config: Config, public_key: str) -> None:
    """The engine ignores such a peer, so nobody else would say so."""
    if any(peer.public_key == public_key for peer in config.peers):
        raise errors.InvalidConfig("a peer's PublicKey is the interface's own")
