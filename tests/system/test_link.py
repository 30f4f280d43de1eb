"""What the namespace's owner does with the interface, and what a client sees of it."""

from collections.abc import Iterator
from typing import Any

import pytest

from support.bus import TUNNEL, Client
from support.daemon import SOON, Daemon
from support.namespaces import Namespace, ping
from support.processes import wait_for
from support.stage import Stage
from support.tunnels import reconfigure

pytestmark = pytest.mark.parametrize("lifetime", ["namespace", "persistent"])


@pytest.fixture
def path(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage, lifetime: str
) -> Iterator[str]:
    """A tunnel to the far end, whose changes the client hears of."""
    created = client.create(inside, stage.conf(0), lifetime=lifetime)
    client.subscribe(member="PropertiesChanged", path=created)
    return created


def next_change(client: Client, path: str) -> dict[str, Any]:
    """The next values of Interface and LinkState that are told."""
    while True:
        interface, values, _ = client.next_signal("PropertiesChanged", path=path).body
        told = {key: value for key, (_, value) in values.items()}
        if interface == TUNNEL and told.keys() & {"Interface", "LinkState"}:
            assert {key: client.get(path, key) for key in told} == told
            return told


def owner(inside: Namespace, *arguments: str) -> None:
    inside.check("ip", "link", *arguments)


def test_down_and_up_again(
    client: Client, inside: Namespace, path: str, stage: Stage, lifetime: str
) -> None:
    ping(inside, stage.far.ipv4)
    owner(inside, "set", "wg0", "down")
    assert next_change(client, path)["LinkState"] == "down"
    assert client.get(path, "State") == "up"
    owner(inside, "set", "wg0", "up")
    assert next_change(client, path)["LinkState"] == "up"
    # The kernel has dropped the routes, and IPv6 addresses too.
    assert not inside.ip("route", "show", "default")
    reconfigure(client, path, stage.conf(0))
    ping(inside, stage.far.ipv4)
    ping(inside, stage.far.ipv6)
    client.close_tunnel(path)


def test_renamed(client: Client, inside: Namespace, path: str, stage: Stage, lifetime: str) -> None:
    owner(inside, "set", "wg0", "down")
    next_change(client, path)
    owner(inside, "set", "wg0", "name", "uplink")
    assert next_change(client, path)["Interface"] == "uplink"
    owner(inside, "set", "uplink", "up")
    next_change(client, path)
    reconfigure(client, path, stage.conf(0))  # which finds it under its new name
    ping(inside, stage.far.ipv4)
    client.close_tunnel(path)
    assert set(inside.links()) == {"lo"}


def test_moved_and_back(
    client: Client, inside: Namespace, path: str, stage: Stage, lifetime: str
) -> None:
    with inside.sibling() as other:
        owner(inside, "set", "wg0", "netns", str(other))
        assert next_change(client, path)["LinkState"] == "moved"
        assert client.get(path, "State") == "up"
        assert set(inside.links()) == {"lo"}
        inside.check(
            "nsenter",
            f"--target={other}",
            "--net",
            "ip",
            "link",
            "set",
            "wg0",
            "netns",
            str(inside.pid),
        )
        assert next_change(client, path)["LinkState"] == "down"
    owner(inside, "set", "wg0", "up")
    assert next_change(client, path)["LinkState"] == "up"
    client.close_tunnel(path)


def test_deleted(client: Client, inside: Namespace, path: str, lifetime: str) -> None:
    client.subscribe(member="StateChanged")
    owner(inside, "delete", "wg0")
    wait_for(lambda: client.tunnels() == [], "the tunnel has ended", SOON)
    reasons = [
        s.body[2] for s in client.pending_signals() if len(s.body) == 3 and s.body[0] == "stopping"
    ]
    assert reasons == ["the interface was deleted"]


def test_deleted_elsewhere(client: Client, inside: Namespace, path: str, lifetime: str) -> None:
    with inside.sibling() as other:
        owner(inside, "set", "wg0", "netns", str(other))
        assert next_change(client, path)["LinkState"] == "moved"
        inside.check("nsenter", f"--target={other}", "--net", "ip", "link", "delete", "wg0")
        wait_for(lambda: client.tunnels() == [], "the tunnel has ended", SOON)
