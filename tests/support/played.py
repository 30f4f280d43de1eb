"""A daemon that a test plays: it has one name on the bus, and says what it is told to."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from jeepney import DBusAddress, Message, MessageType, new_error, new_method_return, new_signal

from support.bus import NAME, TUNNEL, Client
from support.processes import wait_for

PATH = "/org/wg4netns1/tunnel/t"
PEER = "peer's key"

Objects = dict[str, dict[str, dict[str, tuple[str, Any]]]]


def objects(peer_state: str, handshake_usec: int = 0, name: str = "t") -> Objects:
    """What GetManagedObjects tells of one tunnel with one peer."""
    peer = {
        "state": ("s", peer_state),
        "endpoint": ("s", "192.0.2.1:1"),
        "last_handshake_usec": ("t", handshake_usec),
    }
    properties = {
        "Name": ("s", name),
        "CreatedUSec": ("t", 1),
        "State": ("s", "up"),
        "LastError": ("(ss)", ("", "")),
        "Peers": ("a{sa{sv}}", {PEER: peer}),
    }
    return {f"/org/wg4netns1/tunnel/{name}": {TUNNEL: properties}}


class Played:
    """It is on the bus from the first."""

    def __init__(self, address: str) -> None:
        self._client = Client(address)
        self._client.bus("RequestName", "su", NAME, 4)

    def asked(self, timeout: float = 10) -> Message:
        """The next call of it. Raises TimeoutError."""
        while True:
            message = self._client.connection.receive(timeout=timeout)
            if message.header.message_type is MessageType.method_call:
                return message

    def answer(self, call: Message, found: Objects) -> None:
        """GetManagedObjects, with that."""
        self._client.connection.send(new_method_return(call, "a{oa{sa{sv}}}", (found,)))

    def refuse(self, call: Message, error: str) -> None:
        self._client.connection.send(new_error(call, f"{NAME}.Error.{error}", "s", ("refused",)))

    def refuse_until(self, condition: Callable[[], object], error: str) -> None:
        """Refuse every call until the condition is true, at least one of them."""
        self.refuse(self.asked(), error)
        wait_for(lambda: condition() or self._refuse_next(error), "the condition is true")

    def _refuse_next(self, error: str) -> None:
        with suppress(TimeoutError):
            self.refuse(self.asked(0.1), error)

    def tell(
        self, member: str, signature: str, *body: Any, path: str = PATH, interface: str = TUNNEL
    ) -> None:
        its = DBusAddress(path, interface=interface)
        self._client.connection.send(new_signal(its, member, signature, body))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
