"""Pings through each contender: idle, and while one TCP stream keeps it busy.

The floor is the direct way over the veth, also idle and busy. A contender adds the difference.
"""

import argparse
import contextlib
import re
import subprocess
import tempfile
from functools import partial
from itertools import chain
from pathlib import Path

from bench import predecessor
from bench.contenders import STOCK, Contender, direct, like_for_like, together
from bench.iperf import Kind, load
from bench.record import Table
from bench.turns import in_turns
from support.stage import read

INTERVAL = 0.01
"""Seconds between pings; the least for an ordinary user is 0.002."""

FLOOR = "floor: veth"
LOADS = {
    "idle": None,
    "while TCP goes up": Kind("TCP", "up", 1),
    "while TCP goes down": Kind("TCP", "down", 1),
}


def run(arguments: argparse.Namespace) -> list[Table]:
    stage = read()
    assert stage, "run it by scripts/bench"
    tables = []
    with tempfile.TemporaryDirectory(prefix="wg-") as directory:
        engine = predecessor.build(Path(directory))
        ways = {**like_for_like(stage, engine), FLOOR: direct(stage)}
        with together(ways) as contenders:
            for when, kind in LOADS.items():
                turns = {
                    name: partial(_pings, each, stage.far.iperf3_port, kind, arguments.pings)
                    for name, each in contenders.items()
                }
                found = in_turns(turns, arguments.rounds)
                times = {name: [*chain(*rounds)] for name, rounds in found.items()}
                lost = {
                    name: [100 * (1 - len(each) / arguments.pings) for each in rounds]
                    for name, rounds in found.items()
                }
                tables.append(Table(f"Ping, {when}", "ms", times, STOCK))
                tables.append(Table(f"Ping, {when}: lost", "%", lost))
    return tables


def _pings(contender: Contender, port: int, kind: Kind | None, count: int) -> list[float]:
    """Return the milliseconds of each answered ping."""
    options = ["-n", f"-i{INTERVAL}", f"-c{count}"]
    command = contender.command("ping", *options, contender.server)
    with load(contender, port, kind) if kind else contextlib.nullcontext():
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr  # 1: some were lost
    return [float(time) for time in re.findall(r" time=([\d.]+) ms", done.stdout)]
