"""What tests/stage has prepared: the far end, identities to reach it with, other buses."""

import json
import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Far:
    """The far end: stock wireguard-go, configured by `wg`. Addresses are inside its tunnel."""

    public_key: str
    endpoint_v4: str
    endpoint_v6: str
    ipv4: str
    ipv6: str
    echo_port: int
    iperf3_port: int


@dataclass(frozen=True)
class Client:
    """One of the identities the far end knows. Use each in one tunnel at a time."""

    private_key: str
    public_key: str
    preshared_key: str
    ipv4: str
    ipv6: str


@dataclass(frozen=True)
class Stage:
    far: Far
    clients: list[Client]
    stock_address: str
    """The address of the stock client, which benchmarks compare with and tests do without."""
    roots_netns: str
    """The path of a network namespace that belongs to root."""
    no_tun_runtime: str
    """XDG_RUNTIME_DIR, and XDG_DATA_HOME, of a bus that sees no /dev/net/tun."""
    closed_tun_runtime: str
    """The same where /dev/net/tun is root's alone."""

    def conf(self, client: int = 0, endpoint: str | None = None, **more: str) -> str:
        """A wg-quick configuration for one client. `more` are further keys of [Interface]."""
        me = self.clients[client]
        interface = {
            "PrivateKey": me.private_key,
            "Address": f"{me.ipv4}/24, {me.ipv6}/64",
            **more,
        }
        peer = {
            "PublicKey": self.far.public_key,
            "PresharedKey": me.preshared_key,
            "AllowedIPs": "0.0.0.0/0, ::/0",
            "Endpoint": endpoint or self.far.endpoint_v4,
        }
        return f"[Interface]\n{_lines(interface)}\n[Peer]\n{_lines(peer)}"


def _lines(section: dict[str, str]) -> str:
    return "".join(f"{key} = {value}\n" for key, value in section.items())


@cache
def read() -> Stage | None:
    """The stage this suite runs on, if it does."""
    path = os.environ.get("WG4NETNSD_STAGE")
    if path is None:
        return None
    described: dict[str, Any] = json.loads(Path(path).read_text())
    return Stage(
        **described
        | {
            "far": Far(**described["far"]),
            "clients": [Client(**each) for each in described["clients"]],
        }
    )


@dataclass(frozen=True)
class Keys:
    private: str
    public: str


def keys() -> Keys:
    """A fresh pair, by the real `wg`."""
    private = _wg("genkey")
    return Keys(private, _wg("pubkey", stdin=private))


def preshared_key() -> str:
    return _wg("genpsk")


def _wg(command: str, stdin: str = "") -> str:
    return subprocess.run(
        ["wg", command], input=stdin, capture_output=True, text=True, check=True
    ).stdout.strip()
