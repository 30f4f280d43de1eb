"""What a daemon costs as its tunnels grow in number: time to create, memory, calls a second.

Each tunnel has a namespace and an engine of its own. One more is created and closed, over and over,
beside so many that are there; memory is what is the daemon's alone (Private of smaps_rollup).
"""

import argparse
import base64
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.create import CONF
from bench.figures import grid, percentile
from support.bus import Bus, Client
from support.daemon import Daemon
from support.fds import memfd
from support.namespaces import Namespace
from support.processes import wait_for

PEERS = 250
CALLS_TIME = 1.0  # seconds for each kind


def run(arguments: argparse.Namespace) -> None:
    rows: dict[str, list[float | None]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="wg-")))
        bus = Bus(directory)
        stack.callback(bus.close)
        daemon = Daemon(bus, directory)
        stack.callback(daemon.stop)
        client = stack.enter_context(Client(bus.address))
        tunnels: list[str] = []
        first = 0.0
        for size in arguments.sizes:
            while len(tunnels) < size:
                space = stack.enter_context(Namespace())
                tunnels.append(client.create(space, CONF, lifetime="persistent"))
            times = [_create(daemon, client, size) for _ in range(arguments.rounds)]
            memory = _memory(daemon.pid)
            first = first or memory
            each = (memory - first) / (size - arguments.sizes[0]) if size > 1 else None
            rows[f"{size} tunnels"] = [
                percentile(times, 50),
                percentile(times, 95),
                memory / 1024,
                each,
                _rate(lambda: client.get(tunnels[0], "State")),
                _rate(lambda: client.peers(tunnels[0])),
                _rate(lambda: client.manager("Describe")),
            ]
        many = _with_peers(client, stack)
        rows[f"a tunnel of {PEERS} peers"] = [
            *(None,) * 4,
            _rate(lambda: client.get(many, "State")),
            _rate(lambda: client.peers(many)),
            None,
        ]
    columns = ("p50 ms", "p95 ms", "MiB", "KiB each", "Get/s", "GetPeers/s", "Describe/s")
    print(grid("", columns, rows))


def _create(daemon: Daemon, client: Client, others: int) -> float:
    wait_for(lambda: len(daemon.engines()) == others + 1, "an engine waits")
    with Namespace() as namespace:
        start = time.perf_counter()
        path = client.create(namespace, CONF, lifetime="persistent")
        took = time.perf_counter() - start
        client.close_tunnel(path)
    return took * 1e3


def _with_peers(client: Client, stack: ExitStack) -> str:
    keys = (f"[Peer]\nPublicKey = {_key(n)}\nAllowedIPs = 10.8.{n}.0/24\n" for n in range(1, PEERS))
    space = stack.enter_context(Namespace())
    # No pipe: of a user who has so many, the kernel gives the next one room for a page.
    with memfd(CONF + "".join(keys)) as config, open(space.path) as netns:
        options = {"lifetime": ("s", "persistent")}
        fds = (netns.fileno(), config)
        return str(client.manager("CreateTunnel", "hha{sv}", *fds, options))


def _key(number: int) -> str:
    return base64.b64encode(number.to_bytes(32)).decode()


def _memory(pid: int) -> float:
    """KiB that are the process's alone."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(float(kib) for kib in re.findall(r"^Private_\w+:\s+(\d+) kB$", rollup, re.M))


def _rate(call: Callable[[], object]) -> float:
    """Calls a second, one after the other."""
    call()
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < CALLS_TIME:
        call()
        count += 1
    return count / passed
