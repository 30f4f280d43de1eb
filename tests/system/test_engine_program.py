"""The engine, run as the daemon runs it: on a TUN of another namespace."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from support.engines import ask, connect, serve_uapi, waiting_engine
from support.stage import Stage
from wg4netnsd.engine.engine import BINARY
from wg4netnsd.kernel import udp

# Makes wg0, sends its descriptor out, deletes wg0 when told to, and says so.
INSIDE = """
import fcntl, os, socket, struct

TUNSETIFF, IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x1, 0x1000, 0x4000
RTM_DELLINK, NLM_F_REQUEST, NLM_F_ACK = 17, 1, 4

tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"wg0", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
outside = socket.socket(fileno=0)
socket.send_fds(outside, [b"made"], [tun])
os.close(tun)
outside.recv(1)
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
link = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex("wg0"), 0, 0)
netlink.send(struct.pack("=IHHII", 32, RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, 0, 0) + link)
netlink.recv(4096)
outside.send(b"deleted")
"""

PRIVATE_KEY = "a8" * 31 + "68"  # clamped, as "get" gives it back
PEER_KEY = "09" + "00" * 31  # a valid point of X25519


@dataclass
class Engine:
    process: subprocess.Popen[bytes]
    inside: socket.socket
    """To the TUN's maker, in its namespace."""
    path: Path
    """The UAPI socket's."""
    handover: socket.socket
    events: IO[bytes]

    def connect(self) -> socket.socket:
        return connect(self.path)


@pytest.fixture
def tun() -> Iterator[tuple[int, socket.socket]]:
    """The descriptor of wg0 in a namespace of our own, and the socket to its maker."""
    inside, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    inside.settimeout(10)
    command = ["unshare", "-Urn", sys.executable, "-I", "-c", INSIDE]
    with subprocess.Popen(command, stdin=theirs.fileno(), stderr=subprocess.PIPE) as maker:
        theirs.close()
        _, fds, _, _ = socket.recv_fds(inside, 16, 1)
        assert fds, maker.stderr and maker.stderr.read().decode()
        yield fds[0], inside
        os.close(fds[0])
        inside.close()
        maker.kill()


@pytest.fixture
def engine(tun: tuple[int, socket.socket], tmp_path: Path) -> Iterator[Engine]:
    fd, inside = tun
    path = tmp_path / "uapi"
    process, handover, events = waiting_engine(BINARY)
    serve_uapi(handover, path)
    socket.send_fds(handover, [b"\0"], [fd])
    with process, handover, events:
        handover.settimeout(10)
        assert handover.recv(1) == b"\0", "the TUN is not in use"
        yield Engine(process, inside, path, handover, events)
        process.kill()


def output_at_end(engine: Engine) -> str:
    return engine.process.communicate(timeout=10)[0].decode()


def test_engine_serves_uapi_at_any_path(engine: Engine) -> None:
    with engine.connect() as client:
        engine.path.unlink()
        assert ask(client, f"set=1\nprivate_key={PRIVATE_KEY}\nmtu=1280\n\n") == "errno=0\n\n"
        answer = ask(client, "get=1\n\n")
    assert f"private_key={PRIVATE_KEY}\n" in answer
    assert re.search(r"^listen_port=[1-9]", answer, re.MULTILINE), "not up from the start"
    assert "mtu" not in answer
    engine.process.terminate()
    assert output_at_end(engine) == ""


def test_only_the_supervisor_changes_the_port(engine: Engine) -> None:
    with engine.connect() as client:
        before = ask(client, "get=1\n\n")
        port = re.search(r"^listen_port=(\d+)$", before, re.MULTILINE)
        assert port
        assert ask(client, f"set=1\nlisten_port={port[1]}\n\n") == "errno=0\n\n"
        assert ask(client, "set=1\nlisten_port=1\n\n") == f"errno=-{errno.EINVAL}\n\n"
    with engine.connect() as client:
        assert ask(client, "get=1\n\n") == before
    other = udp.open_sockets(0)
    number = other[0].getsockname()[1]
    socket.send_fds(engine.handover, [b"\0"], [each.fileno() for each in other])
    assert engine.handover.recv(1) == b"\0"
    with engine.connect() as client:
        assert f"listen_port={number}\n" in ask(client, "get=1\n\n")
    for each in other:
        each.close()


def test_engine_tells_the_protocols_times_first(engine: Engine) -> None:
    assert engine.events.readline() == b"timers 180000 90000\n"


def test_engine_needs_a_pipe_for_its_events() -> None:
    done = subprocess.run([BINARY], env={"WG_HANDOVER_FD": "0"}, capture_output=True, timeout=10)
    assert done.returncode == 1
    assert b"Failed to find the event pipe" in done.stdout + done.stderr


def test_short_timers_are_for_tests_alone(stage: Stage) -> None:
    process, handover, events = waiting_engine(Path(stage.short_engine))
    with process, handover, events:
        assert events.readline() == b"timers 9000 4500\n"
        process.kill()


def test_waiting_engine_ends_with_its_supervisor() -> None:
    process, handover, events = waiting_engine(BINARY)
    with process, events:
        handover.close()
        assert process.wait(10) == 0


def test_engine_refuses_other_descriptors() -> None:
    process, handover, events = waiting_engine(BINARY)
    with process, handover, events:
        socket.send_fds(handover, [b"\0"], [handover.fileno()] * 3)
        output = process.communicate(timeout=10)[0]
    assert process.returncode == 1
    assert b"expected up to 2 descriptors, got 3" in output


def test_engine_is_configured_before_its_tun_comes(tmp_path: Path) -> None:
    process, handover, events = waiting_engine(BINARY)
    with process, handover, events:
        serve_uapi(handover, tmp_path / "uapi")
        with connect(tmp_path / "uapi") as client:
            assert ask(client, f"set=1\nprivate_key={PRIVATE_KEY}\n\n") == "errno=0\n\n"
        process.kill()


def test_engine_ends_with_its_supervisor(engine: Engine) -> None:
    engine.handover.close()
    assert engine.process.wait(10) == 0


def test_engine_stays_while_anybody_holds_its_handover_socket(engine: Engine) -> None:
    """As systemd does while the daemon is away."""
    with engine.handover.dup():
        engine.handover.close()
        with engine.connect() as client:
            assert ask(client, "get=1\n\n").endswith("errno=0\n\n")
    assert engine.process.wait(10) == 0


def test_engine_leaves_the_socket_alone(engine: Engine) -> None:
    with engine.connect() as client:
        ask(client, "get=1\n\n")
    engine.process.terminate()
    assert output_at_end(engine) == ""
    assert engine.path.is_socket()


@pytest.mark.parametrize("mtu", ["575", "65536", "", "-1", "x"])
def test_engine_refuses_mtu(mtu: str, engine: Engine) -> None:
    with engine.connect() as client:
        assert ask(client, f"set=1\nmtu={mtu}\n\n") == "errno=-22\n\n"


def test_set_starts_peers_at_once(engine: Engine) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer, engine.connect() as client:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(3)  # well before a retry of the handshake, at 5 s
        port = peer.getsockname()[1]
        request = (
            f"set=1\nprivate_key={PRIVATE_KEY}\nmtu=1420\npublic_key={PEER_KEY}\n"
            f"endpoint=127.0.0.1:{port}\npersistent_keepalive_interval=25\n\n"
        )
        assert ask(client, request) == "errno=0\n\n"
        initiation = peer.recv(2048)
    assert (initiation[0], len(initiation)) == (1, 148)


def test_log_has_no_key(engine: Engine) -> None:
    with engine.connect() as client:
        # 43 of a key's 44 characters before the "=": taken for the name of a setting
        assert ask(client, f"set=1\n{'S' * 43}=\n\n") == "errno=-22\n\n"
    with engine.connect() as client:
        client.sendall(b"S" * 43 + b"\n")
        assert client.recv(1) == b""
    engine.process.terminate()
    output = output_at_end(engine)
    assert "set failed at line 1" in output
    assert "SSS" not in output


def test_engine_ends_with_its_tun(engine: Engine) -> None:
    with engine.connect() as client:
        ask(client, "get=1\n\n")
    engine.inside.send(b"!")
    assert engine.inside.recv(16) == b"deleted"
    engine.process.wait(10)
