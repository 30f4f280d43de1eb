"""A gateway's forwards in this process, whose tunnel is the machine's loopback."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from wg4netnsd import errors
from wg4netnsd.gateway.dial import Host
from wg4netnsd.gateway.protocol import AddForward, Counters
from wg4netnsd.gateway.sides import Sides
from wg4netnsd.gateway.stream_forward import StreamForward

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[Any]]


class Loopback(Host):
    """A tunnel whose names are those of `names`."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self.names = names

    async def resolve(self, name: str, family: int) -> list[str]:
        if not (found := self.names.get(name)):
            raise errors.Unresolved(f"{name}: no such name")
        return found

    def close(self) -> None:
        pass


@contextlib.asynccontextmanager
async def forward(
    spec: AddForward, names: dict[str, list[str]] | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[int, StreamForward]]:
    """Serve a forward; yield its port, and itself."""
    sides = Sides()
    sides.tunnel = Loopback(names or {})  # type: ignore[assignment]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family, backlog=1000)
    port = listener.getsockname()[1]
    listener.setblocking(False)
    served = StreamForward(spec, [listener], sides)
    try:
        yield port, served
    finally:
        served.close()
        sides.close()
        await asyncio.sleep(0)  # its cancelled tasks end


@contextlib.asynccontextmanager
async def server(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Serve TCP; yield the port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
            await handler(reader, writer)
        writer.close()

    served = await asyncio.start_server(handle, host, 0)
    async with served:
        yield served.sockets[0].getsockname()[1]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


@contextlib.asynccontextmanager
async def client(
    port: int, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def exchange(port: int, request: bytes, end: bool = False) -> bytes:
    """Send a request; return everything that comes until the end."""
    async with client(port) as (reader, writer):
        writer.write(request)
        if end:
            writer.write_eof()
        with contextlib.suppress(ConnectionResetError):
            return await reader.read(-1)
        return b"reset"


async def settled(served: StreamForward) -> Counters:
    """Wait until all connections have ended; return the counters."""
    while served.counters().open:  # noqa: ASYNC110  it has no event for its tests
        await asyncio.sleep(0.001)
    return served.counters()


def run(test: Callable[[], Awaitable[Any]], seconds: float = 60) -> None:
    """Run a test in an event loop of its own, in bounded time."""

    async def body() -> None:
        async with asyncio.timeout(seconds):
            await test()

    asyncio.run(body())
