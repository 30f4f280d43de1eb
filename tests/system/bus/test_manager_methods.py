"""The Manager's methods; busctl and gdbus can call them, too."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields

from support import rawbus
from support.bus import MANAGER, NAME, NO_LIMIT, ROOT, TUNNEL, Client, DBusError, busctl, gdbus_call
from support.buses import ON_BOTH
from support.configs import Secrets
from support.daemon import Daemon
from support.fds import memfd, opened
from support.namespaces import Namespace
from support.rawbus import Raw

pytestmark = ON_BOTH


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
    assert shown.pop("Forwards") == []
    assert set(shown) == set(client.get_all(path))
    assert (shown["Name"], shown["Dns"]) == ("one", ["lan"])
    assert shown["NetnsId"] == list(inside.id)
    (peer,) = shown["Peers"].values()
    assert peer == next(iter(client.peers(path).values()))
    assert described["MaxTunnels"] > 0
    assert re.fullmatch(r"\d+\.\d+\..+", described["EngineVersion"])


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


@pytest.mark.parametrize(
    ("signature", "value"),
    [
        ("u", 7),
        ("ay", b"abc"),
        ("(tv)", (7, ("as", ["a", "b"]))),
        ("a{s(ov)}", {"a": ("/a", ("g", "a{sv}"))}),
    ],
)
def test_a_header_field_of_the_future_is_ignored(
    client: Client, daemon: Daemon, signature: str, value: Any
) -> None:
    fields = [
        (rawbus.PATH, "o", ROOT),
        (77, signature, value),
        (rawbus.INTERFACE, "s", MANAGER),
        (rawbus.MEMBER, "s", "GetTunnel"),
        (rawbus.DESTINATION, "s", NAME),
    ]
    call = Raw(fields=fields, signature="s", body=["nobody"])
    serial = next(client.connection.outgoing_serial)
    call.send(client.connection.sock, call.data(serial))
    fields_of_reply: dict[Any, Any] = {}
    while fields_of_reply.get(HeaderFields.reply_serial) != serial:
        reply = client.connection.receive(timeout=10)
        fields_of_reply = reply.header.fields
    assert reply.body == ("NoSuchTunnel: no tunnel named 'nobody'",)
