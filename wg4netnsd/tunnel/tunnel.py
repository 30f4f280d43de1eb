"""One tunnel: a namespace, its TUN, the engine on it, and the one task that runs them.

The daemon keeps its own copy of the TUN, and systemd another. So if an engine or a daemon dies, the
interface, its routes and the sockets in the namespace stay, traffic waits, and nothing leaves in
the clear. lifecycle.py draws the states.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from wg4netnsd import errors
from wg4netnsd.agent.protocol import CreateInterface
from wg4netnsd.aio.tasks import end_cancellation, first_of, log_failure
from wg4netnsd.engine import uapi
from wg4netnsd.engine.backoff import Backoff
from wg4netnsd.peers.peers import Peers
from wg4netnsd.systemd import journal
from wg4netnsd.systemd.fdstore import FdKind, FdStore
from wg4netnsd.tunnel import path, reconfigure
from wg4netnsd.tunnel.engine_slot import RETRYABLE, EngineSlot
from wg4netnsd.tunnel.forwards import Forwards
from wg4netnsd.tunnel.lifecycle import Lifecycle, State
from wg4netnsd.tunnel.lifetime import Lease, Lifetime
from wg4netnsd.tunnel.link import Link, LinkState
from wg4netnsd.tunnel.netns import Netns, NetnsId
from wg4netnsd.tunnel.observer import TunnelObserver
from wg4netnsd.tunnel.record import RecordWriter, SavedTunnel
from wg4netnsd.tunnel.resolvconf import ResolvConf
from wg4netnsd.tunnel.resources import Resources
from wg4netnsd.tunnel.sockets import TunnelSockets
from wg4netnsd.tunnel.spec import Spec
from wg4netnsd.tunnel.transit import Transit

log = logging.getLogger(__name__)

_RECORDED = {"error", "listen_port", "restart_count"}


class _InterfaceGone(Exception):
    """The end of the interface: deleted by its owner, or with its namespace."""


class Tunnel:
    """One tunnel. Owns its namespace's fd, the TUN, the engine and the lease. Closed stays closed.

    The public attributes are read-only for others; each change is reported under the attribute's
    name.
    """

    def __init__(
        self,
        spec: Spec,
        namespace: Netns,
        resources: Resources,
        transit: Transit,
        lease: Lease | None = None,
        saved: SavedTunnel | None = None,
    ) -> None:
        """Prepare a new tunnel, or one that an earlier daemon `saved`; `start()` starts it."""
        self.spec = spec
        self.created_usec = time.time_ns() // 1000
        self._log = journal.tunnel_log(log, spec.name, namespace.id)
        self.lifecycle = Lifecycle(spec.name, self._log, self._state_changed)
        self.error: errors.Error | None = None  # the newest error
        self.failure: errors.Error | None = None  # the error that ended the tunnel
        self.restart_count = 0
        self._agent = resources.agent
        self._lease = lease
        self._saved = saved
        self.link = Link(
            resources.agent, namespace, spec.interface, self._log, self._link_changed, self.close
        )
        self.sockets = TunnelSockets(resources.agent, self.link, self._log)
        directory = resources.directory / spec.name
        self.resolv_conf = ResolvConf(directory, spec.name, self._log)
        self._fd_store = saved.fds if saved else FdStore(spec.name)
        self._records = RecordWriter(self._fd_store, self)
        socket = directory / f"{spec.interface}.sock"
        self.forwards = Forwards(spec, self.sockets, self._fd_store, self._log, self._records.write)
        self.engine = EngineSlot(
            resources.spare, transit, socket, self._fd_store, self._log, self._changed
        )
        self.creators_mtu = spec.mtu_option
        self._ending = False  # the run task must not be cancelled any more
        self.at_end = contextlib.ExitStack()  # releases what belongs to the tunnel
        self._backoff = Backoff()
        self._reconfigure_lock = asyncio.Lock()  # taken before names are looked up
        if lease:
            lease.on_hangup(lambda: self.close("its lease ended"))
            self.at_end.callback(lease.close)

    def start(self, observe: Callable[[Tunnel], TunnelObserver]) -> None:
        """Start the tunnel, and report its changes to the observer that `observe` returns."""
        self._task = asyncio.create_task(self._run(), name=f"tunnel {self.spec.name}")
        self._task.add_done_callback(log_failure)
        # After that, so that what `observe` schedules runs after the task's first step.
        self._observer = observe(self)
        self.paths = path.PathWatch(self, self._log)
        told = self._observer, self._log, self.report_error, self.paths.look_again
        self.peers = Peers(self.engine, *told, self.engine.look_up)
        self.forwards.observer = self._observer
        self.engine.on_event = self.peers.handle_event

    @property
    def state(self) -> State:
        return self.lifecycle.state

    @property
    def netns_id(self) -> NetnsId:
        return self.link.netns.id

    # ------------------------------------------------------------ requests

    def close(self, reason: str) -> None:
        """Begin to close the tunnel; `wait_closed()` waits for the end. Repeats are no-ops."""
        if not self.lifecycle.close_reason:
            self.lifecycle.close_reason = reason
            # Not at once: a task that is cancelled before its first step would run no cleanup.
            asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        if not self._ending:
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Return when nothing of the tunnel is left."""
        await asyncio.wait([self._task])

    async def wait_handshake(self) -> None:
        """Return when a peer has completed a handshake.

        Raises NoSuchTunnel if the tunnel was closed; if it has failed, its last error.
        """
        ends = {State.CLOSED, State.FAILED}
        await first_of(self.peers.handshaken.wait(), self.lifecycle.wait_for(ends))
        if not self.peers.handshaken.is_set():
            failed = self.error if self.state is State.FAILED else None
            raise failed or self.lifecycle.closed_error()

    async def restart(self) -> None:
        """Replace the engine, also a failed tunnel's, and return when the new one is up.

        Raises the error that made the tunnel fail instead.
        """
        if self.state is not State.STARTING:
            self.engine.request_replacement()
        if await self.lifecycle.wait_for_next({State.UP, State.FAILED}) is State.FAILED:
            raise self.error or errors.EngineFailed("no reason given")

    async def reconfigure(self, spec: Spec, transit: Transit | None) -> None:
        """Apply another spec, and `transit` unless that is None; the next engine gets them too.

        The transit is ours if this returns. Raises the reason why everything stays as it was.
        """
        try:
            await self.lifecycle.run_while_open(self._apply(spec, transit))
        except errors.Error:
            # The old configuration is in force again when the next engine has it.
            if self.engine.half_changed and self.state is not State.FAILED:
                await self.lifecycle.wait_for_next({State.UP, State.FAILED})
            raise

    async def status(self) -> uapi.DeviceStatus:
        """Ask the engine for its status. Raises EngineFailed, Timeout."""
        if self.state is not State.UP:
            raise errors.EngineFailed(f"'{self.spec.name}' is {self.state}: its engine is not up")
        status = await self.engine.status()
        self.peers.set_status(status)
        return status

    # ------------------------------------------------------------ the run task

    async def _run(self) -> None:
        try:
            if self._saved:
                await self._adopt(self._saved)
            else:
                async with self.engine.lock:
                    await self._bring_up()
                self.lifecycle.enter_state(State.UP, "created")
            while True:
                await self._replace_engine(await self.engine.wait_replacement_due())
        except asyncio.CancelledError:
            end_cancellation()  # the tear-down has timeouts
            if not self.lifecycle.close_reason:
                return  # the daemon ends: the fd store keeps the tunnel, or it ends with us
        except _InterfaceGone:
            pass
        except errors.Error as error:
            self.failure = error
        except Exception as defect:
            self._log.exception("internal error")
            self.failure = errors.Failed(f"internal error ({type(defect).__name__}); see the log")
        self._ending = True
        if self.failure:
            self._set(error=self.failure)
            self.lifecycle.close_reason = str(self.failure)
        await self._tear_down()

    async def _bring_up(self) -> None:
        """Create the TUN and configure an engine, both at once; then attach one to the other."""
        peers = self.spec.config.peers
        pins = self.spec.lifetime is not Lifetime.NAMESPACE
        self.spec = first = path.on_path(self.spec, self.engine.path, path.literals(self.spec))
        request = CreateInterface(first.interface, first.settings, pins)
        async with self._agent.create(self.link.netns.fd, request) as asked:
            self.peers.configure(peers, await self.peers.look_up(peers))
            self.spec = path.on_path(first, self.engine.path, self.peers.endpoints().values())
            every = {peer.public_key for peer in peers} if self.spec.handshake else set()
            await self.engine.configure(self.spec, self.peers.endpoints(), every)
            self.link.set_interface(await asked.created(), pins)
            await self.engine.attach(self.link.tun_fd)
            await asked.done()
        if self.spec.mtu != first.mtu:
            await self.link.change(first.settings, self.spec.settings)
        self.paths.look_again()
        self.resolv_conf.write(self.spec.dns)
        self._store()

    async def _adopt(self, saved: SavedTunnel) -> None:
        """Adopt what an earlier daemon saved: the TUN, and its engine if that still runs."""
        record = saved.record
        self._records.start(record.serial + 1)
        self.created_usec, self.restart_count = record.created_usec, record.restart_count
        self.error = errors.by_name(*record.error) if record.error else None
        self.engine.listen_port = record.listen_port
        why = None
        peers = self.spec.config.peers
        with contextlib.closing(saved.fds) as fds:
            self.link.adopt_tun(*fds.pop_fds(FdKind.TUN) or (-1,))
            if self.link.is_gone:
                raise _InterfaceGone
            self.resolv_conf.try_write(self.spec.dns)
            self.forwards.adopt(record.forwards, fds)
            self.peers.handle_event(record.timers)
            try:
                async with self.engine.lock:
                    status = await self.engine.adopt_engine(saved, self.spec)
                    self.peers.adopt_peers(peers, status)
                    self.engine.forward_events()
            except RETRYABLE as error:
                self.peers.configure(peers, {})
                why = error
        if not why:
            self.lifecycle.enter_state(State.UP, "adopted from the last daemon")
            self.paths.look_again()
            return
        if begun := record.changing_to():
            await self.link.change_back(begun.settings, self.spec.settings)
        await self._replace_engine(why)

    async def _replace_engine(self, why: errors.Error | None) -> None:
        """Replace an engine that has ended, with as many attempts as it takes."""
        while True:
            self.engine.clear_requests()
            async with self.engine.lock:
                await self.engine.stop()
            self.peers.engine_ended()
            if self.link.is_gone:
                raise _InterfaceGone
            if why:
                self._set(error=why)
                await self._wait_before_restart(why)
            else:
                self._backoff.reset()
                half = self.engine.half_changed
                reason = "a reconfiguration failed half-way" if half else "requested"
                self.lifecycle.enter_state(State.RESTARTING, reason)
            try:
                async with self.engine.lock:
                    # The sessions are lost with the old engine, which the far ends don't know.
                    endpoints, in_use = self.peers.endpoints(), self.peers.in_use()
                    await self.engine.configure(self.spec, endpoints, in_use)
                    await self.engine.attach(self.link.tun_fd)
            except RETRYABLE as error:
                why = error
                continue
            self._records.changing_to = None
            self._set(restart_count=self.restart_count + 1)
            self.engine.clear_requests()  # also those made meanwhile
            self.lifecycle.enter_state(State.UP, "the engine is back")
            return

    async def _wait_before_restart(self, why: errors.Error) -> None:
        backoff, short = self._backoff, isinstance(why, errors.LimitExceeded)
        delay = backoff.shortage_delay() if short else backoff.crash_delay(self.lifecycle.uptime)
        if delay is None:
            self.lifecycle.enter_state(State.FAILED, str(why))
            await self.engine.wait_replacement_requested()
            self._backoff.reset()
        self.lifecycle.enter_state(State.RESTARTING, str(why) if delay is not None else "requested")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay or 0):
                await self.engine.wait_replacement_requested()

    async def _tear_down(self) -> None:
        """Remove everything; each step is safe even if what it removes was never created."""
        self.lifecycle.close_reason = self.lifecycle.close_reason or await self.link.why_gone()
        self.lifecycle.enter_state(State.STOPPING, self.lifecycle.close_reason)
        # First the record, or the next daemon would adopt the tunnel.
        self._fd_store.remove(FdKind.RECORD, FdKind.NEXT_RECORD)
        self.paths.close()
        self.peers.close()
        try:
            await self.engine.stop_now()  # waits for a cancelled change to end
        except (errors.Error, OSError) as error:
            self._log.error("%s", error)
        self.peers.engine_ended()
        self.resolv_conf.remove()
        await self.forwards.close()
        await self.sockets.close()
        await self._fd_store.clear()
        await self.link.close()
        self.at_end.close()
        self.lifecycle.enter_state(State.CLOSED, self.lifecycle.close_reason)

    # ------------------------------------------------------------ another configuration

    async def _apply(self, new: Spec, transit: Transit | None) -> None:
        async with self._reconfigure_lock:
            look_up = transit.look_up if transit else None
            found = await self.peers.look_up(new.config.peers, look_up)
            endpoints = self.peers.endpoints_after(new.config.peers, found)
            new = path.on_path(new, (transit or self.engine).path, endpoints)
            async with self.engine.lock:
                old = self.spec
                with self._records.changing(new):
                    parts = self.resolv_conf, self.link, self.peers, self.engine
                    await reconfigure.apply(old, new, found, *parts, transit)
                    self.spec = new
                    self.peers.configure(new.config.peers, found)
            await self.forwards.reconfigure(new)
        if changed := [n for n in new.VISIBLE if getattr(new, n) != getattr(old, n)]:
            self._observer.properties_changed(changed)

    async def follow_path(self, path_mtu: int) -> None:
        """Adapt the MTU to the paths to the peers, unless somebody has said one."""
        async with self._reconfigure_lock, self.engine.lock:
            if self.link.state is LinkState.DOWN:  # when it comes up, PathWatch looks again
                return
            old, new = self.spec, replace(self.spec, path_mtu=path_mtu)
            if new.mtu != old.mtu:
                self._log.info("MTU %d → %d: the path carries %d", old.mtu, new.mtu, path_mtu)
                try:
                    await self.link.change(old.settings, new.settings)
                except errors.Error as error:
                    self._log.warning("%s", error)
                    return
                await self.engine.change_mtu(new.mtu)
            self.spec = new
        self._records.write()
        if new.mtu != old.mtu:
            self._observer.properties_changed(["mtu"])

    # ------------------------------------------------------------ for the next daemon

    def _store(self) -> None:
        """Have systemd hold the tunnel's fds and its record: from now on it can be adopted."""
        self._fd_store.put(FdKind.TUN, self.link.tun_fd)
        if self.link.netns.fd >= 0:
            self._fd_store.put(FdKind.NETNS, self.link.netns.fd)
        if self._lease and self._lease.fd >= 0:  # else it ended just now
            self._fd_store.put(FdKind.LEASE, self._lease.fd)
        self._records.start(1)
        self._records.write()

    # ------------------------------------------------------------ reports of changes

    def _set(self, **values: Any) -> None:
        changed = {name for name, value in values.items() if getattr(self, name) != value}
        for name in changed:
            setattr(self, name, values[name])
        self._changed(changed)

    def _changed(self, names: Collection[str]) -> None:
        if not _RECORDED.isdisjoint(names):
            self._records.write()
        if names:
            self._observer.properties_changed(names)

    def _state_changed(self, new: State, old: State, reason: str) -> None:
        self._observer.properties_changed(["state"])
        self._observer.state_changed(new, old, reason)

    def _link_changed(self, what: str) -> None:
        self._log.warning("the namespace's owner changed the interface: %s", what)
        self._changed({"interface", "link_state"})
        self.paths.look_again()

    def report_error(self, error: errors.Error) -> None:
        """Log and report an error that does not end the tunnel."""
        self._log.warning("%s", error)
        self._set(error=error)
