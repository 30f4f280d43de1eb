"""Objects come and go, properties change, and both are announced."""

import os
import select
import subprocess
from pathlib import Path

import pytest
from jeepney import HeaderFields

from support.bus import (
    NAME,
    OBJECT_MANAGER,
    PROPERTIES,
    ROOT,
    TUNNEL,
    Bus,
    Client,
    DBusError,
    body_of,
)
from support.buses import ON_BOTH
from support.configs import Secrets, key
from support.daemon import Daemon
from support.namespaces import Namespace
from support.processes import wait_for

pytestmark = ON_BOTH

DBUS = "org.freedesktop.DBus"
FAR, FAR_PSK = key(), key()


def test_the_object_manager(
    daemon: Daemon, client: Client, bus: Bus, inside: Namespace, conf: str
) -> None:
    with Client(bus.address) as applet:
        applet.subscribe(interface=OBJECT_MANAGER)
        assert applet.call(ROOT, OBJECT_MANAGER, "GetManagedObjects") == {}
        path = client.create(inside, conf)
        managed = applet.call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
        assert set(managed) == {path}
        assert set(managed[path]) == {TUNNEL}
        assert {k: v for k, (_, v) in managed[path][TUNNEL].items()} == client.get_all(path)
        client.close_tunnel(path)
        assert applet.call(ROOT, OBJECT_MANAGER, "GetManagedObjects") == {}

        signals = applet.pending_signals()
        added, removed = (s for s in signals if s.header.fields[HeaderFields.interface] != DBUS)
        for each, member in ((added, "InterfacesAdded"), (removed, "InterfacesRemoved")):
            assert each.header.fields[HeaderFields.member] == member
            assert each.header.fields[HeaderFields.path] == ROOT  # GDBus looks nowhere else
        assert added.body[0] == path
        assert set(added.body[1]) == {TUNNEL}
        assert added.body[1][TUNNEL]["State"] == ("s", "starting")
        assert set(added.body[1][TUNNEL]) == set(managed[path][TUNNEL])
        assert removed.body == (path, [TUNNEL])


def test_a_failed_creation_comes_and_goes(
    daemon: Daemon, client: Client, bus: Bus, inside: Namespace
) -> None:
    with Client(bus.address) as applet:
        applet.subscribe(path_namespace=ROOT)
        with pytest.raises(DBusError, match="AlreadyExists"):
            client.create(inside, Secrets().conf(), interface="lo")
        signals = applet.pending_signals()
    assert [b[0] for b in body_of(signals, "InterfacesAdded")] == [
        b[0] for b in body_of(signals, "InterfacesRemoved")
    ]
    states = [(old, new) for new, old, _ in body_of(signals, "StateChanged")]
    assert states == [("starting", "stopping"), ("stopping", "closed")]


def test_gdbus_sees_the_objects_come_and_go(
    daemon: Daemon, client: Client, inside: Namespace, conf: str
) -> None:
    """Its monitor needs the signals to come from the object manager's own path."""
    command = ["gdbus", "monitor", "--session", "--dest", NAME]
    environment = os.environ | {"DBUS_SESSION_BUS_ADDRESS": daemon.address}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as monitor:
        assert monitor.stdout is not None
        try:
            for line in monitor.stdout:
                if line.startswith("The name "):
                    break
            # It drops signals until it has asked the bus whose the name is.
            while not select.select([monitor.stdout], [], [], 0.1)[0]:
                client.close_tunnel(client.create(inside, conf, name="before"))
            path = client.create(inside, conf, name="seen")
            client.close_tunnel(path)
            seen = ""
            for line in monitor.stdout:
                seen += line
                if "InterfacesRemoved" in line and path in line:
                    break
        finally:
            monitor.terminate()
    assert f"{ROOT}: {OBJECT_MANAGER}.InterfacesAdded (objectpath '{path}'" in seen
    assert f"{path}: {TUNNEL}.StateChanged ('up', 'starting', 'created')" in seen
    assert f"{ROOT}: {OBJECT_MANAGER}.InterfacesRemoved (objectpath '{path}'" in seen


def test_the_properties_of_a_tunnel(
    client: Client, daemon: Daemon, tunnel: str, inside: Namespace
) -> None:
    shown = client.get_all(tunnel)
    assert shown["Name"] == "one"
    assert tuple(shown["NetnsId"]) == inside.id
    assert (shown["Interface"], shown["Lifetime"], shown["State"]) == ("wg0", "namespace", "up")
    assert shown["Addresses"] == ["10.9.0.2/24", "fd00::2/64"]
    assert inside.addresses("wg0") == set(shown["Addresses"])
    assert (shown["Dns"], shown["Mtu"]) == (["10.9.0.1", "lan"], 1400)
    assert shown["ResolvConf"] == str(daemon.directory / "one/resolv.conf")
    assert inside.links()["wg0"]["mtu"] == 1400
    assert shown["EnginePID"] in daemon.engines()
    assert f" {shown['ListenPort']:04X} "[1:-1] in Path("/proc/net/udp").read_text()
    assert (shown["RestartCount"], tuple(shown["LastError"])) == (0, ("", ""))
    created = daemon.log_path.stat().st_mtime
    assert abs(shown["CreatedUSec"] / 1e6 - created) < 60


def test_the_public_key_is_the_private_keys(
    client: Client, daemon: Daemon, inside: Namespace
) -> None:
    private = subprocess.run(["wg", "genkey"], capture_output=True, check=True).stdout
    public = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, check=True).stdout
    text = f"[Interface]\nPrivateKey = {private.decode()}\nAddress = 10.9.0.2\n"
    assert client.get(client.create(inside, text), "PublicKey") == public.decode().strip()


PEER = "AllowedIPs = 10.9.1.0/24, fd01::/64\nEndpoint = localhost:9\nPersistentKeepalive = 25"


def test_peers(client: Client, daemon: Daemon, inside: Namespace) -> None:
    text = f"{Secrets().conf(peer=None)}[Peer]\nPublicKey = {FAR}\nPresharedKey = {FAR_PSK}\n{PEER}"
    path = client.create(inside, text)
    shown = client.peers(path)
    assert set(shown) == {FAR}
    peer = shown[FAR]
    assert peer["endpoint"] in ("127.0.0.1:9", "[::1]:9")
    assert peer["endpoint_host"] == "localhost:9"
    assert sorted(peer["allowed_ips"]) == ["10.9.1.0/24", "fd01::/64"]
    assert peer["endpoint_error"] == ""
    # It has a keepalive to send, so it wants a session; nobody is there.
    wait_for(lambda: client.peers(path)[FAR]["state"] == "handshaking", "a handshake is tried")
    assert peer["last_handshake_usec"] == 0
    assert peer["persistent_keepalive"] == 25
    as_property = {
        k: {n: v for n, (_, v) in p.items()} for k, p in client.get(path, "Peers").items()
    }
    counters = {"rx_bytes": 0, "tx_bytes": 0}
    assert as_property[FAR] | counters == peer | counters | {"state": "handshaking"}
    assert set(client.get_all(path)["Peers"]) == {FAR}


def test_what_changes_is_announced(
    client: Client, bus: Bus, inside: Namespace, conf: str, daemon: Daemon
) -> None:
    with Client(bus.address) as applet:
        applet.subscribe(interface=PROPERTIES, member="PropertiesChanged")
        applet.subscribe(interface=OBJECT_MANAGER, member="InterfacesAdded")
        path = client.create(inside, conf)
        now = client.get_all(path)
        told = applet.pending_signals()
        ((_, interfaces),) = body_of(told, "InterfacesAdded")
        seen = {name: value for name, (_, value) in interfaces[TUNNEL].items()}
        for interface, changed, _invalidated in body_of(told, "PropertiesChanged"):
            assert interface == TUNNEL
            seen |= {name: value for name, (_, value) in changed.items()}
        assert seen == now
        assert client.get_all(path) == now
        assert applet.pending_signals() == []  # reading changes nothing
        client.tunnel(path, "Restart")
        restarted = client.get_all(path)
        seen = {}
        for _, changed, _ in body_of(applet.pending_signals(), "PropertiesChanged", path):
            seen |= {name: value for name, (_, value) in changed.items()}
        assert seen == {name: restarted[name] for name in ("State", "EnginePID", "RestartCount")}
