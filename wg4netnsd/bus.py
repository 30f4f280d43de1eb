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
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from wg4netnsd import blocking, errors
from wg4netnsd.connection import (
    NOT_CONNECTED,
    Connection,
    Message,
    MessageFlag,
    MessageType,
    NameFlag,
    RequestNameReply,
    Variant,
    session_address,
    system_address,
)

__all__ = ["Bus", "BusGone", "Call", "NameTaken", "Reply", "Variant", "listen", "system_address"]

log = logging.getLogger(__name__)

MAX_FDS: Final = 3
"""Fds that a call may bring: no method needs more. dbus-next drops what exceeds 16 unseen."""

DBUS: Final = "org.freedesktop.DBus"
DBUS_PATH: Final = "/org/freedesktop/DBus"
CONNECT_TIME: Final = 10.0  # seconds
CALL_TIME: Final = 2.0  # seconds


class BusGone(Exception):
    """There is no bus, it is gone, or our name on it is."""


class NameTaken(BusGone):
    """Somebody else owns our name."""


@dataclass
class Call:
    """One incoming method call. Owns the fds that came with it, until they are taken."""

    sender: str
    path: str
    interface: str | None
    member: str
    signature: str
    body: list[Any]
    expects_reply: bool
    fds: list[int] = field(default_factory=list)

    def take_fd(self, index: int) -> int:
        """The fd that an `h` of the body stands for; its owner is who takes it.

        Raises InvalidArgs, LimitExceeded.
        """
        if len(self.fds) <= index and _lacks_fds():  # dropped: recvmsg(2), MSG_CTRUNC
            raise errors.LimitExceeded("no file descriptor left (RLIMIT_NOFILE)")
        if not 0 <= index < len(self.fds) or self.fds[index] < 0:
            raise errors.InvalidArgs(f"file descriptor {index} did not come with the message")
        fd, self.fds[index] = self.fds[index], -1
        return fd

    def close(self) -> None:
        """Close what nobody took."""
        for index, fd in enumerate(self.fds):
            if fd >= 0:
                self.fds[index] = -1
                blocking.close(fd)


@dataclass
class Reply:
    """What a call is answered with. `fds` are closed once sent; an `h` of the body indexes them."""

    signature: str = ""
    body: Sequence[Any] = ()
    fds: list[int] = field(default_factory=list)


Handler = Callable[[Call], Awaitable[Reply]]


class Bus:
    """A connection to the session bus that serves calls and emits signals."""

    def __init__(self, connection: Connection, handler: Handler) -> None:
        self._connection = connection
        self._handler = handler
        self.id = ""  # another one each time that the bus is started
        self._name = ""
        self._calls: set[asyncio.Task[None]] = set()
        self._watched: dict[str, set[Callable[[], object]]] = {}
        self._signals: list[Message] = []
        self._name_lost = asyncio.Event()
        connection.add_message_handler(self._on_message)

    @classmethod
    async def connect(cls, handler: Handler) -> Bus:
        """Connect to the caller's session bus. Raises BusGone."""
        try:
            connection = Connection(session_address(), negotiate_unix_fd=True)
            async with asyncio.timeout(CONNECT_TIME):
                await connection.connect()
                bus = cls(connection, handler)
                (bus.id,) = (await connection.call(_bus_call("GetId"))).body
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

    async def close(self) -> None:
        """Answer the calls under way, then disconnect."""
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
        self._match_owner("RemoveMatch", sender)
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
        message = _bus_call(method, f"{source},member='NameOwnerChanged',arg0='{name}'")
        message.flags = MessageFlag.NO_REPLY_EXPECTED
        self._send(message)

    async def _ask(self, member: str, argument: str) -> list[Any]:
        """Call a method of the bus itself; its reply's body."""
        body: list[Any] = (await self._connection.call(_bus_call(member, argument))).body
        return body

    async def call(self, service: str, path: str, interface: str, member: str) -> list[Any]:
        """Call another service's method without arguments; its reply's body.

        Raises BusGone with its error, or where there is no answer.
        """
        message = Message(destination=service, path=path, interface=interface, member=member)
        try:
            async with asyncio.timeout(CALL_TIME):
                reply = await self._connection.call(message)
        except NOT_CONNECTED as error:
            raise BusGone(f"{service}: {str(error) or type(error).__name__}") from None
        if reply.message_type is MessageType.ERROR:
            raise BusGone(f"{service}: {reply.error_name}")
        body: list[Any] = reply.body
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

    def _on_message(self, message: Message) -> bool:
        """The first and only handler; True keeps the message from dbus-next's own dispatcher."""
        fds, message.unix_fds = list(message.unix_fds), []
        for fd in fds:
            os.set_inheritable(fd, False)
        if message.message_type is MessageType.METHOD_CALL:
            call = Call(
                sender=message.sender or "",
                path=message.path,
                interface=message.interface,
                member=message.member,
                signature=message.signature,
                body=message.body,
                expects_reply=not message.flags & MessageFlag.NO_REPLY_EXPECTED,
                fds=fds,
            )
            self._spawn(self._serve(call, message))
            return True
        for fd in fds:
            blocking.close(fd)
        if message.message_type is MessageType.SIGNAL and message.sender == DBUS:
            self._on_bus_signal(message)
        return False

    def _on_bus_signal(self, message: Message) -> None:
        if message.member == "NameOwnerChanged" and not message.body[2]:
            self._on_left(message.body[0])
        elif message.member == "NameLost" and message.body == [self._name]:
            self._name_lost.set()

    async def _serve(self, call: Call, message: Message) -> None:
        reply = Reply()
        try:
            if len(call.fds) > MAX_FDS:
                raise errors.InvalidArgs(f"more than {MAX_FDS} file descriptors")
            reply = await self._handler(call)
            answer = Message.new_method_return(
                message, reply.signature, list(reply.body), reply.fds
            )
        except errors.Error as error:
            log.info("%s from %s: %s", call.member, call.sender, error)
            answer = _error(message, error)
        except asyncio.CancelledError:
            answer = _error(message, errors.ShuttingDown("the call was given up"))
        except Exception as defect:
            log.exception("%s from %s: a defect", call.member, call.sender)
            answer = _error(message, errors.Failed(f"{type(defect).__name__}; see the log"))
        finally:
            call.close()
        try:
            if call.expects_reply:
                self._send_signals()
                with contextlib.suppress(OSError, EOFError):
                    await self._send(answer)  # an fd closed before this ends the whole connection
        finally:
            for fd in reply.fds:
                os.close(fd)


def _lacks_fds() -> bool:
    try:
        os.close(os.dup(0))
    except OSError:
        return True
    return False


async def listen(address: str, rule: str, heard: Callable[[list[Any]], object]) -> NoReturn:
    """Call `heard` with the body of each signal that is broadcast and matches; cancel it to end.

    Raises BusGone, with the reason: there is no such bus, or it is there no longer. Receives no
    fds, as it never says that it could.
    """

    def on_message(message: Message) -> None:
        # For broadcasts the bus has checked the rule, and so who the sender is. A signal directed
        # at us comes in any case, from anybody.
        if message.message_type is MessageType.SIGNAL and not message.destination:
            heard(message.body)

    try:
        with contextlib.closing(Connection(address, patient=False)) as connection:
            async with asyncio.timeout(CONNECT_TIME):
                await connection.connect()
                connection.add_message_handler(on_message)
                reply = await connection.call(_bus_call("AddMatch", rule))
            if reply.message_type is MessageType.ERROR:
                raise BusGone(f"{reply.error_name} for {rule}")
            await connection.wait_for_disconnect()
    except NOT_CONNECTED as error:
        raise BusGone(str(error) or type(error).__name__) from None
    raise BusGone("disconnected")


def _bus_call(member: str, *arguments: str) -> Message:
    return Message(
        destination=DBUS,
        path=DBUS_PATH,
        interface=DBUS,
        member=member,
        signature="s" * len(arguments),
        body=list(arguments),
    )


def _error(message: Message, error: errors.Error) -> Message:
    return Message.new_error(message, error.dbus_name, str(error))
