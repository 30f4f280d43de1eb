"""Another port, key or endpoint for a running tunnel, and the session that goes on."""

from dataclasses import replace

import pytest

from support.bus import TUNNEL, Client
from support.daemon import SOON, Daemon
from support.fds import udp_port_in_use
from support.namespaces import MakeNamespace, Namespace, ping
from support.reconfiguration import P1, P2, PAIRS, Conf, Peer, far_conf, free_port, peer
from support.stage import Control, Stage
from support.witnesses import Make, Tunnel, expected


def test_a_listen_port(tunnel: Make, inside: Namespace, stage: Stage) -> None:
    first, second = free_port(), free_port()
    subject = tunnel(far_conf(stage, port=first))
    ping(inside, stage.far.ipv4)
    since = subject.peer(stage.far.public_key)["last_handshake_usec"]

    subject.reconfigure(far_conf(stage, port=second))
    assert subject.get("ListenPort") == second
    ping(inside, stage.far.ipv4)

    subject.reconfigure(far_conf(stage))
    assert subject.seen() == expected(far_conf(stage), second)

    bound, taken = udp_port_in_use()
    with bound:
        busy = far_conf(stage, port=taken, mtu=1300, dns=("10.0.0.1",))
        assert "in use" in subject.refused("EngineFailed", busy)
    ping(inside, stage.far.ipv4)
    assert subject.peer(stage.far.public_key)["last_handshake_usec"] == since


def test_another_identity(tunnel: Make, client: Client, inside: Namespace, stage: Stage) -> None:
    subject = tunnel(far_conf(stage, 0))
    ping(inside, stage.far.ipv4)
    before = subject.peer(stage.far.public_key)["last_handshake_usec"]
    client.subscribe(interface=TUNNEL)
    subject.reconfigure(far_conf(stage, 1))
    assert subject.get("PublicKey") == stage.clients[1].public_key
    ping(inside, stage.far.ipv4)
    assert client.next_signal("Handshake").body[0] == stage.far.public_key
    assert subject.peer(stage.far.public_key)["last_handshake_usec"] > before
    assert subject.restarts() == 0


def test_a_new_peers_first_initiation_is_told(tunnel: Make, client: Client) -> None:
    """The engine tells of it before the rest of the change is over."""
    silent = replace(P1, keepalive=25)
    subject = tunnel(Conf())
    client.subscribe(member="PeerStateChanged")
    for _ in range(5):
        subject.reconfigure(Conf(peers=(silent,)))
        told = client.next_signal("PeerStateChanged", timeout=SOON).body
        assert told[:3] == (P1.key, "handshaking", "idle")
        subject.reconfigure(Conf())


def test_another_endpoint_of_the_same_session(
    tunnel: Make, inside: Namespace, stage: Stage, control: Control
) -> None:
    here = far_conf(stage)
    (far,) = here.peers
    here = replace(here, peers=(replace(far, endpoint=stage.moving.endpoint_v4),))
    there = replace(here, peers=(replace(far, endpoint="192.0.3.77:51820"),))
    subject = tunnel(here)
    ping(inside, stage.far.ipv4)
    since = subject.peer(far.key)["last_handshake_usec"]
    control.far_move("192.0.3.77")
    subject.reconfigure(there)
    assert subject.seen() == expected(there, subject.get("ListenPort"))
    ping(inside, stage.far.ipv4)
    assert subject.peer(far.key)["last_handshake_usec"] == since


@pytest.mark.parametrize("configured", ["", "127.0.0.1:9"])
def test_where_a_peer_has_moved_to(
    tunnel: Make, daemon: Daemon, client: Client, namespace: MakeNamespace, configured: str
) -> None:
    roamer = peer(1, "10.9.0.1/32", endpoint=configured)
    base = Conf(peers=(roamer,))
    subject = tunnel(base)
    port, there = subject.get("ListenPort"), namespace()
    here = Peer(PAIRS[0].public, ("10.9.0.2/32",), f"127.0.0.1:{port}")
    other = Tunnel(daemon, client, there, Conf(PAIRS[1], ("10.9.0.1/24",), (here,)))
    ping(there, "10.9.0.2")
    learned = {roamer.key: f"127.0.0.1:{other.get('ListenPort')}"}
    assert subject.seen() == expected(base, port, learned)

    changed = replace(roamer, networks=("10.9.0.1/32", "fd01::/64"), keepalive=25)
    for conf in (replace(base, peers=(P2, changed), mtu=1300), base):
        subject.reconfigure(conf)
        assert subject.seen() == expected(conf, port, learned)
        subject.inside.check("ping", "-n", "-c1", "-W10", "10.9.0.1")

    client.close_tunnel(other.path)
    elsewhere = replace(base, peers=(replace(roamer, endpoint="127.0.0.2:9"),))
    subject.reconfigure(elsewhere)
    assert subject.seen() == expected(elsewhere, port)


def test_host_names(tunnel: Make, inside: Namespace, stage: Stage) -> None:
    base = far_conf(stage)
    (far,) = base.peers
    named = replace(far, endpoint=far.endpoint.replace("192.0.2.2", "far-v4.test"))
    nowhere = replace(P1, endpoint="nowhere.test:9")
    subject = tunnel(base)
    port = subject.get("ListenPort")
    ping(inside, stage.far.ipv4)
    since = subject.peer(far.key)["last_handshake_usec"]
    for peers in ((named,), (nowhere, named), (far, P1), (far,)):
        conf = replace(base, peers=peers)
        subject.reconfigure(conf)
        seen = subject.properties()["Peers"]
        assert {key: peer["endpoint_host"] for key, peer in seen.items()} == {
            peer.key: peer.endpoint for peer in peers
        }
        assert {key for key, peer in seen.items() if peer["endpoint_error"]} == {
            peer.key for peer in peers if peer is nowhere
        }
        assert seen[far.key]["endpoint"] == far.endpoint
        assert subject.peer(far.key)["last_handshake_usec"] == since
    assert subject.seen() == expected(base, port)
