"""One client of a proxy, from its first byte to the connection that it asked for.

5 → SOCKS 5: CONNECT, UDP ASSOCIATE       a letter → HTTP: CONNECT, plain requests
4 → SOCKS 4, 4a: CONNECT                  all else: no protocol of ours, closed
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final

from wg4netnsd.gateway import socks
from wg4netnsd.gateway.client_stream import ClientStream, Malformed
from wg4netnsd.gateway.dial import Dial, DialError, Why
from wg4netnsd.gateway.http import Counted, Failure, HttpSession
from wg4netnsd.gateway.protocol import AddForward
from wg4netnsd.gateway.sides import Sides
from wg4netnsd.gateway.target import Target
from wg4netnsd.gateway.udp_association import UdpAssociation

HANDSHAKE_SECONDS: Final = 30
"""How long a client may take to say what it wants."""

LINGER_SECONDS: Final = 2
"""How long a client that was told of a failure may take to close. Closed at once, with something of
its unread, the connection would be reset, and the answer lost (RFC 1122, 4.2.2.13)."""

CONNECT_ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"

_REPLIES: Final = {
    Why.REFUSED: socks.Reply.CONNECTION_REFUSED,
    Why.NETWORK_UNREACHABLE: socks.Reply.NETWORK_UNREACHABLE,
    Why.HOST_UNREACHABLE: socks.Reply.HOST_UNREACHABLE,
    Why.UNRESOLVED: socks.Reply.HOST_UNREACHABLE,
    Why.TIMEOUT: socks.Reply.TTL_EXPIRED,
}
"""The others are GENERAL_FAILURE."""


class Refused(Exception):
    """The client has no right to use the proxy."""


class ProxySession:
    def __init__(
        self,
        stream: ClientStream,
        dial: Dial,
        spec: AddForward,
        sides: Sides,
        count: Callable[..., None],
    ) -> None:
        self._stream = stream
        self._dial = dial
        self._spec = spec
        self._sides = sides
        self._count = count

    async def run(self) -> socket.socket | None:
        """Return the connection that the client asked for, once it has its answer.

        None if it asked for none, and was served. Raises Refused, DialError, EOFError,
        TimeoutError, OSError; the client has its answer, if its protocol has one.
        """
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            first = await self._stream.parse(lambda data: (data[0], 0) if data else None)
        if first == socks.VERSION_5:
            return await self._socks_5()
        if first == socks.VERSION_4:
            return await self._socks_4()
        if chr(first).isascii() and chr(first).isalpha():
            return await self._http()
        raise EOFError

    # ------------------------------------------------------------ SOCKS

    async def _socks_5(self) -> socket.socket | None:
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await self._log_in()
                request = await self._stream.parse(socks.parse_request)
        except socks.Unsupported as error:
            await self._fail(socks.encode_reply(error.reply))
            raise EOFError from None
        except Malformed:
            raise EOFError from None
        match request.command:
            case socks.Command.CONNECT:
                return await self._connect(
                    request,
                    lambda address: socks.encode_reply(socks.Reply.SUCCEEDED, *address),
                    lambda why: socks.encode_reply(_REPLIES.get(why, socks.Reply.GENERAL_FAILURE)),
                )
            case socks.Command.UDP_ASSOCIATE:
                await self._associate(request)
                return None
            case socks.Command.BIND:
                await self._fail(socks.encode_reply(socks.Reply.COMMAND_NOT_SUPPORTED))
                raise EOFError

    async def _log_in(self) -> None:
        """Raises Refused, Malformed, EOFError, OSError."""
        methods = await self._stream.parse(socks.parse_methods)
        if not self._spec.credentials and socks.NO_AUTHENTICATION in methods:
            await self._stream.send(socks.encode_method(socks.NO_AUTHENTICATION))
            return
        if socks.USERNAME_PASSWORD not in methods:
            await self._fail(socks.encode_method(socks.NO_ACCEPTABLE))
            raise Refused
        await self._stream.send(socks.encode_method(socks.USERNAME_PASSWORD))
        login = await self._stream.parse(socks.parse_login)
        if self._spec.credentials and not self._is_known(*login):
            await self._fail(socks.encode_login_status(False))
            raise Refused
        await self._stream.send(socks.encode_login_status(True))

    async def _socks_4(self) -> socket.socket | None:
        if self._spec.credentials:  # SOCKS 4 has no passwords
            await self._fail(socks.encode_reply_4(False))
            raise Refused
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                request = await self._stream.parse(socks.parse_request_4)
        except Malformed:
            await self._fail(socks.encode_reply_4(False))
            raise EOFError from None
        return await self._connect(
            request,
            lambda address: socks.encode_reply_4(True, *address),
            lambda _: socks.encode_reply_4(False),
        )

    async def _connect(
        self,
        request: socks.Request,
        granted: Callable[[tuple[str, int]], bytes],
        failed: Callable[[Why], bytes],
    ) -> socket.socket:
        try:
            other = await self._dial(Target(request.host, request.port))
        except DialError as error:
            await self._fail(failed(error.why))
            raise
        return await self._answer(other, granted(other.getsockname()[:2]))

    async def _associate(self, request: socks.Request) -> None:
        try:
            association = UdpAssociation(self._stream, request, self._spec, self._sides)
        except OSError:
            await self._fail(socks.encode_reply(socks.Reply.GENERAL_FAILURE))
            raise
        try:
            await self._stream.send(socks.encode_reply(socks.Reply.SUCCEEDED, *association.address))
            await association.run()
        finally:
            association.close()
            self._count(
                bytes_in=association.bytes_in,
                bytes_out=association.bytes_out,
                refused=association.refused,
            )

    # ------------------------------------------------------------ HTTP

    async def _http(self) -> socket.socket | None:
        counted = Counted()
        authorize = self._is_known if self._spec.credentials else None
        session = HttpSession(self._stream, self._dial, authorize, self._spec.idle_seconds, counted)
        try:
            other = await session.run(HANDSHAKE_SECONDS)
        except Failure as failure:
            await self._fail(failure.encode())
            raise Refused if failure.status == 407 else EOFError from None
        finally:
            self._count(bytes_in=counted.out_of_tunnel, bytes_out=counted.into_tunnel)
        return await self._answer(other, CONNECT_ESTABLISHED) if other else None

    # ------------------------------------------------------------ both

    def _is_known(self, user: bytes, password: bytes) -> bool:
        import hmac  # 3 MB of libcrypto, which most gateways never need
        from hashlib import sha256

        known = self._spec.credentials.get(user.decode("utf-8", "replace"), "")
        return hmac.compare_digest(sha256(password).hexdigest(), known.lower())

    async def _answer(self, other: socket.socket, answer: bytes) -> socket.socket:
        """Send a client its answer, and its target what it has sent ahead; return the latter."""
        with contextlib.ExitStack() as stack:
            stack.callback(other.close)
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await self._stream.send(answer)
                if ahead := self._stream.buffer:
                    await asyncio.get_running_loop().sock_sendall(other, ahead)
                    self._count(bytes_out=len(ahead))
            stack.pop_all()
        return other

    async def _fail(self, answer: bytes) -> None:
        """Send a client its answer, and wait a little until it has closed its connection."""
        connection = self._stream.connection
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await self._stream.send(answer)
                connection.shutdown(socket.SHUT_WR)
                self._stream.buffer = b""
                while await self._stream.read():
                    pass
