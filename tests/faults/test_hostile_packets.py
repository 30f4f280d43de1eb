"""Malformed packets: from a namespace, where CAP_NET_RAW is enough to send them, and from anybody
who knows an engine's UDP port. Each costs itself, and nothing else.

The Go tests in wireguard-go/src try more forms, and what newer kernels refuse to pass on.
"""

import base64
import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from support.bus import Client
from support.daemon import Daemon
from support.engines import ask, connect, serve_uapi, waiting_engine
from support.namespaces import MakeNamespace, ping
from support.processes import status, wait_for
from support.stage import Stage, keys
from wg4netnsd.engine.engine import BINARY

WITH_NET_RAW = ["setpriv", "--bounding-set=-all,+net_raw", "python3", "-c"]

# Sends frames with a virtio header, as packet(7) has them with PACKET_VNET_HDR. Prints how many the
# kernel took.
SEND_FRAMES = """
import random, socket, struct
SOL_PACKET, PACKET_VNET_HDR = 263, 15
V4, V6, ANY = 0x0800, 0x86dd, 0x0003
NEEDS_CSUM, TCPV4, UDP, TCPV6, UDP_L4, ECN = 1, 1, 3, 4, 5, 0x80
random = random.Random(1)
taken = 0

def send(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, packet):
    global taken
    header = struct.pack("=BBHHHH", flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)
    try:
        sender.send(header + packet)
        taken += 1
    except OSError:
        pass

def ip(version, protocol, payload):
    if version == 4:
        return struct.pack(">BxHHxxBBxx4s4s", 0x45, 20 + len(payload), 1, 64, protocol,
            socket.inet_aton("198.51.100.11"), socket.inet_aton("198.51.100.1")) + payload
    return struct.pack(">BxxxHBB16s16s", 0x60, len(payload), protocol, 64,
        bytes(16), bytes(16)) + payload

TCP = struct.pack(">HHIIBBHHH", 7, 7, 1, 1, 0x50, 0x10, 900, 0, 0) + bytes(3000)
UDP_DATA = struct.pack(">HHHH", 7, 7, 3008, 0) + bytes(3000)
for protocol in V4, V6, ANY:
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sender.bind(("wg0", protocol))
    for first in 0x00, 0x15, 0x45, 0x65, 0xf5:
        for version, gso_type, start, offset in (
            (4, TCPV4, 20, 16), (6, TCPV6, 40, 16), (4, UDP_L4, 20, 6), (6, UDP_L4, 40, 6),
            (4, TCPV4 | ECN, 20, 16), (4, UDP, 20, 6), (4, TCPV6, 20, 16), (6, TCPV4, 40, 16),
        ):
            udp = gso_type & 0x7f in (UDP, UDP_L4)
            packet = ip(version, 17 if udp else 6, UDP_DATA if udp else TCP)
            packet = bytes([first]) + packet[1:]
            hdr_len = start + (8 if udp else 20)
            send(NEEDS_CSUM, gso_type, hdr_len, 1000, start, offset, packet)
            for size in 1, 9, 21, 41:
                send(0, 0, 0, 0, 0, 0, packet[:size])
            for _ in range(10):
                fields = random.choices((start, offset, hdr_len, 1000, 0, 1, 7, 2999, 65535), k=4)
                cut = packet[: random.randrange(3000)]
                send(random.randrange(2), gso_type, *fields, cut)
print(taken)
"""


def test_packets_of_a_namespace_do_not_end_the_engine(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    inside = namespace()
    path = client.create(inside, stage.conf(0), wait="handshake")
    engine, log = client.get(path, "EnginePID"), daemon.log
    taken = inside.check(*WITH_NET_RAW, SEND_FRAMES)
    assert int(taken) > 100
    for address in (stage.far.ipv4, stage.far.ipv6):
        ping(inside, address)
    assert client.get(path, "EnginePID") == engine
    assert daemon.log == log, "nothing is logged for what anybody can repeat"
    client.close_tunnel(path)


SEND_TOO_LARGE = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for _ in range(1000):
        sender.sendto(bytes(65480), (sys.argv[1], 7))
"""


def test_errors_that_packets_cause_are_logged_rarely(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    """The interface's owner may let it take packets that fit into no datagram."""
    inside = namespace()
    path = client.create(inside, stage.conf(0), wait="handshake")
    before = len(daemon.log.splitlines())
    inside.ip("link", "set", "wg0", "mtu", "65535")
    inside.check("python3", "-c", SEND_TOO_LARGE, stage.far.ipv4)
    wait_for(lambda: "message too long" in daemon.log, "it says why nothing is sent")
    ping(inside, stage.far.ipv4)
    assert len(daemon.log.splitlines()) - before < 30
    client.close_tunnel(path)


class Engine:
    """An engine without a daemon and a TUN, which has one peer."""

    def __init__(self, directory: Path, private: str, peer: str) -> None:
        self.process, self.handover, self.events = waiting_engine(BINARY)
        uapi = directory / "uapi"
        directory.mkdir()
        serve_uapi(self.handover, uapi)
        self.client = connect(uapi)
        self.peer = peer
        self.set(f"private_key={private}\npublic_key={peer}")

    def set(self, settings: str) -> None:
        assert ask(self.client, f"set=1\n{settings}\n\n") == "errno=0\n\n"

    def get(self, key: str) -> str:
        lines = dict(line.split("=") for line in ask(self.client, "get=1\n\n").split() if line)
        return lines[key]


@contextlib.contextmanager
def running(directory: Path, private: str, peer: str) -> Iterator[Engine]:
    engine = Engine(directory, private, peer)
    with engine.process, engine.handover, engine.events, engine.client:
        yield engine
        engine.process.kill()


def event(events: IO[bytes]) -> str:
    return events.readline().split()[0].decode()


def test_an_empty_datagram_costs_nothing(tmp_path: Path) -> None:
    """The kernel gives the engine both at once: an empty datagram and an initiation."""
    ours, theirs = (
        [base64.b64decode(key).hex() for key in (pair.private, pair.public)]
        for pair in (keys(), keys())
    )
    with (
        running(tmp_path / "one", ours[0], theirs[1]) as one,
        running(tmp_path / "two", theirs[0], ours[1]) as two,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anybody,
    ):
        port = int(one.get("listen_port"))
        one.process.send_signal(signal.SIGSTOP)
        itself = Path(f"/proc/{one.process.pid}")
        wait_for(lambda: status(itself)["State"].startswith("T"), "it stops")
        anybody.sendto(b"", ("127.0.0.1", port))
        keepalive = "persistent_keepalive_interval=25"
        two.set(f"public_key={two.peer}\nendpoint=127.0.0.1:{port}\n{keepalive}")
        wait_for(lambda: two.get("tx_bytes") != "0", "the initiation is sent")
        one.process.send_signal(signal.SIGCONT)
        assert [event(two.events) for _ in range(3)] == ["timers", "initiated", "completed"]
