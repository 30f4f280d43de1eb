"""A tunnel as three witnesses see it, none of them the daemon's own code: the engine by its UAPI
socket, the interface by `ip` inside, and D-Bus.
"""

import base64
import contextlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from support.bus import Client, DBusError
from support.daemon import Daemon
from support.namespaces import Namespace
from support.reconfiguration import Conf
from support.tunnels import reconfigure

_COUNTERS = (
    "last_handshake_time_sec",
    "last_handshake_time_nsec",
    "rx_bytes",
    "session_age_ms",
    "tx_bytes",
)


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
    return _networks(conf) - unroutable(conf) - {_network(each) for each in conf.addresses}


def unroutable(conf: Conf) -> set[str]:
    """The allowed IPs of an IP version that has no address, and so gets no route."""
    has_ipv6 = {":" in each for each in conf.addresses}
    return {each for each in _networks(conf) if (":" in each) not in has_ipv6}


def _networks(conf: Conf) -> set[str]:
    """The allowed IPs, unless the table is off."""
    if conf.table == "off":
        return set()
    return {_network(each) for peer in conf.peers for each in peer.networks}


def _network(cidr: str) -> str:
    return str(ip_network(cidr, strict=False))


def _hex(key: str) -> str:
    return base64.b64decode(key).hex() or "00" * 32


Make = Callable[..., Tunnel]
