"""dbus-next's connection to a bus: which bus, how to connect, and how to write to it.

The only module that imports dbus-next; bus.py has from here what it needs of it.
"""

from __future__ import annotations

import os
import socket
import typing
from collections.abc import Sequence
from typing import Any, Final

# dbus-next imports a decorator whose removal is announced for Python 3.15.
if not hasattr(typing, "no_type_check_decorator"):
    vars(typing)["no_type_check_decorator"] = lambda function: function

from dbus_next import Message, MessageFlag, MessageType, NameFlag, RequestNameReply, Variant
from dbus_next.aio import MessageBus
from dbus_next.errors import AuthError

__all__ = [
    "NOT_CONNECTED",
    "Connection",
    "Message",
    "MessageFlag",
    "MessageType",
    "NameFlag",
    "RequestNameReply",
    "Variant",
    "session_address",
    "system_address",
]

AUTH_LINE: Final = 4096

NOT_CONNECTED: Final = (OSError, EOFError, TimeoutError, ValueError, AuthError)
"""What connecting raises: the socket's errors, and dbus-next's of addresses and messages."""


class _Socket(socket.socket):
    """One that takes nothing as long as it is full.

    dbus-next ends the connection at a BlockingIOError, which a burst of signals can cause, but
    waits for room when a part of a message is left.
    """

    _ancillary: Sequence[Any] = ()

    def sendmsg(self, buffers: Any, ancdata: Any = (), *_: Any) -> int:
        self._ancillary = ancdata  # to go with the first byte that goes
        return self.send(*buffers)

    def send(self, data: Any, *_: Any) -> int:
        try:
            sent = super().sendmsg([data], self._ancillary)
        except BlockingIOError:
            return 0
        self._ancillary = ()
        return sent


class Connection(MessageBus):  # type: ignore[misc]  # Any, to mypy
    """MessageBus with its connecting and its writing done right."""

    def __init__(self, address: str, patient: bool = True, **options: Any) -> None:
        """`patient`: connect() may wait for a bus that has too many waiting already (unix(7))."""
        self._patient = patient
        # The address is only parsed by the base class; _setup_socket() below does the connecting.
        super().__init__(bus_address=address, **options)

    def _setup_socket(self) -> None:
        """Try each address of the list in turn, as the specification has it."""
        problems = []
        for transport, options in self._bus_address:
            path = options.get("path") or "\0" + options.get("abstract", "")
            if transport != "unix" or path == "\0":
                problems.append(f"{transport}: not supported")
                continue
            self._sock = _Socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._sock.setblocking(self._patient)
            try:
                self._sock.connect(path)
            except OSError as error:
                self._sock.close()
                problems.append(f"{path}: {error.strerror}")
                continue
            self._sock.setblocking(False)
            self._stream = self._sock.makefile("rwb")
            self._fd = self._sock.fileno()
            return
        raise OSError("; ".join(problems))

    def close(self) -> None:
        """What disconnect() only begins, at once and in any phase."""
        self._finalize()
        if not self._disconnect_future.cancelled():
            self._disconnect_future.exception()  # of the socket: who waits for the end has it
        self._stream.close()
        self._sock.close()

    async def _auth_readline(self) -> str:
        """The base class spins for ever at an end of file."""
        line = b""
        while not line.endswith(b"\r\n"):
            data = await self._loop.sock_recv(self._sock, 1)
            if not data or len(line) > AUTH_LINE:
                raise EOFError("the bus broke off the authentication")
            line += data
        return line[:-2].decode()


def system_address() -> str:
    """The system bus's address, as sd-bus finds it."""
    return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or "unix:path=/run/dbus/system_bus_socket"


def session_address() -> str:
    """The session bus's address, as sd-bus finds it. Raises OSError where there is none."""
    if address := os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
        return address
    if runtime_dir := os.environ.get("XDG_RUNTIME_DIR"):
        return f"unix:path={runtime_dir}/bus"
    raise OSError("neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set")
