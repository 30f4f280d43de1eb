"""Resolve: a look-up by the tunnel's name servers, and by no others."""

import socket
from collections.abc import Iterator

import pytest

from support.bus import Client, DBusError
from support.capture import Capture
from support.daemon import Daemon
from support.namespaces import Namespace
from support.sockets import name_server
from support.stage import Control, Stage
from support.tunnels import reconfigure, tunnel

SERVER = "198.51.100.53"
ANSWER = "198.51.100.7"


def resolve(client: Client, path: str, name: str, family: int = socket.AF_UNSPEC) -> list[str]:
    return list(client.tunnel(path, "Resolve", "si", name, family))


@pytest.fixture(params=["namespace", "persistent"])
def path(
    request: pytest.FixtureRequest, daemon: Daemon, client: Client, inside: Namespace, stage: Stage
) -> Iterator[str]:
    conf = stage.conf(0, DNS=f"{SERVER}, corp.example")
    with tunnel(client, inside, conf, lifetime=request.param) as created:
        yield created


def test_by_the_servers_of_the_configuration(client: Client, path: str, inside: Namespace) -> None:
    with name_server(inside, SERVER, ANSWER) as server:
        assert resolve(client, path, "host.example") == [ANSWER]
        assert resolve(client, path, "host", socket.AF_INET) == [ANSWER]
        with pytest.raises(DBusError) as none:
            resolve(client, path, "host.example", socket.AF_INET6)
        assert server.stdout
        server.terminate()
        asked = server.stdout.read().split()
    assert none.value.short_name == "Unresolved"
    assert set(asked) == {"host.example", "host.corp.example", "host.example.corp.example"}


def test_what_needs_no_server(client: Client, path: str) -> None:
    assert resolve(client, path, "192.0.2.7") == ["192.0.2.7"]
    assert resolve(client, path, "localhost", socket.AF_INET) == ["127.0.0.1"]


def test_errors_by_name(client: Client, path: str, stage: Stage, inside: Namespace) -> None:
    def error(name: str, family: int = 0) -> tuple[str, str]:
        with pytest.raises(DBusError) as refused:
            resolve(client, path, name, family)
        return refused.value.short_name, refused.value.message

    inside.check("ip", "address", "add", SERVER, "dev", "lo")  # where no name server runs
    assert error("host.example") == (
        "Unresolved",
        f"Unresolved: host.example: {SERVER}: Connection refused",
    )
    assert error("host.example", 1)[0] == "InvalidArgs"
    assert error("no host")[0] == "InvalidArgs"
    reconfigure(client, path, stage.conf(0, DNS="corp.example"))
    assert error("host.example")[0] == "NoNameServer"


def test_no_packet_of_it_is_seen_on_the_host(
    client: Client, daemon: Daemon, inside: Namespace, control: Control, stage: Stage
) -> None:
    """Asked of a name server at the far end, which answers that nobody is there."""
    name = "confidential-name"
    conf = stage.conf(0, DNS=stage.far.ipv4)
    with Capture(control, name.encode()) as capture, tunnel(client, inside, conf) as path:
        with pytest.raises(DBusError, match=r"Connection refused"):
            resolve(client, path, f"{name}.example")
        seen = capture.finish()
    assert sum(seen.encrypted.values()) > 0
    assert not seen.leaks
