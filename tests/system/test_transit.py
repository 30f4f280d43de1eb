"""Where the ciphertext goes: by another namespace, by the caller's sockets, by another tunnel."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from jeepney import HeaderFields

from support.bus import PROPERTIES, TUNNEL, Client, DBusError, body_of
from support.daemon import SOON, Daemon
from support.namespaces import MakeNamespace, Namespace, ping
from support.processes import wait_for
from support.sockets import name_server
from support.stage import Control, Stage
from support.transits import conf_through, sockets_of
from support.tunnels import reconfigure


@dataclass
class Tunnel:
    inside: Namespace
    path: str


@pytest.fixture
def outer(daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage) -> Tunnel:
    inside = namespace()
    return Tunnel(inside, client.create(inside, stage.conf(0), name="outer"))


@contextlib.contextmanager
def transit(kind: str, outer: Tunnel) -> Iterator[dict[str, Any]]:
    """The options that lead through `outer`."""
    with contextlib.ExitStack() as stack:
        match kind:
            case "tunnel":
                yield {"transit_tunnel": ("s", "outer")}
            case "namespace":
                netns = outer.inside.open()
                stack.callback(os.close, netns)
                yield {"transit": ("h", netns)}
            case "sockets":
                yield {"transit_sockets": ("ah", stack.enter_context(sockets_of(outer.inside)))}


KINDS = pytest.mark.parametrize("kind", ["tunnel", "namespace", "sockets"])


@KINDS
def test_two_hops(
    outer: Tunnel, client: Client, inside: Namespace, stage: Stage, kind: str
) -> None:
    with transit(kind, outer) as options:
        path = client.create(
            inside, conf_through(stage, 1), name="inner", wait="handshake", **options
        )
    netns = f"net:[{outer.inside.id[1]}]"
    assert client.get(path, "Transit") == (kind, "outer" if kind == "tunnel" else netns)
    assert client.get(outer.path, "Transit") == ("host", "")
    ping(inside, stage.far.ipv4)
    port = client.get(path, "ListenPort")
    # Both families, where they were to be opened, and not on the host.
    assert len(outer.inside.check("ss", "-Hlun", f"sport = :{port}").splitlines()) == 2
    assert udp_is_free(port)
    for _ in range(3):
        for each in (path, outer.path):
            replace_engine(client, each)
            ping(inside, stage.far.ipv4)
    assert client.get(path, "ListenPort") == port
    client.close_tunnel(path)
    assert outer.inside.check("ss", "-Hlun", f"sport = :{port}") == ""
    ping(outer.inside, stage.far.ipv4)


def udp_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as candidate:
        candidate.bind(("0.0.0.0", port))
    return True


def replace_engine(client: Client, path: str) -> None:
    pid = client.get(path, "EnginePID")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: client.get(path, "EnginePID") not in (0, pid), "a new engine")
    client.tunnel(path, "WaitForState", "ast", ["up"], 10_000_000)


@KINDS
def test_another_port(
    outer: Tunnel, client: Client, inside: Namespace, stage: Stage, kind: str
) -> None:
    conf = conf_through(stage, 1)
    with transit(kind, outer) as options:
        path = client.create(inside, conf, **options)
    ping(inside, stage.far.ipv4)
    other = conf.replace("[Interface]\n", "[Interface]\nListenPort = 40404\n")
    if kind == "sockets":
        with pytest.raises(DBusError, match="ListenPort: 40404: the sockets of the option"):
            reconfigure(client, path, other)
    else:
        reconfigure(client, path, other)
        assert client.get(path, "ListenPort") == 40404
        assert outer.inside.check("ss", "-Hlun", "sport = :40404")
        taken = conf.replace("[Interface]\n", "[Interface]\nListenPort = 40405\n")
        with (
            sockets_of(outer.inside, "INET6:DGRAM:40405"),
            pytest.raises(DBusError, match="in use in the transit namespace"),
        ):
            reconfigure(client, path, taken)
    ping(inside, stage.far.ipv4)


def test_another_transit(outer: Tunnel, client: Client, inside: Namespace, stage: Stage) -> None:
    """By Reconfigure, and back to the host's network, while the programs inside stay."""
    path = client.create(inside, stage.conf(1), name="inner")
    ping(inside, stage.far.ipv4)
    client.subscribe(interface=PROPERTIES, path=path)
    for kind in ("tunnel", "namespace", "sockets", "tunnel", "sockets"):
        with transit(kind, outer) as options:
            reconfigure(client, path, conf_through(stage, 1), **options)
        detail = "outer" if kind == "tunnel" else f"net:[{outer.inside.id[1]}]"
        changed = client.next_signal("PropertiesChanged")
        while "Transit" not in changed.body[1]:
            changed = client.next_signal("PropertiesChanged")
        assert changed.body[1]["Transit"] == ("(ss)", (kind, detail))
        assert client.get(path, "Transit") == (kind, detail)
        if kind == "tunnel":
            assert client.get(path, "Mtu") == 1360
        port = client.get(path, "ListenPort")
        assert len(outer.inside.check("ss", "-Hlun", f"sport = :{port}").splitlines()) == 2
        assert udp_is_free(port)
        ping(inside, stage.far.ipv4)
        replace_engine(client, path)
        ping(inside, stage.far.ipv4)
        # Without these options it stays.
        reconfigure(client, path, conf_through(stage, 1))
        assert client.get(path, "Transit") == (kind, detail)
    reconfigure(client, path, stage.conf(1), transit_tunnel=("s", ""))
    assert client.get(path, "Transit") == ("host", "")
    ping(inside, stage.far.ipv4)
    assert outer.inside.check("ss", "-Hlun", f"sport = :{port}") == ""
    client.close_tunnel(outer.path)
    replace_engine(client, path)
    ping(inside, stage.far.ipv4)


def test_another_transit_that_is_refused(
    outer: Tunnel, client: Client, inside: Namespace, namespace: MakeNamespace, stage: Stage
) -> None:
    path = client.create(inside, conf_through(stage, 1), name="inner", transit_tunnel="outer")
    client.create(namespace(), conf_through(stage, 2), name="inmost", transit_tunnel="inner")
    known = {name: client.get(path, name) for name in ("Transit", "ListenPort", "EnginePID")}

    def why(conf: str, **options: Any) -> str:
        with pytest.raises(DBusError) as error:
            reconfigure(client, path, conf, **options)
        assert {name: client.get(path, name) for name in known} == known
        return error.value.message

    conf = conf_through(stage, 1)
    own = "InvalidArgs: option 'transit_tunnel': it leads into the tunnel's own namespace"
    assert why(conf, transit_tunnel=("s", "inner")).startswith(f"{own}: ")
    assert why(conf, transit_tunnel=("s", "inmost")).startswith(f"{own} by way of 'inmost': ")
    assert "no tunnel named 'x'" in why(conf, transit_tunnel=("s", "x"))
    taken = conf.replace("[Interface]\n", "[Interface]\nListenPort = 40406\n")
    there = namespace()
    netns = there.open()
    try:
        with sockets_of(there, "INET:DGRAM:40406"):
            told = why(taken, transit=("h", netns))
        assert "in use in the transit namespace" in told
    finally:
        os.close(netns)
    ping(inside, stage.far.ipv4)
    client.subscribe(interface=TUNNEL, member="StateChanged")
    client.close_tunnel(outer.path)
    wait_for(lambda: client.tunnels() == [], "all have ended", SOON)


# ---------------------------------------------------------------- a tunnel as transit


def test_an_inner_tunnel_ends_with_its_outer(
    outer: Tunnel, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    inner = client.create(namespace(), conf_through(stage, 1), name="inner", transit_tunnel="outer")
    client.create(namespace(), conf_through(stage, 2), name="inmost", transit_tunnel="inner")
    client.subscribe(interface=TUNNEL, member="StateChanged")
    client.close_tunnel(outer.path)
    wait_for(lambda: client.tunnels() == [], "all have ended", SOON)
    reasons = [body[2] for body in body_of(client.pending_signals(), "StateChanged", inner)]
    assert set(reasons) == {"its outer tunnel 'outer' ended: closed by request"}


def test_a_change_of_the_hosts_network_reaches_it_through_its_outer(
    outer: Tunnel,
    client: Client,
    namespace: MakeNamespace,
    stage: Stage,
    control: Control,
) -> None:
    """Each begins a handshake once there is a way for it."""
    paths, via = [outer.path], "outer"
    for number in (1, 2):
        conf, name = conf_through(stage, number), f"hop{number}"
        options = {"name": name, "transit_tunnel": via, "wait": "handshake"}
        paths.append(client.create(namespace(), conf, **options))
        via = name
    client.subscribe(member="Handshake")
    control.host_address_add("192.0.3.7/24")
    told = [client.next_signal("Handshake").header.fields[HeaderFields.path] for _ in paths]
    assert told == paths


def test_three_deep(outer: Tunnel, client: Client, namespace: MakeNamespace, stage: Stage) -> None:
    via, insides = "outer", [namespace(), namespace()]
    for number, inside in enumerate(insides, 1):
        client.create(
            inside,
            conf_through(stage, number),
            name=f"hop{number}",
            transit_tunnel=via,
            wait="handshake",
        )
        via = f"hop{number}"
    for inside in insides:
        ping(inside, stage.far.ipv4)


@pytest.mark.parametrize(
    ("outer_mtu", "endpoint", "mtu"),
    [
        (1420, "198.51.100.1:51820", 1360),
        (1420, "[2001:db8:1::1]:51820", 1340),
        (1420, "name.example:51820", 1340),
        (1300, "198.51.100.1:51820", 1280),  # which IPv6 needs, in fragments
    ],
)
def test_the_mtu_within_a_tunnel(
    daemon: Daemon,
    client: Client,
    namespace: MakeNamespace,
    stage: Stage,
    outer_mtu: int,
    endpoint: str,
    mtu: int,
) -> None:
    client.create(namespace(), stage.conf(0), name="outer", mtu=("u", outer_mtu))
    inside = namespace()
    path = client.create(inside, stage.conf(1, endpoint), transit_tunnel="outer")
    assert client.get(path, "Mtu") == inside.links()["wg0"]["mtu"] == mtu
    told = client.get(path, "LastError")[1] if outer_mtu == 1300 else ""
    assert ("MTU: 1280: too large for 'outer' to pass whole" in told) == (outer_mtu == 1300)


def test_an_mtu_that_is_too_large_within_a_tunnel(
    outer: Tunnel, client: Client, inside: Namespace, stage: Stage
) -> None:
    conf = conf_through(stage, 1).replace("[Interface]\n", "[Interface]\nMTU = 1420\n")
    path = client.create(inside, conf, transit_tunnel="outer")
    assert client.get(path, "Mtu") == 1420
    expected = "MTU: 1420: too large for 'outer' to pass whole: expected 1360 or less"
    assert client.get(path, "LastError") == (
        "org.wg4netns1.Error.InvalidConfig", f"InvalidConfig: {expected}"
    )  # fmt: skip


def test_names_are_looked_up_through_the_outer_tunnel(
    daemon: Daemon, client: Client, namespace: MakeNamespace, stage: Stage
) -> None:
    """By its name servers; the host knows another address of this name."""
    within, inside = namespace(), namespace()
    client.create(within, stage.conf(0, DNS="198.51.100.53"), name="outer")
    with name_server(within, "198.51.100.53", stage.far.ipv4) as server:
        conf = stage.conf(1, "far-v4.test:51820")
        path = client.create(inside, conf, transit_tunnel="outer", wait="handshake")
        ((key, peer),) = client.peers(path).items()
        assert (key, peer["endpoint"]) == (stage.far.public_key, f"{stage.far.ipv4}:51820")
        ping(inside, stage.far.ipv4)
        server.terminate()
        assert server.stdout
        assert set(server.stdout.read().split()) == {"far-v4.test"}


def test_a_name_that_the_outer_tunnel_cannot_look_up(
    outer: Tunnel, client: Client, inside: Namespace, stage: Stage
) -> None:
    """The host is not asked in its place."""
    path = client.create(inside, stage.conf(1, "far-v4.test:51820"), transit_tunnel="outer")
    assert client.get(path, "LastError")[0] == "org.wg4netns1.Error.NoNameServer"
    (peer,) = client.peers(path).values()
    assert (peer["endpoint"], peer["endpoint_host"]) == ("", "far-v4.test:51820")


def test_an_inner_tunnel_uses_the_outers_interface_alone(
    outer: Tunnel, client: Client, inside: Namespace, stage: Stage
) -> None:
    """Whatever the routes there say: they are its owner's."""
    client.create(
        inside, conf_through(stage, 1), transit_tunnel="outer", name="inner", wait="handshake"
    )
    other = [
        *("ip tuntap add other mode tun", "ip link set other up"),
        f"ip route add {stage.far.ipv4}/32 dev other",
    ]
    for command in other:
        outer.inside.check(*command.split())
    (link,) = outer.inside.ip("-statistics", "link", "show", "dev", "other")
    before = sent_to(link)
    ping(inside, stage.far.ipv4)
    outer.inside.check("ip", "link", "set", "wg0", "down")
    assert inside.run("ping", "-n", "-c1", "-W1", stage.far.ipv4).returncode
    (link,) = outer.inside.ip("-statistics", "link", "show", "dev", "other")
    assert sent_to(link) == before
    outer.inside.check("ip", "link", "set", "wg0", "up")
    ping(inside, stage.far.ipv4)


def sent_to(link: dict[str, Any]) -> int:
    """Packets that the kernel had for it: this TUN drops them, as nobody reads."""
    sent = link["stats64"]["tx"]
    return int(sent["packets"] + sent["dropped"] + sent["carrier_errors"])


# ---------------------------------------------------------------- what is refused


def refused(client: Client, inside: Namespace, stage: Stage, **options: Any) -> str:
    before = client.tunnels()
    with pytest.raises(DBusError) as error:
        client.create(inside, stage.conf(3), name="refused", **options)
    assert client.tunnels() == before
    assert "wg0" not in inside.links()
    return error.value.message


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["INET:STREAM:"], "a TCP socket (IPv4): expected a UDP socket"),
        (["INET6:STREAM:", "INET:DGRAM:"], "a TCP socket (IPv6): expected a UDP socket"),
        (["UNIX:DGRAM:"], "a socket of family 1, type 2, protocol 0: expected a UDP socket"),
        (["INET:DGRAM:"] * 2, "two IPv4 sockets: expected one for IPv4 and one for IPv6"),
        (["INET:DGRAM:", "INET6:DGRAM:", "INET:DGRAM:"], "3 sockets: expected one of each family"),
        (["INET:DGRAM:40001", "INET6:DGRAM:40002"], "bound to the ports 40001 and 40002"),
    ],
)
def test_wrong_sockets(
    daemon: Daemon,
    client: Client,
    inside: Namespace,
    stage: Stage,
    words: list[str],
    why: str,
) -> None:
    with sockets_of(None, *words) as sockets:
        told = refused(client, inside, stage, transit_sockets=("ah", sockets))
    assert told.startswith(f"InvalidArgs: option 'transit_sockets': {why}")


def test_other_wrong_sockets(
    daemon: Daemon, client: Client, inside: Namespace, namespace: MakeNamespace, stage: Stage
) -> None:
    def why(sockets: list[int]) -> str:
        told = refused(client, inside, stage, transit_sockets=("ah", sockets))
        return told.removeprefix("InvalidArgs: option 'transit_sockets': ")

    assert why([]) == "0 sockets: expected one of each family, or one"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connected:
        connected.connect(("127.0.0.1", 9))
        assert why([connected.fileno()]).startswith("a connected socket: expected one")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as dual:
        dual.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        dual.bind(("::", 0))
        assert why([dual.fileno()]).startswith("a bound IPv6 socket without IPV6_V6ONLY")
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        assert why([null]) == "not a socket: expected UDP sockets"
    finally:
        os.close(null)
    with sockets_of(inside, "INET:DGRAM:") as here, sockets_of(None, "INET6:DGRAM:") as there:
        assert why([*here, *there]).startswith("sockets of two network namespaces")
    with sockets_of(inside) as own:
        told = refused(client, inside, stage, transit_sockets=("ah", own))
        assert told.startswith(
            "InvalidArgs: option 'transit_sockets': it leads into the tunnel's own namespace"
        )


def test_wrong_transits(
    daemon: Daemon, client: Client, inside: Namespace, namespace: MakeNamespace, stage: Stage
) -> None:
    def why(path: str, **more: Any) -> str:
        netns = os.open(path, os.O_RDONLY)
        try:
            return refused(client, inside, stage, transit=("h", netns), **more)
        finally:
            os.close(netns)

    option = "InvalidArgs: option 'transit': "
    assert why("/dev/null").startswith(f"{option}not a namespace")
    assert why("/proc/self/ns/user").startswith(f"{option}a namespace of another type")
    assert why("/proc/self/ns/net").startswith(f"{option}this is the daemon's own namespace")
    assert why(stage.roots_netns).startswith(f"{option}the namespace's owner is not")
    assert why(inside.path).startswith(f"{option}it leads into the tunnel's own")
    told = why(namespace().path, transit_tunnel="office")
    assert told.startswith("InvalidArgs: option 'transit_tunnel': expected only one of transit,")


def test_wrong_tunnels(
    outer: Tunnel, client: Client, inside: Namespace, namespace: MakeNamespace, stage: Stage
) -> None:
    told = refused(client, inside, stage, transit_tunnel="nowhere")
    assert told == "NoSuchTunnel: option 'transit_tunnel': no tunnel named 'nowhere'"
    # A loop of two, made with namespaces.
    first = namespace()
    netns = first.open()
    try:
        client.create(inside, conf_through(stage, 1), name="second", transit=("h", netns))
    finally:
        os.close(netns)
    told = refused(client, first, stage, transit_tunnel="second")
    assert told.startswith("InvalidArgs: option 'transit_tunnel': it leads into the tunnel's own")
    assert "by way of 'second': expected another" in told
