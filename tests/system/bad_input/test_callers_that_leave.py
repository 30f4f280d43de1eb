"""Callers that leave before their reply."""

import os
import socket
import time

import pytest

from support.bus import CREATE, MANAGER, ROOT, Bus, Client
from support.configs import Secrets
from support.daemon import Daemon
from support.fds import opened, pipe
from support.namespaces import Namespace
from support.processes import wait_for
from support.refusals import inside_and_config


def test_a_caller_that_leaves_while_its_configuration_is_read(
    daemon: Daemon, client: Client, bus: Bus, inside: Namespace, secrets: Secrets
) -> None:
    with opened(inside.path) as netns, pipe() as (config, writer), Client(bus.address) as leaver:
        create = leaver.message(ROOT, MANAGER, "CreateTunnel", CREATE, (netns, config, {}))
        leaver.connection.send(create)
        leaver.tunnels()  # so the call has begun
        leaver.connection.sock.shutdown(socket.SHUT_RDWR)
        wait_for(lambda: not client.has_owner(leaver.unique_name), "it has left")
        os.write(writer, secrets.conf().encode())
        os.close(writer)
    daemon.assert_idle()
    assert client.tunnels() == []


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 3, 5, 8, 13])
def test_a_caller_that_leaves_before_its_reply(
    daemon: Daemon,
    client: Client,
    bus: Bus,
    inside: Namespace,
    secrets: Secrets,
    milliseconds: int,
) -> None:
    """Wherever creating has come to by then: it is undone, unless the reply is on its way."""

    def is_up() -> bool:
        return [state for *_, state in client.tunnels()] == ["up"]

    with inside_and_config(inside, secrets) as fds, Client(bus.address) as leaver:
        create = leaver.message(ROOT, MANAGER, "CreateTunnel", CREATE, (*fds, {}))
        leaver.connection.send(create)
        time.sleep(milliseconds / 1000)
        leaver.connection.sock.shutdown(socket.SHUT_RDWR)
        wait_for(lambda: not client.has_owner(leaver.unique_name), "it has left")
    client.tunnels()  # answered when the daemon has heard of all that
    wait_for(lambda: is_up() or daemon.footprint() == daemon.idle, "it is up or undone")
    if milliseconds == 0:
        assert not is_up()
    if is_up():
        client.close_tunnel(client.tunnels()[0][1])
    assert set(inside.links()) == {"lo"}


def test_a_caller_that_wants_no_reply_may_leave(
    daemon: Daemon, client: Client, bus: Bus, inside: Namespace, secrets: Secrets
) -> None:
    with inside_and_config(inside, secrets) as fds, Client(bus.address) as leaver:
        leaver.send(leaver.message(ROOT, MANAGER, "CreateTunnel", CREATE, (*fds, {})))
        leaver.bus("GetId")  # so that the bus has it
    wait_for(lambda: [state for *_, state in client.tunnels()] == ["up"], "the tunnel is up")
    client.close_tunnel(client.tunnels()[0][1])
