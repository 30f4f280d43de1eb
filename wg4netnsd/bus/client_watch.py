"""Watches bus clients on whose behalf something is done, until they leave the bus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wg4netnsd.aio.tasks import log_failure
from wg4netnsd.bus import codec
from wg4netnsd.bus.codec import MessageFlag
from wg4netnsd.bus.connection import DBUS, BusGone, Connection, ErrorReply, bus_call
from wg4netnsd.bus.frames import Frame


class ClientWatch:
    """Calls back when a client, by its unique name, has left the bus."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._callbacks: dict[str, set[Callable[[], object]]] = {}
        self._checks: set[asyncio.Task[None]] = set()

    def add(self, client: str, on_gone: Callable[[], object]) -> None:
        """Have `on_gone` called once when `client` has left; soon if it has left already."""
        if client not in self._callbacks:
            self._callbacks[client] = set()
            self._send_match_rule("AddMatch", client)
        self._callbacks[client].add(on_gone)
        # It may have left before the bus knew of our interest. The client's call goes first.
        asyncio.get_running_loop().call_soon(self._check, client)

    def remove(self, client: str, on_gone: Callable[[], object]) -> None:
        callbacks = self._callbacks.get(client, set())
        callbacks.discard(on_gone)
        if client in self._callbacks and not callbacks:
            self._pop_callbacks(client)

    def name_owner_changed(self, signal: Frame) -> None:
        """Handle the signal NameOwnerChanged of the bus. Raises Malformed."""
        name, _old, new = codec.decode_body(signal)
        if not new:
            self._on_gone(name)

    def _check(self, client: str) -> None:
        if client in self._callbacks:
            check = asyncio.create_task(self._ask_for(client), name=f"check {client}")
            self._checks.add(check)
            check.add_done_callback(self._checks.discard)
            check.add_done_callback(log_failure)

    async def _ask_for(self, client: str) -> None:
        try:
            reply = await self._connection.call(bus_call("NameHasOwner", client))
        except (BusGone, ErrorReply):
            return  # the end of the connection is Server.wait_gone()'s to report
        if reply == [False]:
            self._on_gone(client)

    def _on_gone(self, client: str) -> None:
        if client in self._callbacks:
            for callback in self._pop_callbacks(client):
                callback()

    def _pop_callbacks(self, client: str) -> set[Callable[[], object]]:
        # After the reply, if one is due now. The bus counts equal rules: this ends the oldest.
        asyncio.get_running_loop().call_soon(self._send_match_rule, "RemoveMatch", client)
        return self._callbacks.pop(client)

    def _send_match_rule(self, method: str, client: str) -> None:
        """Send AddMatch or RemoveMatch, and want no reply: the rule is known to be well-formed, and
        the bus works in order."""
        source = f"type='signal',sender='{DBUS}',interface='{DBUS}'"
        message = bus_call(method, f"{source},member='NameOwnerChanged',arg0='{client}'")
        message.flags = MessageFlag.NO_REPLY_EXPECTED
        self._connection.send(message)
