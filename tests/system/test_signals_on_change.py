"""Signals on edges only: what changes nothing is not announced."""

import json
import os
import signal
from contextlib import suppress

from support.bus import OBJECT_MANAGER, ROOT, TUNNEL, Client
from support.daemon import Daemon
from support.monitors import Busctl, assert_a_chain, changes
from support.namespaces import MakeNamespace
from support.processes import wait_for
from support.stage import Stage
from support.tunnels import tunnel


def test_traffic_and_questions_say_nothing(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    inside, key = namespace(), stage.far.public_key
    with (
        tunnel(client, inside, stage.conf(0), wait="handshake") as path,
        Busctl(daemon.address) as monitor,
    ):
        before = client.peers(path)[key]
        inside.check("ping", "-n", "-i0.01", "-c150", "-W10", stage.far.ipv4)
        after = client.peers(path)[key]
        assert after["rx_bytes"] - before["rx_bytes"] > 150 * 64
        assert after["tx_bytes"] - before["tx_bytes"] > 150 * 64
        client.get(path, "Peers")
        client.get(path, "State")
        client.get_all(path)
        client.call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
        client.manager("Describe")
        client.manager("ListTunnels")
        client.tunnel(path, "WaitForState", "ast", ["up"], 0)
        client.tunnel(path, "OpenNetns").close()
        assert monitor.signals() == []
        assert len(monitor.catch_up()) >= 2 * 10  # it does hear the calls and their replies


def test_what_is_no_change_is_not_announced(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    """Restarts that are served together, and a second Close."""
    inside = namespace()
    with Busctl(daemon.address) as monitor:
        path = client.create(inside, stage.conf(0), wait="handshake")
        for _ in range(3):
            client.send(client.message(path, TUNNEL, "Restart"))
        client.tunnel(path, "Restart")
        client.send(client.message(path, TUNNEL, "Close"))
        client.close_tunnel(path)
        signals = monitor.signals()
    members = [each.member for each in signals]
    assert (members.count("InterfacesAdded"), members.count("InterfacesRemoved")) == (1, 1)
    for member in ("StateChanged", "PeerStateChanged"):
        assert_a_chain(signals, member)
    announced = signals[members.index("InterfacesAdded") :]
    known = {name: each["data"] for name, each in announced[0].body[1][TUNNEL].items()}
    for values, _ in changes(announced):
        for name, value in values.items():
            assert known[name] != value, f"{name} is announced twice"
        known |= values


def test_an_engine_that_crashes_and_crashes(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    """Attempts to start it are no edges. In the end there is none, and no session either: whoever
    asks is told as much as those who listened."""
    inside, key = namespace(), stage.far.public_key
    with Busctl(daemon.address) as monitor:
        path = client.create(inside, stage.conf(0), wait="handshake")
        client.get(path, "Peers")

        def is_given_up() -> bool:
            if pid := client.get(path, "EnginePID"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return bool(client.get(path, "State") == "failed")

        def is_told_stale() -> bool:
            bodies = [e.body for e in monitor.signals() if e.member == "PeerStateChanged"]
            return bool(bodies[-1][1] == "stale")

        wait_for(is_given_up, "it is given up", 40)
        wait_for(is_told_stale, "the last change is told, perhaps a second later")
        signals = monitor.signals()
    assert_a_chain(signals, "StateChanged")
    assert_a_chain(signals, "PeerStateChanged")
    (described,) = json.loads(client.manager("Describe"))["tunnels"]
    (managed,) = client.call(ROOT, OBJECT_MANAGER, "GetManagedObjects").values()
    assert {
        "Get": client.get(path, "Peers").get(key, {}).get("state"),
        "GetManagedObjects": managed[TUNNEL]["Peers"][1].get(key, {}).get("state"),
        "Describe": described["Peers"].get(key, {}).get("state"),
    } == {"Get": ("s", "stale"), "GetManagedObjects": ("s", "stale"), "Describe": "stale"}
