"""What tests/stage has prepared: far ends, identities to reach them with, other buses."""

import json
import os
import socket
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SMALL = Path("/run/small")
"""A file system with room for 64 pages, in a few dozen files."""
LIBFAKETIME = "".join(map(str, Path("/usr/lib").glob("*/faketime/libfaketime.so.1")))


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
class Moving:
    """The far end that Control stops, starts and moves. Inside its tunnel it is Far's like."""

    endpoint_v4: str
    endpoint_v6: str
    """Where it is at first, 192.0.3.2 and 2001:db8:3::2; moving.test is both."""
    routed_v4: str
    routed_v6: str
    """Where Control.router() leads, 192.0.5.2 and 2001:db8:5::2."""


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
    moving: Moving
    control: str
    """The socket of Control."""
    short_engine: str
    """The path of our wireguard-go with the protocol's times 20 times shorter."""
    unpacked: str
    """A directory of the distribution's programs that would take over the machine's look-ups if
    they were installed: nscd, systemd-resolved, and libraries of the C library's."""
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
            "moving": Moving(**described["moving"]),
            "clients": [Client(**each) for each in described["clients"]],
        }
    )


class ControlError(Exception):
    """The request was refused, or failed."""


class Control:
    """Asks root for what changes around a test: tests/stage/control.py does it.

    Each method returns once its effect is there; it raises ControlError.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def far_stop(self) -> None:
        """Kill the moving far end's wireguard-go; its uplink and servers stay."""
        self.request("far stop")

    def far_start(self) -> None:
        """Start it anew. It knows its peers and their addresses, and not where they are."""
        self.request("far start")

    def far_move(self, address: str) -> None:
        """Have it at another address of 192.0.3.0/24, and no longer where it was."""
        self.request("far move", address)

    def host_address_add(self, address: str) -> None:
        """ADDRESS/PREFIX, of either family, on the host's side of the moving far end's link."""
        self.request("host address add", address)

    def host_address_delete(self, address: str) -> None:
        self.request("host address delete", address)

    def host_default_add(self) -> None:
        """An IPv4 default route by that link, of metric 4242."""
        self.request("host default add")

    def host_default_delete(self) -> None:
        self.request("host default delete")

    def host_link_up(self) -> None:
        self.request("host link up")

    def host_link_down(self) -> None:
        """The addresses stay, as far as they can; a default route is gone for good."""
        self.request("host link down")

    def path_mtu(self, mtu: int) -> None:
        """The MTU of the routes between the host and the moving far end; 0: as at first."""
        self.request("path", str(mtu))

    def router(self, mtu: int, filtered: bool = False) -> None:
        """A way to the moving far end by a router, at Stage.moving.routed_v4 and routed_v6.

        The link behind it has this MTU. If `filtered`, it sends no ICMP.
        """
        self.request("router", str(mtu), "filtered" if filtered else "open")

    def far_engine(self, program: str) -> None:
        """Have the moving far end run `stock` or `ours`."""
        self.request("far engine", program)

    def host_name(self, name: str, *addresses: str) -> None:
        """What NAME.test resolves to from now on; without addresses it does not."""
        self.request("host-name", name, *addresses)

    def engine_descriptors(self, pid: int) -> dict[int, str]:
        """What each descriptor of an engine leads to. Only root can read that."""
        links = self.request("engine descriptors", str(pid))
        return {int(number): link for number, link in links.items()}

    def engine_environment(self, pid: int) -> list[str]:
        """Each as NAME=VALUE; only root can read that too."""
        return list(self.request("engine environment", str(pid)))

    def roots_sockets(self) -> list[int]:
        """UDP sockets of root's namespace `roots`, for IPv4 and IPv6; the caller closes them."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(self.path)
            connection.sendall(b"roots sockets\n")
            answer, fds, _, _ = socket.recv_fds(connection, 100, 2)
        if answer != b"ok\n":
            raise ControlError(answer.decode())
        return fds

    def stock_endpoint(self, family: str) -> None:
        """Have the stock client reach the moving far end over `v4` or `v6`."""
        self.request("stock endpoint", family)

    def stock_mtu(self, mtu: int) -> None:
        """Of the stock client's tunnel, 1420 at first, or 8920; benchmarks have one."""
        self.request("stock mtu", str(mtu))

    def capture_start(self, marker: bytes) -> None:
        """Look at all packets on the host's interfaces from now on, also for the marker."""
        self.request("capture start", marker.hex())

    def capture_stop(self) -> None:
        """End that; support.capture reads what was seen."""
        self.request("capture stop")

    def reset(self) -> None:
        """Everything as it was at the start."""
        self.request("reset")

    def request(self, *words: str) -> Any:
        """What the answer tells, if anything."""
        with socket.socket(socket.AF_UNIX) as connection, connection.makefile("r") as answer:
            connection.settimeout(30)
            connection.connect(self.path)
            connection.sendall(f"{' '.join(words)}\n".encode())
            line = answer.readline().strip()
        status, _, told = line.partition(" ")
        if status != "ok":
            raise ControlError(line or "no answer")
        return json.loads(told) if told else None


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
