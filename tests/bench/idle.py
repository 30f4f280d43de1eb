"""The cost of tunnels while nothing is sent: voluntary and involuntary context switches.

All threads count. A process that sleeps makes none. At the same time, upstream's engine runs as
root on a TUN that it watches itself; the stage has set it up (tests/stage/world).

Measure for two minutes, or a multiple: Go's runtime wakes up the stock engine every minute
(sysmon), and collects garbage two minutes after the last collection (forcegcperiod).
"""

import argparse
import time
from collections.abc import Collection
from contextlib import ExitStack

from bench.contenders import roots_engine
from bench.create import CONF
from bench.record import Table
from bench.tunnels import daemon_with
from support import stage as stages
from support.processes import children, switches

SETTLE = 135.0
"""Seconds. An engine may still send a keepalive 10 s after a handshake; within two minutes of its
last packet, it returns memory and turns its garbage collector off."""

STOCK = "stock, as root"
UNIT = "switches/s"


def run(arguments: argparse.Namespace) -> list[Table]:
    """Measure several daemons at once: some whose tunnels have never had a session, and one whose
    tunnels have one each. A session needs an identity that the far end knows, so these are few."""
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
        time.sleep(SETTLE)  # nothing announces the last timer
        engines = {name: daemon.engines() for name, daemon in daemons.items()}
        own = {
            name: {daemon.pid} | children(daemon.pid) - engines[name]  # the agent
            for name, daemon in daemons.items()
        }
        largest = engines[str(arguments.sizes[-1])]
        single = {
            "wg4netnsd, never used": largest,
            "wg4netnsd, with a session": in_use.engines(),
            STOCK: {roots_engine("stock0")},
        }
        rates = _rates(
            set().union(*engines.values(), *own.values(), *single.values()), arguments.seconds
        )
    alone = {name: sum(rates[pid] for pid in pids) for name, pids in own.items()}
    both = {name: alone[name] + sum(rates[pid] for pid in pids) for name, pids in engines.items()}
    return [
        Table("Daemon and engines", UNIT, {name: [both[name]] for name in both}, axis="tunnels"),
        Table("The daemon alone", UNIT, {name: [alone[name]] for name in alone}, axis="tunnels"),
        Table(
            "One engine",
            UNIT,
            {name: [rates[pid] for pid in sorted(pids)] for name, pids in single.items()},
            STOCK,
        ),
    ]


def _rates(pids: Collection[int], seconds: float) -> dict[int, float]:
    """Return each process's switches per second."""
    before = {pid: switches(pid) for pid in pids}
    time.sleep(seconds)
    after = {pid: switches(pid) for pid in pids}
    return {pid: _between(before[pid], after[pid]) / seconds for pid in pids}


def _between(before: dict[int, int], after: dict[int, int]) -> int:
    """Return the difference. A thread that has started since counts, an ended one does not."""
    return sum(count - before.get(thread, 0) for thread, count in after.items())
