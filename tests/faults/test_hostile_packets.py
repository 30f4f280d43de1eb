"""Malformed packets: from a namespace, where CAP_NET_RAW is enough to send them, and from anybody
who knows an engine's UDP port. Each costs itself, and nothing else.

The Go tests in wireguard-go/src try more forms, and what newer kernels refuse to pass on.
"""

import base64
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from support import attacks
from support.bus import Client
from support.daemon import Daemon
from support.depth import depth
from support.engines import ask, connect, serve_uapi, waiting_engine
from support.namespaces import MakeNamespace, ping
from support.processes import status, wait_for
from support.stage import Stage, keys
from support.transfer import iperf3
from wg4netnsd.engine.engine import BINARY

WITH_NET_RAW = ["setpriv", "--bounding-set=-all,+net_raw", sys.executable, attacks.__file__]

SECONDS = depth(3, 10)


def test_packets_of_a_namespace_do_not_end_the_engine(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    inside = namespace()
    path = client.create(inside, stage.conf(0), wait="handshake")
    engine, log = client.get(path, "EnginePID"), daemon.log
    taken = inside.check(*WITH_NET_RAW, "packets", "1", "0")
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


EMPTY_PER_SECOND = 200


@contextlib.contextmanager
def empty_datagrams(address: str, port: int) -> Iterator[None]:
    """200 of them a second, from anybody."""
    ended = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anybody:
            while not ended.wait(1 / EMPTY_PER_SECOND):
                anybody.sendto(b"", (address, port))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_empty_datagrams_cause_no_retransmissions(
    daemon: Daemon,
    client: Client,
    namespace: MakeNamespace,
    stage: Stage,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The far end is upstream's engine, so one tunnel shows both: data to it, and data from it."""
    inside = namespace()
    path = client.create(inside, stage.conf(0), wait="handshake")
    host, _, port = stage.far.endpoint_v4.rpartition(":")
    targets = {
        "upstream's engine": ((host, int(port)), ()),
        "ours": (("127.0.0.1", client.get(path, "ListenPort")), ("--reverse",)),
    }
    counted = {}
    for name, (target, direction) in targets.items():
        options = (f"--time={SECONDS}", *direction)
        counted[name, "alone"] = retransmits(iperf3(inside, stage.far.ipv4, *options))
        with empty_datagrams(*target):
            counted[name, "flooded"] = retransmits(iperf3(inside, stage.far.ipv4, *options))
    with capsys.disabled():
        print(f"\nretransmissions in {SECONDS} s: {counted}")
    assert counted["upstream's engine", "flooded"] > 10 * SECONDS, "the flood is none"
    assert counted["ours", "flooded"] < counted["upstream's engine", "flooded"] / 10
    client.close_tunnel(path)


def retransmits(report: dict[str, Any]) -> int:
    return int(report["end"]["sum_sent"]["retransmits"])
