"""How long a killed daemon is absent, by the number of tunnels that the next one takes over.

The set-up is a user's: the unit that `wg4netnsctl setup` installs, in a real `systemd --user`.
Pings through one of the tunnels show whether the kill is noticeable.
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.create import CONF
from bench.record import Table
from support import buses
from support import stage as stages
from support.bus import Client
from support.installed import crash
from support.manager import UNIT, UNLIMITED, UserManager, ctl, drop_in
from support.namespaces import Namespace

PINGS = 400


def run(arguments: argparse.Namespace) -> list[Table]:
    stage = stages.read()
    assert stage, "run it by scripts/bench"
    ready: dict[str, Sequence[float]] = {}
    away: dict[str, Sequence[float]] = {}
    lost: dict[str, Sequence[float]] = {}
    with TemporaryDirectory() as directory:
        manager = UserManager(Path(directory), buses.DAEMON)
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
                columns = zip(*killed, strict=True)
                ready[str(size)], away[str(size)], lost[str(size)] = columns
        ctl("setup", "--remove")
        manager.stop()
    return [
        Table("From the new process's start to READY", "ms", ready, axis="tunnels"),
        Table("From the kill until it answers again", "ms", away, axis="tunnels"),
        Table(
            f"Pings lost, of {PINGS} from the kill on, one each 10 ms",
            "pings",
            lost,
            axis="tunnels",
        ),
    ]


def _kill(
    manager: UserManager, client: Client, inside: Namespace, far: str, size: int
) -> tuple[float, float, int]:
    """Kill the daemon. Return ms until READY, ms until it answers, and how many pings were lost."""
    pings = inside.popen("ping", "-q", "-i0.01", f"-c{PINGS}", far, stdout=-1)
    start = time.monotonic()
    crash(manager)
    assert len(client.tunnels()) == size
    away = time.monotonic() - start
    began = int(manager.property(UNIT, "ExecMainStartTimestampMonotonic"))
    ready = int(manager.property(UNIT, "ActiveEnterTimestampMonotonic")) - began
    said, _ = pings.communicate()
    sent, received, *_ = (int(word) for word in said.split() if word.isdigit())
    return ready / 1e3, away * 1e3, sent - received
