"""What we ask of other services on a bus, and hear of them; each time over a connection of its own.

On the one that server.py serves, nobody's words but the bus's count.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final, NoReturn

from wg4netnsd.bus.address import session_address
from wg4netnsd.bus.connection import (
    NOT_CONNECTED,
    Connection,
    Message,
    MessageType,
)

__all__ = ["BusGone", "bus_call", "get_property", "listen", "wait_for_bus"]

log = logging.getLogger(__name__)

DBUS: Final = "org.freedesktop.DBus"
DBUS_PATH: Final = "/org/freedesktop/DBus"
CONNECT_TIME: Final = 10.0  # seconds
ANSWER_TIME: Final = 2.0  # seconds


class BusGone(Exception):
    """There is no bus, it is gone, our name on it is, or it has no answer."""


async def wait_for_bus(seconds: float) -> None:
    """Return when there is a session bus that answers, or none at all, or after `seconds`."""
    try:
        with contextlib.closing(Connection(session_address(), patient=False)) as connection:
            async with asyncio.timeout(seconds):
                await connection.connect()
    except NOT_CONNECTED as error:
        log.info("there is no session bus: %s", error)


async def get_property(service: str, path: str, interface: str, name: str) -> Any:
    """A property of another service's on the session bus. Raises BusGone."""
    question = Message(
        destination=service,
        path=path,
        interface="org.freedesktop.DBus.Properties",
        member="Get",
        signature="ss",
        body=[interface, name],
    )
    try:
        with contextlib.closing(Connection(session_address(), patient=False)) as connection:
            async with asyncio.timeout(ANSWER_TIME):
                await connection.connect()
                answer = await connection.call(question)
    except NOT_CONNECTED as error:
        raise BusGone(f"{service}: {str(error) or type(error).__name__}") from None
    if answer.message_type is MessageType.ERROR:
        raise BusGone(f"{service}: {answer.error_name} for {name}")
    return answer.body[0].value


async def listen(address: str, rule: str, heard: Callable[[list[Any]], object]) -> NoReturn:
    """Call `heard` with the body of each signal that is broadcast and matches; cancel it to end.

    Raises BusGone, with the reason: there is no such bus, or it is there no longer. Receives no
    fds, as it never says that it could.
    """

    def on_message(message: Message) -> None:
        # For broadcasts the bus has checked the rule, and so who the sender is. A signal directed
        # at us comes in any case, from anybody.
        if message.message_type is MessageType.SIGNAL and not message.destination:
            heard(message.body)

    try:
        with contextlib.closing(Connection(address, patient=False)) as connection:
            async with asyncio.timeout(CONNECT_TIME):
                await connection.connect()
                connection.add_message_handler(on_message)
                reply = await connection.call(bus_call("AddMatch", rule))
            if reply.message_type is MessageType.ERROR:
                raise BusGone(f"{reply.error_name} for {rule}")
            await connection.wait_for_disconnect()
    except NOT_CONNECTED as error:
        raise BusGone(str(error) or type(error).__name__) from None
    raise BusGone("disconnected")


def bus_call(member: str, *arguments: str) -> Message:
    """Of a method of the bus itself."""
    return Message(
        destination=DBUS,
        path=DBUS_PATH,
        interface=DBUS,
        member=member,
        signature="s" * len(arguments),
        body=list(arguments),
    )
