"""OpenSocket: a program that is not in the namespace talks through the tunnel."""

import contextlib
import os
import socket
import struct

import pytest

from support.bus import TUNNEL, Bus, Client, DBusError
from support.daemon import Daemon
from support.namespaces import Namespace, ping
from support.processes import wait_for
from support.sockets import netns_of, open_socket, servers
from support.stage import Stage

FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
END_TIME = 2.0
"""Seconds from the namespace's end to the tunnel's."""


@pytest.fixture(params=["namespace", "persistent"])
def path(
    request: pytest.FixtureRequest, daemon: Daemon, client: Client, inside: Namespace, stage: Stage
) -> str:
    return client.create(inside, stage.conf(0), lifetime=request.param)


def echo(opened: socket.socket, far: tuple[str, int]) -> None:
    with opened:
        opened.connect(far)
        opened.sendall(b"through the tunnel")
        assert opened.recv(100) == b"through the tunnel"


@pytest.mark.parametrize("family", FAMILIES)
def test_tcp_reaches_the_far_end(client: Client, path: str, stage: Stage, family: str) -> None:
    far = (getattr(stage.far, family), stage.far.echo_port)
    echo(open_socket(client, path, FAMILIES[family]), far)
    echo(open_socket(client, path, FAMILIES[family], socket.SOCK_STREAM, socket.IPPROTO_TCP), far)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_datagram_socket_is_inside(
    client: Client, path: str, inside: Namespace, family: str
) -> None:
    address = "127.0.0.1" if family == "ipv4" else "::1"
    with (
        open_socket(client, path, FAMILIES[family], socket.SOCK_DGRAM) as one,
        open_socket(client, path, FAMILIES[family], socket.SOCK_DGRAM, socket.IPPROTO_UDP) as two,
    ):
        assert netns_of(one) == netns_of(two) == inside.id
        one.bind((address, 0))
        two.sendto(b"hello", one.getsockname()[:2])
        assert one.recv(100) == b"hello"


def test_icmp(client: Client, path: str, stage: Stage, inside: Namespace) -> None:
    """As the owner of the namespace allows it, which at first is not at all."""
    kind = (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    with pytest.raises(DBusError, match=r"Permission denied.*ping_group_range") as refused:
        open_socket(client, path, *kind)
    assert refused.value.short_name == "SocketFailed"
    inside.check("sh", "-c", "echo 0 0 >/proc/sys/net/ipv4/ping_group_range")
    with open_socket(client, path, *kind) as opened:
        opened.connect((stage.far.ipv4, 0))
        opened.send(struct.pack("!BBHHH", 8, 0, 0, 0, 1) + b"echo")
        assert opened.recv(100)[0] == 0  # an echo reply
    other = (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6)
    with open_socket(client, path, *other) as opened:
        opened.connect((stage.far.ipv6, 0))
        opened.send(struct.pack("!BBHHH", 128, 0, 0, 0, 1) + b"echo")
        assert opened.recv(100)[0] == 129


def test_a_server_in_the_tunnel(client: Client, path: str, inside: Namespace) -> None:
    with open_socket(client, path) as listening:
        listening.bind(("0.0.0.0", 0))
        listening.listen()
        port = listening.getsockname()[1]
        done = inside.popen("bash", "-c", f"echo hi >/dev/tcp/127.0.0.1/{port}")
        connection, _ = listening.accept()
        with connection:
            assert connection.recv(10) == b"hi\n"
        assert done.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((socket.AF_UNIX, 1, 0), "family: 1: expected AF_INET (2) or AF_INET6 (10)"),
        ((socket.AF_PACKET, 3, 0), "family: 17: expected AF_INET (2) or AF_INET6 (10)"),
        ((socket.AF_INET, 3, 1), "type: 3: expected SOCK_STREAM (1) or SOCK_DGRAM (2)"),
        ((socket.AF_INET, 1 | socket.SOCK_NONBLOCK, 0), "type: 2049: expected"),
        ((socket.AF_INET, 1, 17), "protocol: 17: expected 0 or 6"),
        ((socket.AF_INET, 2, 58), "protocol: 58: expected 0 or 1 or 17"),
        ((socket.AF_INET6, 2, 1), "protocol: 1: expected 0 or 17 or 58"),
        ((-1, -1, -1), "family: -1"),
    ],
)
def test_other_sockets_are_refused(
    client: Client, path: str, arguments: tuple[int, int, int], expected: str
) -> None:
    with pytest.raises(DBusError) as refused:
        open_socket(client, path, *arguments)
    assert refused.value.short_name == "InvalidArgs"
    assert expected in refused.value.message
    assert servers() == set()


def test_it_follows_the_interface(client: Client, path: str, inside: Namespace) -> None:
    client.subscribe(member="PropertiesChanged", path=path)
    with inside.sibling() as other, open_socket(client, path) as before:
        assert netns_of(before) == inside.id
        inside.check("ip", "link", "set", "wg0", "netns", str(other))
        there = os.stat(f"/proc/{other}/ns/net")
        with open_socket(client, path) as after:
            assert netns_of(after) == (there.st_dev, there.st_ino)


def test_one_server_for_all_that_ask(client: Client, bus: Bus, path: str, daemon: Daemon) -> None:
    """Also for those who ask before it is there; `daemon` sees that no descriptor is left."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(bus.address)) for _ in range(5)]
        for each in clients * 8:
            each.send(each.message(path, TUNNEL, "OpenSocket", "iii", (2, 1, 0)))
        for each in clients:
            open_socket(each, path).close()
        assert len(servers()) == 1
    client.close_tunnel(path)
    assert servers() == set()


# ---------------------------------------------------------------- the namespace's life


@pytest.fixture
def short(daemon: Daemon, client: Client, inside: Namespace, stage: Stage) -> str:
    """A tunnel that lives as long as its namespace, and that has a socket server."""
    path = client.create(inside, stage.conf(0))
    ping(inside, stage.far.ipv4)
    open_socket(client, path).close()
    assert len(servers()) == 1
    return path


def test_the_server_does_not_keep_the_namespace(
    client: Client, short: str, inside: Namespace
) -> None:
    inside.empty()
    wait_for(lambda: client.tunnels() == [], "the tunnel has ended", END_TIME)
    assert servers() == set()


def test_an_open_socket_keeps_it(
    client: Client, short: str, inside: Namespace, stage: Stage
) -> None:
    opened = open_socket(client, short)
    inside.empty()
    echo(opened, (stage.far.ipv4, stage.far.echo_port))
    wait_for(lambda: client.tunnels() == [], "the tunnel has ended", END_TIME)
