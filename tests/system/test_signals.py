"""What the daemon says unasked, as those hear it who will: busctl, gdbus and GLib, all real."""

import base64
import re
import tempfile
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from support.bus import NAME, OBJECT_MANAGER, PROPERTIES, ROOT, TUNNEL, Bus, Client, DBusError
from support.buses import ON_BOTH
from support.configs import Secrets
from support.daemon import Daemon
from support.monitors import Busctl, Gdbus, Gio, Signal, changes
from support.namespaces import MakeNamespace, Namespace
from support.processes import wait_for
from support.stage import Control, Stage
from support.transfer import Transfer
from support.tunnels import tunnel

pytestmark = ON_BOTH

MOVED = "192.0.3.77"
PATH = f"{ROOT}/tunnel/watched"

# What makes each signal what it is: its member, and so many of its first values.
VALUES = {
    "InterfacesAdded": 1,
    "InterfacesRemoved": 1,
    "StateChanged": 2,
    "PeerStateChanged": 3,
    "PeerEndpointChanged": 3,
    "Handshake": 1,
}


class Life:
    """All that can happen to a tunnel: created, restarted, used, moved and closed."""

    def __init__(self, client: Client, inside: Namespace, stage: Stage, control: Control) -> None:
        self.client, self.inside, self.stage, self.control = client, inside, stage, control

    def live(self) -> None:
        far = self.stage.far
        conf = self.stage.conf(0, self.stage.moving.endpoint_v4)
        assert self.client.create(self.inside, conf, name="watched") == PATH
        self.client.tunnel(PATH, "Restart")
        with Transfer(self.inside, far.ipv4, far.echo_port) as transfer:
            transfer.wait_for_progress()
            self.control.far_move(MOVED)
            wait_for(self._has_moved, "the endpoint follows")
            transfer.finish()
        self.client.close_tunnel(PATH)

    def _has_moved(self) -> bool:
        (peer,) = self.client.peers(PATH).values()
        return bool(peer["endpoint"] == f"{MOVED}:51820")

    def edges(self) -> list[tuple[str, ...]]:
        """What is to be told of it, PropertiesChanged aside."""
        key = self.stage.far.public_key
        return [
            (ROOT, "InterfacesAdded", PATH),
            (PATH, "StateChanged", "up", "starting"),
            (PATH, "StateChanged", "restarting", "up"),
            (PATH, "StateChanged", "up", "restarting"),
            (PATH, "PeerStateChanged", key, "handshaking", "idle"),
            (PATH, "Handshake", key),
            (PATH, "PeerStateChanged", key, "active", "handshaking"),
            (PATH, "PeerEndpointChanged", key, f"{MOVED}:51820", self.stage.moving.endpoint_v4),
            (PATH, "StateChanged", "stopping", "up"),
            (PATH, "PeerStateChanged", key, "stale", "active"),
            (PATH, "StateChanged", "closed", "stopping"),
            (ROOT, "InterfacesRemoved", PATH),
        ]


@pytest.fixture
def life(client: Client, namespace: MakeNamespace, stage: Stage, control: Control) -> Life:
    return Life(client, namespace(), stage, control)


def edges(signals: list[Signal]) -> list[tuple[str, ...]]:
    return [
        (each.path, each.member, *strings(each.body)[: VALUES[each.member]])
        for each in signals
        if each.member != "PropertiesChanged"
    ]


def strings(body: Any) -> list[str]:
    return re.findall("'([^']*)'", body) if isinstance(body, str) else list(body)


def last(member: str, signals: list[Signal]) -> bool:
    return bool(signals) and signals[-1].member == member


# ---------------------------------------------------------------- busctl


def assert_a_whole_life(signals: list[Signal], life: Life) -> None:
    assert edges(signals) == life.edges()
    assert {each.interface for each in signals if each.path == ROOT} == {OBJECT_MANAGER}
    assert {each.interface for each in signals if each.path == PATH} == {TUNNEL, PROPERTIES}
    states, invalidated = [], set()
    for values, names in changes(signals):
        assert "Peers" not in values
        invalidated.update(names)
        states += [values["State"]] if "State" in values else []
    assert invalidated == {"Peers"}
    assert states == ["up", "restarting", "up", "stopping", "closed"]
    for each, after in pairwise(signals):
        if each.member in ("Handshake", "PeerStateChanged", "PeerEndpointChanged"):
            # Told together, they are invalidated together.
            assert after.path == PATH
            assert after.member in VALUES or after.body == [TUNNEL, {}, ["Peers"]]
    assert changes(signals).count(({}, ["Peers"])) >= 3


def test_busctl_sees_a_tunnel_s_life(daemon: Daemon, life: Life) -> None:
    with Busctl(daemon.address) as monitor:
        life.live()
        assert_a_whole_life(monitor.signals(), life)


def test_busctl_sees_the_same_by_a_rule(daemon: Daemon, life: Life) -> None:
    with Busctl(daemon.address, match=f"type='signal',sender='{NAME}'") as monitor:
        life.live()
        assert_a_whole_life(monitor.signals(), life)


def test_busctl_sees_one_kind_of_signal(daemon: Daemon, life: Life) -> None:
    rule = f"type='signal',sender='{NAME}',interface='{TUNNEL}',member='Handshake'"
    with Busctl(daemon.address, match=rule) as monitor:
        life.live()
        # dbus-broker shows more replies than those of the rule that catch_up() needs.
        (message,) = (each for each in monitor.catch_up() if each["type"] == "signal")
    assert (message["path"], message["member"]) == (PATH, "Handshake")
    assert message["payload"]["type"] == "sta{sv}"
    key, at, details = message["payload"]["data"]
    assert key == life.stage.far.public_key
    assert 0 <= message["timestamp-realtime"] - at < 1_000_000
    assert details == {
        "role": {"type": "s", "data": "initiator"},
        "endpoint": {"type": "s", "data": life.stage.moving.endpoint_v4},
        "missed": {"type": "u", "data": 0},
    }


# ---------------------------------------------------------------- gdbus


def test_gdbus_sees_a_tunnel_s_life(daemon: Daemon, life: Life) -> None:
    with Gdbus(daemon.address) as monitor:
        life.live()
        wait_for(lambda: last("InterfacesRemoved", monitor.signals()), "gdbus sees it go")
        signals = monitor.signals()
        shown = monitor.text
    assert edges(signals) == life.edges()
    assert f"{PATH}: {TUNNEL}.StateChanged ('up', 'starting', 'created')\n" in shown
    assert (
        f"{ROOT}: {OBJECT_MANAGER}.InterfacesRemoved (objectpath '{PATH}', ['{TUNNEL}'])" in shown
    )
    properties = [each.body for each in signals if each.member == "PropertiesChanged"]
    states = [state for body in properties for state in re.findall("'State': <'(.*?)'>", body)]
    assert states == ["up", "restarting", "up", "stopping", "closed"]
    assert f"('{TUNNEL}', @a{{sv}} {{}}, ['Peers'])" in properties
    assert not any("'Peers':" in body for body in properties)
    (handshake,) = (each.body for each in signals if each.member == "Handshake")
    assert re.fullmatch(
        rf"\('{re.escape(life.stage.far.public_key)}', uint64 \d{{16}}, {{'role': <'initiator'>, "
        rf"'endpoint': <'{life.stage.moving.endpoint_v4}'>, 'missed': <uint32 0>}}\)",
        handshake,
    )


# ---------------------------------------------------------------- GLib


def test_glib_sees_a_tunnel_s_life(daemon: Daemon, life: Life) -> None:
    key = life.stage.far.public_key
    with Gio(daemon.address) as applet:
        started = applet.wait_event("started")
        assert started["owner"].startswith(":")
        assert started["objects"] == {}
        life.live()
        applet.wait_event("object-removed")
        events = [each for each in applet.events if each["event"] not in ("fetching", "fetched")]
        fetched = applet.of("fetched")

    added, removed = events[1], events[-1]
    assert (added["event"], removed["event"]) == ("object-added", "object-removed")
    assert added["path"] == removed["path"] == PATH
    assert set(added["interfaces"]) == {TUNNEL}
    assert added["interfaces"][TUNNEL]["State"] == "starting"

    told = [each for each in events if each["event"] == "signal"]
    signals = [Signal(e["path"], e["interface"], e["member"], e["body"]) for e in told]
    assert edges(signals) == life.edges()[1:-1]

    # What the proxies hold follows; but Peers, which they no longer have once it was invalidated.
    known = added["interfaces"][TUNNEL]
    for event in events[2:-1]:
        if event["event"] == "changed":
            assert "Peers" not in event["values"]
            known |= event["values"]
            for name in event["invalidated"]:
                known.pop(name, None)
        elif event["member"] == "StateChanged":
            assert event["cached"]["State"] == event["body"][0]
        assert event["cached"] == known
    assert known["State"] == "closed"
    assert "Peers" not in known

    # A proxy that asks for it anew.
    peers = [each["changed"]["Peers"] for each in fetched if "Peers" in each["changed"]]
    assert "active" in [each[key]["state"] for each in peers if key in each]


def test_glib_has_the_peers_as_they_are_once_it_asks_again(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    inside, key = namespace(), stage.far.public_key
    with Gio(daemon.address) as applet, tunnel(client, inside, stage.conf(0)) as path:

        def fetched(state: str) -> dict[str, Any]:
            """The newest that it has, if that is in this state."""
            peers = [e["cached"].get("Peers", {}) for e in applet.events if "fetch" in e["event"]]
            newest: dict[str, Any] = peers[-1].get(key, {}) if peers else {}
            return newest if newest.get("state") == state else {}

        wait_for(lambda: fetched("idle"), "it fetches the peers once the tunnel is up")
        inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv4)
        shown = wait_for(lambda: fetched("active"), "it fetches them when they have changed")
        now = client.peers(path)[key]
        steady = now.keys() - {"rx_bytes", "tx_bytes"}
        assert {name: shown[name] for name in steady} == {name: now[name] for name in steady}
        assert shown["last_handshake_usec"] > 0


def test_glib_finds_what_was_there_before_it(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    with (
        tunnel(client, namespace(), stage.conf(0), name="one") as one,
        tunnel(client, namespace(), stage.conf(1), name="two", wait="handshake") as two,
        Gio(daemon.address) as applet,
    ):
        found = applet.wait_event("started")["objects"]
        assert set(found) == {one, two}
        for path in (one, two):
            assert set(found[path]) == {TUNNEL}
            shown, now = found[path][TUNNEL], client.get_all(path)
            for name in now.keys() - {"Peers"}:
                value = now[name]  # GLib makes a list of a structure
                assert shown[name] == (list(value) if isinstance(value, tuple) else value), name
        states = {p: found[p][TUNNEL]["Peers"][stage.far.public_key]["state"] for p in (one, two)}
        assert states == {one: "idle", two: "active"}
        client.close_tunnel(one)
        applet.wait_event("object-removed", path=one)
        client.create(namespace(), stage.conf(0), name="one")
        applet.wait_event("object-added", path=one)


def test_glib_waits_for_the_daemon_and_survives_it(
    namespace: MakeNamespace, stage: Stage, bus_program: str
) -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wg-")))
        own_bus = Bus(directory, program=bus_program)
        stack.callback(own_bus.close)
        applet = stack.enter_context(Gio(own_bus.address))
        started = applet.wait_event("started")
        assert (started["owner"], started["objects"]) == (None, {})
        inside = namespace()
        for number in (1, 2):
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wg-")))
            daemon = Daemon(own_bus, home)
            stack.callback(daemon.stop_if_running)
            owner = daemon.client.bus("GetNameOwner", "s", NAME)
            applet.wait_event("name-owner", owner=owner)
            path = daemon.client.create(inside, stage.conf(0), wait="handshake")
            wait_for(lambda n=number: len(applet.of("object-added")) == n, "it sees the tunnel")
            assert applet.of("object-added")[-1]["path"] == path
            wait_for(
                lambda: any(c["cached"]["State"] == "up" for c in applet.of("changed")[-1:]),
                "it is up",
            )
            applet.wait_event("signal", path=path, member="Handshake")
            daemon.stop()
            wait_for(lambda: applet.of("name-owner")[-1]["owner"] is None, "the daemon is gone")
            assert applet.of("name-owner")[-1]["objects"] == {}
            assert len(applet.of("object-removed")) == number


# ---------------------------------------------------------------- secrets


def test_no_watcher_sees_a_secret(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage, tmp_path: Path
) -> None:
    """By descriptor and by path, in calls that work and in those that fail."""
    inside, secrets = namespace(), Secrets()
    bad, good = tmp_path / "bad.conf", tmp_path / "good.conf"
    for path, text in ((bad, f"{secrets.conf()}Endpoint = {secrets.new()}\n"), (good, "")):
        path.touch(mode=0o600)
        path.write_text(text or stage.conf(0, MTU="1400"))
    with (
        Busctl(daemon.address) as busctl,
        Gdbus(daemon.address) as gdbus,
        Gio(daemon.address) as gio,
    ):
        with pytest.raises(DBusError, match="InvalidConfig"):
            client.create(inside, bad.read_text())
        with pytest.raises(DBusError, match="InvalidConfig"):
            client.manager("CreateTunnelFromPaths", "ssa{sv}", inside.path, str(bad), {})
        tunnel = client.create(inside, stage.conf(0), wait="handshake")
        client.tunnel(tunnel, "ReconfigureFromPath", "sa{sv}", str(good), {})
        with pytest.raises(DBusError, match="InvalidConfig"):
            client.tunnel(tunnel, "ReconfigureFromPath", "sa{sv}", str(bad), {})
        client.tunnel(tunnel, "Restart")
        client.peers(tunnel)
        client.get_all(tunnel)
        client.manager("Describe")
        client.call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
        client.close_tunnel(tunnel)
        gio.wait_event("object-removed", path=tunnel)
        wait_for(lambda: last("InterfacesRemoved", gdbus.signals()), "gdbus sees it go")
        busctl.catch_up()
        everything = busctl.text, gdbus.text, gio.text
    me = stage.clients[0]
    for text in everything:
        assert me.public_key in text  # it would be there
        secrets.assert_hidden_in(text)
        for secret in (me.private_key, me.preshared_key):
            assert secret.rstrip("=") not in text
            assert base64.b64decode(secret).hex() not in text
