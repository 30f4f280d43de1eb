"""Another configuration for a running tunnel: what changes, what stays, and what a failure leaves.

Three witnesses, none of them the daemon's own code: the engine by its UAPI socket, the interface by
`ip` inside, and D-Bus.
"""

import base64
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jeepney import HeaderFields, MessageType

from support import processes
from support.bus import PROPERTIES, TUNNEL, Bus, Client, DBusError
from support.daemon import Daemon
from support.fds import memfd, pipe, udp_port_in_use
from support.namespaces import MakeNamespace, Namespace, ping
from support.processes import wait_for
from support.stage import Control, Keys, Stage, keys, preshared_key
from support.transfer import TRANSFER
from support.tunnels import reconfigure

PAIRS = [keys() for _ in range(5)]
SECRETS = [preshared_key() for _ in range(2)]
_COUNTERS = (
    "last_handshake_time_sec",
    "last_handshake_time_nsec",
    "rx_bytes",
    "session_age_ms",
    "tx_bytes",
)


# ---------------------------------------------------------------- configurations


@dataclass(frozen=True)
class Peer:
    key: str
    networks: tuple[str, ...] = ()
    endpoint: str = ""
    secret: str = ""
    keepalive: int = 0

    def text(self) -> str:
        lines = [f"[Peer]\nPublicKey = {self.key}", f"AllowedIPs = {', '.join(self.networks)}"]
        lines += [f"Endpoint = {self.endpoint}"] * bool(self.endpoint)
        lines += [f"PresharedKey = {self.secret}"] * bool(self.secret)
        lines += [f"PersistentKeepalive = {self.keepalive}"] * bool(self.keepalive)
        return "\n".join(lines)


@dataclass(frozen=True)
class Conf:
    """A configuration; str() is its text."""

    me: Keys = PAIRS[0]
    addresses: tuple[str, ...] = ("10.9.0.2/24",)
    peers: tuple[Peer, ...] = ()
    mtu: int = 0
    port: int = 0
    dns: tuple[str, ...] = ()
    table: str = ""

    def __str__(self) -> str:
        lines = [f"[Interface]\nPrivateKey = {self.me.private}"]
        lines += [f"Address = {', '.join(self.addresses)}"]
        lines += [f"MTU = {self.mtu}"] * bool(self.mtu)
        lines += [f"ListenPort = {self.port}"] * bool(self.port)
        lines += [f"DNS = {', '.join(self.dns)}"] * bool(self.dns)
        lines += [f"Table = {self.table}"] * bool(self.table)
        return "\n".join([*lines, *(peer.text() for peer in self.peers)]) + "\n"


def far_conf(stage: Stage, client: int = 0, **more: Any) -> Conf:
    """By which a client reaches the far end, and nothing else."""
    me = stage.clients[client]
    far = Peer(
        stage.far.public_key,
        (f"{stage.far.ipv4}/32", f"{stage.far.ipv6}/128"),
        stage.far.endpoint_v4,
        me.preshared_key,
    )
    addresses = (f"{me.ipv4}/24", f"{me.ipv6}/64")
    return Conf(Keys(me.private_key, me.public_key), addresses, (far,), **more)


def peer(number: int, *networks: str, **more: Any) -> Peer:
    """One that is nowhere."""
    return Peer(PAIRS[number].public, networks, **more)


# ---------------------------------------------------------------- a tunnel and its witnesses


class Tunnel:
    """One tunnel, as seen from outside."""

    def __init__(
        self, daemon: Daemon, client: Client, inside: Namespace, conf: object, **options: Any
    ) -> None:
        self.client, self.inside = client, inside
        self.path = client.create(inside, str(conf), **options)
        self._socket = daemon.directory / self.get("Name") / "wg0.sock"

    def get(self, name: str) -> Any:
        return self.client.get(self.path, name)

    def reconfigure(self, conf: object, client: Client | None = None, **options: Any) -> None:
        """The options are ("signature", value) pairs."""
        reconfigure(client or self.client, self.path, str(conf), **options)

    def error_of(self, conf: object) -> str:
        """The name of the error of a change; empty for none."""
        try:
            self.reconfigure(conf)
        except DBusError as error:
            return error.short_name
        return ""

    def refused(self, error: str, conf: object, **options: Any) -> str:
        """The message of a change that must fail so, and leave all as it was."""
        with self.unchanged(), pytest.raises(DBusError) as refusal:
            self.reconfigure(conf, **options)
        assert refusal.value.short_name == error, refusal.value
        return refusal.value.message

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        before = self.everything()
        yield
        assert self.everything() == before

    def seen(self) -> tuple[Any, ...]:
        """By the three witnesses, as `expected()` has it."""
        return self.engine(), self.interface(), self.properties()

    def everything(self) -> tuple[Any, ...]:
        """That, and all else that there is inside, and that the engine is still the same."""
        state = self.get("State"), self.get("EnginePID"), self.restarts()
        return *self.seen(), self._ip(), self.file(), *state

    def engine(self) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
        """What the engine has of itself and, by public key, of its peers; without counters."""
        device: dict[str, str] = {}
        peers: dict[str, dict[str, Any]] = {}
        for key, value in self._get():
            if key == "public_key":
                peers[value] = {"allowed_ip": set()}
            elif key == "allowed_ip":
                peers[[*peers][-1]][key].add(value)
            elif key not in _COUNTERS:
                (peers[[*peers][-1]] if peers else device)[key] = value
        return device, peers

    def _get(self) -> list[tuple[str, ...]]:
        """By UAPI."""
        with socket.socket(socket.AF_UNIX) as connection, connection.makefile("r") as answer:
            connection.settimeout(10)
            connection.connect(str(self._socket))
            connection.sendall(b"get=1\n\n")
            lines = [line.rstrip("\n") for line in iter(answer.readline, "\n")]
        assert lines.pop() == "errno=0"
        return [tuple(line.split("=", 1)) for line in lines]

    def interface(self) -> tuple[int, set[str], set[tuple[str, str]]]:
        """MTU, addresses, and the main table's routes with who made them."""
        ((link,), routes) = self._ip("dev wg0")
        return (
            link["mtu"],
            {f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"]},
            {(_destination(each), each["protocol"]) for each in routes if "table" not in each},
        )

    def file(self) -> tuple[str, int]:
        """The resolv.conf's text and inode."""
        path = Path(self.get("ResolvConf"))
        return path.read_text(), path.stat().st_ino

    def _ip(self, device: str = "") -> list[Any]:
        """Links with their addresses, and the routes of all tables and both families."""
        commands = f"address show {device}\nroute show table all {device}\n"
        shown = self.inside.check("ip", "-json", "-batch", "-", input=commands)
        return [json.loads(line) for line in shown.splitlines()]

    def properties(self) -> dict[str, Any]:
        """Those that a configuration decides on."""
        names = ("PublicKey", "ListenPort", "Mtu", "Addresses", "Dns", "Peers")
        everything = self.client.get_all(self.path)
        shown = {name: everything[name] for name in names}
        for peer in shown["Peers"].values():
            for name in ("state", "last_handshake_usec", "rx_bytes", "tx_bytes"):
                del peer[name]
            peer |= {name: value for name, (_, value) in peer.items()}
            peer["allowed_ips"] = set(peer["allowed_ips"])
        return shown

    def restarts(self) -> int:
        return int(self.get("RestartCount"))

    def peer(self, public_key: str) -> dict[str, Any]:
        return self.client.peers(self.path)[public_key]

    def wait_up(self) -> None:
        assert self.client.tunnel(self.path, "WaitForState", "ast", ["up"], 20_000_000) == "up"


def _destination(route: dict[str, Any]) -> str:
    if route["dst"] == "default":
        return "::/0" if "pref" in route else "0.0.0.0/0"
    return str(ip_network(route["dst"]))


def expected(conf: Conf, port: int, endpoints: dict[str, str] | None = None) -> tuple[Any, ...]:
    """What a tunnel of this configuration has, in the form of `Tunnel.seen()`.

    `port` is where it listens; `endpoints` are the peers', where those are not as configured.
    """
    at = {peer.key: peer.endpoint for peer in conf.peers} | (endpoints or {})
    device = {
        "private_key": _hex(conf.me.private),
        "own_public_key": _hex(conf.me.public),
        "listen_port": str(port),
    }
    engines, shown = {}, {}
    for peer in conf.peers:
        networks = {_network(each) for each in peer.networks}
        engines[_hex(peer.key)] = {
            "preshared_key": _hex(peer.secret),
            "protocol_version": "1",
            "persistent_keepalive_interval": str(peer.keepalive),
            "allowed_ip": networks,
        } | ({"endpoint": at[peer.key]} if at[peer.key] else {})
        shown[peer.key] = {
            "endpoint": at[peer.key],
            "endpoint_host": peer.endpoint,
            "endpoint_error": "",
            "allowed_ips": networks,
            "persistent_keepalive": peer.keepalive,
        }
    addresses = [str(ip_interface(each)) for each in conf.addresses]
    # An IPv4 address of its own has no network; an IPv6 one has.
    connected = {_network(each) for each in addresses if not re.search(r"\..*/32", each)}
    routes = {(each, "kernel") for each in connected} | {(each, "static") for each in routed(conf)}
    properties = {
        "PublicKey": conf.me.public,
        "ListenPort": port,
        "Mtu": conf.mtu or 1420,
        "Addresses": addresses,
        "Dns": list(conf.dns),
        "Peers": shown,
    }
    return (device, engines), (conf.mtu or 1420, set(addresses), routes), properties


def routed(conf: Conf) -> set[str]:
    """The allowed IPs that need routes, as no address implies them."""
    if conf.table == "off":
        return set()
    networks = {_network(each) for peer in conf.peers for each in peer.networks}
    return networks - {_network(each) for each in conf.addresses}


def _network(cidr: str) -> str:
    return str(ip_network(cidr, strict=False))


def _hex(key: str) -> str:
    return base64.b64decode(key).hex() or "00" * 32


Make = Callable[..., Tunnel]


@pytest.fixture
def tunnel(daemon: Daemon, client: Client, inside: Namespace) -> Make:
    """Makes the one tunnel of `inside`; `daemon` closes it."""
    return lambda conf, **options: Tunnel(daemon, client, inside, conf, **options)


# ---------------------------------------------------------------- what stays, under load


def variations(base: Conf) -> Iterator[Conf]:
    """All that may change beside the one peer of `base`, which stays."""
    (far,) = base.peers
    silent = peer(1, "10.20.0.0/16", "fd20::/64", endpoint="127.0.0.1:9", keepalive=25)
    yield replace(base, peers=(far, silent))
    yield replace(base, peers=(replace(silent, networks=("10.21.0.0/16",), secret=SECRETS[0]), far))
    yield replace(base, peers=(peer(2, "10.21.0.0/16"), far, peer(3, "fd20::/64")))
    yield replace(base, addresses=(*base.addresses, "10.77.0.1/24", "fd77::1/64"))
    yield replace(base, addresses=("10.78.0.1/24", "fd78::1/64", *base.addresses), mtu=1300)
    yield replace(base, mtu=1280, dns=("198.51.100.1", "example.org"))
    yield replace(base, peers=(replace(far, networks=("0.0.0.0/0", "::/0")),), table="off")
    yield replace(base, peers=(replace(far, networks=("0.0.0.0/0", "::/0"), keepalive=25),))
    yield replace(base, peers=(replace(far, secret=SECRETS[0]),), table="off")
    yield base


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


# ---------------------------------------------------------------- each change on its own

ONE = Conf(peers=(peer(1, "10.20.0.0/16", "fd20::/64", endpoint="127.0.0.1:9"),))
(P1,) = ONE.peers
P2, P3 = peer(2, "10.30.0.0/16"), peer(3, "10.40.0.0/16", "fd40::/64", secret=SECRETS[0])


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


# ---------------------------------------------------------------- ports, keys, endpoints


def free_port() -> int:
    bound, port = udp_port_in_use()
    bound.close()
    return port


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
        told = client.next_signal("PeerStateChanged", timeout=3).body
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


# ---------------------------------------------------------------- a failure leaves all as it was

BROKEN: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "truncated": lambda text: text[: text.index("PrivateKey") + 30],
    "no interface": lambda text: text[text.index("[Peer]") :] if "[Peer]" in text else "# none",
    "a second interface": lambda text: text + "[Interface]\n",
    "a bad key": lambda text: text.replace("PrivateKey = ", "PrivateKey = !", 1),
    "no key": lambda text: text + "[Peer]\nAllowedIPs = 192.0.2.0/24\n",
    "a peer twice": lambda text: text + 2 * f"[Peer]\nPublicKey = {SECRETS[1]}\n",
    "a network twice": lambda text: (
        text + "".join(f"[Peer]\nPublicKey = {key}\nAllowedIPs = ::9/128\n" for key in SECRETS)
    ),
    "no network": lambda text: (
        text + f"[Peer]\nPublicKey = {SECRETS[1]}\nAllowedIPs = 10.0.0.0/33\n"
    ),
    "no endpoint": lambda text: (
        text + f"[Peer]\nPublicKey = {SECRETS[1]}\nEndpoint = 192.0.2.1:65536\n"
    ),
    "no address": lambda text: text.replace("Address = ", "Address = 10.0.0.256, ", 1),
    "an address twice": lambda text: text.replace("Address = ", "Address = ::7/64, ::7/128, ", 1),
    "unknown": lambda text: text + "Colour = blue\n",
    "a command": lambda text: text.replace("[Interface]\n", "[Interface]\nPostUp = true\n", 1),
    "small": lambda text: text.replace("[Interface]\n", "[Interface]\nMTU = 575\n", 1),
    "no text": lambda text: text + "\0",
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_invalid_configuration(tunnel: Make, how: str) -> None:
    subject = tunnel(ONE)
    text = BROKEN[how](str(replace(ONE, mtu=0, addresses=("10.6.0.1/24",))))
    message = subject.refused("InvalidConfig", text)
    assert re.match(
        r"InvalidConfig: (line \d+: |the configuration is empty|no \[Interface\])", message
    )


@pytest.mark.parametrize(
    ("error", "options"),
    [
        ("InvalidArgs", {"colour": ("s", "blue")}),
        ("InvalidArgs", {"name": ("s", "another")}),
        ("InvalidArgs", {"mtu": ("s", "1300")}),
        ("InvalidArgs", {"mtu": ("u", 575)}),
        ("InvalidArgs", {"ignore": ("as", ["MTU"])}),
        ("InvalidConfig", {"mtu": ("u", 1000)}),
    ],
)
def test_a_wrong_option(tunnel: Make, error: str, options: dict[str, Any]) -> None:
    subject = tunnel(ONE)
    conf = replace(ONE, addresses=("10.6.0.1/24", "fd06::1/64"))
    message = subject.refused(error, conf, **options)
    assert "MTU: 1000" in message or next(iter(options)) in message


def own_things(inside: Namespace) -> None:
    """What a namespace's owner may have there."""
    for command in (
        "ip tuntap add other mode tun",
        "ip link set other up",
        "ip route add 10.99.0.0/16 dev other",
        "ip route add fd99::/64 dev other",
    ):
        inside.check(*command.split())


@pytest.mark.parametrize(
    ("change", "error", "fragment"),
    [
        ({"peers": (P2, peer(0))}, "InvalidConfig", "the interface's own"),
        ({"peers": (P2, peer(3, "10.99.0.0/16"))}, "TunFailed", "10.99.0.0/16"),
        ({"peers": (P2, peer(3, "fd99::/64")), "mtu": 1300}, "TunFailed", "fd99::/64"),
        ({"peers": (P2, peer(3, "fd01::/64")), "mtu": 1000}, "TunFailed", "too small for IPv6"),
    ],
)
def test_a_change_that_is_refused(
    tunnel: Make, inside: Namespace, change: dict[str, Any], error: str, fragment: str
) -> None:
    own_things(inside)
    subject = tunnel(replace(ONE, addresses=("10.9.0.2/24", "10.9.0.3/24", "fd09::2/64")))
    others = replace(ONE, addresses=("10.8.0.2/24", "10.9.0.3/24"), dns=("10.8.0.1",))
    assert fragment in subject.refused(error, replace(others, **change))


def test_an_own_key_that_only_the_engine_recognises(tunnel: Make) -> None:
    subject = tunnel(ONE)
    port = subject.get("ListenPort")
    with pytest.raises(DBusError, match="InvalidConfig: a peer's PublicKey is the interface's own"):
        subject.reconfigure(replace(ONE, me=PAIRS[1], peers=(P2, P1), mtu=1300))
    assert subject.get("State") == "up"
    assert subject.seen() == expected(ONE, port)


def test_an_interface_that_its_owner_renamed(tunnel: Make, inside: Namespace) -> None:
    subject = tunnel(ONE)
    other = replace(ONE, mtu=1300, peers=(P2,))
    inside.check("ip", "link", "set", "wg0", "name", "mine")
    subject.reconfigure(other)
    inside.check("ip", "link", "set", "mine", "name", "wg0")
    assert subject.seen() == expected(other, subject.get("ListenPort"))
    assert subject.restarts() == 0


def test_a_configuration_that_never_ends(tunnel: Make, client: Client) -> None:
    subject = tunnel(ONE)
    with pipe() as (read_end, write_end), subject.unchanged():
        os.write(write_end, str(replace(ONE, mtu=1300)).encode())
        with pytest.raises(DBusError, match="Timeout"):
            client.tunnel(subject.path, "Reconfigure", "ha{sv}", read_end, {})


# ---------------------------------------------------------------- an engine that fails meanwhile


def test_an_engine_that_hangs(tunnel: Make) -> None:
    """Whatever it has taken: it is replaced, and its successor has the old configuration."""
    subject = tunnel(ONE)
    pid, port, resolv_conf = subject.get("EnginePID"), subject.get("ListenPort"), subject.file()
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: processes.state(pid) == "T", "it has stopped")
    with pytest.raises(DBusError, match="Timeout"):
        subject.reconfigure(replace(ONE, mtu=1300, dns=("10.9.0.1",), peers=(P2, P3)))
    assert subject.file() == resolv_conf
    assert subject.get("State") == "up"
    assert subject.seen() == expected(ONE, port)
    assert subject.get("EnginePID") != pid


def test_an_engine_that_dies(tunnel: Make, client: Client, bus: Bus) -> None:
    """At any moment of a change: the tunnel has all of the new one, or all of the old."""
    subject = tunnel(ONE)
    port = subject.get("ListenPort")
    now, other = ONE, replace(ONE, addresses=("10.7.0.1/24", "fd07::1/64"), peers=(P3, P2))
    for number in range(20):
        pid = subject.get("EnginePID")
        killer = threading.Timer(number / 1000, os.kill, [pid, signal.SIGKILL])
        killer.start()
        error = subject.error_of(other)
        killer.join()
        assert error in ("", "EngineFailed")
        if not error:
            now, other = other, now
        wait_for(lambda pid=pid: subject.get("EnginePID") not in (0, pid), "a new engine")
        subject.wait_up()
        assert subject.seen() == expected(now, port)
        client.tunnel(subject.path, "Restart")  # is no crash, and those before count no more


def kill_until(subject: Tunnel, state: str) -> None:
    """Kill each engine; after the sixth there is none for more than a second (backoff.py)."""
    kills, enough = 0, 6 if state == "restarting" else 0
    while (now := subject.get("State")) != state or kills < enough:
        if now == "up":
            with contextlib.suppress(ProcessLookupError):
                os.kill(subject.get("EnginePID"), signal.SIGKILL)
                kills += 1
        time.sleep(0.01)  # no faster than the daemon can


def test_without_an_engine_the_next_one_gets_it(tunnel: Make, client: Client) -> None:
    subject = tunnel(ONE)
    new = replace(ONE, addresses=("10.7.0.1/24", "fd07::1/64"), mtu=1300, peers=(P2, peer(0)))
    for state in ("restarting", "failed"):
        kill_until(subject, state)
        new = replace(new, me=PAIRS[4], port=free_port())
        subject.reconfigure(replace(new, peers=()))
        subject.reconfigure(new)
        if state == "failed":
            assert subject.interface() == expected(new, new.port)[1]
            own_things(subject.inside)
            assert subject.error_of(replace(new, peers=(peer(3, "10.99.0.0/16"),))) == "TunFailed"
            assert subject.error_of(replace(new, peers=(peer(4),))) == "InvalidConfig"
            assert subject.get("State") == "failed"
            client.tunnel(subject.path, "Restart")
        subject.wait_up()
        assert subject.seen() == expected(new, new.port)


def test_an_own_key_that_nobody_recognises_yet(tunnel: Make, client: Client) -> None:
    """The tunnel can't come up with it, but what is there stays."""
    subject = tunnel(ONE)
    kill_until(subject, "restarting")
    subject.reconfigure(replace(ONE, me=PAIRS[1]))
    assert subject.get("PublicKey") == ""
    assert client.tunnel(subject.path, "WaitForState", "ast", ["failed"], 20_000_000) == "failed"
    assert "the interface's own" in subject.get("LastError")[1]
    subject.reconfigure(ONE)
    client.tunnel(subject.path, "Restart")
    assert subject.seen() == expected(ONE, subject.get("ListenPort"))


# ---------------------------------------------------------------- several at once, and the end


def send(client: Client, subject: Tunnel, conf: Conf) -> int:
    """Call without waiting for the reply, which has this serial."""
    with memfd(str(conf)) as fd:
        message = client.message(subject.path, TUNNEL, "Reconfigure", "ha{sv}", (fd, {}))
        serial = next(client.connection.outgoing_serial)
        client.connection.send(message, serial=serial)
    return serial


def test_many_at_once(tunnel: Make, client: Client) -> None:
    """One after another; the last one wins."""
    base = Conf(peers=(peer(4, "198.51.100.0/24", endpoint="127.0.0.1:9"),))
    subject = tunnel(base)
    port = subject.get("ListenPort")
    confs = [*variations(base)] * 3
    serials = {send(client, subject, conf) for conf in confs}
    while serials:
        reply = client.connection.receive(timeout=30)
        assert reply.header.message_type is not MessageType.error, reply.body
        serials.discard(reply.header.fields.get(HeaderFields.reply_serial))
    assert subject.seen() == expected(confs[-1], port)
    assert subject.restarts() == 0


def test_close_meanwhile(
    daemon: Daemon, client: Client, namespace: MakeNamespace, bus: Bus
) -> None:
    inside = namespace()
    for number in range(20):
        subject = Tunnel(daemon, client, inside, ONE)
        with Client(bus.address) as other:
            closing = threading.Timer(number / 2000, other.close_tunnel, [subject.path])
            closing.start()
            other_conf = replace(ONE, addresses=("10.7.0.1/24",), peers=(P2,))
            for conf in itertools.cycle((other_conf, ONE)):
                if error := subject.error_of(conf):
                    break
            closing.join()
        assert error in ("NoSuchTunnel", "UnknownObject")
        assert set(inside.links()) == {"lo"}
        assert inside.processes() == {inside.pid}


def test_closed_while_it_reads(tunnel: Make, client: Client, inside: Namespace) -> None:
    subject = tunnel(ONE)
    with pipe() as (read_end, write_end):
        message = client.message(subject.path, TUNNEL, "Reconfigure", "ha{sv}", (read_end, {}))
        serial = next(client.connection.outgoing_serial)
        client.connection.send(message, serial=serial)
        client.close_tunnel(subject.path)
        os.write(write_end, str(ONE).encode())
    while (reply := client.connection.receive(timeout=10)).header.fields.get(
        HeaderFields.reply_serial
    ) != serial:
        pass
    assert reply.header.fields[HeaderFields.error_name].endswith(".NoSuchTunnel")
    with pytest.raises(DBusError, match="UnknownObject"):
        subject.reconfigure(ONE)


# ---------------------------------------------------------------- a thousand

ADDRESSES = (
    "10.9.0.1/24", "10.9.0.2/24", "10.9.0.3/32", "10.9.1.1/16", "10.20.0.1/16",
    "fd09::1/64", "fd09::2/64", "fd09::3/128", "fd20::1/64",
)  # fmt: skip
NETWORKS = (
    "0.0.0.0/0", "::/0", "10.9.0.0/24", "10.9.0.0/16", "10.9.0.2/32", "10.20.0.0/16",
    "10.20.3.4/16", "10.20.1.0/24", "10.99.0.0/16", "fd09::/64", "fd09::2/128", "fd20::/64",
    "fd20::/48", "fd99::/64",
)  # fmt: skip
CLASHING = {"10.99.0.0/16", "fd99::/64"}
"""The networks of own_things()."""
FREE, FREE2, BUSY = "free", "another free", "busy"


@dataclass(frozen=True)
class Asked:
    """One reconfiguration: a port by its role, and in what way the text is broken."""

    conf: Conf
    port: str
    broken: str


@st.composite
def some_conf(draw: st.DrawFn) -> Asked:
    """Mostly valid by itself."""
    keys = draw(st.lists(st.sampled_from([2, 3, 4, 1, 0]), max_size=4, unique=True))
    owners = {}
    if keys:
        owners = draw(st.dictionaries(st.sampled_from(NETWORKS), st.sampled_from(keys), max_size=6))
        if {"10.20.0.0/16", "10.20.3.4/16"} <= owners.keys():  # the same one
            del owners["10.20.3.4/16"]
    peers = tuple(
        peer(
            key,
            *(network for network, owner in owners.items() if owner == key),
            endpoint=draw(st.sampled_from(["", "127.0.0.1:9", "[::1]:9", "127.0.0.2:9"])),
            secret=draw(st.sampled_from(["", *SECRETS])),
            keepalive=draw(st.sampled_from([0, 0, 0, 25])),
        )
        for key in keys
    )
    conf = Conf(
        draw(st.sampled_from(PAIRS[:2])),
        tuple(draw(st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=4, unique=True))),
        peers,
        mtu=draw(st.sampled_from([0, 0, 0, 0, 1279, 1280, 1281, 1400])),
        dns=tuple(draw(st.lists(st.sampled_from(["10.9.0.9", "fd09::9", "a.test"]), max_size=2))),
        table=draw(st.sampled_from(["", "", "auto", "off"])),
    )
    port = draw(st.sampled_from(["", "", "", FREE, FREE2, BUSY]))
    return Asked(conf, port, draw(st.sampled_from([""] * len(BROKEN) * 4 + [*BROKEN])))


def refusals(conf: Conf, busy: int) -> set[str]:
    """The errors of which one is due; none for a valid configuration."""
    too_small = 0 < conf.mtu < 1280
    errors = set()
    if conf.me.public in {peer.key for peer in conf.peers}:
        errors.add("InvalidConfig")
    if too_small and any(":" in address for address in conf.addresses):
        errors.add("InvalidConfig")
    if routed(conf) & CLASHING or (too_small and any(":" in route for route in routed(conf))):
        errors.add("TunFailed")
    if conf.port == busy:
        errors.add("EngineFailed")
    return errors


@pytest.mark.timeout(300)
def test_a_thousand(tunnel: Make, inside: Namespace) -> None:
    """Engine, interface and D-Bus agree with the last valid one."""
    own_things(inside)
    base = Conf(port=free_port())
    bound, busy = udp_port_in_use()
    ports = {"": 0, FREE: base.port, FREE2: free_port(), BUSY: busy}
    subject = tunnel(base)
    outcomes = Counter[str]()

    @given(st.lists(some_conf(), min_size=20, max_size=20))
    @settings(
        max_examples=50,
        deadline=None,
        phases=[Phase.generate],  # to shrink what takes a second would take the test's time
        suppress_health_check=[*HealthCheck],
    )
    def all_agree(asked: list[Asked]) -> None:
        subject.reconfigure(base)
        port, endpoints, now = base.port, dict[str, str](), expected(base, base.port)
        for each in asked:
            conf = replace(each.conf, port=ports[each.port])
            text = BROKEN[each.broken](str(conf)) if each.broken else str(conf)
            due = {"InvalidConfig"} if each.broken else refusals(conf, busy)
            error = subject.error_of(text)
            assert error in (due or {""})
            outcomes[error] += 1
            if not error:
                port = conf.port or port
                endpoints = {p.key: p.endpoint or endpoints.get(p.key, "") for p in conf.peers}
                now = expected(conf, port, endpoints)
            assert subject.seen() == now

    with bound:
        all_agree()
    assert outcomes.total() >= 1000
    assert all(outcomes[each] > 30 for each in ("InvalidConfig", "TunFailed", "EngineFailed"))
    assert outcomes[""] > 300
