"""The program of support.stream, run inside a namespace: blocks.py ADDRESS PORT JOURNAL

Each TICK it sends a block to the TCP echo server and a ping to its host, until stdin ends. A block
is made of its number, so whatever is lost, repeated or changed on either way shows. What happens is
written to JOURNAL at once, as records of three integers: what, when (CLOCK_MONOTONIC, in ns), how
much. One loop does it all, so nothing waits for another thread of Python's.
"""

import contextlib
import enum
import select
import socket
import struct
import sys
import time

TICK = 0.005
"""Seconds. A block each: 0.8 MB/s each way, far less than a tunnel carries, so that a gap is never
its queue; and often enough to tell an outage of a few ticks from none."""

MARKER = b"in-clear"
"""In any 24 bytes of the stream, and in every ping: what nobody outside may ever see."""

RECORD = struct.Struct("=qqq")
TCP_TOTAL_RETRANS = 100  # its offset in struct tcp_info, linux/tcp.h
ECHO, ECHO_REPLY = 8, 0  # types of ICMP
IDENTIFIER = 0x7767
CLOSE_TIME = 30.0  # seconds that what is under way gets to come back


class What(enum.IntEnum):
    ARRIVED = 0  # so many bytes, in all
    PINGED = 1  # the ping of this number was sent
    ANSWERED = 2  # it was answered
    RETRANSMITTED = 3  # by this end's TCP: so many segments, in all


def block(number: int) -> bytes:
    return (MARKER + number.to_bytes(8, "big")) * 256


BLOCK = len(block(0))


def ping(number: int) -> bytes:
    """The whole of an ICMP echo request; RFC 792, RFC 1071."""
    payload = number.to_bytes(8, "big") + MARKER * 4
    header = struct.pack("!BBHHH", ECHO, 0, 0, IDENTIFIER, number & 0xFFFF)
    words = sum(struct.unpack(f"!{len(header + payload) // 2}H", header + payload))
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    return header[:2] + struct.pack("!H", ~words & 0xFFFF) + header[4:] + payload


def answered(packet: bytes) -> int | None:
    """The number of the ping that this IPv4 packet answers."""
    message = packet[(packet[0] & 15) * 4 :]
    kind, _, _, identifier, _ = struct.unpack_from("!BBHHH", message)
    if (kind, identifier) != (ECHO_REPLY, IDENTIFIER):
        return None
    return int.from_bytes(message[8:16], "big")


class Exchange:
    def __init__(self, address: str, port: int, journal: str) -> None:
        self.stream = socket.create_connection((address, port), timeout=30)
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream.setblocking(False)
        self.pings = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.pings.connect((address, 0))
        self.pings.setblocking(False)
        self.journal = open(journal, "wb", buffering=0)  # noqa: SIM115
        self.sent = self.pinged = self.received = self.retransmitted = 0
        self.outgoing = self.incoming = b""
        self.open = True

    def note(self, what: What, amount: int) -> None:
        self.journal.write(RECORD.pack(what, time.monotonic_ns(), amount))

    def run(self) -> None:
        deadline = time.monotonic()
        inputs = [self.stream, self.pings, sys.stdin]
        while sys.stdin in inputs:
            outputs = [self.stream] if self.outgoing else []
            rest = max(0.0, deadline - time.monotonic())
            for ready in select.select(inputs, outputs, [], rest)[0]:
                if ready is sys.stdin:
                    inputs.remove(ready)
                elif ready is self.pings:
                    self.take_answers()
                else:
                    self.take_bytes()
            self.send()
            if (now := time.monotonic()) >= deadline:
                self.tick()
                deadline = max(deadline + TICK, now)  # what was missed is not made up for
        self.finish()

    def tick(self) -> None:
        if not self.outgoing:  # else the path is shut
            self.outgoing = block(self.sent)
            self.sent += 1
            self.send()
        self.note(What.PINGED, self.pinged)
        with contextlib.suppress(BlockingIOError):  # if so is this, it counts as lost
            self.pings.send(ping(self.pinged))
        self.pinged += 1
        info = self.stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        (count,) = struct.unpack_from("=I", info, TCP_TOTAL_RETRANS)
        if count != self.retransmitted:
            self.retransmitted = count
            self.note(What.RETRANSMITTED, count)

    def send(self) -> None:
        if self.outgoing:
            with contextlib.suppress(BlockingIOError):
                self.outgoing = self.outgoing[self.stream.send(self.outgoing) :]

    def take_answers(self) -> None:
        number = answered(self.pings.recv(2048))
        if number is not None:
            self.note(What.ANSWERED, number)

    def take_bytes(self) -> None:
        data = self.stream.recv(1 << 20)
        self.open = bool(data)
        self.incoming += data
        while len(self.incoming) >= BLOCK:
            number = self.received // BLOCK
            assert self.incoming[:BLOCK] == block(number), f"block {number} is another"
            self.incoming = self.incoming[BLOCK:]
            self.received += BLOCK
        self.note(What.ARRIVED, self.received + len(self.incoming))
        assert self.open or self.received == self.sent * BLOCK, "the far end closed"

    def finish(self) -> None:
        """All that was sent has to come back, and nothing else."""
        self.stream.settimeout(CLOSE_TIME)
        self.stream.sendall(self.outgoing)
        self.stream.shutdown(socket.SHUT_WR)
        while self.open:
            self.take_bytes()
        assert not self.incoming
        print("whole", self.received, flush=True)


if __name__ == "__main__":
    Exchange(sys.argv[1], int(sys.argv[2]), sys.argv[3]).run()
