"""A tunnel's forwards, which one gateway serves.

The daemon makes the listeners and keeps a copy of each, and systemd another. So while a gateway is
replaced, or there is no daemon, clients wait in the listeners' queues and none is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Callable, Collection, Iterator
from typing import Final, Protocol

from wg4netnsd import errors
from wg4netnsd.aio.tasks import finish, log_failure
from wg4netnsd.gateway.protocol import Counters, ForwardAdded, RemoveForward, SetResolvers
from wg4netnsd.systemd.fdstore import GATEWAY_KINDS, FdStore, InheritedFds, listener_key
from wg4netnsd.systemd.journal import TunnelLog
from wg4netnsd.tunnel import listeners
from wg4netnsd.tunnel.forward import Forward, ForwardSpec
from wg4netnsd.tunnel.gateway import Gateway, GatewayFds, GatewayGone
from wg4netnsd.tunnel.gateway_slot import FAILURES, GatewaySlot
from wg4netnsd.tunnel.lifetime import Lifetime
from wg4netnsd.tunnel.sockets import TunnelSockets
from wg4netnsd.tunnel.spec import Spec

MAX_FORWARDS: Final = 32
"""Of one tunnel."""

MAX_LISTENERS: Final = 8
"""Of one forward: a `remote` one has one for each address of the tunnel."""


class ForwardsObserver(Protocol):
    """Is told of each forward that is there, and of each that is no more."""

    def forward_added(self, forward: Forward) -> None: ...

    def forward_removed(self, forward: Forward) -> None: ...

    def forward_moved(self, forward: Forward) -> None:
        """It listens at other addresses."""
        ...


class Forwards:
    """Owns a tunnel's forwards and, in `gateway`, the process that serves them."""

    def __init__(
        self,
        spec: Spec,
        sockets: TunnelSockets,
        fd_store: FdStore,
        log: TunnelLog,
        record: Callable[[], object],
    ) -> None:
        """`record` is called when `saved()` has changed."""
        self.observer: ForwardsObserver
        """To be set before the first forward."""
        self._spec = spec
        self._fd_store = fd_store
        self._log = log
        self._record = record
        self._forwards: dict[str, Forward] = {}
        self._ids = itertools.count(1)
        self._listener_numbers = itertools.count(1)
        self.gateway = GatewaySlot(
            spec.name, sockets, fd_store, log, self._set_up, lambda: bool(self._forwards)
        )

    def __iter__(self) -> Iterator[Forward]:
        return iter(list(self._forwards.values()))

    def saved(self) -> list[ForwardSpec]:
        """Return what the tunnel's record says of them."""
        return [forward.spec for forward in self._forwards.values()]

    # ------------------------------------------------------------ requests

    async def add(self, asked: ForwardSpec, passed: list[int]) -> Forward:
        """Add a forward; it listens when this returns. Owns `passed`, listeners of the caller's.

        Cancelled, it is added nevertheless. Raises InvalidArgs, AlreadyExists, LimitExceeded,
        TunFailed, SocketFailed, Timeout, Failed.
        """
        added = Forward(asked)
        try:
            added.listeners = listeners.check_passed(asked, passed)
            if self._spec.lifetime is Lifetime.NAMESPACE:
                raise errors.InvalidArgs(
                    "a tunnel of lifetime 'namespace' can't have forwards: they would keep its "
                    "namespace alive; OpenSocket opens single sockets"
                )
            if not passed and asked.kind != "remote":
                added.listeners, paths = await listeners.listen(asked)
                added.spec = asked.model_copy(update={"paths": paths})
            await finish(self._add(added))
        except BaseException:
            if added.spec.id not in self._forwards:
                await listeners.remove_paths(added.spec.paths)
                added.close()
            raise
        return added

    async def remove(self, forward: Forward) -> None:
        """Remove a forward, with its connections."""
        await finish(self._remove(forward))

    async def counters(self) -> dict[str, Counters]:
        """Return each forward's counters, by its id; none while there is no gateway."""
        if gateway := self.gateway.current:
            with contextlib.suppress(*FAILURES):
                return (await gateway.synchronize()).forwards
        return {}

    async def reconfigure(self, spec: Spec) -> None:
        """Follow the tunnel's configuration: its name servers and, for `remote`, its addresses.

        A remote forward of a port of all addresses listens anew if those change.
        """
        async with self.gateway.lock:
            old, self._spec = self._spec, spec
            gateway = self.gateway.current
            moved = self._at_all_addresses() if old.addresses != spec.addresses else []
            with contextlib.suppress(GatewayGone):  # the next one is told anyway
                if gateway:
                    if old.dns != spec.dns:
                        await gateway.ask(self._resolvers())
                    for forward in moved:
                        await gateway.ask(RemoveForward(forward.spec.id))
            for forward in moved:
                self._drop_listeners(forward)
            with contextlib.suppress(GatewayGone):
                if gateway and moved:
                    others = {forward.spec.id for forward in self if forward not in moved}
                    await self._serve_all(gateway, others)

    def _at_all_addresses(self) -> list[Forward]:
        remote = [forward for forward in self if forward.spec.kind == "remote"]
        return [each for each in remote if any(text.isdigit() for text in each.spec.listen)]

    async def close(self) -> None:
        """End the gateway and all forwards; return when nothing of them is left."""
        await self.gateway.close()
        for forward in self:
            await self._forget(forward)

    # ------------------------------------------------------------ one forward

    async def _add(self, added: Forward) -> None:
        async with self.gateway.lock:
            if len(self._forwards) >= MAX_FORWARDS:
                raise errors.LimitExceeded(f"the tunnel has {MAX_FORWARDS} forwards already")
            added.spec = added.spec.model_copy(update={"id": str(next(self._ids))})
            try:
                await self._serve_new(added)
            except BaseException:
                if not self._forwards:
                    await self.gateway.stop()
                raise
            self._store(added)
            self._forwards[added.spec.id] = added
            self._record()
            self.observer.forward_added(added)
            self._log.info("forward %s: %s", added.spec.id, ", ".join(added.listening))

    async def _serve_new(self, added: Forward) -> None:
        for last in (False, True):
            try:
                await self._serve(await self.gateway.get(), added)
                return
            except GatewayGone as why:  # perhaps just now, not knowing of this one
                if last:
                    raise errors.Failed(str(why)) from None

    async def _serve(self, gateway: Gateway, forward: Forward) -> None:
        """Have the gateway serve a forward. Raises GatewayGone, and the gateway's refusal."""
        fds = [each.fileno() for each in forward.listeners]
        request = forward.spec.request([] if fds else self._remote_addresses(forward.spec))
        answer, copies = await gateway.ask(request, fds)
        if not isinstance(answer, ForwardAdded):
            raise GatewayGone("the gateway answered something else")
        forward.listeners += [socket.socket(fileno=fd) for fd in copies]

    def _remote_addresses(self, spec: ForwardSpec) -> list[tuple[str, int]]:
        """Return the addresses in the tunnel where a `remote` one listens. Raises InvalidArgs."""
        found = []
        for text in spec.listen:
            if text.isascii() and text.isdigit() and int(text) <= 65535:
                found += [(str(each.ip), int(text)) for each in self._spec.addresses]
            else:
                address = listeners.parse_address(text)
                if address.path:
                    raise errors.InvalidArgs(f"listen: {text!r}: expected a port or ADDRESS:PORT")
                found.append((address.host, address.port))
        if len(found) > MAX_LISTENERS:
            raise errors.LimitExceeded(f"{len(found)} listeners: at most {MAX_LISTENERS}")
        return found

    def _store(self, forward: Forward) -> None:
        numbers = tuple(next(self._listener_numbers) for _ in forward.listeners)
        forward.spec = forward.spec.model_copy(update={"listeners": numbers})
        for number, each in zip(numbers, forward.listeners, strict=True):
            self._fd_store.put(listener_key(number), each.fileno())

    def _drop_listeners(self, forward: Forward) -> None:
        self._fd_store.remove(*map(listener_key, forward.spec.listeners))
        forward.close()
        forward.listeners = []

    async def _remove(self, forward: Forward) -> None:
        async with self.gateway.lock:
            if self._forwards.get(forward.spec.id) is not forward:
                return
            if gateway := self.gateway.current:
                with contextlib.suppress(GatewayGone):
                    await gateway.ask(RemoveForward(forward.spec.id))
            await self._forget(forward)
            self._record()
            if not self._forwards:
                await self.gateway.stop()

    async def _forget(self, forward: Forward) -> None:
        del self._forwards[forward.spec.id]
        self.observer.forward_removed(forward)
        await listeners.remove_paths(forward.spec.paths)
        self._drop_listeners(forward)

    async def _set_up(self, gateway: Gateway, known: Collection[str]) -> None:
        """Have a gateway serve all forwards and no others; it serves `known` already."""
        await gateway.ask(self._resolvers())
        for name in set(known) - self._forwards.keys():
            await gateway.ask(RemoveForward(name))
        await self._serve_all(gateway, known)

    async def _serve_all(self, gateway: Gateway, known: Collection[str]) -> None:
        """Have a gateway serve all forwards that it does not know. Raises GatewayGone."""
        for forward in self:
            if forward.spec.id in known:
                continue
            listened = bool(forward.listeners)
            try:
                await self._serve(gateway, forward)
            except errors.Error as error:
                self._log.error("forward %s is not served: %s", forward.spec.id, error)
            if not listened:  # a remote one, whose listeners the gateway has made
                self._store(forward)
                self._record()
                self.observer.forward_moved(forward)

    def _resolvers(self) -> SetResolvers:
        return SetResolvers(self._spec.name_servers, self._spec.search_domains)

    # ------------------------------------------------------------ an earlier daemon's

    def adopt(self, saved: Collection[ForwardSpec], fds: InheritedFds) -> None:
        """Adopt what an earlier daemon saved; the gateway is taken over in the background."""
        for spec in saved:
            keys = list(map(listener_key, spec.listeners))
            forward = Forward(spec)
            for fd in fds.pop_fds(*keys) or ():
                forward.listeners.append(socket.socket(fileno=fd))
            if not forward.listeners and spec.kind != "remote":
                self._log.error("forward %s has lost its listeners, so it ends", spec.id)
                self._fd_store.remove(*keys)
                continue
            self._forwards[spec.id] = forward
            self.observer.forward_added(forward)
        self._ids = itertools.count(1 + max((int(spec.id) for spec in saved), default=0))
        numbers = [number for spec in saved for number in spec.listeners]
        self._listener_numbers = itertools.count(1 + max(numbers, default=0))
        gateway_fds = fds.pop_fds(*GATEWAY_KINDS)
        if gateway_fds or self._forwards:
            self._adoption = asyncio.create_task(
                self._take_over(gateway_fds), name=f"gateway of {self._spec.name}"
            )
            self._adoption.add_done_callback(log_failure)

    async def _take_over(self, fds: list[int] | None) -> None:
        async with self.gateway.lock:
            if fds:
                await self.gateway.adopt(GatewayFds(*fds))
            if not self._forwards:
                await self.gateway.stop()
            elif not self.gateway.current:
                self.gateway.supervise()  # which starts another
