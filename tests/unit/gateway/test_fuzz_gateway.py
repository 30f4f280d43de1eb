"""Thousands of first messages that no honest client would send, to a proxy.

Each is a valid message of one of its protocols, changed a little or a lot. They follow from a seed,
which a failure names; WG_FUZZ_SEED sets it.
"""

import asyncio
import contextlib
import os
import random
import socket
import struct

import pytest

from support.depth import depth
from support.gateways import Loopback, client, echo, exchange, forward, run, server, settled
from support.processes import resident
from wg4netnsd.gateway import proxy_session
from wg4netnsd.gateway.protocol import AddForward
from wg4netnsd.gateway.stream_forward import StreamForward

MESSAGES = depth(5_000, 50_000)
AT_ONCE = 50
SEED = int(os.environ.get("WG_FUZZ_SEED", "20251201"))
MEGABYTES_MORE = 16  # what the process may hold after them
MAX_MESSAGE = 100_000  # bytes; a head may have 65,536
PROXY = AddForward("1", "proxy", connect_seconds=1, idle_seconds=1)


class LoopbackOnly(Loopback):
    """Its sockets reach nothing but loopback, whatever address a message asks for."""

    async def open(self, family: int, kind: int) -> socket.socket:
        opened = await super().open(family, kind)
        opened.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        return opened


class Fuzzer:
    def __init__(self, seed: int, far: int) -> None:
        self.random = random.Random(seed)
        self.far = far

    def message(self) -> bytes:
        valid = self.random.choice(
            [self.socks_5, self.socks_5, self.socks_4, self.http, self.http, self.anything]
        )()
        for _ in range(self.random.choice([0, 0, 1, 1, 2, 5])):
            valid = self.changed(valid)[:MAX_MESSAGE]
        return valid

    def changed(self, data: bytes) -> bytes:
        at = self.random.randrange(len(data) + 1)
        end = self.random.randrange(at, len(data) + 1)
        match self.random.randrange(6):
            case 0:
                return data[:at]
            case 1:
                return data[:at] + data[end:]
            case 2:
                return (
                    data[:at] + self.random.randbytes(self.random.choice([1, 2, 300])) + data[at:]
                )
            case 3:
                return data[:at] + bytes([self.random.randrange(256)]) + data[at + 1 :]
            case 4:
                return data[:at] + data[at:end] * self.random.choice([2, 3, 100]) + data[end:]
            case _:
                return data + self.message_tail()

    def message_tail(self) -> bytes:
        return self.random.choice(
            [b"\0", b"\r\n", b"\r\n\r\n", self.random.randbytes(5), b"x" * 999]
        )

    def host(self) -> str:
        return self.random.choice(
            [
                "127.0.0.1",
                "echo.test",
                "nowhere.test",
                "::1",
                "192.0.2.1",
                "x" * 255,
                "",
                "a b",
                "255.255.255.255",
            ]
        )

    def port(self) -> int:
        return self.random.choice([self.far, self.far, 0, 1, 65535])

    def socks_5(self) -> bytes:
        methods = self.random.choice([b"\0", b"\2", b"\0\2", b"", b"\1", bytes(255)])
        login = b"\1\3ann\6secret" if methods == b"\2" else b""
        command = self.random.choice([1, 1, 1, 2, 3, 0, 9])
        host = self.host().encode()
        address = self.random.choice(
            [b"\1\x7f\0\0\1", b"\3" + bytes([len(host)]) + host, b"\4" + bytes(15) + b"\1", b"\2"]
        )
        request = b"\5" + bytes([command, 0]) + address + struct.pack("!H", self.port())
        return b"\5" + bytes([len(methods)]) + methods + login + request + self.payload()

    def socks_4(self) -> bytes:
        address = self.random.choice([b"\x7f\0\0\1", b"\0\0\0\1", b"\0\0\0\0", b"\xff" * 4])
        name = self.host().encode() + b"\0" if address == b"\0\0\0\1" else b""
        command = self.random.choice([1, 1, 2, 7])
        head = struct.pack("!BBH", 4, command, self.port())
        return head + address + b"user\0" + name + self.payload()

    def http(self) -> bytes:
        authority = f"{self.host()}:{self.port()}"
        method = self.random.choice(["CONNECT", "GET", "POST", "HEAD", "OPTIONS", "X", "get"])
        url = authority if method == "CONNECT" else f"http://{authority}/path?query"
        url = self.random.choice(
            [url, url, url, "/", "*", "https://x/", "http://", "http://[::1]/"]
        )
        version = self.random.choice(["1.1", "1.1", "1.0", "2.0", "0.9"])
        fields = self.random.sample(
            ["Content-Length: 5", "Content-Length: 99999999999999999999", "Content-Length: -1",
             "Transfer-Encoding: chunked", "Transfer-Encoding: identity", "Connection: close",
             "Connection: content-length", "Expect: 100-continue", "Upgrade: h2c",
             "X: " + "y" * 9000,
             "Proxy-Authorization: Basic !!", ": empty", "no colon", " folded", "Host: again"],
            self.random.randrange(5),
        )  # fmt: skip
        lines = [f"{method} {url} HTTP/{version}", f"Host: {authority}", *fields, "", ""]
        body = self.random.choice(
            [b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff\r\n"]
        )
        return "\r\n".join(lines).encode() + body

    def anything(self) -> bytes:
        return self.random.randbytes(self.random.choice([0, 1, 2, 20, 2000]))

    def payload(self) -> bytes:
        return self.random.choice([b"", b"hello", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])


async def send(port: int, message: bytes, how: int) -> None:
    """Send it whole, in two pieces, or and leave at once; every connection ends in bounded time."""
    async with client(port) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            half = len(message) // 2 if how == 1 else len(message)
            writer.write(message[:half])
            await writer.drain()
            if how == 2:
                return
            await asyncio.sleep(0)
            writer.write(message[half:])
            writer.write_eof()
            while await reader.read(65536):
                pass


@pytest.mark.timeout(900)
def test_no_first_message_breaks_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_session, "HANDSHAKE_SECONDS", 1)

    async def test() -> None:
        async with server(echo) as far, forward(PROXY) as (port, served):
            served._sides.tunnel = LoopbackOnly({"echo.test": ["127.0.0.1"]})  # type: ignore[assignment]
            fuzzer = Fuzzer(SEED, far)
            await asyncio.gather(*(send(port, fuzzer.message(), 0) for _ in range(AT_ONCE)))
            await settled(served)
            before, memory = fds(served), resident(os.getpid())
            for _ in range(MESSAGES // AT_ONCE):
                messages = [fuzzer.message() for _ in range(AT_ONCE)]
                hows = [fuzzer.random.randrange(3) for _ in messages]
                async with asyncio.timeout(60):
                    await asyncio.gather(*map(send, [port] * AT_ONCE, messages, hows))
            await check(port, far, served)
            assert fds(served) == before, f"seed {SEED}"
            assert resident(os.getpid()) - memory < MEGABYTES_MORE << 20, f"seed {SEED}"

    complaints: list[object] = []
    monkeypatch.setattr(
        asyncio.BaseEventLoop,
        "call_exception_handler",
        lambda _, context: complaints.append(context),
    )
    run(test, 800)
    assert complaints == [], f"seed {SEED}"


def fds(served: StreamForward) -> int:
    """Those of this process, without the pipes that wait for the next connection."""
    return len(os.listdir("/proc/self/fd")) - 2 * len(served._sides.relays._pipes._spare)


async def check(port: int, far: int, served: StreamForward) -> None:
    counters = await settled(served)
    assert counters.failed + counters.refused > counters.total // 4, "hardly one was wrong"
    assert len(asyncio.all_tasks()) < 5
    request = b"\5\1\0\5\1\0\1\x7f\0\0\1" + far.to_bytes(2, "big")
    assert (await exchange(port, request + b"well", end=True)).endswith(b"well")
