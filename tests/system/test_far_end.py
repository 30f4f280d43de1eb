"""Tunnels to an independent far end: stock wireguard-go that the real `wg` has set up."""

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from support.bus import OBJECT_MANAGER, ROOT, TUNNEL, Client
from support.daemon import Daemon
from support.namespaces import MakeNamespace, Namespace, ping
from support.stage import Stage, keys
from support.transfer import TRANSFER, iperf3
from support.tunnels import tunnel

pytestmark = pytest.mark.distribution


def host_link(name: str) -> Any:
    command = ["ip", "-json", "address", "show", "dev", name]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.mark.parametrize("endpoint", ["endpoint_v4", "endpoint_v6"])
def test_both_families_pass_over_either(
    daemon: Daemon,
    client: Client,
    namespace: MakeNamespace,
    stage: Stage,
    endpoint: str,
) -> None:
    inside = namespace()
    me = stage.clients[0]
    with tunnel(client, inside, stage.conf(0, getattr(stage.far, endpoint))) as path:
        assert client.get(path, "State") == "up"
        assert client.get(path, "PublicKey") == me.public_key
        assert inside.addresses("wg0") == {f"{me.ipv4}/24", f"{me.ipv6}/64"}
        ping(inside, stage.far.ipv4)
        ping(inside, stage.far.ipv6)
        assert client.peers(path)[stage.far.public_key]["endpoint"] == getattr(stage.far, endpoint)
    assert set(inside.links()) == {"lo"}


@pytest.mark.parametrize("host", ["far-v4.test", "far-v6.test", "far.test"])
def test_an_endpoint_may_be_a_hostname(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage, host: str
) -> None:
    inside = namespace()
    port = stage.far.endpoint_v4.rpartition(":")[2]
    with tunnel(client, inside, stage.conf(0, f"{host}:{port}")) as path:
        ping(inside, stage.far.ipv4)
        assert client.peers(path)[stage.far.public_key]["endpoint_host"] == f"{host}:{port}"


@pytest.mark.parametrize("address", ["ipv4", "ipv6"])
def test_what_returns_is_what_was_sent(
    daemon: Daemon,
    client: Client,
    namespace: MakeNamespace,
    stage: Stage,
    address: str,
) -> None:
    inside = namespace()
    with tunnel(client, inside, stage.conf(0)):
        far, port = getattr(stage.far, address), str(stage.far.echo_port)
        hashes = inside.check(sys.executable, "-c", TRANSFER, far, port, str(16 << 20)).split()
        assert len(hashes) == 2
        assert hashes[0] == hashes[1]


@pytest.mark.parametrize("direction", [[], ["--reverse"]])
def test_a_stream_at_full_speed_arrives(
    daemon: Daemon,
    client: Client,
    namespace: MakeNamespace,
    stage: Stage,
    direction: list[str],
) -> None:
    inside = namespace()
    with tunnel(client, inside, stage.conf(0)):
        report = iperf3(inside, stage.far.ipv4, "--time=1", *direction)
        assert report["end"]["sum_received"]["bytes"] > 1 << 20


def test_handshake_and_counters_show_in_the_peer(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    inside = namespace()
    with tunnel(client, inside, stage.conf(0, MTU="1380")) as path:
        before = client.peers(path)
        assert set(before) == {stage.far.public_key}
        assert set(before[stage.far.public_key]["allowed_ips"]) == {"0.0.0.0/0", "::/0"}

        began = time.time_ns() // 1000
        inside.check("ping", "-n", "-c1", "-W10", "-s1000", stage.far.ipv4)
        peer = client.peers(path)[stage.far.public_key]
        assert began <= peer["last_handshake_usec"] <= time.time_ns() // 1000
        assert peer["rx_bytes"] > 1000
        assert peer["tx_bytes"] > 1000
        assert peer["persistent_keepalive"] == 0
        assert inside.links()["wg0"]["mtu"] == client.get(path, "Mtu") == 1380


def unpacked(peers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A property's peers as GetPeers has them."""
    return {key: {name: value for name, (_, value) in peer.items()} for key, peer in peers.items()}


def managed(client: Client, path: str) -> dict[str, dict[str, Any]]:
    objects = client.call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
    return unpacked(objects[path][TUNNEL]["Peers"][1])


def described(client: Client, path: str) -> dict[str, dict[str, Any]]:
    (tunnel,) = json.loads(client.manager("Describe"))["tunnels"]
    return tunnel["Peers"]


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda client, path: client.peers(path), id="GetPeers"),
        pytest.param(lambda client, path: unpacked(client.get(path, "Peers")), id="Get"),
        pytest.param(lambda client, path: unpacked(client.get_all(path)["Peers"]), id="GetAll"),
        pytest.param(managed, id="GetManagedObjects"),
        pytest.param(described, id="Describe"),
    ],
)
def test_counters_are_those_of_the_moment(
    daemon: Daemon, client: Client, inside: Namespace, stage: Stage, ask: Any
) -> None:
    with tunnel(client, inside, stage.conf(0)) as path:
        counted = 0
        for _ in range(2):
            inside.check("ping", "-n", "-c1", "-W10", "-s1000", stage.far.ipv4)
            before, counted = counted, ask(client, path)[stage.far.public_key]["rx_bytes"]
            assert counted > before + 1000


def test_namespaces_that_each_have_a_wg0_while_the_host_has_one(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    first, second = namespace(), namespace()
    before = host_link("wg0")
    with tunnel(client, first, stage.conf(0)) as one, tunnel(client, second, stage.conf(1)) as two:
        assert client.get(one, "Interface") == client.get(two, "Interface") == "wg0"
        for inside in (first, second):
            ping(inside, stage.far.ipv4)
        assert first.addresses("wg0") != second.addresses("wg0")
        assert host_link("wg0") == before
    assert host_link("wg0") == before


def test_a_nested_user_namespace(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    inside = namespace(nested=True)
    with tunnel(client, inside, stage.conf(0), interface="tunnel0"):
        assert set(inside.links()) == {"lo", "tunnel0"}
        ping(inside, stage.far.ipv6)


def test_peers_over_both_families_in_one_tunnel(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    """An engine that alternates between IPv4 and IPv6 sends everything where it belongs."""
    here, there = namespace(), namespace()
    there_keys = keys()
    there_conf = f"""
        [Interface]
        PrivateKey = {there_keys.private}
        Address = 2001:db8:2::2/64
        [Peer]
        PublicKey = {stage.clients[0].public_key}
        AllowedIPs = {stage.clients[0].ipv6}/128
        """
    with tunnel(client, there, there_conf) as path:
        second_peer = f"""
        [Peer]
        PublicKey = {there_keys.public}
        AllowedIPs = 2001:db8:2::2/128
        Endpoint = [2001:db8::1]:{client.get(path, "ListenPort")}
        """
        with tunnel(client, here, stage.conf(0) + second_peer):
            for _ in range(5):
                ping(here, stage.far.ipv4)
                ping(here, "2001:db8:2::2")


def test_one_ends_while_the_other_goes_on(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    first, second = namespace(), namespace()
    with tunnel(client, first, stage.conf(0)):
        with tunnel(client, second, stage.conf(1)):
            ping(second, stage.far.ipv4)
        assert set(second.links()) == {"lo"}
        ping(first, stage.far.ipv4)


def test_the_same_identity_again_after_close(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    inside = namespace()
    for _ in range(3):
        with tunnel(client, inside, stage.conf(0)):
            ping(inside, stage.far.ipv4)


def test_twenty_tunnels_at_once(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    spaces = [namespace() for _ in range(20)]
    paths = [client.create(inside, stage.conf(number)) for number, inside in enumerate(spaces)]
    assert len(set(paths)) == 20
    engines = {client.get(path, "EnginePID") for path in paths}
    assert len(engines) == 20
    assert engines <= daemon.engines()
    assert {state for _, _, state in client.tunnels()} == {"up"}

    pings = [
        inside.popen(
            "ping", "-n", "-c3", "-i0.2", "-W10", stage.far.ipv4, stdout=subprocess.DEVNULL
        )
        for inside in spaces
    ]
    assert [each.wait(60) for each in pings] == [0] * 20

    for path in paths:
        client.close_tunnel(path)
    assert not engines & daemon.engines()
    assert all(set(inside.links()) == {"lo"} for inside in spaces)
