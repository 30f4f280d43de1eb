"""The client of the session bus that all commands share: blocking, on jeepney.

dbus-next would bring an event loop and three times the start-up time. No other module imports
jeepney.
"""

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
    "'systemctl --user start dbus.socket' starts it if the package dbus-user-session is installed; "
    "'wg4netnsctl doctor' checks"
)
LOG_IN: Final = (
    "log in as this user (by ssh, or 'machinectl shell'): su and sudo do not start a login "
    "session, so there is no session bus; 'wg4netnsctl doctor' has more"
)

CONNECT_TIME: Final = 10.0  # seconds
REPLY_TIME: Final = 25.0
"""Seconds that a call may take unless it says otherwise: the default of sd-bus and GDBus."""

PROPERTIES: Final = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER: Final = "org.freedesktop.DBus.ObjectManager"

_ANSWERS: Final = (b"DATA", b"OK", b"AGREE_UNIX_FD")  # of an authentication that succeeds
_SUBJECT: Final = (HeaderFields.path, HeaderFields.interface, HeaderFields.member)

Progress = Callable[[float], float]
"""Called during a wait with the seconds since it began; returns in how many seconds to be called
again."""


class Signal(NamedTuple):
    """A signal from the daemon or the bus. A variant in its body is (type, value)."""

    path: str
    interface: str
    member: str
    body: tuple[Any, ...]
    usec: int
    """Microseconds from 1970 to when we received it."""


class NoBus(Failure):
    """No session bus could be connected to."""

    def __init__(self, text: str, hint: str, reason: str = "", error: OSError | None = None):
        super().__init__(f"{text}: {reason}" if reason else text, hint, UNREACHABLE)
        self.reason = reason
        self.error = error
        """The refusal of the last address; None where none is usable."""


class Rejected(PermissionError):
    """The bus does not accept our credentials."""


class Reply:
    """The reply to a call that is under way."""

    def __init__(self, client: Client, serial: int, call: str) -> None:
        self._client = client
        self._serial = serial
        self._call = call

    def wait(
        self, progress: Progress | None = None, seconds: float = REPLY_TIME
    ) -> tuple[Any, ...]:
        """Return its body. Raises Failure if it is an error, or has not come within `seconds`."""
        message = self._client._receive_reply(self._serial, progress, seconds)
        if message is None:
            raise Failure(f"{self._call}: no answer within {seconds:g} s", LOG, TIMEOUT)
        if message.header.message_type is MessageType.error:
            name = message.header.fields[HeaderFields.error_name]
            raise of_bus(name, str(message.body[0]) if message.body else name)
        return tuple(message.body)


class Client:
    """A connection to the session bus. Signals that arrive during a call are kept for later."""

    def __init__(self, *, seconds: float = CONNECT_TIME, claim_uid: bool = False) -> None:
        """Connect. `claim_uid`: as _connect() has it. Raises NoBus."""
        address = session_address()
        if not address:
            text = "no session bus: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set"
            raise NoBus(text, LOG_IN)
        reason, last = "not an address of a bus", None
        for path in _socket_paths(address):
            try:
                connected = _connect(path, seconds, claim_uid)
                self._connection = DBusConnection(connected, enable_fds=True)
                break
            except OSError as error:
                reason, last = error.strerror or str(error), error
        else:
            # systemd makes the runtime directory at login; the bus in it may not be installed.
            logged_in = os.path.isdir(os.environ.get("XDG_RUNTIME_DIR", ""))
            hint = START_BUS if logged_in else LOG_IN
            raise NoBus(f"no session bus at {address}", hint, reason, last)
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
        start: bool = True, destination: str = names.BUS_NAME,
    ) -> Reply:  # fmt: skip
        """Send a call, to the daemon by default. It is started for that unless `start` is False.

        `body` has fds where the signature says `h`; they stay the caller's.
        """
        address = DBusAddress(path, destination, interface)
        message = new_method_call(address, method, signature or None, body)
        if not start:
            message.header.flags |= MessageFlag.no_auto_start
        serial = next(self._connection.outgoing_serial)
        try:
            self._connection.send(message, serial=serial)
        except OSError as error:
            raise _lost(error) from None
        return Reply(self, serial, f"{destination}: {method}")

    def call(
        self, path: str, interface: str, method: str, signature: str = "", *body: Any,
        start: bool = True, destination: str = names.BUS_NAME, seconds: float = REPLY_TIME,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Send a call and wait for its reply. Raises Failure."""
        body = (signature, *body)
        reply = self.begin(path, interface, method, *body, start=start, destination=destination)
        return reply.wait(seconds=seconds)

    def call_bus(self, method: str, signature: str = "", *body: Any) -> tuple[Any, ...]:
        """Call the bus itself. Raises Failure."""
        destination, path, interface = names.BUS
        return self.call(path, interface, method, signature, *body, destination=destination)

    def find_tunnel(self, name: str) -> str:
        """Return the path of the tunnel `name`. Raises Failure. Starts no daemon."""
        try:
            method = (names.ROOT_PATH, names.MANAGER, "GetTunnel", "s", name)
            (path,) = self.call(*method, start=False)
        except NotRunning:
            raise of_bus(f"{names.ERROR}.NoSuchTunnel", f"no tunnel '{name}'") from None
        return str(path)

    def tunnel(self, path: str) -> dict[str, Any]:
        """Return a tunnel's properties. Raises Failure."""
        found = self.properties(path, names.TUNNEL)
        if "RootTrusted" not in found:
            text = "the running daemon is of an earlier version"
            raise Failure(text, "'systemctl --user restart wg4netnsd' replaces it; tunnels stay up")
        return found

    def tunnels(self) -> dict[str, dict[str, Any]]:
        """Return the properties of all tunnels by their paths; none where no daemon runs."""
        return self.objects(names.TUNNEL)

    def objects(self, interface: str) -> dict[str, dict[str, Any]]:
        """Return the properties of all objects with that interface, by their paths."""
        try:
            method = (names.ROOT_PATH, OBJECT_MANAGER, "GetManagedObjects")
            (objects,) = self.call(*method, start=False)
        except NotRunning:
            return {}
        return {
            path: plain(interfaces[interface])
            for path, interfaces in objects.items()
            if interface in interfaces
        }

    def properties(self, path: str, interface: str) -> dict[str, Any]:
        """Return an object's properties. Raises Failure."""
        (variants,) = self.call(path, PROPERTIES, "GetAll", "s", interface, start=False)
        return plain(variants)

    def open_netns(self, path: str) -> int:
        """Return a new fd of a tunnel's namespace, which the caller owns."""
        (received,) = self.call(path, names.TUNNEL, "OpenNetns", start=False)
        fd: int = received.to_raw_fd()
        os.set_inheritable(fd, False)
        return fd

    # ------------------------------------------------------------ signals

    def listen(self, **match: str) -> None:
        """Receive the daemon's signals that match, and changes of its name's owner, from here on.
        The bus guarantees the sender."""
        self._add_match(sender=names.BUS[0], member="NameOwnerChanged", arg0=names.BUS_NAME)
        self._add_match(sender=names.BUS_NAME, **match)

    def _add_match(self, **rule: str) -> None:
        text = ",".join(f"{key}='{value}'" for key, value in {"type": "signal", **rule}.items())
        self.call_bus("AddMatch", "s", text)

    def next_signal(self, seconds: float | None = None) -> Signal:
        """Wait for a signal. Raises TimeoutError after `seconds`, and Failure when the bus is gone.

        With 0 it returns only what has arrived; fileno() then tells when to go on.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._signals:
            left = None if deadline is None else deadline - time.monotonic()
            self._keep_signal(self._receive(left))
        return self._signals.popleft()

    def pop_signals(self) -> list[Signal]:
        """Return the signals that arrived before the latest reply; next_signal() skips them."""
        kept = list(self._signals)
        self._signals.clear()
        return kept

    def fileno(self) -> int:
        """For poll(2)."""
        return int(self._connection.sock.fileno())

    # ------------------------------------------------------------ messages

    def _receive_reply(
        self, serial: int, progress: Progress | None, seconds: float
    ) -> Message | None:
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < seconds:
            left = seconds - passed
            if progress:
                left = min(progress(passed), left)
            with contextlib.suppress(TimeoutError):
                message = self._receive(left)
                if message.header.fields.get(HeaderFields.reply_serial) == serial:
                    return message
                self._keep_signal(message)
        return None

    def _receive(self, seconds: float | None) -> Message:
        try:
            return self._connection.receive(timeout=seconds)
        except TimeoutError:
            raise
        except OSError as error:
            raise _lost(error) from None

    def _keep_signal(self, message: Message) -> None:
        fields = message.header.fields
        # One with a destination did not pass our match rules: any client may have sent it.
        if (
            message.header.message_type is MessageType.signal
            and HeaderFields.destination not in fields
        ):
            path, interface, member = (fields[each] for each in _SUBJECT)
            self._signals.append(Signal(path, interface, member, tuple(message.body), now_usec()))


def plain(details: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """Unwrap the variants of an `a{sv}`, which jeepney represents as (type, value)."""
    return {key: value for key, (_, value) in details.items()}


def now_usec() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def _lost(error: OSError) -> Failure:
    return Failure(f"the session bus is gone: {error.strerror or error}", "", UNREACHABLE)


# ---------------------------------------------------------------- connecting


def _socket_paths(address: str) -> Iterator[str]:
    """The sockets of a list of addresses, in order; an abstract one begins with a zero byte."""
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


def _connect(path: str, seconds: float, claim_uid: bool) -> socket.socket:
    """Connect and authenticate, as the D-Bus specification has it, with fd passing.

    We claim no uid unless asked, so that the bus goes by the socket's credentials alone: in a user
    namespace such as `unshare --map-root-user` makes, our uid differs from the one outside. Most
    other clients, and the daemon, claim theirs. Raises OSError, Rejected if the bus refuses.
    """
    claim = f" {str(os.geteuid()).encode().hex()}" if claim_uid else ""
    lines = ("\0AUTH EXTERNAL", f"DATA{claim}", "NEGOTIATE_UNIX_FD", "BEGIN", "")
    connected = socket.socket(socket.AF_UNIX)
    try:
        connected.settimeout(seconds)
        connected.connect(path)
        connected.sendall("\r\n".join(lines).encode())
        answers = b""
        for expected in _ANSWERS:
            while b"\r\n" not in answers:
                received = connected.recv(4096)
                if not received:
                    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                answers += received
            answer, _, answers = answers.partition(b"\r\n")
            if answer.split()[:1] != [expected]:
                raise Rejected(errno.EACCES, f"it answers {answer.decode(errors='replace')}")
        connected.settimeout(None)
    except BaseException:
        connected.close()
        raise
    return connected
