"""Questions to other services on a bus, and their signals. Each uses a connection of its own.

On the connection that server.py serves, only the bus itself is listened to.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final, NoReturn

from wg4netnsd.bus import codec
from wg4netnsd.bus.address import session_address
from wg4netnsd.bus.codec import Message
from wg4netnsd.bus.connection import (
    CONNECT_TIME,
    BusGone,
    Connection,
    ErrorReply,
    answer_within,
    bus_call,
)
from wg4netnsd.bus.frames import Frame, Malformed

log = logging.getLogger(__name__)

ANSWER_TIME: Final = 2.0  # seconds


async def wait_for_bus(seconds: float) -> None:
    """Return when there is a session bus that answers, or none at all, or after `seconds`."""
    try:
        async with answer_within(seconds):
            connection = await Connection.connect(session_address())
    except BusGone as error:
        log.info("there is no session bus: %s", error)
    else:
        connection.close()


async def get_property(service: str, path: str, interface: str, name: str) -> Any:
    """Return a property of another service on the session bus. Raises BusGone."""
    question = Message(
        destination=service,
        path=path,
        interface="org.freedesktop.DBus.Properties",
        member="Get",
        signature="ss",
        body=[interface, name],
    )
    try:
        async with answer_within(ANSWER_TIME):
            connection = await Connection.connect(session_address())
            with contextlib.closing(connection):
                (variant,) = await connection.call(question)
    except ErrorReply as error:
        raise BusGone(f"{service}: {error.name} for {name}") from None
    except BusGone as error:
        raise BusGone(f"{service}: {error}") from None
    return variant.value


async def listen(address: str, rule: str, on_body: Callable[[list[Any]], object]) -> NoReturn:
    """Call `on_body` with the body of each broadcast signal that matches; cancel it to end.

    Raises BusGone, with the reason: there is no such bus, or it is there no longer. Receives no
    fds, as it never says that it could.
    """

    def on_signal(signal: Frame) -> None:
        # For broadcasts the bus has checked the rule, and thereby the sender. A signal directed at
        # us comes in any case, from anybody.
        if signal.destination:
            return
        try:
            body = codec.decode_body(signal)
        except Malformed as error:
            log.error("a signal from %s can't be read: %s", signal.sender, error)
            return
        on_body(body)

    async with answer_within(CONNECT_TIME):
        connection = await Connection.connect(address)
    with contextlib.closing(connection):
        connection.on_signal = on_signal
        try:
            async with answer_within(CONNECT_TIME):
                await connection.call(bus_call("AddMatch", rule))
        except ErrorReply as error:
            raise BusGone(f"{error.name} for {rule}") from None
        raise BusGone(await connection.wait_gone())
