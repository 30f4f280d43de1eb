"""The cost of a growing number of tunnels: time to create one more, and the daemon's memory.

Each tunnel has a namespace and an engine of its own. At size n, the n-th tunnel is created and
closed again and again, in turns with the first tunnel of a second daemon that does not grow: the
machine itself changes more from minute to minute than any of this. Memory is what only the daemon
uses (the Private lines of smaps_rollup), with n tunnels.
"""

import argparse
import re
import time
from contextlib import ExitStack
from pathlib import Path

from bench.create import CONF
from bench.record import Table
from bench.tunnels import daemon_with
from bench.turns import in_turns
from support.daemon import Daemon
from support.namespaces import Namespace
from support.processes import wait_for

GROWING, OTHER = "growing", "other"


def run(arguments: argparse.Namespace) -> list[Table]:
    times: dict[str, dict[str, list[float]]] = {GROWING: {}, OTHER: {}}
    memory: dict[str, list[float]] = {}
    with daemon_with({}) as (growing, _), daemon_with({}) as (other, _), ExitStack() as stack:
        count = 0
        for size in arguments.sizes:
            while count < size - 1:
                _add(growing, stack)
                count += 1
            ways = {
                GROWING: lambda others=count: _create(growing, others),
                OTHER: lambda: _create(other, 0),
            }
            for name, values in in_turns(ways, arguments.rounds).items():
                times[name][str(size)] = values
            _add(growing, stack)
            count += 1
            memory[str(size)] = [_memory(growing.pid)]
    first = "CreateTunnel, the first of another daemon, in turns with the n-th"
    return [
        Table("CreateTunnel, the n-th", "ms", times[GROWING], axis="tunnels"),
        Table(first, "ms", times[OTHER], axis="tunnels"),
        Table("Memory of the daemon alone", "MiB", memory, axis="tunnels"),
    ]


def _add(daemon: Daemon, stack: ExitStack) -> None:
    space = stack.enter_context(Namespace())
    daemon.client.create(space, CONF, lifetime="persistent")


def _create(daemon: Daemon, others: int) -> float:
    wait_for(lambda: len(daemon.engines()) == others + 1, "an engine waits")
    with Namespace() as namespace:
        start = time.perf_counter()
        path = daemon.client.create(namespace, CONF, lifetime="persistent")
        took = time.perf_counter() - start
        daemon.client.close_tunnel(path)
    return took * 1e3


def _memory(pid: int) -> float:
    """Return the MiB that only this process uses."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(float(kib) for kib in re.findall(r"^Private_\w+:\s+(\d+) kB$", rollup, re.M)) / 1024
