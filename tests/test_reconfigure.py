"""Another configuration for a running tunnel: what changes, what stays, and what a failure leaves.

Three witnesses, none of them the daemon's own code: the engine by its UAPI socket, the interface by
`ip` inside, and D-Bus.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jeepney import HeaderFields

from support.bus import PROPERTIES, TUNNEL, Client, DBusError
from support.daemon import Daemon
from support.fds import memfd, pipe, udp_port_in_use
from support.namespaces import Namespace
from support.processes import is_alive, wait_for
from support.stage import Keys, Stage, keys, preshared_key
from test_far_end import TRANSFER, ping

Namespaces = Callable[..., Namespace]

PAIRS = [keys() for _ in range(5)]
SECRETS = [preshared_key() for _ in range(2)]
_ZERO = "0" * 64
_COUNTERS = ("last_handshake_time_sec", "last_handshake_time_nsec", "rx_bytes", "tx_bytes")


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
        with memfd(str(conf)) as fd:
            (client or self.client).tunnel(self.path, "Reconfigure", "ha{sv}", fd, options)

    def refused(self, error: str, conf: object, **options: Any) -> str:
        """The message of a change that must fail so, and leave all as it was."""
        before = self.everything()
        with pytest.raises(DBusError) as refusal:
            self.reconfigure(conf, **options)
        assert refusal.value.short_name == error, refusal.value
        assert self.everything() == before
        assert self.get("State") == "up"
        return refusal.value.message

    def uapi(self) -> list[tuple[str, str]]:
        """The engine's own answer to a `get`."""
        with socket.socket(socket.AF_UNIX) as connection, connection.makefile("r") as answer:
            connection.settimeout(10)
            connection.connect(str(self._socket))
            connection.sendall(b"get=1\n\n")
            lines = iter(answer.readline, "\n")
            pairs = [line.rstrip("\n").partition("=")[::2] for line in lines]
        assert pairs.pop() == ("errno", "0")
        return pairs

    def engine(self) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
        """What the engine has of itself and, by public key, of its peers; without counters."""
        device: dict[str, str] = {}
        peers: dict[str, dict[str, Any]] = {}
        for key, value in self.uapi():
            if key == "public_key":
                peers[value] = {"allowed_ip": set()}
            elif key == "allowed_ip":
                peers[[*peers][-1]][key].add(value)
            elif key not in _COUNTERS:
                (peers[[*peers][-1]] if peers else device)[key] = value
        return device, peers

    def interface(self) -> tuple[int, set[str], set[tuple[str, str]]]:
        """MTU, addresses, and the main table's routes with who made them."""
        commands = "address show dev wg0\nroute show table all dev wg0\n"
        shown = self.inside.check("ip", "-json", "-batch", "-", input=commands)
        (link,), routes = (json.loads(line) for line in _json_texts(shown))
        return (
            link["mtu"],
            {f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"]},
            {(_destination(r), r["protocol"]) for r in routes if "table" not in r},
        )

    def properties(self) -> dict[str, Any]:
        """Those that a configuration decides on, and those that tell of an engine's death."""
        names = ("PublicKey", "ListenPort", "Mtu", "Addresses", "Dns", "EnginePID", "RestartCount")
        everything = self.client.get_all(self.path)
        return {name: everything[name] for name in names}

    def everything(self) -> tuple[Any, ...]:
        others = self.inside.ip("address", "show"), self.inside.ip("route", "show", "table", "all")
        for link in others[0]:
            for address in link["addr_info"]:
                address.pop("tentative", None)
        return self.engine(), self.interface(), self.properties(), others

    def peer(self, public_key: str) -> dict[str, Any]:
        return self.client.peers(self.path)[public_key]

    def wait_up(self) -> None:
        assert self.client.tunnel(self.path, "WaitForState", "ast", ["up"], 20_000_000) == "up"


def _json_texts(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if line]


def _destination(route: dict[str, Any]) -> str:
    if route["dst"] == "default":
        return "::/0" if route.get("metric") == 1024 else "0.0.0.0/0"
    return str(ip_network(route["dst"]))


def hexadecimal(key: str) -> str:
    import base64

    return base64.b64decode(key).hex() if key else _ZERO


Make = Callable[..., Tunnel]


@pytest.fixture
def inside(namespace: Namespaces) -> Namespace:
    return namespace()


@pytest.fixture
def tunnel(daemon: Daemon, client: Client, inside: Namespace) -> Make:
    """Makes the one tunnel of `inside`; `daemon` closes it."""
    return lambda conf, **options: Tunnel(daemon, client, inside, conf, **options)
