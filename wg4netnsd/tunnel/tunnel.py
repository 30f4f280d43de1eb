"""One tunnel: a namespace, its TUN, the engine on it, and the one task that keeps them together.

The daemon keeps its own duplicate of the TUN, and systemd another, so an engine or a daemon that
dies takes nothing with it: the interface, its routes and the sockets in the namespace stay, traffic
waits, and nothing leaves in the clear. lifecycle.py draws the states.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from wg4netnsd import errors
from wg4netnsd.agent.client import Agent
from wg4netnsd.agent.protocol import CreateInterface
from wg4netnsd.aio.tasks import first_of
from wg4netnsd.config.model import Config
from wg4netnsd.engine import uapi
from wg4netnsd.engine.backoff import Backoff
from wg4netnsd.engine.engine import Spare
from wg4netnsd.peers.peers import Peers
from wg4netnsd.systemd import journal
from wg4netnsd.systemd.fdstore import Kind, Shelf
from wg4netnsd.tunnel.engine_slot import FAILURES, Supervised, refuse_own_key
from wg4netnsd.tunnel.lifecycle import Lifecycle, State
from wg4netnsd.tunnel.lifetime import Lease, Lifetime
from wg4netnsd.tunnel.link import Link
from wg4netnsd.tunnel.netns import Netns, NetnsId
from wg4netnsd.tunnel.observer import Observer, PeersOf
from wg4netnsd.tunnel.record import Left, Record
from wg4netnsd.tunnel.resolvconf import ResolvConf
from wg4netnsd.tunnel.spec import Spec

log = logging.getLogger(__name__)

_RECORDED = {"error", "listen_port", "restart_count"}


class Means(NamedTuple):
    """What all tunnels share."""

    agent: Agent
    spare: Spare
    directory: Path  # in which each has its own


class _InterfaceGone(Exception):
    """It, or the namespace around it, has ended; its owner may delete it."""


class Tunnel:
    """Owns its namespace's fd, the TUN, the engine and the lease. Closed stays closed.

    The public attributes are for reading; a change of one is announced under its name.
    """

    def __init__(
        self,
        spec: Spec,
        namespace: Netns,
        means: Means,
        observer: Observer[Tunnel],
        lease: Lease | None = None,
        left: Left | None = None,
    ) -> None:
        """A new one, or one to take over with all that is `left` of it."""
        self.spec = spec
        self.created_usec = time.time_ns() // 1000
        self._log = journal.of_tunnel(log, spec.name, namespace.id)
        self.lifecycle = Lifecycle(spec.name, self._log, self._state_changed)
        self.error: errors.Error | None = None  # the newest, whatever came of it
        self.failure: errors.Error | None = None  # the one that ended the tunnel
        self.restart_count = 0
        self._means = means
        self._observer = observer
        self._lease = lease
        self.link = Link(
            means.agent, namespace, spec.interface, self._log, self._link_changed, self.close
        )
        self.resolv_conf = ResolvConf(means.directory / spec.name, spec.name, self._log)
        self._shelf = left.legacy if left else Shelf(spec.name)
        self._serial = 0  # of the record that the shelf has; 0: none yet
        self.engine = Supervised(
            means.spare,
            means.directory / spec.name / f"{spec.interface}.sock",
            self._shelf,
            PeersOf(self, observer, self._log, self.note),
            self._log,
            self._changed,
        )
        self._creators_mtu = spec.mtu_option
        self._ending = False  # and not to be disturbed any more
        self._at_end = contextlib.ExitStack()
        self._backoff = Backoff()
        self._in_order = asyncio.Lock()  # reconfigurations, which look names up before their turn
        self._changing_to: Spec | None = None
        if lease:
            lease.watch(lambda: self.close("its lease ended"))
            self._at_end.callback(lease.close)
        self._task = asyncio.create_task(self._run(left), name=f"tunnel {spec.name}")

    @property
    def state(self) -> State:
        return self.lifecycle.state

    @property
    def netns_id(self) -> NetnsId:
        return self.link.netns.id

    @property
    def peers(self) -> Peers:
        return self.engine.peers

    # ------------------------------------------------------------ what others may ask for

    def close(self, reason: str) -> None:
        """Begin the end, in any state; `wait_closed()` waits for it. Repeats are no-ops."""
        if not self.lifecycle.close_reason:
            self.lifecycle.close_reason = reason
            # Not at once: a task that is cancelled before its first step never takes any.
            asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        if not self._ending:
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Return when nothing of the tunnel is left."""
        await asyncio.wait([self._task])

    async def wait_handshaken(self) -> None:
        """Return when a peer has completed a handshake.

        Raises NoSuchTunnel if it was closed, and what brought the engine down if it was given up.
        """
        ends = {State.CLOSED, State.FAILED}
        await first_of(self.peers.handshaken.wait(), self.lifecycle.wait_for(ends))
        if not self.peers.handshaken.is_set():
            failed = self.error if self.state is State.FAILED else None
            raise failed or self.lifecycle.closed_error()

    async def restart(self) -> None:
        """Replace the engine, also a failed tunnel's, and return when the new one is up.

        Raises what brought it down otherwise.
        """
        if self.state is not State.STARTING:
            self.engine.replace()
        if await self.lifecycle.wait_for_next({State.UP, State.FAILED}) is State.FAILED:
            raise self.error or errors.EngineFailed("no reason given")

    async def reconfigure(self, config: Config, mtu_option: int | None) -> None:
        """Go over to another configuration, with an engine to come if there is none; or raise why
        the old one stays."""
        spec = replace(self.spec, config=config, mtu_option=mtu_option or self._creators_mtu)
        try:
            await self.lifecycle.run(self._change(spec))
        except errors.Error:
            # The old configuration is in force again when the engine's successor has it.
            if self.engine.half_changed and self.state is not State.FAILED:
                await self.lifecycle.wait_for_next({State.UP, State.FAILED})
            raise

    def at_end(self, callback: Callable[[], object]) -> None:
        """Have `callback` called when the tunnel ends: what was there for it can go."""
        self._at_end.callback(callback)

    async def status(self) -> uapi.DeviceStatus:
        """What the engine knows. Raises EngineFailed, Timeout."""
        if self.state is not State.UP:
            raise errors.EngineFailed(f"'{self.spec.name}' is {self.state}, its engine is not up")
        return await self.engine.status()

    def open_netns(self) -> int:
        """An fd of the namespace, the caller's. Raises NoSuchTunnel, TunFailed."""
        if self.state is State.CLOSED:
            raise self.lifecycle.closed_error()
        with self.link.entrance() as entrance:
            return os.dup(entrance.fd)

    # ------------------------------------------------------------ the run task

    async def _run(self, left: Left | None) -> None:
        try:
            if left:
                await self._take_over(left)
            else:
                async with self.engine.lock:
                    await self._bring_up()
                self.lifecycle.enter(State.UP, "created")
            while True:
                await self._bring_back(await self.engine.wait_ended())
        except asyncio.CancelledError:
            if not self.lifecycle.close_reason:
                return  # the daemon ends, not the tunnel: the fd store has it, or it goes with us
        except _InterfaceGone:
            pass
        except errors.Error as error:
            self.failure = error
        except Exception as defect:
            self._log.exception("a defect")
            self.failure = errors.Failed(f"internal error ({type(defect).__name__}); see the log")
        self._ending = True
        if self.failure:
            self._set(error=self.failure)
            self.lifecycle.close_reason = str(self.failure)
        await self._undo()

    async def _bring_up(self) -> None:
        """All at once: the engine takes its configuration while the agent makes the TUN."""
        peers = self.spec.config.peers
        pins = self.spec.lifetime is not Lifetime.NAMESPACE
        request = CreateInterface(self.spec.interface, self.spec.settings, pins)
        async with self._means.agent.create(self.link.netns.fd, request) as asked:
            self.peers.configure(peers, await self.peers.look_up(peers))
            every = {peer.public_key for peer in peers} if self.spec.handshake else set()
            await self.engine.configure(self.spec, every)
            self.link.hold(await asked.created(), pins)
            await self.engine.attach(self.link.tun_fd)
            await asked.done()
        self.resolv_conf.write(self.spec.dns)
        self._store()

    async def _take_over(self, left: Left) -> None:
        """What a daemon before us has left, its engine included, as it runs."""
        record = left.record
        self._serial = record.serial + 1
        self.created_usec, self.restart_count = record.created_usec, record.restart_count
        self.error = errors.named(*record.error) if record.error else None
        self.engine.listen_port = record.listen_port
        why = None
        with contextlib.closing(left.legacy) as legacy:
            self.link.adopt(*legacy.take(Kind.TUN) or (-1,))
            if self.link.is_gone:
                raise _InterfaceGone
            self.resolv_conf.write_back(self.spec.dns)
            try:
                async with self.engine.lock:
                    await self.engine.adopt(left, self.spec)
            except FAILURES as error:
                why = error
        if not why:
            self.lifecycle.enter(State.UP, "taken over from the daemon before")
            return
        if begun := record.changing_to():
            await self.link.change_back(begun.settings, self.spec.settings)
        await self._bring_back(why)

    async def _bring_back(self, why: errors.Error | None) -> None:
        """From an engine that ended to one that runs, however often that takes."""
        while True:
            self.engine.replaced()
            async with self.engine.lock:
                await self.engine.stop()
            if self.link.is_gone:
                raise _InterfaceGone
            if why:
                self._set(error=why)
                await self._wait_before_restart(why)
            else:
                self._backoff.reset()
                half = self.engine.half_changed
                reason = "a change of it failed half-way" if half else "asked for"
                self.lifecycle.enter(State.RESTARTING, reason)
            try:
                async with self.engine.lock:
                    # Its sessions were lost with the old one, and the far ends don't know.
                    await self.engine.configure(self.spec, self.peers.in_use())
                    await self.engine.attach(self.link.tun_fd)
            except FAILURES as error:
                why = error
                continue
            self._changing_to = None
            self._set(restart_count=self.restart_count + 1)
            self.engine.replaced()  # who asked meanwhile has been served
            self.lifecycle.enter(State.UP, "the engine is back")
            return

    async def _wait_before_restart(self, why: errors.Error) -> None:
        backoff, lacking = self._backoff, isinstance(why, errors.LimitExceeded)
        delay = backoff.lacking() if lacking else backoff.crashed(self.lifecycle.uptime)
        if delay is None:
            self.lifecycle.enter(State.FAILED, str(why))
            await self.engine.wait_replace()
            self._backoff.reset()
        self.lifecycle.enter(State.RESTARTING, str(why) if delay is not None else "asked for")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay or 0):
                await self.engine.wait_replace()

    async def _undo(self) -> None:
        """Leave nothing behind; each step is safe where its counterpart never happened."""
        self.lifecycle.close_reason = self.lifecycle.close_reason or await self.link.why_gone()
        self.lifecycle.enter(State.STOPPING, self.lifecycle.close_reason)
        self._shelf.remove(Kind.RECORD, Kind.NEXT_RECORD)  # or the next daemon would go on with it
        self.peers.close()
        try:
            await self.engine.end()  # a cancelled change lets go of it when the agent's child has
        except (errors.Error, OSError) as error:
            self._log.error("%s", error)
        self.resolv_conf.remove()
        await self._shelf.clear()
        await self.link.close()
        self._at_end.close()
        self.lifecycle.enter(State.CLOSED, self.lifecycle.close_reason)

    # ------------------------------------------------------------ another configuration

    async def _change(self, new: Spec) -> None:
        """Each step undoes itself if it fails, and those before it if a later one does."""
        async with contextlib.AsyncExitStack() as turn:
            await turn.enter_async_context(self._in_order)
            found = await self.peers.look_up(new.config.peers)
            await turn.enter_async_context(self.engine.lock)
            old = self.spec
            key_stays = new.config.interface.private_key == old.config.interface.private_key
            # Which only an engine can tell of another private key.
            public_key = self.engine.public_key if key_stays else ""
            refuse_own_key(new.config, public_key)
            turn.enter_context(self._begun(new))
            turn.enter_context(self.resolv_conf.changed(old.dns, new.dns))
            await turn.enter_async_context(self.link.changed(old.settings, new.settings))
            await self.engine.change(old, new, found, public_key)
            self.spec = new
            self.peers.configure(new.config.peers, found)
        if changed := [n for n in new.VISIBLE if getattr(new, n) != getattr(old, n)]:
            self._observer.properties_changed(self, changed)

    @contextlib.contextmanager
    def _begun(self, new: Spec) -> Iterator[None]:
        """Whoever takes over in this block, or while the engine is half changed, knows of it."""
        self._changing_to = new
        self._record()
        try:
            yield
        finally:
            if not self.engine.half_changed:
                self._changing_to = None
            self._record()

    # ------------------------------------------------------------ for the next daemon

    def _store(self) -> None:
        """Have systemd hold all that the tunnel consists of; from now on it can be taken over."""
        self._shelf.put(Kind.TUN, self.link.tun_fd)
        if self.link.netns.fd >= 0:
            self._shelf.put(Kind.NETNS, self.link.netns.fd)
        if self._lease and self._lease.fd >= 0:  # else it has just ended
            self._shelf.put(Kind.LEASE, self._lease.fd)
        self._serial = 1
        self._record()

    def _record(self) -> None:
        if not self._serial:
            return  # what isn't complete is not to be taken over
        record = Record.of(
            self.spec,
            self._changing_to,
            serial=self._serial,
            netns=self.netns_id,
            created_usec=self.created_usec,
            listen_port=self.engine.listen_port,
            restart_count=self.restart_count,
            error=(self.error.short_name, self.error.text) if self.error else None,
            timers=self.peers.timers,
        )
        self._shelf.put_record(record.encode())
        self._serial += 1

    # ------------------------------------------------------------ the one place of each change

    def _set(self, **values: Any) -> None:
        changed = {name for name, value in values.items() if getattr(self, name) != value}
        for name in changed:
            setattr(self, name, values[name])
        self._changed(changed)

    def _changed(self, names: Collection[str]) -> None:
        if not names:
            return
        if not _RECORDED.isdisjoint(names):
            self._record()
        self._observer.properties_changed(self, names)

    def _state_changed(self, new: State, old: State, reason: str) -> None:
        self._observer.properties_changed(self, ["state"])
        self._observer.state_changed(self, new, old, reason)

    def _link_changed(self, what: str) -> None:
        self._log.warning("%s by its owner", what)
        self._changed({"interface", "link_state"})

    def note(self, error: errors.Error) -> None:
        """What does not end it, but is to be known."""
        self._log.warning("%s", error)
        self._set(error=error)
