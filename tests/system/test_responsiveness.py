"""Nothing blocks the event loop: whoever is slow delays nobody else."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from support.bus import CREATE, MANAGER, ROOT, TUNNEL, Bus, Client, DBusError
from support.configs import Secrets
from support.daemon import SOON, Daemon
from support.fds import opened, pipe
from support.namespaces import MakeNamespace, Namespace
from support.processes import wait_for


def seconds(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def test_a_slow_configuration_delays_nobody(
    daemon: Daemon, client: Client, bus: Bus, inside: Namespace, namespace: MakeNamespace
) -> None:
    with opened(inside.path) as netns, pipe() as (config, writer), Client(bus.address) as slow:
        create = slow.message(ROOT, MANAGER, "CreateTunnel", CREATE, (netns, config, {}))
        slow.send(create)
        slow.tunnels()
        assert seconds(client.tunnels) < SOON
        other = namespace()
        assert seconds(lambda: client.close_tunnel(client.create(other, Secrets().conf()))) < SOON
        os.write(writer, Secrets().conf().encode())
        os.close(writer)
        wait_for(lambda: "wg0" in inside.links(), "the slow one is there")


def test_many_slow_configurations_use_up_only_their_own_share(
    daemon: Daemon, client: Client, bus: Bus, namespace: MakeNamespace
) -> None:
    inside, other = namespace(), namespace()
    path = client.create(inside, Secrets().conf())
    with opened(other.path) as netns, pipe() as (config, _), Client(bus.address) as slow:
        for _ in range(80):
            slow.send(slow.message(ROOT, MANAGER, "CreateTunnel", CREATE, (netns, config, {})))
        slow.tunnels()
        assert seconds(client.tunnels) < SOON
        client.close_tunnel(client.create(other, Secrets().conf()))
        client.tunnel(path, "Restart")
        assert seconds(lambda: client.close_tunnel(path)) < SOON
        assert set(inside.links()) == {"lo"}


def test_an_engine_that_hangs_delays_nobody(
    daemon: Daemon, client: Client, bus: Bus, inside: Namespace
) -> None:
    path = client.create(inside, Secrets().conf())
    os.kill(client.get(path, "EnginePID"), signal.SIGSTOP)
    with Client(bus.address) as patient:
        patient.connection.send(patient.message(path, TUNNEL, "GetPeers"))
        patient.bus("GetId")
        assert seconds(client.tunnels) < SOON
        with pytest.raises(DBusError) as refused:
            client.peers(path)
        assert refused.value.short_name == "Timeout"
        assert "no answer within 10 s" in refused.value.message
    assert seconds(lambda: client.close_tunnel(path)) < SOON
