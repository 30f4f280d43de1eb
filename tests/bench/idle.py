"""What tunnels cost while nothing is sent: context switches of all threads, of either kind.

A process that sleeps makes none. In the same window, upstream's engine run as root on a TUN that it
watches by itself; the stage has set it up (tests/stage/world).

Measure for two minutes, or a multiple: Go's runtime wakes up every minute (sysmon), and two minutes
after each garbage collection it makes another (forcegcperiod): that is most of what is seen here.
"""

import argparse
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from bench.create import CONF
from bench.record import Table
from bench.tunnels import daemon_with
from support import stage as stages
from support.processes import children

SETTLE = 135.0
"""Seconds: 10 after a handshake an engine may still send a keepalive by itself, and within two
minutes of its last packet it gives memory back and turns its garbage collector off."""

STOCK = "stock, as root"

Counts = dict[int, dict[int, int]]
"""Context switches, by process and thread."""


def run(arguments: argparse.Namespace) -> list[Table]:
    """Of several daemons at once: those whose tunnels have never had a session, and one of whose
    each has one; that takes an identity which the far end knows, so there are few."""
    stage = stages.read()
    assert stage, "run it by scripts/bench"
    used = {f"t{number}": stage.conf(number) for number in range(len(stage.clients))}
    with ExitStack() as stack:
        daemons = {
            str(size): stack.enter_context(
                daemon_with({f"t{number}": CONF for number in range(size)}, lifetime="persistent")
            )[0]
            for size in arguments.sizes
        }
        in_use, _ = stack.enter_context(daemon_with(used, wait="handshake"))
        time.sleep(SETTLE)  # nothing tells when the last timer is over
        stock = _stock_engine()
        engines = {name: daemon.engines() for name, daemon in daemons.items()}
        owns = {
            name: {daemon.pid} | children(daemon.pid) - engines[name]  # the agent
            for name, daemon in daemons.items()
        }
        used_engines = in_use.engines()
        everyone = {stock}.union(used_engines, *engines.values(), *owns.values())
        before = _count(everyone)
        time.sleep(arguments.seconds)
        after = _count(everyone)
    rate = {
        pid: _switches(before[pid], threads) / arguments.seconds for pid, threads in after.items()
    }
    alone = {name: [sum(rate[pid] for pid in pids)] for name, pids in owns.items()}
    both = {
        name: [total + sum(rate[pid] for pid in engines[name])] for name, (total,) in alone.items()
    }
    largest = engines[str(arguments.sizes[-1])]
    each = {
        "wg4netnsd, never used": [rate[pid] for pid in sorted(largest)],
        "wg4netnsd, with a session": [rate[pid] for pid in sorted(used_engines)],
        STOCK: [rate[stock]],
    }
    return [
        Table("Daemon and engines", "switches/s", both, axis="tunnels"),
        Table("The daemon alone", "switches/s", alone, axis="tunnels"),
        Table("One engine", "switches/s", each, STOCK),
    ]


def _stock_engine() -> int:
    """Root's; its command line is everybody's to read."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            program, *arguments = (entry / "cmdline").read_text().split("\0")
        except OSError:  # it has ended
            continue
        if Path(program).name == "wireguard-go" and arguments[:1] == ["stock0"]:
            return int(entry.name)
    raise AssertionError("no stock0: run it by scripts/bench")


def _count(pids: Iterable[int]) -> Counts:
    """proc(5): voluntary_ctxt_switches and nonvoluntary_ctxt_switches, of each thread alone."""
    return {
        pid: {
            int(task.name): sum(
                int(line.split()[1])
                for line in (task / "status").read_text().splitlines()
                if "voluntary_ctxt_switches" in line
            )
            for task in Path(f"/proc/{pid}/task").iterdir()
        }
        for pid in pids
    }


def _switches(before: dict[int, int], after: dict[int, int]) -> int:
    """In between. A thread that has begun meanwhile counts, one that has ended does not."""
    return sum(count - before.get(thread, 0) for thread, count in after.items())
