"""Inspect every packet on every interface of this network namespace: capture.py MARKER REPORT

tests/stage/control.py runs it as root. It prints "ready" once it captures. At SIGTERM it writes
REPORT: how many packets it saw and missed, WireGuard's handshake messages, and what must not be
there: a tunnel's inner addresses in a packet's own header, or MARKER anywhere in a packet.
"""

import contextlib
import ipaddress
import json
import signal
import socket
import struct
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

INNER = {4: bytes([198, 51, 100]), 16: bytes.fromhex("20010db800010000")}
"""The prefixes of 198.51.100.0/24 and 2001:db8:1::/64, by the length of an address."""
FAR_PORT = 51820
ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
SOL_PACKET, PACKET_STATISTICS, SO_RCVBUFFORCE = 263, 6, 33
BUFFER = 64 << 20  # bytes that the kernel queues for us
MOST_FINDINGS = 1000  # later ones are only counted
INITIATION, RESPONSE, TRANSPORT = 1, 2, 4  # WireGuard's message types


class Seen:
    """What the capture has seen so far."""

    def __init__(self) -> None:
        self.packets = Counter[str]()  # by interface
        self.encrypted = Counter[str]()  # WireGuard's transport data, in bytes of UDP
        self.handshakes: list[tuple[int, int, int, bool]] = []  # see support.capture.Handshake
        self.findings: list[dict[str, Any]] = []
        self.found = 0
        self.missed = 0

    def take(self, interface: str, protocol: int, packet: bytes, marker: bytes) -> None:
        self.packets[interface] += 1
        source, destination, upper, message = parsed(protocol, packet)
        ports = (0, 0)
        if upper == socket.IPPROTO_UDP and len(message) > 8:
            ports = struct.unpack_from("!HH", message)
            if FAR_PORT in ports:
                self.take_wireguard(interface, ports, message[8:])
        inner = INNER.get(len(source), b"none")
        if source.startswith(inner) or destination.startswith(inner):
            self.find("inner address", interface, source, destination, ports)
        if marker in packet:
            self.find("marker", interface, source, destination, ports)

    def take_wireguard(self, interface: str, ports: tuple[int, ...], message: bytes) -> None:
        if message[0] in (INITIATION, RESPONSE):
            from_client = ports[1] == FAR_PORT
            client = ports[0] if from_client else ports[1]
            self.handshakes.append((time.monotonic_ns(), message[0], client, from_client))
        elif message[0] == TRANSPORT:
            self.encrypted[interface] += len(message)

    def find(
        self, why: str, interface: str, source: bytes, destination: bytes, ports: tuple[int, ...]
    ) -> None:
        self.found += 1
        if len(self.findings) < MOST_FINDINGS:
            addresses = {"source": shown(source), "destination": shown(destination)}
            self.findings.append({"why": why, "interface": interface, **addresses, "ports": ports})


def parsed(protocol: int, packet: bytes) -> tuple[bytes, bytes, int, bytes]:
    """Parse an IP packet: source, destination, upper protocol, payload. Empty if it is not IP."""
    if protocol == ETH_P_IP and len(packet) >= 20:
        return packet[12:16], packet[16:20], packet[9], packet[(packet[0] & 15) * 4 :]
    if protocol == ETH_P_IPV6 and len(packet) >= 40:
        return packet[8:24], packet[24:40], packet[6], packet[40:]
    return b"", b"", -1, b""


def shown(address: bytes) -> str:
    return str(ipaddress.ip_address(address)) if address else ""


def main() -> None:
    marker, report = bytes.fromhex(sys.argv[1]), Path(sys.argv[2])
    seen = Seen()
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as packets:
        with contextlib.suppress(PermissionError):  # for a user namespace's root, who sees little
            packets.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        signal.signal(signal.SIGTERM, lambda *_: packets.setblocking(False))
        print("ready", flush=True)
        content = memoryview(bytearray(1 << 17))
        with contextlib.suppress(BlockingIOError):  # SIGTERM came, and the queue is empty
            while True:
                size, (interface, protocol, *_) = packets.recvfrom_into(content)
                seen.take(interface, protocol, bytes(content[:size]), marker)
        _, seen.missed = struct.unpack("II", packets.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    report.write_text(json.dumps(vars(seen)))


if __name__ == "__main__":
    main()
