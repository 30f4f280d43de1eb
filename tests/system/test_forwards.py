"""Forwards over the bus: how they come, serve and go. tests/unit/gateway has the protocols."""

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.bus import OBJECT_MANAGER, ROOT, Client, DBusError
from support.capture import Capture
from support.daemon import Daemon
from support.fds import memfd
from support.forwards import (
    FORWARD,
    add_forward,
    connect,
    counters,
    echo,
    gateways,
    host_server,
    listening,
    port_of,
    receive,
    remove_forward,
    socks5,
)
from support.namespaces import Namespace
from support.processes import wait_for
from support.sockets import name_server, servers
from support.stage import Control, Stage
from support.tunnels import reconfigure, tunnel

LOCAL = "127.0.0.1"
ANY = ["127.0.0.1:0"]
DNS = "198.51.100.53"


@pytest.fixture
def path(daemon: Daemon, client: Client, inside: Namespace, stage: Stage) -> Iterator[str]:
    conf = stage.conf(0, DNS=DNS)
    yield client.create(inside, conf, name="office", lifetime="persistent")
    daemon.close_tunnels()
    assert gateways() == servers() == set()


@pytest.fixture
def target(stage: Stage) -> str:
    """The far end's echo."""
    return f"{stage.far.ipv4}:{stage.far.echo_port}"


# ---------------------------------------------------------------- the kinds


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_local_by_tcp(client: Client, path: str, stage: Stage, family: str) -> None:
    host = f"[{stage.far.ipv6}]" if family == "ipv6" else stage.far.ipv4
    forward = add_forward(
        client, path, kind="local", listen=ANY, target=f"{host}:{stage.far.echo_port}"
    )
    with connect((LOCAL, port_of(client, forward))) as one:
        echo(one)
        echo(one, bytes(1 << 20))
        seen = counters(client, forward)
    size = len(b"through the tunnel") + (1 << 20)
    assert seen | {"bytes_in": size, "bytes_out": size} == seen
    assert (seen["open"], seen["total"], seen["refused"], seen["failed"]) == (1, 1, 0, 0)


def test_local_by_udp(client: Client, path: str, inside: Namespace) -> None:
    """To a name server, which answers with what it was asked."""
    options: dict[str, Any] = {"protocol": "udp", "listen": ["[::1]:0"], "target": f"{DNS}:53"}
    forward = add_forward(client, path, kind="local", **options)
    question = b"\0\1\0\0\1\0\0\0\0\0\0\4host\0\0\1\0\1"  # for A
    with (
        name_server(inside, DNS, "198.51.100.7"),
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
    ):
        sender.settimeout(30)
        sender.connect(("::1", port_of(client, forward)))
        for number in b"ab":
            sender.send(bytes([number]) + question)
            answer = sender.recv(2000)
            assert (answer[0], answer[-4:]) == (number, bytes([198, 51, 100, 7]))


def test_local_on_a_unix_socket(client: Client, path: str, target: str, tmp_path: Path) -> None:
    place = tmp_path / "socket"
    forward = add_forward(client, path, kind="local", listen=[f"unix:{place}"], target=target)
    assert listening(client, forward) == [f"unix:{place}"]
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    with connect(str(place)) as one:
        echo(one)
    remove_forward(client, forward)
    assert not place.exists()


@pytest.mark.parametrize("to", ["ipv4", "ipv6", "unix"])
def test_remote(client: Client, path: str, inside: Namespace, tmp_path: Path, to: str) -> None:
    family = socket.AF_INET6 if to == "ipv6" else socket.AF_INET
    place = str(tmp_path / "server") if to == "unix" else ""
    with host_server(family, place) as (host, port):
        target = (
            f"unix:{place}" if place else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        )
        forward = add_forward(client, path, kind="remote", listen=["7007"], target=target)
        addresses = [address.partition("/")[0] for address in client.get(path, "Addresses")]
        assert listening(client, forward) == [
            f"[{each}]:7007" if ":" in each else f"{each}:7007" for each in addresses
        ]
        for address in addresses:
            assert inside.check(sys.executable, "-c", KNOCK, address, "7007") == "knock"
        remove_forward(client, forward)
        refused = inside.run(sys.executable, "-c", KNOCK, addresses[0], "7007")
        assert "ConnectionRefusedError" in refused.stderr


KNOCK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as connection:
    connection.sendall(b"knock")
    print(connection.recv(5).decode(), end="")
"""


def test_remote_with_the_client_s_address(
    client: Client, path: str, inside: Namespace, stage: Stage
) -> None:
    with socket.create_server((LOCAL, 0)) as server:
        target = f"{LOCAL}:{server.getsockname()[1]}"
        options: dict[str, Any] = {"listen": ["0"], "target": target, "proxy_protocol": True}
        forward = add_forward(client, path, kind="remote", **options)
        port = listening(client, forward)[0].rpartition(":")[2]
        knocks = inside.popen(sys.executable, "-c", KNOCK, stage.clients[0].ipv4, port)
        connection, _ = server.accept()
        with connection:
            header = receive(connection, 28)
            assert header[:12] == b"\r\n\r\n\0\r\nQUIT\n"
            assert socket.inet_ntoa(header[16:20]) == stage.clients[0].ipv4
            assert receive(connection, 5) == b"knock"
        knocks.wait(30)


def test_a_proxy(client: Client, path: str, stage: Stage, inside: Namespace) -> None:
    forward = add_forward(client, path, kind="proxy", listen=ANY)
    proxy = (LOCAL, port_of(client, forward))
    with socks5(proxy, stage.far.ipv4, stage.far.echo_port) as connection:
        echo(connection)
    with name_server(inside, DNS, stage.far.ipv4):
        with socks5(proxy, "echo.example", stage.far.echo_port) as connection:
            echo(connection)
        with connect(proxy) as connection:
            place = f"echo.example:{stage.far.echo_port}"
            connection.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
            assert receive(connection, 12) == b"HTTP/1.1 200"


def test_no_look_up_of_a_proxy_is_seen_on_the_host(
    daemon: Daemon, client: Client, inside: Namespace, control: Control, stage: Stage
) -> None:
    """The tunnel's name server is at the far end, where nobody answers."""
    conf = stage.conf(0, DNS=stage.far.ipv4)
    name = "confidential-name"
    with (
        Capture(control, name.encode()) as capture,
        tunnel(client, inside, conf, lifetime="persistent") as path,
    ):
        place = (LOCAL, port_of(client, add_forward(client, path, kind="proxy", listen=ANY)))
        with pytest.raises(AssertionError, match=r"x05\\x04"):  # host unreachable
            socks5(place, f"{name}.example", 80)
        seen = capture.finish()
    assert sum(seen.encrypted.values()) > 0
    # The client's own request, by loopback.
    assert {leak.interface for leak in seen.leaks} <= {"lo"}
    assert not [leak for leak in seen.leaks if 53 in leak.ports]


def test_a_proxy_with_credentials(client: Client, path: str, stage: Stage, daemon: Daemon) -> None:
    with memfd("me:s3cret\nyou:other\n") as lines:
        forward = add_forward(client, path, kind="proxy", listen=ANY, credentials=("h", lines))
    assert client.get(forward, "Users", FORWARD) == ["me", "you"]
    proxy = (LOCAL, port_of(client, forward))
    for password, answer in (("s3cret", b"\1\0"), ("wrong", b"\1\1")):
        with connect(proxy) as connection:
            connection.sendall(b"\5\1\2")
            assert receive(connection, 2) == b"\5\2"
            connection.sendall(b"\1\2me" + bytes([len(password)]) + password.encode())
            assert receive(connection, 2)[1] == answer[1]
    assert counters(client, forward)["refused"] == 1
    assert "s3cret" not in client.manager("Describe") + daemon.log


def test_a_listener_that_is_passed(client: Client, path: str, target: str) -> None:
    with socket.create_server((LOCAL, 0)) as passed:
        port = passed.getsockname()[1]
        forward = add_forward(
            client, path, kind="local", listeners=("ah", [passed.fileno()]), target=target
        )
    assert listening(client, forward) == [f"{LOCAL}:{port}"]
    with connect((LOCAL, port)) as one:
        echo(one)
    remove_forward(client, forward)
    with pytest.raises(ConnectionRefusedError):
        connect((LOCAL, port))


# ---------------------------------------------------------------- how they are seen


def test_objects(client: Client, path: str, target: str) -> None:
    client.subscribe(interface=OBJECT_MANAGER)
    forward = add_forward(client, path, kind="local", listen=ANY, target=target)
    assert forward == f"{path}/forward/1"
    (seen, interfaces) = client.next_signal("InterfacesAdded").body
    assert (seen, set(interfaces)) == (forward, {FORWARD})
    shown = client.get_all(forward, FORWARD)
    port = port_of(client, forward)
    assert shown == {
        "Tunnel": path,
        "Id": "1",
        "Kind": "local",
        "Protocol": "tcp",
        "Listening": [f"{LOCAL}:{port}"],
        "Target": target,
        "Access": "user",
        "Users": [],
        "ProxyProtocol": False,
        "IdleUSec": 0,
        "ConnectUSec": 30_000_000,
        "Counters": dict.fromkeys(shown["Counters"], 0),
    }
    managed = client.call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
    assert managed[forward][FORWARD]["Listening"] == ("as", [f"{LOCAL}:{port}"])
    remove_forward(client, forward)
    assert client.next_signal("InterfacesRemoved").body == (forward, [FORWARD])
    with pytest.raises(DBusError) as gone:
        remove_forward(client, forward)
    assert gone.value.short_name == "UnknownObject"
    assert gateways() == set()
    assert add_forward(client, path, kind="proxy", listen=ANY) == f"{path}/forward/2"


def test_they_go_with_the_tunnel(
    client: Client, path: str, target: str, inside: Namespace, tmp_path: Path
) -> None:
    place = tmp_path / "socket"
    listen = [*ANY, f"unix:{place}"]
    forward = add_forward(client, path, kind="local", listen=listen, target=target)
    address = listening(client, forward)[0].rpartition(":")
    port = int(address[2])
    with connect((LOCAL, port)) as one:
        echo(one)
        client.subscribe(interface=OBJECT_MANAGER)
        inside.check("ip", "link", "delete", "wg0")
        wait_for(lambda: client.tunnels() == [], "the tunnel has ended")
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(1) == b""
    removed = [s.body[0] for s in client.pending_signals() if s.body[0] in (forward, path)]
    assert removed == [forward, path]
    assert not place.exists()
    with pytest.raises(ConnectionRefusedError):
        connect((LOCAL, port))


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({}, "InvalidArgs", "option 'kind': expected"),
        ({"kind": "both"}, "InvalidArgs", "option 'kind': 'both': expected"),
        ({"kind": "proxy", "colour": "red"}, "InvalidArgs", "unknown option 'colour'"),
        ({"kind": "proxy", "listen": "x"}, "InvalidArgs", "option 'listen': expected type as"),
        ({"kind": "proxy"}, "InvalidArgs", "option 'listen': expected either"),
        ({"kind": "proxy", "listen": ["1080"]}, "InvalidArgs", "'1080': expected '127.0.0.1:PORT'"),
        ({"kind": "proxy", "listen": ["127.0.0.1:70000"]}, "InvalidArgs", "expected '127.0.0.1"),
        ({"kind": "proxy", "listen": ["unix:x"]}, "InvalidArgs", "expected an absolute path"),
        ({"kind": "proxy", "listen": ["unix:/no/such/x"]}, "InvalidArgs", "No such file"),
        ({"kind": "proxy", "listen": ["0.0.0.0:0"]}, "InvalidArgs", "other machines can connect"),
        ({"kind": "proxy", "listen": ["[::]:0"]}, "InvalidArgs", "or access 'anyone'"),
        ({"kind": "proxy", "listen": ANY, "target": "x:1"}, "InvalidArgs", "option 'target'"),
        ({"kind": "local", "listen": ANY}, "InvalidArgs", "option 'target': expected"),
        ({"kind": "local", "listen": ANY, "target": "x"}, "InvalidArgs", "target"),
        (
            {"kind": "local", "listen": ANY, "target": "x:1", "proxy_protocol": True},
            "InvalidArgs",
            "",
        ),
        ({"kind": "remote", "listen": ["x"], "target": "x:1"}, "InvalidArgs", "listen: 'x'"),
        ({"kind": "remote", "listen": ["192.0.2.99:80"], "target": "x:1"}, "InvalidArgs", "assign"),
        ({"kind": "proxy", "listen": ANY, "connect_usec": ("t", 0)}, "InvalidArgs", "more than 0"),
    ],
)
def test_refused(
    client: Client, path: str, options: dict[str, Any], error: str, expected: str
) -> None:
    with pytest.raises(DBusError) as refused:
        add_forward(client, path, **options)
    assert (refused.value.short_name, expected in refused.value.message) == (error, True), str(
        refused.value
    )
    assert gateways() == set()


def test_anyone_on_any_address_if_that_is_said(client: Client, path: str, target: str) -> None:
    options: dict[str, Any] = {"kind": "local", "listen": ["0.0.0.0:0"], "target": target}
    forward = add_forward(client, path, access="anyone", **options)
    with connect((LOCAL, port_of(client, forward))) as one:
        echo(one)


def test_an_address_in_use(client: Client, path: str, target: str, tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("mine")
    first = add_forward(client, path, kind="local", listen=ANY, target=target)
    taken = listening(client, first)
    for listen in (taken, [f"unix:{place}"]):
        wanted = [*ANY, f"unix:{tmp_path}/begun", *listen]
        with pytest.raises(DBusError) as refused:
            add_forward(client, path, kind="proxy", listen=wanted)
        assert refused.value.short_name == "AlreadyExists"
        assert not (tmp_path / "begun").exists()
    assert place.read_text() == "mine"
    with connect((LOCAL, int(taken[0].rpartition(":")[2]))) as one:
        echo(one)


def test_a_socket_that_a_killed_daemon_left(
    client: Client, path: str, target: str, tmp_path: Path
) -> None:
    place = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place))
    forward = add_forward(client, path, kind="local", listen=[f"unix:{place}"], target=target)
    with connect(str(place)) as one:
        echo(one)
    remove_forward(client, forward)


def test_listeners_that_are_none(client: Client, path: str, tmp_path: Path) -> None:
    with (
        socket.socket() as unbound,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.create_server(("0.0.0.0", 0)) as exposed,
        (tmp_path / "file").open("w") as file,
    ):
        for each in (unbound, datagrams, exposed, file):
            with pytest.raises(DBusError) as refused:
                add_forward(client, path, kind="proxy", listeners=("ah", [each.fileno()]))
            assert refused.value.short_name == "InvalidArgs"
    assert gateways() == set()


def test_not_for_lifetime_namespace(
    client: Client, daemon: Daemon, inside: Namespace, stage: Stage
) -> None:
    with tunnel(client, inside, stage.conf(0)) as path:
        with pytest.raises(DBusError, match=r"lifetime 'namespace'") as refused:
            add_forward(client, path, kind="proxy", listen=ANY)
        assert refused.value.short_name == "InvalidArgs"
        assert gateways() == servers() == set()


def test_as_many_as_the_limit_allows(client: Client, path: str) -> None:
    for _ in range(32):
        add_forward(client, path, kind="proxy", listen=ANY)
    with pytest.raises(DBusError, match=r"32 forwards already") as refused:
        add_forward(client, path, kind="proxy", listen=ANY)
    assert refused.value.short_name == "LimitExceeded"


# ---------------------------------------------------------------- what they outlive


def test_reconfigure(client: Client, path: str, stage: Stage, target: str) -> None:
    """Streams stay; name servers, and the addresses in the tunnel, are the new ones."""
    forward = add_forward(client, path, kind="local", listen=ANY, target=target)
    published = add_forward(client, path, kind="remote", listen=["7007"], target="127.0.0.1:9")
    before = listening(client, published)
    client.subscribe(member="PropertiesChanged", path=published)
    with connect((LOCAL, port_of(client, forward))) as one:
        echo(one)
        new = stage.conf(0).replace("Address = ", "Address = 10.99.0.1/32, ")
        reconfigure(client, path, new)
        echo(one)
    expected = ["10.99.0.1:7007", *before]
    assert client.next_signal("PropertiesChanged").body[1] == {"Listening": ("as", expected)}
    assert listening(client, published) == expected


def test_an_engine_s_death(client: Client, path: str, target: str) -> None:
    forward = add_forward(client, path, kind="local", listen=ANY, target=target)
    with connect((LOCAL, port_of(client, forward))) as one:
        echo(one)
        client.tunnel(path, "Restart")
        echo(one)


def test_the_socket_server_s_death(client: Client, path: str, target: str) -> None:
    forward = add_forward(client, path, kind="local", listen=ANY, target=target)
    address = (LOCAL, port_of(client, forward))
    with connect(address) as stays:
        echo(stays)
        for _ in range(3):
            (server,) = wait_for(servers, "a socket server runs")
            os.kill(server, 9)
            with connect(address) as one:
                echo(one)
            wait_for(lambda old=server: servers() - {old}, "another one runs")
        echo(stays)
