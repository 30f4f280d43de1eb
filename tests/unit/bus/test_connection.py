"""A connection in each of its phases, to a bus that is played by the test."""

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from support import rawbus
from support.files import file_processes
from support.rawbus import Raw
from wg4netnsd.bus import address, codec, connection
from wg4netnsd.bus.connection import DBUS, BusGone, Connection, ErrorReply, bus_call
from wg4netnsd.bus.frames import Frame, FrameReader
from wg4netnsd.bus.outbox import AT_ONCE, Outbox
from wg4netnsd.files import client as files
from wg4netnsd.files.client import FileProcesses, HeldFd

ACCEPT = (b"OK 1234", b"AGREE_UNIX_FD")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path, as those of sockets have to be."""
    with tempfile.TemporaryDirectory(prefix="wg-") as made:
        yield Path(made)


@pytest.fixture
def processes() -> Iterator[FileProcesses]:
    with file_processes() as started:
        yield started


@pytest.fixture(autouse=True)
def no_fds_left() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


class PlayedBus:
    """A bus with one client. Each of its steps waits for what the client sends."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix:path={path}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self.received: list[Frame] = []
        self._reader = FrameReader()
        self._serial = 0

    async def authenticate(self, *answers: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        self.sock, _ = await loop.sock_accept(self._listener)
        self.sock.setblocking(False)
        for answer in answers:
            assert (await loop.sock_recv(self.sock, 4096)).endswith(b"\r\n")
            await loop.sock_sendall(self.sock, answer + b"\r\n")

    async def accept(self, with_fds: bool) -> None:
        """Authenticate the client, and answer its Hello."""
        await self.authenticate(*ACCEPT[: 1 + with_fds])
        hello = await self.call()
        assert hello.member == "Hello"
        self.reply(hello, "s", ":1.7")

    async def call(self) -> Frame:
        """The next message of the client's."""
        loop = asyncio.get_running_loop()
        while not self.received:
            data = await loop.sock_recv(self.sock, 65536)
            assert data, "the client has gone"
            data = data.removeprefix(b"BEGIN\r\n")
            self.received += self._reader.feed(data, [])
        return self.received.pop(0)

    def reply(self, call: Frame, signature: str, *body: object, sender: str = DBUS) -> None:
        self.send(rawbus.METHOD_RETURN, [(5, "u", call.serial)], sender, signature, *body)

    def send(
        self,
        kind: int,
        fields: list[tuple[int, str, object]],
        sender: str = DBUS,
        signature: str = "",
        *body: object,
        fds: Sequence[int] = (),
    ) -> None:
        self._serial += 1
        fields = [*fields, (7, "s", sender)]
        if fds:
            fields.append((9, "u", len(fds)))
        data = Raw(kind, fields=fields, signature=signature, body=body).data(self._serial)
        socket.send_fds(self.sock, [data], fds)

    def close(self) -> None:
        self._listener.close()
        if hasattr(self, "sock"):
            self.sock.close()


@pytest.fixture
def bus(directory: Path) -> Iterator[PlayedBus]:
    played = PlayedBus(directory / "bus")
    yield played
    played.close()


def run(
    bus: PlayedBus,
    test: Callable[[Connection], Awaitable[object]],
    processes: FileProcesses | None = None,
) -> None:
    """The test with a connection that the bus has accepted."""

    async def both() -> None:
        async with asyncio.timeout(10):
            accepting = asyncio.create_task(bus.accept(with_fds=processes is not None))
            made = await Connection.connect(bus.address, fd_receiver=processes)
            with contextlib.closing(made):
                await accepting
                await test(made)

    asyncio.run(both())


# ---------------------------------------------------------------- addresses


def test_an_address_in_its_parts() -> None:
    listed = "unix:path=/run/a%20b%ff,guid=12;unix:abstract=x;tcp:host=localhost,port=1;"
    assert address.parse_list(listed) == [
        ("unix", {"path": b"/run/a b\xff", "guid": b"12"}),
        ("unix", {"abstract": b"x"}),
        ("tcp", {"host": b"localhost", "port": b"1"}),
    ]


@pytest.mark.parametrize("wrong", ["nonsense", ":path=/a", "unix:path", "unix:=/a"])
def test_no_address(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not a D-Bus address"):
        address.parse_list(wrong)
    with pytest.raises(BusGone, match="is not a D-Bus address"):
        asyncio.run(Connection.connect(wrong))


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        ("", "XDG_RUNTIME_DIR is not set|XDG_RUNTIME_DIR is set"),
        (";", "the list of addresses is empty"),
        ("unix:path=/none;tcp:host=a", "/none: No such file or directory; tcp: not supported"),
        ("unix:tmpdir=/tmp", "unix: not supported"),
        (f"unix:path=/{'x' * 200}", "too long"),
    ],
)
def test_nobody_at_an_address(listed: str, problem: str) -> None:
    with pytest.raises(BusGone, match=problem):
        asyncio.run(Connection.connect(listed))


def test_the_first_that_answers(bus: PlayedBus) -> None:
    bus.address = f"tcp:host=a;unix:path=/none;{bus.address};unix:path=/after"

    async def test(made: Connection) -> None:
        assert not made.is_gone

    run(bus, test)


def test_patience_where_too_many_wait(directory: Path) -> None:
    """The event loop goes on meanwhile; who has none is refused at once."""
    path = str(directory / "busy")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(path)
        listener.listen(0)
        first = stack.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(path)

        async def test() -> None:
            with pytest.raises(BusGone, match="Resource temporarily unavailable"):
                await Connection.connect(f"unix:path={path}")
            waiting = asyncio.create_task(Connection.connect(f"unix:path={path}", patient=True))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            for _ in range(2):
                accepted, _ = listener.accept()
                accepted.close()
            with pytest.raises(BusGone):
                await waiting

        asyncio.run(test())


# ---------------------------------------------------------------- authentication and Hello


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ([b"REJECTED EXTERNAL"], "'REJECTED EXTERNAL': expected OK"),
        ([b"gar\xffbage"], "expected OK"),
        ([b"OKAY"], "expected OK"),
        ([b"OK 1234", b"ERROR"], "'ERROR': expected AGREE_UNIX_FD"),
        ([b"x" * 10_000], "broke off|expected OK"),
        ([], "broke off"),
        ([b"OK 1234"], "broke off"),
        (ACCEPT, "closed the connection"),
    ],
)
def test_what_is_no_bus(
    bus: PlayedBus, processes: FileProcesses, answers: list[bytes], problem: str
) -> None:
    async def test() -> None:
        connecting = asyncio.create_task(Connection.connect(bus.address, fd_receiver=processes))
        await bus.authenticate(*answers)
        if answers == list(ACCEPT):
            await bus.call()
        bus.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(BusGone, match=problem):
            await connecting

    asyncio.run(test())


@pytest.mark.parametrize("answers", [[], [b"OK 1234"], ACCEPT])
def test_one_that_says_no_more_is_given_up(
    bus: PlayedBus, processes: FileProcesses, answers: list[bytes]
) -> None:
    async def test() -> None:
        playing = asyncio.create_task(bus.authenticate(*answers))
        with pytest.raises(BusGone, match=r"no answer within 0\.2 s"):
            async with connection.answer_within(0.2):
                await Connection.connect(bus.address, fd_receiver=processes)
        await playing

    asyncio.run(test())


# ---------------------------------------------------------------- calls


def test_replies_find_their_calls(bus: PlayedBus) -> None:
    async def test(made: Connection) -> None:
        asked = [asyncio.create_task(made.call(bus_call("GetNameOwner", n))) for n in ("a", "b")]
        first, second = await bus.call(), await bus.call()
        assert codec.decode_body(first) == ["a"]
        bus.reply(second, "s", "of b")
        bus.reply(first, "s", "of a")
        assert [await each for each in asked] == [["of a"], ["of b"]]

    run(bus, test)


def test_nobody_speaks_for_the_bus(bus: PlayedBus) -> None:
    async def test(made: Connection) -> None:
        asked = asyncio.create_task(made.call(bus_call("NameHasOwner", "a")))
        call = await bus.call()
        bus.reply(call, "b", 0, sender=":1.66")
        bus.send(rawbus.ERROR, [(5, "u", call.serial), (4, "s", "a.b")], ":1.66")
        bus.reply(call, "b", 1)
        assert await asked == [True]
        bus.reply(call, "b", 0)  # once more: nobody waits for it

    run(bus, test)


def test_an_error_and_a_reply_that_makes_no_sense(bus: PlayedBus) -> None:
    async def test(made: Connection) -> None:
        asked = asyncio.create_task(made.call(bus_call("GetId")))
        call = await bus.call()
        bus.send(rawbus.ERROR, [(5, "u", call.serial), (4, "s", "a.b.Error")], DBUS, "s", "why")
        with pytest.raises(ErrorReply) as refused:
            await asked
        assert refused.value.name == "a.b.Error"
        asked = asyncio.create_task(made.call(bus_call("GetId")))
        call = await bus.call()
        fields = [(5, "u", call.serial), (8, "g", "s")]  # and no body
        bus.send(rawbus.METHOD_RETURN, fields)
        with pytest.raises(BusGone, match="can't be read"):
            await asked

    run(bus, test)


def test_where_nothing_is_served_calls_are_refused(bus: PlayedBus) -> None:
    async def test(_made: Connection) -> None:
        bus.send(rawbus.METHOD_CALL, [(1, "o", "/"), (3, "s", "Ping")], ":1.8")
        answer = await bus.call()
        assert (answer.type, answer.destination) == (rawbus.ERROR, ":1.8")
        assert answer.error_name == f"{DBUS}.Error.UnknownObject"

    run(bus, test)


# ---------------------------------------------------------------- descriptors


def test_descriptors_come_with_their_messages(bus: PlayedBus, processes: FileProcesses) -> None:
    """Those of files stay with another process."""

    async def test(made: Connection) -> None:
        heard: asyncio.Queue[Frame] = asyncio.Queue()
        made.on_call = heard.put_nowait
        for fds in ([], [memory], [file, pipe, file], [], [pipe]):
            call = [(1, "o", "/"), (3, "s", f"With{len(fds)}")]
            bus.send(rawbus.METHOD_CALL, call, ":1.8", fds=fds)
        for held in ([], [False], [True, False, True], [], [False]):
            frame = await heard.get()
            assert frame.member == f"With{len(held)}"
            assert [isinstance(fd, HeldFd) for fd in frame.fds] == held
            for fd in frame.fds:
                if isinstance(fd, HeldFd):
                    fd.close()
                else:
                    os.close(fd)

    memory, file = os.memfd_create("config"), os.open("/proc/version", os.O_RDONLY)
    pipe, end = os.pipe()
    run(bus, test, processes)
    for fd in (memory, file, pipe, end):
        os.close(fd)


def test_descriptors_that_nobody_can_receive_are_lost(
    bus: PlayedBus, processes: FileProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_PROCESSES", 0)

    async def test(made: Connection) -> None:
        heard: asyncio.Queue[Frame] = asyncio.Queue()
        made.on_call = heard.put_nowait
        for fds in ([0], []):
            bus.send(rawbus.METHOD_CALL, [(1, "o", "/"), (3, "s", "Ping")], ":1.8", fds=fds)
            frame = await heard.get()
            assert frame.fds == []
            assert frame.fds_lost == bool(fds)

    run(bus, test, processes)


def test_a_receiver_that_ends_ends_the_connection(bus: PlayedBus, processes: FileProcesses) -> None:
    """Nobody knows whether it has read the message."""

    async def test(made: Connection) -> None:
        os.kill(processes.pid, signal.SIGSTOP)
        bus.send(rawbus.METHOD_CALL, [(1, "o", "/"), (3, "s", "Ping")], ":1.8", fds=[0])
        await asyncio.sleep(0.05)  # it has begun to wait for one that is not forked
        os.kill(processes.pid, signal.SIGKILL)
        assert "receives file descriptors" in await made.wait_gone()

    run(bus, test, processes)


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize("who", ["we", "the bus", "a malformed message"])
def test_who_waits_is_told_of_the_end(bus: PlayedBus, who: str) -> None:
    async def test(made: Connection) -> None:
        asked = asyncio.create_task(made.call(bus_call("GetId")))
        gone = asyncio.create_task(made.wait_gone())
        await bus.call()
        match who:
            case "we":
                made.close()
            case "the bus":
                bus.sock.close()
            case _:
                bus.sock.sendall(b"x" * 16)
        with pytest.raises(BusGone) as ended:
            await asked
        assert str(ended.value) == await gone != ""
        assert made.is_gone
        with pytest.raises(BusGone):
            await made.call(bus_call("GetId"))

    run(bus, test)


def test_fds_of_what_was_not_sent_are_closed(bus: PlayedBus) -> None:
    """no_fds_left() looks for them."""

    async def test(made: Connection) -> None:
        for _ in range(2):
            message = bus_call("GetId")
            message.unix_fds = [os.dup(0)]
            made.send(message)
            made.close()
        message = bus_call("GetId", "one")
        message.body, message.unix_fds = [1], [os.dup(0)]  # no string: a defect
        with pytest.raises(Exception, match="must be Python type"):
            made.send(message)

    run(bus, test)


# ---------------------------------------------------------------- much at once


def test_nothing_is_read_while_the_bus_takes_nothing(bus: PlayedBus) -> None:
    async def test(made: Connection) -> None:
        heard: asyncio.Queue[Frame] = asyncio.Queue()
        made.on_signal = heard.put_nowait
        signal = [(1, "o", "/"), (2, "s", "a.b"), (3, "s", "C")]
        bus.send(rawbus.SIGNAL, list(signal))
        await heard.get()
        while made.unsent <= connection.MAX_UNSENT:
            made.send_bytes(bytes(100_000))
        for _ in range(3):
            bus.send(rawbus.SIGNAL, list(signal))
        await asyncio.sleep(0.1)
        assert heard.empty()
        loop = asyncio.get_running_loop()
        while made.unsent:
            await loop.sock_recv(bus.sock, 1 << 20)
        for _ in range(3):
            await heard.get()

    run(bus, test)


def test_an_outbox_in_order_and_with_fds() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        outbox = Outbox()
        large = os.urandom(AT_ONCE * 5)
        read_end, write_end = os.pipe()
        outbox.add(b"first")
        outbox.add(large, [write_end])
        outbox.add(b"last")
        assert outbox.unsent == len(large) + 9
        outbox.write_to(ours)
        assert 0 < outbox.unsent < len(large)  # one turn's worth
        with pytest.raises(BlockingIOError):
            write_all(outbox, ours)
        reading = threading.Thread(target=lambda: received.append(read(theirs, len(large) + 9)))
        received: list[tuple[bytes, list[int]]] = []
        reading.start()
        while outbox.unsent:
            with contextlib.suppress(BlockingIOError):
                outbox.write_to(ours)
        reading.join()
        ((data, fds),) = received
        assert data == b"first" + large + b"last"
        os.write(fds[0], b"x")
        assert os.read(read_end, 1) == b"x"
        os.close(fds[0])
        assert os.read(read_end, 1) == b""  # ours was closed when it had gone
        os.close(read_end)


def write_all(outbox: Outbox, sock: socket.socket) -> None:
    while outbox.unsent:
        outbox.write_to(sock)


def read(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
    data, fds = b"", list[int]()
    while len(data) < size:
        more, its, _, _ = socket.recv_fds(sock, 65536, 4)
        data, fds = data + more, fds + list(its)
    return data, fds
