"""Namespaces and configurations that don't quite fit: what works, and what the errors say."""

import sys

import pytest

from support.bus import Client, DBusError
from support.daemon import Daemon
from support.namespaces import Namespace
from support.stage import Stage
from support.tunnels import reconfigure, tunnel

# Prints the errno of a UDP socket's connect().
CONNECT = """
import socket, sys
address = sys.argv[1]
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as s:
    print(s.connect_ex((address, 53)))
"""
NETWORK_UNREACHABLE = "101"


def conf(stage: Stage, addresses: str, networks: str = "0.0.0.0/0, ::/0", more: str = "") -> str:
    client, far = stage.clients[0], stage.far
    return f"""
        [Interface]
        PrivateKey = {client.private_key}
        Address = {addresses}
        {more}
        [Peer]
        PublicKey = {far.public_key}
        PresharedKey = {client.preshared_key}
        Endpoint = {far.endpoint_v4}
        AllowedIPs = {networks}
        """


def refusal(client: Client, inside: Namespace, text: str) -> str:
    with pytest.raises(DBusError) as refused:
        client.create(inside, text)
    assert set(inside.links()) <= {"lo", "other", "far"}
    return refused.value.message


@pytest.fixture
def other(inside: Namespace) -> str:
    """Another interface, as slirp4netns makes one."""
    inside.check("ip", "link", "add", "other", "type", "veth", "peer", "name", "far")
    inside.check("ip", "link", "set", "far", "up")
    inside.check("ip", "address", "add", "10.0.2.100/24", "dev", "other")
    inside.check("ip", "address", "add", "fd00:2::100/64", "dev", "other", "nodad")
    inside.check("ip", "link", "set", "other", "up")
    return "other"


def test_an_ipv6_address_can_be_used_at_once(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage
) -> None:
    with tunnel(client, inside, stage.conf(0)):
        assert "tentative" not in inside.check("ip", "-6", "address", "show", "dev", "wg0")
    with tunnel(client, inside, stage.conf(0)) as path:
        added = stage.conf(0).replace("Address = ", "Address = 2001:db8:1::77/64, ")
        reconfigure(client, path, added)
        assert "tentative" not in inside.check("ip", "-6", "address", "show", "dev", "wg0")


@pytest.mark.parametrize(
    ("addresses", "target"), [("ipv4", "2001:db8:9::1"), ("ipv6", "192.0.2.9")]
)
def test_without_an_address_of_a_version_connects_fail_at_once(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage, addresses: str, target: str
) -> None:
    with tunnel(client, inside, conf(stage, getattr(stage.clients[0], addresses))) as path:
        assert inside.check(sys.executable, "-c", CONNECT, target).strip() == NETWORK_UNREACHABLE
        inside.check("ping", "-n", "-c1", "-W10", getattr(stage.far, addresses))
        both = f"{stage.clients[0].ipv4}/24, {stage.clients[0].ipv6}/64"
        reconfigure(client, path, conf(stage, both))
        assert inside.check(sys.executable, "-c", CONNECT, target).strip() == "0"
        reconfigure(client, path, conf(stage, getattr(stage.clients[0], addresses)))
        assert inside.check(sys.executable, "-c", CONNECT, target).strip() == NETWORK_UNREACHABLE


def test_what_has_no_address_must_not_leave_another_way(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage, other: str
) -> None:
    inside.check(
        "ip", "route", "add", "default", "via", "fd00:2::2", "dev", other, "metric", "2048"
    )
    only_ipv4 = conf(stage, f"{stage.clients[0].ipv4}/24", "198.51.100.0/24, 2001:db8:1::/64")
    assert refusal(client, inside, only_ipv4) == (
        "InvalidConfig: AllowedIPs: 2001:db8:1::/64: there is no IPv6 Address, and the namespace "
        f"has a route via fd00:2::2 dev {other}, by which such packets would leave outside the "
        "tunnel: expected an Address, no such route, or other AllowedIPs"
    )
    with tunnel(client, inside, only_ipv4, ignore=("as", ["IPv6"])):
        inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv4)


def test_a_namespace_without_ipv6(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage
) -> None:
    inside.check("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")
    text = refusal(client, inside, stage.conf(0))
    assert text == (
        f"InvalidConfig: Address {stage.clients[0].ipv6}/64: IPv6 is off in the namespace "
        "(net.ipv6.conf.wg0.disable_ipv6 = 1): expected it on, no IPv6 Address, or the option "
        "ignore=['IPv6']"
    )
    with tunnel(client, inside, stage.conf(0), ignore=("as", ["IPv6"])) as path:
        inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv4)
        assert client.get(path, "Addresses") == [f"{stage.clients[0].ipv4}/24"]
        with pytest.raises(DBusError, match="IPv6 is off in the namespace"):
            reconfigure(client, path, stage.conf(0))
        inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv4)


def test_a_namespace_that_has_a_default_route(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage, other: str
) -> None:
    inside.check("ip", "route", "add", "default", "via", "10.0.2.2", "dev", other)
    assert refusal(client, inside, stage.conf(0)) == (
        "TunFailed: route 0.0.0.0/0 dev wg0: File exists: the namespace has one via 10.0.2.2 dev "
        f"{other}: delete that, or write 'Table = off' and set routes yourself"
    )
    with tunnel(client, inside, stage.conf(0, Table="off")):
        inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv4)


def test_a_name_server_in_nobodys_allowed_ips(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage
) -> None:
    text = conf(stage, f"{stage.clients[0].ipv4}/24", "198.51.100.0/24", "DNS = 1.1.1.1")
    warning = "InvalidConfig: DNS: 1.1.1.1: in nobody's AllowedIPs, so no query gets there"
    with tunnel(client, inside, text) as path:
        assert client.get(path, "LastError")[1].startswith(warning)
        assert client.get(path, "State") == "up"


def test_an_endpoint_that_is_ipv4_mapped(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage
) -> None:
    address, _, port = stage.far.endpoint_v4.partition(":")
    with tunnel(client, inside, stage.conf(0, f"[::ffff:{address}]:{port}")) as path:
        inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv4)
        assert client.peers(path)[stage.far.public_key]["endpoint"] == stage.far.endpoint_v4
