"""A proxy's clients, from their first byte to the relayed connection, by every protocol."""

import asyncio
import base64
import hashlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from support.gateways import client, echo, exchange, forward, run, server, settled
from wg4netnsd.gateway import proxy_session
from wg4netnsd.gateway.protocol import AddForward
from wg4netnsd.gateway.stream_forward import StreamForward

PROXY = AddForward("1", "proxy", connect_seconds=5)
KEPT = PROXY._replace(credentials={"ann": hashlib.sha256(b"secret").hexdigest()})
NAMES = {"echo.test": ["127.0.0.1"], "dead-first.test": ["::1", "127.0.0.1"]}
OK_4, FAILED_4 = b"\0\x5a", b"\0\x5b\0\0\0\0\0\0"


def socks_5(host: str | bytes, port: int, command: int = 1) -> bytes:
    """A greeting and a request, sent as one: the name as such, or an address as packed."""
    if isinstance(host, str):
        address = b"\3" + bytes([len(host)]) + host.encode()
    else:
        address = (b"\1" if len(host) == 4 else b"\4") + host
    return b"\5\1\0" + bytes([5, command, 0]) + address + port.to_bytes(2, "big")


def socks_4(port: int, name: str = "") -> bytes:
    address = b"\0\0\0\1" if name else b"\x7f\0\0\1"
    return (
        b"\4\1"
        + port.to_bytes(2, "big")
        + address
        + b"me\0"
        + (f"{name}\0".encode() if name else b"")
    )


def connect_to(authority: str) -> bytes:
    return f"CONNECT {authority} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def with_echo(
    test: Callable[[int, int, StreamForward], Awaitable[Any]], spec: AddForward = PROXY
) -> None:
    """Run a test with the proxy's port, an echo server's, and the forward."""

    async def body() -> None:
        async with server(echo) as far, forward(spec, NAMES) as (port, served):
            await test(port, far, served)

    run(body)


WAYS: dict[str, tuple[Callable[[int], bytes], int]] = {
    "SOCKS 5 by address": (lambda far: socks_5(b"\x7f\0\0\1", far), 2 + 10),
    "SOCKS 5 by name": (lambda far: socks_5("echo.test", far), 2 + 10),
    "SOCKS 5 by an address as a name": (lambda far: socks_5("127.0.0.1", far), 2 + 10),
    "SOCKS 5, first address dead": (lambda far: socks_5("dead-first.test", far), 2 + 10),
    "SOCKS 4": (socks_4, 8),
    "SOCKS 4a": (lambda far: socks_4(far, "echo.test"), 8),
    "HTTP": (lambda far: connect_to(f"echo.test:{far}"), 39),
    "HTTP/1.0": (lambda far: f"CONNECT 127.0.0.1:{far} HTTP/1.0\r\n\r\n".encode(), 39),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ahead", [True, False], ids=["sent ahead", "sent when told"])
@pytest.mark.parametrize("slow", [True, False], ids=["byte by byte", "at once"])
def test_a_client_gets_its_connection(way: str, ahead: bool, slow: bool) -> None:
    request, answer_length = WAYS[way]

    async def test(port: int, far: int, served: StreamForward) -> None:
        async with client(port) as (reader, writer):
            sent = request(far) + (b"hello" if ahead else b"")
            for piece in [bytes([byte]) for byte in sent] if slow else [sent]:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            answer = await reader.readexactly(answer_length)
            if not ahead:
                writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello", answer
            assert served.counters().open == 1
            writer.write_eof()
            assert await reader.read() == b""
        counters = await settled(served)
        assert (counters.total, counters.failed) == (1, 0)
        assert (counters.bytes_in, counters.bytes_out) == (5, 5)

    with_echo(test)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


@pytest.mark.parametrize(
    ("request_of", "begins", "contains"),
    [
        (lambda _: socks_5("nowhere.test", 80), b"\5\0\5\4", b""),
        (lambda dead: socks_5(b"\x7f\0\0\1", dead), b"\5\0\5\5", b""),
        (lambda _: socks_5(b"\xff\xff\xff\xff", 80), b"\5\0\5\3", b""),
        (lambda dead: socks_5(b"\x7f\0\0\1", dead, command=2), b"\5\0\5\7", b""),
        (lambda dead: b"\5\1\0\5\1\0\7", b"\5\0\5\x08", b""),
        (lambda dead: socks_4(dead), FAILED_4, b""),
        (lambda _: socks_4(80, "nowhere.test"), FAILED_4, b""),
        (lambda _: b"\4\2\0\x50\x7f\0\0\1\0", FAILED_4, b""),
        (lambda dead: connect_to(f"127.0.0.1:{dead}"), b"HTTP/1.1 502", b"refused"),
        (lambda _: connect_to("nowhere.test:80"), b"HTTP/1.1 502", b"no such name"),
        (lambda _: connect_to("nowhere"), b"HTTP/1.1 400", b"host:port"),
        (lambda _: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400", b"proxy"),
        (lambda _: b"GET https://x/ HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 501", b"CONNECT"),
        (lambda _: b"GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 501", b""),
        (lambda _: b"GET http://u@x/ HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400", b""),
        (lambda _: b"nonsense\r\n\r\n", b"HTTP/1.1 400", b""),
        (lambda _: b"GET http://x/ HTTP/1.1\r\nX: " + b"x" * 10_000_000, b"HTTP/1.1 431", b""),
        (lambda _: b"\x16\x03\x01\x02\x00", b"", b""),
        (lambda _: b"\0", b"", b""),
        (lambda _: b"\n\n", b"", b""),
    ],
)  # fmt: skip
def test_a_failure_is_said_in_the_clients_protocol(
    request_of: Callable[[int], bytes], begins: bytes, contains: bytes
) -> None:
    async def test(port: int, far: int, served: StreamForward) -> None:
        answer = await exchange(port, request_of(free_port()))
        assert answer.startswith(begins), answer
        assert contains in answer
        assert (await settled(served))._replace(bytes_out=0) == (0, 1, 0, 1, 0, 0)

    with_echo(test)


def test_a_far_end_that_never_answers_is_a_timeout() -> None:
    """Its queue is full: the kernel drops further attempts to connect."""

    async def body() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            far = full.getsockname()[1]
            waiting = [socket.socket() for _ in range(3)]
            for each in waiting:
                each.setblocking(False)
                each.connect_ex(("127.0.0.1", far))
            async with forward(PROXY._replace(connect_seconds=0.5)) as (port, _):
                assert (await exchange(port, socks_5(b"\x7f\0\0\1", far))).startswith(b"\5\0\5\6")
                request = connect_to(f"127.0.0.1:{far}")
                assert (await exchange(port, request)).startswith(b"HTTP/1.1 504")
                request = f"GET http://127.0.0.1:{far}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode()
                assert (await exchange(port, request)).startswith(b"HTTP/1.1 504")
            for each in waiting:
                each.close()

    run(body)


def test_a_client_with_no_method_of_ours_is_refused() -> None:
    async def test(port: int, far: int, served: StreamForward) -> None:
        assert await exchange(port, b"\5\1\1") == b"\5\xff"
        assert (await settled(served)).refused == 1

    with_echo(test)


@pytest.mark.parametrize("begun", [b"", b"\5", b"\5\1\0\5\1\0\3", b"\4\1", b"GET http://x/ HT"])
def test_a_client_that_stops_halfway_is_left(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_session, "HANDSHAKE_SECONDS", 0.2)

    async def test(port: int, far: int, served: StreamForward) -> None:
        assert (await exchange(port, begun)) in (b"", b"\5\0")
        assert (await settled(served)).failed == 1

    with_echo(test)


@pytest.mark.parametrize(
    ("login", "known"),
    [(b"\1\3ann\6secret", True), (b"\1\3ann\5wrong", False), (b"\1\3bob\6secret", False),
     (b"\1\0\0", False)],
)  # fmt: skip
def test_socks_5_with_credentials(login: bytes, known: bool) -> None:
    async def test(port: int, far: int, served: StreamForward) -> None:
        request = socks_5("echo.test", far)[3:]
        answer = await exchange(port, b"\5\2\0\2" + login + request, end=True)
        if known:
            assert answer.startswith(b"\5\2\1\0\5\0\0\1")
        else:
            assert answer == b"\5\2\1\1"
        assert (await settled(served)).refused == (0 if known else 1)

    with_echo(test, KEPT)


def test_without_credentials_nobody_gets_past_by_another_protocol() -> None:
    async def test(port: int, far: int, served: StreamForward) -> None:
        assert await exchange(port, socks_5("echo.test", far)) == b"\5\xff"
        assert await exchange(port, socks_4(far)) == FAILED_4
        connect = b"CONNECT echo.test:%d HTTP/1.1\r\nHost: x\r\n" % far
        answer = await exchange(port, connect + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 407") and b"\r\nProxy-Authenticate: Basic" in answer
        for text in (b"ann:wrong", b"ann", b":", b"bob:secret"):
            token = b"Proxy-Authorization: Basic " + base64.b64encode(text)
            answer = await exchange(port, connect + token + b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 407")
        counters = await settled(served)
        assert counters.refused == counters.total == 7
        token = b"Proxy-Authorization: basic " + base64.b64encode(b"ann:secret")
        answer = await exchange(port, connect + token + b"\r\n\r\nhello", end=True)
        assert answer.endswith(b"\r\n\r\nhello")

    with_echo(test, KEPT)


def test_a_client_that_insists_on_a_login_may_have_one() -> None:
    async def test(port: int, far: int, served: StreamForward) -> None:
        request = b"\5\1\2" + b"\1\1x\1y" + socks_5("echo.test", far)[3:]
        assert (await exchange(port, request, end=True)).startswith(b"\5\2\1\0\5\0\0\1")

    with_echo(test)


def test_a_connection_that_idles_for_too_long_is_ended() -> None:
    async def test(port: int, far: int, served: StreamForward) -> None:
        loop = asyncio.get_running_loop()
        async with client(port) as (reader, writer):
            writer.write(socks_5("echo.test", far))
            await reader.readexactly(12)
            for _ in range(4):  # as long as bytes pass, it stays
                await asyncio.sleep(0.2)
                writer.write(b"x")
                await reader.readexactly(1)
            began = loop.time()
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            assert 0.25 < loop.time() - began < 5
        assert served.counters().open == 0

    with_echo(test, PROXY._replace(idle_seconds=0.5))


def test_a_forward_that_ends_takes_its_connections_along() -> None:
    async def test(port: int, far: int, served: StreamForward) -> None:
        async with client(port) as (reader, writer), client(port) as (other, _):
            writer.write(socks_5("echo.test", far))
            await reader.readexactly(12)
            served.close()
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            assert await other.read(1) == b""
        with pytest.raises(ConnectionRefusedError):
            await exchange(port, b"")

    with_echo(test)
