"""A client of the session bus, blocking, on jeepney: dbus-next would bring an event loop and three
times the start-up time. The only module that imports jeepney."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Self

from jeepney import DBusAddress, HeaderFields, Message, MessageFlag, MessageType, new_method_call
from jeepney.bus import parse_addresses
from jeepney.io.blocking import DBusConnection

from wg4netnsd import names
from wg4netnsd.bus.address import session_address
from wg4netnsd.ctl.failure import LOG, TIMEOUT, UNREACHABLE, Failure, NotRunning, of_bus

START_BUS: Final = (
    "'systemctl --user start dbus.socket' starts it, if the package dbus-user-session is there; "
    "'wg4netnsctl doctor' tells more"
)
LOGIN: Final = (
    "log in as this user (ssh, or 'machinectl shell'): su and sudo bring no session bus along; "
    "'wg4netnsctl doctor' tells more"
)

REPLY_TIME: Final = 25.0
"""Seconds, as of sd-bus and GDBus: no call of ours takes longer unless it says so."""

_AUTHENTICATE: Final = b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"
_AUTHENTICATED: Final = (b"DATA", b"OK", b"AGREE_UNIX_FD")
_PATIENCE: Final = 10.0  # seconds for that
_BUS: Final = DBusAddress(names.BUS[1], names.BUS[0], names.BUS[2])
_SUBJECT: Final = (HeaderFields.path, HeaderFields.interface, HeaderFields.member)

Waiting = Callable[[float], float]
"""Called while a reply is waited for, with the seconds since then; says in how many seconds to be
called again."""


class Signal(NamedTuple):
    """One of the daemon's, or the bus's about it. A variant in its body is (type, value)."""

    path: str
    interface: str
    member: str
    body: tuple[Any, ...]
    usec: int
    """When we had it, since 1970."""


def now_usec() -> int:
    return time.time_ns() // 1000


class Reply:
    """What will come of a call."""

    def __init__(self, client: Client, serial: int) -> None:
        self._client = client
        self._serial = serial

    def wait(self, waiting: Waiting | None = None, seconds: float = REPLY_TIME) -> tuple[Any, ...]:
        """Its body. Raises Failure, also if there is none within `seconds`."""
        message = self._client._reply_to(self._serial, waiting, seconds)
        if message.header.message_type is MessageType.error:
            name = message.header.fields[HeaderFields.error_name]
            raise of_bus(name, str(message.body[0]) if message.body else name)
        return tuple(message.body)


def _how_to_get_one() -> str:
    """systemd has a runtime directory for who is logged in, and may have no bus in it yet."""
    return START_BUS if os.path.isdir(os.environ.get("XDG_RUNTIME_DIR", "")) else LOGIN


def _paths(address: str) -> Iterator[str]:
    """Those of a list's sockets, in its order, as jeepney connects to them: an abstract one begins
    with a zero byte."""
    for part in address.split(";"):
        with contextlib.suppress(ValueError):
            for transport, keys in parse_addresses(part):
                runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
                if transport != "unix":
                    continue
                if "path" in keys:
                    yield keys["path"]
                elif "abstract" in keys:
                    yield "\0" + keys["abstract"]
                elif keys.get("runtime") == "yes" and runtime_dir:
                    yield f"{runtime_dir}/bus"


def _authenticated(path: str) -> socket.socket:
    """A connection that may pass fds; the protocol is the D-Bus specification's.

    It names no uid, so that the bus goes by the socket's peer alone: in a user namespace that we
    are in, such as `unshare --map-root-user` makes, we may be called otherwise than outside.
    """
    connected = socket.socket(socket.AF_UNIX)
    try:
        connected.settimeout(_PATIENCE)
        connected.connect(path)
        connected.sendall(_AUTHENTICATE)
        answers = b""
        for expected in _AUTHENTICATED:
            while b"\r\n" not in answers:
                received = connected.recv(4096)
                if not received:
                    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                answers += received
            answer, _, answers = answers.partition(b"\r\n")
            if answer.split()[:1] != [expected]:
                raise PermissionError(errno.EACCES, f"it answers {answer.decode(errors='replace')}")
        connected.settimeout(None)
    except BaseException:
        connected.close()
        raise
    return connected


class Client:
    """One connection; signals that come while a reply is waited for are kept."""

    def __init__(self) -> None:
        """Raises Failure where there is no bus."""
        address = session_address()
        if not address:
            text = "no session bus: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set"
            raise Failure(text, LOGIN, UNREACHABLE)
        reason = "not an address of a bus"
        for path in _paths(address):
            try:
                self._connection = DBusConnection(_authenticated(path), enable_fds=True)
                break
            except OSError as error:
                reason = error.strerror or str(error)
        else:
            raise Failure(f"no session bus at {address}: {reason}", _how_to_get_one(), UNREACHABLE)
        self._signals: deque[Signal] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    # ------------------------------------------------------------ calls

    def begin(
        self, path: str, interface: str, method: str, signature: str = "", *body: Any,
        start: bool = True,
    ) -> Reply:  # fmt: skip
        """Call a method of the daemon's, which is started for that unless `start` is False.

        `body` has fds where the signature says `h`; they stay the caller's.
        """
        address = DBusAddress(path, names.BUS_NAME, interface)
        message = new_method_call(address, method, signature or None, body)
        if not start:
            message.header.flags |= MessageFlag.no_auto_start
        return self._send(message)

    def call(
        self, path: str, interface: str, method: str, signature: str = "", *body: Any,
        start: bool = True,
    ) -> tuple[Any, ...]:  # fmt: skip
        """begin() and wait. Raises Failure."""
        return self.begin(path, interface, method, signature, *body, start=start).wait()

    def find(self, name: str) -> str:
        """The path of the tunnel of that name. Raises Failure. Starts no daemon."""
        try:
            method = (names.ROOT_PATH, names.MANAGER, "GetTunnel", "s", name)
            (path,) = self.call(*method, start=False)
        except NotRunning:
            raise of_bus(f"{names.ERROR}.NoSuchTunnel", f"no tunnel '{name}'") from None
        return str(path)

    def properties(self, path: str) -> dict[str, Any]:
        """All of a tunnel's. Raises Failure."""
        interface = "org.freedesktop.DBus.Properties"
        (variants,) = self.call(path, interface, "GetAll", "s", names.TUNNEL, start=False)
        found = plain(variants)
        if not found.get("ResolvConf"):
            text = "the daemon that runs is of an earlier version"
            raise Failure(text, "'systemctl --user restart wg4netnsd'; its tunnels stay")
        return found

    def open_netns(self, path: str) -> int:
        """A tunnel's namespace; the fd is the caller's."""
        (received,) = self.call(path, names.TUNNEL, "OpenNetns", start=False)
        fd: int = received.to_raw_fd()
        os.set_inheritable(fd, False)
        return fd

    def tunnels(self) -> dict[str, dict[str, Any]]:
        """The properties of all tunnels, by their paths; none where no daemon runs."""
        interface = "org.freedesktop.DBus.ObjectManager"
        try:
            method = (names.ROOT_PATH, interface, "GetManagedObjects")
            (objects,) = self.call(*method, start=False)
        except NotRunning:
            return {}
        return {
            path: plain(interfaces[names.TUNNEL])
            for path, interfaces in objects.items()
            if names.TUNNEL in interfaces
        }

    # ------------------------------------------------------------ signals

    def listen(self, **match: str) -> None:
        """From this call on none of the daemon's signals that match is missed, nor that its name
        has another owner. The bus sees to it that they are the daemon's."""
        self._match(sender=_BUS.bus_name, member="NameOwnerChanged", arg0=names.BUS_NAME)
        self._match(sender=names.BUS_NAME, **match)

    def _match(self, **rule: str) -> None:
        text = ",".join(f"{key}='{value}'" for key, value in {"type": "signal", **rule}.items())
        self._send(new_method_call(_BUS, "AddMatch", "s", (text,))).wait()

    def next_signal(self, patience: float | None = None) -> Signal:
        """Raises Failure when the bus is gone, and TimeoutError when none has come for `patience`
        seconds. With 0 it only takes what is there already; fileno() then tells when to go on."""
        deadline = None if patience is None else time.monotonic() + patience
        while not self._signals:
            self._take(self._receive(None if deadline is None else deadline - time.monotonic()))
        return self._signals.popleft()

    def kept_signals(self) -> list[Signal]:
        """Those that came before the reply that was waited for last; next_signal() leaves them out
        from now on."""
        kept = list(self._signals)
        self._signals.clear()
        return kept

    def fileno(self) -> int:
        """For poll(2)."""
        return int(self._connection.sock.fileno())

    # ------------------------------------------------------------ messages

    def _send(self, message: Message) -> Reply:
        serial = next(self._connection.outgoing_serial)
        try:
            self._connection.send(message, serial=serial)
        except OSError as error:
            raise _lost(error) from None
        return Reply(self, serial)

    def _reply_to(self, serial: int, waiting: Waiting | None, seconds: float) -> Message:
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < seconds:
            patience = seconds - passed
            if waiting:
                patience = min(waiting(passed), patience)
            with contextlib.suppress(TimeoutError):
                message = self._receive(patience)
                if message.header.fields.get(HeaderFields.reply_serial) == serial:
                    return message
                self._take(message)
        raise Failure(f"the daemon has not answered in {seconds:g} s", LOG, TIMEOUT)

    def _receive(self, patience: float | None) -> Message:
        try:
            return self._connection.receive(timeout=patience)
        except TimeoutError:
            raise
        except OSError as error:
            raise _lost(error) from None

    def _take(self, message: Message) -> None:
        """Keep it, if it is a signal that a rule of ours has let through."""
        if message.header.message_type is not MessageType.signal:
            return
        fields = message.header.fields
        if HeaderFields.destination not in fields:  # else it passed by the rules, and is anybody's
            path, interface, member = (fields[each] for each in _SUBJECT)
            self._signals.append(Signal(path, interface, member, tuple(message.body), now_usec()))


def _lost(error: OSError) -> Failure:
    return Failure(f"the session bus is gone: {error.strerror or error}", "", UNREACHABLE)


def plain(details: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """An `a{sv}` without its variants, which jeepney has as (type, value)."""
    return {key: value for key, (_, value) in details.items()}
