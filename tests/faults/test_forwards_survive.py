"""Forwards outlive the daemon, with their connections."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bus import Client
from support.forwards import (
    FORWARD,
    CheckedStream,
    add_forward,
    connect,
    counters,
    echo,
    gateways,
    listening,
    port_of,
    remove_forward,
    socks5,
)
from support.installed import crash, main_pid, wait_successor
from support.manager import UNIT, UserManager
from support.namespaces import MakeNamespace
from support.processes import wait_for
from support.sockets import servers
from support.stage import Stage

LOCAL, ANY = "127.0.0.1", ["127.0.0.1:0"]

KILLS = 20


@pytest.fixture
def client(unlimited: UserManager) -> Iterator[Client]:
    with Client(unlimited.address) as connected:
        yield connected


@pytest.fixture
def path(client: Client, namespace: MakeNamespace, stage: Stage) -> Iterator[str]:
    yield client.create(namespace(), stage.conf(0), name="kept", lifetime="persistent")
    for _, each, _ in client.tunnels():
        client.close_tunnel(each)
    assert gateways() == servers() == set()


def test_a_stream_through_the_proxy_over_the_daemon_s_deaths(
    unlimited: UserManager, client: Client, path: str, stage: Stage
) -> None:
    forward = add_forward(client, path, kind="proxy", listen=ANY)
    proxy = (LOCAL, port_of(client, forward))
    before = gateways()
    with socks5(proxy, stage.far.ipv4, stage.far.echo_port) as connection:
        stream = CheckedStream(connection)
        for number in range(KILLS):
            stream.wait_for_progress()
            crash(unlimited)
            assert gateways() == before
            if number % 5 == 0:  # new connections, too
                with socks5(proxy, stage.far.ipv4, stage.far.echo_port) as another:
                    echo(another)
        size = stream.finish()
    seen = counters(client, forward)
    assert seen["bytes_in"] >= size > 0
    assert seen["total"] == 1 + KILLS // 5
    assert listening(client, forward) == [f"{LOCAL}:{proxy[1]}"]


def test_all_of_it_over_a_restart(
    unlimited: UserManager, client: Client, path: str, stage: Stage, tmp_path: Path
) -> None:
    """Properties stay, removed ones stay away, and new ones get new ids."""
    target = f"{stage.far.ipv4}:{stage.far.echo_port}"
    place = f"{tmp_path}/socket"
    removed = add_forward(client, path, kind="proxy", listen=ANY)
    kept = [
        add_forward(client, path, kind="local", listen=[f"unix:{place}"], target=target),
        add_forward(client, path, kind="remote", listen=["7007"], target="127.0.0.1:9"),
        add_forward(client, path, kind="local", listen=ANY, protocol="udp", target=target),
    ]
    remove_forward(client, removed)
    before = [client.get_all(forward, FORWARD) for forward in kept]
    pid = main_pid(unlimited)
    unlimited.systemctl("restart", UNIT)
    wait_successor(unlimited, pid)
    assert [client.get_all(forward, FORWARD) for forward in kept] == before
    with connect(place) as one:
        echo(one)
    new = add_forward(client, path, kind="proxy", listen=ANY)
    assert new not in (removed, *kept)
    for forward in (*kept, new):
        remove_forward(client, forward)
    assert not os.path.exists(place)
    assert gateways() == set()


def test_a_gateway_that_ends_while_there_is_no_daemon(
    unlimited: UserManager, client: Client, path: str, stage: Stage
) -> None:
    """Clients wait; the next daemon starts another."""
    target = f"{stage.far.ipv4}:{stage.far.echo_port}"
    forward = add_forward(client, path, kind="local", listen=ANY, target=target)
    address = (LOCAL, port_of(client, forward))
    before = gateways()
    daemon = main_pid(unlimited)
    for pid in (daemon, *before):
        os.kill(pid, signal.SIGKILL)
    with socket.create_connection(address, 30) as waiting:
        wait_successor(unlimited, daemon)
        echo(waiting)
    wait_for(lambda: gateways() not in (set(), before), "there is another gateway")


def test_they_end_with_the_unit(
    unlimited: UserManager, client: Client, path: str, tmp_path: Path
) -> None:
    place = tmp_path / "socket"
    add_forward(client, path, kind="proxy", listen=[*ANY, f"unix:{place}"])
    unlimited.systemctl("stop", UNIT)
    assert gateways() == servers() == set()
    assert not place.exists()
