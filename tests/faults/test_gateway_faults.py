"""A tunnel's gateway is killed or hangs."""

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from support.bus import Client
from support.daemon import Daemon
from support.forwards import add_forward, connect, echo, gateways, listening, port_of
from support.namespaces import Namespace
from support.processes import stopped, switches, wait_for
from support.stage import Stage

LOCAL, ANY = "127.0.0.1", ["127.0.0.1:0"]

CHECK_TIME = 5.0  # seconds

WAIT = 1.0
"""Seconds that a new connection waits at most while a gateway is replaced."""


@pytest.fixture
def path(daemon: Daemon, client: Client, inside: Namespace, stage: Stage) -> Iterator[str]:
    yield client.create(inside, stage.conf(0), lifetime="persistent")
    daemon.close_tunnels()
    assert gateways() == set()


@pytest.fixture
def address(client: Client, path: str, stage: Stage) -> tuple[str, int]:
    target = f"{stage.far.ipv4}:{stage.far.echo_port}"
    forward = add_forward(client, path, kind="local", listen=ANY, target=target)
    return LOCAL, port_of(client, forward)


def test_killed_while_clients_connect(
    client: Client, path: str, address: tuple[str, int], daemon: Daemon
) -> None:
    """Its streams end with a reset; new ones wait, and none is refused."""
    longest = 0.0
    for _ in range(5):
        (gateway,) = gateways()
        with connect(address) as stream:
            echo(stream)
            os.kill(gateway, signal.SIGKILL)
            started = time.monotonic()
            with connect(address) as new:  # never refused
                echo(new)
            longest = max(longest, time.monotonic() - started)
            with pytest.raises(ConnectionResetError):
                stream.recv(1)
    print(f"longest wait: {longest * 1e3:.0f} ms")
    assert "the gateway ended by signal SIGKILL: starting another" in daemon.log
    assert longest < WAIT


def test_remote_and_unix_listeners_stay(
    client: Client, path: str, stage: Stage, inside: Namespace
) -> None:
    published = add_forward(client, path, kind="remote", listen=["7007"], target="127.0.0.1:9")
    before = listening(client, published)
    (gateway,) = gateways()
    os.kill(gateway, signal.SIGKILL)
    wait_for(lambda: gateways() not in (set(), {gateway}), "there is another gateway")
    assert listening(client, published) == before
    for _ in range(3):  # it listens, whatever becomes of the connection
        done = inside.run("bash", "-c", f"exec 3<>/dev/tcp/{stage.clients[0].ipv4}/7007")
        assert done.returncode == 0, done.stderr


def test_one_that_hangs_is_replaced(
    client: Client, path: str, address: tuple[str, int], daemon: Daemon
) -> None:
    (gateway,) = gateways()
    with stopped(gateway):
        other = add_forward(client, path, kind="proxy", listen=ANY)
        with connect(address) as stream:
            echo(stream)
        with socket.create_connection((LOCAL, port_of(client, other))):
            pass
    assert "gave no answer in 10 s" in daemon.log or gateway not in gateways()


def test_a_tunnel_with_a_hanging_gateway_is_closed_at_once(
    client: Client, path: str, address: tuple[str, int]
) -> None:
    (gateway,) = gateways()
    with stopped(gateway):
        started = time.monotonic()
        client.close_tunnel(path)
        assert time.monotonic() - started < WAIT * 4
    assert gateways() == set()


def test_one_that_rests_is_left_alone(client: Client, path: str, address: tuple[str, int]) -> None:
    """The daemon's checks, every 5 s, do not wake a gateway that has done nothing since."""
    (gateway,) = gateways()

    def rests() -> bool:
        before = switches(gateway)
        time.sleep(CHECK_TIME + 1)  # what must not happen has no event
        return switches(gateway) == before

    wait_for(rests, "it is left alone", timeout=6 * CHECK_TIME)
