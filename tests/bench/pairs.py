"""TCP from one namespace to another on the same machine, each with a tunnel made the same way.

In other benchmarks, the far end is stock, which helps a client without offloads: the far end's
offloads still receive its packets in trains, and send trains. Here both ends are alike.
"""

import argparse
import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

from bench import predecessor
from bench.contenders import OURS, PREDECESSOR, Contender, together
from bench.iperf import Kind, Transfer, transfer
from bench.record import Table
from bench.tunnels import daemon_with
from bench.turns import in_turns
from support.daemon import Daemon
from support.namespaces import Namespace
from support.stage import keys

PORT = 5201
LISTEN_PORTS = {OURS: (51901, 51902), PREDECESSOR: (51903, 51904)}
ADDRESSES = "10.9.0.1", "10.9.0.2"

Tunnel = Callable[[Namespace, str], AbstractContextManager[int]]
"""Creates a tunnel in a namespace from a configuration; yields the engine's pid."""


def run(arguments: argparse.Namespace) -> list[Table]:
    with tempfile.TemporaryDirectory(prefix="wg-") as directory, daemon_with({}) as (daemon, _):
        engine = predecessor.build(Path(directory))
        ways = {
            OURS: _pair(OURS, partial(_tunnel, daemon)),
            PREDECESSOR: _pair(PREDECESSOR, partial(predecessor.tunnel, engine)),
        }
        with together(ways) as contenders:
            found = {
                streams: in_turns(
                    {
                        name: partial(
                            transfer, each, PORT, Kind("TCP", "up", streams), arguments.seconds
                        )
                        for name, each in contenders.items()
                    },
                    arguments.rounds,
                )
                for streams in arguments.streams
            }
    return [
        *(table for streams, rows in found.items() for table in _tables(streams, rows)),
        Table(
            "Between two namespaces, round by round",
            "ratio",
            {
                f"{_name(streams)}: {OURS} / {PREDECESSOR}": [
                    our.gbits / their.gbits
                    for our, their in zip(rows[OURS], rows[PREDECESSOR], strict=True)
                ]
                for streams, rows in found.items()
            },
        ),
    ]


def _tables(streams: int, rows: dict[str, list[Transfer]]) -> list[Table]:
    rates = {name: [each.gbits for each in values] for name, values in rows.items()}
    costs = {
        name: [(each.client_cpu or 0) + (each.far_cpu or 0) for each in values]
        for name, values in rows.items()
    }
    return [
        Table(_name(streams), "Gbit/s", rates, PREDECESSOR),
        Table(f"{_name(streams)}: both engines", "CPU-s/GB", costs, PREDECESSOR),
    ]


def _name(streams: int) -> str:
    return f"TCP between two namespaces, {streams} stream{'s' if streams > 1 else ''}"


@contextlib.contextmanager
def _pair(name: str, tunnel: Tunnel) -> Iterator[Contender]:
    """Yield the client's end, with the other end as its server."""
    pairs = keys(), keys()
    confs = [
        f"[Interface]\nPrivateKey = {pairs[me].private}\nListenPort = {LISTEN_PORTS[name][me]}\n"
        f"Address = {ADDRESSES[me]}/24\n"
        f"[Peer]\nPublicKey = {pairs[other].public}\nAllowedIPs = {ADDRESSES[other]}/32\n"
        f"Endpoint = 127.0.0.1:{LISTEN_PORTS[name][other]}\n"
        for me, other in ((0, 1), (1, 0))
    ]
    with ExitStack() as stack:
        spaces = [stack.enter_context(Namespace()) for _ in confs]
        engines = [
            stack.enter_context(tunnel(space, conf))
            for space, conf in zip(spaces, confs, strict=True)
        ]
        server = stack.enter_context(
            spaces[1].popen("iperf3", "--server", f"--port={PORT}", stdout=subprocess.DEVNULL)
        )
        stack.callback(server.terminate)
        yield Contender(ADDRESSES[1], spaces[0].command, *engines)


@contextlib.contextmanager
def _tunnel(daemon: Daemon, namespace: Namespace, conf: str) -> Iterator[int]:
    path = daemon.client.create(namespace, conf)
    yield int(daemon.client.get(path, "EnginePID"))
    daemon.client.close_tunnel(path)
