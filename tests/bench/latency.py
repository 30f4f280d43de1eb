"""A ping's way through each contender: idle, and while one TCP stream keeps it busy.

The direct way over the veth, idle and busy likewise, is the floor. What a contender adds to it is
the difference.
"""

import argparse
import contextlib
import re
import subprocess
import tempfile
from pathlib import Path

from bench import predecessor
from bench.contenders import STOCK, Contender, direct, like_for_like, together
from bench.iperf import Kind, load
from bench.record import Table
from support import stage as stages

INTERVAL = 0.01
"""Seconds between pings; an ordinary user may ask for no less than 0.002."""

FLOOR = "floor: veth"
LOADS = {
    "idle": None,
    "while TCP goes up": Kind("TCP", "up", 1),
    "while TCP goes down": Kind("TCP", "down", 1),
}


def run(arguments: argparse.Namespace) -> list[Table]:
    stage = stages.read()
    assert stage, "run it by scripts/bench"
    with tempfile.TemporaryDirectory(prefix="wg-") as directory:
        engine = predecessor.build(Path(directory))
        ways = {**like_for_like(stage, engine), FLOOR: direct(stage)}
        times: dict[str, dict[str, list[float]]] = {
            what: {name: [] for name in ways} for what in LOADS
        }
        lost: dict[str, dict[str, list[float]]] = {
            what: {name: [] for name in ways} for what in LOADS
        }
        with together(ways) as contenders:
            for number in range(arguments.rounds):
                for what, kind in LOADS.items():
                    for name in list(ways)[:: -1 if number % 2 else 1]:
                        busy = (
                            load(contenders[name], stage.far.iperf3_port, kind)
                            if kind
                            else contextlib.nullcontext()
                        )
                        with busy:
                            answered = ping(contenders[name], arguments.pings)
                        times[what][name] += answered
                        lost[what][name].append(100 * (1 - len(answered) / arguments.pings))
    return [
        *(Table(f"Ping, {what}", "ms", times[what], STOCK) for what in LOADS),
        *(Table(f"Ping, {what}: lost", "%", lost[what]) for what in LOADS),
    ]


def ping(contender: Contender, count: int) -> list[float]:
    """Milliseconds of each that was answered."""
    options = ["-n", f"-i{INTERVAL}", f"-c{count}"]
    command = contender.command("ping", *options, contender.server)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr  # 1: some were lost
    return [float(time) for time in re.findall(r" time=([\d.]+) ms", done.stdout)]
