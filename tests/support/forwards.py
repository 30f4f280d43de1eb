"""Forwards of a tunnel, and programs on both sides of them."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from support.bus import Client
from support.processes import of_program, wait_for

FORWARD = "org.wg4netns1.Forward"
GATEWAY = "wg4netns-gate"
"""The gateway's name; it belongs to the tunnel, and serves its forwards."""


def add_forward(client: Client, tunnel: str, **options: Any) -> str:
    """AddForward; the options are as Client.create() takes them."""
    variants = {
        key: ("s", value)
        if isinstance(value, str)
        else ("b", value)
        if isinstance(value, bool)
        else ("as", value)
        if isinstance(value, list)
        else value
        for key, value in options.items()
    }
    return str(client.tunnel(tunnel, "AddForward", "a{sv}", variants))


def remove_forward(client: Client, forward: str) -> None:
    client.call(forward, FORWARD, "Remove")


def counters(client: Client, forward: str) -> dict[str, int]:
    return dict(client.call(forward, FORWARD, "GetCounters"))


def listening(client: Client, forward: str) -> list[str]:
    return list(client.get(forward, "Listening", FORWARD))


def port_of(client: Client, forward: str) -> int:
    """The port of its only listener."""
    (address,) = listening(client, forward)
    return int(address.rpartition(":")[2])


def gateways() -> set[int]:
    """The gateways that run."""
    return of_program(GATEWAY)


def connect(address: str | tuple[str, int], timeout: float = 30) -> socket.socket:
    """Connect by TCP, or to a Unix socket."""
    if isinstance(address, tuple):
        return socket.create_connection(address, timeout)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    connection.connect(address)
    return connection


def receive(connection: socket.socket, size: int) -> bytes:
    """Exactly so many bytes, or all that come before the end."""
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


def echo(connection: socket.socket, text: bytes = b"through the tunnel") -> None:
    connection.sendall(text)
    assert receive(connection, len(text)) == text


def socks5(proxy: str | tuple[str, int], host: str, port: int) -> socket.socket:
    """Connect by a proxy, which looks the name up."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(connect(proxy))
        connection.sendall(b"\5\1\0")
        assert receive(connection, 2) == b"\5\0"
        name = host.encode()
        connection.sendall(b"\5\1\0\3" + bytes([len(name)]) + name + port.to_bytes(2))
        reply = receive(connection, 10)
        assert reply[:2] == b"\5\0", reply
        stack.pop_all()
        return connection


@contextlib.contextmanager
def host_server(family: int = socket.AF_INET, path: str = "") -> Iterator[tuple[str, int]]:
    """An echo server on the host; yield its address."""
    server = socket.socket(socket.AF_UNIX if path else family)
    server.bind(path or ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    server.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=_echo, args=[connection], daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield ("", 0) if path else server.getsockname()[:2]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(10)


def _echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(65536):
            connection.sendall(data)


class CheckedStream:
    """Numbers that go to an echo server and come back, each once and in order."""

    PIECE = 1024
    """Numbers that are sent at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self.received = 0
        self._connection = connection
        self._stops = threading.Event()
        self._problem: Exception | None = None
        self._threads = [
            threading.Thread(target=self._run, args=[each], daemon=True)
            for each in (self._send, self._check)
        ]
        for thread in self._threads:
            thread.start()

    def wait_for_progress(self) -> None:
        """Return when what was sent after the call has come back."""
        before = self.received
        wait_for(lambda: self._problem or self.received > before + (1 << 18), "it goes on")
        assert not self._problem, self._problem

    def finish(self) -> int:
        """End it; return how many bytes have come back. Fails if one is missing or wrong."""
        self._stops.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not self._problem, self._problem
        return self.received

    def _run(self, function: Callable[[], None]) -> None:
        try:
            function()
        except (OSError, AssertionError) as problem:
            self._problem = problem

    def _send(self) -> None:
        number = 0
        while not self._stops.is_set():
            self._connection.sendall(self._numbers(number))
            number += self.PIECE
            time.sleep(0.001)  # so that it is a stream, and not all that the machine can do
        self._connection.shutdown(socket.SHUT_WR)

    def _check(self) -> None:
        number = 0
        while piece := receive(self._connection, 8 * self.PIECE):
            assert piece == self._numbers(number), f"after {self.received} bytes"
            self.received += len(piece)
            number += self.PIECE

    def _numbers(self, first: int) -> bytes:
        return b"".join(n.to_bytes(8, "big") for n in range(first, first + self.PIECE))
