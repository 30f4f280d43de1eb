"""Plain HTTP through a proxy: requests in absolute form, forwarded one by one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from support.gateways import client, exchange, forward, run, server, settled
from wg4netnsd.gateway import http
from wg4netnsd.gateway.protocol import AddForward
from wg4netnsd.gateway.stream_forward import StreamForward

PROXY = AddForward("1", "proxy", connect_seconds=5)
NAMES = {"web.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}


class Web:
    """A server that answers each request with what `answers` has for its path."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.answers = answers
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while not reader.at_eof():
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return
            self.heads.append(head)
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
            if b"expect" in fields:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await reader.readexactly(int(fields.get(b"content-length", 0)))
            if fields.get(b"transfer-encoding") == b"chunked":
                while size := int(await reader.readline(), 16):
                    body += (await reader.readexactly(size + 2))[:-2]
                await reader.readline()
            self.bodies.append(body)
            path = head.split(b" ")[1].decode()
            writer.write(self.answers[path])
            await writer.drain()
            if b"connection: close" in self.answers[path].lower():
                return


def ok(body: bytes, *headers: bytes) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 200 OK", length, *headers, b"", body])


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
TO_THE_END = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall there is"
ANSWERS = {
    "/": ok(b"hello"),
    "/q?a=b": ok(b"query"),
    "/large": ok(bytes(range(256)) * 40_000),
    "/chunked": CHUNKED,
    "/to-the-end": TO_THE_END,
    "/headers": ok(b"", b"Connection: X-Hop", b"X-Hop: 1", b"Keep-Alive: timeout=5", b"X-End: 2"),
    "/garbage": b"HTTP/1.1 banana\r\n\r\n",
    "/nothing": b"Connection: close",
    "/large-head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
    "/cut": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\nabc",
}


def with_web(test: Callable[[int, int, Web, StreamForward], Awaitable[Any]], **spec: Any) -> None:
    async def body() -> None:
        web = Web(ANSWERS)
        async with (
            server(web.handle) as far,
            forward(PROXY._replace(**spec), NAMES) as (port, served),
        ):
            await test(port, far, web, served)

    run(body)


def get(path: str, far: int, *headers: str, version: str = "1.1", host: str = "web.test") -> bytes:
    head = [f"GET http://{host}:{far}{path} HTTP/{version}", "Host: wrong", *headers, "", ""]
    return "\r\n".join(head).encode()


async def one(port: int, far: int, path: str, **options: Any) -> tuple[bytes, bytes]:
    """Ask for one page; return head and body of the answer."""
    answer = await exchange(port, get(path, far, "Connection: close", **options))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


def test_pages_come_as_they_are() -> None:
    async def test(port: int, far: int, web: Web, served: StreamForward) -> None:
        assert (await one(port, far, "/"))[1] == b"hello"
        assert (await one(port, far, "/q?a=b#part"))[1] == b"query"
        assert (await one(port, far, ""))[1] == b"hello"
        assert (await one(port, far, "/large"))[1] == bytes(range(256)) * 40_000
        head, body = await one(port, far, "/chunked")
        assert b"chunked" in head
        assert b"".join(body.split(b"\r\n")[1::2]) == b"abcde"
        head, body = await one(port, far, "/chunked", version="1.0")
        assert body == b"abcde" and b"chunked" not in head
        head, body = await one(port, far, "/to-the-end", version="1.0")
        assert body == b"all there is"
        assert (await settled(served)).failed == 0
        assert served.counters().bytes_in > 10_000_000

    with_web(test)


def test_headers_of_one_hop_stay_there() -> None:
    async def test(port: int, far: int, web: Web, served: StreamForward) -> None:
        request = get(
            "/headers",
            far,
            *("Proxy-Connection: keep-alive", "Connection: X-Mine, close", "X-Mine: 1"),
            *("Proxy-Authorization: Basic eDp5", "X-Theirs: 2", "Upgrade: websocket"),
        )
        answer = (await exchange(port, request)).lower()
        assert b"x-end: 2" in answer and b"x-hop" not in answer and b"timeout=5" not in answer
        (head,) = web.heads
        lines = head.lower().split(b"\r\n")
        assert sorted(lines) == sorted(
            [b"get /headers http/1.1", b"host: web.test:%d" % far, b"x-theirs: 2", b"", b""]
        )

    with_web(test)


def test_a_connection_serves_many_requests_and_keeps_that_to_the_server() -> None:
    async def test(port: int, far: int, web: Web, served: StreamForward) -> None:
        async with client(port) as (reader, writer):
            writer.write(b"".join(get(path, far) for path in ["/", "/q?a=b", "/", "/to-the-end"]))
            for body in (b"hello", b"query", b"hello"):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert await reader.readexactly(5) == body
            await reader.readuntil(b"all there is")
            assert web.connections == 1
            writer.write(get("/", far, host="other.test"))
            await reader.readuntil(b"hello")
            assert web.connections == 2
            assert web.heads[-1].split(b"\r\n")[1] == b"Host: other.test:%d" % far
        assert (await settled(served)).total == 1

    with_web(test)


@pytest.mark.parametrize("expect", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_goes_up(expect: bool, chunked: bool) -> None:
    sent = bytes(range(256)) * 4000

    async def test(port: int, far: int, web: Web, served: StreamForward) -> None:
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(sent)}"
        more = ["Expect: 100-continue"] if expect else []
        async with client(port) as (reader, writer):
            head = get("/", far, framing, "Connection: close", *more)
            writer.write(head.replace(b"GET", b"POST"))
            if expect:
                assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
            writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(sent), sent) if chunked else sent)
            assert (await reader.read()).endswith(b"hello")
        assert web.bodies == [sent]

    with_web(test)


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/garbage", 502, b"status"),
        ("/nothing", 502, b""),
        ("/large-head", 502, b""),
    ],
)
def test_a_server_that_fails_is_a_bad_gateway(path: str, status: int, text: bytes) -> None:
    async def test(port: int, far: int, web: Web, served: StreamForward) -> None:
        head, body = await one(port, far, path)
        assert head.startswith(b"HTTP/1.1 %d" % status)
        assert b"web.test:%d: " % far in body and text in body.lower()
        assert (await settled(served)).failed == 1

    with_web(test)


def test_a_response_that_is_cut_is_no_whole_one() -> None:
    async def test(port: int, far: int, web: Web, served: StreamForward) -> None:
        answer = await exchange(port, get("/cut", far))
        assert b"Content-Length: 10" in answer and answer.endswith(b"\r\n\r\nabc")
        assert (await settled(served)).failed == 1

    with_web(test)


def test_a_server_that_is_silent_for_too_long_is_a_timeout() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def body() -> None:
        spec = PROXY._replace(idle_seconds=0.3)
        async with server(silent) as far, forward(spec, NAMES) as (port, _):
            head, text = await one(port, far, "/")
            assert head.startswith(b"HTTP/1.1 504") and b"no answer in 0.3 s" in text

    run(body)


def test_a_body_that_goes_wrong_ends_the_request() -> None:
    """The server still waits for the rest of it."""

    async def test(port: int, far: int, web: Web, served: StreamForward) -> None:
        head = get("/", far, "Transfer-Encoding: chunked").replace(b"GET", b"POST")
        answer = await exchange(port, head + b"5\r\nhello\r\nnonsense\r\n")
        assert answer.startswith(b"HTTP/1.1 400")
        answer = await exchange(port, head + b"5\r\nhel", end=True)
        assert answer.startswith(b"HTTP/1.1 400")
        assert (await settled(served)).failed == 2

    with_web(test)


def test_a_server_may_answer_before_it_has_the_body() -> None:
    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!")
        await writer.drain()

    async def body() -> None:
        async with server(refusing) as far, forward(PROXY, NAMES) as (port, _):
            head = get("/", far, "Content-Length: 100000000").replace(b"GET", b"POST")
            async with client(port) as (reader, writer):
                writer.write(head)
                assert (await reader.readuntil(b"no!")).startswith(b"HTTP/1.1 413")
                assert await reader.read() == b""

    run(body)


def test_what_follows_a_response_is_no_response_to_the_next_request() -> None:
    async def smuggling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ok(b"first") + ok(b"evil!"))
        await reader.read()

    async def body() -> None:
        async with (
            server(smuggling) as far,
            forward(PROXY, NAMES) as (port, _),
            client(port) as (reader, writer),
        ):
            for _ in range(3):
                writer.write(get("/", far))
                assert (await reader.readuntil(b"first")).count(b"HTTP/1.1") == 1

    run(body)


@pytest.mark.parametrize(
    "request_text",
    [
        "GET http://web.test/ HTTP/1.1\r\n\r\n",  # without Host
        "GET http://web.test/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET http://x/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "POST http://web.test/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        "GET http://web.test:0/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http:///path HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://web.test/ HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET\r\n\r\n",
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused(request_text: str) -> None:
    async def test(port: int, far: int, web: Web, served: StreamForward) -> None:
        answer = await exchange(port, request_text.encode())
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501")), answer
        assert web.connections == 0

    with_web(test)


def test_a_connection_waits_for_its_next_request_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "KEEP_ALIVE_SECONDS", 0.2)

    async def test(port: int, far: int, web: Web, served: StreamForward) -> None:
        async with client(port) as (reader, writer):
            writer.write(get("/", far))
            assert (await reader.read()).endswith(b"hello")
        assert (await settled(served)).failed == 0

    with_web(test)
