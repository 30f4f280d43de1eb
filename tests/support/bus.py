"""A real session bus, and three independent clients: busctl, gdbus and jeepney."""

import json
import os
import shlex
import subprocess
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from jeepney import (
    DBusAddress,
    HeaderFields,
    MatchRule,
    Message,
    MessageFlag,
    MessageType,
    message_bus,
    new_method_call,
)
from jeepney.io.blocking import open_dbus_connection

from support import buses
from support.rules import MatchRules

NAME = "org.wg4netns1"
ROOT = "/org/wg4netns1"
MANAGER = "org.wg4netns1.Manager"
TUNNEL = "org.wg4netns1.Tunnel"
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
CREATE = "hha{sv}"
"""CreateTunnel's signature."""
NO_LIMIT = 2**64 - 1
"""A timeout that never comes."""


class DBusError(Exception):
    """An error reply."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message

    @property
    def short_name(self) -> str:
        return self.name.rpartition(".")[2]


class Bus:
    """A bus of one's own, as a desktop session without systemd has it."""

    def __init__(
        self,
        directory: Path,
        silent: bool = False,
        program: str = buses.DAEMON,
        counts_rules: bool = False,
    ) -> None:
        """The directory gets the bus's socket, and is XDG_DATA_HOME: its activation files
        belong in dbus-1/services. `silent`: what it activates is not heard. `counts_rules`: of
        those who connect, `rules` knows the match rules."""
        self.directory = directory
        self.address = f"unix:path={directory}/bus"
        (directory / "dbus-1/services").mkdir(parents=True)
        mine = {"XDG_DATA_HOME": str(directory), "DBUS_SESSION_BUS_ADDRESS": self.address}
        self.process = buses.start(program, directory / "bus", os.environ | mine, silent)
        self.rules = MatchRules(self.address) if counts_rules else None

    def close(self) -> None:
        if self.rules:
            self.rules.close()
        self.process.terminate()
        self.process.wait(10)


class Target(Protocol):
    """What has a network namespace."""

    def open(self) -> int:
        """A new descriptor of it, the caller's to close."""
        ...


class Client:
    """A client that sends and receives any message, file descriptors too (jeepney)."""

    def __init__(self, address: str) -> None:
        self.connection = open_dbus_connection(address, enable_fds=True, auth_timeout=10)
        self._signals: deque[Message] = deque()
        self._filter = self.connection.filter(
            MatchRule(type=MessageType.signal.name), queue=self._signals
        )

    @property
    def unique_name(self) -> str:
        return str(self.connection.unique_name)

    def call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        timeout: float = 30,
        destination: str = NAME,
    ) -> Any:
        """The reply: None, its one value, or a tuple. An integer for `h` is a descriptor.

        Descriptors that come back are the caller's: objects with fileno() and close().
        """
        reply = self.exchange(
            self.message(path, interface, member, signature, body, destination), timeout
        )
        if reply.header.message_type is MessageType.error:
            name = reply.header.fields[HeaderFields.error_name]
            raise DBusError(name, reply.body[0] if reply.body else "")
        values = tuple(reply.body)
        return values if len(values) > 1 else values[0] if values else None

    @staticmethod
    def message(
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        destination: str = NAME,
    ) -> Message:
        address = DBusAddress(path, bus_name=destination, interface=interface)
        return new_method_call(address, member, signature or None, tuple(body))

    def exchange(self, message: Message, timeout: float = 30) -> Message:
        """Send anything at all; the reply, be it an error."""
        return self.connection.send_and_get_reply(message, timeout=timeout)

    def send(self, message: Message) -> None:
        """Send it and ask for no reply."""
        message.header.flags |= MessageFlag.no_reply_expected
        self.connection.send(message)

    # --- the daemon's methods ---

    def manager(self, member: str, signature: str = "", *body: Any) -> Any:
        return self.call(ROOT, MANAGER, member, signature, body)

    def tunnel(self, path: str, member: str, signature: str = "", *body: Any) -> Any:
        return self.call(path, TUNNEL, member, signature, body)

    def create(self, target: Target, conf: str, **options: Any) -> str:
        """CreateTunnel in a namespace or container, the configuration in a pipe, as process
        substitution gives one.

        The options are ("signature", value) pairs; str, bool and [str] need no signature."""
        variants = {key: _variant(value) for key, value in options.items()}
        read_end, write_end = os.pipe()
        netns = target.open()
        try:
            with open(write_end, "w") as writer:
                writer.write(conf)
            return str(self.manager("CreateTunnel", CREATE, netns, read_end, variants))
        finally:
            os.close(netns)
            os.close(read_end)

    def close_tunnel(self, path: str) -> None:
        self.tunnel(path, "Close")

    def tunnels(self) -> list[tuple[str, str, str]]:
        """(name, path, state) of each."""
        return list(self.manager("ListTunnels"))

    def get(self, path: str, name: str, interface: str = TUNNEL) -> Any:
        """One property's value."""
        return self.call(path, PROPERTIES, "Get", "ss", (interface, name))[1]

    def get_all(self, path: str, interface: str = TUNNEL) -> dict[str, Any]:
        variants = self.call(path, PROPERTIES, "GetAll", "s", (interface,))
        return {name: value for name, (_, value) in variants.items()}

    def peers(self, path: str) -> dict[str, dict[str, Any]]:
        shown = self.tunnel(path, "GetPeers")
        return {key: {k: v for k, (_, v) in peer.items()} for key, peer in shown.items()}

    # --- the bus itself ---

    def bus(self, member: str, signature: str = "", *body: Any) -> Any:
        return self.call(
            "/org/freedesktop/DBus",
            "org.freedesktop.DBus",
            member,
            signature,
            body,
            destination="org.freedesktop.DBus",
        )

    def has_owner(self, name: str = NAME) -> bool:
        return bool(self.bus("NameHasOwner", "s", name))

    # --- signals ---

    def subscribe(self, **rule: str) -> None:
        """From now on signals that match (interface=, path=, member=, …) are kept."""
        match = MatchRule(type=MessageType.signal.name, **rule)
        self.exchange(message_bus.AddMatch(match))

    def next_signal(self, member: str, timeout: float = 10, path: str | None = None) -> Message:
        """The next one so named; those before it are dropped."""
        while True:
            message = self.connection.recv_until_filtered(self._signals, timeout=timeout)
            fields = message.header.fields
            if fields[HeaderFields.member] == member and path in (None, fields[HeaderFields.path]):
                return message

    def pending_signals(self) -> list[Message]:
        """Those that came before the bus answered a question asked now."""
        self.bus("GetId")
        pending = list(self._signals)
        self._signals.clear()
        return pending

    def close(self) -> None:
        self._filter.close()
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def body_of(signals: Sequence[Message], member: str, path: str | None = None) -> list[Any]:
    """The bodies of those so named, of that object if one is given."""
    return [
        s.body
        for s in signals
        if s.header.fields[HeaderFields.member] == member
        and path in (None, s.header.fields[HeaderFields.path])
    ]


def _variant(value: Any) -> tuple[str, Any]:
    match value:
        case bool():
            return ("b", value)
        case str():
            return ("s", value)
        case list():
            return ("as", value)
        case (str(signature), content):
            return (signature, content)
        case _:
            raise TypeError(f"{value!r}: give a D-Bus signature with it")


class CommandFailed(AssertionError):
    """A command-line client's complaint: its standard error is the message."""


def busctl(address: str, *arguments: str) -> Any:
    """`busctl --json=short …`, decoded: busctl(address, "call", NAME, ROOT, MANAGER, "Describe")"""
    output = _run(["busctl", f"--address={address}", "--json=short", *arguments], address)
    return json.loads(output) if output.strip() else None


def gdbus_call(
    address: str, path: str, method: str, *arguments: str, fds: Sequence[int] = ()
) -> str:
    """`gdbus call`: what it prints, a GVariant text. The method is INTERFACE.MEMBER.

    An argument for `h` is the number of a descriptor, which has to be among fds."""
    target = ["--dest", NAME, "--object-path", path, "--method", method]
    return _run(["gdbus", "call", "--session", *target, "--", *arguments], address, fds)


def gdbus(address: str, *arguments: str) -> str:
    """`gdbus` with a command of its own: introspect, monitor …"""
    return _run(["gdbus", *arguments], address)


def _run(command: list[str], address: str, fds: Sequence[int] = ()) -> str:
    environment = os.environ | {"DBUS_SESSION_BUS_ADDRESS": address}
    done = subprocess.run(
        command, env=environment, pass_fds=fds, capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        raise CommandFailed(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout
