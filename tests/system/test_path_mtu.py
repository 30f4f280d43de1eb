"""Paths that carry less than 1500 bytes: the tunnel's MTU follows, and nothing is lost."""

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from support.bus import Client
from support.daemon import Daemon
from support.namespaces import Namespace
from support.processes import wait_for
from support.stage import Control, Stage, keys
from support.transfer import TRANSFER
from support.tunnels import reconfigure, tunnel

FAMILIES = ["v4", "v6"]
PATIENCE = 20.0
"""Seconds for 20 MiB there and back, which take 1 s. They took minutes, if they arrived."""


# Sends so many bytes to the far end's discard, and prints how many it says have arrived.
UPLOAD = """
import socket, sys
with socket.create_connection((sys.argv[1], 9), timeout=60) as connection:
    connection.sendall(bytes(int(sys.argv[2])))
    connection.shutdown(socket.SHUT_WR)
    print(int.from_bytes(connection.recv(8), "big"))
"""


def transfer(inside: Namespace, stage: Stage) -> None:
    """Send 20 MiB there and back, through the tunnel."""
    far, port = stage.far.ipv4, str(stage.far.echo_port)
    command = sys.executable, "-c", TRANSFER, far, port, str(20 << 20)
    there, back = inside.check(*command, timeout=PATIENCE).split()
    assert there == back


def mtu(client: Client, path: str, inside: Namespace) -> int:
    """The interface's, which the property has to tell, too."""
    told = client.get(path, "Mtu")
    return int(told) if told == inside.links()["wg0"]["mtu"] else 0


@pytest.fixture
def our_far(control: Control) -> Iterator[None]:
    """A far end that does not lose what it sends: stock wireguard-go does, for the same reason."""
    control.far_engine("ours")
    yield
    control.far_engine("stock")


# ---------------------------------------------------------------- transfers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("carried", [1479, 1400, 1300])
@pytest.mark.parametrize("said", [{}, {"MTU": "1420"}], ids=["default", "1420"])
def test_a_path_that_is_too_small_costs_speed_not_the_transfer(
    daemon: Daemon,
    client: Client,
    inside: Namespace,
    stage: Stage,
    control: Control,
    our_far: None,
    family: str,
    carried: int,
    said: dict[str, str],
) -> None:
    control.path_mtu(carried)
    endpoint = getattr(stage.moving, f"endpoint_{family}")
    with tunnel(client, inside, stage.conf(0, endpoint, **said)):
        transfer(inside, stage)


@pytest.mark.parametrize("said", [{}, {"MTU": "1420"}], ids=["default", "1420"])
def test_a_path_that_shrinks_while_the_tunnel_is_up(
    daemon: Daemon,
    client: Client,
    inside: Namespace,
    stage: Stage,
    control: Control,
    our_far: None,
    said: dict[str, str],
) -> None:
    with tunnel(client, inside, stage.conf(0, stage.moving.endpoint_v4, **said)):
        transfer(inside, stage)
        for carried in (1400, 1380):
            control.path_mtu(carried)
            transfer(inside, stage)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_router_with_a_smaller_link(
    daemon: Daemon,
    client: Client,
    inside: Namespace,
    stage: Stage,
    control: Control,
    our_far: None,
    family: str,
) -> None:
    """It fragments IPv4 packets. Of IPv6 ones it tells the kernel, which tells the engine."""
    control.router(1400)
    with tunnel(client, inside, stage.conf(0, getattr(stage.moving, f"routed_{family}"))) as path:
        assert mtu(client, path, inside) == 1420
        transfer(inside, stage)
        expected = {"v4": 1420, "v6": 1320}[family]
        wait_for(lambda: mtu(client, path, inside) == expected, "the MTU follows")


def test_a_black_hole(
    daemon: Daemon,
    client: Client,
    inside: Namespace,
    stage: Stage,
    control: Control,
    our_far: None,
) -> None:
    """Such a router tells nothing. IPv4 packets have no DF, so it fragments them nevertheless."""
    control.router(1400, filtered=True)
    with tunnel(client, inside, stage.conf(0, stage.moving.routed_v4)) as path:
        transfer(inside, stage)
        assert client.get(path, "LastError") == ("", "")


def test_a_black_hole_over_ipv6(
    daemon: Daemon,
    client: Client,
    inside: Namespace,
    stage: Stage,
    control: Control,
    our_far: None,
) -> None:
    """Nobody can help that but TCP, which tries smaller segments after some seconds."""
    control.router(1400, filtered=True)
    with tunnel(client, inside, stage.conf(0, stage.moving.routed_v6)):
        inside.check("ping", "-n", "-c1", "-W10", "-s1000", stage.far.ipv4)
        assert inside.run("ping", "-n", "-c2", "-W2", "-s1390", stage.far.ipv4).returncode == 1
        inside.check("sh", "-c", "echo 1 >/proc/sys/net/ipv4/tcp_mtu_probing")
        upload = sys.executable, "-c", UPLOAD, stage.far.ipv4, str(1 << 20)
        assert inside.check(*upload, timeout=60).strip() == str(1 << 20)


# ---------------------------------------------------------------- the default


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_is_what_the_path_carries_less_80(
    daemon: Daemon,
    client: Client,
    inside: Namespace,
    stage: Stage,
    control: Control,
    family: str,
) -> None:
    endpoint = getattr(stage.moving, f"endpoint_{family}")
    for carried, expected in ((1440, 1360), (1400, 1320), (1300, 1280)):
        control.path_mtu(carried)
        with tunnel(client, inside, stage.conf(0, endpoint)) as path:
            assert mtu(client, path, inside) == expected


def test_without_ipv6_inside_it_may_be_smaller(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage, control: Control
) -> None:
    control.path_mtu(1300)
    conf = re.sub(r"(Address = \S+), .*", r"\1", stage.conf(0, stage.moving.endpoint_v4))
    with tunnel(client, inside, conf) as path:
        assert mtu(client, path, inside) == 1220


@pytest.mark.parametrize(
    ("said", "options"), [({"MTU": "1400"}, {}), ({}, {"mtu": ("u", 1400)})], ids=["file", "caller"]
)
def test_who_says_an_mtu_gets_it_and_is_told_once(
    daemon: Daemon,
    client: Client,
    inside: Namespace,
    stage: Stage,
    control: Control,
    said: dict[str, str],
    options: dict[str, Any],
) -> None:
    endpoint = stage.moving.endpoint_v4
    with tunnel(client, inside, stage.conf(0, endpoint, **said), **options) as path:
        assert client.get(path, "LastError") == ("", "")
        control.path_mtu(1440)
        wait_for(lambda: client.get(path, "LastError")[0], "the error")
        error = (
            "InvalidConfig: MTU: 1400 is too large for the path, which carries 1440: larger "
            f"packets than 1380 bytes go in fragments to {endpoint}: expected 1380 or less"
        )
        assert client.get(path, "LastError") == ("org.wg4netns1.Error.InvalidConfig", error)
        assert mtu(client, path, inside) == 1400


def test_it_follows_the_hosts_routes_without_traffic(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage, control: Control
) -> None:
    with tunnel(client, inside, stage.conf(0, stage.moving.endpoint_v6)) as path:
        for carried, expected in ((1440, 1360), (1400, 1320), (0, 1420)):
            client.subscribe(member="PropertiesChanged", path=path)
            control.path_mtu(carried)
            wait_for(lambda e=expected: mtu(client, path, inside) == e, "the MTU follows")
            changed = client.next_signal("PropertiesChanged").body[1]
            while "Mtu" not in changed:
                changed = client.next_signal("PropertiesChanged").body[1]
            assert changed["Mtu"][1] == expected


def test_an_endpoint_that_is_a_name(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage, control: Control
) -> None:
    control.path_mtu(1400)
    with tunnel(client, inside, stage.conf(0, "moving.test:51820")) as path:
        assert mtu(client, path, inside) == 1320


def test_the_far_end_moves_to_another_path(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage, control: Control
) -> None:
    control.path_mtu(1400)
    with tunnel(client, inside, stage.conf(0, stage.moving.endpoint_v4)) as path:
        inside.check("ping", "-n", "-c1", "-W10", stage.far.ipv4)
        control.far_move("192.0.3.77")
        far = ["ping", "-n", "-c1", "-W1", stage.far.ipv4]
        assert mtu(client, path, inside) == 1320

        def moved() -> bool:
            inside.run(*far)
            return mtu(client, path, inside) == 1420

        wait_for(moved, "the MTU follows")


def test_another_configuration(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage, control: Control
) -> None:
    control.path_mtu(1400)
    small, large = stage.moving.endpoint_v4, stage.far.endpoint_v4
    with tunnel(client, inside, stage.conf(0, large)) as path:
        for conf, expected in (
            (stage.conf(0, small), 1320),
            (stage.conf(0, small, MTU="1300"), 1300),
            (stage.conf(0, large, MTU="1300"), 1300),
            (stage.conf(0, large), 1420),
        ):
            reconfigure(client, path, conf)
            assert mtu(client, path, inside) == expected


def test_of_several_paths_the_narrowest_counts(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage, control: Control
) -> None:
    control.path_mtu(1400)
    other = f"""
        [Peer]
        PublicKey = {keys().public}
        AllowedIPs = 2001:db8:2::/64
        Endpoint = {stage.moving.endpoint_v6}
        """
    with tunnel(client, inside, stage.conf(0) + other) as path:
        assert mtu(client, path, inside) == 1320


def test_an_engine_that_is_replaced_and_a_link_that_is_down(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage, control: Control
) -> None:
    with tunnel(client, inside, stage.conf(0, stage.moving.endpoint_v4)) as path:
        inside.check("ip", "link", "set", "wg0", "down")
        control.path_mtu(1400)
        inside.check("ip", "link", "set", "wg0", "up")
        wait_for(lambda: mtu(client, path, inside) == 1320, "the MTU follows")
        client.tunnel(path, "Restart")
        assert mtu(client, path, inside) == 1320
