"""A connection to a message bus: its socket, the calls that we make, and all that comes in.

connect(): open → authenticate → Hello
then       _on_readable → FrameReader → on_call, on_signal, or the reply that call() waits for
           send → Outbox → _on_writable
until      close(), or the bus ends it; wait_gone() tells
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, NamedTuple

from wg4netnsd.aio import blocking
from wg4netnsd.bus import address, codec, frames, sasl
from wg4netnsd.bus.codec import Message
from wg4netnsd.bus.frames import Frame
from wg4netnsd.bus.outbox import Outbox
from wg4netnsd.errors import LimitExceeded
from wg4netnsd.files import client as files
from wg4netnsd.files.client import FileProcesses, ReceivedFd

log = logging.getLogger(__name__)

DBUS: Final = "org.freedesktop.DBus"
DBUS_PATH: Final = "/org/freedesktop/DBus"

AT_ONCE: Final = 65536
"""Bytes that one wake-up reads: then it is the turn of others. That is 500 small calls."""

MAX_UNSENT: Final = 1 << 20
"""Bytes. While the bus has yet to take so much from us, we take no calls from it."""

CONNECT_TIME: Final = 10.0  # seconds
RECEIVE_TIME: Final = 10.0
"""Seconds for what takes a process a fraction of a millisecond."""


class BusGone(Exception):
    """There is no bus, it is gone, or it does not answer."""


class ErrorReply(Exception):
    """The answer to a call of ours is an error."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Pending(NamedTuple):
    """A call of ours that has no reply yet."""

    destination: str
    reply: asyncio.Future[list[Any]]


class Connection:
    """Owns the socket, and the fds of messages until they are handed on or sent."""

    def __init__(self, sock: socket.socket, fd_receiver: FileProcesses | None) -> None:
        """Use connect()."""
        self.on_call: Callable[[Frame], None] = self._refuse
        """Called with each method call that comes in. Owns its fds from then on."""
        self.on_signal: Callable[[Frame], None] = lambda _: None
        """Called with each signal that comes in, from anybody: unlike the match rules of the bus,
        no rule holds for a signal that is directed at us."""
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._serial = 0
        self._reader = frames.FrameReader()
        self._reading = False
        self._fd_receiver = fd_receiver
        self._receiving: asyncio.Task[None] | None = None
        self._outbox = Outbox()
        self._pending: dict[int, _Pending] = {}
        self._gone = asyncio.Event()
        self._why_gone = ""

    @classmethod
    async def connect(
        cls,
        addresses: str,
        *,
        fd_receiver: FileProcesses | None = None,
        patient: bool = False,
    ) -> Connection:
        """Return a connection to the first bus of the list that there is. Raises BusGone.

        `fd_receiver`: messages may bring file descriptors, which it receives. `patient`: wait for a
        bus that has too many waiting already (unix(7)).
        """
        try:
            connection = cls(await _open(addresses, patient), fd_receiver)
        except (OSError, ValueError) as error:
            raise BusGone(str(error)) from None
        try:
            await sasl.authenticate(connection._socket, with_fds=fd_receiver is not None)
            connection._read_on()
            await connection.call(bus_call("Hello"))
        except (OSError, EOFError, ErrorReply) as error:
            connection.close()
            raise BusGone(str(error)) from None
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def is_gone(self) -> bool:
        return self._gone.is_set()

    @property
    def unsent(self) -> int:
        """Bytes that the bus has not taken yet."""
        return self._outbox.unsent

    async def wait_gone(self) -> str:
        """Return when the connection has ended, with the reason."""
        await self._gone.wait()
        return self._why_gone

    def close(self) -> None:
        """End the connection, in any phase; may be called again. What is unsent is lost."""
        self._end("disconnected")

    # ------------------------------------------------------------ what goes out

    async def call(self, message: Message) -> list[Any]:
        """Call a method and return the reply's arguments. Raises ErrorReply, BusGone."""
        pending = _Pending(message.destination, self._loop.create_future())
        serial = self.send(message)
        self._pending[serial] = pending
        if self.is_gone:
            self._fail_pending()
        try:
            return await pending.reply
        finally:
            del self._pending[serial]

    def send(self, message: Message) -> int:
        """Send a message, after all that were sent before, and return its serial number.

        Owns its fds in any case. An exception of dbus-next is a bug of ours.
        """
        serial = message.serial = self.next_serial()
        try:
            data = codec.encode(message)
        except BaseException:
            for fd in message.unix_fds or ():
                os.close(fd)
            raise
        self.send_bytes(data, message.unix_fds or ())
        return serial

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message that is encoded already. A connection that has ended drops it."""
        first = not self._outbox.unsent
        self._outbox.add(data, fds)
        if self.is_gone:
            self._outbox.clear()
        elif first:
            self._on_writable()
            if self._outbox.unsent:
                self._loop.add_writer(self._socket, self._on_writable)

    def next_serial(self) -> int:
        self._serial = self._serial % 0xFFFFFFFF + 1
        return self._serial

    def _on_writable(self) -> None:
        try:
            self._outbox.write_to(self._socket)
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(_reason(error))
            return
        if not self._outbox.unsent:
            self._loop.remove_writer(self._socket)
        if not self._reading and not self._receiving and self._outbox.unsent <= MAX_UNSENT:
            self._read_on()

    # ------------------------------------------------------------ what comes in

    def _read_on(self) -> None:
        self._reading = True
        self._loop.add_reader(self._socket, self._on_readable)

    def _on_readable(self) -> None:
        if self._outbox.unsent > MAX_UNSENT:
            self._reading = False
            self._loop.remove_reader(self._socket)
            return
        try:
            data = self._receive()
        except BlockingIOError:
            return
        except (OSError, EOFError) as error:
            self._end(_reason(error))
            return
        if not self._receiving:
            self._feed(data, [])

    def _receive(self) -> bytes:
        """Read once. Raises EOFError when the bus has closed the connection.

        If there are descriptors with the data, they are then being received.
        """
        # Without room for descriptors, only a flag tells that there are some (recvmsg(2)). Closing
        # one can hang for ever, so this process must not have it.
        data, _, flags, _ = self._socket.recvmsg(AT_ONCE, 0, socket.MSG_PEEK)
        if not data:
            raise EOFError
        if flags & socket.MSG_CTRUNC and self._fd_receiver:
            self._reading = False
            self._loop.remove_reader(self._socket)
            self._receiving = self._loop.create_task(self._receive_fds(self._fd_receiver, data))
        else:
            self._socket.recv(len(data))
        return data

    async def _receive_fds(self, receiver: FileProcesses, data: bytes) -> None:
        """Read the data, which is known already, with its descriptors; then go on reading.

        Descriptors are lost if RLIMIT_NOFILE is reached, or if there is nobody to receive them.
        """
        fds: list[ReceivedFd] = []
        try:
            async with asyncio.timeout(RECEIVE_TIME):
                fds = await receiver.receive(self._socket, len(data))
        except LimitExceeded:
            if not self.is_gone:
                self._socket.recv(len(data))
        except (files.Lost, TimeoutError):
            self._end("the process that receives file descriptors has ended, or does not answer")
        self._receiving = None
        if self.is_gone:
            for fd in fds:
                files.close(fd)
            return
        self._read_on()
        self._feed(data, fds)

    def _feed(self, data: bytes, fds: list[ReceivedFd]) -> None:
        try:
            for frame in self._reader.feed(data, fds):
                self._route(frame)
        except frames.Malformed as error:
            self._end(str(error))

    def _route(self, frame: Frame) -> None:
        if frame.type == frames.METHOD_CALL:
            self.on_call(frame)
            return
        for fd in frame.fds:  # none of our calls asks for one
            files.close(fd)
        if frame.type in (frames.METHOD_RETURN, frames.ERROR):
            self._settle(frame)
        elif frame.type == frames.SIGNAL:
            self.on_signal(frame)

    def _settle(self, frame: Frame) -> None:
        """Hand a reply to the call that waits for it."""
        destination, reply = self._pending.get(frame.reply_serial, (None, None))
        if reply is None or reply.done():
            return
        if destination == DBUS and frame.sender != DBUS:
            return  # anybody can send us a reply, and must not speak for the bus
        if frame.type == frames.ERROR:
            reply.set_exception(ErrorReply(frame.error_name))
            return
        try:
            reply.set_result(codec.decode_body(frame))
        except frames.Malformed as error:
            reply.set_exception(BusGone(f"a reply that can't be read: {error}"))

    def _refuse(self, call: Frame) -> None:
        """Answer a call where nothing is served."""
        for fd in call.fds:
            files.close(fd)
        if call.expects_reply:
            name, text = f"{DBUS}.Error.UnknownObject", "UnknownObject: none is here"
            self.send_bytes(codec.encode_error(call, self.next_serial(), name, text))

    # ------------------------------------------------------------ its end

    def _end(self, why: str) -> None:
        if self.is_gone:
            return
        self._why_gone = why
        self._gone.set()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for fd in self._reader.pop_fds():
            files.close(fd)
        self._outbox.clear()
        self._fail_pending()

    def _fail_pending(self) -> None:
        for _, reply in self._pending.values():
            if not reply.done():
                reply.set_exception(BusGone(self._why_gone))


@contextlib.asynccontextmanager
async def answer_within(seconds: float) -> AsyncIterator[None]:
    """Raise BusGone if the block, in which the bus is asked something, takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise BusGone(f"no answer within {seconds:g} s") from None


def bus_call(member: str, *arguments: str | int) -> Message:
    """Return a call of a method of the bus itself. Integers are of D-Bus's type `u`."""
    return Message(
        destination=DBUS,
        path=DBUS_PATH,
        interface=DBUS,
        member=member,
        signature="".join("s" if isinstance(one, str) else "u" for one in arguments),
        body=list(arguments),
    )


# ---------------------------------------------------------------- opening the socket


async def _open(addresses: str, patient: bool) -> socket.socket:
    """Try each address of the list in turn, as the specification has it.

    Raises OSError, ValueError.
    """
    if not addresses:
        raise OSError("neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set")
    problems = []
    for transport, options in address.parse_list(addresses):
        path = options.get("path") or b"\0" + options.get("abstract", b"")
        if transport != "unix" or path == b"\0":
            problems.append(f"{transport}: not supported")
            continue
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await _connect(sock, path, patient)
            return sock
        except OSError as error:
            sock.close()
            problems.append(f"{os.fsdecode(path)}: {error.strerror or error}")
        except BaseException:
            sock.close()
            raise
    raise OSError("; ".join(problems) or "the list of addresses is empty")


async def _connect(sock: socket.socket, path: bytes, patient: bool) -> None:
    """Raises OSError."""
    sock.setblocking(False)
    try:
        sock.connect(path)
    except BlockingIOError:
        # Too many wait there. connect(2) alone can wait as well: the kernel has no event for it.
        if not patient:
            raise
        sock.setblocking(True)
        try:
            await blocking.call(CONNECT_TIME, sock.connect, path)
        except LimitExceeded as error:
            raise OSError(error.text) from None
        sock.setblocking(False)


def _reason(error: OSError | EOFError) -> str:
    """Return why the connection has ended. A bus that ends with something unread resets it."""
    closed = isinstance(error, EOFError | ConnectionResetError | BrokenPipeError)
    return "the bus has closed the connection" if closed else str(error)
