"""Each change of a running tunnel: it is made, and nothing else changes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields

from support.bus import PROPERTIES, TUNNEL, Client, DBusError
from support.daemon import Daemon
from support.namespaces import MakeNamespace, Namespace, ping
from support.reconfiguration import (
    ONE,
    P1,
    P2,
    P3,
    PAIRS,
    SECRETS,
    Conf,
    far_conf,
    peer,
    variations,
)
from support.stage import Stage
from support.transfer import TRANSFER
from support.witnesses import Make, Tunnel, expected


def test_traffic_flows_through_all_changes(
    tunnel: Make, client: Client, inside: Namespace, stage: Stage
) -> None:
    base, far = far_conf(stage), stage.far
    subject = tunnel(base)
    ping(inside, far.ipv4)
    before = subject.peer(far.public_key)
    engine = subject.get("EnginePID"), subject.restarts()
    client.subscribe(interface=TUNNEL)
    transfer = [sys.executable, "-c", TRANSFER, far.ipv4, str(far.echo_port), str(128 << 20)]
    pings = ["ping", "-n", "-q", "-c1500", "-i0.002", "-W10", far.ipv6]
    with (
        inside.popen(*transfer, stdout=subprocess.PIPE) as stream,
        inside.popen(*pings, stdout=subprocess.PIPE) as echoes,
    ):
        seen, changes = before, 0
        while stream.poll() is None or echoes.poll() is None:
            for conf in variations(base):
                subject.reconfigure(conf)
                last, seen = seen, subject.peer(far.public_key)
                assert seen["last_handshake_usec"] == before["last_handshake_usec"]
                assert seen["rx_bytes"] >= last["rx_bytes"]
                assert seen["tx_bytes"] >= last["tx_bytes"]
                changes += 1
        sent, returned = stream.communicate()[0].split()
        assert sent == returned
        assert "1500 packets transmitted, 1500 received" in echoes.communicate()[0]
    assert changes >= 50
    assert (subject.get("EnginePID"), subject.restarts()) == engine
    told = {(s.header.fields[HeaderFields.member], s.body[0]) for s in client.pending_signals()}
    assert ("Handshake", far.public_key) not in told
    assert "StateChanged" not in {member for member, _ in told}
    assert subject.seen() == expected(base, subject.get("ListenPort"))


@pytest.mark.parametrize(
    "change",
    [
        {"addresses": ("10.9.0.3/24",)},
        {"addresses": ("10.9.0.2/24", "fd09::2/64", "10.8.0.1/32")},
        {"addresses": ("10.9.0.2/32",)},
        {"addresses": ("10.20.0.1/16", "fd20::1/64")},
        {"table": "off"},
        {"mtu": 1300},
        {"mtu": 9000},
        {"dns": ("10.9.0.1", "fd09::1", "example.org")},
        {"peers": ()},
        {"peers": (P1, P2, P3)},
        {"peers": (P3, P2)},
        {"peers": (replace(P1, networks=("10.20.0.0/16", "0.0.0.0/0", "::/0")),)},
        {"peers": (replace(P1, networks=()),)},
        {"peers": (replace(P1, secret=SECRETS[0], keepalive=25, endpoint="[::1]:9"),)},
        {"me": PAIRS[4]},
        {"me": PAIRS[1], "peers": (peer(0, "10.20.0.0/16"),)},
    ],
    ids=lambda change: " ".join(f"{key}" for key in change),
)
def test_there_and_back(tunnel: Make, client: Client, change: dict[str, Any]) -> None:
    subject = tunnel(ONE)
    port, restarts = subject.get("ListenPort"), subject.restarts()
    client.subscribe(interface=PROPERTIES, path=subject.path)
    for conf in (replace(ONE, **change), ONE):
        before = subject.properties()
        subject.reconfigure(conf)
        told: dict[str, Any] = {}
        invalidated: set[str] = set()
        for message in client.pending_signals():
            if message.header.fields[HeaderFields.member] != "PropertiesChanged":
                continue
            _, values, names = message.body
            told |= {name: value for name, (_, value) in values.items()}
            invalidated |= set(names)
        assert subject.seen() == expected(conf, port)
        properties = subject.properties()
        changed = {name for name in properties if properties[name] != before[name]}
        assert told == {name: properties[name] for name in changed - {"Peers"}}
        assert invalidated == {"Peers"} & changed
    assert subject.restarts() == restarts


# Says, as a router would, that nothing longer than 1000 bytes gets through to the target.
TOO_BIG = """
import socket, struct, sys
own, target = sys.argv[1:]
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.bind((own, 0))
udp.connect((target, 9))
ends = socket.inet_aton(own) + socket.inet_aton(target)
sent = struct.pack("!BxHHHBBH", 0x45, 28, 0, 0x4000, 64, socket.IPPROTO_UDP, 0) + ends
sent += struct.pack("!HHHH", udp.getsockname()[1], 9, 8, 0)
message = struct.pack("!BBHHH", 3, 4, 0, 0, 1000) + sent
message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
raw = socket.socket(type=socket.SOCK_RAW, proto=socket.IPPROTO_ICMP)
raw.sendto(message, (own, 0))
"""


def test_what_the_kernel_has_learned_becomes_no_route(tunnel: Make, inside: Namespace) -> None:
    base = replace(ONE, addresses=("10.9.0.2/24", "10.8.0.2/24"))
    subject = tunnel(base)
    inside.check(sys.executable, "-c", TOO_BIG, "10.9.0.2", "10.20.0.1")
    (path,) = inside.ip("route", "get", "10.20.0.1")
    assert path["metrics"] == [{"mtu": 1000}]
    for addresses in (("10.9.0.2/24",), ("10.7.0.2/24",)):
        conf = replace(base, addresses=addresses)
        subject.reconfigure(conf)
        assert subject.seen() == expected(conf, subject.get("ListenPort"))


MOVES = {
    "to one that stays": (
        (P1, P2),
        (replace(P1, networks=()), peer(2, *P2.networks, *P1.networks)),
    ),
    "to a new one": ((P1,), (replace(P1, networks=()), peer(2, *P1.networks))),
    "from one that goes": ((P1, P2), (peer(2, *P2.networks, *P1.networks),)),
    "from one that goes to a new one": ((P1,), (peer(2, *P1.networks),)),
    "both ways": ((P1, P2), (replace(P1, networks=P2.networks), peer(2, *P1.networks))),
    "around": (
        (peer(1, "10.1.0.0/16"), peer(2, "10.2.0.0/16"), peer(3, "10.3.0.0/16")),
        (peer(1, "10.2.0.0/16"), peer(2, "10.3.0.0/16"), peer(3, "10.1.0.0/16")),
    ),
    "within another's": (
        (peer(1, "10.0.0.0/8"), peer(2, "10.1.0.0/16", "10.1.1.0/24")),
        (peer(1, "10.1.0.0/16"), peer(2, "10.0.0.0/8"), peer(3, "10.1.1.0/24")),
    ),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("order", [1, -1])
def test_an_allowed_ip_moves(
    tunnel: Make, daemon: Daemon, client: Client, namespace: MakeNamespace, move: str, order: int
) -> None:
    one, other = (Conf(peers=peers[::order]) for peers in MOVES[move])
    subject = tunnel(one)
    for conf in (other, one):
        subject.reconfigure(conf)
        fresh = Tunnel(daemon, client, namespace(), conf)
        assert subject.engine()[1] == fresh.engine()[1]
        assert subject.interface() == fresh.interface()
        client.close_tunnel(fresh.path)


def test_the_creators_mtu_stays_in_force(tunnel: Make) -> None:
    subject = tunnel(ONE, mtu=("u", 1400))

    def mtu(conf: Conf, **options: Any) -> Any:
        subject.reconfigure(conf, **options)
        assert subject.interface()[0] == subject.get("Mtu")
        return subject.get("Mtu")

    assert mtu(replace(ONE, mtu=1300)) == 1400
    assert mtu(replace(ONE, mtu=1300), mtu=("u", 1350)) == 1350
    assert mtu(replace(ONE, mtu=1300)) == 1400


def test_what_to_ignore(tunnel: Make) -> None:
    subject = tunnel(ONE)
    conf = str(ONE).replace("[Peer]", "PostUp = true\n[Peer]")
    assert "PostUp" in subject.refused("InvalidConfig", conf)
    with subject.unchanged():
        subject.reconfigure(conf, ignore=("as", ["PostUp"]))


def test_by_path(tunnel: Make, client: Client, tmp_path: Path) -> None:
    subject = tunnel(ONE)
    other = replace(ONE, peers=(P2,), mtu=1300)
    file = tmp_path / "other.conf"
    file.touch(mode=0o600)
    file.write_text(str(other))
    client.tunnel(subject.path, "ReconfigureFromPath", "sa{sv}", str(file), {})
    assert subject.seen() == expected(other, subject.get("ListenPort"))
    wrong = {"other.conf": "InvalidArgs", "/nowhere": "InvalidConfig", "/dev/zero": "InvalidConfig"}
    for path, error in wrong.items():
        with subject.unchanged(), pytest.raises(DBusError, match=error):
            client.tunnel(subject.path, "ReconfigureFromPath", "sa{sv}", path, {})
