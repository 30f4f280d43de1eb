"""Our side of the session bus: serves calls under our name, and emits signals.

    Connection ──► Server.dispatch ──► CallQueue ──► Server._serve ──► objects.py ──► reply

Callers are known by their unique names, no traceback and no exception's text leaves the process,
and a connection that ends is noticed in every phase.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from wg4netnsd import errors
from wg4netnsd.aio import blocking
from wg4netnsd.aio.tasks import first_of
from wg4netnsd.bus import codec, frames
from wg4netnsd.bus.address import session_address
from wg4netnsd.bus.call import Call, Reply
from wg4netnsd.bus.call_queue import CallQueue
from wg4netnsd.bus.client_watch import ClientWatch
from wg4netnsd.bus.codec import Message, MessageType
from wg4netnsd.bus.connection import (
    CONNECT_TIME,
    DBUS,
    BusGone,
    Connection,
    ErrorReply,
    answer_within,
    bus_call,
)
from wg4netnsd.bus.frames import Frame
from wg4netnsd.files.client import FileProcesses
from wg4netnsd.text import printable

log = logging.getLogger(__name__)

MAX_FDS: Final = 6
"""Fds that a call may bring: no method needs more than 5, and one more for its error."""

MAX_UNSENT: Final = 16 << 20
"""Bytes. While the bus has yet to take so much from us, signals are dropped: it has stopped."""

MAX_TEXT: Final = 1000
"""Characters of an error; half of that if all of them are printable."""

WARNING_INTERVAL: Final = 1.0  # seconds

CLOSE_TIME: Final = 5.0
"""Seconds for the calls under way, and again for the bus to take what we have sent."""

_DO_NOT_QUEUE: Final = 4  # the D-Bus specification's flag of RequestName …
_PRIMARY_OWNER: Final = 1  # … and the result that is wanted


class NameTaken(BusGone):
    """Somebody else owns our name."""


Handler = Callable[[Call], Awaitable[Reply]]


class Server:
    """Owns the connection, and the tasks that serve calls."""

    def __init__(self, connection: Connection, bus_id: str, handler: Handler) -> None:
        self.bus_id = bus_id  # another one each time that the bus is started
        self._connection = connection
        self._handler = handler
        self._name = ""
        self._queue = CallQueue(self._start)
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients = ClientWatch(connection)
        self._signals: list[Message] = []
        self._name_lost = asyncio.Event()
        self._warned_at = -WARNING_INTERVAL
        connection.on_call = self.dispatch
        connection.on_signal = self._on_signal

    @classmethod
    async def connect(cls, handler: Handler, fd_receiver: FileProcesses) -> Server:
        """Connect to the user's session bus. Raises BusGone."""
        try:
            async with answer_within(CONNECT_TIME):
                address = session_address()
                connection = await Connection.connect(
                    address, fd_receiver=fd_receiver, patient=True
                )
                (bus_id,) = await connection.call(bus_call("GetId"))
        except (BusGone, ErrorReply) as error:
            raise BusGone(f"no session bus: {error}") from None
        return cls(connection, bus_id, handler)

    async def own_name(self, name: str) -> None:
        """Become the owner of `name`. Raises BusGone, NameTaken."""
        async with answer_within(CONNECT_TIME):
            reply = await self._connection.call(bus_call("RequestName", name, _DO_NOT_QUEUE))
        if reply != [_PRIMARY_OWNER]:
            raise NameTaken(f"{name} is owned already: is another wg4netnsd running?")
        self._name = name

    async def wait_gone(self) -> str:
        """Wait for the end of the connection or of our name; return which it was."""
        await first_of(self._connection.wait_gone(), self._name_lost.wait())
        if self._connection.is_gone:
            return await self._connection.wait_gone()
        return "the bus has given our name to somebody else"

    async def close(self, patiently: bool = True) -> None:
        """Answer the calls under way, then disconnect. Unless `patiently`, give them up."""
        for call in self._queue.pop_waiting():
            self._refuse(call, errors.ShuttingDown("the daemon is ending"))
        for task in () if patiently else self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_TIME)
        with contextlib.suppress(BusGone, ErrorReply):
            async with answer_within(CLOSE_TIME):
                # The bus works in order: its answer means that it has taken all that we have sent.
                await self._connection.call(bus_call("GetNameOwner", DBUS))
        self._connection.close()

    # ------------------------------------------------------------ what goes out

    def emit(self, path: str, interface: str, member: str, signature: str, *body: Any) -> None:
        """Send a signal to its subscribers: in order, and before the reply to the call behind it.

        Encoding takes a good part of a millisecond, so what caused the signal goes on first.
        """
        if not self._signals:
            asyncio.get_running_loop().call_soon(self._send_signals)
        self._signals.append(Message.new_signal(path, interface, member, signature, list(body)))

    def _send_signals(self) -> None:
        signals, self._signals = self._signals, []
        if signals and self._connection.unsent > MAX_UNSENT:
            self._warn("%d signals are lost: the bus takes none", len(signals))
            return
        for signal in signals:
            self._connection.send(signal)

    def _reply(self, call: Call, reply: Reply) -> None:
        if not call.expects_reply:
            reply.close()
            return
        self._send_signals()
        self._connection.send(
            Message(
                message_type=MessageType.METHOD_RETURN,
                reply_serial=call.frame.serial,
                destination=call.sender,
                signature=reply.signature,
                body=list(reply.body),
                unix_fds=reply.fds,
            )
        )

    def _refuse(self, call: Call, error: errors.Error) -> None:
        call.close()
        if call.expects_reply:
            self._send_signals()
            serial, text = self._connection.next_serial(), _one_line(str(error))
            data = codec.encode_error(call.frame, serial, error.dbus_name, text)
            self._connection.send_bytes(data)

    # ------------------------------------------------------------ clients that leave

    def on_client_gone(self, client: str, callback: Callable[[], object]) -> None:
        """Have `callback` called once when `client` has left the bus, or soon if it has already."""
        self._clients.add(client, callback)

    def forget_client(self, client: str, callback: Callable[[], object]) -> None:
        """Undo on_client_gone()."""
        self._clients.remove(client, callback)

    @contextlib.contextmanager
    def cancelled_without_client(self, call: Call) -> Iterator[None]:
        """In this block, the current task is cancelled when the caller that waits for it leaves."""
        task = asyncio.current_task()
        assert task
        if not call.expects_reply:
            yield
            return
        self._clients.add(call.sender, task.cancel)
        try:
            yield
        finally:
            self._clients.remove(call.sender, task.cancel)

    # ------------------------------------------------------------ what comes in

    def dispatch(self, frame: Frame) -> None:
        """Have a method call served in its client's turn, or refuse it."""
        if not frame.fds and not frame.expects_reply and self._queue.is_full(frame.sender):
            return  # and nobody has to be told: a flood takes this way, so it is short
        call = Call(frame)
        if refusal := self._why_refused(call):
            self._warn("a call from %s was refused: %s", call.sender, refusal)
            self._refuse(call, refusal)
        else:
            self._queue.add(call)

    def _why_refused(self, call: Call) -> errors.Error | None:
        """Return why a call is refused unseen; None if it is not."""
        frame = call.frame
        if frame.fds_lost:
            return errors.LimitExceeded(
                "no file descriptor left for the message's (RLIMIT_NOFILE, or too many on their "
                "way or on file systems that give no answer)"
            )
        if not frame.is_whole:
            long = f"a message of {frame.length} bytes: at most {frames.MAX_MESSAGE}"
            return errors.LimitExceeded(long)
        if len(frame.fds) > MAX_FDS:
            return errors.InvalidArgs(f"more than {MAX_FDS} file descriptors")
        if reason := self._queue.why_refused(call):
            return errors.LimitExceeded(reason)
        return None

    def _start(self, call: Call) -> None:
        task = asyncio.create_task(self._serve(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, call: Call) -> None:
        blocking.caller.set(call.sender)
        try:
            call.body = codec.decode_body(call.frame)
            self._reply(call, await self._handler(call))
        except errors.Error as error:
            log.info("%s from %s: %s", call.member, call.sender, _one_line(str(error)))
            self._refuse(call, error)
        except frames.Malformed as error:
            log.info("%s from %s: %s", call.member, call.sender, error)
            self._refuse(call, errors.InvalidArgs("the message can't be read"))
        except asyncio.CancelledError:
            self._refuse(call, errors.ShuttingDown("the call was given up"))
        except Exception as defect:
            self._refuse(call, self._report(call, defect))
        finally:
            call.close()
            self._queue.done(call)

    def _report(self, call: Call, defect: Exception) -> errors.Error:
        """Log an exception that no method should raise; return the error that the caller gets."""
        if isinstance(defect, OSError) and defect.errno in errors.SHORTAGE:
            lacking = errors.LimitExceeded(str(defect.strerror))
            self._warn("%s from %s: %s", call.member, call.sender, lacking)
            return lacking
        log.error("%s from %s: internal error", call.member, call.sender, exc_info=defect)
        return errors.Failed(f"{type(defect).__name__}; see the log")

    def _on_signal(self, frame: Frame) -> None:
        """Handle the bus's own signals; anybody else's mean nothing to us."""
        if frame.sender != DBUS:
            return
        try:
            if frame.member == "NameOwnerChanged":
                self._clients.name_owner_changed(frame)
            elif frame.member == "NameLost" and codec.decode_body(frame) == [self._name]:
                self._name_lost.set()
        except frames.Malformed as error:
            log.error("a signal of the bus's own can't be read: %s", error)

    def _warn(self, text: str, *arguments: object) -> None:
        """Log a warning, but not one for each message of a flood."""
        now = asyncio.get_running_loop().time()
        if now - self._warned_at >= WARNING_INTERVAL:
            self._warned_at = now
            log.warning(text, *arguments)


def _one_line(text: str) -> str:
    """Return a text that a caller may have chosen, shortened and printable: it must not write lines
    of its own into the log, nor to the terminal that prints the error."""
    if len(text) > MAX_TEXT // 2:  # the mistake often comes last
        text = f"{text[: MAX_TEXT // 4]}…{text[-MAX_TEXT // 4 :]}"
    return printable(text)[:MAX_TEXT]
