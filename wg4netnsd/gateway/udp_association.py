"""The UDP relay of one SOCKS 5 client (RFC 1928, 7): its datagrams into the tunnel, and back.

It is bound to the address that the client's TCP connection came to, takes datagrams of that client
alone, and ends with that connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final

from wg4netnsd.gateway.client_stream import ClientStream, Malformed
from wg4netnsd.gateway.datagrams import BATCH, MAX_DATAGRAM, send_to
from wg4netnsd.gateway.dial import DialError, addresses_of, open_socket
from wg4netnsd.gateway.protocol import AddForward
from wg4netnsd.gateway.sides import Sides
from wg4netnsd.gateway.socks import Request, encode_datagram, parse_datagram
from wg4netnsd.gateway.target import family_of

MAX_WAITING: Final = 16
"""Datagrams that wait for a look-up or a socket at once; others are dropped."""

MAX_NAMES: Final = 64
"""Names that are remembered at once."""

NAME_SECONDS: Final = 60
"""How long a name's address is remembered."""

Address = tuple[str, int]


class UdpAssociation:
    """Owns the relay's socket, and those in the tunnel, one for each family."""

    def __init__(
        self, stream: ClientStream, request: Request, spec: AddForward, sides: Sides
    ) -> None:
        """Raises OSError."""
        self._stream = stream
        self._spec = spec
        self._sides = sides
        self._loop = asyncio.get_running_loop()
        connection = stream.connection
        local = remote = "127.0.0.1"  # of a client that came by a Unix socket
        family = socket.AF_INET
        if connection.family != socket.AF_UNIX:
            family = connection.family
            local, remote = connection.getsockname()[0], connection.getpeername()[0]
        self._client_ip = remote
        self._client_port = request.port  # 0: it does not know yet
        self._client: Address | None = None
        self._relay = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._inside: dict[int, socket.socket] = {}
        self._names: dict[str, tuple[str, float]] = {}
        self._waiting: set[asyncio.Task[None]] = set()
        self.bytes_in = self.bytes_out = self.refused = 0
        try:
            self._relay.bind((local, 0))
        except OSError:
            self._relay.close()
            raise
        name = self._relay.getsockname()
        self.address: Address = _plain(name[0]), name[1]
        self._loop.add_reader(self._relay, self._on_client)

    async def run(self) -> None:
        """Return when the client's TCP connection has ended."""
        with contextlib.suppress(OSError):
            while await self._stream.read():
                pass

    def close(self) -> None:
        for task in self._waiting:
            task.cancel()
        for each in (self._relay, *self._inside.values()):
            self._loop.remove_reader(each)
            each.close()

    # ------------------------------------------------------------ out

    def _on_client(self) -> None:
        for _ in range(BATCH):
            try:
                data, sender = self._relay.recvfrom(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:  # ECONNREFUSED: of an earlier datagram to the client
                continue
            if not self._is_client(sender[:2]):
                continue
            try:
                host, port, payload = parse_datagram(data)
            except Malformed:
                continue
            self._send(host, port, payload)

    def _is_client(self, sender: Address) -> bool:
        """Whether a datagram is the client's. From its first one on, the kernel takes no other."""
        if self._client:
            return sender == self._client
        ip, port = sender
        if ip != self._client_ip or self._client_port not in (0, port):
            self.refused += 1
            return False
        if self._spec.access == "user":
            uid = self._sides.access.refused_datagram_uid(sender, self._relay.getsockname()[:2])
            if uid is not None:
                self.refused += 1
                return False
        with contextlib.suppress(OSError):
            self._relay.connect(sender)
        self._client = sender
        return True

    def _send(self, host: str, port: int, payload: bytes) -> None:
        address = self._address_of(host)
        family = family_of(address) if address else None
        if address and family in self._inside:
            self.bytes_out += send_to(self._inside[family], payload, (address, port))
        elif len(self._waiting) < MAX_WAITING:
            task = self._loop.create_task(self._prepare_and_send(host, port, payload))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    def _address_of(self, host: str) -> str | None:
        """Return the host's address, if it is or was looked up."""
        if family_of(host) is not None:
            return host
        address, until = self._names.get(host, ("", 0.0))
        return address if self._loop.time() < until else None

    async def _prepare_and_send(self, host: str, port: int, payload: bytes) -> None:
        tunnel = self._sides.tunnel
        with contextlib.suppress(DialError, TimeoutError):
            async with asyncio.timeout(self._spec.connect_seconds):
                address = (await addresses_of(tunnel, host))[0]
                family = family_of(address)
                assert family is not None
                if family not in self._inside:
                    opened = await open_socket(tunnel, family, socket.SOCK_DGRAM, host)
                    if family in self._inside:  # another one was faster
                        opened.close()
                    else:
                        self._inside[family] = opened
                        self._loop.add_reader(opened, self._on_far, opened)
            if address != host:
                if len(self._names) >= MAX_NAMES:
                    self._names.clear()
                self._names[host] = address, self._loop.time() + NAME_SECONDS
            self.bytes_out += send_to(self._inside[family], payload, (address, port))

    # ------------------------------------------------------------ in

    def _on_far(self, inside: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                data, sender = inside.recvfrom(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                continue
            if self._client:
                header_and_data = encode_datagram(sender[0], sender[1], data)
                if send_to(self._relay, header_and_data):
                    self.bytes_in += len(data)


def _plain(ip: str) -> str:
    """Return an IPv4 address that an IPv6 socket has as IPv4's own."""
    return ip.removeprefix("::ffff:") if "." in ip else ip
