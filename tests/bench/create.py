"""From the bus call to a configured interface and engine, on an idle daemon, with a warm cache.

Beside it, in the same rounds, slirp4netns' time from its start to its ready-fd, which is what it
takes to give a namespace its TAP, address and route (without encryption).
"""

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

from bench.figures import table
from support.bus import Bus, Client
from support.daemon import Daemon
from support.namespaces import Namespace
from support.processes import wait_for
from support.stage import keys

CONF = f"""[Interface]
PrivateKey = {keys().private}
Address = 10.9.0.1/24, fd09::1/64
[Peer]
PublicKey = {keys().public}
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = 127.0.0.1:51820
"""


def run(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="wg-") as directory:
        bus = Bus(Path(directory))
        daemon = Daemon(bus, Path(directory))
        with Client(bus.address) as client:
            ours: dict[str, list[float]] = {"persistent": [], "namespace": []}
            theirs: list[float] = []
            for _ in range(arguments.rounds):
                for lifetime, times in ours.items():
                    times.append(_create(daemon, client, lifetime))
                theirs.append(_slirp4netns())
        daemon.stop()
        bus.close()
    rows = {f"wg4netnsd, CreateTunnel, {lifetime}": times for lifetime, times in ours.items()}
    print(table("ms", rows | {"slirp4netns, ready": theirs}))


def _create(daemon: Daemon, client: Client, lifetime: str) -> float:
    wait_for(lambda: daemon.footprint() == daemon.idle, "the daemon is idle")
    with Namespace() as namespace:
        netns, config = namespace.open(), os.memfd_create("config")
        os.write(config, CONF.encode())
        options = {"lifetime": ("s", lifetime)}
        start = time.perf_counter()
        path = client.manager("CreateTunnel", "hha{sv}", netns, config, options)
        took = time.perf_counter() - start
        os.close(netns)
        os.close(config)
        assert {"wg0", "lo"} == set(namespace.links())
        client.close_tunnel(path)
    return took * 1e3


def _slirp4netns() -> float:
    with Namespace() as namespace:
        read_end, write_end = os.pipe()
        command = ["slirp4netns", "--configure", f"--ready-fd={write_end}", str(namespace.pid)]
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "tap0"],
            pass_fds=[write_end],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(write_end)
        assert os.read(read_end, 1) == b"1", "slirp4netns is not ready"
        took = time.perf_counter() - start
        os.close(read_end)
        process.terminate()
        process.wait()
    return took * 1e3
