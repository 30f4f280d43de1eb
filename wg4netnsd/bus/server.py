"""dbus-next, made safe.

What it does not do by itself, and this does: fds of every incoming message get an owner, callers
are known by name, no traceback and no exception's text leaves the process, a connection that ends
is noticed in every phase.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from wg4netnsd import errors
from wg4netnsd.aio import blocking
from wg4netnsd.bus import frames
from wg4netnsd.bus.address import session_address
from wg4netnsd.bus.call import Call, Reply
from wg4netnsd.bus.call_queue import Turns
from wg4netnsd.bus.client import CONNECT_TIME, DBUS, BusGone, bus_call
from wg4netnsd.bus.connection import (
    NOT_CONNECTED,
    Connection,
    Message,
    MessageFlag,
    MessageType,
    NameFlag,
    RequestNameReply,
    Variant,
    unmarshal,
)

__all__ = ["Bus", "BusGone", "Call", "NameTaken", "Reply", "Variant"]

log = logging.getLogger(__name__)

MAX_FDS: Final = 3
"""Fds that a call may bring: no method needs more."""

MAX_UNSENT: Final = 16 << 20
"""Bytes. While the bus has so much yet to take from us, signals are dropped: it has stopped."""

MAX_TEXT: Final = 1000
"""Characters of an error; half of that if all of them are printable."""

WARNING_INTERVAL: Final = 1.0  # seconds


class NameTaken(BusGone):
    """Somebody else owns our name."""


Handler = Callable[[Call], Awaitable[Reply]]


class Bus:
    """A connection to the session bus that serves calls and emits signals."""

    def __init__(self, connection: Connection, handler: Handler) -> None:
        self._connection = connection
        self._handler = handler
        self.id = ""  # another one each time that the bus is started
        self._name = ""
        self._calls: set[asyncio.Task[None]] = set()
        self._turns = Turns(lambda frame: self._spawn(self._serve(frame)))
        self._warned_at = -WARNING_INTERVAL
        self._watched: dict[str, set[Callable[[], object]]] = {}
        self._signals: list[Message] = []
        self._name_lost = asyncio.Event()
        connection.take = self._take
        connection.add_message_handler(self._on_bus_message)

    @classmethod
    async def connect(cls, handler: Handler) -> Bus:
        """Connect to the caller's session bus. Raises BusGone."""
        try:
            connection = Connection(session_address(), negotiate_unix_fd=True)
            async with asyncio.timeout(CONNECT_TIME):
                await connection.connect()
                bus = cls(connection, handler)
                (bus.id,) = (await connection.call(bus_call("GetId"))).body
        except NOT_CONNECTED as error:
            raise BusGone(f"no session bus: {str(error) or type(error).__name__}") from None
        return bus

    async def own_name(self, name: str) -> None:
        """Become `name`'s owner. Raises BusGone, NameTaken."""
        try:
            async with asyncio.timeout(CONNECT_TIME):
                reply = await self._connection.request_name(name, NameFlag.DO_NOT_QUEUE)
        except TimeoutError:  # dbus-next waits for ever for a bus that is gone
            raise BusGone(f"the bus does not answer the request for {name}") from None
        if reply is not RequestNameReply.PRIMARY_OWNER:
            raise NameTaken(f"{name} is owned already: is another wg4netnsd running?")
        self._name = name

    async def wait_gone(self) -> str:
        """Wait for the end of the connection or of our name; return which it was."""
        disconnected = asyncio.ensure_future(self._connection.wait_for_disconnect())
        lost = asyncio.ensure_future(self._name_lost.wait())
        try:
            await asyncio.wait([disconnected, lost], return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()
        if disconnected.done():
            disconnected.exception()  # of the socket; it says no more than that
            return "the bus has closed the connection"
        disconnected.cancel()
        return "the bus has given our name to somebody else"

    async def close(self, patiently: bool = True) -> None:
        """Answer the calls under way, then disconnect. Unless `patiently`, they are given up."""
        for frame in self._turns.end():
            self._refuse(frame, errors.ShuttingDown("the daemon is ending"))
        for call in () if patiently else self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls, timeout=5)
        if self._connection.connected:
            with contextlib.suppress(TimeoutError, OSError, EOFError):
                async with asyncio.timeout(5):
                    await self._ask("GetNameOwner", DBUS)  # answered after all that we have sent
            self._connection.disconnect()

    def emit(self, path: str, interface: str, member: str, signature: str, *body: Any) -> None:
        """Send a signal to whoever subscribed: in order, and before the reply that it belongs to.

        Marshalling takes a good part of a millisecond, so what caused the signal goes on first.
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
            self._send(signal)

    @contextlib.contextmanager
    def cancelled_without(self, call: Call) -> Iterator[None]:
        """In this block, the current task is cancelled when the caller that waits for it leaves."""
        task = asyncio.current_task()
        assert task
        if not call.expects_reply:
            yield
            return
        self.watch(call.sender, task.cancel)
        try:
            yield
        finally:
            self.unwatch(call.sender, task.cancel)

    def watch(self, sender: str, left: Callable[[], object]) -> None:
        """Have `left` called once when the bus client `sender` is gone, soon if it is already."""
        if sender not in self._watched:
            self._watched[sender] = set()
            self._match_owner("AddMatch", sender)
        self._watched[sender].add(left)
        # It may have left before the bus knew of our interest. The caller's call goes first.
        asyncio.get_running_loop().call_soon(lambda: self._spawn(self._check_owner(sender)))

    def unwatch(self, sender: str, left: Callable[[], object]) -> None:
        callbacks = self._watched.get(sender, set())
        callbacks.discard(left)
        if sender in self._watched and not callbacks:
            self._forget(sender)

    def _forget(self, sender: str) -> set[Callable[[], object]]:
        # After the reply, if one is due now. The bus counts equal rules: this ends the oldest.
        asyncio.get_running_loop().call_soon(self._match_owner, "RemoveMatch", sender)
        return self._watched.pop(sender)

    async def _check_owner(self, sender: str) -> None:
        if sender in self._watched and await self._ask("NameHasOwner", sender) == [False]:
            self._on_left(sender)

    def _on_left(self, sender: str) -> None:
        if sender in self._watched:
            for callback in self._forget(sender):
                callback()

    def _match_owner(self, method: str, name: str) -> None:
        """Without a reply: that the rule is well-formed is known, and the bus works in order."""
        source = f"type='signal',sender='{DBUS}',interface='{DBUS}'"
        message = bus_call(method, f"{source},member='NameOwnerChanged',arg0='{name}'")
        message.flags = MessageFlag.NO_REPLY_EXPECTED
        self._send(message)

    async def _ask(self, member: str, argument: str) -> list[Any]:
        """Call a method of the bus itself; its reply's body."""
        body: list[Any] = (await self._connection.call(bus_call(member, argument))).body
        return body

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def _send(self, message: Message) -> asyncio.Future[None]:
        sent: asyncio.Future[None] = self._connection.send(message)
        # A connection that ends is wait_gone()'s to report.
        sent.add_done_callback(lambda future: future.cancelled() or future.exception())
        return sent

    # ------------------------------------------------------------ what comes in

    def _take(self, frame: frames.Frame) -> bool:
        """Every message comes here first; True keeps it from dbus-next.

        Of what is no call, only the bus's own words mean something to us. A reply of anybody else
        would be taken for the bus's.
        """
        if frame.type != frames.METHOD_CALL:
            self._close(frame)
            return frame.sender != DBUS
        if not frame.fds and not frame.expects_reply and self._turns.is_full(frame.sender):
            return True  # and nobody is to be told: the way that a flood takes is short
        if refusal := self._refusal(frame):
            self._warn("a call from %s was refused: %s", frame.sender, refusal)
            self._refuse(frame, refusal)
        else:
            self._turns.add(frame)
        return True

    def _refusal(self, frame: frames.Frame) -> errors.Error | None:
        """Why a call is not even looked at."""
        if frame.fds_lost:
            return errors.LimitExceeded("no file descriptor left for the message's (RLIMIT_NOFILE)")
        if not frame.is_whole:
            long = f"a message of {frame.length} bytes: at most {frames.MAX_MESSAGE}"
            return errors.LimitExceeded(long)
        if len(frame.fds) > MAX_FDS:
            return errors.InvalidArgs(f"more than {MAX_FDS} file descriptors")
        if reason := self._turns.refusal(frame):
            return errors.LimitExceeded(reason)
        return None

    def _refuse(self, frame: frames.Frame, error: errors.Error) -> None:
        self._close(frame)
        if frame.expects_reply:
            serial = self._connection.next_serial()
            text = _one_line(str(error))
            self._connection.send_bytes(frames.error(serial, frame, error.dbus_name, text))

    def _close(self, frame: frames.Frame) -> None:
        for fd in frame.fds:
            if fd >= 0:  # else a call has taken or closed it
                blocking.close(fd)

    def _warn(self, text: str, *arguments: object) -> None:
        """Not for each of a flood's messages."""
        now = asyncio.get_running_loop().time()
        if now - self._warned_at >= WARNING_INTERVAL:
            self._warned_at = now
            log.warning(text, *arguments)

    def _on_bus_message(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.member == "NameOwnerChanged" and not message.body[2]:
            self._on_left(message.body[0])
        elif message.member == "NameLost" and message.body == [self._name]:
            self._name_lost.set()

    async def _serve(self, frame: frames.Frame) -> None:
        blocking.caller.set(frame.sender)
        fds = len(frame.fds)
        call = Call(
            sender=frame.sender,
            path=frame.path,
            interface=frame.interface,
            member=frame.member,
            signature=frame.signature,
            body=[],
            expects_reply=frame.expects_reply,
            fds=frame.fds,
        )
        try:
            await self._answer(frame, call)
        finally:
            self._turns.done(frame.sender, fds)

    async def _answer(self, frame: frames.Frame, call: Call) -> None:
        reply = Reply()
        answer: Message | errors.Error
        try:
            call.body = unmarshal(frame)
            reply = await self._handler(call)
            answer = _method_return(frame, reply)
        except errors.Error as error:
            log.info("%s from %s: %s", call.member, call.sender, _one_line(str(error)))
            answer = error
        except frames.Malformed as error:
            log.info("%s from %s: %s", call.member, call.sender, error)
            answer = errors.InvalidArgs("the message can't be read")
        except asyncio.CancelledError:
            answer = errors.ShuttingDown("the call was given up")
        except Exception as defect:
            if isinstance(defect, OSError) and defect.errno in errors.SHORTAGE:
                answer = errors.LimitExceeded(str(defect.strerror))
                self._warn("%s from %s: %s", call.member, call.sender, answer)
            else:
                log.exception("%s from %s: internal error", call.member, call.sender)
                answer = errors.Failed(f"{type(defect).__name__}; see the log")
        finally:
            call.close()
        try:
            if call.expects_reply:
                self._send_signals()
                if isinstance(answer, errors.Error):
                    self._refuse(frame, answer)
                else:
                    with contextlib.suppress(OSError, EOFError):
                        await self._send(answer)  # with its fds: they are to be open until then
        finally:
            for fd in reply.fds:
                os.close(fd)


def _one_line(text: str) -> str:
    """What a caller has named may hold anything: it must not write lines of its own into the log,
    nor to whoever's terminal prints the error."""
    if len(text) > MAX_TEXT // 2:  # what is wrong often comes last
        text = f"{text[: MAX_TEXT // 4]}…{text[-MAX_TEXT // 4 :]}"
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown[:MAX_TEXT]


def _method_return(call: frames.Frame, reply: Reply) -> Message:
    return Message(
        message_type=MessageType.METHOD_RETURN,
        reply_serial=call.serial,
        destination=call.sender,
        signature=reply.signature,
        body=list(reply.body),
        unix_fds=reply.fds,
    )
