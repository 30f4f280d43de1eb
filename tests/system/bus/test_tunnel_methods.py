"""The Tunnel's methods: Restart, Close, OpenNetns and WaitForState."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support.bus import NO_LIMIT, TUNNEL, Bus, Client, DBusError, body_of, gdbus_call
from support.buses import ON_BOTH
from support.daemon import Daemon
from support.namespaces import Namespace
from support.processes import open_fds, wait_for

pytestmark = ON_BOTH


def test_the_states_of_a_life(
    client: Client, bus: Bus, inside: Namespace, conf: str, daemon: Daemon
) -> None:
    with Client(bus.address) as applet:
        applet.subscribe(interface=TUNNEL, member="StateChanged")
        path = client.create(inside, conf)
        client.tunnel(path, "Restart")
        client.tunnel(path, "Close")
        states = body_of(applet.pending_signals(), "StateChanged", path)
    assert states == [
        ("up", "starting", "created"),
        ("restarting", "up", "requested"),
        ("up", "restarting", "the engine is back"),
        ("stopping", "up", "closed by request"),
        ("closed", "stopping", "closed by request"),
    ]


def test_restart_replaces_the_engine_alone(
    client: Client, daemon: Daemon, tunnel: str, inside: Namespace
) -> None:
    before, interface = client.get_all(tunnel), inside.links()["wg0"]
    client.tunnel(tunnel, "Restart")
    after = client.get_all(tunnel)
    assert after["EnginePID"] not in (0, before["EnginePID"])
    assert before["EnginePID"] not in daemon.engines()
    assert after["RestartCount"] == 1
    assert inside.links()["wg0"] == interface  # its index, too
    assert inside.addresses("wg0") == set(after["Addresses"])
    same = set(before) - {"EnginePID", "RestartCount", "Peers"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_two_who_ask_for_a_restart_get_one(client: Client, bus: Bus, tunnel: str) -> None:
    with Client(bus.address) as other:
        other.send(other.message(tunnel, TUNNEL, "Restart"))
        other.tunnel(tunnel, "Restart")
    assert client.get(tunnel, "RestartCount") == 1


def test_close_returns_when_nothing_is_left(
    client: Client, daemon: Daemon, inside: Namespace, conf: str
) -> None:
    path = client.create(inside, conf)
    engine = client.get(path, "EnginePID")
    client.tunnel(path, "Close")
    assert set(inside.links()) == {"lo"}
    assert engine not in daemon.engines()
    assert list(daemon.directory.iterdir()) == []
    with pytest.raises(DBusError) as again:
        client.tunnel(path, "Close")
    assert again.value.short_name == "UnknownObject"


def test_two_may_close_at_once(client: Client, bus: Bus, tunnel: str) -> None:
    with Client(bus.address) as other:
        other.send(other.message(tunnel, TUNNEL, "Close"))
        assert other.tunnel(tunnel, "Close") is None
    assert client.tunnels() == []


def test_open_netns_leads_to_the_namespace(
    client: Client, daemon: Daemon, tunnel: str, inside: Namespace
) -> None:
    def copies() -> int:
        return list(open_fds(daemon.pid).values()).count(f"net:[{inside.id[1]}]")

    before = copies()
    returned = client.tunnel(tunnel, "OpenNetns")
    try:
        status = os.fstat(returned.fileno())
        assert (status.st_dev, status.st_ino) == inside.id
    finally:
        returned.close()
    wait_for(lambda: copies() == before, "the daemon keeps no copy")


def test_gdbus_gets_the_namespace_too(daemon: Daemon, tunnel: str) -> None:
    assert gdbus_call(daemon.address, tunnel, f"{TUNNEL}.OpenNetns") == "(handle 0,)\n"


@pytest.mark.parametrize("timeout", [0, 1_000_000, NO_LIMIT])
def test_a_state_that_is_reached_already(client: Client, tunnel: str, timeout: int) -> None:
    assert client.tunnel(tunnel, "WaitForState", "ast", ["failed", "up"], timeout) == "up"


@pytest.mark.parametrize("timeout", [0, 50_000])
def test_a_state_that_does_not_come(client: Client, tunnel: str, timeout: int) -> None:
    with pytest.raises(DBusError) as refused:
        client.tunnel(tunnel, "WaitForState", "ast", ["failed"], timeout)
    assert refused.value.short_name == "Timeout"
    assert "'one' is up after" in refused.value.message


@pytest.mark.parametrize("states", [[], ["Up"], ["up", "fine"]])
def test_no_state_to_wait_for(client: Client, tunnel: str, states: list[str]) -> None:
    with pytest.raises(DBusError) as refused:
        client.tunnel(tunnel, "WaitForState", "ast", states, 0)
    assert refused.value.short_name == "InvalidArgs"
    assert "expected some of starting, up" in refused.value.message


@contextmanager
def waiting(bus: Bus, path: str, *states: str) -> Iterator[list[Any]]:
    """A call of WaitForState under way; its result is there after the block."""
    result: list[Any] = []

    def wait() -> None:
        try:
            result.append(other.tunnel(path, "WaitForState", "ast", list(states), NO_LIMIT))
        except DBusError as error:
            result.append(error)

    with Client(bus.address) as other:
        other.tunnels()
        thread = threading.Thread(target=wait)
        thread.start()
        yield result
        thread.join(10)
        assert not thread.is_alive()


def test_a_state_is_waited_for(client: Client, bus: Bus, tunnel: str) -> None:
    with waiting(bus, tunnel, "restarting", "failed") as result:
        client.tunnels()
        assert result == []
        wait_for(lambda: client.tunnel(tunnel, "Restart") or result, "it has seen a restart")
    assert result == ["restarting"]


@pytest.mark.parametrize(
    ("state", "told"), [("closed", "closed"), ("failed", "NoSuchTunnel: 'one' was closed")]
)
def test_closed_while_waiting(client: Client, bus: Bus, tunnel: str, state: str, told: str) -> None:
    with waiting(bus, tunnel, state) as result:
        assert client.tunnel(tunnel, "WaitForState", "ast", ["up"], 0) == "up"
        client.close_tunnel(tunnel)
    (got,) = result
    assert (got.message if isinstance(got, DBusError) else got).startswith(told)


def test_one_who_waits_and_leaves(daemon: Daemon, client: Client, bus: Bus, tunnel: str) -> None:
    """Its call is given up: it does not end with the tunnel, as that of one who stays does."""
    with Client(bus.address) as stays:
        with Client(bus.address) as leaver:
            for each in (leaver, stays):  # who waits first is told first
                wait = (["failed"], NO_LIMIT)
                each.connection.send(each.message(tunnel, TUNNEL, "WaitForState", "ast", wait))
                each.tunnels()
            gone = leaver.unique_name
        wait_for(lambda: not client.has_owner(gone), "it has left")
        client.close_tunnel(tunnel)
        wait_for(lambda: f"WaitForState from {stays.unique_name}: " in daemon.log, "it is told")
    assert f"WaitForState from {gone}: " not in daemon.log
