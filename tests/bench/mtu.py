"""20 MiB over paths that carry less than 1500 bytes, beside stock wireguard-go.

wg4netnsd's far end runs wg4netnsd's engine, stock's the stock one: each end loses what it sends
itself. So both are on the path whose routes Control.path_mtu() changes, and take turns.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

from bench.contenders import OURS, STOCK, on_host
from bench.record import Table
from bench.tunnels import daemon_with
from bench.turns import in_turns
from support.namespaces import Namespace
from support.stage import Control, Stage, read

CARRIED = (1500, 1480, 1479, 1460, 1400, 1300)
FAMILIES = {"v4": "IPv4", "v6": "IPv6"}
SIZE = 20 << 20
LIMIT = 5.0
"""Seconds for a transfer, after which its rate is that of what has arrived."""

# Prints the MiB/s of a transfer: up to the far end's discard, or down from its chargen.
TRANSFER = """
import select, socket, struct, sys, time
direction, address, size, limit = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
connection = socket.create_connection((address, {"up": 9, "down": 19}[direction]), timeout=10)
began, done, rest = time.monotonic(), 0, size
connection.setblocking(False)
while done < size and time.monotonic() < began + limit:
    sends = direction == "up" and rest > 0
    ready, free, _ = select.select([connection], [connection] if sends else [], [], 0.1)
    if free:
        rest -= connection.send(bytes(min(65536, rest)))
        if not rest:
            connection.shutdown(socket.SHUT_WR)
    if ready:  # up, all of it has arrived
        done = size if direction == "up" else done + len(connection.recv(1 << 20))
seconds = time.monotonic() - began
if direction == "up" and done < size:
    information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
    (done,) = struct.unpack_from("Q", information, 120)  # tcpi_bytes_acked of linux/tcp.h
print(min(done, size) / (1 << 20) / seconds)
"""


def run(arguments: argparse.Namespace) -> list[Table]:
    stage = read()
    assert stage, "run it by scripts/bench"
    control = Control(stage.control)
    tables = []
    try:
        for family in FAMILIES:
            for carried in arguments.carried:
                control.path_mtu(0 if carried == 1500 else carried)
                tables += _tables(stage, control, family, carried, arguments.rounds)
    finally:
        control.reset()
    return tables


def _tables(
    stage: Stage, control: Control, family: str, carried: int, rounds: int
) -> Iterator[Table]:
    turns = {
        OURS: partial(_ours, stage, control, family),
        f"{OURS}, MTU 1420": partial(_ours, stage, control, family, MTU="1420"),
        f"{STOCK}, MTU 1420": partial(_stock, stage, control, family),
    }
    found = in_turns(turns, rounds)
    for number, direction in enumerate(("up", "down")):
        title = f"20 MiB {direction}, {FAMILIES[family]} endpoint, path MTU {carried}"
        rates = {name: [each[number] for each in every] for name, every in found.items()}
        yield Table(title, "MiB/s", rates, f"{STOCK}, MTU 1420")


def _ours(stage: Stage, control: Control, family: str, **said: str) -> tuple[float, float]:
    control.far_engine("ours")
    conf = stage.conf(0, getattr(stage.moving, f"endpoint_{family}"), **said)
    with Namespace() as namespace, daemon_with({}) as (daemon, _):
        daemon.client.create(namespace, conf, wait="handshake")
        return _rates(stage, namespace.command)


def _stock(stage: Stage, control: Control, family: str) -> tuple[float, float]:
    control.far_engine("stock")
    control.stock_endpoint(family)  # without a session that the far end does not know any more
    return _rates(stage, on_host)


def _rates(stage: Stage, command: Callable[..., list[str]]) -> tuple[float, float]:
    """Return the MiB/s up and down."""
    # The first packets wait for a session. Stock loses them together with what an earlier transfer
    # still has to send, if that is too large: so ping until one is answered.
    ping = command("ping", "-n", "-c1", "-w30", stage.far.ipv4)
    subprocess.run(ping, stdout=subprocess.DEVNULL, check=True)

    def rate(direction: str) -> float:
        program = (sys.executable, "-c", TRANSFER, direction, stage.far.ipv4, str(SIZE), str(LIMIT))
        done = subprocess.run(command(*program), capture_output=True, text=True, check=True)
        return float(done.stdout)

    return rate("up"), rate("down")
