"""Incoming D-Bus messages: where one ends, which fds came with it, and what its header says.

dbus-next takes a hundred times as long to read a header, keeps a message of any length, and ends
the connection at a type of message or a header field that it does not know. So it decodes bodies
only (codec.py), and those of limited length. Pure: the socket is connection.py's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from wg4netnsd.files.client import ReceivedFd

MAX_MESSAGE: Final = 16384
"""Bytes of a message that is kept whole. The longest useful one has two paths of PATH_MAX, 4096
each, and a few options: configurations come in files. One that is full of tiny variants takes 20 ms
to decode, and nothing else happens meanwhile."""

MAX_LENGTH: Final = 1 << 27
"""Bytes. The D-Bus specification's limit: no bus forwards more."""

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
NO_REPLY_EXPECTED: Final = 1

PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL = 1, 2, 3, 4, 5
DESTINATION, SENDER, SIGNATURE, UNIX_FDS = 6, 7, 8, 9

_LITTLE, _BIG = ord("l"), ord("B")
_STRING, _OBJECT_PATH, _SIGNATURE_TYPE, _UINT32 = b"sogu"
_FIELD_TYPES: Final = dict(enumerate(b"osssussgu", start=PATH))
_SIZES: Final = dict(zip(b"ybnqiuhxtd", (1, 4, 2, 2, 4, 4, 4, 8, 8, 8), strict=True))
_ALIGNMENTS: Final = _SIZES | dict(zip(b"soagv({", (4, 4, 4, 1, 1, 8, 8), strict=True))
_MAX_DEPTH: Final = 64
"""How deep the specification lets structs and variants nest; we need not look inside arrays."""
_LENGTHS: Final = {_LITTLE: struct.Struct("<III"), _BIG: struct.Struct(">III")}
_NUMBER: Final = {_LITTLE: struct.Struct("<I"), _BIG: struct.Struct(">I")}


class Malformed(ValueError):
    """A message that no bus would have forwarded."""


@dataclass(slots=True)
class Frame:
    """One message, its header read. Owns `fds` until they are handed on."""

    type: int
    flags: int
    serial: int
    length: int
    fields: dict[int, bytes | int]
    data: bytes
    """The whole message; only its header if it is longer than MAX_MESSAGE."""
    body_at: int
    fds: list[ReceivedFd] = field(default_factory=list)
    sender: str = field(init=False)

    def __post_init__(self) -> None:
        self.sender = self._text(SENDER)

    @property
    def path(self) -> str:
        return self._text(PATH)

    @property
    def interface(self) -> str | None:
        return self._text(INTERFACE) or None

    @property
    def member(self) -> str:
        return self._text(MEMBER)

    @property
    def signature(self) -> str:
        return self._text(SIGNATURE)

    @property
    def destination(self) -> str:
        return self._text(DESTINATION)

    @property
    def error_name(self) -> str:
        return self._text(ERROR_NAME)

    @property
    def reply_serial(self) -> int:
        """The serial number of the call that this answers; 0 if there is none."""
        return int(self.fields.get(REPLY_SERIAL, 0))

    @property
    def expects_reply(self) -> bool:
        return not self.flags & NO_REPLY_EXPECTED

    @property
    def is_whole(self) -> bool:
        return len(self.data) == self.length

    @property
    def fds_lost(self) -> bool:
        """Fewer came than were sent: see Connection._receive_fds()."""
        return len(self.fds) < int(self.fields.get(UNIX_FDS, 0))

    def _text(self, code: int) -> str:
        value = self.fields.get(code, b"")
        return value.decode(errors="replace") if isinstance(value, bytes) else ""


class FrameReader:
    """Cuts a stream into messages. Keeps only the header of one that is too long."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: list[ReceivedFd] = []  # of the message that the buffer begins with
        self._unwanted = 0  # bytes that are still to come of a message that is not kept

    def feed(self, data: bytes, fds: list[ReceivedFd]) -> list[Frame]:
        """Return the messages that are complete now. `fds` came with the data. Raises Malformed.

        The kernel ends a read after data that descriptors were sent with, and buses send each
        message on its own. So the descriptors belong to the last message that begins in the data.
        """
        unwanted = min(self._unwanted, len(data))
        self._unwanted -= unwanted
        self._buffer += memoryview(data)[unwanted:]
        frames = []
        at = 0
        while frame := self._cut(at):
            frames.append(frame)
            at += frame.length
            if at > len(self._buffer):
                self._unwanted = at - len(self._buffer)
        del self._buffer[:at]
        if self._buffer or not frames:
            self._fds += fds
        else:
            frames[-1].fds += fds
        return frames

    def pop_fds(self) -> list[ReceivedFd]:
        """Return the descriptors of a message that will never be complete; now they are yours."""
        fds, self._fds = self._fds, []
        return fds

    def _cut(self, at: int) -> Frame | None:
        buffer = self._buffer
        if len(buffer) - at < 16:
            return None
        order = buffer[at]
        if order not in _LENGTHS:
            raise Malformed("the byte order is neither 'l' nor 'B'")
        body, serial, fields = _LENGTHS[order].unpack_from(buffer, at + 4)
        header = 16 + (fields + 7 & ~7)
        length = header + body
        if length > MAX_LENGTH:
            raise Malformed(f"{length} bytes")
        kept = at + (length if length <= MAX_MESSAGE else header)
        if len(buffer) < kept:
            return None
        data = bytes(memoryview(buffer)[at:kept])
        found = _fields(data, 16 + fields, order)
        frame = Frame(data[1], data[2], serial, length, found, data, header, self._fds)
        self._fds = []
        return frame


def _fields(data: bytes, end: int, order: int) -> dict[int, bytes | int]:
    """Return the header's fields by their codes.

    The specification has us ignore fields that we don't know; dbus-broker passes them on whatever
    the type of their values.
    """
    unpack = _NUMBER[order].unpack_from
    found: dict[int, bytes | int] = {}
    at = 16
    try:
        while at < end:
            code, length, type_ = data[at], data[at + 1], data[at + 2]
            at += 3 + length
            if _FIELD_TYPES.get(code) != type_ or length != 1:
                at = _skip(data, at, order, data[at - 1 - length : at - 1])
            elif type_ in (_STRING, _OBJECT_PATH):
                length = unpack(data, at)[0]
                found[code] = data[at + 4 : at + 4 + length]
                at += length + 5
            elif type_ == _UINT32:
                found[code] = unpack(data, at)[0]
                at += 4
            else:
                found[code] = data[at + 1 : at + 1 + data[at]]
                at += data[at] + 2
            at = at + 7 & ~7
    except (IndexError, KeyError, struct.error):
        raise Malformed("the header is not what its fields say") from None
    return found


def _skip(data: bytes, at: int, order: int, signature: bytes, depth: int = 0) -> int:
    """Return where values of these types end that begin at `at`, padding included."""
    if depth > _MAX_DEPTH:
        raise Malformed("a header field with too many types in one another")
    number = _NUMBER[order].unpack_from
    while signature:
        end = _end_of_type(signature)
        at += -at % _ALIGNMENTS[signature[0]]
        match chr(signature[0]):
            case "s" | "o":
                at += 4 + number(data, at)[0] + 1
            case "g":
                at += 1 + data[at] + 1
            case "a":
                length = number(data, at)[0]
                at += 4
                at += -at % _ALIGNMENTS[signature[1]] + length
            case "v":
                value = at + 1 + data[at] + 1
                at = _skip(data, value, order, data[at + 1 : value - 1], depth + 1)
            case "(":
                at = _skip(data, at, order, signature[1 : end - 1], depth + 1)
            case _:
                at += _SIZES[signature[0]]
        signature = signature[end:]
    return at


def _end_of_type(signature: bytes) -> int:
    """Return where the first complete type of a signature ends."""
    at, depth = 0, 0
    while True:
        depth += (signature[at] in b"({") - (signature[at] in b")}")
        if signature[at] not in b"a" and not depth:
            return at + 1
        at += 1
