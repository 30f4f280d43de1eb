"""The contenders: each carries packets from a client's namespace to the far end, for one block.

    wg4netnsd           the daemon's tunnel, in an unprivileged namespace
    stock, as root      the stage's upstream wireguard-go, on a TUN of its own on the host
    predecessor's way   predecessor.py
    slirp4netns, pasta  no tunnel: from such a namespace to the same server at its outer address;
                        the cost of rootless networking without encryption
    floor: veth         no contender: from the host to that address

All of them use one veth. On the stage of benchmarks, its MTU and the far end's in the tunnel are so
large that a client can have any MTU: its TCP announces it to the far end as its segment size (MSS).
"""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import predecessor
from bench.tunnels import daemon_with
from support.namespaces import Namespace
from support.processes import wait_for
from support.stage import Control, Stage

OURS, STOCK, PREDECESSOR, SLIRP = "wg4netnsd", "stock, as root", "predecessor's way", "slirp4netns"

LARGE = 8920
"""Bytes: the MTU of a tunnel over a link with jumbo frames, 9000 less WireGuard's 80."""

LARGEST = 65520
"""Bytes: pasta's default MTU, which slirp4netns' manual recommends as well."""


@dataclass(frozen=True)
class Contender:
    server: str
    """The far end's address."""
    command: Callable[..., list[str]]
    """Returns a command line that runs the command where this contender leads to the server."""
    engine: int | None
    """The pid of the process that carries the packets, if there is one."""
    far_engine: int | None = None
    """The pid of its counterpart at the far end."""


Way = AbstractContextManager[Contender]


@contextlib.contextmanager
def together(ways: Mapping[str, Way]) -> Iterator[dict[str, Contender]]:
    """Start all contenders; yield them by name, once each has reached the server."""
    with ExitStack() as stack:
        contenders = {name: stack.enter_context(way) for name, way in ways.items()}
        for contender in contenders.values():  # the first packet to a peer waits for a handshake
            ping = contender.command("ping", "-n", "-c1", "-W10", contender.server)
            subprocess.run(ping, stdout=subprocess.DEVNULL, check=True)
        yield contenders


def like_for_like(stage: Stage, engine: Path) -> dict[str, Way]:
    """The contenders with an MTU of 1420. `engine` is the predecessor's."""
    return {
        OURS: wg4netnsd(stage, 1420),
        STOCK: stock(stage, 1420),
        PREDECESSOR: predecessors(stage, engine),
        SLIRP: slirp4netns(stage, 1420),
        "pasta": pasta(stage, 1420),
    }


def large(stage: Stage) -> dict[str, Way]:
    """The contenders with a larger MTU. The predecessor always sets 1420."""
    return {
        f"{OURS}, MTU {LARGE}": wg4netnsd(stage, LARGE),
        f"{STOCK}, MTU {LARGE}": stock(stage, LARGE),
        f"{SLIRP}, MTU {LARGEST}": slirp4netns(stage, LARGEST),
        f"pasta, MTU {LARGEST}": pasta(stage, LARGEST),
    }


@contextlib.contextmanager
def wg4netnsd(stage: Stage, mtu: int) -> Iterator[Contender]:
    with Namespace() as namespace, daemon_with({}) as (daemon, _):  # its end closes the tunnel
        path = daemon.client.create(namespace, stage.conf(0), mtu=("u", mtu))
        engine = int(daemon.client.get(path, "EnginePID"))
        yield Contender(stage.far.ipv4, namespace.command, engine, roots_engine("far-v4"))


@contextlib.contextmanager
def stock(stage: Stage, mtu: int) -> Iterator[Contender]:
    control = Control(stage.control)
    control.stock_mtu(mtu)
    try:
        yield Contender(stage.far.ipv4, on_host, roots_engine("stock0"), roots_engine("far-v4"))
    finally:
        control.stock_mtu(1420)


@contextlib.contextmanager
def predecessors(stage: Stage, engine: Path) -> Iterator[Contender]:
    with (
        Namespace() as namespace,
        predecessor.tunnel(engine, namespace, stage.conf(1)) as pid,
    ):
        yield Contender(stage.far.ipv4, namespace.command, pid, roots_engine("far-v4"))


@contextlib.contextmanager
def slirp4netns(stage: Stage, mtu: int) -> Iterator[Contender]:
    with Namespace() as namespace:
        read_end, write_end = os.pipe()
        options = ["--configure", f"--mtu={mtu}", f"--ready-fd={write_end}"]
        command = ["slirp4netns", *options, str(namespace.pid), "tap0"]
        with open(read_end, "rb") as ready, _running(command, pass_fds=[write_end]) as pid:
            os.close(write_end)
            assert ready.read(1) == b"1", "slirp4netns is not ready"
            yield Contender(outer_address(stage), namespace.command, pid)


@contextlib.contextmanager
def pasta(stage: Stage, mtu: int) -> Iterator[Contender]:
    control = Control(stage.control)
    control.host_default_add()  # it asks for one
    try:
        with Namespace() as namespace:
            options = ["--foreground", "--quiet", "--config-net", f"--mtu={mtu}"]
            with _running(["pasta", *options, str(namespace.pid)]) as pid:
                wait_for(lambda: namespace.ip("route", "show", "default"), "pasta is ready")
                yield Contender(outer_address(stage), namespace.command, pid)
    finally:
        control.host_default_delete()


@contextlib.contextmanager
def direct(stage: Stage) -> Iterator[Contender]:
    yield Contender(outer_address(stage), on_host, None)


def outer_address(stage: Stage) -> str:
    return stage.far.endpoint_v4.rpartition(":")[0]


def on_host(*command: str) -> list[str]:
    return list(command)


def roots_engine(interface: str) -> int:
    """Find the pid of the stage's wireguard-go by its command line, which everyone may read."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            program, *arguments = (entry / "cmdline").read_text().split("\0")
        except OSError:  # it has ended
            continue
        if Path(program).name == "wireguard-go" and arguments[:1] == [interface]:
            return int(entry.name)
    raise AssertionError(f"no wireguard-go of {interface}: run it by scripts/bench")


@contextlib.contextmanager
def _running(command: list[str], **options: Any) -> Iterator[int]:
    """Run a command until the block ends, without its output; yield its pid."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **silent, **options)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)
