"""The bus contract at run time, through clients that know only what D-Bus itself promises."""

import json
import os
import re
import subprocess
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields, Message

from support.bus import (
    MANAGER,
    NAME,
    NO_LIMIT,
    OBJECT_MANAGER,
    PROPERTIES,
    ROOT,
    TUNNEL,
    Bus,
    Client,
    DBusError,
    busctl,
    gdbus,
    gdbus_call,
)
from support.configs import Secrets, key
from support.daemon import Daemon
from support.fds import memfd, opened
from support.namespaces import Namespace
from support.processes import wait_for

CONTRACT = Path(__file__).parents[2] / "contrib/dbus"
DBUS = "org.freedesktop.DBus"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
FAR, FAR_PSK = key(), key()


@pytest.fixture
def conf() -> str:
    return Secrets().conf("Address = 10.9.0.2/24, fd00::2/64\nDNS = 10.9.0.1, lan\nMTU = 1400")


@pytest.fixture
def tunnel(daemon: Daemon, client: Client, inside: Namespace, conf: str) -> Iterator[str]:
    path = client.create(inside, conf, name="one")
    yield path
    daemon.close_tunnels()


def body_of(signals: list[Message], member: str, path: str | None = None) -> list[Any]:
    return [
        s.body
        for s in signals
        if s.header.fields[HeaderFields.member] == member
        and path in (None, s.header.fields[HeaderFields.path])
    ]


# ---------------------------------------------------------------- introspection


def shape(text: str) -> dict[str, Any]:
    """Of each interface its members with their arguments and annotations."""
    return {
        interface.attrib["name"]: {
            (member.tag, member.attrib["name"]): (
                member.attrib,
                [(part.tag, part.attrib) for part in member],
            )
            for member in interface
        }
        for interface in ElementTree.fromstring(text).iter("interface")
    }


@pytest.mark.parametrize("interface", [MANAGER, TUNNEL])
def test_introspection_is_the_contract(client: Client, tunnel: str, interface: str) -> None:
    path = ROOT if interface == MANAGER else tunnel
    contract = (CONTRACT / f"{interface}.xml").read_text()
    served = client.call(path, INTROSPECTABLE, "Introspect")
    assert shape(served)[interface] == shape(contract)[interface]
    verbatim = re.search(r"<interface.*</interface>", contract, re.DOTALL)
    assert verbatim
    assert verbatim[0] in served
    others = {"Peer", "Introspectable", "Properties"} | (
        {"ObjectManager"} if path == ROOT else set()
    )
    assert set(shape(served)) == {interface, *(f"org.freedesktop.DBus.{each}" for each in others)}


def test_properties_are_those_of_the_contract(client: Client, tunnel: str) -> None:
    for path, interface in ((ROOT, MANAGER), (tunnel, TUNNEL)):
        variants = client.call(path, PROPERTIES, "GetAll", "s", (interface,))
        members = shape((CONTRACT / f"{interface}.xml").read_text())[interface]
        types = {
            name: attributes["type"]
            for (kind, name), (attributes, _) in members.items()
            if kind == "property"
        }
        assert {name: signature for name, (signature, _) in variants.items()} == types
        for name, variant in variants.items():
            if name != "Peers":  # whose counters may move
                assert client.call(path, PROPERTIES, "Get", "ss", (interface, name)) == variant
                assert client.call(path, PROPERTIES, "Get", "ss", ("", name)) == variant


def test_gdbus_finds_its_way(daemon: Daemon, tunnel: str) -> None:
    shown = gdbus(
        daemon.address,
        *("introspect", "--session", "--dest", NAME, "--object-path", "/", "--recurse"),
    )
    assert f"node {ROOT} " in shown
    assert f"node {tunnel} " in shown
    assert "readonly s State = 'up';" in shown


def test_busctl_finds_its_way(daemon: Daemon, tunnel: str) -> None:
    command = ["busctl", f"--address={daemon.address}", "tree", "--list", NAME]
    tree = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert tree.split() == ["/", "/org", ROOT, f"{ROOT}/tunnel", tunnel]
    state = busctl(daemon.address, "get-property", NAME, tunnel, TUNNEL, "State")
    assert state == {"type": "s", "data": "up"}


def test_every_object_answers_a_ping(client: Client, tunnel: str) -> None:
    machine = Path("/etc/machine-id").read_text().strip()
    for path in (ROOT, tunnel):
        assert client.call(path, "org.freedesktop.DBus.Peer", "Ping") is None
        assert client.call(path, "org.freedesktop.DBus.Peer", "GetMachineId") == machine


# ---------------------------------------------------------------- objects and properties


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
            path = client.create(inside, conf)
            client.close_tunnel(path)
            seen = ""
            for line in monitor.stdout:
                seen += line
                if "InterfacesRemoved" in line:
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


# ---------------------------------------------------------------- the Manager's methods


def test_tunnels_are_found(
    client: Client, daemon: Daemon, tunnel: str, inside: Namespace, namespace: Any
) -> None:
    other = client.create(namespace(), Secrets().conf(), name="an-other")
    assert client.tunnels() == [("one", tunnel, "up"), ("an-other", other, "up")]
    assert client.manager("GetTunnel", "s", "one") == tunnel
    assert client.manager("GetTunnel", "s", "an-other") == other
    for path in (inside.path, f"/proc/{inside.pid}/task/{inside.pid}/ns/net"):
        with opened(path) as fd:
            assert client.manager("GetTunnelByNetns", "h", fd) == tunnel
            by_gdbus = gdbus_call(
                daemon.address, ROOT, f"{MANAGER}.GetTunnelByNetns", str(fd), fds=[fd]
            )
            assert by_gdbus == f"(objectpath '{tunnel}',)\n"


def test_a_namespace_without_a_tunnel(client: Client, tunnel: str, namespace: Any) -> None:
    with opened(namespace().path) as fd, pytest.raises(DBusError, match="NoSuchTunnel"):
        client.manager("GetTunnelByNetns", "h", fd)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("a", "a"),
        ("A9", "A9"),
        ("9a", "_39a"),
        ("a-b_c.d@e", "a_2db_5fc_2ed_40e"),
        ("a" * 48, "a" * 48),
        ("2d", "_32d"),
    ],
)
def test_a_name_is_escaped_in_the_path(
    client: Client, daemon: Daemon, inside: Namespace, name: str, label: str
) -> None:
    path = client.create(inside, Secrets().conf(), name=name)
    assert path == f"{ROOT}/tunnel/{label}"
    assert client.get(path, "Name") == name
    assert client.manager("GetTunnel", "s", name) == path


def test_without_a_name_the_namespaces_number_is_it(
    client: Client, daemon: Daemon, inside: Namespace
) -> None:
    path = client.create(inside, Secrets().conf())
    assert path == f"{ROOT}/tunnel/ns{inside.id[1]}"


def test_the_options_of_create(client: Client, daemon: Daemon, inside: Namespace) -> None:
    path = client.create(
        inside,
        Secrets().conf("Address = 10.9.0.2\nPostUp = touch /tmp/never\nTable = 7"),
        interface="wg-1.a=b+c",
        mtu=("u", 1290),
        wait="up",
        timeout_usec=("t", NO_LIMIT),
        ignore=["PostUp", "table"],
    )
    assert client.get(path, "Interface") == "wg-1.a=b+c"
    assert inside.links()["wg-1.a=b+c"]["mtu"] == client.get(path, "Mtu") == 1290
    assert not Path("/tmp/never").exists()


def test_describe_has_all_and_no_secret(client: Client, daemon: Daemon, inside: Namespace) -> None:
    secrets = Secrets()
    path = client.create(inside, secrets.conf("Address = 10.9.0.2/24\nDNS = lan"), name="one")
    text = client.manager("Describe")
    secrets.assert_hidden_in(text)
    described = json.loads(text)
    (shown,) = described.pop("tunnels")
    assert described == client.get_all(ROOT, MANAGER)
    assert set(shown) == set(client.get_all(path))
    assert (shown["Name"], shown["Dns"]) == ("one", ["lan"])
    assert shown["NetnsId"] == list(inside.id)
    (peer,) = shown["Peers"].values()
    assert peer == next(iter(client.peers(path).values()))
    assert described["MaxTunnels"] > 0
    assert re.fullmatch(r"\d+\.\d+\..+", described["EngineVersion"])


# ---------------------------------------------------------------- the Tunnel's methods


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
        ("restarting", "up", "asked for"),
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
    before = daemon.footprint()
    returned = client.tunnel(tunnel, "OpenNetns")
    try:
        status = os.fstat(returned.fileno())
        assert (status.st_dev, status.st_ino) == inside.id
    finally:
        returned.close()
    wait_for(lambda: daemon.footprint() == before, "the daemon keeps no copy")


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


def test_one_who_waits_and_leaves(client: Client, bus: Bus, tunnel: str) -> None:
    with Client(bus.address) as leaver:
        wait = (["failed"], NO_LIMIT)
        leaver.connection.send(leaver.message(tunnel, TUNNEL, "WaitForState", "ast", wait))
    client.tunnel(tunnel, "Restart")
    client.close_tunnel(tunnel)


def test_a_script_without_descriptors(
    daemon: Daemon, client: Client, inside: Namespace, conf: str, tmp_path: Path
) -> None:
    """From creating to closing by busctl alone, as on Debian 12."""
    config = tmp_path / "wg.conf"
    config.touch(mode=0o600)
    config.write_text(conf)

    def call(path: str, interface: str, *arguments: str) -> Any:
        return busctl(daemon.address, "call", NAME, path, interface, *arguments)

    create = ("CreateTunnelFromPaths", "ssa{sv}", inside.path, str(config))
    options = ("2", "name", "s", "by-busctl", "mtu", "u", "1300")
    (path,) = call(ROOT, MANAGER, *create, *options)["data"]
    assert call(ROOT, MANAGER, "GetTunnel", "s", "by-busctl") == {"type": "o", "data": [path]}
    assert call(path, TUNNEL, "WaitForState", "ast", "1", "up", "0")["data"] == ["up"]
    assert inside.links()["wg0"]["mtu"] == 1300
    call(path, TUNNEL, "Restart")
    call(path, TUNNEL, "Close")
    assert client.tunnels() == []


def test_gdbus_creates_from_a_descriptor(
    daemon: Daemon, client: Client, inside: Namespace, conf: str
) -> None:
    with opened(inside.path) as netns, memfd(conf) as config:
        created = gdbus_call(
            daemon.address,
            ROOT,
            f"{MANAGER}.CreateTunnel",
            *(str(netns), str(config), "{'name': <'by-gdbus'>, 'mtu': <uint32 1300>}"),
            fds=[netns, config],
        )
    assert created == f"(objectpath '{ROOT}/tunnel/by_2dgdbus',)\n"
    assert client.get(f"{ROOT}/tunnel/by_2dgdbus", "Mtu") == 1300
