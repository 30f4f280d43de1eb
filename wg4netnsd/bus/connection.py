"""dbus-next's connection to a bus: which bus, how to connect, how to read from it and write to it.

The only module that imports dbus-next; server.py has from here what it needs of it.
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
import typing
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from wg4netnsd.bus import frames

# dbus-next imports a decorator whose removal is announced for Python 3.15.
if not hasattr(typing, "no_type_check_decorator"):
    vars(typing)["no_type_check_decorator"] = lambda function: function

from dbus_next import Message, MessageFlag, MessageType, NameFlag, RequestNameReply, Variant
from dbus_next._private.marshaller import Marshaller
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.aio import MessageBus
from dbus_next.errors import AuthError
from dbus_next.signature import SignatureTree

__all__ = [
    "NOT_CONNECTED",
    "Connection",
    "Message",
    "MessageFlag",
    "MessageType",
    "NameFlag",
    "RequestNameReply",
    "Variant",
    "unmarshal",
]

log = logging.getLogger(__name__)

AUTH_LINE: Final = 4096

AT_ONCE: Final = 65536
"""Bytes that one wake-up reads, and about what it writes: then it is the others' turn. 500 small
calls, which take 2 ms to refuse."""

MAX_UNSENT: Final = 1 << 20
"""Bytes. While the bus has so much yet to take from us, we take no calls from it."""

MAX_FDS: Final = 253
"""SCM_MAX_FD of the kernel's: no message brings more."""

MAX_SIGNATURES: Final = 256
"""Those that dbus-next may remember; it forgets none, and a variant can have any."""

NOT_CONNECTED: Final = (OSError, EOFError, TimeoutError, ValueError, AuthError)
"""What connecting raises: the socket's errors, and dbus-next's of addresses and messages."""


class _Writer:
    """What is to be sent, in its order.

    dbus-next's own ends the connection when the socket is full, which a burst of signals can cause,
    and does not know how much it holds.
    """

    def __init__(self, connection: Connection) -> None:
        self.unsent = 0  # bytes
        self._connection = connection
        self._queue: deque[tuple[bytes, Sequence[int], asyncio.Future[None] | None]] = deque()
        self._at = 0  # how much of the first one has gone

    def schedule_write(
        self, message: Message | None = None, sent: asyncio.Future[None] | None = None
    ) -> None:
        """dbus-next's way in; without a message, what is there may go from now on."""
        if message:
            self.add(marshal(message), tuple(message.unix_fds or ()), sent)
        elif self._queue:
            self._connection.may_write(self._write)

    def add(
        self, data: bytes, fds: Sequence[int] = (), sent: asyncio.Future[None] | None = None
    ) -> None:
        self._queue.append((data, fds, sent))
        self.unsent += len(data)
        if len(self._queue) == 1 and self._connection.unique_name:  # not before Hello is answered
            self._connection.may_write(self._write)

    def _write(self) -> None:
        budget = AT_ONCE
        try:
            while self._queue and budget > 0:
                data, fds, sent = self._queue[0]
                rights = []
                if fds and not self._at:  # they go with the first byte
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                count = self._connection.socket.sendmsg([memoryview(data)[self._at :]], rights)
                budget -= count
                self.unsent -= count
                self._at += count
                if self._at == len(data):
                    self._at = 0
                    self._queue.popleft()
                    if sent and not sent.done():
                        sent.set_result(None)
        except BlockingIOError:
            pass
        except OSError as error:
            self._connection._finalize(error)
            return
        if not self._queue:
            self._connection.may_write(None)
        if self.unsent <= MAX_UNSENT:
            self._connection.may_read()

    def fail(self, error: Exception | None) -> None:
        """The connection is over."""
        for _, _, sent in self._queue:
            if sent and not sent.done():
                sent.set_exception(error or EOFError("disconnected"))
        self._queue.clear()


class Connection(MessageBus):  # type: ignore[misc]  # Any, to mypy
    """MessageBus with its connecting, its reading and its writing done right."""

    def __init__(self, address: str, patient: bool = True, **options: Any) -> None:
        """`patient`: connect() may wait for a bus that has too many waiting already (unix(7)).

        Raises OSError if `address` is empty, as session_address() has it where there is no bus.
        """
        if not address:
            raise OSError("neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set")
        self._patient = patient
        self._frames = frames.Frames()
        self._reading = True
        self.take: Callable[[frames.Frame], bool] = self._refuse_call
        # The address is only parsed by the base class; _setup_socket() below does the connecting.
        super().__init__(bus_address=address, **options)
        self._writer = _Writer(self)

    def _setup_socket(self) -> None:
        """Try each address of the list in turn, as the specification has it."""
        problems = []
        for transport, options in self._bus_address:
            path = options.get("path") or "\0" + options.get("abstract", "")
            if transport != "unix" or path == "\0":
                problems.append(f"{transport}: not supported")
                continue
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
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

    @property
    def socket(self) -> socket.socket:
        sock: socket.socket = self._sock
        return sock

    @property
    def unsent(self) -> int:
        """Bytes that the bus has not taken yet."""
        return self._writer.unsent

    def send_bytes(self, data: bytes) -> None:
        """Send messages that are marshalled already."""
        self._writer.add(data)

    def may_write(self, write: Callable[[], None] | None) -> None:
        """Have `write` called when there is room in the socket."""
        if write and not self._disconnected:
            self._loop.add_writer(self._fd, write)
        else:
            self._loop.remove_writer(self._fd)

    def may_read(self) -> None:
        """Go on reading, if that was paused."""
        if not self._reading and not self._disconnected:
            self._reading = True
            self._loop.add_reader(self._fd, self._message_reader)

    # ------------------------------------------------------------ what comes in

    def _message_reader(self) -> None:
        """One read and no more: the base class goes on as long as there is something."""
        if self.unsent > MAX_UNSENT:
            self._reading = False
            self._loop.remove_reader(self._fd)
            return
        try:
            for frame in self._frames.feed(*self._receive()):
                self._take(frame)
        except BlockingIOError:
            return
        except (OSError, EOFError, frames.Malformed) as error:
            self._finalize(error)

    def _receive(self) -> tuple[bytes, list[int]]:
        data, ancillary, _flags, _ = self._sock.recvmsg(
            AT_ONCE, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
        )
        fds = array.array("i")
        for _level, _type, rights in ancillary:
            fds.frombytes(rights[: len(rights) // fds.itemsize * fds.itemsize])
        if not data:
            raise EOFError("the bus has closed the connection")
        return data, list(fds)

    def _take(self, frame: frames.Frame) -> None:
        if self.take(frame) or frame.type not in (
            frames.METHOD_RETURN,
            frames.ERROR,
            frames.SIGNAL,
        ):
            return
        try:
            self._on_message(as_message(frame))
        except frames.Malformed as error:
            log.error("a message of the bus's own: %s", error)

    def _refuse_call(self, frame: frames.Frame) -> bool:
        """Of a connection that only listens."""
        if frame.type == frames.METHOD_CALL and frame.expects_reply:
            name, text = "org.freedesktop.DBus.Error.UnknownObject", "UnknownObject: none is here"
            self.send_bytes(frames.error(self.next_serial(), frame, name, text))
        return frame.type == frames.METHOD_CALL

    def _finalize(self, error: Exception | None = None) -> None:
        super()._finalize(error)
        self._writer.fail(error)
        for fd in self._frames.drop():
            os.close(fd)

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


def marshal(message: Message) -> bytes:
    """All of a message; its fds go beside it. Raises what dbus-next does, at a defect of ours."""
    body = Marshaller(message.signature, message.body)
    body.marshall()
    fields = {
        frames.PATH: message.path,
        frames.INTERFACE: message.interface,
        frames.MEMBER: message.member,
        frames.ERROR_NAME: message.error_name,
        frames.REPLY_SERIAL: message.reply_serial,
        frames.DESTINATION: message.destination,
        frames.SIGNATURE: message.signature,
        frames.UNIX_FDS: len(message.unix_fds or ()),
    }
    said = {code: value for code, value in fields.items() if value}
    kind, flags = message.message_type.value, message.flags.value
    return frames.message(kind, flags, message.serial, said, bytes(body.buffer))


def unmarshal(frame: frames.Frame) -> list[Any]:
    """A message's body. Raises Malformed."""
    if not frame.is_whole:
        raise frames.Malformed(f"{frame.length} bytes")
    if len(SignatureTree._cache) > MAX_SIGNATURES:
        SignatureTree._cache.clear()
    # Not the header: dbus-next refuses fields that it does not know, which are to be ignored.
    reader = Unmarshaller(stream=None)
    reader.buf, reader.endian, reader.offset = frame.data, frame.data[0], frame.body_at
    try:
        return [reader.read_argument(one) for one in SignatureTree._get(frame.signature).types]
    except Exception as error:  # of many types, none of them documented
        raise frames.Malformed(f"{type(error).__name__}: {error}") from None


def as_message(frame: frames.Frame) -> Message:
    """What is no call, for dbus-next. Raises Malformed."""
    body = unmarshal(frame)
    try:
        return Message(
            message_type=MessageType(frame.type),
            reply_serial=frame.fields.get(frames.REPLY_SERIAL),
            sender=frame.sender or None,
            destination=frame.destination or None,
            path=frame.path or None,
            interface=frame.interface,
            member=frame.member or None,
            error_name=frame.error_name or None,
            signature=frame.signature,
            body=body,
            serial=frame.serial,
        )
    except Exception as error:
        raise frames.Malformed(f"{type(error).__name__}: {error}") from None
