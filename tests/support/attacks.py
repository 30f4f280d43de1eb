"""What root of a namespace can throw at wg4netnsd from there; run inside as a program:

    attacks.py netlink|packets|changes SEED SECONDS
    attacks.py resolv_conf SEED SECONDS FILE

Each attack is random, follows from its seed, and ends after so many seconds, or in the middle if
its interface is gone. It prints how much of it the kernel has taken.
"""

import contextlib
import os
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

Some = random.Random

# ---------------------------------------------------------------- netlink

NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE = 16, 17, 20, 21, 24, 25
NEWNSID, DELNSID, ERROR, DONE, OVERRUN = 88, 89, 2, 3, 4
KINDS = (NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE, NEWNSID, DELNSID, ERROR, DONE)
IFLA_IFNAME, IFLA_MTU, IFLA_NEW_NETNSID, IFLA_TARGET_NETNSID = 3, 4, 45, 46
LINK_GROUP = 1  # RTMGRP_LINK
TAKEN_AT_ONCE = 200


def message(kind: int, body: bytes, sequence: int = 0, port: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, port) + body


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def link(index: int, name: bytes | None, flags: int = 0x10091) -> bytes:
    head = struct.pack("=BxHiII", 0, 0xFFFE, index, flags, 0)
    return head + (attribute(IFLA_IFNAME, name) if name is not None else b"")


def forged(index: int) -> list[bytes]:
    """What the kernel could say of an interface, and a bit more."""
    nowhere = attribute(IFLA_NEW_NETNSID, struct.pack("=i", 0))
    return [
        *(
            message(NEWLINK, link(index, name))
            for name in (b"evil\0name\0", b"\xff\xfe\0", b"\x1b]0;owned\x07\0", b"x" * 4000, None)
        ),
        message(NEWLINK, link(index, b"wg0\0", flags=0)),
        message(NEWLINK, link(index, b"wg0\0") + attribute(IFLA_MTU, struct.pack("=I", 68))),
        message(DELLINK, link(index, b"wg0\0")),
        message(DELLINK, link(index, b"wg0\0") + nowhere),
        message(NEWLINK, link(index, b"wg0\0") + nowhere),
        message(DELNSID, bytes(4) + attribute(1, struct.pack("=i", 0))),
        *(message(ERROR, struct.pack("=i", -error) + bytes(16)) for error in (19, 22, 1, 0)),
        message(ERROR, b""),
        message(DONE, b""),
        message(OVERRUN, b""),
        message(NEWLINK, b""),
        message(NEWLINK, link(index, b"wg0\0"))[:20],
        *(b"", b"\0", bytes(15), bytes(16), b"\xff" * 64),
    ]


def mutated(some: Some, messages: list[bytes]) -> bytes:
    """One of them, or some in a row, with a few bytes changed."""
    chosen = bytearray(b"".join(some.choices(messages, k=some.choice([1, 1, 1, 3]))) or b"\0")
    for _ in range(some.randrange(5)):
        chosen[some.randrange(len(chosen))] = some.randrange(256)
    if some.random() < 0.2:
        chosen = chosen[: some.randrange(len(chosen) + 1)]
    return bytes(chosen)


def anything(some: Some, index: int) -> bytes:
    """A message of some kind with some attributes."""
    attributes = b"".join(
        attribute(some.randrange(64), some.randbytes(some.choice([0, 4, 4, 8, 16, 60])))
        for _ in range(some.randrange(6))
    )
    kind = some.choice(KINDS) if some.random() < 0.8 else some.randrange(65536)
    sequence, port = some.choice([0, 1, 2, some.getrandbits(32)]), some.choice([0, 1])
    return message(kind, link(index, None, some.getrandbits(17)) + attributes, sequence, port)


def attack_by_netlink(some: Some, ends: float) -> int:
    """To the link group, and to every socket there is.

    Not to the kernel, which would do what a message asks for: root may delete its interface.
    """
    index = 2  # what its first interface after `lo` has
    messages, taken = forged(index), 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sender:
        sender.bind((0, 0))
        sender.setblocking(False)
        own = sender.getsockname()[0]
        while time.monotonic() < ends:
            ports = listening() - {own} or {own}
            for _ in range(TAKEN_AT_ONCE):
                data = some.choice([mutated(some, messages), anything(some, index)])
                for port in ports:
                    with contextlib.suppress(OSError):  # that socket takes none, or is no more
                        sender.sendto(data, (port, LINK_GROUP))
                        taken += 1
    return taken


def listening() -> set[int]:
    """The ports of the namespace's sockets for NETLINK_ROUTE."""
    lines = Path("/proc/self/net/netlink").read_text().splitlines()[1:]
    return {int(pid) for _, protocol, pid, *_ in map(str.split, lines) if protocol == "0"} - {0}


# ---------------------------------------------------------------- malformed packets

SOL_PACKET, PACKET_VNET_HDR = 263, 15
V4, V6, ANY = 0x0800, 0x86DD, 0x0003
NEEDS_CSUM, TCPV4, UDP, TCPV6, UDP_L4, ECN = 1, 1, 3, 4, 5, 0x80
FORMS = (
    *((4, TCPV4, 20, 16), (6, TCPV6, 40, 16), (4, UDP_L4, 20, 6), (6, UDP_L4, 40, 6)),
    *((4, TCPV4 | ECN, 20, 16), (4, UDP, 20, 6), (4, TCPV6, 20, 16), (6, TCPV4, 40, 16)),
)
TCP_DATA = struct.pack(">HHIIBBHHH", 7, 7, 1, 1, 0x50, 0x10, 900, 0, 0) + bytes(3000)
UDP_DATA = struct.pack(">HHHH", 7, 7, 3008, 0) + bytes(3000)


def ip(version: int, protocol: int, payload: bytes) -> bytes:
    if version == 4:
        addresses = map(socket.inet_aton, ("198.51.100.11", "198.51.100.1"))
        head = struct.pack(">BxHHxxBBxx", 0x45, 20 + len(payload), 1, 64, protocol)
        return head + b"".join(addresses) + payload
    return struct.pack(">BxxxHBB32x", 0x60, len(payload), protocol, 64) + payload


def frames(some: Some) -> Iterator[bytes]:
    """Frames with a virtio header, as packet(7) has them with PACKET_VNET_HDR."""
    for first in 0x00, 0x15, 0x45, 0x65, 0xF5:
        for version, gso_type, start, offset in FORMS:
            udp = gso_type & 0x7F in (UDP, UDP_L4)
            packet = ip(version, 17 if udp else 6, UDP_DATA if udp else TCP_DATA)
            packet = bytes([first]) + packet[1:]
            hdr_len = start + (8 if udp else 20)
            right = NEEDS_CSUM, gso_type, hdr_len, 1000, start, offset
            yield struct.pack("=BBHHHH", *right) + packet
            for size in 1, 9, 21, 41:
                yield bytes(10) + packet[:size]
            for _ in range(10):
                fields = some.choices((start, offset, hdr_len, 1000, 0, 1, 7, 2999, 65535), k=4)
                header = struct.pack("=BBHHHH", some.randrange(2), gso_type, *fields)
                yield header + packet[: some.randrange(3000)]


def attack_by_packets(some: Some, ends: float) -> int:
    """All of them once, and then again until the time is over."""
    taken = 0
    while True:
        for protocol in V4, V6, ANY:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
                sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
                try:
                    sender.bind((interface(), protocol))
                except (OSError, UnicodeEncodeError):  # just renamed, or Python can't say its name
                    continue
                for frame in frames(some):
                    with contextlib.suppress(OSError):
                        sender.send(frame)
                        taken += 1
        if time.monotonic() > ends:
            return taken


def interface() -> str:
    """The name of the one that is not `lo`; empty if there is none any more.

    Not by the C library, which asks by netlink and aborts at a forged answer.
    """
    lines = Path("/proc/self/net/dev").read_bytes().splitlines()[2:]
    names = [os.fsdecode(line.rpartition(b":")[0].strip()) for line in lines]
    return next((name for name in names if name != "lo"), "")


# ---------------------------------------------------------------- changes of the interface

NAMES = ("wg0", "w\N{LATIN SMALL LETTER E WITH ACUTE}", "-h", "$(id)", "%s%n", "a;b", "eth0", "0x1")
ODD_NAMES = (b"\x1b[31m", b"\xff\xfe", b"\xc2\x9bx", b"a\x7fb", b"=.=", b"\xe2\x80\xae")


def attack_by_changes(some: Some, ends: float) -> int:
    """Renamed, taken down, given other MTUs, addresses and routes; in the end it is wg0 and up."""
    taken = 0
    while time.monotonic() < ends:
        name = b"wg0"
        lines = list[bytes]()
        for _ in range(50):
            new = some.choice([*map(str.encode, NAMES), *ODD_NAMES])
            some_mtu = some.choice([1280, 1420, 68, 9000, 65535])
            change, then = some.choice(
                [
                    (
                        b"link set %s down\nlink set %s name %s\nlink set %s up",
                        (name, name, new, new),
                    ),
                    (b"link set %s down\nlink set %s up", (name, name)),
                    (b"link set %s mtu %d", (name, some_mtu)),
                    (b"address flush dev %s", (name,)),
                    (b"address add 192.0.2.%d/32 dev %s", (some.randrange(256), name)),
                    (b"route add default dev %s metric %d", (name, some.randrange(1, 9))),
                    (b"link set %s txqueuelen %d", (name, some.randrange(2000))),
                ]
            )
            lines.append(change % then)
            name = new if b" name " in change else name
        lines += [b"link set %s down" % name, b"link set %s name wg0" % name, b"link set wg0 up"]
        run = subprocess.run(
            ["ip", "-force", "-batch", "-"], input=b"\n".join(lines), capture_output=True
        )
        taken += b"\n".join(lines).count(b"\n") + 1 - run.stderr.count(b"Command failed")
    for command in ("down", "name wg0", "mtu 1420", "up"):
        # Until it is done: the answers may be forged ones.
        while left := interface():
            if not subprocess.run(["ip", "link", "set", left, *command.split()]).returncode:
                break
            time.sleep(0.1)
    return taken


# ---------------------------------------------------------------- resolv.conf

LINES = (b"nameserver 192.0.2.66\n", b"options timeout:99999\n", b"search .\n", b"\0" * 999, b"\n")


def attack_by_resolv_conf(some: Some, ends: float, path: str) -> int:
    """What a container writes to its file, having made the bind mount writable."""
    taken = 0
    while time.monotonic() < ends:
        with open(path, "r+b", buffering=0) as file:
            match some.randrange(4):
                case 0:
                    file.truncate(some.choice([0, 1, 100, 4096, 1 << 30, 1 << 40]))
                case 1:
                    file.seek(some.randrange(10_000))
                    file.write(some.randbytes(some.randrange(5000)))
                case _:
                    file.truncate(0)
                    file.write(b"".join(some.choices(LINES, k=some.randrange(100))))
            taken += 1
        time.sleep(0.001)
    return taken


ATTACKS: dict[str, Callable[..., int]] = {
    "netlink": attack_by_netlink,
    "packets": attack_by_packets,
    "changes": attack_by_changes,
    "resolv_conf": attack_by_resolv_conf,
}

if __name__ == "__main__":
    kind, seed, seconds, *rest = sys.argv[1:]
    print(ATTACKS[kind](Some(seed), time.monotonic() + float(seconds), *rest))
