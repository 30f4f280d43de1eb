"""What tunnels cost while nothing is sent: context switches of all threads, of either kind.

A process that sleeps makes none. In the same window, upstream's engine run as root on a TUN that it
watches by itself; the stage has set it up (tests/stage/world).

Measure for two minutes, or a multiple: Go's runtime wakes up every minute (sysmon), and two minutes
after each garbage collection it makes another (forcegcperiod): that is most of what is seen here.
"""

import time
from pathlib import Path

from bench.figures import grid
from bench.tunnels import daemon_with
from support.configs import Secrets
from support.daemon import Daemon
from support.processes import children
from support.stage import Stage

SETTLE = 135.0
"""Seconds: 10 after a handshake an engine may still send a keepalive by itself, and within two
minutes of its last packet it gives memory back and turns its garbage collector off."""

STOCK = "stock, as root, one engine"
COLUMNS = ("daemon", "agent", "engines", "all")


def measure(stage: Stage, tunnels: int, seconds: float) -> str:
    """A table, of two daemons at once: one whose tunnels have never had a session, and one of whose
    each has one; that takes an identity which the far end knows, so there are fewer."""
    secrets = Secrets()
    never = {
        f"never{number}": secrets.conf(peer="AllowedIPs = 0.0.0.0/0\nEndpoint = 127.0.0.1:9")
        for number in range(tunnels)
    }
    once = {f"once{number}": stage.conf(number) for number in range(len(stage.clients))}
    with daemon_with(never) as (unused, _), daemon_with(once, wait="handshake") as (used, _):
        time.sleep(SETTLE)  # nothing tells when the last timer is over
        groups = {
            f"wg4netnsd, {tunnels} tunnels, never used": _processes(unused, len(never)),
            f"wg4netnsd, {len(once)} tunnels with sessions": _processes(used, len(once)),
            STOCK: {"engines": {_stock_engine()}},
        }
        before = _count(groups)
        time.sleep(seconds)
        after = _count(groups)
    rates = {
        name: {
            column: _switches(before[name][column], counts) / seconds
            for column, counts in group.items()
        }
        for name, group in after.items()
    }
    rates[f"stock, times {tunnels}"] = {"engines": rates[STOCK]["engines"] * tunnels}
    rows = {
        name: [*map(rate.get, COLUMNS[:-1]), sum(rate.values())] for name, rate in rates.items()
    }
    return grid(f"context switches a second, in {seconds:g} s", COLUMNS, rows)


Counts = dict[int, int]
"""Context switches by thread."""


def _processes(daemon: Daemon, tunnels: int) -> dict[str, set[int]]:
    """The daemon's and its children's, by column."""
    engines = daemon.engines()
    assert len(engines) == tunnels + 1, "one waits for the next tunnel"
    return {
        "daemon": {daemon.pid},
        "agent": children(daemon.pid) - engines,
        "engines": engines,
    }


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


def _count(groups: dict[str, dict[str, set[int]]]) -> dict[str, dict[str, Counts]]:
    return {
        name: {column: _threads(pids) for column, pids in group.items()}
        for name, group in groups.items()
    }


def _threads(pids: set[int]) -> Counts:
    """proc(5): voluntary_ctxt_switches and nonvoluntary_ctxt_switches, of each thread alone."""
    return {
        int(task.name): sum(
            int(line.split()[1])
            for line in (task / "status").read_text().splitlines()
            if "voluntary_ctxt_switches" in line
        )
        for pid in pids
        for task in Path(f"/proc/{pid}/task").iterdir()
    }


def _switches(before: Counts, after: Counts) -> int:
    """In between. A thread that has begun meanwhile counts, one that has ended does not."""
    return sum(count - before.get(thread, 0) for thread, count in after.items())
