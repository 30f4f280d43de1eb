"""What the survival benchmark sees with: a stream that checks itself, and a look at each packet."""

import socket
from pathlib import Path

import pytest

from support.blocks import BLOCK, MARKER
from support.bus import Client
from support.capture import INITIATION, RESPONSE, Capture
from support.daemon import Daemon
from support.namespaces import MakeNamespace
from support.stage import Control, Stage
from support.stream import Stream, Times, gaps
from support.tunnels import tunnel


def test_a_capture_finds_what_is_in_clear(control: Control) -> None:
    with Capture(control, MARKER) as capture:
        capture.try_out()
        capture.try_out()
        seen = capture.finish()
    assert not seen.leaks
    assert seen.tried("marker") >= 2
    assert seen.tried("inner address") >= 2
    assert seen.found == len(seen.findings)
    assert seen.missed == 0


@pytest.mark.parametrize("address", ["192.0.2.2", "2001:db8::2", "127.0.0.1", "::1"])
def test_a_capture_looks_at_each_interface(control: Control, address: str) -> None:
    with Capture(control, MARKER) as capture:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x" * 1000 + MARKER, (address, 4242))
        seen = capture.finish()
    # Others may be ICMP's, that nobody is there: it quotes the packet.
    assert ("marker", address, 4242) in {
        (leak.why, leak.destination, leak.ports[1]) for leak in seen.leaks
    }


def test_a_capture_looks_from_its_start_to_its_end(control: Control) -> None:
    with Capture(control, MARKER) as capture:
        seen = capture.finish()
    capture.try_out()
    assert not seen.findings
    with Capture(control, MARKER) as capture:
        assert not capture.finish().findings


def test_a_stream_through_a_tunnel(
    daemon: Daemon,
    client: Client,
    namespace: MakeNamespace,
    control: Control,
    stage: Stage,
    tmp_path: Path,
) -> None:
    inside = namespace()
    with (
        Capture(control, MARKER) as capture,
        tunnel(client, inside, stage.conf(0)) as path,
        Stream(inside, stage.far.ipv4, stage.far.echo_port, tmp_path / "journal") as stream,
    ):
        for _ in range(3):
            stream.wait_for_progress()
        port = client.get(path, "ListenPort")
        size = stream.finish()
        seen = capture.finish()
    assert size > 0
    assert size % BLOCK == 0
    assert sum(seen.encrypted.values()) > 2 * size
    assert seen.missed == 0
    assert not seen.findings
    assert [each.type for each in seen.handshakes if each.client_port == port] == [
        INITIATION,
        RESPONSE,
    ]
    times = stream.times()
    assert len(times.answers) > 0
    assert max(gaps(times.arrivals, 0, 1e12)) < 1


def test_a_stream_that_is_changed_on_its_way(namespace: MakeNamespace, tmp_path: Path) -> None:
    """By an echo server of a namespace's own, which repeats a byte."""
    inside = namespace()
    inside.check("ip", "link", "set", "lo", "up")
    program = (
        "import socket\n"
        "with socket.create_server(('127.0.0.1', 7)) as server:\n"
        "    print('listens', flush=True)\n"
        "    stream, _ = server.accept()\n"
        "    data = stream.recv(4096)\n"
        "    stream.sendall(data[:1] + data)\n"
        "    while stream.recv(65536): pass\n"
    )
    server = inside.popen("python3", "-c", program, stdout=-1)
    assert server.stdout
    assert server.stdout.readline() == "listens\n"
    with Stream(inside, "127.0.0.1", 7, tmp_path / "journal") as stream:
        assert stream.process.wait(30) == 1
    server.wait(10)
    server.stdout.close()


def test_gaps_and_losses() -> None:
    ticks = [(0, int(1e9 * second), 1) for second in (1, 2, 5, 6)]
    pings = [(1, int(1e9 * second), second) for second in (1, 2, 3)]
    times = Times(iter([*ticks, *pings, (2, int(4e9), 1), (2, int(5e9), 3)]))
    assert gaps(times.arrivals, 0, 10) == [1, 3, 1]
    assert gaps(times.arrivals, 2.5, 4.5) == [3]
    assert gaps(times.arrivals, 2.5, 5.5) == [3, 1]
    assert (times.pings(0, 10), times.lost(0, 10), times.lost(0, 2)) == (3, 1, 0)
