"""What anybody on the Internet can send to an engine's UDP port, and whoever is on the path to it.

The messages are those of the WireGuard protocol (https://www.wireguard.com/protocol/), as far as
they can be made without a key of the peers'.
"""

import base64
import random
import select
import socket
import struct
import threading
from collections import deque
from hashlib import blake2s
from typing import Self

Address = tuple[str, int]

INITIATION, RESPONSE, COOKIE, DATA = 1, 2, 3, 4
PAUSE = 0.01  # seconds between two bursts
BURST = 20
KEPT = 2000  # datagrams that a Path remembers


def initiation(some: random.Random, public_key: str) -> bytes:
    """A handshake that nobody will complete, but whose first check (mac1) it passes."""
    message = struct.pack("<II", INITIATION, some.getrandbits(32)) + some.randbytes(108)
    key = blake2s(b"mac1----" + base64.b64decode(public_key)).digest()
    return message + blake2s(message, digest_size=16, key=key).digest() + bytes(16)


def anything(some: random.Random, public_key: str) -> bytes:
    match some.randrange(8):
        case 0 | 1:
            return b""
        case 2:
            return some.randbytes(some.randrange(1500))
        case 3:
            return initiation(some, public_key)
        case 4:
            return struct.pack("<I", RESPONSE) + some.randbytes(88)
        case 5:
            return struct.pack("<I", COOKIE) + some.randbytes(60)
        case 6:
            return struct.pack("<I", DATA) + some.randbytes(some.choice([12, 28, 60, 1400]))
        case _:
            return struct.pack("<I", some.choice([0, 1, 2, 3, 4, 5, 255, 256])) + some.randbytes(9)


class Anybody:
    """Sends bursts of datagrams to a port of this machine's, from ports of its own."""

    def __init__(self, targets: dict[int, str], seed: int) -> None:
        """`targets`: the public key of each port's engine."""
        self.sent = 0
        self._targets = targets
        self._some = random.Random(seed)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ended.wait(PAUSE):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(BURST):
                    port, key = self._some.choice(list(self._targets.items()))
                    sender.sendto(anything(self._some, key), ("127.0.0.1", port))
                    self.sent += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


class Path:
    """The path to a far end: every datagram arrives once, and with it come others.

    engine ◄──► address ──► far end
                └─ what came before, once more; the same with a bit changed; anything at all
    """

    def __init__(self, far: Address, public_key: str, seed: int) -> None:
        """`public_key`: the engine's."""
        self.sent = 0
        self._near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._near.bind(("127.0.0.1", 0))
        self._far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._far.connect(far)
        self.address: Address = self._near.getsockname()
        self._key = public_key
        self._some = random.Random(seed)
        self._seen: deque[bytes] = deque(maxlen=KEPT)
        self._engine: Address | None = None
        self._attacking = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def attack(self) -> None:
        """From now on."""
        self._attacking = True

    def _run(self) -> None:
        while not self._ended.is_set():
            ready, _, _ = select.select([self._near, self._far], [], [], 0.1)
            if self._near in ready:
                data, self._engine = self._near.recvfrom(65536)
                self._far.send(data)
                self._remember(data)
            if self._far in ready and self._engine:
                data = self._far.recv(65536)
                self._near.sendto(data, self._engine)
                self._remember(data)

    def _remember(self, data: bytes) -> None:
        self._seen.append(data)
        if self._attacking and self._engine:
            self._near.sendto(self._another(), self._engine)
            self.sent += 1

    def _another(self) -> bytes:
        old = self._some.choice(self._seen)
        match self._some.randrange(4):
            case 0:
                return anything(self._some, self._key)
            case 1 if old:
                changed = bytearray(old)
                changed[self._some.randrange(len(old))] ^= 1 << self._some.randrange(8)
                return bytes(changed)
            case 2:
                return old[: self._some.randrange(len(old) + 1)]
            case _:
                return old

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._near.close()
        self._far.close()
