"""SOCKS 5 (RFC 1928, RFC 1929), 4 and 4a: parse what a client sends, encode what it gets.

Nothing here reads or writes. A parser gets all that was received so far; it returns a message with
its length, or None while there is less than a whole one. It raises Malformed as soon as no more
bytes can make it one. The longest message has 513 bytes in SOCKS 5, and in SOCKS 4 what MAX_STRING
allows.

Our own, because PyPI has clients' halves and whole servers: of those without I/O, socksio (2020)
knows the client's side alone.
"""

from __future__ import annotations

import enum
import socket
import struct
from typing import Final, NamedTuple

from wg4netnsd.gateway.client_stream import Malformed

VERSION_5, VERSION_4 = 5, 4
NO_AUTHENTICATION, USERNAME_PASSWORD, NO_ACCEPTABLE = 0, 2, 0xFF  # methods
_IPV4, _NAME, _IPV6 = 1, 3, 4
MAX_STRING: Final = 255
"""Bytes of a SOCKS 4 user id or host name, which end with a NUL; SOCKS 5 can't say longer ones."""


class Command(enum.IntEnum):
    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3


class Reply(enum.IntEnum):
    """What became of a request (RFC 1928, 6)."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


class Unsupported(Malformed):
    """A request of the protocol that we don't serve."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.name)
        self.reply = reply


class Request(NamedTuple):
    command: Command
    host: str
    """An address or a name."""
    port: int


class Login(NamedTuple):
    user: bytes
    password: bytes


# ---------------------------------------------------------------- SOCKS 5


def parse_methods(data: bytes) -> tuple[bytes, int] | None:
    """Parse the greeting; return the methods that the client offers."""
    if len(data) < 2 or len(data) < 2 + data[1]:
        return None
    return data[2 : 2 + data[1]], 2 + data[1]


def encode_method(method: int) -> bytes:
    return bytes((VERSION_5, method))


def parse_login(data: bytes) -> tuple[Login, int] | None:
    """Parse a user name and password (RFC 1929)."""
    if data[:1] not in (b"", b"\x01"):
        raise Malformed("the version of RFC 1929 is 1")
    if len(data) < 2 or len(data) < 3 + data[1]:
        return None
    name_end = 2 + data[1]
    end = name_end + 1 + data[name_end]
    if len(data) < end:
        return None
    return Login(data[2:name_end], data[name_end + 1 : end]), end


def encode_login_status(ok: bool) -> bytes:
    return b"\x01\x00" if ok else b"\x01\x01"


def parse_request(data: bytes) -> tuple[Request, int] | None:
    """Parse a request. Raises Malformed, Unsupported."""
    if data[:1] not in (b"", b"\x05"):
        raise Malformed("the version of SOCKS 5 is 5")
    if len(data) < 4:
        return None
    if not (found := _parse_address(data, 3)):
        return None
    host, port, end = found
    try:
        return Request(Command(data[1]), host, port), end
    except ValueError:
        raise Unsupported(Reply.COMMAND_NOT_SUPPORTED) from None


def encode_reply(reply: Reply, host: str = "0.0.0.0", port: int = 0) -> bytes:
    """Encode a reply; the address is the socket's in the tunnel, or the UDP relay's."""
    return bytes((VERSION_5, reply, 0)) + _encode_address(host, port)


def parse_datagram(data: bytes) -> tuple[str, int, bytes]:
    """Parse a client's datagram to a UDP relay; return host, port and payload.

    Raises Malformed, also for a fragment: reassembly is optional, and nobody sends any.
    """
    if len(data) < 4 or data[2] != 0:
        raise Malformed("a fragment, or no datagram of SOCKS 5")
    found = _parse_address(data, 3)
    if not found:
        raise Malformed("a datagram that ends in its header")
    host, port, end = found
    return host, port, data[end:]


def encode_datagram(host: str, port: int, payload: bytes) -> bytes:
    return b"\0\0\0" + _encode_address(host, port) + payload


def _parse_address(data: bytes, start: int) -> tuple[str, int, int] | None:
    """Parse the type of an address, the address and a port; return them and their end."""
    kind = data[start]
    first = start + 1
    if kind == _IPV4:
        end = first + 4
    elif kind == _IPV6:
        end = first + 16
    elif kind == _NAME:
        if len(data) <= first:
            return None
        end = first + 1 + data[first]
    else:
        raise Unsupported(Reply.ADDRESS_TYPE_NOT_SUPPORTED)
    if len(data) < end + 2:
        return None
    raw = data[first:end]
    port = int.from_bytes(data[end : end + 2], "big")
    if kind == _NAME:
        host = _host(raw[1:])
    else:
        host = socket.inet_ntop(socket.AF_INET if kind == _IPV4 else socket.AF_INET6, raw)
    return host, port, end + 2


def _encode_address(host: str, port: int) -> bytes:
    if ":" in host:
        raw = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        return bytes((_IPV6,)) + raw + port.to_bytes(2, "big")
    return bytes((_IPV4,)) + socket.inet_aton(host) + port.to_bytes(2, "big")


def _host(raw: bytes) -> str:
    """Return a host name as text. Raises Malformed if it can't be one."""
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        raise Malformed("a host name that is not ASCII") from None
    if not text or not text.isprintable() or " " in text:
        raise Malformed("no host name")
    return text


# ---------------------------------------------------------------- SOCKS 4, 4a


def parse_request_4(data: bytes) -> tuple[Request, int] | None:
    """Parse a request; its user id counts for nothing. Raises Malformed."""
    if len(data) < 9:
        return None
    number, port, raw = struct.unpack_from("!xBH4s", data)
    user_end = _end_of_string(data, 8)
    if user_end is None:
        return None
    host, end = socket.inet_ntoa(raw), user_end
    if raw[:3] == b"\0\0\0" and raw[3]:  # 4a: 0.0.0.x, a name follows
        name_end = _end_of_string(data, user_end)
        if name_end is None:
            return None
        host, end = _host(data[user_end : name_end - 1]), name_end
    if number != Command.CONNECT:
        raise Malformed("of SOCKS 4, CONNECT only")
    return Request(Command.CONNECT, host, port), end


def encode_reply_4(granted: bool, host: str = "0.0.0.0", port: int = 0) -> bytes:
    """Encode a reply. SOCKS 4 has one word for every failure, and no IPv6 addresses."""
    if ":" in host:
        host = "0.0.0.0"
    return struct.pack("!BBH", 0, 90 if granted else 91, port) + socket.inet_aton(host)


def _end_of_string(data: bytes, start: int) -> int | None:
    """Return what follows a NUL; None if there is none yet. Raises Malformed if it is too far."""
    end = data.find(b"\0", start, start + MAX_STRING + 1)
    if end >= 0:
        return end + 1
    if len(data) - start > MAX_STRING:
        raise Malformed("a string of SOCKS 4 that does not end")
    return None
