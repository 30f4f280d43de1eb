"""An HTTP proxy's side of a connection: CONNECT, and plain HTTP in absolute form.

h11 parses and encodes the messages of both sides; what is here joins them (RFC 9112, 3.2). A
request is forwarded with its framing checked, never as raw bytes, so that what follows it can't be
taken for another request. There is no Via: it would tell the far end of us.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import h11

from wg4netnsd.gateway.client_stream import ClientStream
from wg4netnsd.gateway.dial import Dial, DialError, Why
from wg4netnsd.gateway.target import Target, split_host_port

MAX_HEAD: Final = 65536
"""Bytes of a request or response before its body; browsers send up to 16 KiB of cookies."""

READ_SIZE: Final = 65536

KEEP_ALIVE_SECONDS: Final = 60
"""How long a client's connection waits for its next request."""

REUSE_SECONDS: Final = 2
"""How long the target's connection is kept for the next request: less than any server's time-out,
as a request that crosses with its end would fail."""

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
    }
)
"""Headers that are not for the other side (RFC 9110, 7.6.1). Transfer-Encoding is h11's."""

Headers = list[tuple[bytes, bytes]]
Authorize = Callable[[bytes, bytes], bool]
"""Checks a user's name and password."""

REASONS: Final = {
    400: "Bad Request",
    407: "Proxy Authentication Required",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
_STATUS: Final = {Why.TIMEOUT: 504, Why.SHORTAGE: 503}


class Failure(Exception):
    """The client gets this answer, and its connection ends."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

    def encode(self) -> bytes:
        body = f"{self}\n".encode()
        challenge = 'Proxy-Authenticate: Basic realm="tunnel"\r\n' if self.status == 407 else ""
        return (
            f"HTTP/1.1 {self.status} {REASONS[self.status]}\r\n"
            f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
            f"{challenge}Connection: close\r\n\r\n"
        ).encode() + body


class Counted:
    """Bytes of plain HTTP that have passed."""

    def __init__(self) -> None:
        self.into_tunnel = 0
        self.out_of_tunnel = 0


class _Origin(NamedTuple):
    """The server that a request is for, and our connection to it."""

    target: Target
    connection: socket.socket
    protocol: Any
    """h11.Connection, as a client."""
    ready: float
    """When its last response ended."""


class HttpSession:
    """One client's requests. Owns the connection to the server of the last one."""

    def __init__(
        self,
        stream: ClientStream,
        dial: Dial,
        authorize: Authorize | None,
        idle_seconds: float,
        counted: Counted,
    ) -> None:
        """`idle_seconds`: how long a request or response may pause, 0 for no limit."""
        self._stream = stream
        self._dial = dial
        self._authorize = authorize
        self._idle = idle_seconds or None
        self._counted = counted
        self._client = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._origin: _Origin | None = None
        self._loop = asyncio.get_running_loop()
        self.served = 0
        """Requests that were answered by their server."""

    async def run(self, first_seconds: float) -> socket.socket | None:
        """Serve requests; return the connection to a CONNECT's target, else None at the end.

        The first head must come within `first_seconds`. Raises Failure, OSError, TimeoutError.
        """
        seconds = first_seconds
        try:
            while request := await self._next_request(seconds):
                if request.method == b"CONNECT":
                    return await self._connect(request)
                await self._forward(request)
                self.served += 1
                if not (self._client.our_state is self._client.their_state is h11.DONE):
                    return None
                self._client.start_next_cycle()
                seconds = KEEP_ALIVE_SECONDS
        finally:
            self._drop_origin()
        return None

    async def _next_request(self, seconds: float) -> Any:
        """Return the next request; None at the connection's end, or if none comes in time."""
        try:
            async with asyncio.timeout(seconds):
                event = await self._client_event()
        except TimeoutError:
            if self.served:
                return None
            raise
        if not isinstance(event, h11.Request):
            return None  # h11.ConnectionClosed
        if self._authorize and not self._is_authorized(event.headers):
            raise Failure(407, "This proxy asks for a user name and a password.")
        return event

    def _is_authorized(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        assert self._authorize is not None
        for name, value in headers:
            scheme, _, token = value.partition(b" ")
            if name == b"proxy-authorization" and scheme.lower() == b"basic":
                with contextlib.suppress(binascii.Error):
                    user, _, password = base64.b64decode(token, validate=True).partition(b":")
                    return self._authorize(user, password)
        return False

    async def _connect(self, request: Any) -> socket.socket:
        found = split_host_port(_text(request.target))
        if not found:
            raise Failure(400, "CONNECT needs host:port, or [address]:port.")
        connection = await self._dial_or_fail(Target(*found))
        data, _ = self._client.trailing_data  # sent ahead of our answer
        self._stream.buffer = bytes(data) + self._stream.buffer
        return connection

    async def _dial_or_fail(self, target: Target) -> socket.socket:
        try:
            return await self._dial(target)
        except DialError as error:
            raise Failure(_STATUS.get(error.why, 502), f"{error}.") from None

    # ------------------------------------------------------------ plain HTTP

    async def _forward(self, request: Any) -> None:
        target, authority, path = _split_url(_text(request.target))
        origin = await self._origin_for(target)
        headers = [(b"Host", authority.encode()), *_end_to_end(request.headers, drop=b"host")]
        try:
            await self._to_origin(
                origin, h11.Request(method=request.method, target=path.encode(), headers=headers)
            )
            await self._exchange(origin)
        except h11.ProtocolError as error:
            raise self._broken(f"{target}: {error}.") from None
        except TimeoutError:
            raise self._broken(f"{target}: no answer in {self._idle or 0:g} s.", 504) from None
        except OSError as error:
            raise self._broken(f"{target}: {error.strerror or error}.") from None
        protocol = origin.protocol
        more, _ = protocol.trailing_data  # after the response, where there ought to be nothing
        if protocol.our_state is protocol.their_state is h11.DONE and not more:
            protocol.start_next_cycle()
            self._origin = origin._replace(ready=time.monotonic())
        else:
            self._drop_origin()

    async def _exchange(self, origin: _Origin) -> None:
        """Pass on body and response, until all of the response has passed."""
        upload = asyncio.create_task(self._upload(origin))
        download = asyncio.create_task(self._download(origin))
        try:
            await asyncio.wait([upload, download], return_when=asyncio.FIRST_COMPLETED)
            if not (upload.done() and upload.exception()):
                await asyncio.wait([download])  # which may well be there before all of the body
        finally:
            for task in (upload, download):
                task.cancel()
            await asyncio.wait([upload, download])
        for task in (upload, download):
            if not task.cancelled() and (error := task.exception()):
                raise error

    def _broken(self, text: str, status: int = 502) -> Exception:
        """Return what to raise: an answer, unless one has begun already."""
        if self._client.our_state is h11.SEND_RESPONSE:
            return Failure(status, text)
        return ConnectionResetError(text)

    async def _origin_for(self, target: Target) -> _Origin:
        last = self._origin
        if last and last.target == target and time.monotonic() - last.ready < REUSE_SECONDS:
            try:
                last.connection.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return last
            except OSError:
                pass
        self._drop_origin()
        connection = await self._dial_or_fail(target)
        protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._origin = _Origin(target, connection, protocol, 0)
        return self._origin

    def _drop_origin(self) -> None:
        if self._origin:
            self._origin.connection.close()
            self._origin = None

    async def _upload(self, origin: _Origin) -> None:
        """Pass on the request's body. If the server takes no more of it, it may say why."""
        while True:
            event = await self._client_event()
            if not isinstance(event, h11.Data | h11.EndOfMessage):
                raise ConnectionResetError("the client has left")
            try:
                await self._to_origin(origin, _without_trailers(event))
            except OSError:
                return
            if isinstance(event, h11.EndOfMessage):
                return

    async def _download(self, origin: _Origin) -> None:
        """Pass on the response, and informational ones before it."""
        while True:
            event = await self._origin_event(origin)
            if isinstance(event, h11.InformationalResponse) and self._is_old_client():
                continue  # HTTP/1.0 has none: RFC 9110, 15.2
            if isinstance(event, h11.Response | h11.InformationalResponse):
                event = type(event)(
                    status_code=event.status_code,
                    headers=_end_to_end(event.headers),
                    reason=event.reason,
                )
            elif not isinstance(event, h11.Data | h11.EndOfMessage):
                raise ConnectionResetError("it has closed the connection")
            data = self._client.send(_without_trailers(event))
            if data:
                async with asyncio.timeout(self._idle):
                    await self._stream.send(data)
            if isinstance(event, h11.EndOfMessage):
                return

    def _is_old_client(self) -> bool:
        return bool(self._client.their_http_version == b"1.0")

    async def _to_origin(self, origin: _Origin, event: Any) -> None:
        data = origin.protocol.send(event)
        if data:
            async with asyncio.timeout(self._idle):
                await self._loop.sock_sendall(origin.connection, data)
            self._counted.into_tunnel += len(data)

    async def _client_event(self) -> Any:
        """Return the client's next event. Raises Failure for what is no HTTP."""
        try:
            while (event := self._client.next_event()) is h11.NEED_DATA:
                async with asyncio.timeout(self._idle):
                    self._client.receive_data(await self._stream.read())
        except h11.RemoteProtocolError as error:
            raise Failure(431 if error.error_status_hint == 431 else 400, f"{error}.") from None
        return event

    async def _origin_event(self, origin: _Origin) -> Any:
        while (event := origin.protocol.next_event()) is h11.NEED_DATA:
            async with asyncio.timeout(self._idle):
                data = await self._loop.sock_recv(origin.connection, READ_SIZE)
            self._counted.out_of_tunnel += len(data)
            origin.protocol.receive_data(data)
        return event


def _split_url(url: str) -> tuple[Target, str, str]:
    """Return an absolute URL's target, authority and path with query. Raises Failure."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise Failure(400, "This is a proxy: it expects CONNECT, or a whole http:// URL.")
    if scheme.lower() != "http":
        raise Failure(501, f"{scheme[:20]}:// needs CONNECT here.")
    end = min((at for mark in "/?#" if (at := rest.find(mark)) >= 0), default=len(rest))
    authority, path = rest[:end], rest[end:].partition("#")[0]
    found = split_host_port(authority, 80)
    if not found:
        raise Failure(400, "The URL's host is none.")
    return Target(*found), authority, path if path.startswith("/") else f"/{path}"


def _end_to_end(headers: Any, drop: bytes = b"") -> Headers:
    """Return those of h11's headers that are for the other side, written as they came."""
    named = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    # A framing header is h11's affair, whatever Connection says.
    hidden = (_HOP_BY_HOP | named | {drop}) - {b"content-length", b"transfer-encoding"}
    return [(name, value) for name, value in headers.raw_items() if name.lower() not in hidden]


def _without_trailers(event: Any) -> Any:
    """Trailers are dropped: h11 sends none in a body with a length."""
    return h11.EndOfMessage() if isinstance(event, h11.EndOfMessage) else event


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace")
