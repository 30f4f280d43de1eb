"""Endpoints with host names: found late, tried in turn, and found elsewhere.

The C library resolves them, from a hosts file that root changes for us.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import tunnels
from support.bus import TUNNEL, Client
from support.daemon import Daemon
from support.fds import changed_package
from support.namespaces import MakeNamespace, Namespace
from support.processes import wait_for
from support.stage import Control, Stage

NAME = "where.test"


@contextmanager
def tunnel(client: Client, inside: Namespace, conf: str, **options: Any) -> Iterator[str]:
    """One whose signals are kept."""
    with tunnels.tunnel(client, inside, conf, **options) as path:
        client.subscribe(interface=TUNNEL, path=path)
        yield path


def conf(stage: Stage, host: str = NAME, keepalive: int = 0) -> str:
    return stage.conf(0, f"{host}:51820") + f"PersistentKeepalive = {keepalive}\n"


def peer(client: Client, path: str) -> dict[str, Any]:
    (shown,) = client.peers(path).values()
    return shown


def test_a_name_without_an_address_is_asked_for_again(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage, control: Control
) -> None:
    """The tunnel is up meanwhile, says what is missing, and begins when it can."""
    with tunnel(client, namespace(), conf(stage)) as path:
        assert client.get(path, "State") == "up"
        name, text = client.get(path, "LastError")
        assert name == "org.wg4netns1.Error.Unresolved"
        assert text.startswith(f"Unresolved: {NAME}: ")
        shown = peer(client, path)
        assert shown["endpoint"] == ""
        assert shown["endpoint_host"] == f"{NAME}:51820"
        assert shown["endpoint_error"] == text
        assert shown["state"] == "idle"

        control.host_name(NAME, "192.0.3.2")
        body = client.next_signal("PeerEndpointChanged", 20).body
        assert tuple(body[:3]) == (stage.far.public_key, "192.0.3.2:51820", "")
        assert client.next_signal("Handshake", 20).body[0] == stage.far.public_key
        shown = peer(client, path)
        assert (shown["endpoint_error"], shown["state"]) == ("", "active")


def test_the_network_coming_is_a_reason_to_ask_at_once(
    start_daemon: Callable[..., Daemon],
    inside: Namespace,
    stage: Stage,
    control: Control,
    tmp_path: Path,
) -> None:
    """And the only one here: by itself, this daemon asks again after an hour."""
    delays = "FIRST_DELAY, MAX_DELAY = 1.0, 300.0", "FIRST_DELAY, MAX_DELAY = 3600.0, 3600.0"
    package = changed_package(tmp_path, "peers/endpoint.py", *delays)
    client = start_daemon(PYTHONPATH=str(package.parent)).client
    with tunnel(client, inside, conf(stage)):
        control.host_name(NAME, "192.0.3.2")
        control.host_address_add("192.0.3.9/24")
        client.next_signal("Handshake", 20)


def test_addresses_are_tried_in_turn(
    quick: Daemon, namespace: MakeNamespace, stage: Stage, control: Control
) -> None:
    client = quick.client
    with tunnel(client, namespace(), conf(stage, "dead-first.test", keepalive=1)) as path:
        first, second = "[2001:db8:3::dead]:51820", "192.0.3.2:51820"
        body = client.next_signal("PeerEndpointChanged", 20).body
        assert tuple(body[:3]) == (stage.far.public_key, second, first)
        client.next_signal("Handshake", 20)
        wait_for(lambda: peer(client, path)["state"] == "active", "the second one answers")
        assert peer(client, path)["endpoint"] == second


def test_a_far_end_that_moves_while_nobody_talks_is_found_by_its_name(
    quick: Daemon, namespace: MakeNamespace, stage: Stage, control: Control
) -> None:
    """No packet tells that it has moved: only the name does, when it does not answer any more."""
    client = quick.client
    control.host_name(NAME, "192.0.3.2")
    with tunnel(client, namespace(), conf(stage, keepalive=1), wait="handshake") as path:
        control.far_stop()
        control.far_move("192.0.3.77")
        control.host_name(NAME, "192.0.3.77")
        control.far_start()
        body = client.next_signal("PeerEndpointChanged", 30).body
        assert tuple(body[1:3]) == ("192.0.3.77:51820", "192.0.3.2:51820")
        wait_for(lambda: peer(client, path)["state"] == "active", "it is found", 30)


def test_a_stale_peer_that_nobody_tries_is_looked_up_once(
    quick: Daemon, namespace: MakeNamespace, stage: Stage, control: Control
) -> None:
    client, inside = quick.client, namespace()
    control.host_name(NAME, "192.0.3.2")
    with tunnel(client, inside, conf(stage), wait="handshake") as path:
        control.host_name(NAME, "192.0.3.2", "192.0.3.78")
        while client.next_signal("PeerStateChanged", 20).body[1] != "stale":
            pass
        control.far_move("192.0.3.78")
        inside.check("ping", "-n", "-c1", "-W20", stage.far.ipv4)
        assert peer(client, path)["endpoint"] == "192.0.3.78:51820"


def test_a_name_that_is_gone_costs_nothing_that_works(
    quick: Daemon, namespace: MakeNamespace, stage: Stage, control: Control
) -> None:
    """The old address is kept, and the error told."""
    client, inside = quick.client, namespace()
    control.host_name(NAME, "192.0.3.2")
    with tunnel(client, inside, conf(stage), wait="handshake") as path:
        control.host_name(NAME)
        while client.next_signal("PeerStateChanged", 20).body[1] != "stale":
            pass
        wait_for(lambda: peer(client, path)["endpoint_error"], "the look-up has failed")
        inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv4)
        assert peer(client, path)["endpoint"] == "192.0.3.2:51820"


def test_an_engine_that_is_replaced_finds_its_peers_where_they_were(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage, control: Control
) -> None:
    control.host_name(NAME, "192.0.3.2")
    with tunnel(client, namespace(), conf(stage), wait="handshake") as path:
        control.host_name(NAME)
        client.tunnel(path, "Restart")
        client.next_signal("Handshake", 20)
        assert peer(client, path)["endpoint"] == "192.0.3.2:51820"
