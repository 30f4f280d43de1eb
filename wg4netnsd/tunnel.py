"""One tunnel: a namespace, its TUN, the engine on it, and the one task that keeps them together.

    starting ──► up ⇄ restarting ⇄ failed           out of `failed` by Restart() alone
        │         │        │          │
        └─────────┴────────┴──────────┴──► stopping ──► closed

The daemon keeps its own duplicate of the TUN, so an engine that dies takes nothing with it: the
interface, its routes and the sockets in the namespace stay, traffic waits, and nothing leaves in
the clear.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import select
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from wg4netnsd import errors, uapi
from wg4netnsd.agent import Agent, Request
from wg4netnsd.backoff import Backoff
from wg4netnsd.config import Config, Endpoint
from wg4netnsd.engine import Engine, Spare
from wg4netnsd.lifetime import Lifetime
from wg4netnsd.netns import Netns, provision
from wg4netnsd.resolve import resolve

log = logging.getLogger(__name__)

REJECT_AFTER_TIME: Final = 180.0  # seconds; WireGuard's paper, section 6.1


class State(enum.StrEnum):
    STARTING = "starting"
    UP = "up"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPING = "stopping"
    CLOSED = "closed"


@dataclass(frozen=True)
class Spec:
    """What a caller asked for."""

    name: str
    interface: str
    lifetime: Lifetime
    mtu: int
    config: Config


class Observer(Protocol):
    """Who is told of a tunnel's changes, after the fact."""

    def state_changed(self, tunnel: Tunnel, new: State, old: State, reason: str) -> None: ...

    def properties_changed(self, tunnel: Tunnel, names: Collection[str]) -> None: ...


class _InterfaceGone(Exception):
    """Somebody deleted the interface from inside, as its owner may."""


class Tunnel:
    """Owns its namespace's fd, the TUN, the engine and the lease. Closed stays closed.

    The public attributes are for reading; a change of one is announced under its name.
    """

    def __init__(
        self,
        spec: Spec,
        netns: Netns,
        agent: Agent,
        spare: Spare,
        directory: Path,
        observer: Observer,
    ) -> None:
        self.spec = spec
        self.netns = netns
        self.created_usec = time.time_ns() // 1000
        self.state = State.STARTING
        self.error: errors.Error | None = None  # the newest, whatever came of it
        self.failure: errors.Error | None = None  # the one that ended the tunnel
        self.public_key = ""
        self.listen_port = 0
        self.engine_pid = 0
        self.restart_count = 0
        self._agent = agent
        self._spare = spare
        self._socket_path = directory / spec.name / f"{spec.interface}.sock"
        self._observer = observer
        self._tun_fd = -1
        self._engine: Engine | None = None
        self._endpoints: dict[str, Endpoint] = {}
        self._at_end = contextlib.ExitStack()
        self._backoff = Backoff()
        self._up_since = 0.0
        self._restart_requested = asyncio.Event()
        self._waiters: dict[asyncio.Future[State], frozenset[State]] = {}
        self._close_reason = ""
        self._task = asyncio.create_task(self._run(), name=f"tunnel {spec.name}")

    # ------------------------------------------------------------ what others may ask for

    def close(self, reason: str) -> None:
        """Begin the end, in any state; `wait_closed()` waits for it. Repeats are no-ops."""
        if not self._close_reason:
            self._close_reason = reason
            # Not at once: a task that is cancelled before its first step never takes any.
            asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        if self.state not in (State.STOPPING, State.CLOSED):
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Return when nothing of the tunnel is left."""
        await asyncio.wait([self._task])

    async def wait_for_state(self, wanted: Collection[State]) -> State:
        """Return the first state that is one of `wanted`. Raises NoSuchTunnel if it was closed."""
        if self.state in wanted:
            return self.state
        return await self._next_state(wanted)

    async def _next_state(self, wanted: Collection[State]) -> State:
        if self.state is State.CLOSED:
            raise self._closed_error()
        waiter: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = frozenset(wanted)
        try:
            return await waiter
        finally:
            del self._waiters[waiter]

    def _closed_error(self) -> errors.Error:
        return errors.NoSuchTunnel(f"'{self.spec.name}' was closed: {self._close_reason}")

    async def restart(self) -> None:
        """Replace the engine, also a failed tunnel's, and return when the new one is up.

        Raises what brought it down otherwise.
        """
        if self.state is not State.STARTING:
            self._restart_requested.set()
        if await self._next_state({State.UP, State.FAILED}) is State.FAILED:
            raise self.error or errors.EngineFailed("no reason given")

    def at_end(self, callback: Callable[[], object]) -> None:
        """Have `callback` called when the tunnel ends: what was there for it can go."""
        self._at_end.callback(callback)

    async def peers(self) -> list[uapi.PeerStatus]:
        """Each peer's endpoint and counters, from the engine. Raises EngineFailed, Timeout."""
        if self._engine is None or self.state is not State.UP:
            raise errors.EngineFailed(f"'{self.spec.name}' is {self.state}, its engine is not up")
        return (await self._engine.status()).peers

    # ------------------------------------------------------------ the run task

    async def _run(self) -> None:
        try:
            await self._bring_up()
            self._enter_state(State.UP, "created")
            while True:
                why = await self._engine_ended()
                await self._bring_back(why)
        except asyncio.CancelledError:
            pass  # close(), which has said why
        except _InterfaceGone:
            self._close_reason = "the interface was deleted"
        except errors.Error as error:
            self.failure = error
        except Exception as defect:
            log.exception("tunnel %s: a defect", self.spec.name)
            self.failure = errors.Failed(f"internal error ({type(defect).__name__}); see the log")
        if self.failure:
            self._set(error=self.failure)
            self._close_reason = str(self.failure)
        await self._undo()

    async def _bring_up(self) -> None:
        """All at once: the engine takes its configuration while the agent makes the TUN."""
        spec = self.spec
        request = Request(
            interface=spec.interface,
            mtu=spec.mtu,
            addresses=[str(address) for address in spec.config.interface.addresses],
            routes=[str(network) for network in spec.config.routes()],
        )
        async with provision(self._agent, self.netns, request) as provisioning:
            engine = await self._configure_engine()
            self._tun_fd = (await provisioning.tun()).fd
            await engine.attach(self._tun_fd)
            await provisioning.configured()

    async def _configure_engine(self) -> Engine:
        """An engine that has all but its TUN; `_stop_engine()` ends it."""
        spec = self.spec
        found, failures = await resolve(spec.config.peers)
        self._endpoints |= found  # what is not found any more is where it was
        for failure in failures:
            log.warning("tunnel %s: %s", spec.name, failure)
            self._set(error=failure)
        self._engine = self._spare.take()
        await self._engine.listen(self._socket_path)
        self._set(engine_pid=self._engine.pid)
        port = self.listen_port or spec.config.interface.listen_port
        settings = uapi.encode_set(
            spec.config, mtu=spec.mtu, listen_port=port, endpoints=self._endpoints
        )
        try:
            status = await self._engine.configure(settings)
        except uapi.PortInUse:
            # Taken while there was no engine. If it was the kernel's choice, let it choose anew.
            self._set(listen_port=spec.config.interface.listen_port)
            raise
        if any(peer.public_key == status.public_key for peer in spec.config.peers):
            raise errors.InvalidConfig("a peer's PublicKey is the interface's own")
        self._set(public_key=status.public_key, listen_port=status.listen_port)
        return self._engine

    async def _engine_ended(self) -> errors.Error | None:
        """Wait until the engine needs replacing. Returns why, None if it was asked for."""
        assert self._engine
        await _first_of(self._engine.exited, self._restart_requested)
        return await self._engine.obituary() if self._engine.exited.is_set() else None

    async def _bring_back(self, why: errors.Error | None) -> None:
        """From an engine that ended to one that runs, however often that takes."""
        while True:
            self._restart_requested.clear()
            await self._stop_engine()
            if _is_gone(self._tun_fd):
                raise _InterfaceGone
            if why:
                self._set(error=why)
                await self._wait_before_restart(why)
            else:
                self._backoff.reset()
                self._enter_state(State.RESTARTING, "asked for")
            try:
                engine = await self._configure_engine()
                await engine.attach(self._tun_fd)
            except (errors.EngineFailed, errors.Timeout) as error:
                why = error
                continue
            self._set(restart_count=self.restart_count + 1)
            self._restart_requested.clear()  # who asked meanwhile has been served
            self._enter_state(State.UP, "the engine is back")
            return

    async def _wait_before_restart(self, why: errors.Error) -> None:
        uptime = time.monotonic() - self._up_since if self.state is State.UP else 0.0
        delay = self._backoff.crashed(uptime)
        if delay is None:
            self._enter_state(State.FAILED, str(why))
            await self._restart_requested.wait()
            self._backoff.reset()
        self._enter_state(State.RESTARTING, str(why) if delay is not None else "asked for")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay or 0):
                await self._restart_requested.wait()

    async def _stop_engine(self) -> None:
        if self._engine:
            await self._engine.stop()
            self._engine = None
            self._set(engine_pid=0)

    async def _undo(self) -> None:
        """Leave nothing behind; each step is safe where its counterpart never happened."""
        self._enter_state(State.STOPPING, self._close_reason)
        try:
            await self._stop_engine()
        except (errors.Error, OSError) as error:
            log.error("tunnel %s: %s", self.spec.name, error)
        if self._tun_fd >= 0:
            # The last fd's close destroys the interface, which takes the kernel tens of ms (RCU).
            # Not by blocking.call(): what callers keep waiting must not keep an interface alive.
            await asyncio.to_thread(os.close, self._tun_fd)
            self._tun_fd = -1
        self._at_end.close()
        self.netns.close()
        self._enter_state(State.CLOSED, self._close_reason)

    # ------------------------------------------------------------ the one place of each change

    def _enter_state(self, new: State, reason: str) -> None:
        old, self.state = self.state, new
        for waiter, wanted in self._waiters.items():
            if not waiter.done() and new in wanted:
                waiter.set_result(new)
            elif not waiter.done() and new is State.CLOSED:
                waiter.set_exception(self._closed_error())
        if new is State.UP:
            self._up_since = time.monotonic()
        level = logging.WARNING if new is State.FAILED else logging.INFO
        log.log(level, "tunnel %s: %s → %s: %s", self.spec.name, old, new, reason)
        if new is old:  # one more try at restarting: no edge
            return
        self._observer.properties_changed(self, ["state"])
        self._observer.state_changed(self, new, old, reason)

    def _set(self, **values: Any) -> None:
        changed = [name for name, value in values.items() if getattr(self, name) != value]
        for name in changed:
            setattr(self, name, values[name])
        if changed:
            self._observer.properties_changed(self, changed)


async def _first_of(*events: asyncio.Event) -> None:
    """Return when one of `events` is set."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _is_gone(tun_fd: int) -> bool:
    """Has the interface been deleted under its fd? (tun_chr_poll() then gives EPOLLERR.)"""
    poll = select.poll()
    poll.register(tun_fd, select.POLLIN)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def peer_state(last_handshake_usec: int, now_usec: int) -> str:
    """`idle`: none yet; `active`: the session is younger than REJECT_AFTER_TIME; else `stale`."""
    if not last_handshake_usec:
        return "idle"
    age = (now_usec - last_handshake_usec) / 1e6
    return "active" if age < REJECT_AFTER_TIME else "stale"
