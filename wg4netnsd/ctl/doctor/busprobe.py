"""The session bus, asked by `wg4netnsctl doctor` so that nobody is started for it."""

from __future__ import annotations

from typing import Any, Final, Self

from jeepney import DBusAddress, HeaderFields, MessageFlag, MessageType, new_method_call
from jeepney.auth import AuthenticationError
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from wg4netnsd import names
from wg4netnsd.ctl.client import plain

__all__ = ["AuthenticationError", "Bus", "Unanswered"]

ANSWER_TIME: Final = 5.0
"""Seconds for each answer. A bus or a daemon that is well takes a thousandth of that, but a machine
may be busy."""


class Unanswered(Exception):
    """Why there is no answer: an error's name on the bus and its message, or no word in time."""


class Bus:
    """A connection."""

    def __init__(self, connection: DBusConnection) -> None:
        self._connection = connection

    @classmethod
    def connect(cls, address: str) -> Self:
        """Connect and say Hello. Raises OSError, or whatever jeepney does."""
        return cls(open_dbus_connection(address, auth_timeout=ANSWER_TIME))

    def ask(
        self, destination: str, path: str, interface: str, method: str,
        signature: str = "", *body: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """The reply's body. Raises Unanswered."""
        address = DBusAddress(path, destination, interface)
        message = new_method_call(address, method, signature or None, body)
        message.header.flags |= MessageFlag.no_auto_start
        try:
            reply = self._connection.send_and_get_reply(message, timeout=ANSWER_TIME)
        except TimeoutError:
            raise Unanswered(f"{method}: no answer within {ANSWER_TIME} s") from None
        except OSError as error:
            raise Unanswered(f"{method}: {error.strerror or error}") from None
        if reply.header.message_type is MessageType.error:
            name = reply.header.fields[HeaderFields.error_name]
            raise Unanswered(f"{method}: {reply.body[0] if reply.body else name}")
        return tuple(reply.body)

    def properties(self, destination: str, path: str, interface: str) -> dict[str, Any]:
        """All of an interface's. Raises Unanswered."""
        standard = "org.freedesktop.DBus.Properties"
        (variants,) = self.ask(destination, path, standard, "GetAll", "s", interface)
        return plain(variants)

    def has_owner(self, name: str) -> bool:
        """Raises Unanswered."""
        return bool(self.ask(*names.BUS, "NameHasOwner", "s", name)[0])
