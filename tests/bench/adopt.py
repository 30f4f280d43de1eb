"""How long a daemon that was killed is away, with so many tunnels to take over.

All is as its user has it: the unit that `wg4netnsctl setup` installs, in a real `systemd --user`.
Pings through one of the tunnels tell whether it was noticed.
"""

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.create import CONF
from bench.figures import grid, percentile
from support import stage as stages
from support.bus import Client
from support.installed import crash
from support.manager import UNIT, UNLIMITED, UserManager, ctl, drop_in
from support.namespaces import Namespace


def run(arguments: argparse.Namespace) -> None:
    stage = stages.read()
    assert stage, "run it by scripts/bench"
    rows: dict[str, list[float | None]] = {}
    with TemporaryDirectory() as directory:
        manager = UserManager(Path(directory))
        ctl("setup")
        with drop_in(manager, *UNLIMITED), ExitStack() as stack:
            client = stack.enter_context(Client(manager.address))
            inside = stack.enter_context(Namespace())
            client.create(inside, stage.conf(0), wait="handshake")
            count = 1
            for size in arguments.sizes:
                while count < size:
                    client.create(stack.enter_context(Namespace()), CONF, lifetime="persistent")
                    count += 1
                killed = [
                    _kill(manager, client, inside, stage.far.ipv4, size)
                    for _ in range(arguments.kills)
                ]
                ready, away, lost = zip(*killed, strict=True)
                rows[f"{size} tunnels"] = [
                    percentile(ready, 50), max(ready), percentile(away, 50), max(away), sum(lost),
                ]  # fmt: skip
        ctl("setup", "--remove")
        manager.stop()
    columns = ("READY p50", "max", "away p50", "max", "lost")
    print("READY: from the process's start; away: from its kill; lost: pings, of 400 at each kill")
    print(grid("ms", columns, rows))


def _kill(
    manager: UserManager, client: Client, inside: Namespace, far: str, size: int
) -> tuple[float, float, int]:
    """Milliseconds to READY and until it serves; how many pings were lost meanwhile."""
    pings = inside.popen("ping", "-q", "-i", "0.01", "-w", "4", far, stdout=-1)
    start = time.monotonic()
    crash(manager)
    assert len(client.tunnels()) == size
    away = time.monotonic() - start
    began = int(manager.property(UNIT, "ExecMainStartTimestampMonotonic"))
    ready = int(manager.property(UNIT, "ActiveEnterTimestampMonotonic")) - began
    said, _ = pings.communicate()
    sent, received, *_ = (int(word) for word in said.split() if word.isdigit())
    return ready / 1e3, away * 1e3, sent - received
