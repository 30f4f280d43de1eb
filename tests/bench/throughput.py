"""TCP through the tunnel to the far end, one stream, in turns with stock wireguard-go.

Stock runs as root, on a TUN of its own in the host's namespace, with the same far end, MTU and
path; the stage has set it up (tests/stage/world).
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from bench.record import Table
from support import stage as stages
from support.bus import Bus, Client
from support.daemon import Daemon
from support.namespaces import Namespace

STOCK = "stock, as root"


def run(arguments: argparse.Namespace) -> list[Table]:
    stage = stages.read()
    assert stage, "run it by scripts/bench"
    iperf3 = ["iperf3", "--json", "--client", stage.far.ipv4, f"--port={stage.far.iperf3_port}"]
    iperf3 += [f"--time={arguments.seconds}", "--omit=1"]
    figures: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="wg-") as directory, Namespace() as namespace:
        bus = Bus(Path(directory))
        daemon = Daemon(bus, Path(directory))
        with Client(bus.address) as client:
            path = client.create(namespace, stage.conf(0))
            commands = {
                (direction, name): [*command, *option]
                for direction, option in (("up", []), ("down", ["--reverse"]))
                for name, command in (
                    ("wg4netnsd", namespace.command(*iperf3)),
                    (STOCK, [*iperf3, f"--bind={stage.stock_address}"]),
                )
            }
            for number in range(arguments.rounds):  # there and back: nobody is always the first
                for direction, name in list(commands)[:: -1 if number % 2 else 1]:
                    values = figures.setdefault(direction, {}).setdefault(name, [])
                    values.append(_gbits(commands[direction, name]))
            client.close_tunnel(path)
        daemon.stop()
        bus.close()
    return [
        Table(f"TCP {direction}, 1 stream, MTU 1420", "Gbit/s", figures[direction], STOCK)
        for direction in figures
    ]


def _gbits(command: list[str]) -> float:
    """The receiver's word. The server takes one test at a time, and a moment to end one."""
    while True:
        done = subprocess.run(command, capture_output=True, text=True)
        result = json.loads(done.stdout)
        if "busy" not in result.get("error", ""):
            break
    assert "error" not in result, result["error"]
    return float(result["end"]["sum_received"]["bits_per_second"]) / 1e9
