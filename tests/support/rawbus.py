"""D-Bus messages written byte by byte, so that they may be wrong wherever a test wants."""

import array
import random
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BASIC = "ybnqiuxtdsogh"
_FIXED = {
    "y": "B",
    "b": "I",
    "n": "h",
    "q": "H",
    "i": "i",
    "u": "I",
    "x": "q",
    "t": "Q",
    "d": "d",
    "h": "I",
}
_STRICTEST = {"a": 4, "(": 8, "{": 8, "s": 4, "o": 4, "g": 1, "v": 1}

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL, DESTINATION, SIGNATURE, UNIX_FDS = (
    1, 2, 3, 4, 5, 6, 8, 9,
)  # fmt: skip


@dataclass
class Raw:
    """A message; the fields are (code, signature, value)."""

    type: int = METHOD_CALL
    flags: int = 0
    fields: list[tuple[int, str, Any]] = field(default_factory=list)
    signature: str = ""
    body: Sequence[Any] = ()
    fds: list[int] = field(default_factory=list)
    big_endian: bool = False

    def data(self, serial: int) -> bytes:
        body = Encoder(self.big_endian)
        body.sequence(self.signature, self.body)
        fields = list(self.fields)
        if self.signature:
            fields.append((SIGNATURE, "g", self.signature))
        if self.fds:
            fields.append((UNIX_FDS, "u", len(self.fds)))
        head = Encoder(self.big_endian)
        order = ord("B" if self.big_endian else "l")
        start = [order, self.type, self.flags, 1, len(body.data), serial]
        head.sequence("yyyyuu", start)
        head.value("a(yv)", [(code, (signature, value)) for code, signature, value in fields])
        head.align(8)
        return bytes(head.data + body.data)

    def send(self, to: socket.socket, data: bytes) -> None:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self.fds))
        sent = to.sendmsg([data], [rights] if self.fds else [])
        to.sendall(data[sent:])


class Encoder:
    """Values as the D-Bus specification marshals them; a variant is (signature, value)."""

    def __init__(self, big_endian: bool = False) -> None:
        self.data = bytearray()
        self._order = ">" if big_endian else "<"

    def align(self, size: int) -> None:
        self.data += bytes(-len(self.data) % size)

    def sequence(self, signature: str, values: Sequence[Any]) -> None:
        for one, value in zip(split(signature), values, strict=True):
            self.value(one, value)

    def value(self, signature: str, value: Any) -> None:
        kind = signature[0]
        if kind in _FIXED:
            self._pack(_FIXED[kind], value)
        elif kind in "so":
            text = value.encode()
            self._pack("I", len(text))
            self.data += text + b"\0"
        elif kind == "g":
            self.data += bytes([len(value)]) + value.encode() + b"\0"
        elif kind == "v":
            self.value("g", value[0])
            self.value(*value)
        elif kind == "a":
            self._array(signature[1:], value)
        else:
            self.align(8)
            self.sequence(signature[1:-1], value)

    def _array(self, element: str, values: Any) -> None:
        self._pack("I", 0)
        at = len(self.data)
        self.align(alignment(element))
        start = len(self.data)
        if element == "y":
            self.data += bytes(values)
        else:
            for value in values.items() if isinstance(values, dict) else values:
                self.value(element, value)
        struct.pack_into(f"{self._order}I", self.data, at - 4, len(self.data) - start)

    def _pack(self, code: str, value: Any) -> None:
        self.align(struct.calcsize("=" + code))
        self.data += struct.pack(self._order + code, value)


def alignment(signature: str) -> int:
    kind = signature[0]
    return struct.calcsize("=" + _FIXED[kind]) if kind in _FIXED else _STRICTEST[kind]


def split(signature: str) -> list[str]:
    """A signature's complete types."""
    found = []
    while signature:
        end = _end(signature)
        found.append(signature[:end])
        signature = signature[end:]
    return found


def _end(signature: str) -> int:
    if signature[0] == "a":
        return 1 + _end(signature[1:])
    if signature[0] not in "({":
        return 1
    depth = 0
    for at, kind in enumerate(signature):
        depth += (kind in "({") - (kind in ")}")
        if not depth:
            return at + 1
    raise ValueError(signature)


class Values:
    """Random signatures, and random values of them."""

    def __init__(self, rng: random.Random, strings: Sequence[str]) -> None:
        self._rng = rng
        self._strings = strings

    def signature(self, depth: int = 3) -> str:
        kind = self._rng.choice(BASIC + ("vaa({" if depth else "v"))
        match kind:
            case "a":
                return "a" + self.signature(depth - 1)
            case "(":
                inside = (self.signature(depth - 1) for _ in range(self._rng.randint(1, 3)))
                return f"({''.join(inside)})"
            case "{":
                return f"a{{{self._rng.choice(BASIC)}{self.signature(depth - 1)}}}"
        return kind

    def of(self, signature: str, depth: int = 6) -> Any:
        rng, kind = self._rng, signature[0]
        match kind:
            case "b":
                return rng.randint(0, 1)
            case "d":
                return rng.choice([0.0, -1.5, float("nan"), float("inf"), rng.random()])
            case "h":
                return rng.choice([0, 1, 2, 3, 2, 1, 0, 19, 2**31, 2**32 - 1])
            case "s":
                return self.string()
            case "o":
                return rng.choice(["/", "/a", "/org/wg4netns1", "/org/wg4netns1/tunnel/fuzzed"])
            case "g":
                return self.signature(1)
            case "v":
                inside = self.signature(min(depth, 2)) if depth > 0 else "y"
                return inside, self.of(inside, depth - 1)
            case "a" if signature[1] == "{":
                key, value = split(signature[2:-1])
                count = rng.choice([0, 1, 2, 5])
                return {self.of(key): self.of(value, depth - 1) for _ in range(count)}
            case "a":
                return [self.of(signature[1:], depth - 1) for _ in range(rng.choice([0, 1, 2, 9]))]
            case "(":
                return tuple(self.of(one, depth - 1) for one in split(signature[1:-1]))
        bits = 8 * struct.calcsize("=" + _FIXED[kind])
        low, high = (
            (-(1 << bits - 1), (1 << bits - 1) - 1) if kind in "nix" else (0, (1 << bits) - 1)
        )
        return rng.choice([low, high, 0, 1, rng.randint(low, high)])

    def string(self) -> str:
        rng = self._rng
        if rng.random() < 0.8:
            return rng.choice(self._strings)
        alphabet = "ab/.0:-_ \n\t\x1b\x7f\u2028é\U0001f300\ufdd0"
        return "".join(rng.choice(alphabet) for _ in range(rng.choice([0, 1, 5, 48, 300])))
