"""A tunnel for programs that have no namespace: our gateway beside netstack's way.

    gateway         SOCKS 5 by our gateway into a tunnel of the daemon's
    netstack        SOCKS 5 by one program with WireGuard and gVisor's TCP/IP stack
    inside          no proxy: the same client in the tunnel's namespace

The same client program measures all of them, in turns. It and the far end's servers are in Python,
which costs each contender the same.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import netstack
from bench.record import Table
from bench.tunnels import daemon_with
from bench.turns import in_turns
from bench.usage import Memory, cpu_seconds, machine_cpu_seconds, memory
from support.forwards import add_forward, gateways, port_of
from support.namespaces import Namespace
from support.stage import Stage, read

CLIENT = Path(__file__).with_name("reach_client.py")
GATEWAY, NETSTACK, INSIDE = "gateway", "netstack", "inside"
IDLE = 1000  # connections
SAMPLES = 0.05
"""Seconds between two samples of memory."""


@dataclass(frozen=True)
class Way:
    """How the client gets into a tunnel."""

    command: Callable[..., list[str]]
    proxy: int
    """The proxy's port, or 0."""
    processes: tuple[int, ...]
    """The pids of what carries the bytes."""


@dataclass(frozen=True)
class Transfer:
    gbits: float
    cpu: float
    """CPU-seconds of the way's processes per GB."""
    machine_cpu: float
    rss: float
    """The most that the way's processes had, in MiB."""


def run(arguments: argparse.Namespace) -> list[Table]:
    stage = read()
    assert stage, "run it by scripts/bench"
    tables = []
    with tempfile.TemporaryDirectory(prefix="wg-") as directory:
        program = netstack.build(Path(directory))
        tables += _idle(stage, program, arguments.rounds)
        with _ways(stage, program) as ways:
            tables += _new_connections(stage, ways, arguments)
            tables += _transfers(stage, ways, arguments)
    return tables


@contextlib.contextmanager
def _ways(stage: Stage, program: Path) -> Iterator[dict[str, Way]]:
    """Start all contenders, each new."""
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace())
        daemon, _ = stack.enter_context(daemon_with({}))
        conf = stage.conf(0, MTU="1420")
        path = daemon.client.create(namespace, conf, lifetime="persistent")
        engine = int(daemon.client.get(path, "EnginePID"))
        proxy = add_forward(daemon.client, path, kind="proxy", listen=["127.0.0.1:0"])
        (gateway,) = gateways()
        netstack_pid, port = stack.enter_context(netstack.proxy(program, stage, 1))
        ways = {
            GATEWAY: Way(_on_host, port_of(daemon.client, proxy), (engine, gateway)),
            NETSTACK: Way(_on_host, port, (netstack_pid,)),
            INSIDE: Way(namespace.command, 0, (engine,)),
        }
        for way in ways.values():  # the first packet to a peer waits for a handshake
            _client(stage, way, "connect", "1", "0.1")
        yield ways


def _on_host(*command: str) -> list[str]:
    return list(command)


def _command(stage: Stage, way: Way, *arguments: str) -> list[str]:
    program = [sys.executable, "-I", str(CLIENT), str(way.proxy), stage.far.ipv4]
    return way.command(*program, *arguments)


def _client(stage: Stage, way: Way, *arguments: str) -> Any:
    """Run the client; return what it prints."""
    found, _ = _watched_client(stage, way, *arguments)
    return found


def _watched_client(stage: Stage, way: Way, *arguments: str) -> tuple[Any, float]:
    """Run the client; return what it prints, and the most memory that the way has meanwhile."""
    command = _command(stage, way, *arguments)
    most = 0.0
    with tempfile.TemporaryFile("w+") as output:  # larger than a pipe that nobody reads meanwhile
        with subprocess.Popen(command, stdout=output) as client:
            while client.poll() is None:
                most = max(most, _memory(way).rss)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    client.wait(SAMPLES)
        assert client.returncode == 0, f"{arguments} by {way}"
        output.seek(0)
        return json.load(output), most


# ---------------------------------------------------------------- transfers


def _transfers(
    stage: Stage, ways: dict[str, Way], arguments: argparse.Namespace
) -> Iterator[Table]:
    rates, costs = {}, {}
    for direction in arguments.directions:
        for streams in arguments.streams:
            kind = f"{direction}, {streams} stream{'s' if streams > 1 else ''}"
            found = in_turns(
                {
                    name: partial(
                        _transfer, stage, way, direction, str(streams), str(arguments.seconds)
                    )
                    for name, way in ways.items()
                },
                arguments.rounds,
            )
            for title, unit, figure in (
                (f"TCP {kind}", "Gbit/s", "gbits"),
                (f"TCP {kind}: CPU of what carries it", "CPU-s/GB", "cpu"),
                (f"TCP {kind}: CPU of the whole machine", "CPU-s/GB", "machine_cpu"),
                (f"TCP {kind}: RSS at most", "MiB", "rss"),
            ):
                rows = {
                    name: [getattr(one, figure) for one in each] for name, each in found.items()
                }
                yield Table(title, unit, rows, NETSTACK)
            ours = found[GATEWAY]
            for other in (NETSTACK, INSIDE):
                pairs = list(zip(ours, found[other], strict=True))
                rates[f"{kind}: {GATEWAY} / {other}"] = [
                    one.gbits / two.gbits for one, two in pairs
                ]
                costs[f"{kind}: {GATEWAY} / {other}"] = [one.cpu / two.cpu for one, two in pairs]
    yield Table("Throughput, round by round", "ratio", rates)
    yield Table("CPU-s/GB, round by round", "ratio", costs)


def _transfer(stage: Stage, way: Way, *arguments: str) -> Transfer:
    before = _cpu(way)
    found, rss = _watched_client(stage, way, "transfer", *arguments)
    used, machine = (now - then for now, then in zip(_cpu(way), before, strict=True))
    gigabytes = found["bytes"] / 1e9
    rate = 8 * gigabytes / found["seconds"]
    return Transfer(rate, used / gigabytes, machine / gigabytes, rss)


def _cpu(way: Way) -> tuple[float, float]:
    return sum(map(cpu_seconds, way.processes)), machine_cpu_seconds()


# ---------------------------------------------------------------- new connections


def _new_connections(
    stage: Stage, ways: dict[str, Way], arguments: argparse.Namespace
) -> Iterator[Table]:
    found = in_turns(
        {
            name: partial(_client, stage, way, "connect", "8", str(arguments.seconds))
            for name, way in ways.items()
        },
        arguments.rounds,
    )
    rates = {
        name: [len(one["times"]) / one["seconds"] for one in each] for name, each in found.items()
    }
    yield Table("New connections, 8 clients", "connections/s", rates, NETSTACK)
    found = in_turns(
        {
            name: partial(_client, stage, way, "connect", "1", str(arguments.seconds))
            for name, way in ways.items()
        },
        arguments.rounds,
    )
    times = {
        name: [1e3 * each for one in every for each in one["times"]]
        for name, every in found.items()
    }
    fewest = min(map(len, times.values()))
    shown = {name: each[:: max(1, len(each) // min(fewest, 1000))] for name, each in times.items()}
    yield Table("From the connection to the first byte", "ms", shown, NETSTACK)


# ---------------------------------------------------------------- memory


def _idle(stage: Stage, program: Path, rounds: int) -> Iterator[Table]:
    """Each round has new processes."""
    tables: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        with _ways(stage, program) as ways:
            for name in (GATEWAY, NETSTACK):
                way = ways[name]
                new = _memory(way)
                command = _command(stage, way, "idle", str(IDLE))
                with subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                ) as client:
                    assert client.stdin and client.stdout
                    assert client.stdout.readline(), "not all connections are open"
                    held = _memory(way)
                    client.stdin.close()
                for title, value in (
                    ("RSS after the first connection", new.rss),
                    (f"RSS with {IDLE} idle connections", held.rss),
                    (f"Anonymous memory with {IDLE} idle connections", held.anonymous),
                ):
                    tables.setdefault(title, {}).setdefault(name, []).append(value)
    for title, rows in tables.items():
        yield Table(title, "MiB", rows, NETSTACK)


def _memory(way: Way) -> Memory:
    """Of all its processes."""
    every = [memory(pid) for pid in way.processes]
    return Memory(sum(one.rss for one in every), sum(one.anonymous for one in every))
