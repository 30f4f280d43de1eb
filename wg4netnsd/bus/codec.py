"""D-Bus values as bytes: the door to dbus-next, which is used for nothing else.

`frames.py` reads the headers of incoming messages, `connection.py` owns the socket.
"""

from __future__ import annotations

import functools
import struct
import typing
from typing import Any, Final

from wg4netnsd.bus.frames import Frame, Malformed
from wg4netnsd.text import safe

# dbus-next imports a decorator whose removal is announced for Python 3.15.
if not hasattr(typing, "no_type_check_decorator"):
    vars(typing)["no_type_check_decorator"] = lambda function: function

from dbus_next import Message, MessageFlag, MessageType, Variant
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.signature import SignatureTree

__all__ = [
    "Message",
    "MessageFlag",
    "MessageType",
    "Variant",
    "decode_body",
    "encode",
    "encode_error",
]

MAX_SIGNATURES: Final = 256
"""How many signatures dbus-next may remember. It never forgets one, and a variant can have any."""

_SERIAL_AT: Final = 8  # the D-Bus specification's "Message Format"
_UINT32: Final = struct.Struct("<I")
_PLACEHOLDER: Final = 0xFFFFFFFF  # its bytes are no UTF-8, so no text of the message has them


def encode(message: Message) -> bytes:
    """Return the whole message; its fds go beside it.

    Every text that leaves us passes here: the bus disconnects a client whose text has a NUL or is
    not UTF-8. dbus-next raises an exception if the body does not have the signature: a bug of ours.
    """
    message.body = _safe(message.body)
    return bytes(message._marshall(negotiate_unix_fd=True))


def _safe(value: Any) -> Any:
    """Return a value with safe text in it only."""
    match value:
        case str():
            return safe(value)
        case list():
            return [_safe(each) for each in value]
        case tuple():
            return tuple(_safe(each) for each in value)
        case dict():
            return {_safe(key): _safe(each) for key, each in value.items()}
        case Variant():
            cleaned = _safe(value.value)
            return value if cleaned == value.value else Variant(value.signature, cleaned)
        case _:
            return value


def encode_error(call: Frame, serial: int, name: str, text: str) -> bytes:
    """Return the error message that answers `call`.

    A client that floods us gets the same error each time, and dbus-next takes 20 µs to encode one.
    Here it does so once; after that only the serial numbers change, which takes a hundredth.
    """
    template, reply_serial_at = _error_template(call.sender, name, text)
    data = bytearray(template)
    _UINT32.pack_into(data, _SERIAL_AT, serial)
    _UINT32.pack_into(data, reply_serial_at, call.serial)
    return bytes(data)


@functools.lru_cache(maxsize=32)
def _error_template(destination: str, name: str, text: str) -> tuple[bytes, int]:
    """Return an encoded error, and where in it the serial number of the call belongs."""
    message = Message(
        message_type=MessageType.ERROR,
        flags=MessageFlag.NO_REPLY_EXPECTED,
        error_name=name,
        reply_serial=_PLACEHOLDER,
        destination=destination,
        signature="s",
        body=[text],
    )
    data = encode(message)
    return data, data.index(_UINT32.pack(_PLACEHOLDER))


def decode_body(frame: Frame) -> list[Any]:
    """Return a message's arguments. Raises Malformed."""
    if not frame.is_whole:
        raise Malformed(f"{frame.length} bytes")
    if len(SignatureTree._cache) > MAX_SIGNATURES:
        SignatureTree._cache.clear()
    # Not the header: dbus-next refuses fields that it does not know, and the specification wants
    # them to be ignored.
    reader = Unmarshaller(stream=None)
    reader.buf, reader.endian, reader.offset = frame.data, frame.data[0], frame.body_at
    try:
        return [reader.read_argument(one) for one in SignatureTree._get(frame.signature).types]
    except Exception as error:  # of many types, none of them documented
        raise Malformed(f"{type(error).__name__}: {error}") from None
