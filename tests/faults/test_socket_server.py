"""A tunnel's socket server is killed, stopped or lies, as root in the namespace could see to."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator

import pytest

from support import fds
from support.bus import Client
from support.daemon import Daemon
from support.namespaces import Namespace
from support.processes import open_fds, stopped, wait_for
from support.sockets import netns_of, open_socket, servers
from support.stage import Stage
from wg4netnsd import errors
from wg4netnsd.agent.sockets_client import SocketClient, SocketServerGone


@pytest.fixture(params=["namespace", "persistent"])
def path(
    request: pytest.FixtureRequest, daemon: Daemon, client: Client, inside: Namespace, stage: Stage
) -> str:
    created = client.create(inside, stage.conf(0), lifetime=request.param)
    open_socket(client, created).close()
    return created


def test_killed(client: Client, path: str) -> None:
    for _ in range(10):
        (server,) = servers()
        os.kill(server, signal.SIGKILL)
        open_socket(client, path).close()
        assert servers() != {server}


def test_killed_by_root_in_the_namespace(client: Client, path: str, inside: Namespace) -> None:
    (server,) = servers()
    inside.check("kill", "-KILL", str(server))
    open_socket(client, path).close()
    assert servers() != {server}


def test_stopped(client: Client, path: str, daemon: Daemon) -> None:
    """It is killed, once it has had its time, and the call gets its socket from another."""
    (server,) = servers()
    with stopped(server):
        open_socket(client, path).close()
        assert client.get(path, "State") == "up"
    wait_for(lambda: server not in servers(), "the stopped one has ended")
    assert "gave no answer in 2 s: starting another" in daemon.log


def test_a_stopped_one_ends_with_its_tunnel(client: Client, path: str) -> None:
    (server,) = servers()
    with stopped(server):
        client.close_tunnel(path)
        assert servers() == set()


def test_it_ends_with_a_killed_daemon(
    start_daemon: Callable[..., Daemon], inside: Namespace, stage: Stage
) -> None:
    daemon = start_daemon()
    path = daemon.client.create(inside, stage.conf(0), lifetime="persistent")
    opened = open_socket(daemon.client, path)
    daemon.kill()
    wait_for(lambda: servers() == set(), "the socket server has ended")
    opened.close()


def test_root_in_the_namespace_cannot_look_into_it(path: str, inside: Namespace) -> None:
    """Nor trace it: it is not dumpable, and its memory belongs to the host's user namespace."""
    (server,) = servers()
    for command in (
        ("ls", f"/proc/{server}/fd"),
        ("cat", f"/proc/{server}/maps"),
        ("readlink", "-v", f"/proc/{server}/root"),
    ):
        done = inside.run(*command)
        assert done.returncode != 0
        assert "Permission denied" in done.stderr


# ---------------------------------------------------------------- one that lies

FINE = struct.pack("i", 0)


def answered(home: tuple[int, int], data: bytes, *sent: int) -> tuple[int, int]:
    """Ask for a TCP socket over IPv4 a server that answers so; return the socket's namespace."""

    async def ask() -> tuple[int, int]:
        requests, asking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client = SocketClient(asking.detach(), os.pidfd_open(server.pid), home)
        try:
            asked = asyncio.create_task(client.open(socket.AF_INET, socket.SOCK_STREAM))
            await asyncio.sleep(0)  # it has sent its request now
            _answer(requests, data, sent)
            with await asked as opened:
                return netns_of(opened)
        except SocketServerGone:
            async with asyncio.timeout(10):
                await client.process.exited.wait()  # it was killed
            raise
        finally:
            client.close()
            requests.close()

    server = subprocess.Popen(["sleep", "infinity"])
    try:
        return asyncio.run(ask())
    finally:
        server.kill()
        server.wait(10)


def _answer(requests: socket.socket, data: bytes, sent: tuple[int, ...]) -> None:
    _, ((_, _, rights),), *_ = requests.recvmsg(100, 100)
    with socket.socket(fileno=struct.unpack("i", rights)[0]) as reply:
        packed = struct.pack(f"{len(sent)}i", *sent)
        reply.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)] if sent else [])


@pytest.fixture
def inside_sockets(client: Client, path: str, inside: Namespace) -> Iterator[dict[str, int]]:
    """Descriptors by what they are; all others but "right" are a lie."""
    kinds = {
        "right": (socket.AF_INET, socket.SOCK_STREAM),
        "another family": (socket.AF_INET6, socket.SOCK_STREAM),
        "another type": (socket.AF_INET, socket.SOCK_DGRAM),
    }
    with contextlib.ExitStack() as stack:
        sockets = {
            name: stack.enter_context(open_socket(client, path, *kind)).fileno()
            for name, kind in kinds.items()
        }
        own = stack.enter_context(socket.socket())
        pipe = stack.enter_context(fds.pipe())
        null = stack.enter_context(fds.opened("/dev/null"))
        tun = stack.enter_context(fds.opened("/dev/net/tun", os.O_RDWR))
        others = {"the host's": own.fileno(), "a pipe": pipe[0], "a file": null, "a TUN": tun}
        yield sockets | others


def test_lies(inside_sockets: dict[str, int], inside: Namespace) -> None:
    right = inside_sockets["right"]
    assert answered(inside.id, FINE, right) == inside.id
    before = open_fds(os.getpid())
    for name, fd in inside_sockets.items():
        if name != "right":
            with pytest.raises(SocketServerGone, match="something else"):
                answered(inside.id, FINE, fd)
    with pytest.raises(SocketServerGone, match="something else"):  # of another namespace
        answered((inside.id[0], 1), FINE, right)
    for data, sent in (
        (FINE, ()),
        (FINE, (right, right)),
        (b"", ()),
        (b"x", ()),
        (struct.pack("i", -5), ()),
        (bytes(64), ()),
    ):
        with pytest.raises(SocketServerGone, match="without an answer"):
            answered(inside.id, data, *sent)
    wait_for(lambda: open_fds(os.getpid()) == before, "nothing that came is left")


def test_what_it_says_of_an_error_is_shown_as_it_is(path: str, inside: Namespace) -> None:
    server = struct.pack("i", 99999) + b"\x1b[31mred\xff"
    with pytest.raises(errors.SocketFailed, match=r"\\x1b\[31mred.*: Unknown error 99999"):
        answered(inside.id, server)
